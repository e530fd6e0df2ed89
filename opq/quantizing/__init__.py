"""Weights to integer codes and back: the grid, the trellis, error feedback.

Other folders use:

- `feedback`: error feedback.
- `grid`: weights <-> integer codes on one tensor's grid.
- `moment`: the second moment of a layer's inputs, as error feedback needs it.
- `rows`: a step for each row.
- `trellis`: trellis-coded quantization.
- `triangle`: symmetric and triangular matrices, held without what is below the diagonal.
- `turned`: tensors whose first axis counts no outputs, as matrices (outputs, inputs).
"""

from __future__ import annotations

__all__ = ["feedback", "grid", "moment", "rows", "trellis", "triangle", "turned"]
