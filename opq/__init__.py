"""opq: one-shot pruning, quantization and entropy coding of pre-trained networks. No data, no search, a small file."""

from __future__ import annotations

from opq import constraints
from opq.compress import compress, solve
from opq.container import Reader
from opq.errors import OpqError, OpqWarning
from opq.finetune import finetune
from opq.loading import load, load_state_dict
from opq.module import attach, detach
from opq.plan import Budget, Plan, TensorPlan
from opq.probe import probe
from opq.result import Result
from opq.scale import compress_folder
from opq.sources import open_source
from opq.trained import collect
from opq.training import Training

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
