"""Weight-only training: masks and steps are fixed, weights are trained.

Other folders use:

- `attaching`: attach and detach the fixed compression module.
- `collecting`: from a trained model back to a compression result.
- `finetuning`: weight-only fine-tuning.
- `kernel`: a C++ kernel for the fixed grid, for fine-tuning on a CPU.
- `loop`: the training loop, its options, and its exact resumption.
- `objective`: what fine-tuning minimises.
- `sites`: where a model keeps the tensors of a plan.
"""

from __future__ import annotations

__all__ = ["attaching", "collecting", "finetuning", "kernel", "loop", "objective", "sites"]
