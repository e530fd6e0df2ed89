"""One quantized weight of a checkpoint, decoded from the layout in which another package has stored it.

The layouts are implemented from their public descriptions, and told apart by names, types and shapes:

    float8              w = code * scale             a scale for all, a row, or a block
    compressed-tensors  w = (code - zero) * scale    int8, or packed into int32 along a row, lowest bits first
    GPTQ                w = (code - zero) * scale    packed along the inputs, (inputs, outputs); group by g_idx
    AWQ                 w = (code - zero) * scale    packed along the outputs in the order 0 2 4 6 1 3 5 7
    MXFP4               w = e2m1(code) * 2^(s - 127) two codes a byte, the low one first, 32 to an s
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from opq.errors import SourceError
from opq.sources.base import TensorSpec

Read = Callable[[str], Tensor]

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The sixteen numbers of four bits: sign, two bits of exponent, one of mantissa."""
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""The places within an int32 of AWQ at which the codes of eight neighbouring outputs are stored."""
BLOCK = 128
"""Rows and columns of a block of float8 weights, unless the configuration says otherwise: as in DeepSeek-V3."""
_HALVES = (torch.float16, torch.bfloat16)


@dataclasses.dataclass(frozen=True, slots=True)
class Packed:
    """One weight in packed form."""

    name: str
    """The name of the decoded weight."""
    shape: tuple[int, ...]
    layout: str
    parts: tuple[str, ...]
    """The names of the tensors from which it is decoded, and which it replaces."""
    make: Callable[[Read], Tensor]
    """Decodes the weight, given a function that reads tensors: float32, or more precise than its own type."""
    dtype: torch.dtype | None
    """The half-precision type of the scales; None if they have another type."""


def _half(dtype: torch.dtype) -> torch.dtype | None:
    return dtype if dtype in _HALVES else None


# --- codes of one byte ------------------------------------------------------------------------


def scaled(name: str, scale: str, specs: Mapping[str, TensorSpec], settings: Mapping[str, Any]) -> Packed:
    shape, of = specs[name].shape, specs[scale].shape
    zero = f"{name}_zero_point" if f"{name}_zero_point" in specs else None
    blocks = _blocks(name, shape, of, settings, inverse=scale.endswith("_inv"))

    def make(read: Read) -> Tensor:
        codes = read(name).float()
        if zero is not None:
            codes = codes - _spread(read(zero).float(), shape, blocks)
        return codes * _spread(read(scale).float(), shape, blocks)

    parts = (name, scale, *([zero] if zero is not None else []))
    return Packed(name, shape, "scaled", parts, make, _half(specs[scale].dtype))


def _blocks(
    name: str, shape: tuple[int, ...], of: tuple[int, ...], settings: Mapping[str, Any], *, inverse: bool
) -> tuple[int, ...]:
    """How many rows, columns, ... share a scale, from the shapes of a weight and its scales."""
    if math.prod(of) == 1:
        return shape
    of = (*of, *[1] * (len(shape) - len(of))) if of[:1] == shape[:1] else of
    given = settings.get("weight_block_size")
    if isinstance(given, list) and len(given) == 2 and all(isinstance(n, int) and n > 0 for n in given):
        wanted = (*[1] * (len(shape) - 2), *given)
        if len(of) == len(shape) and all(-(-s // w) == n for s, w, n in zip(shape, wanted, of, strict=True)):
            return wanted
    choices = [_block_of(s, n, inverse) for s, n in zip(shape, of, strict=True)] if len(of) == len(shape) else [0]
    if 0 in choices:
        got = f"{shape} weights and {of} scales"
        raise SourceError(f"tensor {name!r}: its scales do not fit it", got=got, wanted="one for all, a row or a block")
    return tuple(choices)


def _block_of(size: int, count: int, inverse: bool) -> int:
    """How many elements share a scale along one axis; 0 if that is not clear."""
    if count in (1, size):
        return size // count
    even = size // count if size % count == 0 else 0
    usual = BLOCK if -(-size // BLOCK) == count else 0
    if usual and (inverse or not even or even == usual):
        return usual
    return even if not usual else 0


def _spread(values: Tensor, shape: tuple[int, ...], blocks: tuple[int, ...]) -> Tensor:
    """The scales repeated to the shape of the weight."""
    if values.numel() == 1:
        return values.reshape(())
    values = values.reshape(*values.shape, *[1] * (len(shape) - values.dim()))
    for axis, block in enumerate(blocks):
        values = values.repeat_interleave(block, axis).narrow(axis, 0, shape[axis])
    return values


# --- codes in int32 ---------------------------------------------------------------------------


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The codes in the last axis of int32 numbers, lowest bits first: (..., n) to (..., n * 32 / bits), int32."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((packed.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).flatten(-2)


def pack_quantized(name: str, specs: Mapping[str, TensorSpec], settings: Mapping[str, Any], read_now: Read) -> Packed:
    """compressed-tensors: codes + 2^(bits - 1), packed row by row."""
    packed, scale, shape_name = f"{name}_packed", f"{name}_scale", f"{name}_shape"
    _need(specs, packed, scale, shape_name)
    rows, columns = (int(n) for n in read_now(shape_name).reshape(-1)[:2])
    stored = specs[packed].shape
    choices = [b for b in (2, 4, 8) if stored == (rows, -(-columns * b // 32)) and b in _bits(settings)]
    if len(choices) != 1 or columns < 1:
        got = f"{stored} numbers for {rows} x {columns} weights"
        raise SourceError(f"tensor {packed!r}: its bits cannot be told", got=got, wanted="2, 4 or 8 bits a weight")
    (bits,) = choices
    half, order = 1 << (bits - 1), f"{name}_g_idx"
    zero, groups = f"{name}_zero_point", specs[scale].shape[-1] if len(specs[scale].shape) == 2 else 1
    if columns % groups and order not in specs:
        raise SourceError(f"tensor {scale!r} does not divide the rows", got=groups, wanted=f"a divisor of {columns}")

    def make(read: Read) -> Tensor:
        codes = unpack(read(packed), bits)[:, :columns] - half
        group = read(order).long() if order in specs else torch.arange(columns) // max(columns // groups, 1)
        shift = torch.zeros(rows, groups, dtype=torch.int32)
        if zero in specs:
            shift = _zero_points(read(zero), rows, groups, bits)
        scales = read(scale).float().reshape(-1, groups).expand(rows, groups)
        return (codes - shift[:, group]).float() * scales[:, group]

    parts = tuple(n for n in (packed, scale, shape_name, zero, order) if n in specs)
    return Packed(name, (rows, columns), "pack-quantized", parts, make, _half(specs[scale].dtype))


def _zero_points(stored: Tensor, rows: int, groups: int, bits: int) -> Tensor:
    """Zero points, (rows, groups): as they are in int8, or packed along the rows."""
    if stored.dtype == torch.int32 and stored.shape != (rows, groups):
        return unpack(stored.t(), bits)[:, :rows].t() - (1 << (bits - 1))
    return stored.to(torch.int32).reshape(-1, groups).expand(rows, groups)


def _bits(settings: Mapping[str, Any]) -> set[int]:
    """The numbers of bits that a configuration gives; all possible ones if it gives none."""
    named: set[int] = set()
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping) and isinstance(weights.get("num_bits"), int):
            named.add(weights["num_bits"])
    return named or {2, 4, 8}


def qweight(stem: str, specs: Mapping[str, TensorSpec], settings: Mapping[str, Any], read_now: Read) -> Packed:
    """GPTQ or AWQ, by the axis along which the codes are packed."""
    names = [stem + part for part in ("qweight", "scales", "qzeros")]
    _need(specs, *names)
    (rows, columns), (groups, outputs) = specs[names[0]].shape, specs[names[1]].shape
    per_zero = specs[names[2]].shape
    bits = 32 * per_zero[1] // outputs if per_zero[0] == groups and outputs else 0
    if bits == 4 and columns * 8 == outputs and rows % groups == 0:
        return _awq(stem, (rows, outputs), groups, names, specs)
    if bits in (2, 4, 8) and columns == outputs and 32 * per_zero[1] == bits * outputs:
        return _gptq(stem, rows * 32 // bits, bits, names, specs, _offset(stem, bits, settings, read_now))
    got = f"qweight {(rows, columns)}, scales {(groups, outputs)}, qzeros {per_zero}"
    raise SourceError(f"{stem}qweight is of no known layout", got=got, wanted="GPTQ in 2, 4 or 8 bits, or AWQ in 4")


def _awq(stem: str, size: tuple[int, int], groups: int, names: list[str], specs: Mapping[str, TensorSpec]) -> Packed:
    inputs, outputs = size

    def make(read: Read) -> Tensor:
        codes, zeros = (_awq_codes(read(name)) for name in (names[0], names[2]))
        group = torch.arange(inputs) // (inputs // groups)
        return ((codes - zeros[group]).float() * read(names[1]).float()[group]).t()

    return Packed(f"{stem}weight", (outputs, inputs), "awq", tuple(names), make, _half(specs[names[1]].dtype))


def _awq_codes(packed: Tensor) -> Tensor:
    """(n, outputs / 8) int32 to (n, outputs) codes."""
    return unpack(packed, 4).reshape(len(packed), -1, 8)[..., list(AWQ_PLACES)].flatten(1)


def _gptq(stem: str, inputs: int, bits: int, names: list[str], specs: Mapping[str, TensorSpec], offset: int) -> Packed:
    outputs, groups, order = specs[names[0]].shape[1], specs[names[1]].shape[0], f"{stem}g_idx"
    if order in specs and specs[order].shape != (inputs,):
        raise SourceError(f"tensor {order!r} does not fit its weight", got=specs[order].shape, wanted=(inputs,))
    if order not in specs and inputs % groups:
        raise SourceError(f"{stem}scales do not divide the inputs", got=groups, wanted=f"a divisor of {inputs}")

    def make(read: Read) -> Tensor:
        codes = unpack(read(names[0]).t(), bits)
        zeros = unpack(read(names[2]), bits) + offset
        group = read(order).long() if order in specs else torch.arange(inputs) // (inputs // groups)
        if int(group.min()) < 0 or int(group.max()) >= groups:
            raise SourceError(f"tensor {order!r} names groups that are not there", wanted=f"0 to {groups - 1}")
        return (codes - zeros[group].t()).float() * read(names[1]).float()[group].t()

    parts = (*names, *([order] if order in specs else []))
    return Packed(f"{stem}weight", (outputs, inputs), "gptq", parts, make, _half(specs[names[1]].dtype))


def _offset(stem: str, bits: int, settings: Mapping[str, Any], read: Read) -> int:
    """What must be added to the stored zero points: 1 in the first version of GPTQ's format, 0 in the second."""
    said = settings.get("checkpoint_format")
    if said in ("gptq", "gptq_v2"):
        return int(said == "gptq")
    if settings.get("quant_method") == "gptq" and said is None:
        return 1
    zeros = unpack(read(f"{stem}qzeros"), bits)
    middle = 1 << (bits - 1)
    if bool((zeros == middle - 1).all()):
        return 1
    if bool((zeros == middle).all()):
        return 0
    remedy = 'Pass the folder with its config.json, whose "quantization_config" says it.'
    raise SourceError(
        f"{stem}qzeros: nothing tells whether they are stored less one",
        got="zero points that are not symmetric",
        wanted="checkpoint_format gptq or gptq_v2",
        remedy=remedy,
    )


# --- MXFP4 ------------------------------------------------------------------------------------


def mxfp4(name: str, mark: str, specs: Mapping[str, TensorSpec]) -> Packed:
    """Blocks (..., rows, n, 16) and scales (..., rows, n), uint8; under `_` names (experts, inputs, outputs)."""
    blocks, scales = f"{name}{mark}blocks", f"{name}{mark}scales"
    _need(specs, blocks, scales)
    stored = specs[blocks].shape
    if len(stored) < 3 or specs[scales].shape != stored[:-1] or specs[scales].dtype != torch.uint8:
        raise SourceError(f"tensor {blocks!r} and its scales do not fit", got=(stored, specs[scales].shape))
    turned = mark == "_" and len(stored) == 4
    rows = (*stored[:-2], stored[-2] * stored[-1] * 2)
    shape = (*rows[:-2], rows[-1], rows[-2]) if turned else rows

    def make(read: Read) -> Tensor:
        codes, exponents = read(blocks), read(scales).int() - 127
        table = torch.tensor(E2M1)
        pairs = torch.stack([table[(codes & 15).long()], table[(codes >> 4).long()]], -1).flatten(-2)
        values = torch.ldexp(pairs, exponents.unsqueeze(-1)).flatten(-2)
        return values.transpose(-1, -2) if turned else values

    return Packed(name, shape, "mxfp4", (blocks, scales), make, torch.bfloat16)


def _need(specs: Mapping[str, TensorSpec], *names: str) -> None:
    lacking = [name for name in names if name not in specs]
    if lacking:
        raise SourceError(f"codes without {', '.join(lacking)}", wanted="every tensor that decodes them")
