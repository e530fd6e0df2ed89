"""opq: one-shot pruning, quantization and entropy coding of pre-trained networks. No data, no search, a small file.

Names are imported when they are first used, so that `import opq` alone loads neither torch nor anything else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opq import constraints, demo, evaluation, export, hub, methods, report, streaming
    from opq.api import compress, solve
    from opq.compression.result import Result
    from opq.errors import OpqError, OpqWarning
    from opq.file.loading import load, load_state_dict
    from opq.file.reader import Reader
    from opq.plan import Budget, Plan, TensorPlan
    from opq.probing.sensitivity import Probe, probe
    from opq.sources import Source, open_source
    from opq.streaming.run import compress_folder
    from opq.training.attaching import attach, detach
    from opq.training.collecting import collect
    from opq.training.finetuning import Finetuned, finetune
    from opq.training.loop import Epoch, Training
    from opq.updates.applying import apply
    from opq.updates.making import delta

__version__ = "0.1.0"

_HOMES = {
    "Budget": "plan",
    "Epoch": "training.loop",
    "Finetuned": "training.finetuning",
    "OpqError": "errors",
    "OpqWarning": "errors",
    "Plan": "plan",
    "Probe": "probing.sensitivity",
    "Reader": "file.reader",
    "Result": "compression.result",
    "Source": "sources",
    "TensorPlan": "plan",
    "Training": "training.loop",
    "apply": "updates.applying",
    "attach": "training.attaching",
    "collect": "training.collecting",
    "compress": "api",
    "compress_folder": "streaming.run",
    "delta": "updates.making",
    "detach": "training.attaching",
    "finetune": "training.finetuning",
    "load": "file.loading",
    "load_state_dict": "file.loading",
    "open_source": "sources",
    "probe": "probing.sensitivity",
    "solve": "api",
}
"""The module, below `opq`, that each public name is imported from."""

__all__ = [
    "Budget",
    "Epoch",
    "Finetuned",
    "OpqError",
    "OpqWarning",
    "Plan",
    "Probe",
    "Reader",
    "Result",
    "Source",
    "TensorPlan",
    "Training",
    "apply",
    "attach",
    "collect",
    "compress",
    "compress_folder",
    "constraints",
    "delta",
    "demo",
    "detach",
    "evaluation",
    "export",
    "finetune",
    "hub",
    "load",
    "load_state_dict",
    "methods",
    "open_source",
    "probe",
    "report",
    "solve",
    "streaming",
]


def __getattr__(name: str) -> Any:
    """A public name or module, imported on first use."""
    if name in _HOMES:
        found = getattr(importlib.import_module(f"opq.{_HOMES[name]}"), name)
    elif name in __all__:
        found = importlib.import_module(f"opq.{name}")
    else:
        raise AttributeError(f"module 'opq' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Only what is public."""
    return [*__all__, "__version__"]
