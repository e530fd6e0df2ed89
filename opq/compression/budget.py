"""The loop by which every budget in bytes is met: a number is changed until the bytes it leads to are within a window
below the target.

    a file               bits of all codes -> bytes of the file           secant steps
    a folder             bits of all codes -> bytes of all its files      secant steps; every round is kept on disk
    a sparsity search    log2 of the kept fraction -> bytes of the file   bisection

A size is known only once the file is made, and each round determines the next one. After an interruption the caller
passes the earlier rounds to the same search, which then continues as if it had not been interrupted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

WINDOW = 0.995
"""A size between this fraction of the target and the target is accepted. A choice: half a percent of the bytes for, as
a rule, one to three rounds."""
AIM = 0.998
"""The fraction of the target that a step aims at. A choice: inside the window, with most of it below."""
EDGE = 0.1
"""A secant step stays away from both ends of its interval by this fraction of it. A choice, for safe convergence."""

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Round:
    """The setting and the result of one round."""

    setting: float
    """The number that the search changes; as a rule, a larger one leads to more bytes."""
    bytes: float
    most: bool = False
    """Whether no setting leads to more bytes."""


Step = Callable[["Search", Round | None, Round | None, Round], float]
"""Gives the next setting from the search, the last round within the target, the last one above, and the last of all."""


@dataclasses.dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """The rounds of a search."""

    rounds: tuple[Round, ...]
    chosen: Round | None
    """The round that was accepted, otherwise the largest within the target; None if there is none."""
    made: T | None
    """What the chosen round made; None if that was in an earlier run."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """A target, and how it is approached."""

    target: float
    """The largest number of bytes that is allowed."""
    least: float
    """The smallest setting."""
    rounds: int
    """The most rounds."""
    step: Step
    """`by_line` or `by_halves`."""
    window: float = WINDOW

    def run(
        self,
        make: Callable[[float, Sequence[Round]], tuple[Round, T]],
        first: Callable[[], float],
        before: Sequence[Round] = (),
    ) -> Found[T]:
        """Makes rounds until one is accepted or none is left to try; only what the best one made is kept.

        Args:
            make: makes the round of a setting, given the rounds before it.
            first: gives the setting of the first round; called only if there are no rounds yet.
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
        """The setting of the next round; None if the last one is accepted, or nothing is left to try."""
        last = done[-1]
        if self.good(last) or (not self.fits(last) and last.setting <= self.least) or len(done) >= self.rounds:
            return None
        below = next((one for one in reversed(done) if self.fits(one)), None)
        above = next((one for one in reversed(done) if not self.fits(one)), None)
        setting = max(self.step(self, below, above, last), self.least)
        return None if setting == last.setting else setting

    def fits(self, one: Round) -> bool:
        """Whether a round is within the target."""
        return one.bytes <= self.target

    def good(self, one: Round) -> bool:
        """Whether a round is accepted: in the window, or below it if no setting leads to more bytes."""
        return self.fits(one) and (one.bytes >= self.window * self.target or one.most)

    def chosen(self, done: Sequence[Round]) -> Round | None:
        """The last round if it is accepted, otherwise the largest within the target; None if there is none."""
        if done and self.good(done[-1]):
            return done[-1]
        return max(filter(self.fits, done), key=lambda one: (one.bytes, -one.setting), default=None)


def by_line(search: Search, below: Round | None, above: Round | None, last: Round) -> float:
    """A secant step, for settings in bits. Until there are rounds on both sides of the target, the bytes beside the
    codes are taken as constant.

    That assumption alone would let sizes oscillate where those bytes depend much on the bits.
    """
    aim = AIM * search.target
    if below is None or above is None:
        return 8 * (aim - (last.bytes - last.setting / 8))
    share = (aim - below.bytes) / (above.bytes - below.bytes)
    return below.setting + min(max(share, EDGE), 1 - EDGE) * (above.setting - below.setting)


def by_halves(search: Search, below: Round | None, above: Round | None, last: Round) -> float:
    """Bisection: first the least setting, then halfway between the last rounds within and above the target."""
    if below is None or above is None:
        return search.least
    return (below.setting + above.setting) / 2
