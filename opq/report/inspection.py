"""What a file holds, read from its bytes: the figures that `opq inspect` prints."""

from __future__ import annotations

import dataclasses
import os
from html import escape
from pathlib import Path

import numpy as np
import torch

from opq.base.tables import counted, printable
from opq.file.base import BaseName
from opq.file.folder_reader import open_reader
from opq.plan import Plan
from opq.report.accounting import NOTHING, Nominal, differences, information, of_codes
from opq.report.table import Report


@dataclasses.dataclass(frozen=True, slots=True)
class TensorFigures:
    """One tensor of a file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    action: str
    reason: str
    step: float
    dead_zone: float
    sparsity: float
    """Fraction of codes that are zero; 0 for a kept tensor."""
    entropy_bytes: float
    """Empirical zeroth-order entropy of the codes as the file holds them, in bytes; 0 for a kept tensor."""
    coded_bytes: int
    """Bytes of the payload, frequency tables included; 0 for a shared tensor."""

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape)) or "scalar"
        return f"<TensorFigures {self.name!r} {shape} {self.dtype}: {self.action}, {self.coded_bytes:,} bytes>"


@dataclasses.dataclass(frozen=True, slots=True)
class Inspection:
    """A whole file."""

    file: str
    method: str
    file_bytes: int
    source_bytes: int
    elements: int
    bits: float
    """8 x file bytes / elements of the source's floating-point tensors."""
    ratio: float
    """Bytes of the source's tensors / bytes of the file."""
    nominal_ratio: float
    sparsity: float
    bits_per_kept: float
    entropy_bytes: float
    """Of all codes together."""
    coded_bytes: int
    """Of all payloads of codes together."""
    overhead_bytes: int
    """What is not codes: header, plan, kept tensors."""
    multiplier: float
    residual: float
    basis: str
    """What the codes rest on: a probe of the model and what came of it, or the weights alone."""
    base: BaseName | None
    """The network that the weights are differences to, where the file has one."""
    tensors: tuple[TensorFigures, ...]
    plan: Plan = dataclasses.field(repr=False)

    def __repr__(self) -> str:
        size = f"{self.file_bytes:,} bytes, {self.bits:.3f} bits per weight, {self.ratio:.2f}x smaller"
        return f"<opq.report.Inspection {printable(self.file)}: {size}, {counted(len(self.tensors), 'tensor')}>"

    def __str__(self) -> str:
        return f"{self.report()}\n{self.summary()}"

    def _repr_html_(self) -> str:
        return self.report()._repr_html_() + "".join(f"<p>{escape(line)}</p>" for line in self.summary().splitlines())

    def report(self) -> Report:
        """One row a tensor."""
        sizes = {t.name: t.coded_bytes for t in self.tensors}
        return Report(plan=self.plan, sizes=sizes, densities={t.name: 1 - t.sparsity for t in self.tensors})

    def summary(self) -> str:
        """The figures of the file in four lines, and its base where it has one in a fifth."""
        near = self.coded_bytes / self.entropy_bytes - 1 if self.entropy_bytes else 0.0
        return (
            f"{self.file}: method {printable(self.method)}, {self.file_bytes:,} bytes, "
            f"{self.bits:.3f} bits per weight, {self.ratio:.2f}x smaller than its source\n"
            f"codes {self.coded_bytes:,} bytes, their zeroth-order entropy {self.entropy_bytes:,.0f} ({near:+.2%}); "
            f"everything else {self.overhead_bytes:,} bytes\n"
            f"pruned {self.sparsity:.1%}, {self.bits_per_kept:.2f} bits per kept weight; "
            f"positions free (the paper's count) {self.nominal_ratio:.2f}x\n"
            f"by {self.basis}"
        ) + (f"\n{differences(self.base)}" if self.base else "")


def examine(path: str | os.PathLike[str]) -> Inspection:
    """Decodes every compressed tensor of a file, one at a time, and measures it.

    Raises:
        FileFormatError: the file is foreign, newer, truncated or corrupt (one subclass each).
    """
    with open_reader(path) as reader:
        plan, sizes, file_bytes = reader.plan, reader.sizes, reader.bytes
        basis, base = reader.basis, reader.base
        figures, counts = [], NOTHING
        for tensor in plan:
            held = sparsity = 0.0
            if tensor.action == "compress":
                codes = reader.codes(tensor.name)
                values, counted_codes = np.unique(codes, return_counts=True)
                held = information(tensor, values, counted_codes)
                sparsity = float(np.mean(codes == 0)) if codes.size else 0.0
                counts += of_codes(torch.from_numpy(codes)) if tensor.stepped and codes.size else NOTHING
            figures.append(
                TensorFigures(
                    name=tensor.name,
                    shape=tensor.shape,
                    dtype=tensor.dtype,
                    action=tensor.action,
                    reason=tensor.reason,
                    step=tensor.step,
                    dead_zone=tensor.dead_zone,
                    sparsity=sparsity,
                    entropy_bytes=held,
                    coded_bytes=sizes.get(tensor.name, 0),
                )
            )
    return dataclasses.replace(_summed(Path(path), file_bytes, plan, tuple(figures), counts), basis=basis, base=base)


def _summed(path: Path, file_bytes: int, plan: Plan, figures: tuple[TensorFigures, ...], counts: Nominal) -> Inspection:
    elements, source_bytes = plan.elements, plan.source_bytes
    coded = sum(f.coded_bytes for f in figures if f.action == "compress")
    return Inspection(
        file=str(path),
        method=plan.method,
        file_bytes=file_bytes,
        source_bytes=source_bytes,
        elements=elements,
        bits=8 * file_bytes / max(elements, 1),
        ratio=source_bytes / file_bytes,
        nominal_ratio=counts.ratio,
        sparsity=counts.sparsity,
        bits_per_kept=counts.bits_per_kept,
        entropy_bytes=sum(f.entropy_bytes for f in figures),
        coded_bytes=coded,
        overhead_bytes=file_bytes - coded,
        multiplier=plan.multiplier,
        residual=plan.residual,
        basis="",
        base=None,
        tensors=figures,
        plan=plan,
    )
