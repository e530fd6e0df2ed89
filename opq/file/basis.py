"""What a file's codes rest on: a short note in the header's metadata, and the sentence that it stands for.

A reader needs it for nothing. A file without a note was made from the weights alone, and is as large as it ever was.
"""

from __future__ import annotations

import json

from opq.file.header import METADATA

BY = "by"
"""The member of the metadata."""
SYNTHETIC = "a probe of the model on synthetic inputs: sensitivities"
"""What a plan rests on that no codes are made of yet, and a file whose errors were not fed back."""
REAL = "a probe of the model on calibration inputs: sensitivities"
_SYNTHETIC, _REAL = f"{SYNTHETIC}, error feedback", f"{REAL}, error feedback"
UNFED = "sensitivities"
"""The note of a file whose errors were not fed back."""
NOTES = {
    UNFED: SYNTHETIC,
    "probe": _SYNTHETIC,
    "probe+norms": f"{_SYNTHETIC}, re-normalised BatchNorm",
    "calibration": _REAL,
    "calibration+norms": f"{_REAL}, re-normalised BatchNorm",
}
"""Every note that there is, with what it says."""


def noted(*, calibrated: bool, renormalised: bool) -> str:
    """The note of a file whose codes rest on a probe."""
    return ("calibration" if calibrated else "probe") + ("+norms" if renormalised else "")


def note_of(data: memoryview) -> str:
    """The note in a file whose header was read before; empty where there is none that is known."""
    metadata = json.loads(bytes(data[8 : 8 + int.from_bytes(data[:8], "little")]))[METADATA]
    note = metadata.get(BY)
    return note if isinstance(note, str) and note in NOTES else ""


def sentence(note: str, method: str) -> str:
    """What a file rests on, in words."""
    if note:
        return NOTES[note]
    return "the weights alone" if method in ("rd", "opq") else "its own data or the weights alone"
