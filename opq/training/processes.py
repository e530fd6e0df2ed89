"""What fine-tuning needs of `torch.distributed`. With a single process each of these functions is trivial."""

from __future__ import annotations

import torch
from torch import distributed


def world_size() -> int:
    """The number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process; process 0 writes files."""
    return distributed.get_rank() if world_size() > 1 else 0


def barrier() -> None:
    """Waits for all processes."""
    if world_size() > 1:
        distributed.barrier()


def everywhere(yes: bool, device: torch.device) -> bool:
    """Whether `yes` holds on every process."""
    if world_size() == 1:
        return yes
    flag = torch.tensor(int(yes), device=device)
    distributed.all_reduce(flag, distributed.ReduceOp.MIN)
    return bool(flag)


def same_everywhere(number: int, device: torch.device) -> bool:
    """Whether all processes hold the same integer (below 2^62)."""
    if world_size() == 1:
        return True
    ends = torch.tensor([number, -number], device=device)
    distributed.all_reduce(ends, distributed.ReduceOp.MAX)
    return int(ends[0]) == -int(ends[1])
