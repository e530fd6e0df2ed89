"""Tables for a terminal: which columns leave, what is cut, and where words go on."""

from __future__ import annotations

import pytest

from opq.base.tables import Column, lines

COLUMNS = (
    Column("name", least=6),
    Column("first", leaves=1),
    Column("second", right=True, leaves=2),
    Column("why", least=8, words=True),
)
"""At least they take 6, 5, 6 and 8 characters, with a gap of two between them: 31, and 24 or 16 without some."""
ROWS = [("layers.weight", "a", "1", "its errors are seen"), ("bias", "b", "22", "")]


def test_without_a_width_a_row_is_one_line_of_all_cells() -> None:
    assert list(lines(COLUMNS, ROWS)) == [
        "name           first  second  why",
        "layers.weight  a           1  its errors are seen",
        "bias           b          22",
    ]


def test_sentences_are_cut_before_names_and_go_on_below() -> None:
    assert list(lines(COLUMNS, ROWS, 36)) == [
        "name         first  second  why",
        "layer…eight  a           1  its",
        "                            errors",
        "                            are seen",
        "bias         b          22",
    ]


@pytest.mark.parametrize(
    ("width", "left"),
    [
        (31, "name first second why"),
        (30, "name second why"),
        (24, "name second why"),
        (23, "name why"),
        (9, "name why"),
    ],
)
def test_columns_leave_in_their_order_where_there_is_no_room_for_what_all_need(width: int, left: str) -> None:
    found = list(lines(COLUMNS, ROWS, width))
    assert found[0].split() == left.split()
    assert max(map(len, found)) <= max(width, 16)
