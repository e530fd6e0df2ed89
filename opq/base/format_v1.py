"""Every number here is part of format version 1 and fixed for ever; docs/format.md gives the same numbers.

If one of them changed, existing files would become unreadable, or be read as something else. What an encoder may choose
freely (how classes are found, when pages are used, how far a text is searched) is defined where it is used, and may
change.
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
"""Bytes of the longest header: the limit of the safetensors library."""

FOLDER_INDEX = "model.opq.safetensors.index.json"
"""The index of a folder of shards."""

LARGEST_FOLDER_INDEX = 1 << 30
"""Bytes of the largest index of a folder."""

DTYPE_NAMES = (
    *("BOOL", "U8", "I8", "U16", "I16", "F16", "BF16", "U32", "I32", "F32", "U64", "I64", "F64"),
    *("C64", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0"),
)
"""Element types by their numbers in the index; only ever appended to."""

KIND_NAMES = (
    *("grid", "table", "product", "fine", "log", "raw", "share", "scalar", "trellis"),
    *("grid-rows", "trellis-rows", "trellis-turned", "grid-turned-rows", "trellis-turned-rows"),
    *("grid-columns", "trellis-columns"),
)
"""Kinds of payload by their numbers in the index; only ever appended to."""

CODED_TYPES = ("F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ")
"""Element types that codes may stand for."""

MOST_AXES = 32
"""Axes that a tensor may have."""

MOST_ELEMENTS = 1 << 58
"""The product of the lengths of a tensor's axes, zeros counted as ones, is less than this."""

MAX_EXPANSION = 10_000
"""How many bytes the dense tensors may take for each byte of the file, unless the caller sets another limit."""

SMALL = 1 << 26
"""How many bytes the dense tensors may take whatever the size of the file."""

# --- the stack -------------------------------------------------------------------------------

PRECISION = 24
"""The integer frequencies of a model add up to 2^24."""

PIECE = 16
"""Bits of the pieces in which numbers are put on the stack."""

LONGEST_NUMBER = 40
"""Bits of the largest `uint`."""

WIDTHS = (16, 24, 32, 64)
"""Bits of each float of a list: the upper 16 or 24 bits of a float32, a whole float32, or a float64."""

LEARNING = 24
"""What an adaptive model adds to the weight of a symbol each time it is seen."""

# --- texts -----------------------------------------------------------------------------------

REMEMBERED = 4
"""How many of the latest distances a copy may refer to by number."""

STEP_WEIGHTS = ((40, 20, 10, 8, 6, 6), *[(24, 16, 30, 8, 6, 6)] * (1 + REMEMBERED))
"""Initial weights of the kinds of step (a byte, a copy, a copy from the latest distance, the one before it, ...), for
each kind of the step before."""

BYTE_WEIGHTS = tuple(
    24 if byte in b"einortasgblwhmcd" else 12 if byte in b"ukvpfyxqzj._0123456789\n" else 2 if 32 <= byte < 127 else 1
    for byte in range(256)
)
COPY_LENGTH_WEIGHTS = (8, 14, 24, 40, 60, 40, 8, 2, *[1] * 17)
DISTANCE_WEIGHTS = (1, 1, 2, 4, 10, 20, 30, 30, 20, 20, 16, 10, 8, 6, 4, 2, 2, *[1] * 8)
"""Initial weights: of each byte, and of the number of bits of a copy's length and of its distance."""

# --- the index -------------------------------------------------------------------------------

COLUMNS = ("step", "rounding", "threshold", "sensitivity", "rate", "density", "distortion")
"""The numbers of a tensor's plan, in the order of the index."""

BUDGET_KINDS = ("bits", "ratio", "size")

KIND_WEIGHTS = (8,) * 16
"""Initial weights of a tensor's kind; there is such a model for each of 16 kinds that the tensor before may have."""
TYPE_WEIGHTS = (4,) * 32
RANK_WEIGHTS = (4,) * (MOST_AXES + 1)
SAME_SHAPE_WEIGHTS = (1, 1)
OWN_ENTRY_WEIGHTS = (2, 1)
WIDE_WEIGHTS = (4,) * (LONGEST_NUMBER + 1)
"""Initial weights of the number of bits of the lengths of axes and payloads."""
SMALL_WEIGHTS = (4,) * 25
"""Initial weights of the number of bits of smaller numbers: of a reason, of a tensor, of the codes in an octave."""

LONGEST_TEXT = (1 << 24) - 1
"""Bytes of the longest text of an index."""


def most_text(index: int) -> int:
    """The most bytes that the text of an index of so many bytes may have; names resemble each other, within limits."""
    return min((1 << 20) + 64 * index, LONGEST_TEXT)


def most_tensors(index: int) -> int:
    """The most tensors that an index of so many bytes may name."""
    return min(64 + 2 * index, 1 << 20)


def most_symbols(index: int) -> int:
    """The most symbols that may be taken from an index of so many bytes; a well-predicted one takes almost no bits."""
    return min((1 << 16) + 32 * index, 1 << 22)


# --- codes -----------------------------------------------------------------------------------

LARGEST_CODE = 2**15 - 1
"""The largest magnitude of a code: codes are symmetric and fit int16."""

LARGE = 1 << 19
"""Tensors of so many codes or more are coded chunk by chunk."""

CHUNK = 1 << 22
"""Codes in one chunk, rounded down to whole rows, but at least one row."""

CodingKind = Literal["constant", "tables", "geometric", "pages"]
CODING_KINDS: tuple[CodingKind, ...] = ("constant", "tables", "geometric", "pages")
"""How the codes of a tensor are coded, by number: all codes are equal; a frequency table for each class; a geometric
distribution; each class by pcodec."""

DIRECT = 32
"""Codes of smaller magnitude are symbols of their own; larger ones are eight symbols to the octave."""

NARROW = 48
"""Symbols of smaller magnitude stand for codes that 8 bits hold."""

SCALES = 28
"""The number of geometric distributions that a file can refer to."""

MOST_CLASSES_PER_AXIS = 16
MOST_CLASSES = 3 * (MOST_CLASSES_PER_AXIS - 1) + 1
"""Classes of a tensor: the class of a weight is the sum of those of its three indices."""

LONGEST_CHAIN = 1 << 16
"""The longest axis whose classes may be coded each with the table of the class before: such a chain is decoded symbol
by symbol, and no file may keep a reader busy for long."""

LARGEST_ROOT = 1 << 17
"""The largest number in a frequency table, the square root of half a count: enough for counts up to 3.4e10."""

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
"""Weights of the number of bits (0, 1, 2, ...) of a difference in a frequency table; one row for each number of bits of
the prediction, the last row for all larger ones."""

# --- the trellis -----------------------------------------------------------------------------

RUN = 128
"""Rows of one path. Paths twice as long gain 0.03 dB, but fewer of them can be searched side by side."""

STATES = 64
FROM_SHIFT, FROM_PARITY = 0o103 >> 1, 0o024 >> 1
"""What a shifted grid and an odd code add to the state, whose lowest bit is the next shift: taps 1 and 6 of the shifts,
2 and 4 of the parities, counted back from the present row (Ungerboeck 1987, table I: parity checks 103 and 024)."""

LARGEST_PATH = 2**14 - 1
"""Magnitude of the largest `k`, half a code on a trellis."""

# --- steps by row and column -----------------------------------------------------------------

QUARTERS = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)
"""2^(k / 4) in float64: the step of row i is the tensor's step times `QUARTERS[e_i mod 4] 2^(e_i // 4)`, and in
column j its codes stand for multiples of that times `QUARTERS[f_j mod 4] 2^(f_j // 4)`."""

FARTHEST_ROW = 400
"""Magnitude of the largest `e_i` and `f_j`: factors from 2^-100 to 2^100."""
