"""Two gloo processes write the bytes that one writes; a process that fails or dies is said within seconds."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import HELPERS, ROOT, TESTS
from stream_helpers import SHARD, contents, small_llama

from opq.streaming.run import compress_folder

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")

WORKER = """
import os, signal, sys
sys.path[:0] = sys.argv[4].split(os.pathsep)
import conftest
from opq.errors import OpqError
from opq.streaming import compress_folder
from opq.streaming import block_gradients
from opq.streaming.shards import Shards
from stream_helpers import SHARD

source, out, kind, rank = sys.argv[1:4] + [os.environ["RANK"]]
real, through = Shards.write, block_gradients.through

def write(self, path, part, whole):
    if rank == "1" and kind == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == "1" and kind == "fails":
        raise OSError("the disk of the second machine is gone")
    return real(self, path, part, whole)

def dies(carried, k, *rest):
    if rank == "1" and k == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return through(carried, k, *rest)

Shards.write = write
if kind == "dies in the probe":
    block_gradients.through = dies
try:
    result = compress_folder(source, out, bits=4, shard_size=SHARD)
except OpqError as error:
    print(type(error).__name__, error)
    sys.exit(3)
print(result.bytes)
"""


def launch(source: Path, out: Path, kind: str) -> list[tuple[int, str]]:
    """Exit codes and output of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "examples" / "bench"))),
        "WORLD_SIZE": "2",
    }
    base |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    arguments = [sys.executable, "-c", WORKER, str(source), str(out), kind, f"{TESTS}{os.pathsep}{HELPERS}"]
    both = [
        subprocess.Popen(
            arguments,
            env={**base, "RANK": r, "LOCAL_RANK": r},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for r in "01"
    ]
    said = [process.communicate(timeout=200)[0] for process in both]
    return [(process.returncode, words) for process, words in zip(both, said, strict=True)]


@pytest.fixture(scope="module")
def alone(whole: Path) -> dict[str, bytes]:
    return contents(whole)


def test_two_processes_write_what_one_writes(source: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    ended = launch(source, tmp_path / "out", "well")
    assert [code for code, _ in ended] == [0, 0], ended
    assert contents(tmp_path / "out") == alone
    assert {int(words.split()[-1]) for _, words in ended} == {sum(len(d) for n, d in alone.items() if ".opq." in n)}


@pytest.mark.parametrize("kind", [pytest.param("dies", marks=pytest.mark.slow), "fails"])
def test_a_process_that_is_lost(kind: str, source: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    (code, words), (other, _) = launch(source, tmp_path / "out", kind)
    assert code == 3, words
    assert "RankError" in words
    assert (
        "another process is gone" if kind == "dies" else "process 1 failed: got the disk of the second machine is gone"
    ) in words
    assert other == (-signal.SIGKILL if kind == "dies" else 1)
    compress_folder(source, tmp_path / "out", bits=4, shard_size=SHARD)
    assert contents(tmp_path / "out") == alone


# --- with the probe ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    small_llama(layers=3).save_pretrained(folder, max_shard_size="100KB")
    return folder


@pytest.fixture(scope="module")
def probed_alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("alone") / "out"
    assert compress_folder(model, folder, bits=4, shard_size=SHARD).basis.startswith("sensitivities")
    return contents(folder)


def test_two_processes_probe_to_the_bytes_of_one(model: Path, probed_alone: dict[str, bytes], tmp_path: Path) -> None:
    ended = launch(model, tmp_path / "out", "well")
    assert [code for code, _ in ended] == [0, 0], ended
    assert contents(tmp_path / "out") == probed_alone


def test_a_process_that_is_lost_in_the_probe(model: Path, probed_alone: dict[str, bytes], tmp_path: Path) -> None:
    (code, words), (other, _) = launch(model, tmp_path / "out", "dies in the probe")
    assert (code, other) == (3, -signal.SIGKILL), words
    assert "RankError another process is gone" in words
    compress_folder(model, tmp_path / "out", bits=4, shard_size=SHARD)
    assert contents(tmp_path / "out") == probed_alone
