"""Decoding takes at most four bytes an element beside the tensor itself."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import peak
import pytest
from plans import planned

from opq.coding import entropy
from opq.file.stored import Grid, Trellis
from opq.file.writer import pack
from opq.plan import Plan
from opq.quantizing.trellis import numbers

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no peak of memory to ask for")

SIZE = 1 << 22
PROMISED = 4 * SIZE
SLACK = 3 << 20
"""What the interpreter, its threads and the allocator may take meanwhile: 1.3 MB were seen. One more copy of the codes
would be 8 MiB, of float8 elements 4 MiB."""


def laplace(shape: tuple[int, ...], scale: float) -> np.ndarray[Any, np.dtype[np.int16]]:
    """Codes whose columns differ in scale, so that they have classes where that pays."""
    rng = np.random.default_rng(0)
    return np.rint(rng.laplace(size=shape) * scale * np.exp2(rng.integers(-2, 3, size=shape[1]))).astype(np.int16)


SHAPES = {"matrix": (1024, SIZE // 1024), "long rows": (2, SIZE // 2)}
FILES = [*itertools.product(("pages", "tables", "trellis"), SHAPES, ("F32", "BF16", "F8_E4M3"))]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], int]:
    """By how much a process grows that decodes each of the files."""
    paths = [tmp_path_factory.mktemp("memory") / "m.opq.safetensors" for _ in FILES]
    for path, file in zip(paths, FILES, strict=True):
        write(*file, path)
    return dict(zip(FILES, peak.grown(paths, "w"), strict=True))


def write(kind: str, shape: str, dtype: str, path: Path) -> None:
    """A file of one kind of payload."""
    codes = laplace(SHAPES[shape], 0.1 if kind == "tables" else 1.5)
    fields: dict[str, Any] = {"rounding": 0.5, "threshold": 0.015625}
    if kind == "trellis":
        codes, fields["codebook"] = numbers(codes), "trellis"
    else:
        assert entropy.draft(codes).coding.kind == kind
    plan = Plan(method="x", tensors=(planned("w", SHAPES[shape], dtype, **fields), planned("warm", (8, 12))))
    items = [(Trellis if kind == "trellis" else Grid)("w", codes), Grid("warm", laplace((8, 12), 1.5))]
    path.write_bytes(b"".join(pack(plan, items).parts))


@pytest.mark.parametrize("file", FILES, ids="-".join)
def test_decoding_takes_four_bytes_an_element_beside_the_tensor(
    file: tuple[str, str, str], grown: dict[tuple[str, str, str], int]
) -> None:
    assert 0 < grown[file] < PROMISED + SLACK
