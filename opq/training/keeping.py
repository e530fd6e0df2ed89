"""Codes that stay as they are, while what is not compressed is trained: biases, norms, small tensors.

A path of a trellis depends on all weights of its column, and codes with steps by row on no step that training could
see, so neither can be moved weight by weight. They need not be: scales and shifts of the channels make up for much of
what the codes lost, they are few, so that little data suffices, and the file keeps its size.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from torch import nn

from opq.compression import in_file
from opq.compression.fit import assemble
from opq.compression.result import Result
from opq.errors import AttachError, OffCodebookError, OptionError
from opq.models.attachment import is_attached
from opq.plan import Plan
from opq.sources import open_source
from opq.training.grid_plan import is_other
from opq.training.holding import allowed
from opq.training.proving import dense_state_dict
from opq.training.sites import find, plain

PARTS = (0.5, 0.25, 0.0)
"""Of what training moved, tried in turn where the whole makes the file too large: kept tensors are stored by their
entropy, and may take some bytes more than before."""


def coded(model: nn.Module, plan: Plan | Result, wanted: str | None, *, free: bool) -> Result | None:
    """The result whose codes stay as they are; None where weights are trained.

    They stay as asked for, else where there are no labels (`free`) and the codes are not on plain grids.

    Raises:
        OptionError: they shall stay, but there are none.
    """
    if wanted == "train" or (wanted is None and (not free or is_attached(model))):
        return None
    if isinstance(plan, Plan):
        if wanted is None:
            return None
        remedy = "Pass the result of opq.compress, or the path of its file."
        raise OptionError("codes='keep' needs codes", got="a plan", wanted="a result or a file", remedy=remedy)
    return plan if wanted == "keep" or any(map(is_other, plan.plan.compressed)) else None


@contextlib.contextmanager
def codes_kept(model: nn.Module, result: Result) -> Iterator[None]:
    """The model with the weights of a result, of which those that have codes are not trained.

    Raises:
        MismatchError: names, shapes or ties of the result and the model differ.
        AttachError: a plan is attached to the model.
        OptionError: the result is of a method whose codes are no multiples of a step.
    """
    for tensor in result.plan.compressed:
        if not tensor.stepped:
            fact, remedy = f"tensor {tensor.name!r} has no codes to keep", "Compress with method='rd' or 'opq'."
            raise OptionError(fact, got=tensor.codebook, wanted="multiples of a step", remedy=remedy)
    if is_attached(model):
        remedy = "Call opq.detach(model) first, or pass codes='train'."
        raise AttachError("codes='keep' needs a model to which no plan is attached", remedy=remedy)
    coded = [plain(*of[0]) for of in find(model, result.plan).values()]
    before = [w.requires_grad for w in coded]
    model.load_state_dict(result.state_dict())
    try:
        for w in coded:
            w.requires_grad_(False)
        yield
    finally:
        for w, own in zip(coded, before, strict=True):
            w.requires_grad_(own)


def with_kept(model: nn.Module, result: Result, *, held: bool = True) -> Result:
    """The result with the model's kept tensors in place of its own, and the very same codes.

    Args:
        held: whether its file stays below the budget, or where there is none, below its present size. Where the new
            values take too many bytes, they are moved by a part of the way only, and the model is given them.

    Raises:
        OffCodebookError: a compressed tensor of the model has other weights than its codes give.
    """
    _check_unchanged(model, result)
    after = dense_state_dict(model)
    found = _assembled(after, model, result)
    if not held or found.bytes <= _most(result):
        return found
    before = result.state_dict()
    for part in PARTS:
        state = {name: _between(before[name], tensor, part) for name, tensor in after.items()}
        found = _assembled(state, model, result) if part else result
        if found.bytes <= _most(result):
            break
    model.load_state_dict(state)
    return found


def _between(start: torch.Tensor, end: torch.Tensor, part: float) -> torch.Tensor:
    return start + (part * (end - start)).to(start.dtype) if end.is_floating_point() else start


def _most(result: Result) -> float:
    """Bytes that the file may take: never fewer than it had."""
    return max(allowed(result), result.bytes)


def _assembled(state: dict[str, torch.Tensor], model: nn.Module, result: Result) -> Result:
    source = dataclasses.replace(open_source(state), label=result.label, origin="module", make=lambda: model)
    codes = {name: q.numpy() for name, q in result.codes.items()}
    seen, plan, own = in_file.rebuilt(source, result.plan, codes, result.reader)
    return assemble(seen, plan, own, {}, note=result.reader.note)


def _check_unchanged(model: nn.Module, result: Result) -> None:
    for name, of in find(model, result.plan).items():
        if not torch.equal(plain(*of[0]).detach().cpu(), result.tensor(name)):
            remedy = "Leave compressed tensors as they are, or train them: codes='train'."
            raise OffCodebookError(f"tensor {name!r} is not what its codes give", remedy=remedy)
