"""What a call takes is one thing: its signature, its documentation, the class behind it, the page of the site."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any, get_args

import pytest
from paths import DOCS

import opq
from opq import methods
from opq.api import MethodName
from opq.methods.calling import KEYWORDS, METHODS

CALLS = (
    *(opq.compress, opq.solve, opq.compress_folder, opq.finetune, opq.attach, opq.detach, opq.collect, opq.probe),
    *(opq.load, opq.load_state_dict, opq.open_source, opq.evaluation.evaluate),
)
CLASSES = tuple(METHODS.values())


def keywords(call: Any) -> dict[str, Any]:
    """Keyword-only parameters and their defaults."""
    found = inspect.signature(call).parameters.values()
    return {p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY}


def documented(thing: Any) -> list[str]:
    """The names under `Args:` in a docstring."""
    text = inspect.getdoc(thing) or ""
    found = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    return re.findall(r"^    (\w+): ", found[1], re.MULTILINE) if found else []


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_no_call_hides_what_it_takes(call: Callable[..., Any]) -> None:
    for parameter in inspect.signature(call).parameters.values():
        assert parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        assert parameter.annotation is not inspect.Parameter.empty


@pytest.mark.parametrize(
    "call", [opq.compress, opq.solve, opq.compress_folder, opq.finetune], ids=lambda call: call.__name__
)
def test_every_parameter_is_documented_in_its_place(call: Callable[..., Any]) -> None:
    assert documented(call) == list(inspect.signature(call).parameters)


def test_compress_takes_the_options_class_and_the_short_forms_of_the_methods() -> None:
    assert sorted(keywords(opq.compress)) == sorted(KEYWORDS)


def test_solve_takes_what_compress_takes() -> None:
    assert inspect.signature(opq.solve).parameters == inspect.signature(opq.compress).parameters


def test_a_folder_takes_a_part_of_it_and_says_no_to_the_rest() -> None:
    streamed, whole = keywords(opq.compress_folder), keywords(opq.compress)
    for name in (n for n in whole if n not in streamed):
        with pytest.raises(opq.OpqError, match=f"{name}= does not go with a folder as output"):
            opq.compress_folder("unread", "unmade", **{name: 1})
    assert {n: v for n, v in streamed.items() if n in whole} == {n: whole[n] for n in whole if n in streamed}


def test_defaults_of_short_forms_are_those_of_the_methods() -> None:
    given = keywords(opq.compress)
    for kind in CLASSES:
        assert {n: kind.default(n) for n in kind.keywords} == {n: given[n] for n in kind.keywords}


def test_defaults_of_finetune_are_those_of_training() -> None:
    given = keywords(opq.finetune)
    assert {f.name: f.default for f in dataclasses.fields(opq.Training)}.items() <= given.items()


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_option_of_a_method_is_documented(kind: type[methods.Method]) -> None:
    fields = [f.name for f in dataclasses.fields(kind)]
    text = inspect.getdoc(kind) or ""
    assert set(documented(kind)) <= set(fields)
    assert all(name in documented(kind) or f"`{name}`" in text for name in fields)


def test_names_of_methods_are_the_classes_names() -> None:
    assert set(get_args(MethodName)) == set(METHODS)


def test_the_api_page_has_every_public_call_and_class() -> None:
    page = (DOCS / "api.md").read_text()
    shown = set(re.findall(r":: (opq\.[\w.]+)", page))
    modules = {n for n in opq.__all__ if inspect.ismodule(getattr(opq, n))}
    wanted = {f"opq.{n}" for n in opq.__all__ if n not in modules and not n.endswith(("Error", "Warning"))}
    assert wanted <= shown
    assert {f"opq.methods.{kind.__name__}" for kind in CLASSES} <= shown
    for name in shown:
        thing: Any = opq
        for part in name.split(".")[1:]:
            thing = getattr(thing, part)
        assert inspect.getdoc(thing), name


def test_the_api_page_has_every_constraint() -> None:
    listed = re.search(r"automodule:: opq\.constraints\n   :members: (.*)", (DOCS / "api.md").read_text())
    assert listed is not None
    makers = {
        name
        for name, made in vars(opq.constraints).items()
        if inspect.isfunction(made) and made.__annotations__.get("return") == "Constraint"
    }
    assert len(makers) > 5
    assert makers <= set(listed[1].split(", "))


def test_help_shows_every_parameter() -> None:
    import pydoc

    shown = pydoc.plain(pydoc.render_doc(opq.compress))
    for name in keywords(opq.compress):
        assert re.search(rf"\b{name}: .* = ", shown), name
        assert re.search(rf"^ +{name}: ", shown, re.MULTILINE), name
