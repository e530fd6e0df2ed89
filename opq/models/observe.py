"""Observing a live model and leaving it exactly as it was.

This is done by context managers: at their end, also after an error, modes, buffers, caches, `requires_grad`, hooks and
the state of every random number generator are restored.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from opq.base.pool import give_back
from opq.base.process_state import ordinary_arithmetic, same_random_state
from opq.errors import ProbeError
from opq.models.record import Record

Hook = Callable[[str, nn.Module, Sequence[torch.Tensor]], None]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in inference mode; afterwards each of its modules, for example a frozen BatchNorm, has its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, mode in modes:
            module.training = mode


def _renewed(model: nn.Module) -> None:
    """Inference mode by way of training mode, in which modules drop what they cached in inference mode."""
    try:
        model.train()
        model.eval()
    except NotImplementedError:  # what torch.export gives has the one mode that it was exported in
        return


@contextlib.contextmanager
def untouched(model: nn.Module, *, replaced: Collection[str] = ()) -> Iterator[Record]:
    """The model in inference mode; afterwards all that it holds, its caches too, and random generators are as before.

    One thread at a time may be in such a block, so that two threads can observe the same model. Autocast and inference
    mode are off. Yields what will be put back.

    Args:
        replaced: names of parameters in whose place the model runs with others, by `functional_call` alone: these need
            no copy of their values.

    Raises:
        ProbeError: the model holds lazy modules, whose weights do not exist yet.
    """
    _refuse_lazy(model)
    with same_random_state(_cuda_devices(model)), ordinary_arithmetic(_default_dtype(model)):
        record = Record(model, weights=True, replaced=replaced)
        scripted = [(m, m.training) for m in model.modules() if isinstance(m, torch.jit.ScriptModule)]
        fast = torch.backends.mha.get_fastpath_enabled()
        try:
            torch.backends.mha.set_fastpath_enabled(False)  # the fused path calls no submodules, so no hook would run
            _renewed(model)
            yield record
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            record.restore()
            for module, mode in scripted:  # whose members no record sees
                module.training = mode


def _default_dtype(model: nn.Module) -> torch.dtype:
    """In which the forward makes tensors of its own: float64 if the model is."""
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    return torch.float64 if first is not None and first.dtype == torch.float64 else torch.float32


@contextlib.contextmanager
def batch_statistics(model: nn.Module) -> Iterator[list[tuple[str, _BatchNorm]]]:
    """Every BatchNorm in batch-statistics mode, without updating its running statistics; for use inside `untouched`.

    The output of each then has mean `bias` and standard deviation `|weight|`, as with real data, whatever the input is
    (docs/mathematics.md). Yields the BatchNorm modules by name.
    """
    norms = [(name, m) for name, m in model.named_modules() if isinstance(m, _BatchNorm)]
    saved = [(norm, norm.track_running_stats, norm.training) for _, norm in norms]
    try:
        for norm, _, _ in saved:
            norm.track_running_stats, norm.training = False, True
        yield norms
    finally:
        for norm, tracks, mode in saved:
            norm.track_running_stats, norm.training = tracks, mode


@contextlib.contextmanager
def watching(modules: Mapping[str, nn.Module], see: Hook) -> Iterator[None]:
    """Calls `see(name, module, inputs)` before each module runs, with the tensors among its arguments, if any.

    Those inside tuples are among them: packed sequences and the states of recurrent modules.
    """

    def hook(name: str) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = list(_tensors((*args, *kwargs.values())))
            if given:
                see(name, module, given)

        return before

    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_pre_hook(hook(name), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


TAKEN = 1 << 27
"""Bytes that modules take in between two times that freed memory is given back. A choice: activations take a multiple
of it where memory matters at all; what is given back costs time when it is used again."""


@contextlib.contextmanager
def tidied(model: nn.Module) -> Iterator[None]:
    """While a model runs, the memory that it frees goes back to the system now and then.

    It keeps some activations and frees others, between which later ones often do not fit: the heap was a third larger
    than what was in use.
    """
    taken = 0

    def see(name: str, module: nn.Module, given: Sequence[torch.Tensor]) -> None:
        nonlocal taken
        taken += sum(tensor.nbytes for tensor in given)
        if taken >= TAKEN:
            give_back()
            taken = 0

    with watching({name: m for name, m in model.named_modules() if next(m.children(), None) is None}, see):
        yield


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from _tensors(value)


def device_of(model: nn.Module) -> torch.device:
    """The model's device: that of its first parameter or buffer."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def _refuse_lazy(model: nn.Module) -> None:
    lazy = [name for name, p in (*model.named_parameters(), *model.named_buffers()) if is_lazy(p)]
    if lazy:
        raise ProbeError(
            "the model holds lazy modules without weights",
            got=", ".join(lazy[:3]),
            remedy="Run one forward pass on a real input first.",
        )


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    return sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)


def batchnorms(model: nn.Module) -> Iterator[_BatchNorm]:
    """Every BatchNorm and SyncBatchNorm of the model."""
    return (module for module in model.modules() if isinstance(module, _BatchNorm))
