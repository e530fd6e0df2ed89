"""OLMP: optimisation-based layer-wise magnitude pruning (Li, Qian, Jiang, Lu, Tang; IJCAI 2018). docs/methods/olmp.md.

    min  remaining weights   s.t.  accuracy loss <= delta        over c_l, one for each layer l
    t_l = mu_l + c_l sigma_l,  mu and sigma of |w| over the layer's original weights and bias that are not zero

Pruning is a negatively correlated search for c on one batch or a few. Adjusting is training, in which a layer's mask
follows t_l with hysteresis (0.9, 1.1), and pruned weights still receive gradients. The two alternate for `prune_epochs`
epochs; after them training continues with fixed masks.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from opq.base.calls import warn
from opq.compression.result import Result
from opq.compression.roles import Role
from opq.errors import SearchError, SearchWarning
from opq.methods import ncs
from opq.methods.coded import on_grid
from opq.methods.job import Job
from opq.methods.options import SizedByItself
from opq.methods.pruning import hysteresis
from opq.methods.surgery import Layer, Surgery
from opq.methods.training_copy import Live
from opq.models.observe import evaluating
from opq.training.objective import inputs_and_targets, run, scores

INFEASIBLE = 1.1
"""Fitness of a candidate that loses too much accuracy: above every remaining fraction, which is at most 1."""
EDGE = 0.02
"""A threshold this close to the upper bound, as a fraction of the interval, causes a warning. A choice: the search
hardly ever reaches the bound exactly. (LeNet-5's first matrix was held back at c = 20.)"""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Olmp(SizedByItself):
    """`olmp`: thresholds of layers by negatively correlated search, alternating with training; then more training.

    Args:
        data: batches of (inputs, targets) in an iterable that can be read once an epoch, or a function of the epoch
            that gives one. Needed.
        evaluate: not used: the accuracy is measured on `search_batches`.
        checkpoint: a path from which an interrupted training continues.
        epochs: passes over `data` in all.
        prune_epochs: how many of these, the first ones, begin with a search and prune.
        lr: learning rate.
        distill: weight of a teacher's outputs in the loss, 0 to 1.
        teacher: the module whose outputs are distilled; None: the original network.
        optimizer: `"sgd"` or `"adam"`.
        momentum: of SGD.
        weight_decay: of SGD.
        delta: accuracy that a candidate may lose on the search's batches, a fraction.
        search_batches: batches on which the accuracy is measured; a smaller `delta` needs more of them.
        bounds: of every c, in standard deviations of the weights' magnitudes.
        population: of the search.
        evaluations: of each search.
        sigma: initial deviation of the search, divided by 10 at the start and again at two thirds of `prune_epochs`.
        gamma: for `conv` and `linear`: a layer's mask follows c in a step with probability 1 / (1 + gamma step).
        bits: a kept weight in the file has 2^(bits-1) - 1 levels on each side of zero.

    Raises:
        OptionError: a value has no meaning.
    """

    name: ClassVar[str] = "olmp"
    sized_by: ClassVar[str] = "delta=, bounds= and prune_epochs="

    epochs: int = 32
    prune_epochs: int = 16
    lr: float = 0.01
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    delta: float = 0.08
    search_batches: int = 1
    bounds: tuple[float, float] = (0.0, 20.0)
    population: int = 10
    evaluations: int = 1600
    sigma: float = 50.0
    gamma: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"conv": 2e-5, "linear": 2e-4})
    bits: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("epochs", 1, math.inf, whole=True)
        self._number("prune_epochs", 1, self.epochs, whole=True)
        self._number("momentum", 0, 1)
        self._number("weight_decay", 0, math.inf)
        self._number("delta", 0, 1)
        self._number("search_batches", 1, math.inf, whole=True)
        self._check("bounds", _is_interval(self.bounds), "(low, high) with low < high")
        self._number("population", 2, math.inf, whole=True)
        self._number("evaluations", self.population, math.inf, whole=True)
        self._number("sigma", 0, math.inf)
        self._number("bits", 2, 15, whole=True)
        kinds = isinstance(self.gamma, Mapping) and set(self.gamma) == {"conv", "linear"}
        self._check("gamma", kinds and all(_is_positive(g) for g in self.gamma.values()), "numbers for conv and linear")
        self._check("optimizer", self.optimizer in ("sgd", "adam"), "'sgd' or 'adam'")

    def run(self, job: Job) -> Result:
        return olmp(job)


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and value >= 0


def _is_interval(value: Any) -> bool:
    pair = isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, (int, float)) for v in value)
    return pair and bool(value[0] < value[1])


@dataclasses.dataclass(eq=False)
class Search:
    """Negatively correlated search for the thresholds of all layers, at the start of an epoch."""

    live: Live
    surgeries: Mapping[str, list[tuple[str, Surgery]]]
    """For each layer, the names and masks of its tensors."""
    job: Job
    settings: Olmp

    def __call__(self, epoch: int) -> None:
        """Sets every layer's c to the best one found on this epoch's first batches.

        Raises:
            SearchError: the first search finds no c that meets the accuracy constraint.
        """
        before = torch.get_rng_state()
        data: Any = self.settings.data
        some = itertools.islice(data(epoch) if callable(data) else data, self.settings.search_batches)
        fitness = Fitness(self, [inputs_and_targets(batch) for batch in some])
        torch.set_rng_state(before)
        layers = [group[0][1].layer for group in self.surgeries.values()]
        start = np.array([max(float(layer.c), self.settings.bounds[0]) for layer in layers])
        late = epoch >= 2 * self.settings.prune_epochs // 3
        found = ncs.search(
            fitness,
            start,
            sigma=self.settings.sigma / (100 if late else 10),
            bounds=self.settings.bounds,
            population=self.settings.population,
            evaluations=self.settings.evaluations,
            rng=np.random.default_rng([self.job.options.seed, epoch]),
            progress=lambda done: self.job.options.progress("olmp search", done, self.settings.evaluations),
        )
        if found.fitness < INFEASIBLE:
            for layer, c in zip(layers, found.c, strict=True):
                layer.c.fill_(c)
        elif epoch == 0:
            raise SearchError(
                "olmp: no threshold meets the accuracy constraint",
                got=f"every one of {found.evaluations} loses more than delta={self.settings.delta:g} on its batches",
                wanted="a larger delta, more evaluations or a wider population",
            )


class Fitness:
    """The remaining fraction of the weights at `c`, or 1.1 if the accuracy on the batches falls by more than delta."""

    def __init__(self, search: Search, batches: Sequence[tuple[Any, torch.Tensor]]):
        self.search, self.batches = search, batches
        self.w = {n: search.live.plain(n) for group in search.surgeries.values() for n, _ in group}
        self.size = sum(w.numel() for w in self.w.values())
        self.before = self._accuracy({n: s.mask for group in search.surgeries.values() for n, s in group})

    @torch.no_grad()
    def _accuracy(self, masks: Mapping[str, torch.Tensor]) -> float:
        """The accuracy on the batches, in inference mode, with these masks."""
        surgeries = {n: s for group in self.search.surgeries.values() for n, s in group}
        held = {n: s.mask for n, s in surgeries.items()}
        for n, s in surgeries.items():
            s.mask = masks[n]
        with evaluating(self.search.live.model) as model:
            right = [scores(run(model, inputs)).argmax(-1) == targets for inputs, targets in self.batches]
        for n, s in surgeries.items():
            s.mask = held[n]
        return float(torch.cat([r.flatten() for r in right]).double().mean())

    @torch.no_grad()
    def __call__(self, c: ncs.Vector) -> float:
        by_layer = dict(zip(self.search.surgeries, c, strict=True))
        masks = {
            n: hysteresis(s.mask, self.w[n], s.layer.threshold(by_layer[layer]))
            for layer, group in self.search.surgeries.items()
            for n, s in group
        }
        if self._accuracy(masks) < self.before - self.search.settings.delta:
            return INFEASIBLE
        return sum(int(torch.count_nonzero(m)) for m in masks.values()) / self.size


def olmp(job: Job) -> Result:
    """OLMP, with the kept weights on a symmetric grid of `bits` bits.

    Raises:
        DataError: no data, or data that does not fit the model.
        SearchError: no threshold meets the accuracy constraint.
    """
    settings = job.settings
    assert isinstance(settings, Olmp)
    live = job.live()
    layers, roles = group_layers(job.roles)
    surgeries = {prefix: _surgeries(live, names, settings) for prefix, names in layers.items()}
    everything = dict(itertools.chain.from_iterable(surgeries.values()))
    live.put(everything)
    search = Search(live, surgeries, job, settings)
    data: Any = settings.data

    def batches(epoch: int) -> Iterable[Any]:
        if epoch < settings.prune_epochs:
            search(epoch)
        for surgery in everything.values():
            surgery.frozen = epoch >= settings.prune_epochs
        found: Iterable[Any] = data(epoch) if callable(data) else data
        return found

    job.train(live, "olmp", _optimizer(live, settings), batches)
    _warn_at_the_bound(surgeries, settings)
    coded = {name: on_grid(name, live.seen(name), settings.bits, least=1) for name in everything}
    return job.result(coded, job.kept(live), roles)


def _warn_at_the_bound(surgeries: Mapping[str, list[tuple[str, Surgery]]], settings: Olmp) -> None:
    """Warns of layers that may have kept weights only because c reached its bound; after training with an L1 penalty
    the best c can be 30 and more."""
    low, high = settings.bounds
    held = {
        name: c
        for name, group in surgeries.items()
        if (c := float(group[0][1].layer.c)) > high - EDGE * (high - low) and any(s.mask.any() for _, s in group)
    }
    if held:
        found = ", ".join(f"{name} ({c:.1f})" for name, c in held.items())
        warn(
            f"olmp: thresholds stand at the upper bound of c, {high:g}, and more could go: {found}. Raise bounds=.",
            SearchWarning,
        )


def _optimizer(live: Live, settings: Olmp) -> torch.optim.Optimizer:
    parameters = live.model.parameters()
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, settings.lr)
    return torch.optim.SGD(parameters, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)


def group_layers(roles: Iterable[Role]) -> tuple[dict[str, list[str]], tuple[Role, ...]]:
    """The names in each layer, a weight and its bias; and the roles, with these biases compressed as in the paper."""
    roles = tuple(roles)
    floating = (r for r in roles if r.spec.dtype.is_floating_point and r.spec.kind == "parameter")
    biases = {r.name for r in floating if r.action == "keep"}
    layers, out = {}, {r.name: r for r in roles}
    for role in roles:
        if role.action == "compress":
            bias = _bias_of(role.name)
            layers[role.name] = [role.name, *([bias] if bias in biases else [])]
            if bias in biases:
                out[bias] = dataclasses.replace(out[bias], action="compress", reason="bias, pruned with its layer")
    return layers, tuple(out.values())


def _bias_of(name: str) -> str:
    return f"{name.removesuffix('weight')}bias" if name.endswith("weight") else ""


def _surgeries(live: Live, names: list[str], settings: Olmp) -> list[tuple[str, Surgery]]:
    tensors = [live.plain(name) for name in names]
    kind = "conv" if tensors[0].dim() > 2 else "linear"
    layer = Layer(tensors, float(settings.gamma[kind]))
    return [(n, Surgery(w, layer, leads=k == 0)) for k, (n, w) in enumerate(zip(names, tensors, strict=True))]
