"""Checkpoints larger than memory: streamed, resumable, on every core and on many machines.

- `run`: the whole; `clock`: its seconds; `team`: the processes that work together
- `chunks`: tensors of a source in pieces; `measure`: pass one, a curve and a few numbers a tensor
- `model_blocks`, `block_probe`, `block_feedback`: the probe and error feedback, one block of the model at a time
- `size`: the budget in bytes of all files; `encode`: pass two, one tensor, piece by piece
- `shards`: one output file; `work_folder`: the output folder with its lock, state and side files
- `dense`: back to an ordinary sharded folder
"""

from __future__ import annotations

from opq.streaming.dense import save_dense_folder
from opq.streaming.run import Streamed, compress_folder

__all__ = ["Streamed", "compress_folder", "dense", "run", "save_dense_folder"]
