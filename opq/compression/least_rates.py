"""From which rate on a trellis pays for each tensor, tried no further down than a plan asks.

Most tensors of a plan have more bits than the highest rate at which grid and trellis are compared, so that one
comparison is enough for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from opq.base.pool import torch_threads
from opq.base.stages import stage


class LeastRates(Mapping[str, float]):
    """The rate on a plain grid, in bits per weight, from which on each tensor is on a trellis; infinite if on none."""

    def __init__(self, names: Collection[str], tried: Sequence[float], pays: Callable[[str, float], bool]):
        """Compares nothing yet.

        Args:
            names: the tensors that may be on a trellis.
            tried: rates at which grid and trellis are compared, falling, as long as the trellis wins.
            pays: whether the trellis wins for a tensor at a rate; asked once for each.
        """
        self._names, self._tried, self._pays = frozenset(names), tuple(tried), pays
        self._known: dict[tuple[str, float], bool] = {}

    @classmethod
    def of(cls, least: Mapping[str, float]) -> LeastRates:
        """Rates that are known."""
        found = cls(least, sorted(set(least.values()), reverse=True), lambda name, rate: rate >= least[name])
        found._known = {(name, rate): rate >= least[name] for name in least for rate in found._tried}
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names))

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> float:
        return self._least(name, -math.inf)

    def reached(self, name: str, rate: float) -> bool:
        """Whether a tensor that has this rate on a plain grid is on a trellis."""
        least = self._least(name, rate) if self._matters(rate) else math.inf
        return math.isfinite(least) and least <= rate

    def look(self, rates: Mapping[str, float]) -> None:
        """Makes the comparisons that `reached` will need for these rates, in parallel; of tensors in this mapping."""
        names = self._names.intersection(rates)
        lacking = [name for name in names if self._matters(rates[name]) and self._next(name, rates[name])[1]]
        if lacking:
            with stage("curves"), torch_threads() as threads:
                for _ in threads.ordered(lambda name: self._least(name, rates[name]), lacking):
                    pass

    def without(self, names: Collection[str]) -> LeastRates:
        """The other tensors, whose comparisons are used again."""
        rest = LeastRates(self._names.difference(names), self._tried, self._pays)
        rest._known = self._known
        return rest

    def _matters(self, rate: float) -> bool:
        """Whether any tensor may be on a trellis at this rate."""
        return bool(self._tried) and rate >= self._tried[-1]

    def _least(self, name: str, enough: float) -> float:
        """The least rate; an upper bound of it that is not above `enough`, where one is found before."""
        if name not in self._names:
            raise KeyError(name)
        least, lacking = self._next(name, enough)
        while lacking is not None:
            self._known[name, lacking] = self._pays(name, lacking)
            least, lacking = self._next(name, enough)
        return least

    def _next(self, name: str, enough: float) -> tuple[float, float | None]:
        """`_least` as far as it is known, and the rate at which to compare next; None where that is enough."""
        least = math.inf
        for rate in self._tried:
            if math.isfinite(least) and least <= enough:
                break
            if (name, rate) not in self._known:
                return least, rate
            if not self._known[name, rate]:
                break
            least = rate
        return least, None


NEVER = LeastRates.of({})
"""Of a problem of which all tensors are on plain grids."""
