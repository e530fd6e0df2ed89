"""Writes the golden files of the present format version; a released version's are never written again.

    python tests/golden/make.py --add
    python tests/golden/make.py --regenerate

`vN/` holds one small file for each method and for each kind of tensor, and those of `branches.py`; `vN/expected.json`
what each decodes to, and `plain.py` the bytes of the smallest. `--add` writes the files that are missing and touches no
other; `--regenerate` writes all of them anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "helpers")]

import branches  # noqa: E402
import fuzz  # noqa: E402

import opq  # noqa: E402
from opq.file.base import open_base  # noqa: E402
from opq.file.folder_reader import open_reader  # noqa: E402
from opq.file.header import VERSION  # noqa: E402
from opq.file.stored import (  # noqa: E402
    Grid,
    Stored,
    raw_bytes,
)
from opq.file.writer import pack  # noqa: E402
from opq.plan import Plan  # noqa: E402

RELEASED = 0
"""The newest format version that a release of the package has written."""

METHODS: dict[str, dict[str, Any]] = {
    "rd": {"bits": 4},
    "opq": {"bits": 4, "sparsity": 0.5, "method": "opq"},
    "clipq": {"method": "clipq", "method_options": {"epochs": 1, "theta": {"*": (0.3, 3)}}},
    "kmeans": {"method": "kmeans", "method_options": {"sparsity": 0.5, "bits": 3}},
    "lamp": {"method": "lamp", "method_options": {"sparsity": 0.5, "bits": 3}},
    "magnitude": {"method": "magnitude", "method_options": {"sparsity": 0.5, "bits": 3}},
    "olmp": {"method": "olmp", "method_options": {"epochs": 2, "prune_epochs": 1, "population": 3}},
    "pq": {"method": "pq", "method_options": {"sparsity": 0.5, "centroids": 16}},
}
"""A file each, of the network below: `rd` with sensitivities, error feedback and re-normalised BatchNorm."""


def network() -> nn.Sequential:
    """A small convolutional network with the same weights on every machine."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Flatten(), nn.Linear(12 * 16, 10),
    )  # fmt: skip
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                tensor.fill_(7)
            else:
                values = torch.from_numpy(rng.laplace(size=tuple(tensor.shape)) * 0.2).float()
                tensor.copy_(values.abs() + 0.5 if name.endswith(("running_var", "1.weight", "4.weight")) else values)
    return model.eval()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    rng = np.random.default_rng(2)
    return [
        (torch.from_numpy(rng.normal(size=(16, 1, 8, 8))).float(), torch.from_numpy(rng.integers(0, 10, 16)))
        for _ in range(4)
    ]


def odd_state() -> dict[str, torch.Tensor]:
    """Element types, shapes and ties of all sorts beside a matrix."""
    rng = np.random.default_rng(4)
    state = {"w": torch.from_numpy(rng.laplace(size=(24, 40))).float()}
    state |= {"tied": state["w"], "alias.of.tied": state["w"]}
    values = torch.from_numpy(rng.normal(size=6))
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2):
        state[f"kept.{str(dtype)[6:]}"] = values.to(dtype)
    for dtype in (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64):
        state[f"kept.{str(dtype)[6:]}"] = torch.arange(5).to(dtype)
    state |= {"flags": torch.tensor([[True], [False]]), "complex": torch.tensor([1 + 2j])}
    state |= {"scalar": torch.tensor(3), "scalar.float": torch.tensor(0.1), "empty": torch.empty(0, 5)}
    state |= {"half": torch.from_numpy(rng.laplace(size=(16, 16))).half(), "é \n": torch.ones(2)}
    state["brain"] = torch.from_numpy(rng.laplace(size=(16, 16))).bfloat16()
    return state


def files() -> dict[str, Callable[[], bytes]]:
    """How each golden file is made, by name."""
    return {
        **{name: functools.partial(by_method, name) for name in METHODS},
        "types": lambda: packed(opq.compress(odd_state(), bits=9)),
        "plain": lambda: packed(opq.compress(network().state_dict(), bits=3)),
        **{name: functools.partial(written, made) for name, made in WRITTEN.items()},
        "entries": lambda: fuzz.seeds()[fuzz.ENTRIES],
        **{name: functools.partial(by_hand, made) for name, made in branches.CRAFTED.items()},
    }


def by_method(name: str) -> bytes:
    trained: dict[str, Any] = {"data": batches(), "evaluate": lambda model: 50.0} if name in ("clipq", "olmp") else {}
    torch.manual_seed(0)
    probed: dict[str, Any] = {"input_size": (1, 8, 8)} if name == "rd" else {}
    return packed(opq.compress(network(), **METHODS[name], **trained, **probed))


def written(made: Callable[[], branches.Made]) -> bytes:
    return b"".join(pack(*made()).parts)


def by_hand(made: Callable[[], fuzz.Parts]) -> bytes:
    return fuzz.put_together(made())


def pages() -> tuple[Plan, list[Stored]]:
    """A tensor just large enough to be coded in chunks, by pages and classes."""
    codes = np.zeros((1024, 512), np.int16)
    rng = np.random.default_rng(8)
    codes[rng.random(codes.shape) < 0.15] = 1
    codes[::2] *= rng.integers(-2, 3, codes[::2].shape).astype(np.int16)
    return Plan(method="rd", tensors=(fuzz.planned("w", (1024, 512)),)), [Grid("w", codes)]


def steep() -> tuple[Plan, list[Stored]]:
    """Codes whose rows and columns differ in scale, some of them large: one table all the same, and bits behind it."""
    scale = np.exp2(np.arange(32) % 7)[:, None] * np.exp2(np.arange(24) % 3)
    codes = np.rint(np.random.default_rng(5).laplace(size=(32, 24)) * scale).astype(np.int16)
    return Plan(method="opq", tensors=(fuzz.planned("w", (32, 24), "F16"), fuzz.planned("z", (4, 4)))), [
        Grid("w", codes),
        Grid("z", np.zeros((4, 4), np.int16)),
    ]


WRITTEN: dict[str, Callable[[], branches.Made]] = {
    "pages": pages,
    "kinds": fuzz.every_kind,
    "counted": fuzz.every_kind,
    "classes": steep,
    **branches.WRITTEN,
}
"""Files of a plan and stored tensors: the writer gives the same bytes at any time."""


BASED = HERE / "based"
"""A file of differences to a base, and what it decodes to: format version 2, which only such files have."""


def base() -> dict[str, torch.Tensor]:
    """The network that the differences are to; it lacks one of the tensors of the file."""
    rng = np.random.default_rng(7)
    shapes = {t.name: t.shape for t in steep()[0]} | {"other": (3,)}
    return {name: torch.from_numpy(rng.normal(size=shape)).half() for name, shape in shapes.items() if name != "z"}


def based() -> bytes:
    """Differences of the tensor that the base has, and the whole of the other one."""
    return b"".join(pack(*steep(), base=open_base(base()).name).parts)


def two_matrices() -> dict[str, torch.Tensor]:
    """The source of a folder of two shards."""
    rng = np.random.default_rng(6)
    a, b = (torch.from_numpy(rng.laplace(size=(80, 96))).float() for _ in range(2))
    return {"a": a, "a.tied": a, "b": b, "b.bias": torch.ones(9)}


def packed(result: opq.Result) -> bytes:
    return b"".join(result.packed.parts)


def expected(path: Path) -> dict[str, str]:
    """What a file, or a folder, decodes to: type, shape and SHA-256 of each tensor."""
    with open_reader(path) as reader:
        state = reader.state_dict()
        plan = hashlib.sha256(said(reader.plan).encode()).hexdigest()[:32]
        found = {t.name: f"{t.dtype} {list(t.shape)} {digest(raw_bytes(state[t.name]))}" for t in reader.plan}
        return {"(plan)": plan, **found}


def expected_of_differences() -> dict[str, str]:
    """What the file with a base decodes to."""
    state = opq.load_state_dict(BASED / "new.opq.safetensors", base=base())
    return {name: f"{t.dtype} {list(t.shape)} {digest(raw_bytes(t))}" for name, t in state.items()}


def said(plan: Plan) -> str:
    """A plan's JSON without `exact`, which a reader derives from the kind of a payload, and the words of its basis."""
    tensors = tuple(dataclasses.replace(t, exact=False) for t in plan)
    return plan.replace(tensors=tensors, basis="").to_json()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    way = options.add_mutually_exclusive_group(required=True)
    way.add_argument("--add", action="store_true")
    way.add_argument("--regenerate", action="store_true")
    chosen = options.parse_args()
    if VERSION <= RELEASED:
        raise SystemExit(f"format version {VERSION} is released: its golden files stay as they are")
    folder = HERE / f"v{VERSION}"
    if chosen.regenerate:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    held = folder / "expected.json"
    found = json.loads(held.read_text()) if held.exists() else {}
    for name, make in files().items():
        if not (path := folder / f"{name}.opq.safetensors").exists():
            path.write_bytes(make())
            print(f"{name}: {path.stat().st_size:,} bytes")
    if not (folder / "shards").exists():
        opq.compress_folder(two_matrices(), folder / "shards", bits=3, trellis=False, shard_size=4096, workers=1)
    found |= {path.name: expected(path) for path in sorted(folder.iterdir()) if path != held and path.name not in found}
    if chosen.regenerate or not BASED.exists():
        BASED.mkdir(exist_ok=True)
        (BASED / "new.opq.safetensors").write_bytes(based())
        (BASED / "expected.json").write_text(json.dumps(expected_of_differences(), indent=1) + "\n")
    held.write_text(json.dumps(found, indent=1) + "\n")
    small = {name: (folder / f"{name}.opq.safetensors").read_bytes().hex() for name in ("kinds", "classes")}
    (HERE / "plain.py").write_text(plain(small))


def plain(small: dict[str, str]) -> str:
    """The source of `plain.py`."""
    text = f'"""The smallest golden files of format version {VERSION}, in hexadecimal; `make.py` writes this."""\n'
    for name, digits in small.items():
        lines = [f'    "{digits[k : k + 112]}"' for k in range(0, len(digits), 112)]
        text += f"\n{name.upper()} = (\n" + "\n".join(lines) + "\n)\n"
    return text


if __name__ == "__main__":
    main()
