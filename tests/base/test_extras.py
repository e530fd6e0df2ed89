"""Errors of other libraries in one line."""

from __future__ import annotations

import pytest

from opq.base.extras import brief


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("no.\nmore", "ValueError: no"),
        ("", "ValueError"),
        ("\x1b[96mFailed\x1b[0m to \x1b[1;31mexport.\x1b[0m\n\nlong", "ValueError: Failed to export"),
    ],
)
def test_an_error_of_another_library_is_one_line_without_colours(text: str, line: str) -> None:
    assert brief(ValueError(text)) == line
