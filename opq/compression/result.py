"""What a compression returns: the Plan, the file, and reports about them.

`Compressed` is what a file in memory (`Result`) and a folder on disk (`opq.streaming.Streamed`) have in common.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from opq.base.atomic import refuse_inputs
from opq.base.tables import counted
from opq.compression.shortfall import Shortfall
from opq.file.base import Base
from opq.file.reader import Reader
from opq.file.writer import Packed
from opq.plan import Plan
from opq.report.accounting import Nominal, nominal
from opq.report.table import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from opq.report.figures import Figures
    from opq.report.plots import Kind


class _Codes(Mapping[str, torch.Tensor]):
    """The codes by name; each tensor is decoded when it is asked for."""

    def __init__(self, reader: Reader, names: tuple[str, ...]):
        self._reader, self._names = reader, names

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        return torch.from_numpy(self._reader.codes(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Compressed(abc.ABC):
    """A compressed model and its accounting, in memory or on disk."""

    plan: Plan
    label: str
    """What was compressed."""
    elements: int
    """Elements of the source's floating-point tensors, tied tensors counted once."""
    source_bytes: int
    """Bytes of the source's tensors, tied tensors counted once."""
    shortfall: Shortfall | None = None
    """Why less than 99.5 % of the budget is used; None if that much is used, if no budget was given, and for the other
    published methods, whose sizes change in steps."""
    left_out: tuple[str, ...] = ()
    """What the source contains but the file does not: settings, metadata, tensors that its model does not load."""

    @property
    def basis(self) -> str:
        """What sensitivities and codes are based on: a probe of the model, or the weights alone, and why."""
        return self.plan.basis

    @property
    @abc.abstractmethod
    def bytes(self) -> int:
        """Bytes of all that was or will be written, including headers."""

    @property
    @abc.abstractmethod
    def sizes(self) -> Mapping[str, int]:
        """Bytes of each tensor's payload; 0 for shared tensors."""

    @property
    def bits(self) -> float:
        """Bits per floating-point element of the source, counting all bytes."""
        return 8 * self.bytes / self.elements

    @property
    def ratio(self) -> float:
        """Bytes of the source's tensors / bytes of all that is written: the true compression ratio."""
        return self.source_bytes / self.bytes

    def report(self) -> Report:
        """A table by rich with a row for each tensor: what happens to it, why, and what it costs."""
        return Report(plan=self.plan, sizes=self.sizes, densities=self._densities, title=self._headline,
                      notes=self._notes)  # fmt: skip

    @property
    def _notes(self) -> tuple[str, ...]:
        """The sentences below the table."""
        basis = (f"By {self.basis}.",) if self.basis else ()
        return (*basis, f"Left out: {', '.join(self.left_out)}.") if self.left_out else basis

    @property
    def _densities(self) -> Mapping[str, float] | None:
        """Measured fractions of codes that are not zero; None if the plan's predictions are shown instead."""
        return None

    @property
    def _headline(self) -> str:
        size = f"{self.bytes:,} bytes, {self.bits:.3f} bits per weight, {self.ratio:.2f}x smaller"
        short = "" if self.shortfall is None else f". {self.shortfall}"
        return (
            f"{self.label}: {size}, method {self.plan.method!r}, "
            f"{counted(len(self.plan.compressed), 'tensor')} compressed{short}"
        )

    def __repr__(self) -> str:
        return f"<opq.{type(self).__name__} {self._headline}>"

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Result(Compressed):
    """A compressed model: its plan and its file, still in memory.

    Everything here is read from the bytes of the file, so that it shows exactly what `save` writes.
    """

    packed: Packed
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Wall-clock seconds of each stage of the compression, in their order; not part of the file."""
    base: Base | None = None
    """The network to which the tensors are differences; None if they are weights."""
    inputs: tuple[Path, ...] = ()
    """Files and folders from which the weights were read; `save` does not replace them."""

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone, for copies and pickles."""
        packed = self.packed
        plain = dataclasses.replace(packed, sizes=dict(packed.sizes), digests=dict(packed.digests))
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return fields | {"packed": plain, "seconds": dict(self.seconds)}

    @functools.cached_property
    def reader(self) -> Reader:
        """The file, opened from memory."""
        return Reader(self.packed, base=self.base)

    @property
    def bytes(self) -> int:
        """Bytes of the file, including the header."""
        return self.packed.size

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of each tensor's payload; 0 for shared tensors."""
        return self.packed.sizes

    @functools.cached_property
    def nominal(self) -> Nominal:
        """The paper's accounting: sparsity, bits per kept weight, and ratio, of compressed tensors only and without the
        cost of positions."""
        return nominal(self.plan, self.codes)

    @property
    def codes(self) -> Mapping[str, torch.Tensor]:
        """The integer codes of the compressed tensors by name: int16, in the tensors' shapes, decoded on access."""
        return _Codes(self.reader, tuple(t.name for t in self.plan.compressed))

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor as it will be decoded from the file, in the source's dtype."""
        return self.reader.tensor(name)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The dense state dict that loading the file will give; tied names share one tensor."""
        return self.reader.state_dict()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a temporary file, verifies it by decoding, and renames it; an existing file stays until then.

        Raises:
            WriteError: the file could not be written or verified; it is removed.
            OptionError: `path` is what was compressed.
        """
        refuse_inputs(path, self.inputs)
        self.packed.write(path)

    @functools.cached_property
    def _densities(self) -> dict[str, float]:
        """The fraction of codes of each compressed tensor that are not zero."""
        return {name: float(codes.count_nonzero()) / max(codes.numel(), 1) for name, codes in self.codes.items()}

    def to_html(self, path: str | os.PathLike[str], *, source: Any = None) -> int:
        """Writes the report as one self-contained HTML page; returns its size in bytes. See `opq.report.save_page`."""
        from opq.report.page import save_figures

        refuse_inputs(path, self.inputs)
        return save_figures(self._figures(source), path)

    def plot(self, kind: Kind = "overview", *, tensor: str | None = None, source: Any = None, ax: Any = None) -> Figure:
        """One chart of the report as a matplotlib figure. See `opq.report.plot`.

        Args:
            kind: `overview`, `bytes`, `allocation`, `histogram`, `curves` or `entropy`.
            tensor: for `histogram`; the largest by default.
            source: what was compressed, for its own histogram and curves instead of fitted ones.
            ax: axes to draw on, instead of a new figure.
        """
        from opq.report.plots import plot

        return plot(self._figures(source), kind, tensor=tensor, ax=ax)

    def _figures(self, source: Any) -> Figures:
        from opq.report.figures import figures
        from opq.sources import open_source

        opened = None if source is None else open_source(source)
        return figures(self.reader, label=self.label, source=opened)
