"""The calls that make a file: `compress`, and `solve`, which decides only.

source -> roles -> statistics -> [probe] -> Problem -> Plan -> codes -> file in memory -> Result
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from opq import methods
from opq.compression.alpha import weighed
from opq.compression.coders import Coder, DataFreeCoder, PlainCoder, basis_of, probe_source
from opq.compression.fit import Fit
from opq.compression.options import PUBLISHED, Options
from opq.compression.problem import Problem, gather
from opq.compression.result import Result
from opq.compression.roles import Role, assign
from opq.errors import OptionError, PatternError
from opq.plan import Plan
from opq.probing.sensitivity import Probe
from opq.sources import open_source
from opq.sources.base import Source

SourceLike = nn.Module | Mapping[str, Any] | str | os.PathLike[str] | Source
"""A module, a state dict, a path, a name such as `hf:ORG/NAME`, or an opened `Source`."""


def compress(source: SourceLike, **options: Any) -> Result:
    """Compresses a pre-trained network into a small file: no data, no search, no training.

    Args:
        source: a `torch.nn.Module`, a state dict, a `.safetensors` file, a folder of (sharded) safetensors, a `.pt` or
            `.pth` file, or a name: `hf:ORG/NAME` (or a folder), `timm:NAME`, `torchvision:NAME`, `demo:NAME`.
        bits: budget as 8 x file bytes / elements of the floating-point tensors.
        ratio: budget as bytes of the source's tensors / bytes of the file.
        size: budget in bytes of the file. Exactly one of the three.
        method: `"rd"` (default), the joint rate-distortion optimum, or `"opq"`, the paper's two steps. For comparison
            the other published methods: `"clipq"`, `"kmeans"`, `"lamp"`, `"magnitude"`, `"olmp"`, `"pq"`.
        sparsity: with `method="opq"`: fraction of weights pruned, `bits` being bits per kept weight, as in the paper.
        overrides: glob pattern -> `"keep"`, `"compress"` or numbers (`bits`, `min_bits`, `max_bits`, `sensitivity`).
        constraints: objects of `opq.constraints`, solved through cvxpy.
        sensitivities: `a_i` by tensor name, in place of the probe's; tensors not named have 1.
        probe: measure sensitivities on synthetic inputs, feed quantization errors back and re-normalise BatchNorm.
            By default where the source has a model that can be run.
        calibration: batches of real inputs, used in place of synthetic ones.
        input_size: shape of one input without the batch dimension, where the model does not say.
        example_inputs: an example of what the forward takes, where the model does not say.
        alpha: exponent of the probe's sensitivities, 0 to 1; by default chosen by the predicted error of the outputs.
        trellis: trellis-coded quantization where a tensor gets 1.5 bits a weight or more: the smallest error at a
            size, more work, and a result that is not to be fine-tuned. With `method="rd"`, without `constraints=`.
        seed: of the synthetic inputs; the same seed gives the same bytes.
        progress: called with (stage, done, total).
        data: with the other methods: batches of (inputs, targets), or a function of the epoch that gives them.
        evaluate: with the other methods: the model's score in percent, where a search needs it.
        checkpoint: with the other methods: a path to resume an interrupted search or training from.
        dequantize: of a checkpoint that is quantized already, compress the weights that its codes stand for; without
            it, codes and all that decodes them are kept as they are.
        trust_remote_code: run Python code that a model's folder or repository brings; never by default.
        method_options: with the other methods: their own options, the fields of a class in `opq.methods.settings`.

    Raises:
        OpqError: one of its subclasses for each way to be wrong; docs/errors.md lists them.
    """
    checked = Options.of(options)
    opened = _source(source, checked)
    if checked.method in PUBLISHED:
        basis = f"method {checked.method!r}"
        return described(methods.run(opened, checked), opened, basis)
    problem, coder = _problem(opened, checked)
    result = Fit(opened, problem, coder, checked.progress).run()
    probed = coder.probe if isinstance(coder, DataFreeCoder) else None
    return described(result, opened, basis_of(opened, checked, probed))


def solve(source: SourceLike, **options: Any) -> Plan:
    """Decides only: the Plan that `compress` with the same options would apply. Nothing is touched.

    Takes the options of `compress`. The size of the file is predicted from the rates; `compress` measures it.
    """
    checked = Options.of(options)
    opened = _source(source, checked)
    if checked.method in PUBLISHED:
        return methods.run(opened, checked).plan
    problem, _ = _problem(opened, checked)
    return Fit(opened, problem, PlainCoder(opened), checked.progress).decide()


def described(result: Result, source: Source, basis: str) -> Result:
    """The result with what it was made from and by."""
    return dataclasses.replace(result, basis=basis, left_out=source.ignored, inputs=source.inputs)


def _source(source: SourceLike, options: Options) -> Source:
    return open_source(source, dequantize=options.dequantize, trust_remote_code=options.trust_remote_code)


def _problem(source: Source, options: Options) -> tuple[Problem, Coder]:
    """The allocation problem and what makes codes of its plans."""
    roles = assign(source.specs, options.overrides)
    bounded = [role.name for role in roles if (role.min_bits, role.max_bits) != (0.0, math.inf)]
    if options.method == "opq" and bounded:
        raise OptionError(
            "overrides= bounds the bits of a tensor",
            got=f"method='opq' and {bounded[0]!r}",
            wanted="method='rd'",
            remedy="Use method='rd', or constraints= on sparsity with sparsity= and bits=.",
        )
    stats = gather(source, roles, options.progress)
    given = {role.name: role.sensitivity for role in roles if role.sensitivity is not None and role.name in stats}
    given = {**_named(options, stats), **given}
    probed = probe_source(source, options)
    trellised = _trellised(roles, probed) if options.trellis else frozenset()
    problem = Problem(
        options=options,
        roles=roles,
        stats=stats,
        sensitivities=dict.fromkeys(stats, 1.0) | given,
        trellised=trellised,
    )
    if probed is None:
        return problem, PlainCoder(source)
    coder = DataFreeCoder(source, probed)
    return weighed(coder, problem, given), coder


def _trellised(roles: Iterable[Role], probed: Probe | None) -> frozenset[str]:
    """Matrices, but for those that feedback takes as (inputs, outputs): paths follow the outputs of one input."""
    names = {role.name for role in roles if role.action == "compress" and len(role.spec.shape) >= 2}
    layouts = {name: probed.moments.layout(name) for name in names} if probed is not None else {}
    return frozenset(name for name in names if not ((layout := layouts.get(name)) and layout.transposed))


def _named(options: Options, stats: Mapping[str, Any]) -> dict[str, float]:
    """Sensitivities of the option `sensitivities=`: given at all, it stands for every tensor."""
    if options.sensitivities is None:
        return {}
    unknown = sorted(set(options.sensitivities) - set(stats))
    if unknown:
        raise PatternError("sensitivities= names no compressed tensor", got=", ".join(unknown[:5]))
    return dict.fromkeys(stats, 1.0) | dict(options.sensitivities)
