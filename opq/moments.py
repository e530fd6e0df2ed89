"""Second moments of what every layer is given: `S = E[x x']`, the quadratic that error feedback minimises.

Letters: `S` second moment, `x` one input of a layer's weight matrix (for a convolution: one patch), `d` its length.
The moments come from one pass of the dense network per group of layers; groups are formed so that the moments held
at one time fit in `memory` bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from itertools import product

import torch
from torch import nn

from opq.inputs import Batch
from opq.observe import batch_statistics, untouched, watching

WIDEST = 4096
"""Longest input handled as a whole; wider layers get one moment per block of this many coordinates."""
DAMPING = 0.05
"""Added to the diagonal of S before it is factored, as a fraction of its mean."""
POSITIONS = 8
"""Positions of a convolution to look at, per coordinate of its patch and in all (at least 16384)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """How a weight tensor is a stack of matrices: `groups` of (rows, d), one row per output."""

    groups: int = 1
    transposed: bool = False
    """The weight is stored (d, rows), as Hugging Face's Conv1D does."""

    def matrix(self, w: torch.Tensor) -> torch.Tensor:
        """The weight as (groups, rows, d)."""
        flat = w.t() if self.transposed else w.reshape(w.shape[0], -1)
        return flat.reshape(self.groups, flat.shape[0] // self.groups, flat.shape[1])

    def tensor(self, matrix: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The inverse of `matrix`."""
        flat = matrix.reshape(-1, matrix.shape[-1])
        return (flat.t() if self.transposed else flat).reshape(shape).contiguous()


@dataclasses.dataclass(frozen=True, eq=False)
class Moment:
    """Second moment of one layer's inputs in blocks along its coordinates: each (groups, width, width)."""

    layout: Layout
    blocks: tuple[torch.Tensor, ...]

    @functools.cached_property
    def factors(self) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """For each block the order of its coordinates, those of most power first, and `U` in that order."""
        orders = [b.diagonal(dim1=-2, dim2=-1).mean(0).argsort(descending=True, stable=True) for b in self.blocks]
        both = zip(orders, self.blocks, strict=True)
        return tuple((order, factor(block[:, order][:, :, order], DAMPING)) for order, block in both)

    @property
    def width(self) -> int:
        """Coordinates in all, d."""
        return sum(int(block.shape[-1]) for block in self.blocks)


def factor(s: torch.Tensor, damping: float) -> torch.Tensor:
    """`U` upper triangular with `(S + damping mean(diag S) I)^-1 = U' U`, for a stack of S (groups, d, d)."""
    mean = s.diagonal(dim1=-2, dim2=-1).mean(-1)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    eye = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
    damped = s / mean[:, None, None] + damping * eye
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper / mean.sqrt()[:, None, None]


@dataclasses.dataclass(frozen=True, slots=True)
class _Layer:
    module_name: str
    module: nn.Module
    layout: Layout
    width: int

    @property
    def bytes(self) -> int:
        """Of the moment and its factor, float32."""
        return sum(8 * self.layout.groups * w * w for w in _widths(self.width))


class Moments(Mapping[str, Moment]):
    """The moments of a model's layers by weight name, computed in groups when first asked for.

    While all of them fit in `memory` bytes each is computed once and kept; else only the last group is kept, so ask
    in the order of iteration. The model must not change in between.
    """

    def __init__(self, model: nn.Module, batch: Batch, *, micro_batch: int = 16, memory: int = 2**30):
        self._model, self._batch, self._micro_batch = model, batch, micro_batch
        self._layers = layers(model)
        self._group_of = _grouped(self._layers, memory)
        self._held: dict[str, Moment] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __contains__(self, name: object) -> bool:
        return name in self._layers

    def __getitem__(self, name: str) -> Moment:
        """The moment of one weight's inputs; raises `KeyError` for a weight of no supported layer, or never used."""
        group = self._group_of[name]
        if name not in self._held:
            wanted = {n: layer for n, layer in self._layers.items() if self._group_of[n] == group}
            self._held = _collect(self._model, wanted, self._batch, self._micro_batch)
        return self._held[name]


def layers(model: nn.Module) -> dict[str, _Layer]:
    """The layers that error feedback knows, by weight name: Linear, Conv1d/2d/3d, Hugging Face Conv1D."""
    found: dict[str, _Layer] = {}
    for name, module in model.named_modules():
        layout = _layout(module)
        if layout is None:
            continue
        weight: torch.Tensor = module.weight
        width = weight.shape[0] if layout.transposed else math.prod(weight.shape[1:])
        found[f"{name}.weight" if name else "weight"] = _Layer(name, module, layout, int(width))
    return found


def _layout(module: nn.Module) -> Layout | None:
    if not isinstance(getattr(module, "weight", None), nn.Parameter):
        return None
    if isinstance(module, nn.Linear):
        return Layout()
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return Layout(groups=module.groups)
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return Layout(transposed=True)
    return None


def _widths(width: int) -> list[int]:
    """A width in equal blocks of at most `WIDEST`."""
    count = math.ceil(width / WIDEST)
    return [width * (i + 1) // count - width * i // count for i in range(count)]


def _grouped(found: Mapping[str, _Layer], memory: int) -> dict[str, int]:
    groups, group, held = {}, 0, 0
    for name, layer in found.items():
        if held and held + layer.bytes > memory:
            group, held = group + 1, 0
        groups[name], held = group, held + layer.bytes
    return groups


@torch.no_grad()
def _collect(model: nn.Module, wanted: Mapping[str, _Layer], batch: Batch, micro_batch: int) -> dict[str, Moment]:
    sums: dict[str, list[torch.Tensor]] = {}
    counts = dict.fromkeys(wanted, 0)
    names = {layer.module_name: name for name, layer in wanted.items()}

    mask: torch.Tensor | None = None

    def see(module_name: str, module: nn.Module, x: torch.Tensor) -> None:
        name = names[module_name]
        layer = wanted[name]
        if mask is not None and x.shape[:2] == mask.shape and x.dim() == 3:
            x = x[mask]
        target = max(16384, POSITIONS * layer.width) * x.shape[0] / batch.samples
        patches = inputs_of(module, x.detach().float(), layer.layout, int(target), counts[name])
        pieces = torch.split(patches, _widths(layer.width), dim=-1)
        products = [p.transpose(-1, -2) @ p for p in pieces]
        counts[name] += int(patches.shape[-2])
        sums[name] = [s.add_(p) for s, p in zip(sums[name], products, strict=True)] if name in sums else products

    modules = {layer.module_name: layer.module for layer in wanted.values()}
    with untouched(model), batch_statistics(model), watching(modules, see):
        for part in batch.to(model).parts(micro_batch):
            mask = part.mask
            part(model)
    return {n: Moment(wanted[n].layout, tuple(b.div_(counts[n]) for b in blocks)) for n, blocks in sums.items()}


def inputs_of(module: nn.Module, x: torch.Tensor, layout: Layout, positions: int, phase: int) -> torch.Tensor:
    """What the layer's weight matrix is multiplied by, (groups, about `positions` rows, d).

    Of a convolution's output grid every t-th position per dimension is taken, shifted by `phase`.
    """
    if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        flat = x.reshape(-1, x.shape[-1])
        return flat[None, :: max(1, flat.shape[0] // max(1, positions))]
    dims = len(module.kernel_size)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = x.unsqueeze(0) if x.dim() == dims + 1 else x
    x = nn.functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    reach = [dil * (k - 1) for dil, k in zip(module.dilation, module.kernel_size, strict=True)]
    grid = [(n - r - 1) // s + 1 for n, r, s in zip(x.shape[2:], reach, module.stride, strict=True)]
    every = max(1, round((x.shape[0] * math.prod(grid) / max(1, positions)) ** (1 / dims)))
    every = min(every, *grid)
    taps = []
    for tap in product(*(range(k) for k in module.kernel_size)):
        axes = zip(tap, module.dilation, module.stride, grid, strict=True)
        seen = x
        for axis, (t, dil, s, n) in enumerate(axes, start=2):
            rows = torch.arange(t * dil + s * (phase % every), t * dil + s * (n - 1) + 1, s * every, device=x.device)
            seen = seen.index_select(axis, rows)
        taps.append(seen)
    patches = torch.stack(taps, dim=2).flatten(3)  # (samples, channels, taps, positions)
    samples, channels, kernel, count = patches.shape
    patches = patches.reshape(samples, layout.groups, channels // layout.groups, kernel, count).permute(1, 0, 4, 2, 3)
    return patches.reshape(layout.groups, samples * count, -1)
