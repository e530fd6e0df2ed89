"""BatchNorm re-normalisation without data (docs/mathematics.md, "Re-normalisation").

Quantization changes the statistics that BatchNorm was trained for. The same batch is run through the dense and the
quantized network, both with BatchNorm in batch-statistics mode. With mean `m` and variance `v` at a BatchNorm's input
in the dense network, and `m^`, `v^` in the quantized one, the stored mean `mu` and variance `sigma2` become
`mu + (m^ - m) sqrt(sigma2/v)` and `sigma2 v^/v`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.func import functional_call

from opq.base.process_state import turn
from opq.models.batch import Batch
from opq.models.observe import batch_statistics, untouched, watching
from opq.models.record import Record

Statistics = dict[str, tuple[torch.Tensor, torch.Tensor]]
TINY = 1e-12
"""Variances below this count as no signal, so that the channel keeps its stored statistics. A choice: far below any eps
of a BatchNorm."""


def renormalise(
    model: nn.Module,
    state: Mapping[str, torch.Tensor],
    batch: Batch,
    *,
    micro_batch: int = 16,
    dense: Statistics | None = None,
) -> dict[str, torch.Tensor]:
    """New running means and variances for the quantized network, by buffer name.

    Args:
        model: the dense network; it is left unchanged.
        state: the quantized network: tensors by state-dict name (missing ones are taken from the model).
        batch: the inputs, synthetic or real.
        dense: the result of `statistics` for the dense network, if it is known already.

    Three kinds of BatchNorm are left out: those without running statistics, those whose statistics are still the
    initial ones, and those that are never run.
    """
    dense = statistics(model, {}, batch, micro_batch=micro_batch) if dense is None else dense
    moved = statistics(model, state, batch, micro_batch=micro_batch)
    with turn():
        modules = dict(model.named_modules())
        stored = {name: (modules[name].running_mean, modules[name].running_var) for name in dense}
    new: dict[str, torch.Tensor] = {}
    for name, (m, v) in dense.items():
        mean, variance = stored[name]
        if mean is None or variance is None or _untrained(mean, variance):
            continue
        m_hat, v_hat = moved[name]
        alive = (v > TINY) & (v_hat > TINY) & torch.isfinite(v + v_hat + m + m_hat)
        gain = torch.where(alive, v_hat / v.clamp(min=TINY), torch.ones_like(v))
        shift = torch.where(alive, (m_hat - m) * (variance.double() / v.clamp(min=TINY)).sqrt(), torch.zeros_like(v))
        prefix = f"{name}." if name else ""
        new[f"{prefix}running_mean"] = (mean.double() + shift).to(mean.dtype)
        new[f"{prefix}running_var"] = (variance.double() * gain).to(variance.dtype)
    return new


def _untrained(mean: torch.Tensor, variance: torch.Tensor) -> bool:
    """Whether the statistics are the initial ones, 0 and 1, which say nothing about any data."""
    return not bool(mean.any()) and bool((variance == 1).all())


@torch.no_grad()
def statistics(
    model: nn.Module, state: Mapping[str, torch.Tensor], batch: Batch, *, micro_batch: int = 16
) -> Statistics:
    """Mean and variance (float64) at every BatchNorm's input, when the model runs with `state` instead of its own."""
    state, tally = known(model, state), Tally()
    with untouched(model, replaced=state), batch_statistics(model) as norms, watching(dict(norms), tally.see):
        record = Record(model)
        for part in batch.to(model).parts(micro_batch):
            functional_call(model, state, part.args, dict(part.kwargs))
            record.restore()
    return tally.statistics


class Tally:
    """Means over the calls of each BatchNorm of the mean and variance (float64) at its input."""

    def __init__(self) -> None:
        self._sums: Statistics = {}
        self._counts: dict[str, int] = {}

    def see(self, name: str, module: nn.Module, given: Sequence[torch.Tensor]) -> None:
        """Adds the mean and variance at the input of one call."""
        x = given[0].float()
        dims = [0, *range(2, x.dim())]
        m = x.mean(dims, keepdim=True)
        v = (x - m).square_().mean(dims).double()
        mean, variance = self._sums.get(name, (torch.zeros_like(v), torch.zeros_like(v)))
        self._sums[name] = (mean + m.flatten().double(), variance + v)
        self._counts[name] = self._counts.get(name, 0) + 1

    @property
    def statistics(self) -> Statistics:
        return {name: (m / self._counts[name], v / self._counts[name]) for name, (m, v) in self._sums.items()}


def known(model: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a state dict that replace parameters and buffers of the model, on the model's device."""
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    return {name: tensor.to(own[name].device) for name, tensor in state.items() if name in own}
