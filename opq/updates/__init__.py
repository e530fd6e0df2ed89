"""What changed between two checkpoints, as a file of its own, and the new checkpoint from the old one and that.

Other folders use:

- `applying`: an old checkpoint and an update -> the new checkpoint, byte for byte.
- `making`: two checkpoints -> the update between them.
"""

from __future__ import annotations

__all__ = ["applying", "making"]
