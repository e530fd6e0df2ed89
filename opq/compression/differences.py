"""A source as the differences of its weights to those of a base: what is compressed where there is one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from opq.errors import MismatchError
from opq.file.base import RELATIVE, Base
from opq.file.stored import Raw, Stored
from opq.sources.base import BatchNormNames, Source, TensorSpec


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Differences(Source):
    """Reads the difference of each floating-point tensor that the base has too, others as they are."""

    whole: Source
    """The network itself."""
    base: Base

    @classmethod
    def of(cls, source: Source, base: Base) -> Differences:
        """Raises `MismatchError` where the base has no tensor of the network."""
        if not any(base.fits(s.name, s.shape) for s in source.specs):
            raise MismatchError(
                f"{base.label} has no tensor of {source.label}", remedy="Pass the base of this network."
            )

        def read(name: str) -> torch.Tensor:
            new = source.tensor(name)
            if not (new.is_floating_point() and base.fits(name, new.shape)):
                return new
            return difference(new, base.read(name))

        specs = tuple(_told(spec, base) for spec in source.specs)
        return cls.over(source, specs=specs, read=read, whole=source, base=base)

    @property
    def batchnorms(self) -> Mapping[str, BatchNormNames]:
        """None: differences of their vectors are vectors like others."""
        return {}

    def finished(self, item: Stored) -> Stored:
        """What the file holds: tensors that no kind of payload adds to the base are whole."""
        if item.kind in RELATIVE or not isinstance(item, Raw):
            return item
        return Raw(item.name, self.whole.tensor(item.name))


def difference(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """What is compressed of a tensor, or of a piece of it: exact differences, then float32."""
    return (new.double() - old.double()).float()


def _told(spec: TensorSpec, base: Base) -> TensorSpec:
    """A tensor of which the base has another version goes on a grid even if it is a statistic."""
    learned = spec.dtype.is_floating_point and base.fits(spec.name, spec.shape) and not spec.exact
    return dataclasses.replace(spec, kind="parameter") if learned and len(spec.shape) == 1 else spec
