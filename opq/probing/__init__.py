"""What a network does on inputs, synthetic or real: sensitivities, input moments, BatchNorm statistics.

Other folders use:

- `images`: synthetic images.
- `inputs`: synthetic inputs for a model without data.
- `layers`: which layers of a model have inputs that can be observed, and how these become rows.
- `page`: how a model is given token ids, and which of these are no words.
- `renorm`: BatchNorm statistics for a quantized network.
- `sensitivity`: `probe`, which measures all of this.
- `texts`: texts that a language model writes itself.
- `units`: errors of outputs, relative to how these vary.
- `usage`: how often the rows of tables of tokens are used.
"""

from __future__ import annotations

__all__ = ["images", "inputs", "layers", "page", "renorm", "sensitivity", "texts", "units", "usage"]
