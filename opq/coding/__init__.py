"""Integers to bytes and back. Knows no tensor and no file.

Other folders use:

- `adaptive`: models that learn from what they have coded, for the few numbers and letters beside the weights.
- `classes`: classes of weights by the scale of their row, column and kernel position.
- `entropy`: integer codes <-> bytes, near their entropy.
- `numbers`: floats in the stack, each exact, all at the smallest sufficient width.
- `stack`: one stack of symbols.
- `symbols`: codes <-> symbols.
- `tensor_model`: how the codes of one tensor are coded.
- `text`: text in the stack.
"""

from __future__ import annotations

__all__ = ["adaptive", "classes", "entropy", "numbers", "stack", "symbols", "tensor_model", "text"]
