"""What all tests share: the real data and weights beside the checkout, and imports that work offline."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # threads that wait shall not keep the other worker from its core
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from stream_helpers import SHARD, checkpoint

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

for folder in (ROOT / "tests", ROOT / "examples" / "bench"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _import_torchvision() -> None:
    """Import torchvision without its C++ operators, which a CPU wheel of another torch lacks."""
    real = torch.library.register_fake

    def register_fake(op, *args, **kwargs):  # type: ignore[no-untyped-def]
        if isinstance(op, str) and op.startswith("torchvision::"):
            return lambda function: function
        return real(op, *args, **kwargs)

    torch.library.register_fake = register_fake
    try:
        import torchvision  # noqa: F401
    finally:
        torch.library.register_fake = real


if importlib.util.find_spec("torchvision") is not None:
    _import_torchvision()


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small sharded checkpoint of the tests of the streamed path."""
    return checkpoint(tmp_path_factory.mktemp("source") / "model")


@pytest.fixture(scope="session")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that an uninterrupted run makes of it."""
    from opq.scale import compress_folder

    folder = tmp_path_factory.mktemp("whole") / "out"
    compress_folder(source, folder, bits=4, shard_size=SHARD)
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and weights; the test skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data and weights in {SHARED}")
    return SHARED
