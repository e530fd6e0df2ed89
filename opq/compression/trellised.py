"""Which tensors may be quantized on a trellis, and how long the loops that can be compiled would take without that."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable

from opq.compression.roles import Role
from opq.quantizing import feedback, trellis


def may_follow(roles: Iterable[Role], is_transposed: Callable[[str], bool]) -> frozenset[str]:
    """Matrices, but for those that feedback takes as (inputs, outputs): paths follow the outputs of one input.

    Args:
        is_transposed: whether feedback takes the tensor of this name as (inputs, outputs).
    """
    names = (role.name for role in roles if role.action == "compress" and len(role.spec.shape) >= 2)
    return frozenset(name for name in names if not is_transposed(name))


def numpy_seconds(roles: Iterable[Role], trellised: Collection[str], *, fed: bool) -> float:
    """About how many seconds the loops that can be compiled would take in numpy.

    Args:
        trellised: the tensors that may be on a trellis.
        fed: whether errors are fed back.
    """
    seconds = 0.0
    for role in roles:
        shape, on_paths = role.spec.shape, role.name in trellised
        if fed and role.action == "compress" and len(shape) > 1:
            seconds += feedback.numpy_seconds(math.prod(shape[1:]), on_paths=on_paths)
        elif on_paths:
            seconds += trellis.numpy_seconds(math.prod(shape))
    return seconds
