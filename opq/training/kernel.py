"""A C++ kernel for the fixed grid, for fine-tuning on a CPU; compiled once by `opq native` or `build()`.

With torch's own operations the grid takes five passes over the weights and one over their gradients, which is a large
part of a training step if batches are small; the kernel (`kernel.cpp`) takes one pass for each. It gives the same
values, so that only the time depends on it. It is stored in the folder of torch's extensions, under the versions of
torch, Python and its own source, and `opq.attach` uses it if it is there.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import stat
import subprocess
import sys
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import Any

import torch

from opq.base.atomic import written_aside
from opq.base.paths import what_is
from opq.errors import NativeError, OpqWarning, WriteError

SOURCE = Path(__file__).with_suffix(".cpp")
_NAME = "opq_grid"
_SUFFIX = ".pyd" if os.name == "nt" else ".so"
_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off") if os.name != "nt" else ("/O2",)


def path() -> Path:
    """The path of the compiled kernel: in `$TORCH_EXTENSIONS_DIR`, or else in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(cache) / "torch_extensions")
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    source = f"{zlib.crc32(SOURCE.read_bytes()):08x}"
    return folder / f"{_NAME}-{source}-torch{torch.__version__}-{python}-{platform.machine()}" / f"{_NAME}{_SUFFIX}"


def build() -> Path:
    """Compiles the kernel unless that has been done; returns its path.

    Raises:
        MissingExtraError: ninja is not installed.
        NativeError: there is no C++ compiler, or it failed; the end of its output is in the message.
        WriteError: the folder cannot be written.
    """
    target = path()
    if (fault := untrusted(target)) is not None:
        raise NativeError("the kernel's place is not the user's alone", got=fault, remedy=_REMEDY)
    if what_is(target) == "nothing":
        _compile(target)
        operator.cache_clear()
    return target


_REMEDY = "Set TORCH_EXTENSIONS_DIR to a folder that is yours and that nobody else can write, and run `opq native`."


def untrusted(library: Path) -> str | None:
    """Why code at a path cannot be trusted, in words; None if it can be, or there is none.

    The file and the folders above it must belong to the user or to the system's administrator, and nobody else may
    write to them. A folder above may be one in which everybody may write but only owners may rename, like /tmp.
    """
    if not hasattr(os, "getuid"):
        return None  # Windows keeps a user's folders for the user
    try:
        real = Path(os.path.realpath(library))
        for place in (real, *real.parents):
            try:
                status = place.stat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            if status.st_uid not in (os.getuid(), 0):
                return f"{place} belongs to another user"
            sticky = place not in (real, real.parent) and status.st_mode & stat.S_ISVTX
            if status.st_mode & 0o022 and not sticky:
                return f"others can write {place}"
    except OSError as error:
        return f"{library}: {error.strerror or error}"
    return None


def _compile(target: Path) -> None:
    from opq.base.extras import need

    ninja = need("ninja", "native")
    need("setuptools", "native")
    try:
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot make the folder {target.parent}", got=error.strerror or error) from error
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / target.name
        options = {"extra_cflags": list(_FLAGS), "build_directory": folder, "is_python_module": False}
        call = f"from torch.utils import cpp_extension; cpp_extension.load({_NAME!r}, {str(SOURCE)!r}, **{options!r})"
        searched = os.pathsep.join([ninja.BIN_DIR, os.environ.get("PATH", os.defpath)])
        # in a process of its own, since torch loads what it has compiled, and from where it will not stay; isolated,
        # so that no torch.py in the current folder is imported
        command, environment = [sys.executable, "-I", "-c", call], os.environ | {"PATH": searched}
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        if run.returncode or not made.exists():
            raise NativeError("the kernel cannot be compiled", got=_complaint(run.stdout + run.stderr))
        with written_aside(target) as file:
            Path(file.name).chmod(0o755)
            file.write(made.read_bytes())
    if (fault := untrusted(target)) is not None:
        raise NativeError("the kernel's place is not the user's alone", got=fault, remedy=_REMEDY)


def _complaint(text: str) -> str:
    """The lines of a compiler's output that contain errors, or else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"(^|\s)error:|not found|[Pp]ermission denied", line)]
    return "; ".join(dict.fromkeys(errors[:3] or lines[-1:])).rstrip(".")


@functools.cache
def operator() -> Any:
    """The operator `opq::grid(w, kept, 1 / step, step, shrink)`, or None if the kernel has not been compiled."""
    library = path()
    if what_is(library) != "a file":
        return None
    if (fault := untrusted(library)) is not None:
        fact = f"the compiled kernel is not loaded, and torch's operations take its place: {fault}"
        warnings.warn(f"{fact}. {_REMEDY}", OpqWarning, stacklevel=2)
        return None
    if not hasattr(torch.ops.opq, "grid"):
        try:
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]
        except OSError as error:
            fact = f"{library} does not load, and torch's operations take its place: {error}"
            warnings.warn(f"{fact}. Delete it and run `opq native`.", OpqWarning, stacklevel=2)
            return None
    return torch.ops.opq.grid.default
