"""What the compression of a folder returns."""

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
    """How often pass two was run: once if the predicted size was right."""
    seconds: Mapping[str, float]
    """Wall-clock seconds of this process by stage, summed over its threads."""
    cpu_seconds: Mapping[str, float]
    """Processor seconds by stage, which depend less on other work on the machine."""

    @property
    def bytes(self) -> int:
        """Bytes of all shards and the index."""
        return self.written

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of each tensor's payload; 0 for shared tensors."""
        with FolderReader(self.folder) as reader:
            return reader.sizes

    @property
    def _headline(self) -> str:
        return (
            f"{self.folder}: {counted(len(self.shards), 'shard')}, {super()._headline.removeprefix(self.label + ': ')}"
        )

    def __repr__(self) -> str:
        return f"<opq.streaming.Streamed {self._headline}>"
