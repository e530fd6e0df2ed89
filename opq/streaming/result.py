"""What the compression of a folder gives back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from opq.base.tables import counted
from opq.compression.result import Compressed
from opq.file.folder_reader import FolderReader


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Streamed(Compressed):
    """A compressed folder, on disk."""

    folder: Path
    shards: tuple[str, ...]
    written: int
    """Bytes of all shards and the index."""
    rounds: int
    """How often pass two was run: once where the predicted size held."""
    seconds: Mapping[str, float]
    """Seconds of this process by stage, on the wall, summed over its threads."""
    cpu_seconds: Mapping[str, float]
    """The same of the processor: what other work on the machine does not change."""

    @property
    def bytes(self) -> int:
        """Bytes of all shards and the index."""
        return self.written

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of each tensor's payload; 0 for shared ones."""
        with FolderReader(self.folder) as reader:
            return reader.sizes

    @property
    def _headline(self) -> str:
        return (
            f"{self.folder}: {counted(len(self.shards), 'shard')}, {super()._headline.removeprefix(self.label + ': ')}"
        )

    def __repr__(self) -> str:
        return f"<opq.streaming.Streamed {self._headline}>"
