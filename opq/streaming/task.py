"""What every stage of one compression of a folder works with."""

from __future__ import annotations

import dataclasses

from opq.base.pool import Pool
from opq.compression.options import Options
from opq.sources.base import Source
from opq.streaming.block_probe import Carried
from opq.streaming.chunks import Tensors
from opq.streaming.clock import Clock
from opq.streaming.limits import Limits
from opq.streaming.resume import Identities
from opq.streaming.team import Team
from opq.streaming.work_folder import Work


@dataclasses.dataclass(frozen=True, slots=True)
class Basis:
    """What the compression is based on."""

    words: str
    note: str = ""
    """The note in the files, one of `opq.file.basis.NOTES`."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One compression of a folder."""

    source: Source
    identities: Identities
    """How the source's files are identified."""
    options: Options
    shard_size: int
    """Bytes of an output shard."""
    limits: Limits
    work: Work
    team: Team
    pool: Pool
    clock: Clock
    tensors: Tensors
    carried: Carried | None
    """The probe in blocks; None if the compression is not based on it."""
    basis: Basis
