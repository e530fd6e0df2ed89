"""Guesses what a model takes from its layers, above all from the one that it begins with."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

from opq.probing.forms import Call, Form
from opq.probing.layers import CONVOLUTIONS, TRANSPOSED
from opq.probing.recurrent import CELLS, RECURRENT

IMAGE_SIDES = (224, 32, 28, 64, 96, 299, 16, 8)
"""Sides of images in pixels to try, after the one that the network's strides suggest."""
LATENT_SIDES = (8, 4, 16, 1, 7, 32)
"""The same for inputs of transposed convolutions."""
TOKENS = 24
"""Length of a synthetic text in tokens, where the model allows as many, and of other sequences without time."""
TIMES = 160
"""Length of a recurrent network's sequences: 1.6 seconds of a spectrogram."""
SATURATED = 4.0
"""From this sum on a gate is open or closed, and tanh is 1 to three digits. A choice; the units of the networks tried
have sums of 0.5 to 2, those of a speaker encoder on spectrograms of power 8."""
BANDS = (16, 256)
"""Widths that spectrograms have."""
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_KNOWN = (
    *(*CONVOLUTIONS, *TRANSPOSED, *RECURRENT, *CELLS, *EMBEDDINGS),
    *(nn.MultiheadAttention, nn.Linear, nn.Bilinear),
)


def entries(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers whose kind says what they take, with their names, in the order in which the model lists them."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, _KNOWN)]


def first_weighted(model: nn.Module) -> nn.Module | None:
    """The layer that a model most likely begins with."""
    return next((module for _, module in entries(model)), None)


def calls(model: nn.Module) -> Iterator[Call]:
    """Calls with one argument, the likeliest first."""
    first = first_weighted(model)
    if isinstance(first, RECURRENT) and not first.batch_first:  # time comes before the samples
        yield from (Call((form,), dim=1) for form in forms_of(first, model) if form.kind == "series")
    if first is not None:
        yield from (Call((form,)) for form in forms_of(first, model))
    yield from (Call((form,)) for form in _bare(model))


def forms_of(module: nn.Module, model: nn.Module) -> Iterator[Form]:
    """Forms that one layer of the model can take, the likeliest first."""
    if isinstance(module, EMBEDDINGS):
        yield from (Form("tokens", shape, module.num_embeddings) for shape in ((TOKENS,), ()))
    elif isinstance(module, nn.MultiheadAttention):
        yield Form("signal", (TOKENS, module.embed_dim))
    elif isinstance(module, nn.Linear):
        yield from _flat(module.in_features)
    elif isinstance(module, nn.Bilinear):
        yield from (Form("signal", (module.in1_features,)), Form("signal", (module.in2_features,)))
    elif isinstance(module, RECURRENT):
        yield from _sequences(module)
    elif isinstance(module, CELLS):
        yield Form("signal", (module.input_size,))
    elif isinstance(module, CONVOLUTIONS):
        dims = len(module.kernel_size)
        yield from (Form("signal", (module.in_channels, *[side] * dims)) for side in _sides(model, dims))
    elif isinstance(module, TRANSPOSED):
        dims = len(module.kernel_size)
        yield from (Form("signal", (module.in_channels, *[side] * dims)) for side in LATENT_SIDES)


def _sequences(module: nn.RNNBase) -> Iterator[Form]:
    """Forms for a recurrent module.

    Inputs of deviation 1 make sums of deviation `|w|` in a unit with input weights `w`. Where these would saturate the
    units, inputs must be much smaller, as the power in bands of a recording is.
    """
    width = module.input_size
    weights = module.get_parameter("weight_ih_l0").detach().float()
    if float(weights.square().sum(1).mean().sqrt()) > SATURATED and BANDS[0] <= width <= BANDS[1]:
        yield Form("power", (TIMES, width))
    yield from (Form("series", (TIMES, width)), Form("signal", (TOKENS, width)))


def _flat(features: int) -> Iterator[Form]:
    """Forms for a linear layer: vectors, sequences of vectors, and images that the model flattens before it."""
    yield from (Form("signal", (features,)), Form("signal", (TOKENS, features)))
    for channels in (1, 3):
        side = math.isqrt(features // channels)
        if side * side * channels == features:
            yield Form("signal", (channels, side, side))


def _bare(model: nn.Module) -> Iterator[Form]:
    """Forms that fit one of the two sides of a matrix that belongs to no known layer."""
    known = {id(p) for _, module in entries(model) for p in module.parameters(recurse=False)}
    sizes = [n for p in model.parameters() if p.dim() == 2 and id(p) not in known for n in p.shape]
    for size in dict.fromkeys(sizes[:8]):
        yield from (Form("signal", (size,)), Form("signal", (TOKENS, size)))


def _sides(model: nn.Module, dims: int) -> Iterator[int]:
    """Sides of images: first one that leaves seven or eight pixels after all strides, then the usual ones."""
    strides = 1
    for module in model.modules():
        stride = getattr(module, "stride", None)
        if isinstance(stride, tuple) and getattr(module, "kernel_size", None) != (1,) * dims:
            strides *= max(stride)
    guesses = [7 * strides if 32 <= strides <= 64 else 8 * strides]
    guesses += [16000, 1024, 128] if dims == 1 else [*IMAGE_SIDES] if dims == 2 else [32, 16, 8]
    limit = {1: 2**17, 2: 512, 3: 64}[dims]
    yield from dict.fromkeys(side for side in guesses if 4 <= side <= limit)
