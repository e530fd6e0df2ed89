"""The library's messages in the words of the shell."""

from __future__ import annotations

import re

VALUES = (
    *("bits", "ratio", "size", "method", "sparsity", "input_size", "seed", "like", "base", "shard_size", "workers"),
    *("calibration", "classes", "batch"),
)
IN_SHELL = {name: f"--{name.replace('_', '-')}" for name in VALUES} | {"overrides": "--override"}
"""Parameters of the Python calls that take a value, as options of the command line."""
FLAGS = {
    "trellis": "--trellis",
    "trellis=True": "--trellis",
    "trellis=False": "--no-trellis",
    "probe": "--probe",
    "probe=True": "--probe",
    "probe=False": "--no-probe",
    "strict=False": "--no-strict",
    "dequantize=True": "--dequantize",
    "trust_remote_code=True": "--trust-remote-code",
}
"""Parameters that the command line has as flags, without a value."""


def in_shell(text: str) -> str:
    """A message of the library in the command line's words: `--bits 3` for `bits=3`, `--no-probe` for `probe=False`."""

    def spelt(found: re.Match[str]) -> str:
        name, value = found[1], found[2].strip("'")
        if f"{name}={value}" in FLAGS:
            return FLAGS[f"{name}={value}"]
        if name in FLAGS and not value:
            return FLAGS[name]
        if name in IN_SHELL:
            return f"no {IN_SHELL[name]}" if value == "None" else f"{IN_SHELL[name]} {value}".rstrip()
        return found[0]

    text = re.sub(r"overrides=\{'([^']*)': 'keep'\}", r"--keep '\1'", text)
    text = re.sub(r"\bconstraints=\[(.*?)\]", r"constraints (in Python)", text)
    return re.sub(r"(?<![\w./:*-])([a-z_]+)=('[\w-]*'|[\w.+-]*\w|)", spelt, text)
