"""What a source of weights is: tensors by name, read one at a time, and perhaps the model that they belong to."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from opq.base import tables
from opq.base.tables import Column, counted, printable
from opq.errors import EmptyModelError, MismatchError, SourceError

Kind = Literal["parameter", "buffer"]
Origin = Literal["module", "state_dict", "file", "folder", "hf", "timm", "torchvision", "demo"]


@dataclasses.dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape and element type of one tensor, without its values.

    For a bare state dict, `kind` is a guess: statistics of BatchNorm and integers are buffers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: Kind = "parameter"
    like: str | None = None
    """The first name with the same storage, offset, shape and stride, to which this name is tied."""
    exact: str = ""
    """Why it must be kept bit for bit, in words; empty if it may be compressed."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.size * self.dtype.itemsize


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class InputHint:
    """What is known about a model's input; what is unknown is None.

    A module of any class may provide it as an attribute `input_hint`.
    """

    modality: Literal["image", "text"]
    image_size: tuple[int, int, int] | None = None
    """Channels, height and width of one image."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    """For each channel, for pixels from 0 to 1: the model's input is (pixels - mean) / std."""
    vocabulary: int | None = None
    """Token ids are below this."""
    tokens: int | None = None
    """The longest text in tokens."""
    token_types: int | None = None
    pad: int | None = None
    bos: int | None = None
    eos: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BatchNormNames:
    """The names of the vectors of one BatchNorm, all of the same length; `eps` is None if there is no model."""

    prefix: str
    running_mean: str
    running_var: str
    weight: str | None = None
    bias: str | None = None
    num_batches_tracked: str | None = None
    eps: float | None = None


_COLUMNS = (Column("tensor", least=24), Column("shape"), Column("type"), Column("kind"), Column("tied to", least=12))


def _cells(spec: TensorSpec) -> tuple[str, ...]:
    shape = "x".join(map(str, spec.shape)) or "scalar"
    return (printable(spec.name), shape, str(spec.dtype).removeprefix("torch."), spec.kind, printable(spec.like or ""))


_S = TypeVar("_S", bound="Source")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Source:
    """Weights to compress. `read` gives one tensor that is not tied to another; a model is made by `build` only.

    A source made from files holds no tensor in memory between two calls of `tensor`.
    """

    label: str
    origin: Origin
    specs: tuple[TensorSpec, ...]
    """Every tensor, in state-dict order (in files: shard by shard, in the order on disk)."""
    read: Callable[[str], Tensor]
    make: Callable[[], nn.Module] | None = None
    no_model: str = "it is bare weights"
    """If `make` is None, the reason why there is no live model."""
    folder: Path | None = None
    """A folder in Hugging Face layout whose other files (config, tokenizer) belong to the model."""
    files: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    """For sources made from files: the file that holds each tensor."""
    ignored: tuple[str, ...] = ()
    """What the source contains but a compression leaves out: entries that are not tensors (counters, settings), notes
    in a file's metadata, tensors outside of the state dict or that the model does not load."""
    inputs: tuple[Path, ...] = ()
    """Every file and folder that the weights are read from; no output may replace one."""
    trusted: bool = False
    """Whether Python code in the model's folder may be run: the user passed `trust_remote_code=True`."""
    hint: Callable[[], InputHint | None] = dataclasses.field(default=lambda: None, repr=False)

    @classmethod
    def over(cls: type[_S], source: Source, **own: Any) -> _S:
        """A source of this class that is another one in all that `own` does not give."""
        return cls(**{f.name: getattr(source, f.name) for f in dataclasses.fields(Source)} | own)

    @cached_property
    def by_name(self) -> Mapping[str, TensorSpec]:
        """The specs by name."""
        return {spec.name: spec for spec in self.specs}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors."""
        return tuple(spec.name for spec in self.specs)

    def __repr__(self) -> str:
        return f"<opq.Source {self.label} ({self.origin}): {counted(len(self), 'tensor')}, {self.elements:,} weights>"

    def __str__(self) -> str:
        """One row a tensor, as wide as the terminal."""
        return "\n".join((*tables.lines(_COLUMNS, map(_cells, self), tables.width_of_output()), repr(self)[1:-1]))

    def _repr_html_(self) -> str:
        return tables.html(_COLUMNS, map(_cells, self), total=len(self)) + f"<p>{escape(repr(self)[1:-1])}</p>"

    def __iter__(self) -> Iterator[TensorSpec]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def tensor(self, name: str) -> Tensor:
        """The values of one tensor: on the CPU, contiguous, without gradient; it may share the source's memory.

        Raises:
            MismatchError: the source has no such tensor.
            CorruptSourceError: its file can no longer be read.
        """
        if name not in self.by_name:
            raise MismatchError(f"no tensor {name!r} in {self.label}", wanted=f"one of its {len(self)} names")
        values = self.read(self.by_name[name].like or name).detach()
        return values.resolve_conj().resolve_neg().cpu().contiguous()

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors at once; tied names share one object. This takes memory for the whole model."""
        held: dict[str, Tensor] = {}
        for spec in self.specs:
            held[spec.name] = held[spec.like] if spec.like is not None else self.tensor(spec.name)
        return held

    @property
    def buildable(self) -> bool:
        """Whether the source has a model that can be built (which may still fail)."""
        return self.make is not None

    @cached_property
    def model(self) -> nn.Module | None:
        """The live model: the user's own module, or one that is built at the first access; None for bare weights."""
        return None if self.make is None else self.make()

    def build(self) -> nn.Module:
        """The live model; raises `SourceError` if there is none."""
        if self.model is None:
            remedy = "Pass the torch.nn.Module itself."
            raise SourceError(f"no model can be built from {self.label}", got=self.no_model, remedy=remedy)
        return self.model

    @cached_property
    def input_hint(self) -> InputHint | None:
        """What is known about the model's input, or None."""
        return self.hint()

    @property
    def elements(self) -> int:
        """Elements of the floating-point tensors, tied tensors counted once."""
        return sum(s.size for s in self.specs if s.like is None and s.dtype.is_floating_point)

    @property
    def bytes(self) -> int:
        """Bytes of the tensors, tied tensors counted once."""
        return sum(s.nbytes for s in self.specs if s.like is None)

    @cached_property
    def batchnorms(self) -> Mapping[str, BatchNormNames]:
        """The BatchNorm layers, by prefix, found by the names of their running statistics."""
        live = self.model if self.origin in ("module", "timm", "torchvision", "demo") else None
        modules = {} if live is None else dict(live.named_modules())
        found: dict[str, BatchNormNames] = {}
        for name in self.names:
            if name == "running_mean" or name.endswith(".running_mean"):
                prefix = name[: -len("running_mean")].removesuffix(".")
                group = _batchnorm(prefix, self.by_name, getattr(modules.get(prefix), "eps", None))
                found |= {prefix: group} if group is not None else {}
        return found


def _batchnorm(prefix: str, specs: Mapping[str, TensorSpec], eps: float | None) -> BatchNormNames | None:
    """The BatchNorm under this prefix; None if its vectors are tied, not floating point or of different lengths."""
    dot = f"{prefix}." if prefix else ""
    names = {f: f"{dot}{f}" for f in ("running_mean", "running_var", "weight", "bias") if f"{dot}{f}" in specs}
    members = [specs[name] for name in names.values()]
    whole = "running_var" in names and len({m.shape for m in members}) == 1 and len(members[0].shape) == 1
    if not whole or any(m.like is not None or not m.dtype.is_floating_point for m in members):
        return None
    if (counter := f"{dot}num_batches_tracked") in specs:
        names["num_batches_tracked"] = counter
    return BatchNormNames(prefix=prefix, eps=None if eps is None else float(eps), **names)


_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_LEARNED = {"weight", "weights", "bias", "biases", "gamma", "beta", "gain", "scale", "norm", "g", "b", "u", "v"}
"""Words of which the last part of a one-dimensional parameter's name contains at least one."""
_TABLE = re.compile(r"(.*_)?(masks?|inv_freqs?|freqs?(_cis)?|(sin|cos)(_cached)?|sinusoids?|pe|anchors)")
"""The last part of the name of a table that is computed, not learned: masks, frequencies, positions."""


def guess_kinds(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The specs of a bare state dict with `kind` guessed from types and names.

    Buffers are statistics, integers and booleans, computed tables, and vectors whose names are not those of weights,
    biases and norms: rotary frequencies or noise schedules, say, whose small values a grid would turn into zeros.
    """
    return tuple(dataclasses.replace(s, kind="buffer") if _is_buffer(s) else s for s in specs)


def _is_buffer(spec: TensorSpec) -> bool:
    last = spec.name.rpartition(".")[2]
    if not spec.dtype.is_floating_point or last in _STATISTICS:
        return True
    unlike = len(spec.shape) == 1 and not any(word.rstrip("0123456789") in _LEARNED for word in last.lower().split("_"))
    return unlike or _TABLE.fullmatch(last) is not None


def checked(source: Source) -> Source:
    """The source itself, if a file can hold what it says.

    Raises:
        EmptyModelError: it has no floating-point element.
        SourceError: a file cannot hold a name or a shape.
    """
    for spec in source.specs:
        _check_spec(spec, source.label)
    if source.elements == 0:
        raise EmptyModelError(f"{source.label} holds no weights", got=f"{len(source)} tensors, none floating point")
    return source


LONGEST_NAME = 4096
"""Characters of the longest name of a tensor. A choice, within what an index can hold (`format_v1.most_text`)."""
_LARGEST_AXIS = 1 << 40
"""One more than the longest axis that a file can hold: `format_v1.LONGEST_NUMBER` bits."""


def _check_spec(spec: TensorSpec, label: str) -> None:
    """Raises `SourceError` if a file cannot hold the tensor."""
    fact = f"{label}: tensor {spec.name[:80]!r}"
    if len(spec.name) > LONGEST_NAME:
        raise SourceError(f"{fact}...: its name is too long", got=f"{len(spec.name)} characters", wanted=LONGEST_NAME)
    try:
        spec.name.encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"{fact}: its name is no text", got=error.reason, remedy="Rename it.") from error
    if any(axis >= _LARGEST_AXIS for axis in spec.shape):
        raise SourceError(f"{fact}: its shape is beyond all bounds", got=spec.shape, wanted=f"axes < {_LARGEST_AXIS}")
