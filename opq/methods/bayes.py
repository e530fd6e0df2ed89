"""Bayesian optimisation of one layer's (p, b): Gaussian process and expected improvement, by optuna.

Each evaluation has its own sampler, seeded by the number of the evaluation and given all earlier results. So a search
that is resumed from its record continues exactly as it would have without the interruption.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from opq.base.atomic import written_aside
from opq.base.process_state import silenced
from opq.errors import CorruptFileError, MismatchError, MissingExtraError

RESUME = "Continue with the weights and options that it began with, or delete it to search anew."

Trial = tuple[float, int, float]
"""p, b, and the value found there."""


@dataclasses.dataclass(eq=False)
class Record:
    """All evaluations so far, by layer; kept in a file if a path is given."""

    path: Path | None
    key: str
    """Identifies what is searched: the record of another search is refused."""
    trials: dict[str, list[Trial]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is None or not self.path.exists():
            return
        try:
            held = json.loads(self.path.read_text())
            key, trials = held["key"], held["trials"]
            self.trials = {n: [(float(p), int(b), float(v)) for p, b, v in ts] for n, ts in trials.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            remedy = "Delete it to search anew."
            raise CorruptFileError(f"the search record {self.path} cannot be read", got=error, remedy=remedy) from error
        if key != self.key:
            raise MismatchError(f"the search record {self.path} is of other weights or options", remedy=RESUME)

    def add(self, layer: str, trial: Trial) -> None:
        """Adds an evaluation and replaces the file."""
        self.trials.setdefault(layer, []).append(trial)
        if self.path is not None:
            with written_aside(self.path) as file:
                file.write(json.dumps({"key": self.key, "trials": self.trials}).encode())


def minimise(
    f: Callable[[float, int], float],
    layer: str,
    record: Record,
    *,
    evaluations: int,
    startup: int,
    most_bits: int,
    seed: int,
    progress: Callable[[int], Any] = lambda done: None,
) -> tuple[float, int]:
    """The (p, b) with the least `f` after `evaluations` in all, including those of the record.

    Args:
        f: the function to minimise over p in [0, 0.99] and b from 1 to `most_bits`.
        startup: the number of first evaluations at random points.

    Raises:
        MissingExtraError: optuna is not installed.
    """
    while len(record.trials.get(layer, [])) < evaluations:
        tried = record.trials.get(layer, [])
        p, b = _ask(tried, most_bits=most_bits, startup=startup, seed=seed + len(tried))
        record.add(layer, (p, b, f(p, b)))
        progress(len(record.trials[layer]))
    p, b, _ = min(record.trials[layer][:evaluations], key=lambda trial: trial[2])
    return p, b


def _ask(tried: Sequence[Trial], *, most_bits: int, startup: int, seed: int) -> tuple[float, int]:
    """The next (p, b) to evaluate. p is searched as -log2(1 - p), the kept fraction in octaves."""
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("method='clipq' searches with optuna", remedy='pip install "opq[methods]"') from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = {
        "octaves": optuna.distributions.FloatDistribution(0.0, 6.64),
        "b": optuna.distributions.IntDistribution(1, most_bits),
    }
    with silenced(optuna.exceptions.ExperimentalWarning):
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, deterministic_objective=True)
    study = optuna.create_study(sampler=sampler)
    for p, b, value in tried:
        params = {"octaves": octaves(p), "b": b}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=value))
    asked = study.ask(space).params
    return 1 - 2.0 ** -asked["octaves"], int(asked["b"])


def octaves(p: float) -> float:
    """`-log2(1 - p)`, within the searched range."""
    return min(max(-math.log2(1 - p), 0.0), 6.64)
