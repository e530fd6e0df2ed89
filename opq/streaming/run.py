"""A checkpoint of any size to a folder of shards.

    pass one    every tensor -> curve                       shared out by source shard
    solve       curves + budget -> Plan                     the same on every rank
    sample      a few rows of every tensor -> its bytes     shared out by tensor; then solve again
    pass two    quantize, encode, verify, write             shared out by output shard

A rank is a process of `torchrun`; one process alone is a team of one. Bytes depend on the source and the options
only: not on ranks, threads, or interruptions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opq.base.atomic import refuse_inputs, written_aside
from opq.base.pool import Pool, pool
from opq.compression.coders import probe_source
from opq.compression.fit import AIM, WINDOW, between
from opq.compression.options import DATA_FREE, Options
from opq.compression.problem import Problem
from opq.compression.roles import Role, assign
from opq.errors import CertificateError, InfeasibleError, OptionError, PatternError, ProbeWarning, RankError
from opq.file.folder_reader import INDEX, index_bytes
from opq.plan import Plan, as_stored
from opq.probing.sensitivity import weights
from opq.sources import open_source
from opq.sources.base import Source, TensorSpec
from opq.streaming import size as prediction
from opq.streaming import work_folder as folders
from opq.streaming.block_probe import Carried
from opq.streaming.chunks import Tensors
from opq.streaming.clock import Clock
from opq.streaming.measure import Measure, measure, packed, scale_square, scales_of, ties, unpacked
from opq.streaming.model_blocks import UNAVAILABLE, Blocks, open_blocks
from opq.streaming.shards import Shards, finished, part_of, partition
from opq.streaming.team import Team
from opq.streaming.work_folder import Work

if TYPE_CHECKING:
    from opq.report.table import Report

SHARD_SIZE = 500_000_000
"""Bytes of an output shard unless the caller says otherwise."""
ROUNDS = 6
SAMPLINGS, NEAR = 4, 0.005
"""Samples are taken anew, so often at most, while the solution moves by more than this fraction: what classes save is a
fraction of the rate that depends on the rate."""
GROWN, FED_BLOCKS = 0.02, 8
"""What error feedback adds to the bits is measured in so many blocks, and anew when the bits have moved by so much."""
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


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Streamed:
    """A compressed folder, on disk."""

    folder: Path
    plan: Plan
    shards: tuple[str, ...]
    bytes: int
    """Of all shards and the index."""
    elements: int
    """Elements of the source's floating-point tensors, tied ones counted once."""
    source_bytes: int
    """Bytes of the source's tensors, tied ones counted once."""
    rounds: int
    """How often pass two was run: once where the predicted size held."""
    seconds: dict[str, float]
    """Seconds of this process by stage, on the wall, summed over its threads."""
    cpu_seconds: dict[str, float]
    """The same of the processor: what other work on the machine does not change."""
    basis: str
    """What sensitivities and codes rest on: a probe of the model, or the weights alone, and why."""
    left_out: tuple[str, ...] = ()
    """What the source holds and no file does: settings, metadata, tensors that its model does not load."""

    @property
    def bits(self) -> float:
        """Bits of the folder per floating-point element of the source."""
        return 8 * self.bytes / self.elements

    @property
    def ratio(self) -> float:
        """Bytes of the source's tensors over bytes of the folder."""
        return self.source_bytes / self.bytes

    def report(self) -> Report:
        """One row a tensor, drawn by rich."""
        from opq.file.folder_reader import FolderReader
        from opq.report.table import Report

        with FolderReader(self.folder) as reader:
            notes = (f"By {self.basis}.", *([f"Left out: {', '.join(self.left_out)}."] if self.left_out else []))
            return Report(plan=self.plan, sizes=reader.sizes, title=repr(self), notes=notes)

    def __repr__(self) -> str:
        return (
            f"<opq.streaming.Streamed {self.folder}: {len(self.shards)} shards, {self.bytes:,} bytes, "
            f"{self.bits:.3f} bits per weight, {self.ratio:.2f}x smaller, method {self.plan.method!r}>"
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
    """
    checked = _checked(options, shard_size)
    opened = open_source(source, dequantize=checked.dequantize, trust_remote_code=checked.trust_remote_code)
    folder = Path(output)
    refuse_inputs(folder, {*opened.inputs, *(path.parent for path in opened.inputs)})
    team, clock, tensors = Team.join(), Clock(), Tensors(opened)
    blocks, basis = _blocks(opened, checked, tensors, team)
    digest = folders.digest_of(opened, checked, shard_size, probed=blocks is not None)
    with pool(workers) as threads, _taken(folder, digest, team) as work:
        carried = None
        if blocks is not None:
            key = hashlib.sha256(f"{folders.source_key(opened)} {checked.seed}".encode()).hexdigest()[:16]
            carried = Carried(blocks, key, checked.seed, work, team, threads, clock, checked.progress)
        return _Run(
            source=opened,
            options=checked,
            work=work,
            team=team,
            pool=threads,
            clock=clock,
            shard_size=shard_size,
            tensors=tensors,
            carried=carried,
            basis=basis,
        ).run()


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
                    warnings.warn(f"{source.label} is compressed by {basis}", ProbeWarning, stacklevel=3)
    if len(said := set(team.each(basis.encode))) > 1:
        got = "; ".join(sorted(words.decode() for words in said))
        raise RankError("the processes see different models", got=got, remedy="Install the same packages everywhere.")
    return blocks, basis


@contextmanager
def _taken(folder: Path, digest: str, team: Team) -> Iterator[Work]:
    """The folder, locked by rank 0 for all ranks, in the state that an earlier run left it in."""
    work = Work(folder, team.first(digest.encode).decode())
    with ExitStack() as stack:

        def begin() -> bytes:
            stack.enter_context(folders.locked(folder))
            work.begin()
            return b""

        team.first(begin)
        yield work


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Target:
    """What the files may weigh, and where they go."""

    size: float
    """Bytes."""
    shards: list[list[str]]
    index: bytes
    """The text of the index."""

    def name(self, number: int) -> str:
        return folders.shard_name(number, len(self.shards))


@dataclasses.dataclass(kw_only=True)
class _Run:
    """One compression, stage by stage."""

    source: Source
    options: Options
    work: Work
    team: Team
    pool: Pool
    clock: Clock
    shard_size: int
    tensors: Tensors
    carried: Carried | None
    basis: str
    growth: dict[str, float] = dataclasses.field(default_factory=dict)
    growth_at: float = 0.0
    """Bits at which the growth was measured."""

    def run(self) -> Streamed:
        roles = _roles(self.source, self.options)
        measures = self.measures([role for role in roles if role.action == "compress"])
        same = json.loads(self.team.first(lambda: json.dumps(ties(self.source, measures, self.tensors)).encode()))
        if same:
            specs = tuple(dataclasses.replace(s, like=same.get(s.name, s.like)) for s in self.source.specs)
            self.source = dataclasses.replace(self.source, specs=_untangled(specs))
            roles = _roles(self.source, self.options)
        measures = {r.name: measures[r.name] for r in roles if r.action == "compress"}
        with self.clock("solve"):
            problem = self.problem(roles, measures)
        target = self.target(measures)
        self.team.first(lambda: self.begin(target))
        plan, size, rounds = self.rounds(problem, target)
        self.team.first(lambda: self.finish(target))
        return Streamed(
            folder=self.work.folder,
            plan=plan,
            shards=tuple(target.name(k) for k in range(len(target.shards))),
            bytes=size,
            elements=self.source.elements,
            source_bytes=self.source.bytes,
            rounds=rounds,
            seconds=dict(self.clock.seconds),
            cpu_seconds=dict(self.clock.cpu),
            basis=self.basis,
            left_out=self.source.ignored,
        )

    # --- pass one ----------------------------------------------------------------------------

    def measures(self, roles: Sequence[Role]) -> dict[str, Measure]:
        """Of every compressed tensor, in the source's order; each rank measures whole source shards."""
        groups: dict[Path | None, list[Role]] = {}
        for role in roles:
            groups.setdefault(self.source.files.get(role.name), []).append(role)
        listed = list(groups.values())
        mine = self.team.mine([sum(role.spec.nbytes for role in group) for group in listed])

        def work() -> bytes:
            found: dict[str, Measure] = {}
            for k in mine:
                found |= self.shard_measures(listed[k], len(found), len(roles))
            return packed(found)

        gathered: dict[str, Measure] = {}
        for part in self.team.each(work):
            gathered |= unpacked(part)
        return {role.name: gathered[role.name] for role in roles}

    def shard_measures(self, roles: Sequence[Role], done: int, total: int) -> dict[str, Measure]:
        """Of one source shard: those of an earlier run, or new ones, kept for a later one."""
        name = f"measure-{self.work.key(self.source, [role.spec for role in roles])}"
        if (before := self.work.get(name)) is not None:
            return unpacked(before)
        found = {}
        for name_, one in measure([role.spec for role in roles], self.tensors, self.pool, self.clock):
            found[name_] = one
            self.options.progress("statistics", done + len(found), total)
        self.work.put(name, packed(found))
        return found

    def problem(self, roles: tuple[Role, ...], measures: dict[str, Measure]) -> Problem:
        """The allocation problem, and what each tensor matters."""
        return Problem(
            options=self.options,
            roles=roles,
            stats=measures,  # type: ignore[arg-type]
            sensitivities=self.sensitivities(roles, measures),
            curves={name: found.curve for name, found in measures.items()},
        )

    def sensitivities(self, roles: Sequence[Role], measures: dict[str, Measure]) -> dict[str, float]:
        """All 1, unless probed or given; float8 weights by the mean square of their scales."""
        a = dict.fromkeys(measures, 1.0)
        for name, scale in scales_of(self.source).items():
            if name in a:
                a[name] = scale_square(self.source, scale)
        alpha = 1.0 if self.options.alpha is None else self.options.alpha
        if self.carried is not None:
            a |= self.felt(measures, alpha)
        elif self.options.probe and (probed := probe_source(self.source, self.options)) is not None:
            a |= probed.sensitivities(measures, alpha=alpha)
        given = self.options.sensitivities or {}
        if unknown := sorted(set(given) - set(a)):
            raise PatternError("sensitivities= names no compressed tensor", got=", ".join(unknown[:5]))
        a |= given
        return a | {r.name: r.sensitivity for r in roles if r.name in a and r.sensitivity is not None}

    def felt(self, measures: dict[str, Measure], alpha: float) -> dict[str, float]:
        """By the probe in blocks; a tied tensor feels for all its names, one that was never felt as the middle one."""
        assert self.carried is not None
        found: dict[str, float] = {}
        for name, square in self.carried.sensitivities().items():
            holder = self.source.by_name[name].like or name
            found[holder] = found.get(holder, 0.0) + square
        return weights(found, measures, alpha)

    # --- the budget --------------------------------------------------------------------------

    def target(self, measures: dict[str, Measure]) -> _Target:
        """Bytes that the files may have, and the tensors of each."""
        budget = self.options.budget
        assert budget is not None, "sparsity= is refused"
        wanted = budget.bytes(elements=self.source.elements, source_bytes=self.source.bytes)
        rate = 8 * wanted / self.source.elements
        shards = partition(self.source.specs, set(measures), rate, self.shard_size)
        where = {name: folders.shard_name(k, len(shards)) for k, names in enumerate(shards) for name in names}
        text = index_bytes({spec.name: where[spec.name] for spec in self.source.specs})
        return _Target(size=wanted, shards=shards, index=text)

    def begin(self, target: _Target) -> bytes:
        """Checks the room on the disk before the long part."""
        there = sum(p.stat().st_size for p in self.work.folder.glob("model-*.opq.safetensors"))
        largest = max(target.size / len(target.shards), self.shard_size / 4)
        folders.check_space(self.work.folder, target.size - there + min(largest * self.team.size, target.size))
        return b""

    def rounds(self, problem: Problem, target: _Target) -> tuple[Plan, int, int]:
        """Pass two, again with a corrected budget where the size came out wrong: the plan, the bytes, how often."""
        least = problem.least_bits
        history = self.history()
        while True:
            last = history[-1] if history else None
            if last is not None and "bytes" in last and self.settled(last, target, least, problem):
                plan = self.plan(problem, last)
                return plan, last["bytes"], len(history)
            if last is None:
                history.append(self.first_round(problem, target))
            elif "bytes" in last:
                history.append(self.corrected(history, target, least))
            self.record(history)
            history[-1]["bytes"] = self.write(self.plan(problem, history[-1]), target)
            self.record(history)

    def history(self) -> list[dict[str, Any]]:
        return list(json.loads(self.team.first(lambda: json.dumps(self.work.state.get("rounds", [])).encode())))

    def record(self, history: list[dict[str, Any]]) -> None:
        def save() -> bytes:
            self.work.save({"digest": self.work.digest, "rounds": history})
            return b""

        self.team.first(save)

    def plan(self, problem: Problem, one: dict[str, Any]) -> Plan:
        with self.clock("solve"):
            return as_stored(problem.plan(one["bits"]).replace(predicted_bytes=round(one["predicted"])))

    def first_round(self, problem: Problem, target: _Target) -> dict[str, Any]:
        """Bits of codes by which the predicted size is the budget."""
        with self.clock("solve"):
            sketch, least = problem.sketch(), problem.least_bits
            nothing = {t.name: prediction.Sample(1.0, 24.0) for t in sketch.compressed}
            fixed = len(target.index) + prediction.fixed_bytes(self.source, sketch, target.shards, nothing)
            fixed += 24 * len(nothing)
            bits = max(8 * (AIM * target.size - fixed), least, 1.0)
        for _ in range(SAMPLINGS):
            before = bits
            guess = problem.plan(bits)
            taken = self.samples(guess)
            with self.clock("solve"):
                fixed = len(target.index) + prediction.fixed_bytes(self.source, guess, target.shards, taken)
                bits, predicted = prediction.Predictor(taken, fixed).solve(problem, AIM * target.size, bits)
            if abs(bits - before) < NEAR * before:
                break
        if bits <= least and predicted > 1.01 * target.size:
            raise self.infeasible(target, predicted)
        return {"bits": bits, "predicted": predicted}

    def samples(self, plan: Plan) -> dict[str, prediction.Sample]:
        """Of every compressed tensor; each rank takes some."""
        sizes = [t.size for t in plan.compressed]
        small = sum(sizes) <= prediction.SMALL
        mine = [plan.compressed[k] for k in self.team.mine([min(size, prediction.WHOLE) for size in sizes])]

        def work() -> bytes:
            return prediction.text_of(prediction.samples(mine, self.tensors, self.pool, self.clock, small=small))

        taken: dict[str, prediction.Sample] = {}
        for part in self.team.each(work):
            taken |= prediction.from_text(part)
        bits = sum(t.rate * t.size for t in plan.compressed)
        if self.carried is not None and abs(bits - self.growth_at) > GROWN * bits:
            self.growth, self.growth_at = self.grown(self.carried, plan, taken, small), bits
        return {n: dataclasses.replace(s, ratio=s.ratio * self.growth.get(n, 1.0)) for n, s in taken.items()}

    def grown(self, carried: Carried, plan: Plan, plain: dict[str, prediction.Sample], small: bool) -> dict[str, float]:
        """What error feedback adds to the bits of each tensor, measured in some of the blocks."""
        blocks = carried.blocks
        every = range(0, len(blocks), -(-len(blocks) // FED_BLOCKS))
        mine = list(every)[self.team.rank :: self.team.size]

        def work() -> bytes:
            taken: dict[str, prediction.Sample] = {}
            for k in mine:
                inputs = carried.inputs(k)
                chosen = [t for t in plan.compressed if t.name in inputs]
                taken |= prediction.samples(chosen, self.tensors, self.pool, self.clock, small=small, inputs=inputs)
            return prediction.text_of(taken)

        fed: dict[str, prediction.Sample] = {}
        for part in self.team.each(work):
            fed |= prediction.from_text(part)
        roles = {name: role for k in range(len(blocks)) for role, name in blocks.named(k).items()}
        return prediction.growth(plain, fed, roles)

    def settled(self, last: dict[str, Any], target: _Target, least: float, problem: Problem) -> bool:
        """Whether a round's size is in the window, or nothing is to be gained."""
        if last["bytes"] > target.size:
            if last["bits"] <= least:
                raise self.infeasible(target, last["bytes"])
            return False
        return (
            "final" in last or last["bytes"] >= WINDOW * target.size or problem.allocate(last["bits"]).multiplier == 0
        )

    def corrected(self, history: list[dict[str, Any]], target: _Target, least: float) -> dict[str, Any]:
        """The next round's bits: by the last one's size, between two rounds on either side; at last the best again.

        Weights of few values (float8) make the size jump as steps move; then no size may be in the window.
        """
        below = [h for h in history if h["bytes"] <= target.size]
        above = [h for h in history if h["bytes"] > target.size]
        if len(history) >= ROUNDS:
            if not below:
                got = [h["bytes"] for h in history]
                raise CertificateError("no round met the budget", got=got, wanted=f"at most {target.size:.0f}")
            best = max(below, key=lambda h: (h["bytes"], -h["bits"]))
            return {"bits": best["bits"], "predicted": best["predicted"], "final": True}
        aim = AIM * target.size
        if below and above:
            low, high = max(below, key=lambda h: h["bits"]), min(above, key=lambda h: h["bits"])
            bits = between((low["bits"], low["bytes"]), (high["bits"], high["bytes"]), aim)
        else:
            bits = max(history[-1]["bits"] + 8 * (aim - history[-1]["bytes"]), least, 1.0)
        return {"bits": bits, "predicted": aim}

    def infeasible(self, target: _Target, smallest: float) -> InfeasibleError:
        needed = 8 * smallest * 1.005 / self.source.elements
        return InfeasibleError(
            f"no folder of {self.source.label} is that small",
            got=f"a budget of {target.size:.0f} bytes",
            wanted=f"about {smallest * 1.005:.0f} bytes, that is bits={needed:.4f}, or more",
        )

    # --- pass two ----------------------------------------------------------------------------

    def write(self, plan: Plan, target: _Target) -> int:
        """Every shard of a plan; those that are there already stay. Returns the bytes of all files."""
        parts = [part_of(plan, names) for names in target.shards]
        mine = self.team.mine([sum(t.size for t in part) for part in parts])
        shards = Shards(self.source, self.tensors, self.pool, self.clock, self.carried)

        def work() -> bytes:
            sizes = {}
            for done, k in enumerate(mine):
                path = self.work.folder / target.name(k)
                size = finished(path, parts[k])
                sizes[k] = shards.write(path, parts[k], plan) if size is None else size
                self.options.progress("shards", done + 1, len(mine))
            return json.dumps(sizes).encode()

        total = sum(sum(json.loads(part).values()) for part in self.team.each(work))
        return total + len(target.index)

    def finish(self, target: _Target) -> bytes:
        """Side files, then the index; nothing temporary is left."""
        if self.source.folder is not None:
            folders.copy_side_files(self.source.folder, self.work.folder)
        with written_aside(self.work.folder / INDEX) as out:
            out.write(target.index)
        self.work.finish()
        return b""


def _roles(source: Source, options: Options) -> tuple[Role, ...]:
    """As `opq.compression.roles.assign`, and the scales of float8 weights are kept."""
    roles = assign(source.specs, options.overrides)
    scales = set(scales_of(source).values())
    return tuple(
        dataclasses.replace(r, action="keep", reason="scales of float8 weights")
        if r.name in scales and r.action == "compress" and "override" not in r.reason
        else r
        for r in roles
    )


def _untangled(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Ties that lead to a holder in one step."""
    like = {spec.name: spec.like for spec in specs}
    return tuple(dataclasses.replace(s, like=like[s.like] or s.like) if s.like is not None else s for s in specs)
