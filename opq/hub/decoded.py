"""An opq file behind the interface of safetensors' `safe_open`: dense tensors, each decoded when it is requested."""

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
    """A tensor that is decoded when it is indexed; safetensors' slices are read from the file at that moment."""

    reader: Reader
    name: str

    def get_dtype(self) -> str:
        """The element type, by its safetensors name."""
        return self.reader.plan[self.name].dtype

    def get_shape(self) -> list[int]:
        """The shape of the tensor."""
        return list(self.reader.plan[self.name].shape)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.reader.tensor(self.name)[index]


class Decoded:
    """The tensors of one opq file, in the order of the network that was compressed.

    Raises:
        FileFormatError: the file is incomplete or damaged.
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
        """The metadata of a safetensors file that PyTorch wrote."""
        return {"format": "pt"}

    def get_slice(self, name: str) -> Slice:
        """A tensor that is not yet decoded."""
        return Slice(self._reader, name)

    def get_tensor(self, name: str) -> torch.Tensor:
        """A tensor, decoded."""
        return self._reader.tensor(name)

    def __enter__(self) -> Decoded:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._reader.close()
