"""Inputs for a model nobody gave data for: noise images, token ids, and whatever shape its forward takes.

A `Batch` is one call of the model's forward. Candidates are made from what the model says of itself and the first
one that its forward accepts is taken.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from opq.errors import OptionError, ProbeError
from opq.models.batch import Batch, as_batch, binds
from opq.models.observe import batch_statistics, untouched
from opq.probing.making import TEXTS, Maker
from opq.sources.base import InputHint
from opq.sources.hints import hint_of_module

IMAGE_SIDES = (224, 32, 28, 64, 96, 299, 16, 8)
"""Sides in pixels to try, after the one that the network's strides suggest."""
TOKENS = 24
"""Tokens of one synthetic text where the model allows as many."""
VOCABULARY = 1000
"""Token ids to draw from where the model does not say how many it has."""


def synthetic(
    model: nn.Module,
    *,
    input_size: Sequence[int] | None = None,
    example_inputs: Any = None,
    hint: InputHint | None = None,
    samples: int = 64,
    seed: int = 0,
) -> Batch:
    """A batch of synthetic inputs that the model's forward accepts, the same for the same seed.

    Args:
        input_size: shape of one sample without the batch dimension, e.g. (3, 224, 224).
        example_inputs: anything the forward takes (tensor, tuple, dict); its shapes and kinds are imitated.
        hint: what the source knows of the inputs (`Source.input_hint`); by default the model is asked.

    Raises:
        ProbeError: no candidate runs through the forward.
    """
    if samples < 2:
        raise OptionError("samples=", got=samples, wanted="at least 2")
    make = Maker(torch.Generator().manual_seed(seed), samples)
    if example_inputs is not None:
        given = as_batch(model, example_inputs)
        alone = sum(1 for _ in given.tensors) == 1
        candidates = iter([given.map(lambda t: make.like(t, alone=alone))])
    elif input_size is not None:
        candidates = iter([Batch((make.signal(tuple(input_size)),))])
    else:
        candidates = _candidates(model, hint, make)
    return _first_that_runs(model, candidates)


def texts(hint: InputHint, *, samples: int = 64, seed: int = 0) -> torch.Tensor:
    """The token ids that `synthetic` makes of this hint for a language model, (TEXTS samples, length) int64."""
    return Maker(torch.Generator().manual_seed(seed), samples).tokens(*_text_sizes(hint))


def _candidates(model: nn.Module, hint: InputHint | None, make: Maker) -> Iterator[Batch]:
    """From the surest to the boldest guess."""
    hint = hint or _hint_of(model)
    if hint is not None and hint.vocabulary:
        yield from _texts(model, make, hint)
    if hint is not None and hint.image_size is not None:
        image = make.signal(hint.image_size)
        yield from (Batch((image,)), Batch((), {"pixel_values": image}))
    yield from (Batch((make.signal(shape),)) for shape in _shapes(model))


def _texts(model: nn.Module, make: Maker, hint: InputHint) -> Iterator[Batch]:
    vocabulary, length = _text_sizes(hint)
    ids = make.tokens(vocabulary, length)
    named = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        yield Batch((), {**named, "decoder_input_ids": make.tokens(vocabulary, length)})
    vision = getattr(config, "vision_config", None)
    if vision is not None and isinstance(getattr(vision, "image_size", None), int):  # text beside images (CLIP)
        make = dataclasses.replace(make, samples=TEXTS * make.samples)
        image = make.signal((getattr(vision, "num_channels", 3), vision.image_size, vision.image_size))
        yield Batch((), {**named, "pixel_values": image})
    if binds(inspect.signature(model.forward), (), named):
        yield from (Batch((), named), Batch((), {"input_ids": ids}))
    yield from (Batch((ids,)), Batch((named,)))


def _text_sizes(hint: InputHint) -> tuple[int, int]:
    """Vocabulary and tokens of a synthetic text."""
    most = hint.tokens or TOKENS + 2
    return int(hint.vocabulary or VOCABULARY), min(TOKENS, most - 2 if most > 8 else most)


def _hint_of(model: nn.Module) -> InputHint | None:
    """What the model, or the first of its submodules that says anything, says of its input."""
    hint = next((h for m in model.modules() if (h := hint_of_module(m)) is not None), None)
    first = _first_weighted(model)
    if hint is None and isinstance(first, (nn.Embedding, nn.EmbeddingBag)):
        return InputHint(modality="text", vocabulary=first.num_embeddings)
    return hint


def _shapes(model: nn.Module) -> Iterator[tuple[int, ...]]:
    """Shapes of one sample that the first layer with weights can take."""
    first = _first_weighted(model)
    if isinstance(first, nn.MultiheadAttention):
        yield (TOKENS, first.embed_dim)
    elif isinstance(first, nn.Linear):
        yield from ((first.in_features,), (TOKENS, first.in_features))
        side = math.isqrt(first.in_features)
        yield from ((1, side, side),) if side * side == first.in_features else ()
        side = math.isqrt(first.in_features // 3)
        yield from ((3, side, side),) if 3 * side * side == first.in_features else ()
    elif isinstance(first, (nn.LSTM, nn.GRU, nn.RNN)):
        yield (TOKENS, first.input_size)
    elif isinstance(first, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        dims = len(first.kernel_size)
        for side in _sides(model, dims):
            yield (first.in_channels, *[side] * dims)


def _sides(model: nn.Module, dims: int) -> Iterator[int]:
    """About seven pixels after all the strides, as image classifiers have, then the usual sizes."""
    strides = 1
    for module in model.modules():
        stride = getattr(module, "stride", None)
        if isinstance(stride, tuple) and getattr(module, "kernel_size", None) != (1,) * dims:
            strides *= max(stride)
    guesses = [7 * strides if 32 <= strides <= 64 else 8 * strides]
    guesses += [16000, 1024, 128] if dims == 1 else [*IMAGE_SIDES] if dims == 2 else [32, 16, 8]
    limit = {1: 2**17, 2: 512, 3: 64}[dims]
    yield from dict.fromkeys(side for side in guesses if 4 <= side <= limit)


def _first_weighted(model: nn.Module) -> nn.Module | None:
    return next((m for m in model.modules() if any(p.dim() >= 2 for p in m.parameters(recurse=False))), None)


def _first_that_runs(model: nn.Module, candidates: Iterator[Batch]) -> Batch:
    tried: list[str] = []
    with untouched(model), batch_statistics(model), torch.no_grad():
        for batch in candidates:
            try:
                next(batch.to(model).parts(2))(model)
            except Exception as error:  # a stranger's forward may fail in any way: that is what is being asked
                tried.append(f"{_described(batch)}: {type(error).__name__}: {str(error).splitlines()[:1]}")
                continue
            return batch
    raise ProbeError(
        f"no synthetic input runs through {type(model).__name__}",
        got="; ".join(tried[:4]) or "no idea what its forward takes",
        wanted="inputs that the forward accepts",
    )


def _described(batch: Batch) -> str:
    shapes = [tuple(t.shape[1:]) for t in batch.args if isinstance(t, torch.Tensor)]
    return ", ".join([*(f"{'x'.join(map(str, s))}" for s in shapes), *batch.kwargs]) or "a dict"
