"""A long-lived Node process that opens files with `opq.js` and says what it found."""

from __future__ import annotations

import base64
import hashlib
import json
import select
import shutil
import struct
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from paths import TESTS

import opq

MODULE = Path(opq.__file__).parent / "web" / "opq.js"
DRIVER = TESTS / "web" / "driver.mjs"
SMALLEST = 20
"""The oldest major version of Node that has all that the driver uses."""
DEADLINE = 120
"""Seconds after which a question counts as a hang; they take milliseconds."""


def missing() -> str | None:
    """Why there is no Node here that is new enough, None where there is one."""
    if shutil.which("node") is None:
        return "no node on this machine"
    found = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip()
    return None if int(found[1:].split(".")[0]) >= SMALLEST else f"node {found} is older than {SMALLEST}"


class Node:
    """Use it as a context manager."""

    def __init__(self, *flags: str) -> None:
        self._process = subprocess.Popen(
            ["node", *flags, str(DRIVER), MODULE.as_uri()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, data: bytes = b"", **question: Any) -> dict[str, Any]:
        """What the module makes of the bytes of a file: its tensors, or its error."""
        head = json.dumps(question).encode()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(struct.pack("<II", len(head), len(data)) + head + data)
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], DEADLINE)[0]:
            self.kill()
            raise TimeoutError(f"no answer in {DEADLINE} s")
        line = self._process.stdout.readline()
        assert line, f"node has ended with {self._process.wait()}"
        found: dict[str, Any] = json.loads(line)
        return found

    def kill(self) -> None:
        self._process.kill()

    def __enter__(self) -> Node:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


def raw(tensor: torch.Tensor) -> bytes:
    """The elements, row-major and little-endian."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(raw(tensor)).hexdigest()


def elements(told: dict[str, Any]) -> bytes:
    return base64.b64decode(told["bytes"])
