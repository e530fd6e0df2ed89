"""Reading tensors of a source in pieces, so that no whole tensor has to be in memory."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from opq.base.arrays import Codes
from opq.compression.by_outputs import ByOutputs
from opq.compression.differences import Differences, difference
from opq.errors import CorruptSourceError, MissingShardError
from opq.file.header import payload_starts
from opq.quantizing.rows import factors
from opq.sources.base import Source


@dataclasses.dataclass(frozen=True, slots=True)
class _Span:
    """Where a tensor's bytes are in a safetensors file."""

    path: Path
    start: int


class Tensors:
    """Reads ranges of elements. Files are read, not mapped, because mapped pages would count as memory of the process.

    Tensors that are not in a safetensors file under their own name (of a live module, of a PyTorch checkpoint, or
    renamed by transformers) are read through the source.
    """

    def __init__(self, source: Source):
        self.source = source
        self._spans: dict[str, _Span] = {}
        for path in sorted({p for p in source.files.values() if p.suffix == ".safetensors"}):
            starts = payload_starts(path)
            mine = (n for n, p in source.files.items() if p == path and n in starts)
            self._spans |= {name: _Span(path, starts[name]) for name in mine}

    @property
    def whole(self) -> Tensors:
        """The tensors of the network itself, not differences to a base or scaled rows."""
        return self

    def columns(self, name: str) -> Codes | None:
        """The exponents by which a tensor's columns are scaled in what `read` gives; None where they are not."""
        return None

    def dtype(self, name: str) -> torch.dtype:
        """The element type of what `read` gives."""
        return self.source.by_name[name].dtype

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements `start` to `stop` of a tensor in row-major order, flat.

        Raises:
            MissingShardError, CorruptSourceError: the file has disappeared, or become shorter.
        """
        spec = self.source.by_name[name]
        span = self._spans.get(name)
        if span is None:
            return self.source.tensor(name).reshape(-1)[start:stop].clone()
        width = spec.dtype.itemsize
        data = np.empty((stop - start) * width, np.uint8)
        _fill(span.path, span.start + start * width, data)
        return torch.from_numpy(data).view(spec.dtype) if data.size else torch.empty(0, dtype=spec.dtype)


class DifferenceTensors(Tensors):
    """Reads ranges of the differences to a base. Of one that is an opq file, whole tensors are decoded: two at most."""

    def __init__(self, source: Differences):
        super().__init__(source)
        self._new, self._base = Tensors(source.whole), source.base
        self._old = None if self._base.source is None else Tensors(self._base.source)
        self._decoded = functools.lru_cache(maxsize=2)(self._base.read)

    @property
    def whole(self) -> Tensors:
        return self._new

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32 if self._differs(name) else super().dtype(name)

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        new = self._new.read(name, start, stop)
        if not self._differs(name):
            return new
        if self._old is not None:
            old = self._old.read(name, start, stop)
        else:
            old = self._decoded(name).reshape(-1)[start:stop]
        return difference(new, old)

    def _differs(self, name: str) -> bool:
        spec = self.source.by_name[name]
        return spec.dtype.is_floating_point and self._base.fits(name, spec.shape)


class ScaledTensors(Tensors):
    """Reads ranges of tensors whose rows, and perhaps columns, are scaled."""

    def __init__(self, source: ByOutputs):
        super().__init__(source)
        self._new = Tensors(source.whole)
        self._by = {name: torch.from_numpy(factors(e)) for name, e in source.exponents.items()}
        self._across = source.across

    @property
    def whole(self) -> Tensors:
        return self._new

    def columns(self, name: str) -> Codes | None:
        return self._across.get(name)

    def dtype(self, name: str) -> torch.dtype:
        own = super().dtype(name)
        return own if name not in self._by or own == torch.float64 else torch.float32

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        weights = self._new.read(name, start, stop)
        if name not in self._by or start == stop:
            return weights
        width = self.source.by_name[name].size // len(self._by[name])
        by = self._by[name][start // width : -(-stop // width), None]
        whole = torch.zeros(len(by), width, dtype=torch.float64)  # the rows that it has a part of
        part = whole.view(-1)[start % width :][: stop - start]
        part.copy_(weights)
        whole /= by
        if name in self._across:
            whole /= torch.from_numpy(factors(self._across[name]))
        return part.to(self.dtype(name))


def tensors_of(source: Source) -> Tensors:
    """The tensors of a source: of the network itself, its differences to a base, or with scaled rows and columns."""
    if isinstance(source, ByOutputs):
        return ScaledTensors(source)
    return DifferenceTensors(source) if isinstance(source, Differences) else Tensors(source)


def _fill(path: Path, offset: int, data: npt.NDArray[np.uint8]) -> None:
    view, filled = data.data, 0
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            while filled < len(view):
                got = file.readinto(view[filled:])
                if not got:
                    raise CorruptSourceError(
                        f"{path} cannot be read", got="its end", wanted=f"{offset + len(view)} bytes"
                    )
                filled += got
    except FileNotFoundError as error:
        raise MissingShardError(f"{path} is not there any more") from error
    except OSError as error:
        raise CorruptSourceError(f"{path} cannot be read", got=error.strerror or error) from error
