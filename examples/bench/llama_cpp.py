"""llama.cpp's own quantizer, without an importance matrix, called through its shared library.

The library is that of the package @node-llama-cpp/linux-x64 (`npm pack` it and unpack it into the folder of packages).
"""

from __future__ import annotations

import ctypes
from pathlib import Path

KINDS = {"Q4_K_M": 15, "Q3_K_M": 12, "Q2_K": 10}
"""Numbers of `enum llama_ftype`."""


class _Parameters(ctypes.Structure):
    """The beginning of `llama_model_quantize_params`, which is the same in all versions; the rest is its defaults."""

    _fields_ = (
        ("threads", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        ("output", ctypes.c_int32),
        ("embedding", ctypes.c_int32),
        ("requantizes", ctypes.c_bool),
        ("rest", ctypes.c_byte * 511),
    )


def library(packages: Path) -> Path | None:
    """The shared library under a folder of packages, or behind a link in it; None where there is none."""
    tops = [packages, *sorted(path.resolve() for path in packages.glob("*") if path.is_dir())]
    return next((path for top in tops for path in sorted(top.rglob("libllama.v*.so"))), None)


def quantize(library: Path, given: Path, made: Path, kind: str) -> None:
    """Writes a GGUF file anew in one of `KINDS`, on one thread."""
    folder = library.parent
    names = ["libggml-base.so", next(path.name for path in folder.glob("libggml.v*.so")), library.name]
    _, ggml, llama = [ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL) for name in names]
    ggml.ggml_backend_load_all_from_path(str(folder).encode())
    llama.llama_backend_init()
    llama.llama_model_quantize_default_params.restype = _Parameters
    wanted = llama.llama_model_quantize_default_params()
    wanted.threads, wanted.kind, wanted.requantizes = 1, KINDS[kind], True
    if llama.llama_model_quantize(str(given).encode(), str(made).encode(), ctypes.byref(wanted)):
        raise RuntimeError(f"llama.cpp does not make {kind} of {given}")


def tensor_bytes(path: Path) -> int:
    """Bytes of a GGUF file's tensors: the vocabulary that it also holds is in no other file of the comparison."""
    from gguf import GGUFReader

    return sum(int(tensor.n_bytes) for tensor in GGUFReader(path).tensors)
