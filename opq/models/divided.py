"""Which dimension of each of a user's tensors counts the samples, and which tensors all samples share.

A mask of attention (L, L), the edges (2, E) of a graph and the states (layers, B, H) of a recurrent layer do not begin
with the samples, and shapes alone do not tell. So the forward is asked: a few samples in another order, some of them
left out, must give the same outputs in that order. A dimension of time does not, because later steps see earlier ones.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from opq.base.calls import warn
from opq.base.extras import brief
from opq.errors import OptionError, ProbeError, ProbeWarning
from opq.models.batch import Batch, as_batch
from opq.models.observe import untouched
from opq.models.outputs import floating
from opq.models.record import Record

FEW = 3
"""Samples that are tried at most."""
MOST = 48
"""Ways to divide a batch that are tried at most."""
ALIKE = 1e-3
"""Part of an output's largest number by which it may differ with the samples beside it: sums of another order."""


@torch.no_grad()
def divided(model: nn.Module, batch: Batch) -> Batch:
    """The batch with the dimensions that count samples; as it is where the model runs with none of them.

    The first dimension that the model runs with where the outputs follow none. The model comes back untouched.

    Raises:
        ProbeError: the model does not run with the batch.
    """
    runs: list[tuple[int | None, ...]] = []
    with untouched(model):
        record, on_model = Record(model), batch.to(model)
        for dims in itertools.islice(_ways(list(batch.tensors)), MOST):
            found = _follows(model, dataclasses.replace(on_model, dim=dims), record)
            if found:
                return _named(batch, dims)
            if found is not None and dims[0] is not None:
                runs.append(dims)
        if runs:
            return _named(batch, runs[0])
        try:
            on_model(model)
        except Exception as error:
            raise _refused(model, error) from error
        finally:
            record.restore()
    return dataclasses.replace(batch, dim=None)


def _refused(model: nn.Module, error: Exception) -> ProbeError:
    """What to say where the model does not run with what the user passed."""
    return ProbeError(
        f"{type(model).__name__} does not run with the inputs that were passed",
        got=brief(error),
        wanted="what a call of the model takes: a tensor, a tuple of its arguments, or a dict by their names",
        remedy="Correct them so that the model runs with them, or pass probe=False.",
    )


def _named(batch: Batch, dims: tuple[int | None, ...]) -> Batch:
    """The batch with these dimensions, as one number where this says the same."""
    named = dataclasses.replace(batch, dim=0)
    return named if named.dims == dims else dataclasses.replace(batch, dim=dims)


def _ways(tensors: Sequence[torch.Tensor]) -> Iterator[tuple[int | None, ...]]:
    """Dimensions of each tensor, the likeliest first: the first tensor begins with the samples, and others like it."""
    for first, lead in enumerate(tensors):
        for dim in range(min(2, lead.dim())):
            total = lead.shape[dim]
            others = [[*(d for d in range(t.dim()) if t.shape[d] == total), None] for t in tensors[first + 1 :]]
            ranked = itertools.product(*(range(len(some)) for some in others))
            for at in sorted(itertools.islice(ranked, 1000), key=lambda at: (sum(at), at)):
                chosen = (some[k] for some, k in zip(others, at, strict=True))
                yield (*[None] * first, dim, *chosen)


def _follows(model: nn.Module, batch: Batch, record: Record) -> bool | None:
    """Whether the outputs follow the order of the samples; None where the model does not run with other samples."""
    few = min(FEW, batch.samples)
    order = torch.tensor({1: [0, 0], 2: [1, 0, 1]}.get(few, [2, 0]))
    before = _outputs(model, batch.rows(torch.arange(few)), record)
    after = _outputs(model, batch.rows(order), record)
    if before is None or after is None or len(before) != len(after):
        return None
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a.shape != b.shape]
    return bool(pairs) and all(_ordered(a, b, order) for a, b in pairs)


def _outputs(model: nn.Module, batch: Batch, record: Record) -> list[torch.Tensor] | None:
    """What the model gives; None where it does not run."""
    try:
        return [output.clone() for output in floating(batch(model))]
    except Exception:  # a stranger's forward may fail in any way: that is what is being asked
        return None
    finally:
        record.restore()


def _ordered(before: torch.Tensor, after: torch.Tensor, order: torch.Tensor) -> bool:
    """Whether an output is another one with its samples in this order."""
    differing = [d for d, (m, n) in enumerate(zip(before.shape, after.shape, strict=False)) if m != n]
    if before.dim() != after.dim() or len(differing) != 1:
        return False
    wanted = before.index_select(differing[0], order.to(before.device)).float().nan_to_num()
    most = ALIKE * float(wanted.abs().max()) if wanted.numel() else 0.0
    return after.shape == wanted.shape and bool(((after.float().nan_to_num() - wanted).abs() <= most).all())


# --- several batches as one ------------------------------------------------------------------


def gathered(model: nn.Module, batches: Iterable[object], samples: int) -> Batch:
    """The first `samples` samples of a user's batches as one batch.

    Of batches that cannot be divided, such as graphs, the first one, with a `ProbeWarning` where there are others.

    Raises:
        OptionError: there are none, or their shapes differ.
    """
    calls: list[Batch] = []
    for given in batches:
        call = as_batch(model, given)
        calls.append(dataclasses.replace(call, dim=calls[0].dim) if calls else divided(model, call))
        if sum(call.samples for call in calls) >= samples and calls[0].dim is not None:
            break
        if len(calls) > 1 and calls[0].dim is None:
            warn("the batches of calibration= cannot be divided into samples: only the first is used", ProbeWarning)
            break
    if not calls:
        raise OptionError("calibration= holds no batch", remedy="Pass an iterable of batches that the forward takes.")
    if calls[0].dim is None:
        return calls[0]
    try:
        whole = _joined(calls)
    except (RuntimeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise OptionError(
            "the batches of calibration= do not fit together",
            got=str(error).splitlines()[0],
            wanted="the same keys, and shapes equal but for the number of samples",
            remedy="Pad all batches to one length.",
        ) from error
    return next(whole.along(lambda t, dim: t.narrow(dim, 0, min(samples, t.shape[dim]))).parts(samples))


def _joined(calls: Sequence[Batch]) -> Batch:
    """Several calls as one: tensors are concatenated along their samples, of all else the first is taken."""
    columns = zip(*(call.tensors for call in calls), calls[0].dims, strict=True)
    joined = iter([_column(tensors, dim) for *tensors, dim in columns])
    if any(call.kwargs.keys() != calls[0].kwargs.keys() for call in calls):
        raise KeyError("other keys")
    return calls[0].map(lambda _: next(joined))


def _column(tensors: Sequence[torch.Tensor], dim: int | None) -> torch.Tensor:
    if dim is not None:
        return torch.cat(list(tensors), dim)
    if any(not torch.equal(tensors[0], t) for t in tensors):
        raise ValueError(f"a tensor {tuple(tensors[0].shape)} that the samples of a batch share differs between them")
    return tensors[0]
