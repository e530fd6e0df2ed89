"""What counts as a tensor of the file, found again in a graph of floats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plans import planned
from torch import nn

import opq
from opq.export.onnx_graph import GridTensor
from opq.export.onnx_model import recognised, save_onnx
from opq.file.stored import GridColumns
from opq.file.writer import pack
from opq.plan import Plan
from opq.quantizing.rows import factors
from opq.quantizing.turned import Turn

CODES = np.random.default_rng(0).integers(-9, 10, (6, 20)).astype(np.int16)
STEP = 0.0371
SCALES = np.random.default_rng(1).uniform(0.1, 2, (6, 1)).astype(np.float32)


def test_values_are_recognised_through_the_roundings_of_an_exporter() -> None:
    values = CODES.astype(np.float32) * np.float32(STEP) * SCALES
    found = recognised(values, GridTensor("w", CODES, np.float32(STEP).reshape(())))
    assert found is not None
    np.testing.assert_array_equal(found[0], CODES)
    np.testing.assert_allclose(found[1], STEP * SCALES.ravel(), rtol=1e-6)


@pytest.mark.parametrize("error", [2e-6, 1e-4, 1e-2])
def test_values_further_away_than_two_roundings_stay_as_they_are(error: float) -> None:
    """Else the exported network would be another one, and no one would be told."""
    values = CODES.astype(np.float32) * np.float32(STEP) * SCALES
    row, column = np.argwhere(CODES)[3]
    values[row, column] *= 1 + error
    assert recognised(values, GridTensor("w", CODES, np.float32(STEP).reshape(()))) is None


@pytest.mark.parametrize("turned", [False, True])
def test_steps_along_another_axis_are_found_too(turned: bool) -> None:
    """Of a tensor that stores inputs first, whose steps are those of its outputs."""
    steps = np.linspace(0.5, 2, CODES.shape[1], dtype=np.float32)[None]
    grid = GridTensor("w", CODES, np.float32(STEP) * steps)
    found = recognised(grid.weights.T if turned else grid.weights, grid)
    assert found is not None
    np.testing.assert_array_equal(found[0] * found[1], grid.weights.T if turned else grid.weights)


@pytest.mark.parametrize("turned", [False, True])
def test_steps_by_row_are_found_along_their_axis(turned: bool) -> None:
    grid = GridTensor("w", CODES, STEP * SCALES.ravel())
    found = recognised(grid.weights.T if turned else grid.weights, grid)
    assert found is not None
    codes, steps, _ = found
    np.testing.assert_array_equal(codes, CODES.T if turned else CODES)
    np.testing.assert_array_equal(codes * steps, grid.weights.T if turned else grid.weights)


# --- factors by column -------------------------------------------------------------------------

ACROSS = factors(np.arange(-9, 11))[None]


@pytest.mark.parametrize("turned", [False, True])
def test_factors_by_column_are_found_along_their_axis(turned: bool) -> None:
    grid = GridTensor("w", CODES, STEP * SCALES.ravel(), ACROSS)
    wanted = (CODES * SCALES.astype(np.float64) * np.float32(STEP) * ACROSS).astype(np.float32)
    np.testing.assert_allclose(grid.weights, wanted, rtol=2e-7)
    values = grid.weights.T if turned else grid.weights
    found = recognised(values, grid)
    assert found is not None
    codes, steps, across = found
    assert across is not None
    np.testing.assert_array_equal(codes, CODES.T if turned else CODES)
    np.testing.assert_allclose(codes * steps * across, values, rtol=2e-7)
    values = values * np.float32(1 + 1e-6)
    assert recognised(values, grid) is None


def test_products_beyond_float32_are_not_put_into_a_graph() -> None:
    """Weights are 2^-100 times them, and the reader takes them in float64."""
    steps, across = np.full(6, 2e38, np.float32), np.full((1, 20), 2.0**-100)
    grid = GridTensor("w", CODES, steps, across)
    assert np.isfinite(grid.weights).all()
    assert recognised(grid.weights, grid) is None
    smaller = GridTensor("w", CODES, steps / 16, across)
    assert recognised(smaller.weights, smaller) is not None


def run(path: Path, *inputs: torch.Tensor) -> np.ndarray:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})[0]


def graph_of(path: Path) -> Any:
    onnx = pytest.importorskip("onnx")
    onnx.checker.check_model(path, full_check=True)
    return onnx.load(path).graph


def integers_of(graph: Any) -> dict[str, np.ndarray]:
    """By the names of the initializers that they replace."""
    import onnx

    held = {t.name: t for t in graph.initializer if t.name.endswith(".codes")}
    return {name.removesuffix(".codes"): onnx.numpy_helper.to_array(t).astype(np.int16) for name, t in held.items()}


def uneven(model: nn.Module) -> nn.Module:
    """The network with inputs of every matrix that count differently."""
    with torch.no_grad():
        for weight in (w for w in model.parameters() if w.dim() == 2):
            weight.mul_(torch.logspace(-1, 0.5, weight.shape[1])[torch.randperm(weight.shape[1])])
    return model.eval()


class Tied(nn.Module):
    """A table of tokens that is the matrix of the head too, and two layers between."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(200, 64), nn.Linear(64, 128), nn.Linear(128, 64)
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 200, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        return self.head(self.norm(x + self.down(self.up(x).relu())))


@pytest.mark.parametrize("trellis", [False, True])
def test_a_network_with_factors_by_column_says_the_same(trellis: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, file, path = uneven(Tied()), tmp_path / "t.opq.safetensors", tmp_path / "t.onnx"
    opq.compress(model, bits=3, trellis=trellis).save(file)
    ids = torch.randint(200, (3, 7))
    made = save_onnx(file, path, model, example_inputs=(ids,))
    assert (set(made.integers), made.dense) == ({"table.weight", "up.weight", "down.weight"}, ())
    held = integers_of(graph_of(path)).values()
    with opq.Reader(file) as reader:
        for name in made.integers:
            assert reader.columns(name) is not None
            codes = reader.codes(name)
            assert any(np.array_equal(codes, a) or np.array_equal(codes.T, a) for a in held), name
    with torch.no_grad():
        wanted = opq.load(file, Tied()).eval()(ids[:2, :5]).numpy()
    np.testing.assert_allclose(run(path, ids[:2, :5]), wanted, atol=1e-6 * np.abs(wanted).max())


def test_recurrent_layers_have_factors_by_column(tmp_path: Path) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(32, 64, batch_first=True, bidirectional=True)
            self.head = nn.Linear(128, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.lstm(x)[0][:, -1])

    torch.manual_seed(0)
    model, file, path = uneven(Recurrent()), tmp_path / "r.opq.safetensors", tmp_path / "r.onnx"
    x = torch.randn(3, 9, 32)
    opq.compress(model, bits=4, calibration=[x]).save(file)
    made = save_onnx(file, path, model, example_inputs=x)
    assert (len(made.integers), made.dense) == (5, ())
    with opq.Reader(file) as reader:
        assert all(reader.columns(name) is not None for name in made.integers)
    with torch.no_grad():
        wanted = opq.load(file, Recurrent()).eval()(x)
    np.testing.assert_allclose(run(path, x), wanted.numpy(), atol=1e-5)


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 20)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids) + 1


def packed(file: Path, name: str, shape: tuple[int, int], step: float, turn: Turn, f: int, dtype: str = "F32") -> None:
    """A file of one tensor with factors by column, around `2^(f / 4)`."""
    rng = np.random.default_rng(0)
    codes, (rows, columns) = rng.integers(-9, 10, shape, np.int16), turn.shape(shape)
    e, across = rng.integers(-8, 9, rows, np.int16), np.clip(rng.integers(-8, 9, columns) + f, -400, 400)
    plan = Plan(method="rd", tensors=(planned(name, shape, dtype, codebook="grid-columns", step=step),))
    file.write_bytes(b"".join(pack(plan, [GridColumns(name, turn, codes, e, across.astype(np.int16))]).parts))


@pytest.mark.parametrize("turn", [Turn(1, 1), Turn(0, 1)], ids=["as it lies", "turned"])
@pytest.mark.parametrize("ids", [torch.tensor([[3, 49, -1], [0, 7, 7]]), torch.tensor(4)], ids=["many", "one"])
def test_of_a_table_only_the_rows_that_are_gathered_are_restored(ids: torch.Tensor, turn: Turn, tmp_path: Path) -> None:
    file, path = tmp_path / "e.opq.safetensors", tmp_path / "e.onnx"
    packed(file, "table.weight", (50, 20), 0.03, turn, 0)
    example = ids.clamp(min=0)
    made = save_onnx(file, path, Table(), example_inputs=(example,))
    assert (made.integers, made.dense) == ({"table.weight": "int8"}, ())
    nodes = [node.op_type for node in graph_of(path).node]
    assert sorted(nodes) == ["Add", "DequantizeLinear", "Gather", "Gather", "Mul", "Mul"]
    assert nodes.index("Gather") < nodes.index("DequantizeLinear")
    wanted = opq.load(file, Table())(example).detach().numpy()
    found = run(path, ids)
    assert found.shape == wanted.shape
    rows = opq.load_state_dict(file)["table.weight"].numpy()[ids.numpy()] + 1
    np.testing.assert_allclose(found, rows, atol=1e-6 * np.abs(rows).max())


@pytest.mark.parametrize("turn", [Turn(1, 1), Turn(0, 1)], ids=["as it lies", "turned"])
def test_weights_in_half_precision_are_within_a_last_bit_of_the_reader_s(turn: Turn, tmp_path: Path) -> None:
    model = nn.Linear(20, 50, bias=False).half()
    file, path = tmp_path / "h.opq.safetensors", tmp_path / "h.onnx"
    packed(file, "weight", (50, 20), 0.03, turn, 0, "F16")
    made = save_onnx(file, path, model, example_inputs=torch.ones(3, 20).half())
    assert (made.integers, made.dense) == ({"weight": "int8"}, ())
    wanted = opq.load_state_dict(file)["weight"].numpy()
    found = run(path, torch.eye(20).half()).T
    assert found.dtype == np.float16
    np.testing.assert_array_less(np.abs(found - wanted), np.spacing(np.abs(wanted)) * 1.5)
    assert np.mean(found == wanted) > 0.99


def test_what_float32_cannot_restore_stays_dense(tmp_path: Path) -> None:
    model, file, path = nn.Linear(20, 50, bias=False), tmp_path / "f.opq.safetensors", tmp_path / "f.onnx"
    packed(file, "weight", (50, 20), 5e37, Turn(1, 1), -392)
    x = torch.randn(3, 20)
    made = save_onnx(file, path, model, example_inputs=x)
    assert (made.integers, made.dense) == ({}, ("weight",))
    assert not integers_of(graph_of(path))
    wanted = opq.load(file, model)(x).detach().numpy()
    np.testing.assert_allclose(run(path, x), wanted, atol=1e-6 * np.abs(wanted).max())
