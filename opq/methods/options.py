"""The options of the published methods: `method_options=` of `opq.compress`, checked before any work."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from torch import nn

from opq.errors import OptionError

Own = TypeVar("Own", bound="Settings")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What all of them share: how to train where they train."""

    epochs: int = 0
    """Passes over `data`, in each stage that trains; 0: nothing is trained."""
    lr: float = 1e-3
    distill: float = 0.0
    """Weight of a teacher's outputs in the loss, 0 to 1."""
    teacher: nn.Module | None = dataclasses.field(default=None, repr=False)
    """Whose; None: the network as it came. What is compressed again is better distilled from the first network."""

    def __post_init__(self) -> None:
        self._number("epochs", 0, math.inf, whole=True)
        self._number("lr", 0, math.inf)
        self._number("distill", 0, 1)
        self._check("teacher", self.teacher is None or isinstance(self.teacher, nn.Module), "a module or None")
        self._check("distill", self.teacher is None or self.distill > 0, "above 0 where a teacher is given")

    def _check(self, name: str, fits: bool, wanted: str) -> None:
        if not fits:
            raise OptionError(f"method_options[{name!r}]", got=repr(getattr(self, name)), wanted=wanted)

    def _number(self, name: str, low: float, high: float, *, whole: bool = False, open_end: bool = False) -> None:
        value, kinds = getattr(self, name), (int,) if whole else (int, float)
        fits = isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high
        end = "" if math.isinf(high) else f" to {'below ' if open_end else ''}{high:g}"
        wanted = f"{'an integer' if whole else 'a number'} from {low:g}{end}"
        self._check(name, fits and not (open_end and value == high), wanted)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pruning(Settings):
    """Of the methods that prune by magnitude first."""

    sparsity: float | None = None
    """Fraction pruned; None: what meets the budget of the file."""
    scope: Literal["tensor", "network"] = "network"
    """The same sparsity in every tensor, or one threshold for the network."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sparsity is not None:
            self._number("sparsity", 0, 1, open_end=True)
        self._check("scope", self.scope in ("tensor", "network"), "'tensor' or 'network'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform(Pruning):
    """`magnitude` and `lamp`: prune, then one uniform grid a tensor. Fine-tune the result with `opq.finetune`."""

    scope: Literal["tensor", "network"] = "tensor"
    bits: int = 4
    """Levels of a kept weight: 2^(bits-1) - 1 on each side of zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("bits", 2, 15, whole=True)
        if self.epochs:
            remedy = "Leave it out, and pass the result to opq.finetune."
            raise OptionError("method_options['epochs']", got=self.epochs, wanted="0", remedy=remedy)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sharing(Pruning):
    """`kmeans`: prune, train, share values by k-means, train the values (Deep Compression)."""

    bits: int = 4
    """2^bits - 1 shared values a tensor, and zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("bits", 1, 8, whole=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProductQuantization(Pruning):
    """`pq`: prune, train, product-quantize, train the codebooks."""

    centroids: int = 256
    """K: 256 gives 8-bit codes."""
    linear: int = 4
    """d for matrices."""
    conv: int = 9
    """d for convolutions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("centroids", 2, 4096, whole=True)
        self._number("linear", 1, 4096, whole=True)
        self._number("conv", 1, 4096, whole=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipQ(Settings):
    """`clipq`: clip, partition, quantize in every step of training; (p, b) a layer by Bayesian optimisation."""

    epochs: int = 10
    theta: Mapping[str, tuple[float, int]] | None = None
    """(p, b) by tensor name or glob pattern; None: searched."""
    weight: float = 1.0
    """lambda: points of error (in fractions) that saving the whole network is worth."""
    evaluations: int = 24
    """Of the error, per layer."""
    startup: int = 8
    """Of these, drawn at random before the Gaussian process is asked."""
    most_bits: int = 5
    subset: int = 16
    """Batches of `data` that the error is measured on, where no `evaluate` is given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("theta", self.theta is None or isinstance(self.theta, Mapping), "a mapping of names to (p, b)")
        self._number("weight", 0, math.inf)
        self._number("evaluations", 1, math.inf, whole=True)
        self._number("startup", 1, math.inf, whole=True)
        self._number("most_bits", 1, 8, whole=True)
        self._number("subset", 1, math.inf, whole=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Olmp(Settings):
    """`olmp`: thresholds a layer by negatively correlated search, prune and adjust alternating, then retraining."""

    epochs: int = 32
    """In all; a search at the start of each while pruning goes on."""
    prune_epochs: int = 16
    lr: float = 0.01
    """Of SGD with momentum 0.9."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    delta: float = 0.08
    """Accuracy that a candidate may lose on its batches, a fraction."""
    search_batches: int = 1
    """Batches that the accuracy is measured on: the more, the smaller a `delta` can be told from none."""
    bounds: tuple[float, float] = (0.0, 20.0)
    """Of every c."""
    population: int = 10
    evaluations: int = 1600
    """Of a search."""
    sigma: float = 50.0
    """First deviation of the search, divided by 10 at the start and again at two thirds of `prune_epochs`."""
    gamma: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"conv": 2e-5, "linear": 2e-4})
    """A layer's mask follows c in a step with probability 1 / (1 + gamma step)."""
    bits: int = 6
    """Levels of a kept weight in the file: 2^(bits-1) - 1 on each side of zero."""
    optimizer: Literal["sgd", "adam"] = "sgd"

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


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and value >= 0


def _is_interval(value: Any) -> bool:
    pair = isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, (int, float)) for v in value)
    return pair and bool(value[0] < value[1])


def read(kind: type[Own], given: Any) -> Own:
    """The settings that `method_options=` stands for: a mapping of fields, an instance, or None for the defaults."""
    if isinstance(given, kind):
        return given
    known = {f.name for f in dataclasses.fields(kind)}
    if given is not None and not isinstance(given, Mapping):
        raise OptionError("method_options= is not understood", got=type(given).__name__, wanted="a mapping")
    unknown = sorted(set(given or {}) - known)
    if unknown:
        raise OptionError("method_options= has unknown names", got=", ".join(unknown), wanted=", ".join(sorted(known)))
    return kind(**(given or {}))
