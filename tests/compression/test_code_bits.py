"""Codes that fit a width that was asked for: in every way to compress, for nothing where they would have fitted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import GOLDEN
from stream_helpers import small_llama
from torch import nn

import opq
from opq.constraints import code_bits, largest_codes
from opq.errors import OptionError, PatternError

sys.path.insert(0, str(GOLDEN))

import make


def largest(source: Any) -> dict[str, int]:
    with opq.Reader(source) as reader:
        return {t.name: int(np.abs(reader.codes(t.name)).max(initial=0)) for t in reader.plan.compressed}


def heavy_tailed() -> nn.Module:
    """A network with weights far from the others, whose codes are large."""
    model = make.network()
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.dim() > 1):
            parameter.view(-1)[::97] *= 30
    return model


@pytest.mark.parametrize("width", [4, 6, 8])
def test_error_feedback_keeps_within_them(width: int) -> None:
    options: dict[str, Any] = {"bits": 7, "input_size": (1, 8, 8)}
    assert max(largest(opq.compress(heavy_tailed(), **options).packed).values()) > 127, "or nothing is asked"
    bounded = opq.compress(heavy_tailed(), **options, constraints=[code_bits("*", max=width)])
    assert 0 < max(largest(bounded.packed).values()) <= 2 ** (width - 1) - 1
    assert bounded.bits <= 7


def test_only_tensors_that_the_pattern_names_are_bounded() -> None:
    found = largest(opq.compress(heavy_tailed(), bits=7, probe=False, constraints=[code_bits("7.*", max=4)]).packed)
    assert found.pop("7.weight") <= 7
    assert max(found.values()) > 127


def test_where_all_codes_fit_anyway_the_bytes_are_the_same() -> None:
    plain = opq.compress(make.network(), bits=3, input_size=(1, 8, 8), trellis=False)
    bounded = opq.compress(make.network(), bits=3, input_size=(1, 8, 8), constraints=[code_bits("*", max=12)])
    assert max(largest(plain.packed).values()) <= 2047
    assert plain.packed.parts == bounded.packed.parts


def test_with_constraints_on_rates_the_program_is_bounded_too() -> None:
    asked = [code_bits("*", max=6), opq.constraints.bits("7.*", max=0.4)]
    result = opq.compress(heavy_tailed(), bits=5, probe=False, constraints=asked)
    assert max(largest(result.packed).values()) <= 31
    assert result.plan["7.weight"].rate <= 0.401


def test_folders_are_bounded_too(tmp_path: Path) -> None:
    model = small_llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 9.0
    model.save_pretrained(tmp_path / "model")
    few = [code_bits("*", max=5)]
    opq.compress_folder(tmp_path / "model", tmp_path / "out", bits=5, probe=False, constraints=few)
    opq.compress_folder(tmp_path / "model", tmp_path / "fed", bits=5, constraints=few)
    for name in ("out", "fed"):
        (file,) = (tmp_path / name).glob("*.opq.safetensors")
        assert 0 < max(largest(file).values()) <= 15, name


def test_the_smallest_of_several_counts() -> None:
    assert largest_codes([code_bits("a*", max=8), code_bits("*b", max=4)], ["ab", "a", "b", "c"]) == {
        "ab": 7, "a": 127, "b": 7,
    }  # fmt: skip


def test_widths_from_2_to_15_bits_are_allowed() -> None:
    assert [largest_codes([code_bits("*", max=width)], ["w"])["w"] for width in (2, 15)] == [1, 16383]


@pytest.mark.parametrize("width", [1, 16, 0, -3, 4.0, True, "8"])
def test_other_widths_have_no_meaning(width: Any) -> None:
    with pytest.raises(OptionError, match="has no meaning"):
        code_bits("*", max=width)


def test_what_cannot_be_is_said() -> None:
    model, few = make.network(), [code_bits("*", max=4)]
    wide = {"7.weight": {"min_bits": 6.0}}
    with pytest.raises(PatternError, match="matches no compressed tensor"):
        opq.compress(model, bits=4, probe=False, constraints=[code_bits("nowhere", max=8)])
    with pytest.raises(OptionError, match=r"cannot have so many bits per weight with so small codes: got 6"):
        opq.compress(model, bits=4, probe=False, overrides=wide, constraints=few)
    with pytest.raises(OptionError, match="method='opq' has codes of any size"):
        opq.compress(model, bits=4, sparsity=0.5, method="opq", probe=False, constraints=few)
