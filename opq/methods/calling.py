"""The keywords of a public call as checked options. The method becomes an object, on which its short forms are set.

method="rd", trellis=True              RateDistortion(trellis=True)
method="clipq", data=batches,
method_options={"epochs": 3}           ClipQ(data=batches, epochs=3)
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opq.base.progress import shown
from opq.base.sizes import in_bytes
from opq.compression.method import Method, Opq, RateDistortion
from opq.compression.options import Options
from opq.constraints import Constraint
from opq.errors import OptionError
from opq.methods.baselines import KMeans, Lamp, Magnitude
from opq.methods.clipq import ClipQ
from opq.methods.olmp import Olmp
from opq.methods.options import Settings, read
from opq.methods.pq import ProductQuantization

METHODS: dict[str, type[Method]] = {
    kind.name: kind for kind in (RateDistortion, Opq, ClipQ, KMeans, Lamp, Magnitude, Olmp, ProductQuantization)
}
"""The classes of the methods, by name."""
SHORT_FORMS = tuple(dict.fromkeys(name for kind in METHODS.values() for name in kind.keywords))
"""Keywords of the calls that set a field of a method."""
KEYWORDS = (*(f.name for f in dataclasses.fields(Options) if f.name != "how"), *SHORT_FORMS, "method", "method_options")
"""Every keyword of `opq.compress`."""


@contextmanager
def asked(given: Mapping[str, Any]) -> Iterator[Options]:
    """The options of a call; inside, their progress is shown as the caller wants it.

    Args:
        given: the call's keywords, defaults included; other names are ignored, so that it may be `locals()`.

    Raises:
        OptionError: a value, or a combination of values, has no meaning.
    """
    with shown(given.get("progress")) as progress:
        yield options_of({**given, "progress": progress})


def options_of(given: Mapping[str, Any]) -> Options:
    """The options for these keywords; keywords that are absent have their default values."""
    own = {f.name for f in dataclasses.fields(Options)}
    call = {name: value for name, value in given.items() if name in own}
    if isinstance(call.get("size"), str):
        call["size"] = in_bytes(call["size"])
    short = {name: given[name] for name in SHORT_FORMS if name in given}
    return Options(**call, how=method_of(given.get("method", "rd"), short, given.get("method_options")))


def method_of(method: Any, short: Mapping[str, Any], method_options: Any) -> Method:
    """The method as an object, given as such or by name, with the short forms that were given."""
    how = method if isinstance(method, Method) else _named(method, method_options)
    if how is method and method_options is not None:
        remedy = f"Pass them to {type(how).__name__}(...)."
        raise OptionError("method_options= goes with the name of a method", got=f"method={how!r}", remedy=remedy)
    changes = {}
    for name, value in short.items():
        if name not in how.keywords:
            if _says_something(value):
                raise _not_taken(how, name)
        elif value is not None and value is not (default := type(how).default(name)):
            if getattr(how, name) is not default:
                got = f"{name}= and method={type(how).__name__}({name}=...)"
                raise OptionError(f"{name}= is given twice", got=got, remedy="Leave one of them out.")
            changes[name] = value
    return dataclasses.replace(how, **changes) if changes else how


def from_json(text: str) -> Method:
    """The method that `to_json` has written.

    Raises:
        OptionError: the text is not such a method, or an option has no meaning.
    """
    try:
        fields = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise OptionError("the method cannot be read", got=text, wanted="what to_json wrote") from error
    kind = _kind(fields.pop("method", None))
    unknown = sorted(set(fields) - {f.name for f in dataclasses.fields(kind)})
    if unknown:
        raise OptionError(f"method={kind.name!r} has no option of this name", got=", ".join(unknown))
    constraints = tuple(Constraint(**c) for c in fields.pop("constraints", ()))
    given = {name: _tuples(value) for name, value in fields.items()}
    return kind(**given, **({"constraints": constraints} if constraints else {}))


def _tuples(value: Any) -> Any:
    """A value from JSON with tuples for lists, since JSON has no tuples."""
    if isinstance(value, dict):
        return {key: _tuples(v) for key, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _named(name: Any, method_options: Any) -> Method:
    kind = _kind(name)
    if issubclass(kind, Settings):
        return read(kind, method_options)
    if method_options is not None:
        raise _not_taken(kind(), "method_options")
    return kind()


def _kind(name: Any) -> type[Method]:
    if isinstance(name, type) and issubclass(name, Method):
        raise OptionError("method= is a class", got=name.__name__, wanted=f"an object, {name.__name__}(...)")
    if not isinstance(name, str) or name not in METHODS:
        wanted = " or ".join(METHODS)
        raise OptionError("unknown method=", got=repr(name), wanted=f"{wanted}, or an object of opq.methods")
    return METHODS[name]


def _says_something(value: Any) -> bool:
    """Whether the value of a keyword that a method does not know asks for something: None, False and () do not."""
    return value is not None and value is not False and value != ()


def _not_taken(how: Method, name: str) -> OptionError:
    """The error for an option that belongs to other methods."""
    takers = [n for n, kind in METHODS.items() if name in kind.keywords]
    if name == "method_options":
        takers = [n for n, kind in METHODS.items() if issubclass(kind, Settings)]
    if isinstance(how, Settings) and name in {f.name for f in dataclasses.fields(how)}:
        wanted = f"{name} in method_options="
    else:
        wanted = f"method={takers[0]!r}" if len(takers) == 1 else f"method= one of {', '.join(takers)}"
    if how.name == "rd" and len(takers) == 1:  # probably method= was left out: name the one that takes the option
        return OptionError(f"{name}= goes with {wanted}", got="method='rd'")
    return OptionError(f"method={how.name!r} does not take {name}=", wanted=wanted)
