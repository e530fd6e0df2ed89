"""Checkpoints larger than memory: streamed, resumable, on every core and on many machines.

- `run`: the whole, stage by stage; `task`, `limits`: what every stage works with, and by which numbers
- `first_pass`, `measure`: every tensor to a curve and a few numbers; `chunks`: tensors of a source in pieces
- `model_blocks`, `block_probe`, `block_feedback`: the probe and error feedback, one block of the model at a time
- `rounds`, `size`: the budget in bytes of all files, foreseen and corrected
- `second_pass`, `shards`, `encode`: all output files; one of them; one tensor, piece by piece
- `work_folder`, `resume`: the output folder with its lock and state; how an interrupted run is taken up
- `team`: the processes that work together; `clock`: their seconds
- `result`: what is given back; `dense`: back to an ordinary sharded folder
"""

from __future__ import annotations

from opq.streaming.dense import save_dense_folder
from opq.streaming.result import Streamed
from opq.streaming.run import compress_folder

__all__ = ["Streamed", "compress_folder", "dense", "run", "save_dense_folder"]
