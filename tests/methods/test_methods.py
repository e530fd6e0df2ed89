"""The published methods through the one call, on a tiny task: same file, same report, same fine-tuning loop."""

from __future__ import annotations

import copy
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import opq
from opq import methods
from opq.errors import (
    CorruptFileError,
    DataError,
    InfeasibleError,
    MismatchError,
    MissingExtraError,
    OptionError,
    PatternError,
    SearchError,
    SearchWarning,
    SourceError,
)
from opq.methods import bayes
from opq.methods import options as settings
from opq.methods.clipq import matched
from opq.methods.olmp import Fitness
from opq.methods.pruning import uniform
from opq.training.finetuning import finetune

Batches = list[tuple[torch.Tensor, torch.Tensor]]
Task = tuple[nn.Module, Batches]


class Small(nn.Sequential):
    def __init__(self) -> None:
        features = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(4)]
        super().__init__(*features, nn.Flatten(), nn.Linear(32, 40), nn.ReLU(), nn.Linear(40, 4))


@pytest.fixture(scope="module")
def task() -> Task:
    """Four blurred patterns in noise, and a network that tells them apart."""
    torch.manual_seed(0)
    patterns = torch.randn(4, 1, 8, 8)
    y = torch.arange(512) % 4
    x = patterns[y] + 0.7 * torch.randn(512, 1, 8, 8)
    batches = [(x[i : i + 64], y[i : i + 64]) for i in range(0, 512, 64)]
    model = Small()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(6):
        for inputs, targets in batches:
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    return model.eval(), batches


def score(model: nn.Module, batches: Batches) -> float:
    model.eval()
    with torch.no_grad():
        return 100 * float(torch.cat([model(x).argmax(1) == y for x, y in batches]).float().mean())


def loaded(result: opq.Result) -> nn.Module:
    model = Small()
    model.load_state_dict(result.state_dict())
    return model.eval()


THETA = {"0.*": (0.2, 4), "5.*": (0.7, 2), "7.*": (0.5, 3)}
CALLS = {
    "clipq": {"method_options": {"epochs": 3, "theta": THETA, "lr": 3e-3}},
    "kmeans": {"method_options": {"sparsity": 0.7, "bits": 3, "epochs": 2, "lr": 3e-3}},
    "lamp": {"method_options": {"sparsity": 0.7, "bits": 5}},
    "magnitude": {"method_options": {"sparsity": 0.7, "bits": 5}},
    "olmp": {"method_options": {"epochs": 6, "prune_epochs": 3, "evaluations": 60, "bounds": (0.0, 5.0)}},
    "pq": {"method_options": {"sparsity": 0.5, "centroids": 32, "linear": 2, "epochs": 2, "lr": 3e-3}},
}
KINDS = {"clipq": "table", "kmeans": "table", "lamp": "grid", "magnitude": "grid", "olmp": "grid", "pq": "product"}


def call(model: nn.Module, batches: Batches, method: str, **changes: Any) -> opq.Result:
    options = CALLS[method] | ({} if method in ("lamp", "magnitude") else {"data": batches}) | changes
    return opq.compress(model, method=method, **options)


@pytest.mark.parametrize("method", CALLS)
def test_each_method_gives_a_file_that_reads_back_and_works(task: Task, method: str, tmp_path: Path) -> None:
    model, batches = task
    before = {n: t.clone() for n, t in model.state_dict().items()}
    result = call(model, batches, method)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert [t.codebook for t in result.plan.compressed] == [KINDS[method]] * len(result.plan.compressed)
    result.save(tmp_path / "a.opq.safetensors")
    assert (tmp_path / "a.opq.safetensors").stat().st_size == result.bytes
    state = opq.load_state_dict(tmp_path / "a.opq.safetensors")
    assert all(torch.equal(t, state[n]) for n, t in result.state_dict().items())
    for tensor in result.plan.compressed:
        assert float((state[tensor.name] != 0).float().mean()) == pytest.approx(tensor.density, abs=5e-3)
    assert score(loaded(result), batches) > (50 if KINDS[method] == "grid" and method != "olmp" else 90)
    assert method in repr(result)
    assert len(result.report()) == len(result.plan)


@pytest.mark.parametrize("method", CALLS)
def test_the_same_seed_gives_the_same_bytes(task: Task, method: str, tmp_path: Path) -> None:
    model, batches = task
    first, second = (b"".join(call(model, batches, method, seed=5).packed.parts) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("method", ["lamp", "magnitude", "olmp"])
def test_grid_results_go_on_in_the_same_fine_tuning_loop(task: Task, method: str) -> None:
    model, batches = task
    result = call(model, batches, method)
    trained = finetune(copy.deepcopy(model), result, batches, epochs=4, lr=3e-3, teacher="dense").result
    for name, codes in result.codes.items():
        assert torch.equal(trained.codes[name] != 0, codes != 0)
    assert score(loaded(trained), batches) > 90


@pytest.mark.parametrize("method", ["kmeans", "lamp", "magnitude", "pq"])
def test_a_budget_of_the_file_is_met(task: Task, method: str) -> None:
    model, _ = task
    small = {"method_options": {"centroids": 16}} if method == "pq" else {}
    dense = opq.compress(model, method=method, method_options={"sparsity": 0.0} | small.get("method_options", {}))
    target = int(0.8 * dense.bytes)
    result = opq.compress(model, method=method, size=target, **small)
    assert 0.97 * target <= result.bytes <= target
    with pytest.raises(InfeasibleError, match=f"no file of Small by {method} is that small"):
        opq.compress(model, method=method, size=10, **small)


def test_a_budget_is_kept_when_training_moves_the_weights(task: Task) -> None:
    model, batches = task
    how = {"epochs": 1, "bits": 3, "lr": 1e-2}
    result = opq.compress(model, method="kmeans", size=1000, data=batches, method_options=how)
    assert 900 <= result.bytes <= 1000


# --- method by method ------------------------------------------------------------------------


def test_lamp_and_magnitude_keep_what_their_rules_keep(task: Task) -> None:
    model, _ = task
    result = opq.compress(model, method="magnitude", method_options={"sparsity": 0.7, "bits": 15})
    wanted = uniform({t.name: model.state_dict()[t.name] for t in result.plan.compressed}, 0.7)
    assert all(torch.equal(q != 0, wanted[n]) for n, q in result.codes.items())
    lamp = opq.compress(model, method="lamp", method_options={"sparsity": 0.7, "bits": 15})
    densities = [t.density for t in lamp.plan.compressed]
    assert max(densities) > min(densities) + 0.05
    kept = sum(t.density * t.size for t in lamp.plan.compressed) / sum(t.size for t in lamp.plan.compressed)
    assert kept == pytest.approx(0.3, abs=0.01)


def test_kmeans_shares_few_values(task: Task) -> None:
    model, batches = task
    state = call(model, batches, "kmeans").state_dict()
    assert all(len(state[n].unique()) <= 8 for n in ("0.weight", "5.weight", "7.weight"))


def test_clipq_prunes_p_of_each_layer_and_uses_b_bits(task: Task) -> None:
    model, batches = task
    result = call(model, batches, "clipq")
    for tensor, (p, b) in zip(result.plan.compressed, THETA.values(), strict=True):
        w = result.state_dict()[tensor.name]
        assert float((w == 0).float().mean()) == pytest.approx(p, abs=3 / w.numel() + 0.01)
        assert len(w.unique()) <= 2**b


def test_clipq_lets_a_clipped_weight_come_back(task: Task) -> None:
    model, batches = task
    theta = {"*": (0.6, 3)}
    short, long = (
        opq.compress(model, method="clipq", data=batches, method_options={"theta": theta, "epochs": e, "lr": 1e-2})
        for e in (0, 4)
    )
    back = sum(int(((short.codes[n] == 0) & (long.codes[n] != 0)).sum()) for n in short.codes)
    assert back > 0


def test_clipq_searches_theta_and_spends_bits_as_lambda_says(task: Task) -> None:
    pytest.importorskip("optuna")
    model, batches = task
    how = {"evaluations": 6, "startup": 3, "epochs": 0, "subset": 4}
    seen: list[tuple[str, int, int]] = []
    sizes = [
        opq.compress(model, method="clipq", data=batches, method_options=how | {"weight": weight},
                     progress=lambda *step: seen.append(step)).bytes
        for weight in (0.0, 1e6)
    ]  # fmt: skip
    assert sizes[1] < sizes[0]
    assert ("clipq search", 18, 18) in seen


def test_clipq_asks_the_users_evaluation(task: Task) -> None:
    pytest.importorskip("optuna")
    model, batches = task
    asked: list[float] = []

    def evaluate(live: nn.Module) -> float:
        asked.append(score(live, batches[:2]))
        return asked[-1]

    how = {"evaluations": 3, "startup": 2, "epochs": 0}
    opq.compress(model, method="clipq", data=batches, evaluate=evaluate, method_options=how)
    assert len(asked) == 9


def test_an_interrupted_search_goes_on_as_it_would_have(task: Task, tmp_path: Path) -> None:
    pytest.importorskip("optuna")

    def f(p: float, b: int) -> float:
        calls.append((p, b))
        return (p - 0.8) ** 2 + (b - 3) ** 2 / 50

    how = {"evaluations": 8, "startup": 3, "most_bits": 5, "seed": 1}
    calls: list[tuple[float, int]] = []
    whole = bayes.minimise(f, "w", bayes.Record(None, "k"), **how)
    every, calls = calls, []
    bayes.minimise(f, "w", bayes.Record(tmp_path / "r.json", "k"), **how | {"evaluations": 5})
    assert bayes.minimise(f, "w", bayes.Record(tmp_path / "r.json", "k"), **how) == whole
    assert calls == every
    with pytest.raises(MismatchError, match=r"the search record .* is of other weights or options"):
        bayes.Record(tmp_path / "r.json", "another")
    (tmp_path / "r.json").write_text("{")
    with pytest.raises(CorruptFileError, match=r"the search record .* cannot be read"):
        bayes.Record(tmp_path / "r.json", "k")


def test_bayesian_search_beats_as_many_random_draws() -> None:
    pytest.importorskip("optuna")

    def f(p: float, b: int) -> float:
        return (bayes.octaves(p) - 3.3) ** 2 + (b - 4) ** 2

    how = {"most_bits": 8, "seed": 0}
    by_model = f(*bayes.minimise(f, "w", bayes.Record(None, ""), evaluations=20, startup=6, **how))
    at_random = f(*bayes.minimise(f, "w", bayes.Record(None, ""), evaluations=20, startup=20, **how))
    assert by_model < min(at_random, 0.05)


@pytest.mark.parametrize("method", ["clipq", "kmeans", "olmp"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(task: Task, method: str, tmp_path: Path) -> None:
    model, batches = task
    whole = call(model, batches, method)

    class Stop(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if done == 2 * len(batches) - 1 and total > done:
            raise Stop

    when = stop if method != "kmeans" else stop_late(Stop)
    with pytest.raises(Stop):
        call(model, batches, method, checkpoint=tmp_path / "c", progress=when)
    assert list(tmp_path.iterdir())
    assert call(model, batches, method, checkpoint=tmp_path / "c").packed.parts == whole.packed.parts


@pytest.mark.parametrize("changes", [{"bits": 2}, {"sparsity": 0.9}, {"lr": 1e-2}])
def test_a_checkpoint_of_another_run_is_not_taken_up(task: Task, changes: dict[str, Any], tmp_path: Path) -> None:
    model, batches = task
    call(model, batches, "kmeans", checkpoint=tmp_path / "c")
    other = {"method_options": CALLS["kmeans"]["method_options"] | changes}
    with pytest.raises(MismatchError, match=r"the checkpoint .*c\.kmeans-prune was written with another plan"):
        call(model, batches, "kmeans", checkpoint=tmp_path / "c", **other)
    dense = copy.deepcopy(model)
    with torch.no_grad():
        dense[7].weight += 0.1
    with pytest.raises(MismatchError, match="Resume with the plan and options that training began with"):
        call(dense, batches, "kmeans", checkpoint=tmp_path / "c")


def stop_late(error: type[Exception]) -> Callable[[str, int, int], None]:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "kmeans-share" and done == total - 1:
            raise error

    return stop


def test_olmp_prunes_biases_too_and_counts_them(task: Task) -> None:
    model, batches = task
    result = call(model, batches, "olmp")
    names = [t.name for t in result.plan.compressed]
    assert names == ["0.weight", "0.bias", "5.weight", "5.bias", "7.weight", "7.bias"]
    kept = sum(int((q != 0).sum()) for q in result.codes.values())
    assert kept < 0.6 * sum(t.size for t in result.plan.compressed)


def test_olmp_says_when_no_threshold_meets_the_constraint(task: Task) -> None:
    model, batches = task
    how = {"epochs": 1, "prune_epochs": 1, "evaluations": 20, "delta": 0.0, "bounds": (30.0, 40.0)}
    with pytest.raises(SearchError, match=r"olmp: no threshold meets the accuracy constraint: got every one of 20"):
        opq.compress(model, method="olmp", data=batches, method_options=how)


def test_olmp_measures_the_accuracy_on_as_many_batches_as_asked(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = task
    seen = []

    class Spy(Fitness):
        def __init__(self, search: Any, some: Batches) -> None:
            super().__init__(search, some)
            seen.append((len(some), self.before))

    monkeypatch.setattr(sys.modules["opq.methods.olmp"], "Fitness", Spy)
    how = {"epochs": 1, "prune_epochs": 1, "evaluations": 20, "delta": 0.5, "search_batches": 2}
    opq.compress(model, method="olmp", data=batches, method_options=how)
    assert [n for n, _ in seen] == [2]
    assert seen[0][1] == pytest.approx(score(model, batches[:2]) / 100)


def test_olmp_says_which_thresholds_stand_at_the_bound(task: Task) -> None:
    model, batches = task
    how = {"epochs": 1, "prune_epochs": 1, "evaluations": 40, "delta": 1.0, "bounds": (0.0, 0.1), "sigma": 100.0}
    with pytest.warns(SearchWarning, match=r"at the upper bound of c, 0\.1, .*5\.weight \(0\.1\)") as seen:
        opq.compress(model, method="olmp", data=batches, method_options=how)
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opq.compress(model, method="olmp", data=batches, method_options=how | {"bounds": (0.0, 50.0)})


def test_pq_with_layers_smaller_than_a_block_and_fewer_blocks_than_centroids() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 30), nn.ReLU(), nn.Linear(30, 7))
    result = opq.compress(model, method="pq", method_options={"sparsity": 0.0, "linear": 8})
    assert result.tensor("0.weight").shape == (30, 3)
    dense = model[2].weight.detach()
    distance = float((result.tensor("2.weight") - dense).square().mean())
    assert distance == pytest.approx(result.plan["2.weight"].distortion, rel=1e-2)
    assert distance < 0.5 * float(dense.square().mean())


def test_distillation_uses_the_dense_network(task: Task) -> None:
    model, batches = task
    how = {"sparsity": 0.6, "bits": 3, "epochs": 1, "lr": 3e-3}
    plain, distilled = (
        opq.compress(model, method="kmeans", data=batches, method_options=how | {"distill": d}) for d in (0.0, 1.0)
    )
    assert plain.packed.parts != distilled.packed.parts


def test_a_network_compressed_again_is_distilled_from_the_teacher_that_is_given(task: Task) -> None:
    dense, batches = task
    how = {"sparsity": 0.2, "bits": 6, "epochs": 3, "lr": 3e-3, "distill": 1.0}
    with torch.no_grad():
        poor = copy.deepcopy(dense)
        poor[7].weight += 0.3 * torch.randn(poor[7].weight.shape, generator=torch.Generator().manual_seed(0))
    own, taught = (
        opq.compress(poor, method="kmeans", data=batches, method_options=how | {"teacher": teacher})
        for teacher in (None, dense.train())
    )
    assert dense.training
    dense.eval()
    with torch.no_grad():
        wanted = torch.cat([dense(x) for x, _ in batches]).log_softmax(1)
        far = [
            (torch.cat([loaded(result)(x) for x, _ in batches]).log_softmax(1) - wanted).square().mean()
            for result in (own, taught)
        ]
    assert far[1] < 0.5 * far[0]


def test_a_checkpoint_of_another_teacher_is_not_taken_up(task: Task, tmp_path: Path) -> None:
    model, batches = task
    how = CALLS["kmeans"]["method_options"] | {"distill": 0.5}
    call(model, batches, "kmeans", checkpoint=tmp_path / "c", method_options=how | {"teacher": model})
    with pytest.raises(MismatchError, match="was written with another plan"):
        call(model, batches, "kmeans", checkpoint=tmp_path / "c", method_options=how | {"teacher": Small()})


def test_the_users_modules_keep_their_modes(task: Task) -> None:
    dense, batches = task
    model = copy.deepcopy(dense).train()
    model[1].eval()
    call(model, batches, "kmeans")
    assert [m.training for m in model.children()] == [k != 1 for k in range(8)]


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize("teacher", [nn.Flatten(), nn.Linear(3, 4)])
def test_a_teacher_that_does_not_fit(task: Task, teacher: Any) -> None:
    model, batches = task
    how = {"epochs": 1, "distill": 0.5, "teacher": teacher}
    with pytest.raises(OptionError, match=r"method_options\['teacher'\] does not fit the model: .* scores \[64, 4\]"):
        opq.compress(model, method="clipq", data=batches, method_options=how)


@pytest.mark.parametrize("method", ["clipq", "olmp", "kmeans", "pq"])
def test_data_is_asked_for_before_any_work(task: Task, method: str) -> None:
    model, _ = task
    with pytest.raises(DataError, match=rf"method='{method}' trains or searches on data: got data=None"):
        call(model, None, method)


def test_data_of_the_wrong_shape(task: Task) -> None:
    model, batches = task
    wrong = [(x.flatten(1), y) for x, y in batches]
    with pytest.raises(DataError, match=r"data= does not fit the model: got inputs \[64, 64\]"):
        call(model, wrong, "clipq")
    x, y = batches[0]
    for targets in (y[:3], y + 9, y.float(), torch.zeros(64, 7, dtype=torch.int64), None):
        with pytest.raises(DataError, match=r"data= does not fit the model: got inputs \[64, 1, 8, 8\], targets "):
            call(model, [(x, targets)], "clipq")
    with pytest.raises(DataError, match="data= is empty"):
        call(model, [], "clipq")
    with pytest.raises(OptionError, match=r"a batch is not understood"):
        call(model, [batches[0][0]], "clipq")


def test_weights_without_a_model_cannot_be_trained(task: Task) -> None:
    model, batches = task
    with pytest.raises(SourceError, match="no model can be built"):
        call(model.state_dict(), batches, "clipq")
    assert call(model.state_dict(), None, "lamp").bytes > 0


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lamp", {"method_options": {"sparsity": 1.0}}, r"method_options\['sparsity'\]: got 1.0, .* 0 to below 1"),
        ("lamp", {"method_options": {"epochs": 2}}, "pass the result to opq.finetune"),
        ("lamp", {"method_options": {"what": 2}}, "method_options= has unknown names: got what, wanted bits, "),
        ("lamp", {"method_options": 3}, "method_options= is not understood: got int"),
        ("lamp", {}, "the size is not one option: got neither"),
        ("lamp", {"bits": 2, "method_options": {"sparsity": 0.5}}, "got bits=2 and sparsity=0.5"),
        ("lamp", {"bits": 2, "sparsity": 0.5}, r"method='lamp' does not take sparsity="),
        ("lamp", {"bits": 2, "calibration": [1]}, r"method='lamp' does not take calibration="),
        ("rd", {"bits": 2, "data": [1]}, r"method='rd' does not take data="),
        ("clipq", {"bits": 2}, "method='clipq' takes no budget"),
        ("clipq", {"method_options": {"theta": {"*": (1.0, 3)}}}, r"theta\['\*'\]: got \(1.0, 3\)"),
        ("olmp", {"bits": 2}, "method='olmp' takes no budget"),
        ("clipq", {"method_options": {"theta": [1]}}, r"method_options\['theta'\]: got \[1\], wanted a mapping"),
        ("clipq", {"evaluate": lambda m: None}, "evaluate= gave no number: got None, wanted percent right"),
        ("olmp", {"method_options": {"epochs": 2, "prune_epochs": 3}}, r"method_options\['prune_epochs'\]"),
        ("olmp", {"method_options": {"bounds": "x"}}, r"method_options\['bounds'\]: got 'x', wanted \(low, high\)"),
        ("olmp", {"method_options": {"bounds": (3.0, 1.0)}}, r"method_options\['bounds'\]: got \(3.0, 1.0\)"),
        ("olmp", {"method_options": {"gamma": {"conv": 1}}}, r"method_options\['gamma'\]: got \{'conv': 1\}"),
        ("olmp", {"method_options": {"search_batches": 0}}, r"method_options\['search_batches'\]: got 0"),
        ("olmp", {"method_options": {"momentum": -1}}, r"method_options\['momentum'\]: got -1, wanted a number"),
        ("olmp", {"method_options": {"momentum": 1.5}}, r"method_options\['momentum'\]: got 1.5, wanted a number"),
        ("olmp", {"method_options": {"teacher": "dense"}}, r"method_options\['teacher'\]: got 'dense', wanted a mod"),
        ("olmp", {"method_options": {"teacher": nn.ReLU()}}, r"method_options\['distill'\]: got 0.0, wanted above 0"),
        ("pq", {"method_options": {"centroids": 1}}, r"method_options\['centroids'\]: got 1, wanted an integer from 2"),
        ("kmeans", {"method_options": {"scope": "layer"}}, r"method_options\['scope'\]: got 'layer'"),
        ("what", {"bits": 2}, "unknown method=: got 'what', wanted rd or opq or clipq"),
    ],
)  # fmt: skip
def test_options_without_meaning(task: Task, method: str, options: dict[str, Any], message: str) -> None:
    model, batches = task
    data = {"data": batches} if method in ("clipq", "olmp") else {}
    with pytest.raises(OptionError, match=message):
        opq.compress(model, method=method, **options, **data)


def test_theta_by_patterns() -> None:
    assert matched({"*": (0.5, 2), "b*": (0.1, 4)}, ["a", "b1"]) == {"a": (0.5, 2), "b1": (0.1, 4)}
    with pytest.raises(PatternError, match="pattern 'c' matches no tensor"):
        matched({"*": (0.5, 2), "c": (0.5, 2)}, ["a"])
    with pytest.raises(PatternError, match="tensors without"):
        matched({"a": (0.5, 2)}, ["a", "b"])


def test_settings_read_back_as_their_constructor() -> None:
    read = settings.read(methods.Olmp, {"delta": 0.05})
    assert read == methods.Olmp(delta=0.05) == settings.read(methods.Olmp, read)
    assert "delta=0.05" in repr(read)
    assert math.isclose(settings.read(methods.KMeans, None).lr, 1e-3)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    model, batches = task
    with pytest.raises(MissingExtraError, match=r'pip install "opq\[methods\]"'):
        opq.compress(model, method="clipq", data=batches)


def test_tied_tensors_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)
            self.two.weight = self.one.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x))

    torch.manual_seed(0)
    batches = [(torch.randn(8, 16), torch.arange(8))]
    for method in ("clipq", "kmeans", "olmp"):
        changes = {"method_options": CALLS[method]["method_options"] | {"epochs": 2, "prune_epochs": 1}}
        if method != "olmp":
            changes["method_options"].pop("prune_epochs")
        if method == "clipq":
            changes["method_options"]["theta"] = {"*": (0.5, 3)}
        if method == "olmp":
            changes["method_options"]["delta"] = 1.0
        state = call(Tied(), batches, method, **changes).state_dict()
        assert state["one.weight"].data_ptr() == state["two.weight"].data_ptr()
        assert np.isfinite(state["one.weight"].numpy()).all()
