"""Which layers of a model have inputs that can be observed, and how these become rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import product

import torch
from torch import nn

from opq.probing import inside
from opq.quantizing.moment import WIDEST, Layout, widths

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclasses.dataclass(frozen=True, slots=True)
class Layer:
    """A weight of a module, and how the module's inputs become the rows that it is multiplied by."""

    module_name: str
    module: nn.Module
    layout: Layout
    weight_name: str
    widths: tuple[int, ...]
    """Coordinates of the layer's inputs, by blocks that have a moment each; d in sum."""

    @property
    def width(self) -> int:
        """The number of coordinates, d."""
        return sum(self.widths)

    @property
    def weight(self) -> torch.Tensor:
        """The weight as a stack of matrices (groups, rows, d)."""
        return self.layout.matrix(getattr(self.module, self.weight_name))

    @property
    def bytes(self) -> int:
        """Bytes of the moment and its factor in float32."""
        return sum(8 * self.layout.groups * w * w for w in self.widths)


def layers(model: nn.Module, *, widest: int = WIDEST) -> dict[str, Layer]:
    """The layers that error feedback supports, by weight name; a moment has at most `widest` coordinates.

    Linear, Conv1d/2d/3d, ConvTranspose1d/2d/3d, Hugging Face's Conv1D, the projections of MultiheadAttention; of
    LSTM, GRU, RNN and their cells the matrices of inputs and of hidden states; the stacked experts of transformers. A
    weight with several names has the first of them, as in files: a head that is tied to the table of embeddings has
    the table's.
    """
    found: dict[str, Layer] = {}
    names: dict[int, str] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), name)
    for name, module in model.named_modules():
        for weight_name, weight in module.named_parameters(recurse=False):
            layout = _layout(module, weight_name)
            if layout is not None:
                blocks = widths(int(layout.matrix(weight).shape[-1]), widest)
                layer = Layer(name, module, layout, weight_name, tuple(blocks))
                found.setdefault(names[id(weight)], layer)
    return found


def _layout(module: nn.Module, weight_name: str) -> Layout | None:
    if isinstance(module, nn.MultiheadAttention):  # three blocks of rows, multiplied by queries, keys and values
        return Layout(groups=3) if weight_name == "in_proj_weight" else None
    if (found := inside.layouts(module)) and weight_name in found:
        return found[weight_name]
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


def inputs_of(
    layer: Layer, given: Sequence[torch.Tensor], positions: int, phase: int, within: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """The inputs by which the layer's weight matrix is multiplied, (groups, about `positions` rows, d).

    Args:
        given: the tensors with which the module was called.
        positions: about how many rows to give; there may be fewer.
        phase: how many rows were taken before; a convolution uses other positions of its output grid each time.
        within: what weights that no hook sees are multiplied by, by their names.
    """
    module, layout = layer.module, layer.layout
    if isinstance(module, CONVOLUTIONS):
        return _patches(module, given[0], layout, positions, phase)
    if isinstance(module, TRANSPOSED):  # the weight maps one position's channels to all taps: overlaps do not matter
        x = given[0].flatten(-len(module.kernel_size))
        x = x.reshape(-1, layout.groups, x.shape[-2] // layout.groups, x.shape[-1])
        return _some(x.permute(1, 0, 3, 2).flatten(1, 2), positions)
    if isinstance(module, nn.MultiheadAttention):
        flat = [_some(x.reshape(1, -1, x.shape[-1]), positions) for x in given[:3]]
        fewest = min(x.shape[1] for x in flat)
        return torch.cat([x[:, :fewest] for x in flat])
    x = within.get(layer.weight_name, given[0])
    return _some(x if layout.stacked else x.reshape(1, -1, x.shape[-1]), positions)


def _some(x: torch.Tensor, rows: int) -> torch.Tensor:
    """Every t-th row of (groups, rows, d), with t such that about `rows` remain."""
    return x[:, :: max(1, x.shape[1] // max(1, rows))]


def _patches(module: nn.Module, x: torch.Tensor, layout: Layout, positions: int, phase: int) -> torch.Tensor:
    """The patches under a convolution's kernel at some positions of its output grid, the same for all samples."""
    assert isinstance(module, CONVOLUTIONS)
    dims, padding = len(module.kernel_size), module._reversed_padding_repeated_twice
    x = x.unsqueeze(0) if x.dim() == dims + 1 else x
    if module.padding_mode != "zeros":
        x, padding = nn.functional.pad(x, padding, mode=module.padding_mode), [0] * len(padding)
    samples, front, back = x.shape[0], padding[::2][::-1], padding[1::2][::-1]
    reach = [dil * (k - 1) for dil, k in zip(module.dilation, module.kernel_size, strict=True)]
    whole = [f + n + b for f, n, b in zip(front, x.shape[2:], back, strict=True)]
    grid = [(n - r - 1) // s + 1 for n, r, s in zip(whole, reach, module.stride, strict=True)]
    chosen = spread(math.prod(grid), math.ceil(positions / samples), phase // samples)
    index, outside = _taps(module, x.shape[2:], chosen, grid, front)
    index, outside = index.to(x.device), outside[:, :, None].to(x.device)
    rows, channels = samples * len(chosen), x.shape[1]
    if layout.groups == channels:  # one transposition of a matrix, which is much faster than a general one
        return _pixels(x, index, outside).reshape(-1, channels).t().contiguous().view(channels, rows, -1)
    if index.shape[1] == 1:
        seen = _pixels(x, index, outside).reshape(rows, 1, layout.groups, channels // layout.groups)
        return seen.permute(2, 0, 3, 1).reshape(layout.groups, rows, -1)
    patches = x.new_empty(layout.groups, samples, len(chosen), channels // layout.groups, index.shape[1])
    for image, into in zip(torch.split(x, 1), patches.unbind(1), strict=True):  # at once it would take twice the memory
        seen = _pixels(image, index, outside).reshape(len(chosen), -1, layout.groups, channels // layout.groups)
        into.copy_(seen.permute(2, 0, 3, 1))
    return patches.view(layout.groups, rows, -1)


def _taps(
    module: nn.Module, sizes: Sequence[int], chosen: torch.Tensor, grid: Sequence[int], front: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which pixels of an image the kernel covers at some of its positions.

    Args:
        chosen: numbers of positions on the `grid` of all, (positions,).
        front: pixels of padding before the image, for each dimension.

    Returns:
        Numbers of pixels (positions, taps) int64, and whether the kernel is on padding there, in place of which the
        nearest pixel is named.
    """
    assert isinstance(module, CONVOLUTIONS)
    ranges = (range(k) for k in module.kernel_size)
    taps, index = torch.tensor(list(product(*ranges))), torch.zeros((), dtype=torch.int64)
    outside = torch.zeros((), dtype=torch.bool)
    for i, size in enumerate(sizes):
        corner = chosen // math.prod(grid[i + 1 :]) % grid[i] * module.stride[i] - front[i]
        pixel = corner[:, None] + taps[:, i] * module.dilation[i]
        outside = outside | (pixel < 0) | (pixel >= size)
        index = index * size + pixel.clamp(0, size - 1)
    return index, outside


def _pixels(x: torch.Tensor, index: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
    """Some pixels of images (samples, channels, ...): (samples, *index.shape, channels), 0 where they are outside."""
    flat = x.flatten(2)
    if flat.stride(1) == 1:  # channels last in memory: each pixel is one piece
        found = flat.transpose(1, 2).index_select(1, index.flatten())
    else:
        found = flat.index_select(2, index.flatten()).transpose(1, 2)
    found = found.reshape(len(x), *index.shape, x.shape[1])
    return found.masked_fill_(outside, 0.0) if bool(outside.any()) else found


def spread(total: int, count: int, phase: int) -> torch.Tensor:
    """`count` numbers below `total` (all of them, if there are fewer), evenly spread, ascending; int64, (count,).

    They are `count` successive members of a golden-ratio sequence, beginning with the `phase`-th, so that another phase
    gives other numbers.
    """
    if count >= total:
        return torch.arange(total)
    step = next(s for s in range(round(0.618034 * total), total + 1) if math.gcd(s, total) == 1)
    return (torch.arange(phase, phase + count) * step % total).sort().values
