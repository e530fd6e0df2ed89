"""The YAML block at the head of a model card (its front matter), as far as is needed to make a card from another card.

Values are not parsed: the lines of each key are copied as they were written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

LIMIT = "---"
_KEY = re.compile(r"([A-Za-z_][\w-]*)\s*:")
_ITEM = re.compile(r"\s*-\s+(.+?)\s*$")


def split(card: str) -> tuple[dict[str, str], str]:
    """The lines of each key of the front matter, and the text below it. Without a front matter, everything is text."""
    lines = card.lstrip("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != LIMIT:
        return {}, card
    ends = [number for number, line in enumerate(lines) if number and line.rstrip() == LIMIT]
    if not ends:
        return {}, card
    return _blocks(lines[1 : ends[0]]), "\n".join(lines[ends[0] + 1 :]).strip("\n")


def _blocks(lines: Iterable[str]) -> dict[str, str]:
    blocks: dict[str, str] = {}
    key = ""
    for line in lines:
        if found := _KEY.match(line):
            key = found[1]
            blocks[key] = line
        elif key:
            blocks[key] += f"\n{line}"
    return blocks


def items(block: str) -> list[str]:
    """The entries of a list, written in brackets or on one line each; a single value counts as a list of one."""
    first, *below = block.splitlines() or [""]
    value = first.partition(":")[2].partition(" #")[0].strip()
    if value.startswith("[") and value.endswith("]"):
        return [item for part in value[1:-1].split(",") if (item := part.strip().strip("'\""))]
    if value:
        return [value.strip("'\"")]
    return [found[1].strip("'\"") for line in below if (found := _ITEM.match(line))]


def joined(blocks: dict[str, str]) -> str:
    """The front matter with the lines of these keys, in their order."""
    return "\n".join((LIMIT, *blocks.values(), LIMIT)) + "\n"
