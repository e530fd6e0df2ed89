"""CLIP-Q: in-parallel pruning and quantization (Tung and Mori, CVPR 2018 and TPAMI 2020). docs/methods/clipq.md.

    before training, for each layer i:             min over theta_i = (p_i, b_i) of  eps(theta) - lambda c_i(theta_i)
    in every step of training, for every layer:    clip, partition, quantize (opq.methods.clip)

eps is the error on a subset of the training data, c_i the bits saved in layer i divided by those of the whole network.
The forward pass uses quantized weights, and gradients update the full-precision weights, so that a clipped weight can
come back.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from opq.compression.result import Result
from opq.errors import OptionError, PatternError
from opq.methods.bayes import Record, minimise
from opq.methods.clip import partition
from opq.methods.coded import Coded, in_table
from opq.methods.job import Job
from opq.methods.options import SizedByItself
from opq.methods.training_copy import Live, error, straight

Theta = Mapping[str, tuple[float, int]]
"""(p, b) by tensor name."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class ClipQ(SizedByItself):
    """`clipq`: weights are quantized in every step of training; (p, b) of each layer by Bayesian optimisation.

    Args:
        data: batches of (inputs, targets) in an iterable that can be read once an epoch, or a function of the epoch
            that gives one. Needed.
        evaluate: the model's score in percent, for the search; None: measured on `subset` batches of `data`.
        checkpoint: a path from which an interrupted search or training continues.
        epochs: passes over `data` with the quantizer in every step.
        lr: learning rate of Adam.
        distill: weight of a teacher's outputs in the loss, 0 to 1.
        teacher: the module whose outputs are distilled; None: the original network.
        theta: (p, b) by tensor name or glob pattern, p the fraction clipped and b the bits; None: found by the search.
        weight: lambda, the increase of the error (a fraction) that is accepted for saving all bits of the network.
        evaluations: how often the error is evaluated for each layer.
        startup: how many of these are at random points, before the Gaussian process is used.
        most_bits: the largest b that is tried.
        subset: how many batches of `data` the error is measured on.

    Raises:
        OptionError: a value has no meaning.
    """

    name: ClassVar[str] = "clipq"
    sized_by: ClassVar[str] = "lambda (weight=) or theta="

    epochs: int = 10
    theta: Theta | None = None
    weight: float = 1.0
    evaluations: int = 24
    startup: int = 8
    most_bits: int = 5
    subset: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("theta", self.theta is None or isinstance(self.theta, Mapping), "a mapping of names to (p, b)")
        self._number("weight", 0, math.inf)
        self._number("evaluations", 1, math.inf, whole=True)
        self._number("startup", 1, math.inf, whole=True)
        self._number("most_bits", 1, 8, whole=True)
        self._number("subset", 1, math.inf, whole=True)

    def run(self, job: Job) -> Result:
        return clipq(job)


class ClipPartitionQuantize(nn.Module):
    """The quantizer in the forward pass, the identity in the backward pass; p = 0 and b = 0 mean no quantization."""

    def __init__(self, p: float, b: int):
        super().__init__()
        self.p, self.b = p, b

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return straight(w, partition(w, self.p, self.b).weights.to(w.dtype)) if self.b else w

    def right_inverse(self, w: torch.Tensor) -> torch.Tensor:
        return w

    def extra_repr(self) -> str:
        return f"p={self.p:.4g}, b={self.b}"


def clipq(job: Job) -> Result:
    """CLIP-Q: the search for `theta` unless it is given, then training with the quantizer in every step.

    Raises:
        DataError: no data, or data that does not fit the model.
        OptionError: `theta` is not (p, b) with 0 <= p < 1 and b from 1 to 8.
        PatternError: a pattern of `theta` matches no tensor, or a tensor has no pattern.
        MissingExtraError: the search needs optuna.
    """
    settings = job.settings
    assert isinstance(settings, ClipQ)
    live = job.live()
    given = None if settings.theta is None else matched(settings.theta, list(job.weights))
    theta = search(job, live, settings) if given is None else given
    live.put({name: ClipPartitionQuantize(*theta[name]) for name in job.weights})
    job.train(live, "clipq", torch.optim.Adam(live.model.parameters(), settings.lr))
    coded = {name: quantized(name, live.plain(name).cpu(), *theta[name]) for name in job.weights}
    return job.result(coded, job.kept(live))


def matched(theta: Theta, names: list[str]) -> dict[str, tuple[float, int]]:
    """`theta` by tensor name, patterns resolved; where several match, the last one counts."""
    for pattern, pair in theta.items():
        if not any(fnmatchcase(name, pattern) for name in names):
            wanted = f"names like {', '.join(names[:5])}"
            raise PatternError(f"theta: pattern {pattern!r} matches no tensor", wanted=wanted)
        _check_pair(pattern, pair)
    found = {name: pair for pattern, pair in theta.items() for name in names if fnmatchcase(name, pattern)}
    missing = [name for name in names if name not in found]
    if missing:
        remedy = "Add a pattern for them."
        raise PatternError("theta: tensors without (p, b)", got=", ".join(missing[:5]), remedy=remedy)
    return found


def _check_pair(pattern: str, pair: Any) -> None:
    fits = isinstance(pair, (tuple, list)) and len(pair) == 2 and 0 <= pair[0] < 1 and pair[1] in range(1, 9)
    if not fits:
        raise OptionError(f"theta[{pattern!r}]", got=repr(pair), wanted="(p, b) with 0 <= p < 1 and b from 1 to 8")


def quantized(name: str, w: torch.Tensor, p: float, b: int) -> Coded:
    """One tensor, quantized as the file will hold it."""
    found = partition(w, p, b)
    values, labels = found.values.numpy(), found.codes.numpy().astype(np.int64) + found.negative
    order = [found.negative, *(k for k in range(len(values)) if k != found.negative)]
    rank = np.argsort(order)
    return in_table(name, w, values[order], rank[labels])


def search(job: Job, live: Live, settings: ClipQ) -> dict[str, tuple[float, int]]:
    """(p, b) of every layer, one layer after the other, with the layers before quantized as found."""
    quantizers = {name: ClipPartitionQuantize(0.0, 0) for name in job.weights}
    live.put(quantizers)
    untrained = dataclasses.replace(settings, epochs=0, lr=0.0, distill=0.0)
    record = Record(job.checkpoint("search.json"), job.signature(untrained))
    every = settings.evaluations * len(quantizers)
    for k, (name, quantizer) in enumerate(quantizers.items()):
        quantizer.p, quantizer.b = minimise(
            functools.partial(_objective, job, live, name, quantizer), name, record,
            evaluations=settings.evaluations, startup=settings.startup, most_bits=settings.most_bits,
            seed=job.options.seed,
            progress=functools.partial(_progress, job, k * settings.evaluations, every),
        )  # fmt: skip
    live.take(seen=False)
    return {name: (quantizer.p, quantizer.b) for name, quantizer in quantizers.items()}


def _objective(job: Job, live: Live, name: str, quantizer: ClipPartitionQuantize, p: float, b: int) -> float:
    """`eps(theta) - lambda c_i(theta)`."""
    settings, w = job.settings, job.weights[name]
    assert isinstance(settings, ClipQ)
    quantizer.p, quantizer.b = p, b
    saved = 32 * w.numel() - stored_bits(w, p, b)
    return eps(job, live, settings) - settings.weight * saved / (32 * sum(v.numel() for v in job.weights.values()))


def _progress(job: Job, before: int, total: int, done: int) -> None:
    job.options.progress("clipq search", before + done, total)


def eps(job: Job, live: Live, settings: ClipQ) -> float:
    """The error, a fraction: from `evaluate` (percent right), or measured on a subset of the data."""
    if settings.evaluate is not None:
        live.model.eval()
        with torch.no_grad():
            right: Any = settings.evaluate(live.model)
        if not isinstance(right, (int, float, torch.Tensor, np.generic)):
            raise OptionError("evaluate= gave no number", got=repr(right), wanted="percent right, 0 to 100")
        return 1 - float(right) / 100
    data: Any = settings.data
    return error(live.model, data(0) if callable(data) else data, settings.subset)


def stored_bits(w: torch.Tensor, p: float, b: int) -> float:
    """Bits of a tensor in the file: the entropy of its codes, and 16 bits for each value of the codebook."""
    counts = torch.bincount((partition(w, p, b).codes.flatten() + 2**b).long()).double()
    counts = counts[counts > 0]
    entropy = torch.special.entr(counts / counts.sum()).sum() / math.log(2)
    return w.numel() * float(entropy) + 16 * ((1 << b) - 1)
