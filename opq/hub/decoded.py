"""An opq file as safetensors' `safe_open` shows an ordinary one: dense tensors, each decoded when it is asked for."""

from __future__ import annotations

import dataclasses
import os
from types import TracebackType
from typing import Any

import torch

from opq.errors import WrongBaseError
from opq.file.reader import Reader


@dataclasses.dataclass(frozen=True, slots=True)
class Slice:
    """A tensor that is decoded when it is indexed, as safetensors' slices are read then."""

    reader: Reader
    name: str

    def get_dtype(self) -> str:
        """The element type, by its safetensors name."""
        return self.reader.plan[self.name].dtype

    def get_shape(self) -> list[int]:
        """Its shape."""
        return list(self.reader.plan[self.name].shape)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.reader.tensor(self.name)[index]


class Decoded:
    """The tensors of one opq file, in the source's order.

    Raises:
        FileFormatError: the file is not whole.
        WrongBaseError: it holds differences to another network.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._reader = Reader(path)
        if (base := self._reader.base) is not None:
            raise WrongBaseError(
                "the file holds differences to another network, which from_pretrained does not know",
                wanted=f"{base.size} bytes of tensors, SHA-256 {base.digest}",
                remedy="Load it by opq.load(file, model, base=...), or decompress it first (opq decompress --base).",
            )

    def keys(self) -> list[str]:
        """The names of all tensors."""
        return list(self._reader.names)

    def metadata(self) -> dict[str, str]:
        """What a file of PyTorch tensors says."""
        return {"format": "pt"}

    def get_slice(self, name: str) -> Slice:
        """A tensor, still in the file."""
        return Slice(self._reader, name)

    def get_tensor(self, name: str) -> torch.Tensor:
        """A tensor."""
        return self._reader.tensor(name)

    def __enter__(self) -> Decoded:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._reader.close()
