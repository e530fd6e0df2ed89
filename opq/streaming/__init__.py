"""Checkpoints larger than memory: streamed, resumable, on every core and on many machines.

- `run`: all stages in order; `task`, `limits`: what every stage works with, and its numerical limits
- `first_pass`, `measure`: from every tensor to its curve; `chunks`: reading tensors of a source in pieces
- `model_blocks`, `block_probe`, `block_feedback`: the probe and error feedback, one block of the model at a time;
  `block_texts`, `block_gradients`, `block_inputs`: its texts, its sweep back, what each matrix is multiplied by
- `rounds`, `size`: the budget in bytes of all files, predicted and then corrected
- `second_pass`, `shards`, `encode`: writing all output files; one of them; one tensor, piece by piece
- `paths`: the search of a trellis, piece by piece
- `work_folder`, `resume`: the output folder with its lock and state; resuming an interrupted run
- `team`: the processes that work together; `clock`: how long their stages take
- `result`: what is returned; `dense`: from a compressed folder back to an ordinary sharded one
"""

from __future__ import annotations

from opq.streaming.dense import save_dense_folder
from opq.streaming.result import Streamed
from opq.streaming.run import compress_folder

__all__ = ["Streamed", "compress_folder", "dense", "run", "save_dense_folder"]
