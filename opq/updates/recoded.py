"""Takes a payload of integer codes apart so that it can be made again, byte for byte.

The parts are the codes, the codebook (for kinds that have one), and the model with which the codes were coded.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from opq.base.arrays import Codes
from opq.base.format_v1 import LARGEST_CODE
from opq.coding import classes, entropy
from opq.coding.stack import StackReader, StackWriter
from opq.coding.symbols import SYMBOL
from opq.coding.tensor_model import Coding
from opq.errors import CorruptFileError
from opq.file.payload import Coded
from opq.file.stored import PAYLOADS
from opq.plan import TensorPlan


@dataclasses.dataclass(frozen=True, slots=True)
class Recoded:
    """The parts of a payload of codes."""

    book: bytes
    """The bytes before the codes: a codebook, or the exponents of rows; empty for kinds without these."""
    coding: Coding
    codes: Codes

    @classmethod
    def of(cls, payload: bytes, kind: str, plan: TensorPlan) -> Recoded:
        """Takes the bytes of a payload apart.

        Raises:
            CorruptFileError: they are not a payload of this kind.
        """
        start, shape = _shape(payload, kind, plan)
        data = memoryview(payload)[start:]
        codes = entropy.decode(data, shape)
        if not codes.size:
            raise CorruptFileError("no codes")
        if entropy.is_large(shape):
            coding = entropy.Large.of(data, shape).coding
        else:
            coding = Coding.take(StackReader(data), classes.view(shape))
        return cls(payload[:start], coding, codes)

    def payload(self) -> bytes:
        """Makes the bytes again; raises `CorruptFileError` if the model cannot code these codes."""
        if not _fit(self.codes, self.coding):
            raise CorruptFileError("codes that their model cannot code")
        return self.book + entropy.write(entropy.Draft(self.coding, self.codes.shape), self.codes)

    @property
    def paged(self) -> bool:
        """Whether the codes are coded by pcodec, of which other versions may write other bytes."""
        return self.coding.kind == "pages"

    def head(self) -> bytes:
        """Codebook and model with their lengths, which is all but the codes."""
        stack = StackWriter()
        self.coding.put(stack)
        model = stack.finish()
        return len(self.book).to_bytes(4, "little") + len(model).to_bytes(4, "little") + self.book + model


def taken(data: memoryview, kind: str, plan: TensorPlan) -> tuple[bytes, Coding, tuple[int, ...], memoryview]:
    """The inverse of `Recoded.head`: the codebook, the model, the shape of the codes, and the bytes that follow.

    Raises:
        CorruptFileError: the bytes are not those of a head.
    """
    first, second = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little")
    if 8 + first + second > len(data):
        raise CorruptFileError(
            "a recoded payload ends in its head", got=f"{len(data)} bytes", wanted=8 + first + second
        )
    book, model = bytes(data[8 : 8 + first]), data[8 + first : 8 + first + second]
    start, shape = _shape(book, kind, plan)
    if start != first or not math.prod(shape):
        raise CorruptFileError("a codebook of another length", got=first, wanted=start)
    reader = StackReader(model)
    coding = Coding.take(reader, classes.view(shape))
    reader.finish()
    if coding.kind == ("geometric" if entropy.is_large(shape) else "pages"):
        raise CorruptFileError(f"codes by {coding.kind} of a tensor of {math.prod(shape)} elements")
    return book, coding, shape, data[8 + first + second :]


def _fit(codes: Codes, coding: Coding) -> bool:
    low, high = int(codes.min()), int(codes.max())
    if coding.kind == "constant":
        return low == high == coding.offset
    if coding.kind == "geometric":
        low, high = low - coding.offset, high - coding.offset
        return low >= -LARGEST_CODE and high <= LARGEST_CODE
    if low < -LARGEST_CODE:
        return False
    if coding.kind == "pages":
        return coding.item is np.int16 or (low >= -128 and high <= 127)
    return coding.low <= int(SYMBOL[low + 2**15]) and int(SYMBOL[high + 2**15]) < coding.low + coding.alphabet


def _shape(payload: bytes, kind: str, plan: TensorPlan) -> tuple[int, tuple[int, ...]]:
    """Where the codes of a payload begin, and their shape."""
    holder = PAYLOADS[kind]
    assert issubclass(holder, Coded), "others have no codes"
    return holder.behind(memoryview(payload), plan)
