"""What a file holds of one tensor: all kinds of payload, in the order of their numbers.

Each kind is a class that makes the bytes and reads them back. A new kind is a class in `compressed_kinds` or
`kept_kinds`, and stands at the end of `KINDS` and of `opq.base.format_v1.KIND_NAMES`.
"""

from __future__ import annotations

from typing import ClassVar

from opq.file.compressed_kinds import Grid as Grid
from opq.file.compressed_kinds import GridColumns as GridColumns
from opq.file.compressed_kinds import GridRows as GridRows
from opq.file.compressed_kinds import GridTurnedRows as GridTurnedRows
from opq.file.compressed_kinds import Listed as Listed
from opq.file.compressed_kinds import Product as Product
from opq.file.compressed_kinds import Table as Table
from opq.file.compressed_kinds import Trellis as Trellis
from opq.file.compressed_kinds import TrellisColumns as TrellisColumns
from opq.file.compressed_kinds import TrellisRows as TrellisRows
from opq.file.compressed_kinds import TrellisTurned as TrellisTurned
from opq.file.compressed_kinds import TrellisTurnedRows as TrellisTurnedRows
from opq.file.compressed_kinds import head_of_rows as head_of_rows
from opq.file.compressed_kinds import head_of_turn as head_of_turn
from opq.file.kept_kinds import WHOLE, Raw, Scalar
from opq.file.kept_kinds import Fine as Fine
from opq.file.kept_kinds import Log as Log
from opq.file.kept_kinds import raw_bytes as raw_bytes
from opq.file.kept_kinds import raw_tensor as raw_tensor
from opq.file.kept_kinds import raw_view as raw_view
from opq.file.payload import Stored as Stored
from opq.plan import Action


class Share:
    """No payload: the values are those of another tensor. Only the index names it."""

    kind: ClassVar[str] = "share"
    action: ClassVar[Action] = "share"


KINDS: tuple[type[Stored | Share], ...] = (
    *(Grid, Table, Product, Fine, Log, Raw, Share, Scalar, Trellis),
    *(GridRows, TrellisRows, TrellisTurned, GridTurnedRows, TrellisTurnedRows, GridColumns, TrellisColumns),
)
"""All kinds, in the order of their numbers in the file (`KIND_NAMES`)."""

PAYLOADS: dict[str, type[Stored]] = {kind.kind: kind for kind in KINDS if issubclass(kind, Stored)}
"""The kinds that have a payload, by name."""


def smallest(item: Stored) -> Stored:
    """The item, or the same tensor as a `Scalar` if it is a single integer that the index can hold."""
    if isinstance(item, Raw) and item.tensor.numel() == 1 and item.tensor.dtype in WHOLE:
        return Scalar(item.name, item.tensor) if abs(int(item.tensor)) < 1 << 38 else item
    return item
