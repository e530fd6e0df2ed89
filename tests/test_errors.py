"""One tree of errors; each says fact, got, wanted and remedy, and survives pickling."""

from __future__ import annotations

import inspect
import pickle

import pytest

from opq import errors
from opq.errors import OpqError

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, OpqError)]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_has_a_cause_and_a_remedy(kind: type[OpqError]) -> None:
    assert inspect.getdoc(kind), kind
    assert kind.remedy.endswith((".", '"', ")"))


@pytest.mark.parametrize("kind", CLASSES)
def test_text_and_pickle(kind: type[OpqError]) -> None:
    error = kind("tensor 'w' is wrong", got=3, wanted="4", remedy="Do this.")
    assert str(error) == "tensor 'w' is wrong: got 3, wanted 4. Do this."
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (kind, str(error))


def test_without_got_and_wanted() -> None:
    assert str(OpqError("a fact", remedy="Do this.")) == "a fact. Do this."
    assert str(errors.BudgetError("a fact")) == "a fact. Give exactly one of bits=, ratio= and size=."
