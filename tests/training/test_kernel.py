"""The compiled kernel: the same function as torch's operations, in every way in which autograd may ask for it."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import HELPERS
from stream_helpers import interrupted
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from training_helpers import learnable_batches, mlp, plan_of

import opq
from opq.errors import MissingExtraError, NativeError, OpqWarning, WriteError
from opq.training import kernel as native
from opq.training.attaching import attach
from opq.training.finetuning import Finetuned
from opq.training.fixed_grid import FixedGrid
from opq.training.proving import dense_state_dict

LAYOUTS = {
    "rows": lambda n: torch.randn(n, 7),
    "columns": lambda n: torch.randn(7, n).t(),
    "channels last": lambda n: torch.randn(n, 3, 2, 5).to(memory_format=torch.channels_last),
    "every other": lambda n: torch.randn(n, 8)[:, ::2],
    "one": lambda n: torch.randn(1),
    "none": lambda n: torch.randn(0, n),
}


@pytest.fixture(autouse=True, scope="module")
def _compiled(kernel: Path) -> None:
    """All tests here have the kernel, unless they take it away."""


def layer(values: torch.Tensor, *, compiled: bool, rounding: float = 0.7, step: float = 0.3) -> nn.Module:
    """A module with these plain weights under a grid whose mask was of others."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.empty_like(values).copy_(values))
    (plan,) = plan_of(nn.Linear(2, 2)).compressed
    fields = {"name": "weight", "shape": tuple(values.shape), "step": step, "rounding": rounding}
    plan = dataclasses.replace(plan, **fields, threshold=rounding * step)
    with torch.no_grad():
        module.weight.add_(torch.randn(values.shape, generator=torch.Generator().manual_seed(1)))
    attach(module, opq.Plan(method="rd", tensors=(plan,)), native=compiled)
    own = module.parametrizations.weight.original
    own.data.copy_(values)
    assert grid_of(module).compiled == compiled
    return module


def grid_of(module: nn.Module) -> FixedGrid:
    return next(m for m in module.modules() if isinstance(m, FixedGrid))


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    assert one is not None
    assert other is not None
    steps = [[s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1] for t in (one, other)]
    return torch.equal(one.nan_to_num(123.0), other.nan_to_num(123.0)) and steps[0] == steps[1]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 99),
    rows=st.sampled_from([1, 2, 33, 9000]),
    layout=st.sampled_from(sorted(LAYOUTS)),
    rounding=st.sampled_from([0.5, 0.62, 0.7, 0.95]),
    step=st.floats(1e-3, 3),
    odd=st.sampled_from([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e30, 1e-40]),
)
def test_values_and_gradients_are_those_of_torchs_operations(
    seed: int, rows: int, layout: str, rounding: float, step: float, odd: float
) -> None:
    torch.manual_seed(seed)
    values = LAYOUTS[layout](rows)
    modules = [layer(values, compiled=c, rounding=rounding, step=step) for c in (True, False)]
    towards = torch.randn(values.shape)
    for module in modules:
        own = module.parametrizations.weight.original
        if own.numel():
            own.data[(0,) * own.dim()] = odd
        (module.weight * towards).sum().backward()
    one, other = modules
    assert same(one.weight, other.weight)
    assert same(one.parametrizations.weight.original.grad, other.parametrizations.weight.original.grad)


def test_a_gradient_that_others_see_is_not_written_on() -> None:
    module = layer(torch.randn(40, 30), compiled=True)
    own, kept = module.parametrizations.weight.original, grid_of(module).kept
    assert 0 < int(kept.sum()) < kept.numel()
    shared, beside = torch.randn(40, 30), torch.zeros(40, 30, requires_grad=True)
    before = shared.clone()
    (module.weight + beside).backward(shared)
    assert torch.equal(shared, before)
    assert torch.equal(beside.grad, before)
    assert torch.equal(own.grad, before * kept)

    held: list[torch.Tensor] = []
    own.grad, seen = None, module.weight
    seen.retain_grad()
    seen.register_hook(held.append)
    (seen * before).sum().backward()
    assert torch.equal(seen.grad, before)
    assert torch.equal(held[0], before)
    assert torch.equal(own.grad, before * kept)

    own.grad = None
    module.weight.sum().backward()  # its gradient is one number, expanded
    assert torch.equal(own.grad, kept.float())
    module.weight.sum().backward()
    assert torch.equal(own.grad, 2 * kept.float())

    own.grad = None
    seen, whole = module.weight, before.clone()
    seen.view(-1).backward(whole.view(-1))
    assert torch.equal(whole, before)
    assert torch.equal(own.grad, before * kept)


@pytest.mark.parametrize("held", [False, True])
def test_a_gradient_that_nothing_else_holds_is_masked_where_it_lies(held: bool) -> None:
    module = layer(torch.randn(40, 30), compiled=True)
    seen = module.weight
    if held:
        seen.retain_grad()
    loss = functional.linear(torch.randn(9, 30), seen).square().sum()
    with torch.autograd.profiler.profile() as watched:
        loss.backward(torch.ones(()))
    assert [event.name for event in watched.function_events].count("aten::empty_like") == held
    assert torch.equal(module.parametrizations.weight.original.grad != 0, grid_of(module).kept)


def test_gradients_of_gradients() -> None:
    x = torch.randn(5, 7)
    seconds = []
    for compiled in (True, False):
        module = layer(torch.randn(6, 7, generator=torch.Generator().manual_seed(0)), compiled=compiled)
        own = module.parametrizations.weight.original
        (first,) = torch.autograd.grad(functional.linear(x, module.weight).pow(3).sum(), own, create_graph=True)
        seconds.append(torch.autograd.grad(first.pow(2).sum(), own)[0])
    assert seconds[0].any()
    assert torch.allclose(*seconds)


def test_a_graph_is_freed_and_kept_as_any_other() -> None:
    module = layer(torch.randn(6, 7), compiled=True)
    own = module.parametrizations.weight.original
    loss = module.weight.square().sum()
    loss.backward(retain_graph=True)
    once = own.grad.clone()
    loss.backward()
    assert torch.equal(own.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    own.requires_grad_(False)
    assert not module.weight.requires_grad
    with torch.no_grad():
        own.requires_grad_(True)
        assert not module.weight.requires_grad


def losses_by_functions(model: nn.Module) -> dict[str, torch.Tensor]:
    """The gradients of each sample, by torch's transforms of functions."""
    x, y = learnable_batches(1)[0]

    def loss(weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out = torch.func.functional_call(model, weights, (x[None],))
        return functional.cross_entropy(out, y[None])

    weights = {k: v.detach() for k, v in model.named_parameters()}
    return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, x, y)


def test_torchs_transforms_of_functions() -> None:
    plan = plan_of(mlp())
    one, other = (losses_by_functions(attach(mlp(), plan, native=n)) for n in (True, False))
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[k], other[k], atol=1e-6) for k in one)
    assert one["0.parametrizations.weight.original"].shape == (16, 16, 12)


def test_recomputed_activations_train_the_same() -> None:
    grads = []
    x, y = learnable_batches(1)[0]
    for recompute in (True, False):
        model = attach(mlp(), plan_of(mlp()), native=True)
        out = checkpoint(model, x, use_reentrant=False) if recompute else model(x)
        functional.cross_entropy(out, y).backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_what_is_exported_and_traced_needs_no_kernel() -> None:
    model = attach(mlp(), plan_of(mlp()), native=True).eval()
    x = learnable_batches(1)[0][0]
    program = torch.export.export(model, (x,))
    assert "opq" not in {getattr(n.target, "namespace", None) for n in program.graph.nodes}
    assert torch.equal(program.module()(x), model(x))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit")  # by newer ones of torch, in a category that changed
        traced = torch.jit.trace(model, x)
    assert "opq::" not in str(traced.inlined_graph)
    assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_that_changes_its_type_goes_on_by_torchs_operations(dtype: torch.dtype) -> None:
    x = learnable_batches(1)[0][0].to(dtype)
    one, other = (attach(mlp(), plan_of(mlp()), native=n).to(dtype) for n in (True, False))
    assert torch.equal(one(x), other(x))
    attached = attach(mlp().to(dtype), plan_of(mlp().to(dtype)))
    assert not grid_of(attached).compiled
    assert grid_of(attached).mask.dtype == dtype


def test_a_pickle_of_a_model_with_the_kernel_runs_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = attach(mlp(), plan_of(mlp()))
    x = learnable_batches(1)[0][0]
    wanted, stored = model(x), pickle.dumps(model)
    assert torch.equal(copy.deepcopy(model)(x), wanted)
    monkeypatch.setattr(native, "operator", lambda: None)
    loaded = pickle.loads(stored)
    assert torch.equal(loaded(x), wanted)
    functional.cross_entropy(loaded(x), learnable_batches(1)[0][1]).backward()
    assert all(p.grad is not None for p in loaded.parameters())


def test_training_is_the_same_and_goes_on_from_a_checkpoint_without_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, batches, options = plan_of(mlp()), learnable_batches(), {"lr": 0.02, "schedule": "constant"}
    whole = opq.finetune(mlp(), plan, batches, epochs=4, **options)
    path = tmp_path / "run.ckpt"

    def train(model: nn.Module) -> Finetuned:
        return opq.finetune(model, plan, batches, epochs=4, checkpoint=path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "operator", lambda: None)
        plain = opq.finetune(mlp(), plan, batches, epochs=4, **options)
        model = attach(mlp(), plan)
        assert grid_of(model).mask.is_floating_point()
        assert interrupted(lambda: train(model), monkeypatch, stop=2, after=True)
    model = attach(mlp(), plan)
    assert grid_of(model).mask.dtype == torch.uint8
    resumed = train(model)
    assert [e.loss for e in plain.history] == [e.loss for e in whole.history]
    for name, codes in whole.result.codes.items():
        assert torch.equal(plain.result.codes[name], codes)
        assert torch.equal(resumed.result.codes[name], codes)
    seen = dense_state_dict(model)
    assert all(torch.equal(seen[n], w) for n, w in whole.result.state_dict().items())


# --- compiling, and where it cannot be --------------------------------------------------------


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for extensions that holds none."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "none"))
    native.operator.cache_clear()
    yield tmp_path / "none"
    monkeypatch.undo()
    native.operator.cache_clear()


def test_the_kernel_is_found_where_it_was_compiled_and_compiled_once(kernel: Path) -> None:
    written = kernel.stat().st_mtime_ns
    assert native.build() == native.path() == kernel
    assert kernel.stat().st_mtime_ns == written
    assert [p.name for p in kernel.parent.iterdir()] == [kernel.name]
    assert torch.__version__ in str(kernel.parent)


def test_the_kernel_is_asked_for_where_there_is_none(nowhere: Path) -> None:
    model = mlp()
    with pytest.raises(NativeError, match="no compiled kernel") as error:
        attach(model, plan_of(model), native=True)
    assert str(nowhere) in str(error.value)
    assert "opq native" in str(error.value)
    assert not opq.models.attachment.is_attached(model)
    assert grid_of(attach(model, plan_of(model))).mask.is_floating_point()


def test_without_a_compiler(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NativeError, match="cannot be compiled") as error:
        native.build()
    assert "no-such-compiler: not found" in str(error.value)
    assert not native.path().exists()


def test_the_compilers_own_words_are_in_the_error(
    nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "wrong.cpp"
    wrong.write_text("int main() { return undeclared_name; }\n")
    monkeypatch.setattr(native, "SOURCE", wrong)
    with pytest.raises(NativeError, match=r"error: .*undeclared_name"):
        native.build()


def test_without_ninja(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ninja", None)
    with pytest.raises(MissingExtraError, match=r"opq\[native\]"):
        native.build()


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nowhere: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file"))
    with pytest.raises(WriteError, match="cannot make the folder"):
        native.build()


DAMAGED = """
import warnings
import opq
from opq.errors import OpqWarning
from training_helpers import mlp, plan_of

with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always", OpqWarning)
    model = opq.attach(mlp(), plan_of(mlp()))
    opq.attach(mlp(), plan_of(mlp()))
print(len([w for w in said if w.category is OpqWarning]), said[0].message)
assert model[0].parametrizations.weight[0].mask.is_floating_point()
"""


def test_a_damaged_library_is_said_once_and_done_without(nowhere: Path) -> None:
    library = native.path()
    library.parent.mkdir(parents=True)
    library.write_bytes(b"not a library")
    environment = {**os.environ, "PYTHONPATH": str(HELPERS)}
    run = subprocess.run([sys.executable, "-c", DAMAGED], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"1 {library} does not load")
    assert "opq native" in run.stdout


def test_a_library_that_others_could_have_planted_is_not_loaded(nowhere: Path, tmp_path: Path) -> None:
    path = native.path()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"planted")
    for place, mode in ((path, 0o666), (path.parent, 0o777), (path.parent, 0o1777), (path.parent.parent, 0o777)):
        before = place.stat().st_mode
        place.chmod(mode)
        native.operator.cache_clear()
        assert native.untrusted(path) == f"others can write {place}"
        with pytest.warns(OpqWarning, match="is not loaded, and torch's operations take its place: others can write"):
            assert native.operator() is None
        with pytest.raises(NativeError, match="not the user's alone"):
            native.build()
        place.chmod(before)
    path.chmod(0o755)
    assert native.untrusted(path) is None
    native.operator.cache_clear()


@pytest.mark.skipif(os.name == "nt" or os.getuid() != 0, reason="only an administrator can give a file away")
def test_a_library_of_another_user_is_not_loaded(nowhere: Path) -> None:
    path = native.path()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"planted")
    os.chown(path, 65534, 65534)
    assert native.untrusted(path) == f"{path} belongs to another user"


def test_compiling_imports_nothing_from_the_current_folder(
    kernels: Path, nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "torch.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\nraise SystemExit(9)")
    monkeypatch.chdir(tmp_path / "here")
    native.build()
    assert not (tmp_path / "trace").exists()
