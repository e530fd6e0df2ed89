"""Synthetic inputs for a model that comes without data: images, token ids, speech, in shapes that its forward accepts.

A `Batch` holds the arguments of one call of the forward. What the model tells about itself gives a list of candidates.
Each is tried with two samples, and the first one that the forward accepts is made in full.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from opq.base.extras import brief
from opq.errors import OptionError, ProbeError
from opq.models.batch import Batch, as_batch, binds, signature_of
from opq.models.divided import divided
from opq.models.observe import batch_statistics, untouched
from opq.models.outputs import floating
from opq.models.record import Record
from opq.probing import evidence, pixels, shapes, signature
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
    if example_inputs is None:  # PyTorch Lightning lets a model's author write down an example
        example_inputs = getattr(model, "example_input_array", None) if input_size is None else None
    passed = "example_inputs=" if example_inputs is not None else "input_size=" if input_size is not None else ""
    if example_inputs is not None:
        candidates = _imitations(_seen(model, example_inputs))
    elif isinstance(input_size, Mapping):
        candidates = iter([signature.by_sizes(model, input_size).batch])
    elif input_size is not None:
        candidates = iter([Call((Form("signal", tuple(input_size)),)).batch])
    else:
        candidates = _candidates(model, hint)
    return pixels.visible(model, _first_that_runs(model, candidates, samples, seed, passed))


def texts(hint: InputHint, *, samples: int = 64, seed: int = 0) -> torch.Tensor:
    """The token ids that `synthetic` makes for a language model with this hint, (TEXTS * samples, length) int64."""
    (ids,) = Call((_ids(hint),)).batch(Maker(torch.Generator().manual_seed(seed), samples)).args
    assert isinstance(ids, torch.Tensor)
    return ids


def _seen(model: nn.Module, example: Any) -> Batch:
    """An example as a call, with the dimensions that count its samples where the model runs with it."""
    try:
        return divided(model, as_batch(model, example))
    except ProbeError:  # noise like it may still do
        return as_batch(model, example)


def _imitations(given: Batch) -> Iterator[Recipe]:
    """Batches like an example, the surest first: noise like it, its own samples drawn anew, and the example itself."""
    alone, dims = sum(1 for _ in given.tensors) == 1, given.dims

    def imitate(dims: tuple[int | None, ...]) -> Recipe:
        def recipe(make: Maker) -> Batch:
            each, shared = iter(dims), any(dim is not None for dim in dims)
            batch = dataclasses.replace(given, dim=_plain(dims))
            return batch.map(lambda t: t if (d := next(each)) is None and shared else make.like(t, alone=alone, dim=d))

        return recipe

    others = [(dim,) * len(dims) for dim in (0, 1, None)] if given.dim is not None and not alone else []
    yield from (imitate(each) for each in dict.fromkeys([dims, *others]))
    if given.dim is not None:
        whole = dataclasses.replace(given, dim=_plain(dims))
        yield lambda make: whole.rows(torch.randint(whole.samples, (make.rows,), generator=make.generator))
    yield lambda make: dataclasses.replace(given, dim=None)


def _plain(dims: tuple[int | None, ...]) -> int | tuple[int | None, ...] | None:
    """The one dimension where all tensors have the same."""
    return dims[0] if len(set(dims)) == 1 else dims


def _candidates(model: nn.Module, hint: InputHint | None) -> Iterator[Recipe]:
    """All guesses, the likeliest first."""
    hint = hint or _hint_of(model)
    if getattr(model, "main_input_name", "") in signature.HEARD:
        yield from (call.batch for call in signature.calls(model))
    if hint is not None and hint.vocabulary:
        yield from (call.batch for call in _texts(model, hint))
    if hint is not None and hint.image_size is not None:
        image = Form("signal", hint.image_size)
        yield from (Call((image,)).batch, Call((), {"pixel_values": image}).batch)
    yield from (call.batch for call in signature.calls(model))
    if binds(signature_of(model), (None,), {}):
        yield from (call.batch for call in shapes.calls(model))
    yield from (call.batch for call in signature.calls(model, boldly=True))
    if isinstance(example := _dummies(model), Mapping) and example:
        yield from _imitations(_seen(model, example))


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
    if binds(signature_of(model), (), named):
        yield from (Call((), named), Call((), {"input_ids": ids}))
    yield from (Call((ids,)), Call((named,)))


def _ids(hint: InputHint) -> Form:
    """The form of a synthetic text: its length, and how many token ids there are."""
    most = hint.tokens or TOKENS + 2
    return Form("tokens", (min(TOKENS, most - 2 if most > 8 else most),), int(hint.vocabulary or VOCABULARY))


def _hint_of(model: nn.Module) -> InputHint | None:
    """What the model tells about its input, or else the first of its submodules that tells anything."""
    hint = next((h for m in model.modules() if (h := hint_of_module(m)) is not None), None)
    first = shapes.first_weighted(model)
    if hint is None and isinstance(first, shapes.EMBEDDINGS):
        return InputHint(modality="text", vocabulary=first.num_embeddings)
    return hint


def _dummies(model: nn.Module) -> Any:
    """Example inputs that the model's class offers to tools (`dummy_inputs` of transformers)."""
    try:
        return getattr(model, "dummy_inputs", None)
    except Exception:  # a property, which may fail in any way
        return None


def _first_that_runs(
    model: nn.Module, candidates: Iterator[Recipe], samples: int | None, seed: int, passed: str
) -> Batch:
    """The first candidate that the forward accepts without giving NaN; if there is none, the first that it accepts."""
    tried, doubtful = list[str](), list[Recipe]()

    def made(recipe: Recipe, samples: int) -> Batch:
        return recipe(Maker(torch.Generator().manual_seed(seed), samples))

    with untouched(model), batch_statistics(model), torch.no_grad():
        record = Record(model)
        for recipe in candidates:
            few = made(recipe, 2)
            try:
                output = next(few.to(model).parts(2))(model)
            except Exception as error:  # a forward may fail in any way: whether it does is the question here
                tried.append(f"{_described(few)}: {brief(error)}")
                continue
            finally:
                record.restore()
            if not any(bool(o.isnan().any()) for o in floating(output)):
                return made(recipe, samples or _enough(model, few))
            doubtful.append(recipe)
    if doubtful:
        return made(doubtful[0], samples or SAMPLES)
    raise _nothing_runs(model, tried, passed)


def _nothing_runs(model: nn.Module, tried: list[str], passed: str) -> ProbeError:
    """What to say where the forward takes no candidate; `passed` is the option that they follow."""
    name = type(model).__name__
    if passed == "example_inputs=":
        return ProbeError(
            f"{name} runs neither with example_inputs= nor with noise like it",
            got=tried[-1],
            wanted="what a call of the model takes: a tensor, a tuple of its arguments, or a dict by their names",
            remedy="Correct it so that the model runs with it, or pass probe=False.",
        )
    another = "another input_size=" if passed else "input_size="
    return ProbeError(
        f"no synthetic input runs through {name}",
        got="; ".join(tried[:4]) or "no idea what its forward takes",
        wanted="inputs that the forward accepts",
        remedy=f"Pass {signature.to_write(model)}, with the right shapes; or {another}, or probe=False.",
    )


def _enough(model: nn.Module, few: Batch) -> int:
    """Samples of a batch that is like this one."""
    images = few.images
    large = images is not None and images.shape[2] * images.shape[3] >= PIXELS
    return LARGE if large and evidence.applies(model, few) else SAMPLES


def _described(batch: Batch) -> str:
    sizes = [tuple(t.shape[1:]) for t in batch.args if isinstance(t, torch.Tensor)]
    return ", ".join([*(f"{'x'.join(map(str, s))}" for s in sizes), *batch.kwargs]) or "a dict"
