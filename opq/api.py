"""The calls that make a file: `compress`, and `solve`, which decides only.

source -> roles -> statistics -> [probe] -> Problem -> Plan -> codes -> file in memory -> Result
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from opq import methods
from opq.allocation.curve import Curve
from opq.base import compiled
from opq.base.calls import checked_names, warn
from opq.base.format_v1 import BUDGET_KINDS
from opq.base.progress import Progress
from opq.base.stages import stage, timed
from opq.base.tables import some
from opq.compression.alpha import weighed
from opq.compression.by_outputs import ByOutputs, alike, of_rows, restated
from opq.compression.coders import LIVE, Coder, DataFreeCoder, PlainCoder, basis_of, probe_source, wants_probe
from opq.compression.compared import without_probe
from opq.compression.copies import without_copies
from opq.compression.differences import Differences
from opq.compression.fit import Fit
from opq.compression.least_rates import NEVER, LeastRates
from opq.compression.options import Options
from opq.compression.prior import guessed
from opq.compression.problem import Problem, gather
from opq.compression.result import Result
from opq.compression.roles import Override, Role, assign
from opq.compression.trellised import TRIED, in_numpy, may_follow, pays, sample
from opq.compression.unchanged import Unchanged
from opq.constraints import Constraint
from opq.errors import WeightsWarning
from opq.file.base import open_base
from opq.file.basis import WEIGHTS
from opq.file.folder_reader import open_reader
from opq.methods.calling import asked
from opq.methods.options import Settings
from opq.plan import Plan
from opq.probing.sensitivity import Probe
from opq.sources import SourceLike, open_source
from opq.sources.base import Source
from opq.training.loop import Batches

MethodName = Literal["rd", "opq", "clipq", "kmeans", "lamp", "magnitude", "olmp", "pq"]
"""The short form of a method."""


@checked_names
def compress(
    source: SourceLike,
    *,
    bits: float | None = None,
    ratio: float | None = None,
    size: float | str | None = None,
    method: MethodName | methods.Method = "rd",
    overrides: Mapping[str, Override] | None = None,
    constraints: Sequence[Constraint] = (),
    sensitivities: Mapping[str, float] | None = None,
    probe: bool | Literal["quick"] | None = None,
    calibration: Iterable[Any] | str | os.PathLike[str] | None = None,
    input_size: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    example_inputs: Any = None,
    alpha: float | None = None,
    trellis: bool | None = None,
    sparsity: float | None = None,
    data: Batches | None = None,
    evaluate: Callable[[nn.Module], Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    method_options: Any = None,
    seed: int = 0,
    like: str | os.PathLike[str] | None = None,
    base: SourceLike | None = None,
    dequantize: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | bool | None = None,
) -> Result:
    """Compresses a pre-trained network into a small file: no data, no search, no training.

    Args:
        source: a `torch.nn.Module`, a state dict, a `.safetensors` file, a folder of (sharded) safetensors, a `.pt` or
            `.pth` file, or a name: `hf:ORG/NAME` (or a folder), `timm:NAME`, `torchvision:NAME`, `demo:NAME`.
        bits: budget as 8 x file bytes / elements of the floating-point tensors. Codes have 16 bits at most, so a
            Gaussian tensor takes no more than about 14.8 and one with far outliers less: `Result.shortfall` says so.
        ratio: budget as bytes of the source's tensors / bytes of the file.
        size: budget in bytes of the file, a number or a text such as `"2MB"`. Exactly one of the three.
        method: an object of `opq.methods` with the method's own options, or its name: `"rd"` (default), the joint
            rate-distortion optimum, or `"opq"`, the paper's two steps. For comparison the other published methods:
            `"clipq"`, `"kmeans"`, `"lamp"`, `"magnitude"`, `"olmp"`, `"pq"`.
        overrides: glob pattern -> `"keep"`, `"compress"` or numbers (`bits`, `min_bits`, `max_bits`, `sensitivity`).
        constraints: of `rd` and `opq`: objects of `opq.constraints`, solved through cvxpy.
        sensitivities: of `rd` and `opq`: `a_i` by tensor name, in place of the probe's; tensors not named have 1.
        probe: of `rd` and `opq`: measure sensitivities on synthetic inputs, feed quantization errors back and
            re-normalise BatchNorm. By default where the source has a model that can be run; that of a folder of more
            than 4 GiB is not built unless this is True. "quick": a language model draws the words of its texts all at
            once, not one after the other.
        calibration: of `rd` and `opq`: batches of real inputs, used in place of synthetic ones; or a tensor of inputs,
            or a folder or an `.npz` file of pictures without labels, of which 128 are looked at.
        input_size: shape of one input without the batch dimension, where the model does not say; of a forward with
            several arguments, the shapes by their names.
        example_inputs: an example of what the forward takes, where the model does not say.
        alpha: of `rd` and `opq`: exponent of the probe's sensitivities, 0 to 1; by default chosen by the predicted
            error of the outputs.
        trellis: of `rd`: whether tensors that get 1.25 bits per weight or more are quantized on a trellis, which gives
            the smallest error for a size. By default they are, unless there are `constraints=`. Fine-tuning takes the
            plain grids of the same rates instead.
        sparsity: of `opq`: fraction of weights pruned, `bits` being bits per kept weight, as in the paper.
        data: of the other methods: batches of (inputs, targets), or a function of the epoch that gives them.
        evaluate: of the other methods: the model's score in percent, where a search needs it.
        checkpoint: of the other methods: a path to resume an interrupted search or training from.
        method_options: of the other methods: the rest of their own options by name, where `method` is a name.
        seed: of the synthetic inputs; the same seed gives the same bytes.
        like: of `rd` and `opq`: an older file of the network, whose budget is taken unless one is given. Tensors that
            get the same codes by their old plan keep this plan and their bytes, so that stores which deduplicate
            chunks transfer only what changed; the rest of the budget is divided among the other tensors.
        base: of `rd` and `opq`: another version of the network that everybody who loads the file has, too: given as
            `source` is, or as an opq file. The differences to it are compressed, and the file gives its SHA-256:
            `opq.load(path, model, base=...)`. BatchNorm is not re-normalised.
        dequantize: for a checkpoint that is quantized already: whether to decode its weights and compress these;
            otherwise its codes, scales and zero points are kept as they are.
        trust_remote_code: whether to run Python code that comes with a model's folder or repository.
        progress: called with (stage, done, total); True for a bar, False for none. By default a bar appears after two
            seconds, on a terminal or in a notebook only.

    Raises:
        OpqError: one of its subclasses for each way to be wrong; docs/errors.md lists them.

    Example:
        >>> import opq
        >>> result = opq.compress("demo:digits", bits=3, probe=False)
        >>> 0.995 * 3 <= result.bits <= 3
        True
    """
    with asked(_budgeted(locals())) as options, timed() as seconds:
        opened = _opened(source, options)
        if isinstance(options.how, Settings):
            result, basis = methods.run(opened, options), f"method {options.method!r}"
        else:
            roles = _roles(opened, options)
            stats = gather(opened, roles, options.progress)
            probed = probe_source(opened, options)
            scaled = _by_outputs(opened, options, roles, probed)
            problem, coder = _problem(
                scaled, options, roles, restated(scaled, stats), probed, on_trellis=options.trellis
            )
            made = _fit(problem, scaled, coder).run()
            if isinstance(coder, DataFreeCoder):
                plain, rounded = _plain(problem, scaled, opened, stats)
                if other := without_probe(
                    coder,
                    made,
                    plain,
                    rounded,
                    lambda: _fit(_on_trellis(plain, rounded.source), rounded.source, rounded).run(),
                ):
                    coder, made = rounded, other
            result, basis = made.result, basis_of(opened, options, coder.note)
    plan = result.plan.replace(basis=basis)
    return dataclasses.replace(result, plan=plan, seconds=seconds, left_out=opened.ignored, inputs=opened.inputs)


@checked_names
def solve(
    source: SourceLike,
    *,
    bits: float | None = None,
    ratio: float | None = None,
    size: float | str | None = None,
    method: MethodName | methods.Method = "rd",
    overrides: Mapping[str, Override] | None = None,
    constraints: Sequence[Constraint] = (),
    sensitivities: Mapping[str, float] | None = None,
    probe: bool | Literal["quick"] | None = None,
    calibration: Iterable[Any] | str | os.PathLike[str] | None = None,
    input_size: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    example_inputs: Any = None,
    alpha: float | None = None,
    trellis: bool | None = None,
    sparsity: float | None = None,
    data: Batches | None = None,
    evaluate: Callable[[nn.Module], Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    method_options: Any = None,
    seed: int = 0,
    like: str | os.PathLike[str] | None = None,
    base: SourceLike | None = None,
    dequantize: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | bool | None = None,
) -> Plan:
    """Decides only: the Plan that `compress` with the same options would apply. Nothing is touched.

    The size of the file is predicted from the rates; `compress` measures it. That the probe helps is not checked here.

    Args:
        source: as of `compress`, and so is all that follows.
        bits: budget as 8 x file bytes / elements of the floating-point tensors.
        ratio: budget as bytes of the source's tensors / bytes of the file.
        size: budget in bytes of the file, a number or a text such as `"2MB"`. Exactly one of the three.
        method: an object of `opq.methods`, or its name: `"rd"`, `"opq"`, or one of the other published methods, which
            decide only by doing their work.
        overrides: glob pattern -> `"keep"`, `"compress"` or numbers (`bits`, `min_bits`, `max_bits`, `sensitivity`).
        constraints: of `rd` and `opq`: objects of `opq.constraints`, solved through cvxpy.
        sensitivities: of `rd` and `opq`: `a_i` by tensor name, in place of the probe's; tensors not named have 1.
        probe: of `rd` and `opq`: whether to measure sensitivities on synthetic inputs; "quick" as in `compress`.
        calibration: of `rd` and `opq`: batches of real inputs, used in place of synthetic ones; or a tensor of inputs,
            or a folder or an `.npz` file of pictures without labels, of which 128 are looked at.
        input_size: shape of one input without the batch dimension, where the model does not say; of a forward with
            several arguments, the shapes by their names.
        example_inputs: an example of what the forward takes, where the model does not say.
        alpha: of `rd` and `opq`: exponent of the probe's sensitivities, 0 to 1.
        trellis: of `rd`: whether tensors that get 1.25 bits per weight or more are planned on a trellis. By default
            they are not: a plan is what `opq.attach` and `opq.finetune` start from, and these need plain grids.
        sparsity: of `opq`: fraction of weights pruned, `bits` being bits per kept weight.
        data: of the other methods: batches of (inputs, targets), or a function of the epoch that gives them.
        evaluate: of the other methods: the model's score in percent, where a search needs it.
        checkpoint: of the other methods: a path to resume an interrupted search or training from.
        method_options: of the other methods: the rest of their own options by name, where `method` is a name.
        seed: of the synthetic inputs.
        like: of `rd` and `opq`: an older file of the network; the plans of tensors that did not change are kept.
        base: of `rd` and `opq`: another version of the network, the differences to which are planned.
        dequantize: for a checkpoint that is quantized already: whether to decide on its decoded weights.
        trust_remote_code: whether to run Python code that comes with a model's folder or repository.
        progress: called with (stage, done, total); True for a bar, False for none.

    Raises:
        OpqError: as `compress`.

    Example:
        >>> import opq
        >>> plan = opq.solve("demo:digits", ratio=10, probe=False)
        >>> plan.compressed[0].name, plan.residual < 1e-6
        ('0.weight', True)
    """
    with asked(_budgeted(locals())) as options:
        opened = _opened(source, options)
        if isinstance(options.how, Settings):
            return methods.run(opened, options).plan.replace(basis=f"method {options.method!r}")
        roles = _roles(opened, options)
        stats = gather(opened, roles, options.progress)
        probed = probe_source(opened, options)
        problem, coder = _problem(opened, options, roles, stats, probed, on_trellis=options.trellis_asked)
        plan = _fit(problem, opened, coder).decide()
        return plan.replace(basis=basis_of(opened, options, coder.note, coded=False))


def _budgeted(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """A call's keywords, with the budget of the older file if none is given."""
    like = given["like"]
    if like is None or any(given[kind] is not None for kind in BUDGET_KINDS):
        return given
    with open_reader(like) as old:
        budget = old.plan.budget
    return given if budget is None else {**given, budget.kind: budget.value}


def _fit(problem: Problem[Any], source: Source, coder: Coder) -> Fit:
    """What finds the plan of a problem, with what is taken over from an older file."""
    problem, unchanged = _unchanged(problem, source, coder)
    return Fit(source, problem, coder, problem.options.progress, unchanged)


def _unchanged(problem: Problem[Any], source: Source, coder: Coder) -> tuple[Problem[Any], Unchanged]:
    """The problem of the tensors that changed since the older file, and what is taken over from this file."""
    if problem.options.like is None:
        return problem, Unchanged()
    with stage("compare"), open_reader(problem.options.like) as old:
        unchanged = Unchanged.of(old, source, problem.roles, coder)
    return problem.without(unchanged.plans), unchanged


def _opened(source: SourceLike, options: Options) -> Source:
    """The source; equal tensors of bare weights are one, those of a live model may be trained apart."""
    with stage("open"):
        opened = open_source(source, dequantize=options.dequantize, trust_remote_code=options.trust_remote_code)
    if isinstance(source, nn.Module) and opened.ignored:
        warn(f"{some(opened.ignored)}: no tensors, and so not in the file. Keep them beside it.", WeightsWarning)
    if options.base is not None:
        with stage("base"):
            return Differences.of(opened, open_base(options.base))
    return opened if opened.origin in LIVE or wants_probe(opened, options) else without_copies(opened)


def _roles(source: Source, options: Options) -> tuple[Role, ...]:
    """The part that every tensor plays, once the method has agreed to it."""
    roles = assign(source.specs, options.overrides)
    options.how.check_roles(roles)
    return roles


def _by_outputs(source: Source, options: Options, roles: tuple[Role, ...], probed: Probe | None) -> Source:
    """The source that gives tensors by their outputs, where the options allow that."""
    if not options.by_outputs:
        return source
    with contextlib.nullcontext() if options.like is None else open_reader(options.like) as old:
        return ByOutputs.of(source, roles, probed, turning=options.trellis, old=old)


def _problem(
    source: Source,
    options: Options,
    roles: tuple[Role, ...],
    stats: Mapping[str, Any],
    probed: Probe | None,
    *,
    on_trellis: bool,
) -> tuple[Problem[Any], Coder]:
    """The allocation problem and what makes codes of its plans."""
    given = of_rows(source, _given(options, roles, stats))
    known = bool(probed is not None and probed.sensitivity)
    found = dict.fromkeys(stats, 1.0) if known else _guessed(source, stats, options)
    trellised = may_follow(roles, _is_crosswise(source, probed)) if on_trellis else frozenset()
    with stage("curves"):
        problem = Problem.of(options, roles, stats=stats, sensitivities=found | given)
    with stage("compile"):
        compiled.prepare(in_numpy(roles, trellised, fed=probed is not None), options.progress)
    problem = dataclasses.replace(problem, trellised=_least_rates(source, problem, trellised))
    if probed is None:
        return problem, PlainCoder(source)
    coder = DataFreeCoder(source, probed, calibrated=options.calibration is not None)
    return weighed(coder, problem, given) if known else (problem, coder)


def _plain(
    problem: Problem[Any], scaled: Source, source: Source, stats: Mapping[str, Any]
) -> tuple[Problem[Any], PlainCoder]:
    """The same problem without what a probe tells, on plain grids, and what makes codes of its plans.

    Args:
        scaled: the source of the problem, whose rows may be scaled by what the probe tells.
        source: the network itself.
        stats: statistics of its tensors.
    """
    options, roles = problem.options, problem.roles
    bare = _by_outputs(source, options, roles, None)
    same = alike(bare, scaled, stats)
    found = restated(bare, {name: problem.stats[name] if name in same else stats[name] for name in stats}, but=same)
    with stage("curves"):
        curves = {name: problem.curves[name] if name in same else Curve.of(found[name]) for name in found}
    sensitivities = _guessed(bare, found, options) | of_rows(bare, _given(options, roles, found))
    plain = dataclasses.replace(problem, stats=found, curves=curves, sensitivities=sensitivities, trellised=NEVER)
    return plain, PlainCoder(bare, WEIGHTS)


def _on_trellis(problem: Problem[Any], source: Source) -> Problem[Any]:
    """A problem on plain grids without a probe, with the trellis where it pays if the options allow that."""
    if not problem.options.trellis:
        return problem
    trellised = may_follow(problem.roles, _is_crosswise(source, None))
    return dataclasses.replace(problem, trellised=_least_rates(source, problem, trellised))


def _given(options: Options, roles: Iterable[Role], stats: Iterable[str]) -> dict[str, float]:
    """The sensitivities that the user gives; all of them where `sensitivities=` does."""
    given = {} if options.sensitivities is None else dict.fromkeys(stats, 1.0) | dict(options.sensitivities)
    named = {role.name: role.sensitivity for role in roles if role.sensitivity is not None and role.name in stats}
    return given | named


def _guessed(source: Source, stats: Mapping[str, Any], options: Options) -> dict[str, float]:
    """Sensitivities from the weights alone, or 1."""
    return guessed(source, stats, options.budget) if options.weighs else dict.fromkeys(stats, 1.0)


def _least_rates(source: Source, problem: Problem[Any], names: Collection[str]) -> LeastRates:
    """Of the tensors that may be on a trellis, the rate from which on it pays."""

    def one(name: str, rate: float) -> bool:
        tensor = source.tensor(name)
        rows = tensor.detach().cpu().reshape(tensor.shape[0], -1)
        some = torch.cat([rows[piece] for piece in sample(tuple(tensor.shape))])
        return pays(some, problem.curves[name], problem.stats[name].max_abs, rate)

    return LeastRates(names, TRIED, one)


def _is_crosswise(source: Source, probed: Probe | None) -> Callable[[str], bool]:
    """Whether the rows of a source's tensor are no outputs, as far as a probe tells."""
    turns = source.turns if isinstance(source, ByOutputs) else {}
    return lambda name: probed is not None and name not in turns and probed.is_crosswise(name)
