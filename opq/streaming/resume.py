"""How an interrupted compression is resumed: identifying the source, and the rounds so far."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opq.compression import roles
from opq.compression.budget import Round
from opq.compression.options import Options
from opq.sources.base import Source, TensorSpec
from opq.streaming.team import Team
from opq.streaming.work_folder import Work

WHOLE = 1 << 24
"""Bytes of the largest file that is digested completely. A choice of speed."""
PIECES, PIECE = 64, 1 << 16
"""For larger files, the number of evenly spread pieces that are digested, from the first to the last, and their bytes.
A choice: 4 MiB are read quickly, and size and time of change are compared, too."""
_HERE = os.urandom(16).hex()


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Identities:
    """How the files of a source are identified: by name, size, time of change, and some of their bytes."""

    source: Source
    files: Mapping[Path, tuple[object, ...]]
    base: str = ""
    """Of the base, if the differences to one are compressed."""

    @classmethod
    def of(cls, source: Source, base: str = "") -> Identities:
        """Reads at most 16 MB of each file."""
        return cls(source, {path: _identity(path) for path in sorted(set(source.files.values()))}, base)

    def tensor(self, name: str) -> tuple[object, ...]:
        """The identity of the file that contains a tensor; values in memory are never recognised again."""
        path = self.source.files.get(name)
        return (_HERE, id(self.source)) if path is None else (*self.files[path], self.base)

    @property
    def key(self) -> str:
        """Identifies the whole source: its files and their contents."""
        hashed = hashlib.sha256()
        hashed.update(repr(sorted({repr(self.tensor(spec.name)) for spec in self.source.specs})).encode())
        hashed.update(repr([(s.name, s.shape, str(s.dtype), s.like) for s in self.source.specs]).encode())
        return hashed.hexdigest()

    def measures(self, specs: Sequence[TensorSpec], scales: bytes = b"") -> str:
        """The name under which the measures of some tensors of one file are stored, whose rows may be scaled."""
        described = [(s.name, s.shape, str(s.dtype)) for s in specs]
        hashed = hashlib.sha256(repr((self.tensor(specs[0].name), described)).encode() + scales)
        return f"measure-{hashed.hexdigest()[:32]}"

    def run(self, options: Options, shard_size: int, *, probed: bool) -> str:
        """Identifies a whole run: the source, and every option that changes bytes."""
        names = ("bits", "ratio", "size", "method", "overrides", "constraints", "sensitivities", "alpha", "seed")
        hashed = hashlib.sha256(self.key.encode())
        hashed.update(repr([(name, getattr(options, name)) for name in (*names, "probe", "trellis")]).encode())
        hashed.update(repr((shard_size, roles.SMALLEST, probed)).encode())
        return hashed.hexdigest()


def _identity(path: Path) -> tuple[object, ...]:
    status = path.stat()
    return (path.name, status.st_size, status.st_mtime_ns, sampled(path, status.st_size))


def sampled(path: Path, size: int, *, whole: int = WHOLE, piece: int = PIECE) -> str:
    """The digest of a file of up to `whole` bytes, or of `PIECES` pieces of `piece` bytes of a larger one."""
    hashed = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        if size <= whole:
            hashed.update(file.read(whole))
        else:
            for k in range(PIECES):
                file.seek(k * (size - piece) // (PIECES - 1))
                hashed.update(file.read(piece))
    return hashed.hexdigest()


@dataclasses.dataclass(slots=True)
class History:
    """The rounds of a run, written to disk before the next one begins; the same in all processes."""

    work: Work
    team: Team
    done: list[Round]
    predicted: list[float]
    """The predicted bytes of each round, including one that has begun."""
    begun: float | None
    """The setting of a round that has begun but not ended."""

    @classmethod
    def of(cls, work: Work, team: Team) -> History:
        """The history that an earlier run has left, or an empty one."""
        listed = json.loads(team.first(lambda: json.dumps(work.state.get("rounds", [])).encode()))
        done = [Round(one["bits"], one["bytes"], one["most"]) for one in listed if "bytes" in one]
        begun = next((one["bits"] for one in listed if "bytes" not in one), None)
        return cls(work, team, done, [one["predicted"] for one in listed], begun)

    def begin(self, bits: float, predicted: float) -> None:
        """Records that a round of so many bits begins; if it had begun already, nothing changes."""
        if self.begun is None:
            self.predicted.append(predicted)
        self.begun = bits
        self._record()

    def end(self, one: Round) -> None:
        """Records the result of the round that had begun."""
        self.done.append(one)
        self.begun = None
        self._record()

    def _record(self) -> None:
        listed: list[dict[str, Any]] = [
            {"bits": one.setting, "predicted": predicted, "bytes": one.bytes, "most": one.most}
            for one, predicted in zip(self.done, self.predicted, strict=False)
        ]
        if self.begun is not None:
            listed.append({"bits": self.begun, "predicted": self.predicted[-1]})
        self.team.once(lambda: self.work.save({"digest": self.work.digest, "rounds": listed}))
