"""Threads, processes and forks that work at once get what each would have got alone."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from training_helpers import mlp, plan_of

import opq
from opq.base import process_state
from opq.base.pool import pool
from opq.models.batch import Batch
from opq.models.observe import untouched
from opq.probing.gradients import sensitivity
from opq.probing.renorm import statistics
from opq.sources.memory import from_module
from opq.streaming import model_blocks

THREADS = 4


def network(seed: int) -> nn.Sequential:
    """A network that the probe, error feedback and re-normalisation have work with."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 40)
    ).eval()


def at_once(work: Callable[[int], Any], times: int = THREADS) -> list[Any]:
    """Results of the work in so many threads that begin together."""
    start = threading.Barrier(times)

    def one(k: int) -> Any:
        start.wait()
        return work(k)

    with ThreadPoolExecutor(times) as executor:
        return list(executor.map(one, range(times)))


@pytest.fixture
def switching() -> Iterator[None]:
    """The interpreter changes threads a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 1000)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("switching")
def test_threads_compress_save_and_load_as_one_would(tmp_path: Path) -> None:
    models = [network(k % 2) for k in range(THREADS)]

    def work(k: int) -> tuple[bytes, dict[str, torch.Tensor]]:
        path = tmp_path / f"{k}.opq.safetensors"
        opq.compress(models[k], bits=4, example_inputs=torch.zeros(1, 3, 8, 8)).save(path)
        return path.read_bytes(), opq.load(path, network(7)).state_dict()

    alone = [work(k) for k in range(2)]
    for k, (data, state) in enumerate(at_once(work)):
        assert data == alone[k % 2][0]
        assert all(torch.equal(state[name], wanted) for name, wanted in alone[k % 2][1].items())


def test_threads_compress_one_model(tmp_path: Path) -> None:
    model = network(0).train()
    inputs = torch.zeros(1, 3, 8, 8)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    alone = b"".join(opq.compress(model, bits=4, example_inputs=inputs).packed.parts)
    found = at_once(lambda _: b"".join(opq.compress(model, bits=4, example_inputs=inputs).packed.parts))
    assert found == [alone] * THREADS
    assert all(module.training for module in model.modules())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("reads", ["source", "sensitivity"])
def test_a_model_is_read_behind_who_runs_it_with_other_weights(reads: str) -> None:
    model, inside, leave = network(0), threading.Event(), threading.Event()
    batch = Batch((torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)),))
    other = {name: torch.randn_like(t) for name, t in model.state_dict().items() if t.is_floating_point()}

    def read() -> list[torch.Tensor]:
        if reads == "source":
            source = from_module(model)
            return [source.read(spec.name) for spec in source.specs]
        return [torch.tensor(v) for v in sensitivity(model, batch).values()]

    def hold(*_: Any) -> None:
        if threading.current_thread() is holder:
            inside.set()
            leave.wait(0.5)

    alone = [t.clone() for t in read()]
    holder = threading.Thread(target=statistics, args=(model, other, batch))
    handle = model[5].register_forward_pre_hook(hold)
    holder.start()
    inside.wait()
    found = read()
    leave.set()
    holder.join()
    handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(alone, found, strict=True))


def test_threads_read_through_one_reader(tmp_path: Path) -> None:
    path = tmp_path / "m.opq.safetensors"
    opq.compress({f"w{k}": torch.randn(64, 96) for k in range(8)}, bits=3).save(path)
    wanted = opq.load_state_dict(path)
    with opq.Reader(path) as reader:
        for found in at_once(lambda _: {name: reader.tensor(name) for name in reader.names}):
            assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_threads_write_one_name(tmp_path: Path) -> None:
    results = [opq.compress({"w": torch.randn(64, 96)}, bits=2 + k) for k in range(THREADS)]
    path = tmp_path / "m.opq.safetensors"

    def five_times(k: int) -> None:
        for _ in range(5):
            results[k].save(path)

    at_once(five_times)
    assert path.read_bytes() in [b"".join(result.packed.parts) for result in results]
    assert os.listdir(tmp_path) == [path.name]


SAVES = """
import sys, torch, opq
torch.manual_seed(0)
state = {"w": torch.randn(64, 96)}
print("ready", flush=True)
sys.stdin.readline()
for _ in range(8):
    opq.compress(state, bits=int(sys.argv[1])).save(sys.argv[2] + "/m.opq.safetensors")
    opq.compress(state, bits=3).save(f"{sys.argv[2]}/{sys.argv[1]}.opq.safetensors")
"""


def test_processes_save_into_one_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-c", SAVES]
    running = [
        subprocess.Popen([*program, bits, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        for bits in ("2", "4")
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    for process in running:
        process.communicate(b"go\n")
    assert [process.returncode for process in running] == [0, 0]
    torch.manual_seed(0)
    state = {"w": torch.randn(64, 96)}
    files = {bits: b"".join(opq.compress(state, bits=bits).packed.parts) for bits in (2, 3, 4)}
    assert (tmp_path / "m.opq.safetensors").read_bytes() in (files[2], files[4])
    assert [(tmp_path / f"{bits}.opq.safetensors").read_bytes() for bits in (2, 4)] == [files[3]] * 2
    assert len(os.listdir(tmp_path)) == 3


# --- forks -----------------------------------------------------------------------------------


class Compressed(Dataset[torch.Tensor]):
    """Rows of a compressed file, read where they are asked for."""

    def __init__(self, path: Path, model: nn.Module) -> None:
        self.path, self.model = path, model

    def __len__(self) -> int:
        return 8

    def __getitem__(self, k: int) -> torch.Tensor:
        row = opq.load_state_dict(self.path)["0.weight"][k]
        result: torch.Tensor = self.model(row[None])[0]
        return result.detach()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_workers_of_a_loader(tmp_path: Path) -> None:
    path, model = tmp_path / "m.opq.safetensors", mlp()
    opq.compress(model, bits=12, probe=False).save(path)
    opq.attach(model, plan_of(model))
    rows = Compressed(path, model)
    loader = DataLoader(rows, batch_size=2, num_workers=2, multiprocessing_context="fork")
    found = torch.cat(list(loader))
    assert torch.equal(found, torch.stack([rows[k] for k in range(len(rows))]))


FORKS = """
import os, sys, threading, torch, opq
from opq.base.pool import pool
from opq.base.process_state import same_random_state
state = {f"w{k}": torch.randn(64, 96) for k in range(6)}

def packed():
    return b"".join(opq.compress(state, bits=3).packed.parts)

wanted = packed()
inside, leave = threading.Event(), threading.Event()

def hold():
    with same_random_state():
        inside.set()
        leave.wait()

holder = threading.Thread(target=hold)
holder.start()
inside.wait()
with pool(3) as threads:                       # its threads, and the turn that another thread has, are not the child's
    list(threads.ordered(abs, range(30)))
    child = os.fork()
    if not child:
        torch.set_num_threads(1)               # what a DataLoader does in its workers
        with same_random_state():
            os._exit(0 if packed() == wanted else 1)
leave.set()
holder.join()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), packed() == wanted)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_with_threads_forks() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["0", "True"], done.stderr


# --- what belongs to the whole process -------------------------------------------------------


@pytest.mark.usefixtures("switching")
def test_a_pool_leaves_the_number_of_torch_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pool(2) as outer:
            assert set(outer.ordered(lambda _: torch.get_num_threads(), range(8))) == {1}
            list(outer.ordered(nested, range(4)))
            assert in_a_thread(torch.get_num_threads) == 3
        at_once(lambda _: list(map(nested, range(10))))
        assert (torch.get_num_threads(), in_a_thread(torch.get_num_threads)) == (3, 3)
    finally:
        torch.set_num_threads(before)


def nested(k: int) -> None:
    with pool(2) as inner:
        list(inner.ordered(abs, range(k)))


def in_a_thread(work: Callable[[], Any]) -> Any:
    """What the work gives in a new thread."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(work).result()


@pytest.mark.usefixtures("switching")
def test_random_states_are_put_back_one_by_one() -> None:
    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    def draws(k: int) -> list[list[float]]:
        drawn = []
        for _ in range(20):
            with process_state.same_random_state(seed=k):
                drawn.append([float(torch.rand(())) for _ in range(3)])
                random.random(), np.random.rand()
        return drawn

    before = states()
    found = at_once(draws)
    assert states() == before
    for k, drawn in enumerate(found):
        assert drawn == [torch.rand(3, generator=torch.Generator().manual_seed(k)).tolist()] * 20


@pytest.mark.usefixtures("switching")
def test_warning_filters_are_put_back_one_by_one() -> None:
    def work(k: int) -> None:
        for _ in range(5):
            with process_state.silenced(UserWarning):
                time.sleep(0.001 * k)
                warnings.warn("not shown", UserWarning, stacklevel=1)

    before = list(warnings.filters)
    at_once(work)
    assert list(warnings.filters) == before


@pytest.mark.usefixtures("switching")
def test_threads_look_into_one_model() -> None:
    model = network(0).train()

    def work(_: int) -> None:
        for _ in range(20):
            with untouched(model), torch.no_grad():
                assert not any(module.training for module in model.modules())
                model(torch.zeros(1, 3, 8, 8))

    at_once(work)
    assert all(module.training for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_module_built_beside_one_without_values_has_its_own() -> None:
    with process_state.same_random_state(), model_blocks._no_parameters():
        other = in_a_thread(lambda: nn.Linear(3, 2))
        own = nn.Linear(3, 2)
    assert (other.weight.device.type, own.weight.device.type) == ("cpu", "meta")
    assert nn.Linear(3, 2).weight.device.type == "cpu"
