"""Describes one call of a forward before any value is drawn: which arguments, of which kind and shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch

from opq.models.batch import Batch
from opq.probing.making import TEXTS, Maker

Kind = Literal["signal", "series", "tokens", "ones", "places", "zeros", "speech", "standard speech", "mel", "fbank",
               "power", "edges", "adjacency"]  # fmt: skip
_UNBATCHED = ("zeros", "edges", "adjacency")
"""Kinds of which one tensor serves all samples."""
LONG = 1000
"""Frames from which on a spectrogram tells as much as several short inputs."""


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """One argument: `shape` is that of one sample, without the batch dimension.

    Kinds:

    - `signal`: noise of mean 0 and standard deviation 1, resembling images where it has their shape;
    - `series` (length, width): noise that changes slowly along the first dimension;
    - `tokens`: integers from 0 to `below` - 1;
    - `ones`: a mask that hides nothing; `places`: the positions 0, 1, 2 and so on;
    - `speech` (channels, length) or (length,): synthetic recordings; `standard speech`: the same of deviation 1;
    - `mel` (bins, frames) and `fbank` (frames, bins): log-mel spectrograms of speech; `power` (frames, bins): without
      the logarithm.

    Kinds without a batch dimension, one tensor for all samples: `zeros`; `edges`, those of a graph whose nodes are the
    samples; `adjacency`, the matrix of such a graph, each row of sum 1.
    """

    kind: Kind
    shape: tuple[int, ...] = ()
    below: int = 0
    scale: float = 1.0
    """Standard deviation of an `fbank`."""

    @property
    def long(self) -> bool:
        """Whether it is a long spectrogram, of which one sample tells as much as several short inputs."""
        return self.kind in ("mel", "fbank") and max(self.shape) >= LONG

    def draw(self, make: Maker) -> torch.Tensor:
        """Draws values for `make.rows` samples."""
        match self.kind:
            case "tokens":
                return make.tokens(self.below, *self.shape)
            case "ones":
                return torch.ones((make.rows, *self.shape), dtype=torch.long)
            case "places":
                return torch.arange(self.shape[-1]).expand(make.rows, *self.shape).contiguous()
            case "zeros":
                return torch.zeros(self.shape)
            case "edges":
                return make.edges()
            case "adjacency":
                return make.adjacency()
            case "series":
                return make.series(self.shape)
            case "speech" | "standard speech":
                return make.speech(self.shape, standard=self.kind != "speech")
            case "mel":
                return make.mel(*self.shape)
            case "fbank":
                return make.fbank(self.shape, self.scale)
            case "power":
                return make.power(*self.shape)
        return make.signal(self.shape)

    def __str__(self) -> str:
        """Python code that makes two samples, as a pattern that a user can put better values into."""
        sizes = ", ".join(map(str, (2, *self.shape)))
        match self.kind:
            case "tokens":
                return f"torch.randint({self.below}, ({sizes}{',' * (not self.shape)}))"
            case "ones":
                return f"torch.ones({sizes}, dtype=torch.long)"
            case "places":
                return f"torch.arange({self.shape[-1]}).expand({sizes})"
            case "zeros":
                return f"torch.zeros({', '.join(map(str, self.shape))})"
            case "edges":
                return "edge_index"
            case "adjacency":
                return "adjacency"
        return f"torch.randn({sizes})"


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """Positional and keyword arguments of a forward; a mapping among them is passed as a dict."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Form] = dataclasses.field(default_factory=dict)
    dim: int | None = 0
    """Which dimension of the tensors is the batch; None where a batch cannot be divided."""

    @property
    def forms(self) -> Iterator[Form]:
        """All arguments, in the order in which they are drawn."""
        for value in (*self.args, *self.kwargs.values()):
            yield from value.values() if isinstance(value, Mapping) else (value,)

    def rows(self, samples: int) -> int:
        """How many inputs to make for `samples` samples: twice as many short texts, a quarter as many long sounds."""
        first = next(self.forms)
        if any(form.long for form in self.forms):
            return max(2, samples // 4)
        return TEXTS * samples if first.kind == "tokens" and first.shape else samples

    def batch(self, make: Maker) -> Batch:
        """Draws all values, for `self.rows(make.rows)` inputs."""
        make = dataclasses.replace(make, rows=self.rows(make.rows))

        def drawn(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {k: drawn(v) for k, v in value.items()}
            tensor = value.draw(make)
            return tensor.transpose(0, 1) if self.dim == 1 and value.kind not in _UNBATCHED else tensor

        args = tuple(drawn(value) for value in self.args)
        return Batch(args, {k: drawn(v) for k, v in self.kwargs.items()}, dim=self.dim)


Recipe = Callable[[Maker], Batch]
"""Makes the inputs of one candidate."""
