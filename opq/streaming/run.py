"""A checkpoint of any size to a folder of shards.

    pass one    every tensor -> curve                       shared out by source shard
    solve       curves + budget -> Plan                     the same on every rank
    sample      a few rows of every tensor -> its bytes     shared out by tensor; then solve again
    pass two    quantize, encode, verify, write             shared out by output shard

A rank is a process of `torchrun`; one process alone is a team of one. Bytes depend on the source and the options
only: not on ranks, threads, or interruptions.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from opq.base.pool import pool
from opq.compression.options import DATA_FREE, Options
from opq.errors import OptionError, ProbeWarning, RankError
from opq.sources import open_source, side_files
from opq.sources.base import Source
from opq.streaming import work_folder as folders
from opq.streaming.block_probe import Carried
from opq.streaming.chunks import Tensors
from opq.streaming.clock import Clock
from opq.streaming.first_pass import prepared
from opq.streaming.limits import LIMITS, Limits
from opq.streaming.model_blocks import UNAVAILABLE, Blocks, open_blocks
from opq.streaming.result import Streamed
from opq.streaming.resume import History, Identities
from opq.streaming.rounds import Rounds
from opq.streaming.second_pass import Target, check_room, finish
from opq.streaming.task import Task
from opq.streaming.team import Team
from opq.streaming.work_folder import Work

SHARD_SIZE = 500_000_000
"""Bytes of an output shard unless the caller says otherwise."""
_UNUSED = (
    "sparsity",
    "calibration",
    "example_inputs",
    "input_size",
    "data",
    "evaluate",
    "checkpoint",
    "method_options",
    "trellis",
)


def compress_folder(
    source: Any,
    output: str | os.PathLike[str],
    *,
    shard_size: int = SHARD_SIZE,
    workers: int | None = None,
    **options: Any,
) -> Streamed:
    """Compresses a checkpoint of any size into a folder of `.opq.safetensors` shards with an index.

    Streams: memory is bounded by a few hundred MB and some 64 MB a thread, whatever the size of checkpoint and
    tensors. Interrupted, the same call goes on where it was and gives the same bytes. In the processes of a
    `torchrun`, each takes its share; they need one file system.

    Args:
        source: as of `opq.compress`; a folder of safetensors is what streams.
        output: the folder to fill.
        shard_size: bytes of an output shard, met as far as whole tensors allow.
        workers: threads; by default one a core.
        options: of `opq.compress`: bits, ratio, size, method (`"rd"` or `"opq"`), overrides, constraints,
            sensitivities, alpha, seed, progress. By default the probe and error feedback are done block by block where
            the source is a language model in Hugging Face layout that transformers builds (`Streamed.basis` says what
            was done); others are compressed by their weights alone, and `probe=True` measures sensitivities on the
            whole model, which must fit in memory for it. docs/scaling.md has the details.

    Raises:
        OpqError: as `opq.compress`, and
        BusyFolderError: another process writes into the folder.
        OccupiedFolderError: it holds another compression.
        RankError: another process failed.

    Example:
        >>> import pathlib, tempfile, opq, torch
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"w": torch.randn(256, 64)}, f"{folder}/model.safetensors")
        ...     result = opq.compress_folder(f"{folder}/model.safetensors", f"{folder}/out", bits=4)
        ...     [path.name for path in sorted(pathlib.Path(folder, "out").glob("*.safetensors"))]
        ['model-00001-of-00001.opq.safetensors']
        >>> 3.9 < result.bits <= 4
        True
    """
    return streamed(source, Path(output), _checked(options, shard_size), shard_size=shard_size, workers=workers)


def streamed(
    source: Any,
    folder: Path,
    options: Options,
    *,
    shard_size: int = SHARD_SIZE,
    workers: int | None = None,
    limits: Limits = LIMITS,
) -> Streamed:
    """`compress_folder` with its options checked."""
    opened = open_source(source)
    if opened.files and folder.exists() and any(p.parent.samefile(folder) for p in set(opened.files.values())):
        raise OptionError("the output folder is the source's", got=str(folder), wanted="another folder")
    team, clock, tensors, identities = Team.join(), Clock(), Tensors(opened), Identities.of(opened)
    blocks, basis = _blocks(opened, options, tensors, team)
    digest = identities.run(options, shard_size, probed=blocks is not None)
    with pool(workers) as threads, _taken(folder, digest, team, opened) as work:
        carried = None
        if blocks is not None:
            key = hashlib.sha256(f"{identities.key} {options.seed}".encode()).hexdigest()[:16]
            carried = Carried(blocks, key, options.seed, work, team, threads, clock, options.progress)
        task = Task(
            source=opened,
            identities=identities,
            options=options,
            shard_size=shard_size,
            limits=limits,
            work=work,
            team=team,
            pool=threads,
            clock=clock,
            tensors=tensors,
            carried=carried,
        )
        return _streamed(task, basis)


def _streamed(task: Task, basis: str) -> Streamed:
    """Stage by stage."""
    task, problem = prepared(task)
    target = Target.of(task, problem.stats)
    task.team.once(lambda: check_room(task, target))
    written = Rounds(task, problem, target, History.of(task.work, task.team)).run()
    task.team.once(lambda: finish(task, target))
    return Streamed(
        plan=written.plan,
        label=task.source.label,
        elements=task.source.elements,
        source_bytes=task.source.bytes,
        shortfall=written.shortfall,
        folder=task.work.folder,
        shards=tuple(target.name(k) for k in range(len(target.shards))),
        written=written.bytes,
        rounds=written.rounds,
        seconds=dict(task.clock.seconds),
        cpu_seconds=dict(task.clock.cpu),
        basis=basis,
    )


def _checked(options: dict[str, Any], shard_size: int) -> Options:
    checked = Options.of(options)
    if checked.method not in DATA_FREE:
        raise OptionError(f"method={checked.method!r} does not stream", wanted=" or ".join(DATA_FREE))
    given = [name for name in _UNUSED if getattr(checked, name) is not None and getattr(checked, name) is not False]
    if given:
        raise OptionError(f"{given[0]}= does not go with a folder as output", remedy="Write one file, or leave it out.")
    if not (isinstance(shard_size, int) and shard_size >= 1 << 12):
        raise OptionError("shard_size= is out of range", got=shard_size, wanted="at least 4096 bytes")
    return checked


def _blocks(source: Source, options: Options, tensors: Tensors, team: Team) -> tuple[Blocks | None, str]:
    """The model in blocks where it is to be probed and can be, and what the compression rests on."""
    blocks, basis = None, "the weights alone: no probe was asked for"
    if options.probe is not False:
        try:
            blocks = open_blocks(source, tensors, options.seed)
            basis = f"sensitivities and error feedback block by block, {len(blocks.ids)} synthetic texts"
        except UNAVAILABLE as error:
            if options.probe:
                basis = "sensitivities by the probe of the whole model, no error feedback"
            else:
                basis = f"the weights alone: {error}"
                if source.folder is not None and source.buildable:
                    warnings.warn(f"{source.label} is compressed by {basis}", ProbeWarning, stacklevel=4)
    if len(said := set(team.each(basis.encode))) > 1:
        got = "; ".join(sorted(words.decode() for words in said))
        raise RankError("the processes see different models", got=got, remedy="Install the same packages everywhere.")
    return blocks, basis


@contextmanager
def _taken(folder: Path, digest: str, team: Team, source: Source) -> Iterator[Work]:
    """The folder, locked by rank 0 for all ranks, in the state that an earlier run left it in."""
    work = Work(folder, team.first(digest.encode).decode())
    with ExitStack() as stack:

        def begin() -> None:
            stack.enter_context(folders.locked(folder))
            if source.folder is not None:
                side_files.check(source.folder, folder)
            work.begin()

        team.once(begin)
        yield work
