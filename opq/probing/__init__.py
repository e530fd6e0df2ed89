"""What a network does on inputs, synthetic or real: sensitivities, input moments, BatchNorm statistics.

Other folders use:

- `images`: synthetic images.
- `inputs`: synthetic inputs for a model without data.
- `layers`: which layers of a model have inputs that can be observed, and how these become rows.
- `renorm`: BatchNorm statistics for a quantized network.
- `sensitivity`: `probe`, which measures all of this.
- `units`: errors of outputs, relative to how these vary.
"""

from __future__ import annotations

__all__ = ["images", "inputs", "layers", "renorm", "sensitivity", "units"]
