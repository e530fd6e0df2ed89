"""A live model: called, unwrapped and looked into, and left as it was.

Other folders use:

- `attachment`: how a model shows that it carries the compression module.
- `batch`: a batch of a model's inputs, whatever its forward takes.
- `observe`: looking into a live model and leaving it exactly as it was.
- `outputs`: what a forward gives.
- `targets`: the tensors of a model as places to put values in.
- `wrappers`: modules that only wrap the user's model, such as `DataParallel`.
"""

from __future__ import annotations

__all__ = ["attachment", "batch", "observe", "outputs", "targets", "wrappers"]
