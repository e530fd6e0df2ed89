"""The moments of all layers of a model, by weight name, within a limit of memory.

If all of them fit in memory together, one pass of the network computes them when the first one is requested, and they
are kept until they are released. Otherwise nothing is kept, and there is a pass for every group of layers that fits, or
for a single layer. The cost of a call depends on what it requests, not on earlier requests.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from torch import nn

from opq.base.arrays import Floats
from opq.base.pool import give_back, torch_threads
from opq.models.batch import Batch
from opq.probing.collector import Collector, Dense
from opq.probing.layers import Layer, layers
from opq.quantizing.moment import DAMPING, WIDEST, Factors, Half, Layout, Moment, costs

T = TypeVar("T")


class Moments(Mapping[str, Moment]):
    """The input moment `S_i` of every layer that error feedback supports, by weight name.

    The model must not change while this is in use.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        micro_batch: int = 16,
        memory: int = 2**30,
        damping: float = DAMPING,
        widest: int = WIDEST,
    ):
        """Observes nothing yet.

        Args:
            memory: bytes of moments and their factors that are held at one time.
            damping: added to the diagonal of each moment before it is factored, as a fraction of the diagonal's mean.
            widest: the most coordinates of one moment; wider layers have several.
        """
        self._collector = Collector(model, batch, micro_batch, damping)
        self._layers = layers(model, widest=widest)
        self._memory = memory
        self._kept: dict[str, Factors] | None = None
        self._dense: Dense | None = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __contains__(self, name: object) -> bool:
        return name in self._layers

    def __getitem__(self, name: str) -> Moment:
        """The moment of one weight's inputs; raises `KeyError` if its layer is not supported, or is never run.

        It takes a pass of its own where not all are kept, or where `of` has given its factors already.
        """
        return self._halves([name])[name].moment

    def layout(self, name: str) -> Layout | None:
        """How a weight is viewed as a stack of matrices; None if its layer is not supported."""
        return self._layers[name].layout if name in self._layers else None

    @functools.cached_property
    def fit(self) -> bool:
        """Whether the moments of all layers fit in memory together."""
        return len(self.groups(self._layers)) <= 1

    def groups(self, names: Iterable[str]) -> list[tuple[str, ...]]:
        """The weights in groups whose moments fit in memory together, in the order of the network's layers."""
        wanted = set(names)
        return list(_grouped({n: layer for n, layer in self._layers.items() if n in wanted}, self._memory))

    def of(self, group: Iterable[str]) -> dict[str, Factors | None]:
        """The factors of one group, computed in at most one pass; None for a weight that the network never uses."""
        names = list(group)
        wanted = {name: self._layers[name] for name in names}
        found = self._all if self.fit else _factors(self._collector.moments(wanted))
        return {name: found.get(name) for name in names}

    def costs(self, names: Iterable[str]) -> dict[str, Floats]:
        """What errors in each input of some weights cost, see `quantizing.moment.costs`; of those that are ever run.

        No pass is made for it where all moments fit in memory together.
        """
        found: dict[str, Floats] = {}
        with torch_threads() as threads:
            for group in self.groups(names):
                halves = self._halves(group)
                found |= _each(halves, threads.ordered(lambda half: costs(half.moment), _apart(halves)))
        return found

    def _halves(self, group: Iterable[str]) -> dict[str, Half]:
        """The moments of one group, of the weights that are ever run: those held, and others in a pass of their own."""
        if self.fit:
            held = {name: self._all[name].moment for name in group if name in self._all}
        else:
            held = dict.fromkeys(group)
        lost = {name: self._layers[name] for name, half in held.items() if half is None}
        found = held | (self._collector.moments(lost) if lost else {})
        return {name: half for name, half in found.items() if half is not None}

    def release(self) -> None:
        """Forgets the moments and their factors, which take as much memory as is allowed; a request measures anew."""
        self._kept = None
        give_back()

    @property
    def dense(self) -> Dense:
        """Statistics and outputs of the dense network."""
        return self._dense or self._measured()[1]

    @property
    def _all(self) -> dict[str, Factors]:
        """All moments, which fit in memory together."""
        return self._measured()[0] if self._kept is None else self._kept

    def _measured(self) -> tuple[dict[str, Factors], Dense]:
        """One pass: statistics and outputs of the dense network, and all moments if they fit in memory."""
        moments, dense = self._collector.both(self._layers if self.fit else {})
        self._kept, self._dense = _factors(moments), self._dense or dense
        return self._kept, self._dense


def _factors(moments: Mapping[str, Half]) -> dict[str, Factors]:
    return _each(moments, map(Factors, _apart(moments)))


def _apart(moments: Mapping[str, Half]) -> list[Half]:
    """The moments, each once: several weights may have the same one."""
    return list({id(moment): moment for moment in moments.values()}.values())


def _each(moments: Mapping[str, Half], results: Iterable[T]) -> dict[str, T]:
    """By weight name what was made of its moment, given those of `_apart`."""
    found = dict(zip(map(id, _apart(moments)), results, strict=True))
    return {name: found[id(moment)] for name, moment in moments.items()}


def _grouped(found: Mapping[str, Layer], memory: int) -> Iterator[tuple[str, ...]]:
    group: list[str] = []
    held = 0
    for name, layer in found.items():
        if group and held + layer.bytes > memory:
            yield tuple(group)
            group, held = [], 0
        group.append(name)
        held += layer.bytes
    if group:
        yield tuple(group)
