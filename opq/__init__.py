"""opq: one-shot pruning, quantization and entropy coding of pre-trained networks. No data, no search, a small file."""

from __future__ import annotations

from opq import constraints
from opq.api import compress, solve
from opq.compression.result import Result
from opq.errors import OpqError, OpqWarning
from opq.file.loading import load, load_state_dict
from opq.file.reader import Reader
from opq.plan import Budget, Plan, TensorPlan
from opq.probing.sensitivity import probe
from opq.sources import open_source
from opq.streaming.run import compress_folder
from opq.training.attaching import attach, detach
from opq.training.collecting import collect
from opq.training.finetuning import finetune
from opq.training.loop import Training

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "OpqError",
    "OpqWarning",
    "Plan",
    "Reader",
    "Result",
    "TensorPlan",
    "Training",
    "attach",
    "collect",
    "compress",
    "compress_folder",
    "constraints",
    "detach",
    "finetune",
    "load",
    "load_state_dict",
    "open_source",
    "probe",
    "solve",
]
