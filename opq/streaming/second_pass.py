"""Pass two: quantize, encode, verify and write, output shards divided among the ranks; then side files and index."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable

from opq.base.atomic import written_aside
from opq.compression.in_file import told
from opq.file.folder_reader import INDEX, index_bytes
from opq.plan import Plan
from opq.sources import hub_config, side_files
from opq.streaming import work_folder as folders
from opq.streaming.shards import Shards, base_name, finished, part_of, partition
from opq.streaming.task import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """The budget of the files, and how tensors are distributed over them."""

    size: float
    """Bytes that all files together may take."""
    shards: list[list[str]]
    """The names of the tensors in each shard."""
    index: bytes
    """The bytes of the index."""

    @classmethod
    def of(cls, task: Task, compressed: Iterable[str]) -> Target:
        """The target of a task, given the names of its compressed tensors."""
        source, budget = task.source, task.options.budget
        assert budget is not None, "sparsity= is refused"
        wanted = budget.bytes(elements=source.elements, source_bytes=source.bytes)
        shards = partition(source.specs, set(compressed), 8 * wanted / source.elements, task.shard_size)
        where = {name: folders.shard_name(k, len(shards)) for k, names in enumerate(shards) for name in names}
        parameters = sum(spec.size for spec in source.specs if spec.like is None)
        text = index_bytes({spec.name: where[spec.name] for spec in source.specs}, parameters)
        return cls(size=wanted, shards=shards, index=text)

    def name(self, number: int) -> str:
        """The name of one shard."""
        return folders.shard_name(number, len(self.shards))


def check_room(task: Task, target: Target, sizes: Iterable[int]) -> None:
    """Raises `WriteError` if the disk has no room for the files, and for codes that do not stay in memory.

    Args:
        sizes: the weights of each compressed tensor.
    """
    held = max((size for size in sizes if size > task.limits.cached and task.options.trellis), default=0)
    there = sum(p.stat().st_size for p in task.work.folder.glob("model-*.opq.safetensors"))
    largest = max(target.size / len(target.shards), task.shard_size / 4)
    spools = min(largest * task.team.size, target.size) + held * task.team.size
    folders.check_space(task.work.folder, target.size - there + spools)


def write(task: Task, plan: Plan, target: Target) -> int:
    """Writes every shard of a plan, except those that exist already. Returns the bytes of all files."""
    parts = [part_of(plan, names) for names in target.shards]
    mine = task.team.mine([sum(t.size for t in part) for part in parts])
    shards = Shards(
        task.source,
        task.tensors,
        task.pool,
        task.clock,
        task.work,
        carried=task.carried,
        limits=task.limits,
        note=task.basis.note,
    )

    def work() -> bytes:
        sizes = {}
        for done, k in enumerate(mine):
            path = task.work.folder / target.name(k)
            size = finished(path, told(task.source, parts[k]), base_name(task.source))
            sizes[k] = shards.write(path, parts[k], plan) if size is None else size
            task.options.progress("shards", done + 1, len(mine))
        return json.dumps(sizes).encode()

    total: int = sum(sum(json.loads(part).values()) for part in task.team.each(work))
    return total + len(target.index)


def finish(task: Task, target: Target) -> None:
    """Writes side files, then the index, and removes everything temporary."""
    work = task.work
    if task.source.folder is not None:
        config = hub_config.compressed(task.source.folder, INDEX)
        side_files.copy(task.source.folder, work.folder, instead=config, within=work.inner)
    with written_aside(work.folder / INDEX, within=work.inner) as out:
        out.write(target.index)
    work.finish()
