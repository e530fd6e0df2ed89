"""What a file's codes rest on: a short note in the header's metadata, and the sentence that it stands for.

A reader needs it for nothing. A file without a note was made from the weights alone, or by training, which leaves no
note: it may have brought the file to the last byte of its budget.
"""

from __future__ import annotations

import itertools
import json

from opq.file.header import METADATA

BY = "by"
"""The member of the metadata."""
SYNTHETIC = "a probe of the model on synthetic inputs: sensitivities"
"""What a plan rests on that no codes are made of yet, and a file whose errors were not fed back."""
REAL = "a probe of the model on calibration inputs: sensitivities"
UNFED = "sensitivities"
"""The note of a file whose errors were not fed back."""
WEIGHTS = "weights"
"""The note of a file that a probe would have made worse."""
TRAINING = "training of its weights under a plan"
"""What a network that was trained rests on, as long as it is in memory."""


def noted(*, calibrated: bool, renormalised: bool, felt: bool = True) -> str:
    """The note of a file whose codes rest on a probe.

    Args:
        calibrated: whether its inputs were real.
        renormalised: whether BatchNorm was.
        felt: whether it has sensitivities; without gradients it has none.
    """
    return f"{'calibration' if calibrated else 'probe'}{'' if felt else '-unfelt'}{'+norms' if renormalised else ''}"


def _told(calibrated: bool, renormalised: bool, felt: bool) -> str:
    """What such a note says."""
    did = [*["sensitivities"] * felt, "error feedback", *["re-normalised BatchNorm"] * renormalised]
    inputs = "calibration" if calibrated else "synthetic"
    without = "" if felt else "; sensitivities by the weights, because its outputs have no gradients"
    return f"a probe of the model on {inputs} inputs: {', '.join(did)}{without}"


NOTES = {
    noted(calibrated=calibrated, renormalised=renormalised, felt=felt): _told(calibrated, renormalised, felt)
    for calibrated, renormalised, felt in itertools.product((False, True), repeat=3)
} | {UNFED: SYNTHETIC, WEIGHTS: "the weights, because on other inputs a probe of the model did worse"}
"""Every note that there is, with what it says."""


def note_of(data: memoryview) -> str:
    """The note in a file whose header was read before; empty where there is none that is known."""
    metadata = json.loads(bytes(data[8 : 8 + int.from_bytes(data[:8], "little")]))[METADATA]
    note = metadata.get(BY)
    return note if isinstance(note, str) and note in NOTES else ""


def sentence(note: str, method: str) -> str:
    """What a file rests on, in words."""
    if note:
        return NOTES[note]
    return "the weights alone, or training" if method in ("rd", "opq") else "its own data or the weights alone"
