"""Inputs for a model nobody gave data for: noise images, token ids, speech, and whatever shape its forward takes.

A `Batch` is one call of the model's forward. Candidates are made from what the model says of itself, two samples of
each, and the first one that its forward accepts is made in full.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from opq.base.extras import brief
from opq.errors import OptionError, ProbeError
from opq.models.batch import Batch, as_batch, binds
from opq.models.observe import batch_statistics, untouched
from opq.models.outputs import floating
from opq.probing import evidence, shapes, signature
from opq.probing.arguments import VOCABULARY
from opq.probing.forms import Call, Form, Recipe
from opq.probing.making import Maker
from opq.probing.shapes import TOKENS
from opq.sources.base import InputHint
from opq.sources.hints import hint_of_module

SAMPLES, LARGE = 64, 32
"""Synthetic inputs made where the caller does not say how many; and large images, which show more places each.
docs/research.md compares both numbers."""
PIXELS = 128 * 128
"""Of a large image at least."""


def synthetic(
    model: nn.Module,
    *,
    input_size: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    example_inputs: Any = None,
    hint: InputHint | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> Batch:
    """A batch of synthetic inputs that the model's forward accepts, the same for the same seed.

    Args:
        input_size: shape of one sample without the batch dimension, e.g. (3, 224, 224); of a forward with several
            arguments, the shapes by their names.
        example_inputs: anything the forward takes (tensor, tuple, dict); its shapes and kinds are imitated.
        hint: what the source knows of the inputs (`Source.input_hint`); by default the model is asked.
        samples: by default `SAMPLES`, or `LARGE` for a network with BatchNorm that takes large images.

    Raises:
        ProbeError: no candidate runs through the forward.
    """
    if samples is not None and samples < 2:
        raise OptionError("samples=", got=samples, wanted="at least 2")
    if example_inputs is None:  # what its author wrote down for tools (PyTorch Lightning)
        example_inputs = getattr(model, "example_input_array", None) if input_size is None else None
    if example_inputs is not None:
        candidates = _imitations(as_batch(model, example_inputs))
    elif isinstance(input_size, Mapping):
        candidates = iter([signature.by_sizes(model, input_size).batch])
    elif input_size is not None:
        candidates = iter([Call((Form("signal", tuple(input_size)),)).batch])
    else:
        candidates = _candidates(model, hint)
    return _first_that_runs(model, candidates, samples, seed)


def texts(hint: InputHint, *, samples: int = 64, seed: int = 0) -> torch.Tensor:
    """The token ids that `synthetic` makes of this hint for a language model, (TEXTS samples, length) int64."""
    (ids,) = Call((_ids(hint),)).batch(Maker(torch.Generator().manual_seed(seed), samples)).args
    assert isinstance(ids, torch.Tensor)
    return ids


def _imitations(given: Batch) -> Iterator[Recipe]:
    """Batches like an example: whose first dimension counts the samples, or the second, or none (a graph, a mask)."""
    alone = sum(1 for _ in given.tensors) == 1

    def imitate(dim: int | None) -> Recipe:
        return lambda make: Batch(given.args, given.kwargs, dim=dim).map(lambda t: make.like(t, alone=alone, dim=dim))

    yield imitate(0)
    if given.dim == 0 and not alone:
        yield from (imitate(1), imitate(None))


def _candidates(model: nn.Module, hint: InputHint | None) -> Iterator[Recipe]:
    """From the surest to the boldest guess."""
    hint = hint or _hint_of(model)
    if getattr(model, "main_input_name", "") in signature.HEARD:
        yield from (call.batch for call in signature.calls(model))
    if hint is not None and hint.vocabulary:
        yield from (call.batch for call in _texts(model, hint))
    if hint is not None and hint.image_size is not None:
        image = Form("signal", hint.image_size)
        yield from (Call((image,)).batch, Call((), {"pixel_values": image}).batch)
    yield from (call.batch for call in signature.calls(model))
    if binds(inspect.signature(model.forward), (None,), {}):
        yield from (call.batch for call in shapes.calls(model))
    yield from (call.batch for call in signature.calls(model, boldly=True))
    if isinstance(example := _dummies(model), Mapping) and example:
        yield from _imitations(as_batch(model, example))


def _texts(model: nn.Module, hint: InputHint) -> Iterator[Call]:
    ids = _ids(hint)
    named = {"input_ids": ids, "attention_mask": Form("ones", ids.shape)}
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        yield Call((), {**named, "decoder_input_ids": ids})
    vision = getattr(config, "vision_config", None)
    if vision is not None and isinstance(getattr(vision, "image_size", None), int):  # text beside images (CLIP)
        side = vision.image_size
        yield Call((), {**named, "pixel_values": Form("signal", (getattr(vision, "num_channels", 3), side, side))})
    if binds(inspect.signature(model.forward), (), named):
        yield from (Call((), named), Call((), {"input_ids": ids}))
    yield from (Call((ids,)), Call((named,)))


def _ids(hint: InputHint) -> Form:
    """Vocabulary and tokens of a synthetic text."""
    most = hint.tokens or TOKENS + 2
    return Form("tokens", (min(TOKENS, most - 2 if most > 8 else most),), int(hint.vocabulary or VOCABULARY))


def _hint_of(model: nn.Module) -> InputHint | None:
    """What the model, or the first of its submodules that says anything, says of its input."""
    hint = next((h for m in model.modules() if (h := hint_of_module(m)) is not None), None)
    first = shapes.first_weighted(model)
    if hint is None and isinstance(first, shapes.EMBEDDINGS):
        return InputHint(modality="text", vocabulary=first.num_embeddings)
    return hint


def _dummies(model: nn.Module) -> Any:
    """Inputs that the model's class carries for tools (`dummy_inputs` of transformers)."""
    try:
        return getattr(model, "dummy_inputs", None)
    except Exception:  # a property of a stranger's class
        return None


def _first_that_runs(model: nn.Module, candidates: Iterator[Recipe], samples: int | None, seed: int) -> Batch:
    """The first candidate that the forward takes and answers with numbers; one that it answers with NaN after all."""
    tried, doubtful = list[str](), list[Recipe]()

    def made(recipe: Recipe, samples: int) -> Batch:
        return recipe(Maker(torch.Generator().manual_seed(seed), samples))

    with untouched(model), batch_statistics(model), torch.no_grad():
        for recipe in candidates:
            few = made(recipe, 2)
            try:
                output = next(few.to(model).parts(2))(model)
            except Exception as error:  # a stranger's forward may fail in any way: that is what is being asked
                tried.append(f"{_described(few)}: {brief(error)}")
                continue
            if not any(bool(o.isnan().any()) for o in floating(output)):
                return made(recipe, samples or _enough(model, few))
            doubtful.append(recipe)
    if doubtful:
        return made(doubtful[0], samples or SAMPLES)
    raise ProbeError(
        f"no synthetic input runs through {type(model).__name__}",
        got="; ".join(tried[:4]) or "no idea what its forward takes",
        wanted="inputs that the forward accepts",
        remedy=f"Pass {signature.to_write(model)}, with the right shapes; or input_size=, or probe=False.",
    )


def _enough(model: nn.Module, few: Batch) -> int:
    """Samples of a batch that is like this one."""
    images = few.images
    large = images is not None and images.shape[2] * images.shape[3] >= PIXELS
    return LARGE if large and evidence.applies(model, few) else SAMPLES


def _described(batch: Batch) -> str:
    sizes = [tuple(t.shape[1:]) for t in batch.args if isinstance(t, torch.Tensor)]
    return ", ".join([*(f"{'x'.join(map(str, s))}" for s in sizes), *batch.kwargs]) or "a dict"
