"""Compresses a checkpoint of any size into a folder of shards.

    pass one    every tensor -> curve                       source shards are divided among the ranks
    solve       curves + budget -> Plan                     the same on every rank
    sample      a few rows of every tensor -> its bytes     tensors are divided; then solve again
    pass two    quantize, encode, verify, write             output shards are divided

A rank is a process of `torchrun`; a single process is a team of one. The bytes written depend on the source and the
options only, not on ranks, threads or interruptions.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from opq.base.atomic import refuse_inputs
from opq.base.calls import refusing, warn
from opq.base.format_v1 import FOLDER_INDEX
from opq.base.pool import pool
from opq.base.progress import Progress
from opq.compression.differences import Differences
from opq.compression.in_file import told
from opq.compression.method import DataFree, Opq, RateDistortion
from opq.compression.options import Options
from opq.compression.roles import Override
from opq.constraints import Constraint
from opq.errors import OptionError, ProbeWarning, RankError
from opq.file.base import Base, open_base
from opq.file.basis import UNFED, noted
from opq.methods.calling import KEYWORDS, asked
from opq.sources import SourceLike, hub_config, open_source, side_files
from opq.sources.base import Source
from opq.streaming import work_folder as folders
from opq.streaming.block_probe import Carried
from opq.streaming.chunks import Tensors, tensors_of
from opq.streaming.clock import Clock
from opq.streaming.first_pass import prepared
from opq.streaming.limits import LIMITS, Limits
from opq.streaming.model_blocks import UNAVAILABLE, Blocks, open_blocks
from opq.streaming.result import Streamed
from opq.streaming.resume import History, Identities
from opq.streaming.rounds import Rounds
from opq.streaming.second_pass import Target, check_room, finish
from opq.streaming.task import Basis, Task
from opq.streaming.team import Team
from opq.streaming.work_folder import Work

SHARD_SIZE = 500_000_000
"""Bytes of an output shard, unless the caller chooses another size. A choice: quick to transfer, and few files."""
_WHY, _REMEDY = "does not go with a folder as output", "Write one file, or leave it out."


@refusing(KEYWORDS, why=_WHY, remedy=_REMEDY)
def compress_folder(
    source: SourceLike,
    output: str | os.PathLike[str],
    *,
    bits: float | None = None,
    ratio: float | None = None,
    size: float | str | None = None,
    method: Literal["rd", "opq"] | RateDistortion | Opq = "rd",
    overrides: Mapping[str, Override] | None = None,
    constraints: Sequence[Constraint] = (),
    sensitivities: Mapping[str, float] | None = None,
    probe: bool | None = None,
    alpha: float | None = None,
    trellis: bool | None = None,
    seed: int = 0,
    dequantize: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | bool | None = None,
    base: SourceLike | None = None,
    shard_size: int = SHARD_SIZE,
    workers: int | None = None,
) -> Streamed:
    """Compresses a checkpoint of any size into a folder of `.opq.safetensors` shards with an index.

    The checkpoint is streamed: memory is limited to a few hundred MB and some 64 MB for each thread, whatever the size
    of checkpoint and tensors. After an interruption, the same call continues where it stopped and gives the same bytes.
    The processes of a `torchrun` share the work; they need a common file system.

    Args:
        source: as in `opq.compress`; only safetensors files are streamed, other sources are held in memory.
        output: the folder to fill.
        bits: budget as 8 x bytes of all files / elements of the floating-point tensors.
        ratio: budget as bytes of the source's tensors / bytes of all files.
        size: budget in bytes of all files, a number or a text such as `"2GB"`. Exactly one of the three.
        method: `"rd"` or `"opq"`, or an object of `opq.methods` that is one of them, without a sparsity.
        overrides: glob pattern -> `"keep"`, `"compress"` or numbers (`bits`, `min_bits`, `max_bits`, `sensitivity`).
        constraints: objects of `opq.constraints`, solved through cvxpy.
        sensitivities: `a_i` by tensor name, in place of the probe's; tensors not named have 1.
        probe: by default, a language model in Hugging Face layout that transformers can build is probed, and errors are
            fed back, block by block; other models are compressed by their weights alone. `Streamed.basis` says what
            was done. True: sensitivities are measured on the whole model, which must fit in memory, if it cannot be
            run in blocks. False: no probe. docs/scaling.md has the details.
        alpha: exponent of the probe's sensitivities, 0 to 1; by default 1.
        trellis: of `rd`: whether tensors that get 1.25 bits per weight or more are quantized on a trellis, as in
            `opq.compress`; by default they are, unless there are `constraints=`.
        seed: of the synthetic inputs; the same seed gives the same bytes.
        dequantize: for a checkpoint that is quantized already: whether to decode its weights and compress these;
            otherwise its codes, scales and zero points are kept as they are.
        trust_remote_code: whether to run Python code that comes with a model's folder or repository.
        progress: called with (stage, done, total); True for a bar, False for none. By default a bar appears after two
            seconds, on a terminal or in a notebook only.
        base: another version of the network that everybody who loads the folder has, too, as in `opq.compress`: the
            differences to it are compressed. Whole tensors of it are then in memory, one or two at a time.
        shard_size: bytes of an output shard, as nearly as whole tensors allow.
        workers: threads; by default one for each core.

    Raises:
        OpqError: as in `opq.compress`, and
        BusyFolderError: another process writes into the folder.
        OccupiedFolderError: the folder holds another compression.
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
    with asked(locals()) as options:
        _check(options, shard_size)
        return streamed(source, Path(output), options, shard_size=shard_size, workers=workers)


def _check(options: Options, shard_size: int) -> None:
    how = options.how
    if not isinstance(how, DataFree):
        raise OptionError(f"method={how.name!r} does not stream", wanted="rd or opq")
    taken = inspect.signature(compress_folder).parameters
    given = [name for name in how.keywords if name not in taken and getattr(how, name) not in (None, False)]
    if given:
        raise OptionError(f"{given[0]}= {_WHY}", remedy=_REMEDY)
    if not (isinstance(shard_size, int) and shard_size >= 1 << 12):
        raise OptionError("shard_size= is out of range", got=shard_size, wanted="at least 4096 bytes")


def streamed(
    source: Any,
    folder: Path,
    options: Options,
    *,
    shard_size: int = SHARD_SIZE,
    workers: int | None = None,
    limits: Limits = LIMITS,
) -> Streamed:
    """`compress_folder` with options that are checked already."""
    opened = open_source(source, dequantize=options.dequantize, trust_remote_code=options.trust_remote_code)
    refuse_inputs(folder, {*opened.inputs, *(path.parent for path in opened.inputs)})
    team, clock, named = Team.join(), Clock(), ""
    if options.base is not None:
        base = open_base(options.base)
        refuse_inputs(folder, _places(options.base, base))
        opened = Differences.of(opened, base)
        named = str(opened.base.name)
    tensors, identities = tensors_of(opened), Identities.of(opened, named)
    blocks, basis = _blocks(opened, options, tensors.whole, team)
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
            basis=basis,
        )
        return _streamed(task)


def _places(given: Any, base: Base) -> Iterator[str | os.PathLike[str]]:
    """The files and folders that a base was read from."""
    if isinstance(given, str | os.PathLike):
        yield given
    for path in () if base.source is None else base.source.inputs:
        yield from (path, path.parent)


def _streamed(task: Task) -> Streamed:
    """Runs the stages of a task."""
    task, problem = prepared(task)
    target = Target.of(task, problem.stats)
    task.team.once(lambda: check_room(task, target, (stats.size for stats in problem.stats.values())))
    written = Rounds(task, problem, target, History.of(task.work, task.team)).run()
    task.team.once(lambda: finish(task, target))
    return Streamed(
        plan=told(task.source, written.plan).replace(basis=task.basis.words),
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
        left_out=task.source.ignored,
    )


def _blocks(source: Source, options: Options, tensors: Tensors, team: Team) -> tuple[Blocks | None, Basis]:
    """The model in blocks, if it is to be probed and can be; and what the compression is based on."""
    blocks, basis = None, Basis("the weights alone: no probe was asked for")
    if options.probe is not False:
        try:
            blocks = open_blocks(source, tensors, options.seed)
            said = f"sensitivities and error feedback block by block, {len(blocks.ids)} synthetic texts"
            basis = Basis(said, noted(calibrated=False, renormalised=False))
        except UNAVAILABLE as error:
            if options.probe:
                basis = Basis(f"sensitivities by the probe of the whole model, no error feedback: {error}", UNFED)
            else:
                basis = Basis(f"the weights alone: {error}")
            if source.folder is not None and source.buildable:
                warn(f"{source.label} is compressed by {basis.words}", ProbeWarning)
    if len(every := set(team.each(basis.words.encode))) > 1:
        got = "; ".join(sorted(words.decode() for words in every))
        raise RankError("the processes see different models", got=got, remedy="Install the same packages everywhere.")
    return blocks, basis


@contextmanager
def _taken(folder: Path, digest: str, team: Team, source: Source) -> Iterator[Work]:
    """The work folder, locked by rank 0 for all ranks, with what an earlier run has left in it."""
    work = Work(folder, team.first(digest.encode).decode())
    with ExitStack() as stack:

        def begin() -> None:
            stack.enter_context(folders.locked(folder))
            if source.folder is not None:
                config = hub_config.compressed(source.folder, FOLDER_INDEX)
                side_files.check(source.folder, folder, instead=config)
            work.begin()

        team.once(begin)
        yield work
