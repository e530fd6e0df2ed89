"""Updates: a file with what changed between two checkpoints, which turns the old one into the new one.

Other folders use:

- `making`: two checkpoints -> the update between them.
- `applying`: an old checkpoint and an update -> the new checkpoint, byte for byte.

Inside: `checkpoint` and `anatomy` take files apart into heads and segments (the bytes of one tensor); `envelope` and
`contents` are the file of an update and its index; `patterns`, `elements`, `differences` and `recoded` turn segments
into integers and code their differences; `renewing` makes new files from old ones and payloads.
"""

from __future__ import annotations

__all__ = ["applying", "making"]
