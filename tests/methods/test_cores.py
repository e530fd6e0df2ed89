"""The pure cores of the published methods: k-means, masks, partitions, blocks, negatively correlated search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from opq.errors import CentroidsError, OptionError
from opq.methods import ncs, pruning
from opq.methods.clip import partition, thresholds
from opq.methods.kmeans import kmeans, nearest
from opq.methods.product import block_size, blocks, decode, encode

ARRAYS = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=9), elements=st.floats(-4, 4, width=32)
)
SPARSITY = st.sampled_from([0.0, 0.25, 0.5, 0.9, 0.99])


def laplace(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).laplace(0, 0.05, shape).astype(np.float32))


# --- k-means ---------------------------------------------------------------------------------


def vectors(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 12), st.booleans(), st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_kmeans_is_a_fixed_point_of_both_steps(n: int, d: int, k: int, zero: bool, seed: int) -> None:
    x, k = vectors(n, d, seed), min(k, n) + zero
    found = kmeans(x, k, seed=seed, zero=zero, iterations=500)
    labels, distances = nearest(x, found.centroids)
    assert np.array_equal(labels, found.labels)
    assert found.error == pytest.approx(distances.sum())
    for j in range(k):
        members = x[labels == j]
        if len(members) and not (zero and j == 0):
            assert found.centroids[j] == pytest.approx(members.mean(0), abs=1e-9)
    assert not zero or not found.centroids[0].any()


def test_of_no_vectors_none_has_a_label() -> None:
    labels, distances = nearest(np.zeros((0, 3)), vectors(4, 3))
    assert labels.shape == distances.shape == (0,)


def test_kmeans_against_sklearn_on_the_same_start() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    x = vectors(400, 1, 3)
    start = np.linspace(x.min(), x.max(), 8)[:, None]
    theirs = cluster.KMeans(8, init=start, n_init=1, max_iter=1000, tol=0, algorithm="lloyd").fit(x)
    ours = kmeans(x, 8, start="linear", iterations=1000)
    assert ours.error == pytest.approx(theirs.inertia_, rel=1e-9)


def test_kmeans_with_a_centroid_a_vector_is_exact_and_repeatable() -> None:
    x = vectors(20, 3)
    assert kmeans(x, 20, iterations=100).error == pytest.approx(0, abs=1e-20)
    one, two = (kmeans(vectors(200, 4), 16, seed=7).centroids for _ in range(2))
    assert one.tobytes() == two.tobytes()
    assert one.tobytes() != kmeans(vectors(200, 4), 16, seed=8).centroids.tobytes()


def test_kmeans_of_equal_vectors_leaves_spare_centroids_unused() -> None:
    found = kmeans(np.ones((9, 2)), 4)
    assert found.error == 0
    assert found.centroids[found.labels].tolist() == np.ones((9, 2)).tolist()


def test_kmeans_refuses_more_centroids_than_vectors() -> None:
    with pytest.raises(CentroidsError, match=r"more centroids than vectors: got 5 for 4, wanted 1 to 4"):
        kmeans(vectors(4, 2), 5)
    with pytest.raises(OptionError, match="wrong shape"):
        kmeans(vectors(4, 2), 2, start="linear")


# --- masks -----------------------------------------------------------------------------------

RULES = {"uniform": pruning.uniform, "overall": pruning.overall, "lamp": pruning.lamp}


@pytest.mark.parametrize("rule", RULES)
@given(a=ARRAYS, b=ARRAYS, s=SPARSITY)
@settings(deadline=None, max_examples=30)
def test_masks_prune_what_was_asked_and_keep_the_larger_of_each_tensor(
    rule: str, a: np.ndarray, b: np.ndarray, s: float
) -> None:
    w = {"a": torch.from_numpy(a), "b": torch.from_numpy(b)}
    found = RULES[rule](w, s)
    size, kept = a.size + b.size, sum(int(m.sum()) for m in found.values())
    wanted = sum(v.numel() - round(s * v.numel()) for v in w.values()) if rule == "uniform" else size - round(s * size)
    assert kept == wanted
    for name, mask in found.items():
        assert mask.shape == w[name].shape
        kept_w, pruned_w = w[name].abs()[mask], w[name].abs()[~mask]
        assert not (len(kept_w) and len(pruned_w)) or kept_w.min() >= pruned_w.max()


def test_one_threshold_for_the_network() -> None:
    w = {"small": laplace(40, 40) / 10, "large": laplace(40, 40, seed=1)}
    found = pruning.overall(w, 0.5)
    kept = torch.cat([v.abs()[found[n]] for n, v in w.items()])
    pruned = torch.cat([v.abs()[~found[n]] for n, v in w.items()])
    assert kept.min() > pruned.max()
    assert found["large"].sum() > 5 * found["small"].sum()


def test_lamp_scores_are_the_formula() -> None:
    w = laplace(7, 5)
    flat = w.flatten().double()
    slow = [float(u**2 / (flat[flat.abs() >= u.abs()] ** 2).sum()) for u in flat]
    assert pruning.lamp_scores(w).flatten().tolist() == pytest.approx(slow)
    assert float(pruning.lamp_scores(w).max()) == 1.0


def test_lamp_does_not_depend_on_the_scale_of_a_layer_and_keeps_one_weight_of_each() -> None:
    w = {"a": laplace(30, 30), "b": laplace(10, 10, seed=1)}
    found, scaled = pruning.lamp(w, 0.9), pruning.lamp({"a": w["a"] * 1000, "b": w["b"]}, 0.9)
    assert all(torch.equal(found[n], scaled[n]) for n in w)
    assert all(m.any() for m in pruning.lamp(w, 1 - 2 / 1000).values())


def test_sparsity_of_all_zero_tensors_and_out_of_range() -> None:
    found = pruning.lamp({"a": torch.zeros(4, 4)}, 0.5)
    assert pruning.sparsity(found) == 0.5
    with pytest.raises(OptionError, match=r"sparsity is out of range: got 1.5"):
        pruning.overall({"a": torch.ones(2, 2)}, 1.5)


def test_hysteresis_leaves_the_band_as_it_is() -> None:
    w = torch.tensor([0.5, 0.9, 0.95, 1.05, 1.1, 1.2, -1.2])
    before = torch.tensor([True, True, True, False, False, False, False])
    assert pruning.hysteresis(before, w, 1.0).tolist() == [False, False, True, False, False, True, True]
    assert pruning.hysteresis(~before, w, 1.0).tolist() == [False, False, False, True, True, True, True]


# --- CLIP-Q's partition ----------------------------------------------------------------------


@given(drawn=ARRAYS, p=SPARSITY, b=st.integers(1, 6))
@settings(deadline=None, max_examples=60)
def test_partition_gives_interval_means_in_order(drawn: np.ndarray, p: float, b: int) -> None:
    w = torch.from_numpy(drawn)
    found = partition(w, p, b)
    assert len(found.values) == 2**b
    assert found.values[found.negative] == 0
    for code in found.codes.unique().tolist():
        members = w[found.codes == code]
        if code:
            assert float(found.values[code + found.negative]) == pytest.approx(float(members.double().mean()), rel=1e-5)
            assert bool((members.sign() == np.sign(code)).all())
    used = [found.values[c + found.negative].item() for c in sorted(found.codes.unique().tolist())]
    assert used == sorted(used)


def test_partition_clips_the_fraction_p_of_each_sign() -> None:
    w = torch.cat([laplace(3000).abs(), -3 * laplace(1000, seed=1).abs()])
    c_minus, c_plus = thresholds(w, 0.25)
    assert float((w[w > 0] <= c_plus).float().mean()) == pytest.approx(0.25, abs=1e-3)
    assert float((w[w < 0] >= c_minus).float().mean()) == pytest.approx(0.25, abs=1e-3)
    found = partition(w, 0.25, 2)
    assert torch.equal(found.codes == 0, (w >= c_minus) & (w <= c_plus))


def test_partition_is_equal_width_on_each_side() -> None:
    w = torch.linspace(-1, 1, 4001)
    found = partition(w, 0.5, 4)
    assert (found.negative, len(found.values) - 1 - found.negative) in {(7, 8), (8, 7)}
    widths = [float(v.max() - v.min()) for c in range(1, 8) if len(v := w[found.codes == c])]
    assert max(widths) - min(widths) < 2 / 4000 + 1e-6


DEGENERATE = [torch.zeros(3, 3), torch.ones(4, 2), -torch.ones(4, 2), torch.tensor([[2.0]]), torch.empty(0, 3)]
DEGENERATE += [torch.tensor([[1e-45, 0.0]]), torch.tensor([[-3e38, 3e38]])]


@pytest.mark.parametrize("w", DEGENERATE)
def test_partition_of_degenerate_tensors(w: torch.Tensor) -> None:
    found = partition(w, 0.5, 2)
    assert found.codes.shape == w.shape
    assert bool(found.weights.isfinite().all())


def test_partition_refuses_what_has_no_meaning() -> None:
    with pytest.raises(OptionError, match=r"p is out of range: got 1.0"):
        partition(torch.ones(3), 1.0, 2)
    with pytest.raises(OptionError, match=r"b is out of range: got 9"):
        partition(torch.ones(3), 0.5, 9)


# --- product quantization --------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 24), st.integers(1, 6), st.integers(1, 9), st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_product_codes_round_trip(rows: int, columns: int, d: int, k: int, seed: int) -> None:
    w = laplace(rows, columns, seed=seed)
    d = block_size(tuple(w.shape), d)
    assert columns % d == 0
    k = min(k, rows * columns // d)
    first = encode(w, d, k, seed=seed)
    dense = decode(first, tuple(w.shape))
    again = encode(dense, d, max(1, min(len(first.centroids), rows * columns // d)), seed=seed)
    assert torch.equal(decode(again, tuple(w.shape)), dense)
    assert len(first.centroids) <= k
    assert np.array_equal(first.centroids, first.centroids.astype(np.float16).astype(np.float32))


def test_product_labels_are_nearest_and_sorted_by_frequency() -> None:
    w = laplace(64, 64) * (laplace(64, 64, seed=1).abs() > 0.1)
    found = encode(w, 4, 32)
    labels, _ = nearest(blocks(w, 4), found.centroids.astype(np.float64))
    assert np.array_equal(found.centroids[labels], found.centroids[found.labels])
    counts = np.bincount(found.labels)
    assert not found.centroids[0].any()
    assert (np.diff(counts[1:]) <= 0).all()
    pruned = torch.from_numpy((blocks(w, 4) == 0).all(1)).repeat_interleave(4).reshape(64, 64)
    assert bool(pruned.any())
    assert bool((decode(found, (64, 64))[pruned] == 0).all())


def test_product_error_falls_with_the_codebook_and_vanishes_with_one_centroid_a_block() -> None:
    w = laplace(32, 32).half().float()
    errors = [float((decode(encode(w, 4, k), (32, 32)) - w).square().sum()) for k in (2, 8, 32, 256)]
    assert errors == sorted(errors, reverse=True)
    assert torch.equal(decode(encode(w, 1, 1024, iterations=200), (32, 32)), w)


def test_blocks_of_convolutions_and_short_rows() -> None:
    assert block_size((20, 1, 5, 5), 8) == 5
    assert block_size((10, 500), 8) == 5
    assert block_size((64, 64, 3, 3), 9) == 9
    assert block_size((4, 3), 8) == 3
    assert block_size((40,), 8) == 8
    assert block_size((7, 13), 8) == 1
    with pytest.raises(OptionError, match=r"blocks do not fit the rows: got d=4, wanted a divisor of 10 columns"):
        blocks(torch.ones(3, 10), 4)
    with pytest.raises(CentroidsError, match=r"more centroids than blocks: got 16 for 10 blocks"):
        encode(torch.ones(5, 10), 5, 16)


# --- negatively correlated search ------------------------------------------------------------


def rastrigin(c: np.ndarray) -> float:
    return 0.1 + float((c**2 - 10 * np.cos(2 * np.pi * c) + 10).sum())


def test_search_finds_a_low_point_of_a_function_with_many() -> None:
    found = ncs.search(rastrigin, np.array([4.0, 3.0]), sigma=1.0, bounds=(-5, 5), rng=np.random.default_rng(0))
    assert found.fitness < 1.5
    assert found.fitness == rastrigin(found.c)
    assert found.evaluations == 1600


@given(st.integers(0, 20), st.integers(2, 6), st.integers(10, 60))
@settings(deadline=None, max_examples=20)
def test_search_is_repeatable_inside_its_box_and_within_its_evaluations(
    seed: int, population: int, evaluations: int
) -> None:
    seen: list[np.ndarray] = []

    def f(c: np.ndarray) -> float:
        seen.append(c)
        return rastrigin(c)

    def run() -> ncs.Found:
        how = {"sigma": 3.0, "bounds": (0, 2), "population": population, "evaluations": evaluations}
        return ncs.search(f, np.array([1.0]), rng=np.random.default_rng(seed), **how)

    one, two = run(), run()
    assert one.c.tobytes() == two.c.tobytes()
    assert len(seen) == 2 * one.evaluations <= 2 * evaluations
    assert all((c >= 0).all() and (c <= 2).all() for c in seen)
    assert one.fitness == min(map(rastrigin, seen))


def test_bhattacharyya_against_its_integral() -> None:
    m, s = np.array([0.3]), np.array([0.7])
    n, t = np.array([-1.0]), np.array([1.9])
    x = np.linspace(-40, 40, 400001)
    p, q = (np.exp(-((x - a) ** 2) / (2 * b**2)) / (b * np.sqrt(2 * np.pi)) for a, b in ((m, s), (n, t)))
    assert ncs.bhattacharyya(m, s, n, t) == pytest.approx(-np.log(np.sqrt(p * q).sum() * (x[1] - x[0])), rel=1e-6)


def test_search_refuses_what_has_no_meaning() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(OptionError, match="too few evaluations"):
        ncs.search(rastrigin, np.zeros(1), sigma=1, bounds=(0, 1), population=5, evaluations=4, rng=rng)
    with pytest.raises(OptionError, match="no interval"):
        ncs.search(rastrigin, np.zeros(1), sigma=1, bounds=(1, 1), rng=rng)
