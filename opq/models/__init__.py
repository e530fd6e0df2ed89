"""A live model: calling it, unwrapping it, observing it, and leaving it as it was.

Other folders use:

- `attachment`: how a model shows that it carries the compression module.
- `batch`: a batch of a model's inputs, whatever its forward takes.
- `divided`: which dimension of each of a user's tensors counts the samples.
- `observe`: observing a live model and leaving it exactly as it was.
- `outputs`: the floating-point tensors in the output of a forward.
- `record`: all that a forward may change in a model, recorded and put back.
- `targets`: the tensors of a model as places into which values are put.
- `wrappers`: modules that only wrap the user's model, such as `DataParallel`.
"""

from __future__ import annotations

__all__ = ["attachment", "batch", "divided", "observe", "outputs", "record", "targets", "wrappers"]
