"""Training interrupted and resumed exactly: weights, moments, random states and the place in the data.

A checkpoint is a file of `torch.save` that loads with `weights_only=True`. It is written under a temporary name and
renamed, so that the last good one survives if the process is killed. Under `torch.distributed` process 0 writes whole
tensors.
"""

from __future__ import annotations

import os
import pickle
import random
import zipfile
import zlib
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from opq.base.atomic import written_aside
from opq.base.extras import brief
from opq.errors import CorruptFileError, MismatchError, WriteError
from opq.models.wrappers import unwrapped
from opq.plan import Plan
from opq.sources.files import DAMAGED
from opq.training import processes
from opq.training.fixed_grid import FixedGrid


def random_states() -> dict[str, Any]:
    """The states of every random generator that a data loader may draw from: torch's, numpy's, Python's."""
    kind, keys, position, has_gauss, cached = cast(tuple[Any, ...], np.random.get_state())
    states = {"torch": torch.get_rng_state(), "python": random.getstate()}
    states["numpy"] = [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached]
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """The inverse of `random_states`."""
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def save(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Writes a checkpoint under a temporary name, then renames it; the previous one stays until then.

    Raises:
        WriteError: it could not be written; it is removed, and the previous one stays.
    """
    try:
        with written_aside(path) as file:
            torch.save(state, file)
    except RuntimeError as error:  # what torch.save makes of a full disk
        raise WriteError(f"cannot write the checkpoint {os.fspath(path)}", got=error) from error


def load(path: str | os.PathLike[str], plan: Plan) -> dict[str, Any]:
    """The checkpoint at `path`.

    Raises:
        CorruptFileError: it cannot be read, or holds something else.
        MismatchError: it was written with another plan.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (part := archive.testzip()) is not None:  # torch does not look at the checksums
                raise ValueError(f"wrong checksum of {part}")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (*DAMAGED, zipfile.BadZipFile, NotImplementedError, zlib.error, pickle.UnpicklingError) as error:
        raise CorruptFileError(f"the checkpoint {path} cannot be read", got=brief(error), remedy=_ANEW) from error
    if not isinstance(state, dict) or not state.keys() >= _FIELDS:
        raise CorruptFileError(f"{path} is no checkpoint of a training", got=type(state).__name__, remedy=_ANEW)
    if state["plan"] != plan_digest(plan):
        remedy = "Resume with the plan and options that training began with, or delete it to start anew."
        raise MismatchError(f"the checkpoint {path} was written with another plan", remedy=remedy)
    return state


_ANEW = "Delete it to start anew, or pass resume=False."
_FIELDS = {"plan", "model", "optimizer", "scaler", "epoch", "step", "total", "options", "random", "epoch_random"}


def plan_digest(plan: Plan) -> int:
    """CRC-32 of the plan's canonical JSON, without the words on what it rests on."""
    return zlib.crc32(plan.replace(basis="").to_json().encode())


# --- model and optimizer, whole or sharded --------------------------------------------------


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Model and optimizer as whole tensors by name; a collective call if there are several processes."""
    if processes.world_size() == 1:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    own, moments = get_state_dict(model, optimizer, options=options)
    return {"model": own, "optimizer": moments}


def set_training_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """The inverse of `training_state`.

    Raises:
        MismatchError: a mask of the checkpoint differs from the attached one: training began with other weights.
    """
    for name, module in unwrapped(model).named_modules():
        if isinstance(module, FixedGrid):
            mask = state["model"][f"{name}.mask"]
            if not torch.equal(module.kept.cpu(), mask.cpu() != 0):
                remedy = "Attach the plan to the weights that training began with, then resume."
                raise MismatchError(f"tensor {module.plan.name!r}: the checkpoint has another mask", remedy=remedy)
            state["model"][f"{name}.mask"] = mask.to(module.mask.dtype)  # a byte each where the kernel is compiled
    if processes.world_size() == 1:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    optimizer.zero_grad()  # torch makes the moments that it will fill only where there is no gradient yet
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"],
                   options=options)  # fmt: skip
