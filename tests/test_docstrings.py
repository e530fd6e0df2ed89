"""The examples in the docstrings of the public calls run, and show what comes out."""

from __future__ import annotations

import doctest
import importlib
import inspect
from typing import Any

import pytest

import opq

CALLS = sorted(name for name in opq.__all__ if inspect.isfunction(getattr(opq, name)))
WITH_EXAMPLES: tuple[Any, ...] = (*(getattr(opq, name) for name in CALLS), opq.Reader, opq.constraints.bits)


@pytest.mark.parametrize("documented", WITH_EXAMPLES, ids=lambda call: f"{call.__module__}.{call.__qualname__}")
def test_an_example_runs(documented: Any) -> None:
    module = importlib.import_module(documented.__module__)
    found = doctest.DocTestFinder(recurse=False).find(documented, documented.__qualname__, module=module, globs={})
    assert [test for test in found if test.examples], f"{documented.__qualname__} has no example"
    runner = doctest.DocTestRunner(verbose=False)
    said: list[str] = []
    for test in found:
        runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)
