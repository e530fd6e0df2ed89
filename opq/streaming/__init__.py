"""Checkpoints larger than memory: streamed, resumable, on every core and on many machines.

chunks   tensors of a source in pieces          measure  pass one: a curve and a few numbers a tensor
predict  the budget in bytes of all files       coding   pass two: one tensor, piece by piece
shards   one output file                        work     the output folder: lock, state, side files
team     the processes that work together       run      the whole
dense    back to an ordinary sharded folder
"""

from __future__ import annotations

from opq.streaming.dense import save_dense_folder
from opq.streaming.run import Streamed, compress_folder

__all__ = ["Streamed", "compress_folder", "save_dense_folder"]
