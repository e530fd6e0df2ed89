"""Values that are typed as text: overrides, shapes, and the name of the output where none is given."""

from __future__ import annotations

from typing import Any

from opq.cli.options import SUFFIX
from opq.errors import OptionError


def overrides_of(keep: list[str], numbers: list[str]) -> dict[str, Any] | None:
    """The `overrides` of `opq.compress`, from patterns to keep and texts such as `*.embed*:bits=6`."""
    overrides: dict[str, Any] = dict.fromkeys(keep, "keep")
    for text in numbers:
        pattern, colon, setting = text.rpartition(":")
        key, equals, value = setting.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not (colon and equals) or number != number:
            raise OptionError(
                "--override is not understood", got=repr(text), wanted="PATTERN:KEY=NUMBER, such as '*.embed*:bits=6'"
            )
        before = overrides.get(pattern)
        overrides[pattern] = {**(before if isinstance(before, dict) else {}), key: number}
    return overrides or None


def shapes(text: str | None) -> tuple[int, ...] | dict[str, tuple[int, ...]] | None:
    """One shape, or several as `NAME=SHAPE` with spaces between them; `NAME=` stands for one number per sample."""
    if text is None or "=" not in text:
        return None if text is None else shape_of(text)
    named = [part.partition("=") for part in text.split()]
    return {name: shape_of(numbers) if numbers else () for name, _, numbers in named}


def shape_of(text: str) -> tuple[int, ...]:
    """`3,224,224` or `3x224x224` as a shape."""
    parts = text.replace("x", ",").split(",")
    if not all(p.strip().isdecimal() and int(p) > 0 for p in parts):
        raise OptionError("--input-size is not a shape", got=repr(text), wanted="positive integers such as 3,224,224")
    return tuple(map(int, parts))


def default_name(source: str) -> str:
    """The name of the file that `opq compress SOURCE` writes where no output is given."""
    stem = source.rstrip("/").rpartition("/")[2].rpartition(":")[2].partition("?")[0]
    for suffix in (".safetensors", ".pth", ".pt", ".bin"):
        stem = stem.removesuffix(suffix)
    return f"{stem or 'model'}{SUFFIX}"
