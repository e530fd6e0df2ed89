"""A live model: called, unwrapped and looked into, and left as it was.

Other folders use:

- `batch`: a batch of a model's inputs, whatever its forward takes.
- `observe`: looking into a live model and leaving it exactly as it was.
- `outputs`: what a forward gives.
- `record`: all that a forward may change in a model, recorded and put back.
- `targets`: the tensors of a model as places to put values in.
- `wrappers`: modules that only wrap the user's model, such as `DataParallel`.
"""

from __future__ import annotations

__all__ = ["batch", "observe", "outputs", "record", "targets", "wrappers"]
