"""What all tests share: the real data and weights beside the checkout, and imports that work offline."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["TORCH_EXTENSIONS_DIR"] = os.devnull  # a kernel that was compiled here shall not change what is tested
if "PYTEST_XDIST_WORKER" in os.environ:  # threads that wait shall not keep the other worker from its core
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import hypothesis
import pytest
from paths import SHARED
from stream_helpers import SHARD, checkpoint
from tiny import import_torchvision

from opq.training import kernel as native

# A run says the same of the same code; other examples are looked for by HYPOTHESIS_PROFILE=default.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


import_torchvision()


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small sharded checkpoint of the tests of the streamed path."""
    return checkpoint(tmp_path_factory.mktemp("source") / "model")


@pytest.fixture(scope="session")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that an uninterrupted run makes of it."""
    from opq.streaming.run import compress_folder

    folder = tmp_path_factory.mktemp("whole") / "out"
    compress_folder(source, folder, bits=4, shard_size=SHARD)
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and weights; the test skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data and weights in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the compiled kernel, one for all workers; the test skips where there is no compiler."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("needs a C++ compiler")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kernels"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
        native.build()
    return folder


@pytest.fixture(scope="module")
def kernel(kernels: Path) -> Iterator[Path]:
    """The compiled kernel is there, in this process and in those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(kernels))
        native.operator.cache_clear()
        yield native.path()
    native.operator.cache_clear()
