"""Which layers of a model have inputs that can be observed, and how these become rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import nn

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

    Linear, Conv1d/2d/3d, ConvTranspose1d/2d/3d, Hugging Face's Conv1D, the input projection of MultiheadAttention.
    """
    found: dict[str, Layer] = {}
    for name, module in model.named_modules():
        for weight_name, weight in module.named_parameters(recurse=False):
            layout = _layout(module, weight_name)
            if layout is not None:
                blocks = widths(int(layout.matrix(weight).shape[-1]), widest)
                layer = Layer(name, module, layout, weight_name, tuple(blocks))
                found[f"{name}.{weight_name}" if name else weight_name] = layer
    return found


def _layout(module: nn.Module, weight_name: str) -> Layout | None:
    if isinstance(module, nn.MultiheadAttention):  # three blocks of rows, multiplied by queries, keys and values
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


def inputs_of(
    module: nn.Module, given: Sequence[torch.Tensor], layout: Layout, positions: int, phase: int
) -> torch.Tensor:
    """The inputs by which the layer's weight matrix is multiplied, (groups, about `positions` rows, d).

    Args:
        given: the tensors with which the module was called.
        positions: about how many rows to give; there may be fewer.
        phase: how many rows were taken before; a convolution uses other positions of its output grid each time.
    """
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
    return _some(given[0].reshape(1, -1, given[0].shape[-1]), positions)


def _some(x: torch.Tensor, rows: int) -> torch.Tensor:
    """Every t-th row of (groups, rows, d), with t such that about `rows` remain."""
    return x[:, :: max(1, x.shape[1] // max(1, rows))]


def _patches(module: nn.Module, x: torch.Tensor, layout: Layout, positions: int, phase: int) -> torch.Tensor:
    """The patches under a convolution's kernel at some positions of its output grid, the same for all samples."""
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
    """`count` numbers below `total` (all of them, if there are fewer), evenly spread, ascending; int64, (count,).

    They are `count` successive members of a golden-ratio sequence, beginning with the `phase`-th, so that another phase
    gives other numbers.
    """
    if count >= total:
        return torch.arange(total)
    step = next(s for s in range(round(0.618034 * total), total + 1) if math.gcd(s, total) == 1)
    return (torch.arange(phase, phase + count) * step % total).sort().values
