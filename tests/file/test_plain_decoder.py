"""A second decoder, written from docs/format.md alone, reads what the package writes."""

from __future__ import annotations

import json
from pathlib import Path

import plain_decoder
import pytest
import torch
from paths import GOLDEN

import opq

FILES = GOLDEN / "v1"
EXPECTED: dict[str, dict[str, str]] = json.loads((FILES / "expected.json").read_text())


def bytes_of(tensor: torch.Tensor) -> bytes:
    """The elements of a tensor as they lie in memory."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_decoder_that_knows_only_the_page_reads_a_golden_file_bit_for_bit(name: str) -> None:
    decoded = {tensor: plain_decoder.described(plain) for tensor, plain in plain_decoder.decode(FILES / name).items()}
    assert list(decoded.items()) == [item for item in EXPECTED[name].items() if item[0] != "(plan)"]


def test_the_list_of_golden_files_names_all_of_them() -> None:
    assert set(EXPECTED) == {path.name for path in FILES.iterdir()} - {"expected.json"}


@pytest.mark.parametrize("trellis", [False, True])
def test_a_decoder_that_knows_only_the_page_reads_a_fresh_file_as_the_package_does(
    tmp_path: Path, trellis: bool
) -> None:
    path = tmp_path / "digits.opq.safetensors"
    opq.compress("demo:digits", bits=3, probe=False, trellis=trellis).save(path)
    decoded, loaded = plain_decoder.decode(path), opq.load_state_dict(path)
    assert list(decoded) == list(loaded)
    for name, tensor in loaded.items():
        assert (decoded[name].shape, decoded[name].data) == (tuple(tensor.shape), bytes_of(tensor))
