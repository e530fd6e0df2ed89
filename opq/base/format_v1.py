"""Every number here is part of format version 1 and fixed for ever: docs/format.md gives the same ones.

A changed number makes all files that exist unreadable, or readable as something else. What an encoder chooses freely
(how classes are found, when pages are used, how far a text is searched) stands where it is used, and may change.
"""

from __future__ import annotations

from typing import Literal

# --- the container ---------------------------------------------------------------------------

VERSION = 1
"""The format version that this package writes, and the newest that it reads."""

COMMON = "opq"
"""The entry that holds the index and all small payloads; also the member of the metadata that holds the version."""

PARAMETERS = "total_parameters"
"""The member of the metadata, here and in the index of a folder, by which hubs know how many weights there are."""

LARGEST_HEADER = 100_000_000
"""Bytes of a header: the limit of the safetensors library."""

FOLDER_INDEX = "model.opq.safetensors.index.json"
"""The index of a folder of shards."""

LARGEST_FOLDER_INDEX = 1 << 30
"""Bytes."""

DTYPE_NAMES = (
    *("BOOL", "U8", "I8", "U16", "I16", "F16", "BF16", "U32", "I32", "F32", "U64", "I64", "F64"),
    *("C64", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0"),
)
"""Element types by their numbers in the index; only ever appended to."""

KIND_NAMES = ("grid", "table", "product", "fine", "log", "raw", "share", "scalar", "trellis")
"""Kinds of payload by their numbers in the index; only ever appended to."""

CODED_TYPES = ("F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ")
"""Element types that codes may stand for."""

MOST_AXES = 32
"""Axes of a tensor."""

MOST_ELEMENTS = 1 << 58
"""The product of the lengths of a tensor's axes, zeros counted as ones, is below."""

MAX_EXPANSION = 10_000
"""Bytes that the dense tensors may take for each byte of the file, unless the caller says otherwise."""

SMALL = 1 << 26
"""Bytes that the dense tensors may take in any case."""

# --- the stack -------------------------------------------------------------------------------

PRECISION = 24
"""The integer frequencies of a model add up to 2^24."""

PIECE = 16
"""Numbers go on the stack in pieces of so many bits."""

LONGEST_NUMBER = 40
"""Bits of the largest `uint`."""

WIDTHS = (16, 24, 32, 64)
"""Bits in which a list of floats is held: the upper half of a float32, three quarters, all of it, a float64."""

LEARNING = 24
"""What an adaptive model adds to the weight of a symbol that it has seen."""

# --- texts -----------------------------------------------------------------------------------

REMEMBERED = 4
"""Distances that a copy may name by their place among those used last."""

STEP_WEIGHTS = ((40, 20, 10, 8, 6, 6), *[(24, 16, 30, 8, 6, 6)] * (1 + REMEMBERED))
"""First weights of the kinds of step (a byte, a copy, a copy from distance 0, 1, 2, 3 again), by the kind before."""

BYTE_WEIGHTS = tuple(
    24 if byte in b"einortasgblwhmcd" else 12 if byte in b"ukvpfyxqzj._0123456789\n" else 2 if 32 <= byte < 127 else 1
    for byte in range(256)
)
COPY_LENGTH_WEIGHTS = (8, 14, 24, 40, 60, 40, 8, 2, *[1] * 17)
DISTANCE_WEIGHTS = (1, 1, 2, 4, 10, 20, 30, 30, 20, 20, 16, 10, 8, 6, 4, 2, 2, *[1] * 8)
"""By bits of the number."""

# --- the index -------------------------------------------------------------------------------

COLUMNS = ("step", "rounding", "threshold", "sensitivity", "rate", "density", "distortion")
"""Numbers of every tensor's plan, in this order."""

BUDGET_KINDS = ("bits", "ratio", "size")

KIND_WEIGHTS = (8,) * 16
"""First weights of a tensor's kind, by the kind of the tensor before: 16 such models."""
TYPE_WEIGHTS = (4,) * 32
RANK_WEIGHTS = (4,) * (MOST_AXES + 1)
SAME_SHAPE_WEIGHTS = (1, 1)
OWN_ENTRY_WEIGHTS = (2, 1)
WIDE_WEIGHTS = (4,) * (LONGEST_NUMBER + 1)
"""By bits: lengths of axes and payloads."""
SMALL_WEIGHTS = (4,) * 25
"""By bits: numbers of reasons and tensors, codes an octave."""

LONGEST_TEXT = (1 << 24) - 1
"""Bytes of the text of an index."""


def most_text(index: int) -> int:
    """Bytes that the text of an index of so many bytes may have: names repeat each other, but not for ever."""
    return min((1 << 20) + 64 * index, LONGEST_TEXT)


def most_tensors(index: int) -> int:
    """Tensors that an index of so many bytes may name."""
    return min(64 + 2 * index, 1 << 20)


def most_symbols(index: int) -> int:
    """Symbols that may be taken from an index of so many bytes: what is foreseen well costs next to no bits."""
    return min((1 << 16) + 32 * index, 1 << 22)


# --- codes -----------------------------------------------------------------------------------

LARGEST_CODE = 2**15 - 1
"""Codes fit int16, symmetrically."""

LARGE = 1 << 19
"""Tensors of so many codes are coded chunk by chunk."""

CHUNK = 1 << 22
"""Codes in one chunk, rounded down to whole rows, at least one."""

CodingKind = Literal["constant", "tables", "geometric", "pages"]
CODING_KINDS: tuple[CodingKind, ...] = ("constant", "tables", "geometric", "pages")
"""How the codes of a tensor are coded, by number: all equal; a frequency table for each class; a geometric
distribution; each class by pcodec."""

DIRECT = 32
"""Codes of smaller magnitude are symbols of their own; larger ones are eight symbols to the octave."""

NARROW = 48
"""Symbols of smaller magnitude stand for codes that 8 bits hold."""

SCALES = 28
"""Geometric distributions that a file can name."""

MOST_CLASSES_PER_AXIS = 16
MOST_CLASSES = 3 * (MOST_CLASSES_PER_AXIS - 1) + 1
"""Of a tensor."""

LONGEST_CHAIN = 1 << 16
"""Indices of an axis whose classes may be told one after the other: no file keeps a reader busy for long."""

LARGEST_ROOT = 1 << 17
"""The largest number in a frequency table, a square root of half a count: counts up to 3.4e10."""

TABLE_WEIGHTS = (
    (140, 26, 7, 4, 4, 4, 5, 4, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1),
    (60, 96, 30, 10, 4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1),
    (60, 54, 54, 22, 8, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1),
    (46, 48, 58, 34, 12, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1),
    (32, 28, 48, 36, 36, 20, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1),
    (24, 14, 30, 24, 26, 24, 60, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1),
    (6, 8, 20, 30, 30, 20, 40, 70, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1),
    (4, 4, 10, 20, 20, 20, 24, 40, 90, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1),
    (2, 2, 2, 4, 8, 8, 24, 24, 50, 90, 2, 1, 1, 1, 1, 1, 1, 1, 1),
    (2, 2, 2, 4, 8, 8, 8, 8, 30, 60, 60, 30, 20, 10, 4, 2, 2, 1, 1),
)
"""How often a difference in a frequency table has 0, 1, 2, ... bits, by the number of bits of the prediction."""

# --- the trellis -----------------------------------------------------------------------------

RUN = 128
"""Rows of one path: twice as long ones gain 0.03 dB and are searched for one after the other."""

STATES = 64
FROM_SHIFT, FROM_PARITY = 0o103 >> 1, 0o024 >> 1
"""What a shifted grid and an odd code add to the state, whose lowest bit is the next shift: taps 1 and 6 of the shifts,
2 and 4 of the parities, counted back from the present row (Ungerboeck 1987, table I: parity checks 103 and 024)."""

LARGEST_PATH = 2**14 - 1
"""Magnitude of the largest `k`, half a code on a trellis."""
