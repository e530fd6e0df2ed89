"""Keywords that do not exist, and where warnings point."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest

from opq.base.calls import checked_names, refusing, warn
from opq.errors import OptionError


@checked_names
def call(source: str, *, bits: float | None = None, trellis: bool = False) -> tuple[str, float | None, bool]:
    """What it does."""
    return source, bits, trellis


@refusing(("sparsity",), why="does not stream", remedy="Leave it out.")
def streams(source: str, *, bits: float | None = None) -> tuple[str, float | None]:
    """What it does."""
    return source, bits


def test_the_call_is_seen_as_it_was_written() -> None:
    assert list(inspect.signature(call).parameters) == ["source", "bits", "trellis"]
    assert (call.__name__, call.__doc__) == ("call", "What it does.")
    assert call("a", bits=3) == ("a", 3, False)
    assert call(source="a") == ("a", None, False)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("bit", r"unknown option 'bit'\. Did you mean bits=\?"),
        ("treliss", r"unknown option 'treliss'\. Did you mean trellis=\?"),
        ("zzz", r"unknown option 'zzz'\. The options are bits, trellis\."),
    ],
)
def test_a_misspelt_option_is_named_with_the_nearest(name: str, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        call("a", **{name: 3})


def test_what_python_itself_says_of_positions_stays() -> None:
    with pytest.raises(TypeError, match="takes 1 positional argument but 2"):
        call("a", 3)  # type: ignore[call-arg]


def test_options_of_a_sister_call_have_words_of_their_own() -> None:
    sister: dict[str, Any] = {"sparsity": 0.5}
    nothing: dict[str, Any] = {"sparsity": None}
    misspelt: dict[str, Any] = {"sparsit": 1}
    with pytest.raises(OptionError, match="sparsity= does not stream"):
        streams("a", **sister)
    assert streams("a", bits=2, **nothing) == ("a", 2)
    with pytest.raises(OptionError, match="unknown option 'sparsit'"):
        streams("a", **misspelt)


def test_a_warning_points_at_the_line_that_called_the_package() -> None:
    inner: dict[str, Any] = {"__name__": "opq.inner", "warn": warn}
    exec("def deep():\n    warn('it is so', UserWarning)\ndef call():\n    deep()", inner)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        inner["call"]()
    assert [w.filename for w in seen] == [__file__]
    assert str(seen[0].message) == "it is so"
