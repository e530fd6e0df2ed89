"""Calls that fit a forward's signature: which arguments to pass, and a form for each from its name and the model."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from opq.models.batch import signature_of
from opq.probing.arguments import diffuses, guessed, in_order, named
from opq.probing.facts import Facts
from opq.probing.forms import Call, Form

MAIN = ("input_ids", "pixel_values", "input_features", "input_values")
"""The main inputs of models of transformers: text, images, sound."""
HEARD = ("input_features", "input_values")
"""Those of them that are sound."""
_BESIDE = ("timestep", "encoder_hidden_states", "class_labels", "pooled_projections", "img_ids", "txt_ids")
"""Arguments that have a default, though models of diffusers do not run without them."""
_MOST = 48
"""The most calls to try with one set of arguments."""
_GRAPH = ("edges", "adjacency")
"""Kinds of arguments that make a batch one graph, which cannot be divided."""


def calls(model: nn.Module, *, boldly: bool = False) -> Iterator[Call]:
    """Calls by name, from the fullest set of arguments to the smallest.

    Args:
        boldly: arguments that neither name nor configuration explain are guessed from the model's layers.
    """
    facts, parameters = Facts.of(model), _parameters(model)
    for names in _sets(model, parameters, facts):
        strange = [name for name in names if not named(name, facts, model)]
        if boldly and strange == list(names) and (texts := in_order(strange, model)):
            yield _call(dict(zip(names, texts, strict=True)))
        forms = [named(name, facts, model) or (guessed(name, model) if boldly else []) for name in names]
        if all(forms):
            combined = itertools.islice(_combinations(forms), _MOST)
            yield from (_call(dict(zip(names, chosen, strict=True))) for chosen in combined)


def by_sizes(model: nn.Module, sizes: Mapping[str, Iterable[int]]) -> Call:
    """The call with arguments of these names and shapes (of one sample); their kinds are guessed from the names."""
    facts, kwargs = Facts.of(model), dict[str, Form]()
    for name, size in sizes.items():
        shape = tuple(size)
        like = next(iter(named(name, facts, model) or guessed(name, model)), Form("signal"))
        match like.kind:
            case "tokens" | "ones" | "places":
                kwargs[name] = Form(like.kind, shape, like.below)
            case "speech" | "standard speech":
                kwargs[name] = Form(like.kind, shape)
            case "mel" if len(shape) == 2:
                kwargs[name] = Form("mel", shape)
            case "fbank" if len(shape) >= 2:
                kwargs[name] = Form("fbank", shape, scale=like.scale)
            case _:
                kwargs[name] = Form("signal", shape)
    return Call((), kwargs)


def to_write(model: nn.Module) -> str:
    """Python code of an `example_inputs=` for a model that accepts no guess, as far as its signature tells."""
    facts, parameters = Facts.of(model), _parameters(model)
    names = next(_sets(model, parameters, facts), ())
    found = {name: next(iter(named(name, facts, model) or guessed(name, model)), None) for name in names}
    if not found:
        return "example_inputs=(...)"
    if len(found) == 1 and next(iter(parameters)) in found:
        return f"example_inputs={next(iter(found.values())) or '...'}"
    return "example_inputs={" + ", ".join(f'"{name}": {form or "..."}' for name, form in found.items()) + "}"


def _parameters(model: nn.Module) -> dict[str, inspect.Parameter]:
    """The arguments that can be passed by name, in the order of the signature."""
    usual = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p for p in signature_of(model).parameters.values() if p.kind in usual}


def _sets(model: nn.Module, parameters: Mapping[str, inspect.Parameter], facts: Facts) -> Iterator[tuple[str, ...]]:
    """Sets of arguments to pass: always those without a default, with different choices of the others."""
    required = [name for name, p in parameters.items() if p.default is p.empty]
    main = str(getattr(model, "main_input_name", ""))
    main = main if main in parameters else next((name for name in MAIN if name in parameters), "")
    decoder = [n for n in ("decoder_input_ids", "decoder_input_values") if n in parameters]
    decoder = decoder[:1] if facts.says("is_encoder_decoder") or "decoder" in facts.configs else []
    shown = [name for name in MAIN if name in parameters and (main or required)]
    beside = [name for name in _BESIDE if name in parameters and diffuses(model)]
    known = [name for name in beside if named(name, facts, model)]
    wanted = [
        *([*required, main, *shown, *extra, *known] for extra in (decoder, [])),
        *([*required, main, *extra] for extra in (decoder, [])),
        *([*required, *known[:n]] for n in range(len(known), -1, -1)),
    ]
    sets = [list(dict.fromkeys(filter(None, names))) for names in wanted]
    yield from dict.fromkeys(tuple(full) for names in sets if names for full in (_masked(names, parameters), names))


def _masked(names: list[str], parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """The names, and `attention_mask` if the forward takes one for its text: without it models guess the padding."""
    return [*names, "attention_mask"] if "input_ids" in names and "attention_mask" in parameters else names


def _combinations(forms: list[list[Form]]) -> Iterator[tuple[Form, ...]]:
    """Choices of one form for each argument, the likeliest first: the smallest sum of places in the lists."""
    count = math.prod(map(len, forms))
    if count > 20_000:
        forms = [few[: max(2, round(20_000 ** (1 / len(forms))))] for few in forms]
    ranked = sorted(itertools.product(*(range(len(few)) for few in forms)), key=lambda at: (sum(at), at))
    yield from (tuple(few[k] for few, k in zip(forms, at, strict=True)) for at in ranked)


def _call(kwargs: dict[str, Form]) -> Call:
    return Call((), kwargs, dim=None if any(form.kind in _GRAPH for form in kwargs.values()) else 0)
