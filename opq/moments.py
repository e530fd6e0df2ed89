"""Second moments of what every layer is given: `S = E[x x']`, the quadratic that error feedback minimises.

Letters: `S` second moment, `x` one input of a layer's weight matrix (for a convolution: one patch), `d` its length.
The moments come from one pass of the dense network per group of layers; groups are formed so that the moments held
at one time fit in `memory` bytes. What re-normalisation wants of the dense network is taken on the first pass.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations_with_replacement, product

import torch
from torch import nn

from opq.inputs import Batch
from opq.memory import give_back
from opq.observe import batch_statistics, untouched, watching
from opq.outputs import counted, floating
from opq.renorm import Statistics, Tally
from opq.stages import stage
from opq.threads import Pool, torch_threads

WIDEST = 4096
"""Longest input handled as a whole; wider layers get one moment per block of this many coordinates."""
DAMPING = 0.05
"""Added to the diagonal of S before it is factored, as a fraction of its mean."""
DAMPING_REAL = 0.15
"""The same for real inputs: there are few, and they agree in directions in which others will not."""
PRIOR = 0.5
"""Trace of `W'W` in the moment of a head, as a fraction of that of S: it meets one input a sample, behind pooling."""
ROWS, FEWEST = 4, 16384
"""Inputs to look at, per coordinate and at least: of a convolution that many of its positions."""
TILE = 512
"""Side of the squares that a moment is summed in: fixed, so that the sums do not depend on the number of threads."""


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """How a weight tensor is a stack of matrices: `groups` of (rows, d), one row per output."""

    groups: int = 1
    transposed: bool = False
    """Each matrix of the stack is stored (d, rows), as transposed convolutions and Hugging Face's Conv1D do."""

    def matrix(self, w: torch.Tensor) -> torch.Tensor:
        """The weight as (groups, rows, d)."""
        stack = w.reshape(self.groups, w.shape[0] // self.groups, -1)
        return stack.transpose(1, 2) if self.transposed else stack

    def tensor(self, matrix: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The inverse of `matrix`."""
        return (matrix.transpose(1, 2) if self.transposed else matrix).reshape(shape).contiguous()


@dataclasses.dataclass(frozen=True, eq=False)
class Moment:
    """Second moment of one layer's inputs in blocks along its coordinates: each (groups, width, width)."""

    layout: Layout
    blocks: tuple[torch.Tensor, ...]
    damping: float = DAMPING
    """Added to the diagonal, as a fraction of its mean."""

    @functools.cached_property
    def factors(self) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """For each block the order of its coordinates, those of most power first, and `N` in that order."""
        orders = [b.diagonal(dim1=-2, dim2=-1).mean(0).argsort(descending=True, stable=True) for b in self.blocks]
        both = zip(orders, self.blocks, strict=True)
        return tuple((order, factor(block[:, order][:, :, order], self.damping)) for order, block in both)

    @property
    def width(self) -> int:
        """Coordinates in all, d."""
        return sum(int(block.shape[-1]) for block in self.blocks)


def factor(s: torch.Tensor, damping: float) -> torch.Tensor:
    """`N` unit upper triangular: `S + damping mean(diag S) I = N D N'`, D diagonal, for a stack of S (groups, d, d).

    It is the Cholesky factor of S with its coordinates in reverse, in reverse.
    """
    mean = s.diagonal(dim1=-2, dim2=-1).mean(-1)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    reverse = s.flip(1, 2).div_(mean[:, None, None])
    reverse.diagonal(dim1=-2, dim2=-1).add_(damping)
    lower: torch.Tensor = torch.linalg.cholesky(reverse)
    return lower.div_(lower.diagonal(dim1=-2, dim2=-1).clone()[:, None]).flip(1, 2)


@dataclasses.dataclass(frozen=True, slots=True)
class _Layer:
    module_name: str
    module: nn.Module
    layout: Layout
    weight_name: str
    width: int

    @property
    def weight(self) -> torch.Tensor:
        """As a stack of matrices (groups, rows, d)."""
        return self.layout.matrix(getattr(self.module, self.weight_name))

    @property
    def bytes(self) -> int:
        """Of the moment and its factor, float32."""
        return sum(8 * self.layout.groups * w * w for w in _widths(self.width))


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Dense:
    """What else a pass of the dense network shows."""

    statistics: Statistics
    """Mean and variance at every BatchNorm's input."""
    outputs: list[torch.Tensor]
    """The floating-point outputs of the first micro-batch, 0 on tokens that do not count."""


class Moments(Mapping[str, Moment]):
    """The moments of a model's layers by weight name, computed in groups when first asked for.

    While all of them fit in `memory` bytes each is computed once and kept; else only the last group is kept, so ask
    in the order of iteration. The model must not change in between.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        micro_batch: int = 16,
        memory: int = 2**30,
        damping: float = DAMPING,
    ):
        self._model, self._batch, self._micro_batch, self._damping = model, batch, micro_batch, damping
        self._layers = layers(model)
        self._group_of = _grouped(self._layers, memory)
        self._held: dict[str, Moment] = {}
        self._group: int | None = None
        self._dense: Dense | None = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __contains__(self, name: object) -> bool:
        return name in self._layers

    def __getitem__(self, name: str) -> Moment:
        """The moment of one weight's inputs; raises `KeyError` for a weight of no supported layer, or never used."""
        self._collect(self._group_of[name])
        return self._held[name]

    def layout(self, name: str) -> Layout | None:
        """How a weight is a stack of matrices; None for a weight of no supported layer."""
        return self._layers[name].layout if name in self._layers else None

    @property
    def dense(self) -> Dense:
        """Statistics and outputs of the dense network, from the pass that gave the first moments."""
        if self._dense is None:
            self._collect(0)
        assert self._dense is not None
        return self._dense

    @torch.no_grad()
    def _collect(self, group: int) -> None:
        """One pass of the model: the moments of a group of layers, and `dense` where it is not known."""
        if group == self._group:
            return
        self._held, self._group = {}, None
        with stage("moments"), torch_threads() as threads:
            sums = _Sums({n: layer for n, layer in self._layers.items() if self._group_of[n] == group}, threads)
            tally = Tally()
            outputs: list[torch.Tensor] = []
            with contextlib.ExitStack() as stack:
                stack.enter_context(untouched(self._model))
                norms = stack.enter_context(batch_statistics(self._model))
                stack.enter_context(watching(sums.modules, sums.see))
                if self._dense is None:
                    stack.enter_context(watching(dict(norms), tally.see))
                for part in self._batch.to(self._model).parts(self._micro_batch):
                    sums.expect(part, self._batch.samples)
                    output = part(self._model)
                    outputs = outputs or [counted(o.clone(), part.mask) for o in floating(output)]
                self._held, self._group = sums.moments(self._damping), group
        self._dense = self._dense or Dense(tally.statistics, outputs)
        give_back()


class _Sums:
    """Sums of `x x'` of some layers, by weight name, over one pass."""

    def __init__(self, wanted: Mapping[str, _Layer], threads: Pool):
        self._wanted, self._threads = wanted, threads
        self.modules = {layer.module_name: layer.module for layer in wanted.values()}
        self._names = {layer.module_name: name for name, layer in wanted.items()}
        self._sums: dict[str, list[torch.Tensor]] = {}
        self._counts = dict.fromkeys(wanted, 0)
        self._mask: torch.Tensor | None = None
        self._share, self._samples = 1.0, 0

    def expect(self, part: Batch, samples: int) -> None:
        """The micro-batch that comes next, of so many samples in all."""
        self._mask, self._share, self._samples = part.mask, part.samples / samples, samples

    def see(self, module_name: str, module: nn.Module, given: Sequence[torch.Tensor]) -> None:
        """Adds the inputs of one call of one module."""
        name = self._names[module_name]
        layer = self._wanted[name]
        positions = math.ceil(max(FEWEST, ROWS * layer.width) * self._share)
        x = inputs_of(module, [self._real(x) for x in given], layer.layout, positions, self._counts[name])
        if name not in self._sums:
            self._sums[name] = [x.new_zeros(x.shape[0], w, w) for w in _widths(layer.width)]
        for piece, total in zip(torch.split(x, _widths(layer.width), dim=-1), self._sums[name], strict=True):
            _add_products(piece, total, self._threads)
        self._counts[name] += int(x.shape[1])

    def moments(self, damping: float) -> dict[str, Moment]:
        """The means, of the layers that were run."""
        for name, blocks in self._sums.items():
            for total in blocks:
                total.div_(self._counts[name])
                for i, j in _tiles(total.shape[-1]):
                    if i != j:
                        total[:, j, i] = total[:, i, j].transpose(1, 2)
        return {name: self._moment(name, blocks, damping) for name, blocks in self._sums.items()}

    def _moment(self, name: str, blocks: Sequence[torch.Tensor], damping: float) -> Moment:
        """One layer's; that of a head, from too few inputs, completed by what its weights say of those it learnt from.

        What a layer learnt from varies in the directions that its weights tell apart, and `W'W` is their moment.
        """
        layer, inputs = self._wanted[name], self._counts[name]
        if inputs > self._samples or inputs >= layer.width:
            return Moment(layer.layout, tuple(blocks), damping)
        pieces = torch.split(layer.weight.detach().float(), _widths(layer.width), dim=-1)
        for piece, total in zip(pieces, blocks, strict=True):
            own = piece.transpose(1, 2) @ piece
            trace, of_own = (m.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None] for m in (total, own))
            total += PRIOR * trace / of_own.clamp(min=torch.finfo(own.dtype).tiny) * own
        return Moment(layer.layout, tuple(blocks), max(damping, DAMPING_REAL))

    def _real(self, x: torch.Tensor) -> torch.Tensor:
        """Float32, and of texts (samples, length, d) only the tokens that count."""
        x = x.detach().float()
        masked = self._mask is not None and x.dim() == 3 and x.shape[:2] == self._mask.shape
        return x[self._mask] if masked else x


def layers(model: nn.Module) -> dict[str, _Layer]:
    """The layers that error feedback knows, by weight name.

    Linear, Conv1d/2d/3d, ConvTranspose1d/2d/3d, Hugging Face's Conv1D, the input projection of MultiheadAttention.
    """
    found: dict[str, _Layer] = {}
    for name, module in model.named_modules():
        for weight_name, weight in module.named_parameters(recurse=False):
            layout = _layout(module, weight_name)
            if layout is not None:
                width = int(layout.matrix(weight).shape[-1])
                layer = _Layer(name, module, layout, weight_name, width)
                found[f"{name}.{weight_name}" if name else weight_name] = layer
    return found


def _layout(module: nn.Module, weight_name: str) -> Layout | None:
    if isinstance(module, nn.MultiheadAttention):  # its three blocks of rows see queries, keys and values
        return Layout(groups=3) if weight_name == "in_proj_weight" else None
    if weight_name != "weight":
        return None
    if isinstance(module, nn.Linear):
        return Layout()
    if isinstance(module, CONVOLUTIONS):
        return Layout(groups=module.groups)
    if isinstance(module, TRANSPOSED):
        return Layout(groups=module.groups, transposed=True)
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return Layout(transposed=True)
    return None


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


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


def _tiles(width: int) -> list[tuple[slice, slice]]:
    """Squares that cover a (width, width) matrix on and above its diagonal."""
    sides = [slice(start, min(start + TILE, width)) for start in range(0, width, TILE)]
    return list(combinations_with_replacement(sides, 2))


def _add_products(x: torch.Tensor, total: torch.Tensor, threads: Pool) -> None:
    """Adds `x'x` of (groups, rows, d) to `total` (groups, d, d), on and above the diagonal of tiles."""

    def add(tile: tuple[slice, slice]) -> None:
        i, j = tile
        total[:, i, j].baddbmm_(x[:, :, i].transpose(1, 2), x[:, :, j])

    for _ in threads.ordered(torch.no_grad()(add), _tiles(total.shape[-1])):
        pass


def inputs_of(
    module: nn.Module, given: Sequence[torch.Tensor], layout: Layout, positions: int, phase: int
) -> torch.Tensor:
    """What the layer's weight matrix is multiplied by, (groups, about `positions` rows, d).

    Args:
        given: the tensors that the module was called with.
        phase: rows seen before: of a convolution's output grid other positions come next.
    """
    if isinstance(module, CONVOLUTIONS):
        return _patches(module, given[0], layout, positions, phase)
    if isinstance(module, TRANSPOSED):  # a row for each channel and tap of the kernel, whatever they overlap with
        x = given[0].flatten(-len(module.kernel_size))
        x = x.reshape(-1, layout.groups, x.shape[-2] // layout.groups, x.shape[-1])
        return _some(x.permute(1, 0, 3, 2).flatten(1, 2), positions)
    if isinstance(module, nn.MultiheadAttention):
        flat = [_some(x.reshape(1, -1, x.shape[-1]), positions) for x in given[:3]]
        fewest = min(x.shape[1] for x in flat)
        return torch.cat([x[:, :fewest] for x in flat])
    return _some(given[0].reshape(1, -1, given[0].shape[-1]), positions)


def _some(x: torch.Tensor, rows: int) -> torch.Tensor:
    """Every t-th row of (groups, rows, d), so that about `rows` are left."""
    return x[:, :: max(1, x.shape[1] // max(1, rows))]


def _patches(module: nn.Module, x: torch.Tensor, layout: Layout, positions: int, phase: int) -> torch.Tensor:
    """The patches of a convolution at some positions of its output grid, the same in all samples."""
    assert isinstance(module, CONVOLUTIONS)
    dims = len(module.kernel_size)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = x.unsqueeze(0) if x.dim() == dims + 1 else x
    x = nn.functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    sizes, samples = x.shape[2:], x.shape[0]
    reach = [dil * (k - 1) for dil, k in zip(module.dilation, module.kernel_size, strict=True)]
    grid = [(n - r - 1) // s + 1 for n, r, s in zip(sizes, reach, module.stride, strict=True)]
    chosen = spread(math.prod(grid), math.ceil(positions / samples), phase // samples)
    strides = [math.prod(sizes[i + 1 :]) for i in range(dims)]
    corner = torch.zeros_like(chosen)
    for n, step, stride in reversed(list(zip(grid, module.stride, strides, strict=True))):
        corner += chosen % n * step * stride
        chosen = chosen // n
    flat, taps = x.flatten(2), product(*(range(k) for k in module.kernel_size))
    offsets = [sum(t * dil * s for t, dil, s in zip(tap, module.dilation, strides, strict=True)) for tap in taps]
    seen = torch.stack([flat.index_select(2, (corner + o).to(x.device)) for o in offsets], dim=2)
    seen = seen.reshape(samples, layout.groups, -1, len(offsets), len(corner))
    return seen.permute(1, 0, 4, 2, 3).reshape(layout.groups, samples * len(corner), -1)


def spread(total: int, count: int, phase: int) -> torch.Tensor:
    """`count` of the numbers below `total` (all, if there are not as many), evenly spread, ascending; int64.

    A golden-ratio sequence from its `phase`-th member on: the next phase goes on with other numbers.
    """
    if count >= total:
        return torch.arange(total)
    step = next(s for s in range(round(0.618034 * total), total + 1) if math.gcd(s, total) == 1)
    return (torch.arange(phase, phase + count) * step % total).sort().values
