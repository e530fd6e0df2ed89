"""The one loop that meets a budget in bytes: turn a number until what it makes lies in a window below the target.

    a file               bits of all codes -> bytes of the file           along the line through two rounds
    a folder             bits of all codes -> bytes of all its files      the same; every round is on disk
    a sparsity search    octaves of weights kept -> bytes of the file     halfway between two rounds

Sizes are known only once they are made, and each round says where the next one goes. A caller that is interrupted
hands the rounds made before to the same search, and it goes on as if nothing had happened.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

WINDOW = 0.995
"""What is made lies between this fraction of the target and the target."""
AIM = 0.998
"""Where in the window a step aims."""
EDGE = 0.1
"""Part of the way between two rounds that the next one keeps from both."""

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Round:
    """What one try came to."""

    setting: float
    """What was turned; a larger one makes more bytes, as a rule."""
    bytes: float
    most: bool = False
    """Whether no setting makes more."""


Step = Callable[["Search", Round | None, Round | None, Round], float]
"""The next setting by the search, the last rounds within and beyond the target, and the last of all."""


@dataclasses.dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """The rounds of a search."""

    rounds: tuple[Round, ...]
    chosen: Round | None
    """The good round, or else the largest within the target; None where none is."""
    made: T | None
    """What `chosen` made; None where an earlier run did."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """A target and how it is sought."""

    target: float
    """Bytes that may be made."""
    least: float
    """No setting is smaller."""
    rounds: int
    """Tries at most."""
    step: Step
    """`by_line` or `by_halves`."""
    window: float = WINDOW

    def run(
        self,
        make: Callable[[float, Sequence[Round]], tuple[Round, T]],
        first: Callable[[], float],
        before: Sequence[Round] = (),
    ) -> Found[T]:
        """Makes rounds until one is good, or none can be had; of what they made only the best is held.

        Args:
            make: the round of a setting, given those before it.
            first: the setting of the first round, asked for where there is none yet.
            before: rounds of an earlier run.
        """
        done, held = list(before), None
        setting = self.following(done) if done else max(first(), self.least)
        while setting is not None:
            last, made = make(setting, done)
            done.append(last)
            held = made if self.chosen(done) is last else held
            del made
            setting = self.following(done)
        return Found(tuple(done), self.chosen(done), held)

    def following(self, done: Sequence[Round]) -> float | None:
        """The setting of the next round; None where the last one is good, or nothing is left to try."""
        last = done[-1]
        if self.good(last) or (not self.fits(last) and last.setting <= self.least) or len(done) >= self.rounds:
            return None
        below = next((one for one in reversed(done) if self.fits(one)), None)
        above = next((one for one in reversed(done) if not self.fits(one)), None)
        setting = max(self.step(self, below, above, last), self.least)
        return None if setting == last.setting else setting

    def fits(self, one: Round) -> bool:
        """Whether a round is not above the target."""
        return one.bytes <= self.target

    def good(self, one: Round) -> bool:
        """Whether a round needs no better one: in the window, or below it where nothing makes more."""
        return self.fits(one) and (one.bytes >= self.window * self.target or one.most)

    def chosen(self, done: Sequence[Round]) -> Round | None:
        """The last round where it is good, or else the largest within the target; None where none is."""
        if done and self.good(done[-1]):
            return done[-1]
        return max(filter(self.fits, done), key=lambda one: (one.bytes, -one.setting), default=None)


def by_line(search: Search, below: Round | None, above: Round | None, last: Round) -> float:
    """For settings in bits: all but the codes stays as it is; between two rounds, along the line through both.

    By the last one's other bytes alone sizes may swing from round to round, where these depend much on the bits.
    """
    aim = AIM * search.target
    if below is None or above is None:
        return 8 * (aim - (last.bytes - last.setting / 8))
    share = (aim - below.bytes) / (above.bytes - below.bytes)
    return below.setting + min(max(share, EDGE), 1 - EDGE) * (above.setting - below.setting)


def by_halves(search: Search, below: Round | None, above: Round | None, last: Round) -> float:
    """First the least setting, then halfway between what is within the target and what is beyond it."""
    if below is None or above is None:
        return search.least
    return (below.setting + above.setting) / 2
