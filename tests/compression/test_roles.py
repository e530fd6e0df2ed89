"""Every tensor gets one answer, with its reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from opq.compression.roles import assign
from opq.errors import OptionError, PatternError
from opq.sources import open_source
from opq.sources.base import TensorSpec


class Everything(nn.Module):
    """One of each kind of tensor that the default rule speaks of."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 8)
        self.conv1, self.conv3 = nn.Conv1d(8, 8, 3), nn.Conv3d(4, 4, 3)
        self.up = nn.ConvTranspose2d(8, 4, 3)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16)
        self.embedding = nn.Embedding(32, 16)
        self.head = nn.Linear(16, 32, bias=False)
        self.head.weight = self.embedding.weight
        self.attention = nn.MultiheadAttention(16, 2)
        self.experts = nn.Parameter(torch.randn(3, 8, 8))
        self.norm = nn.BatchNorm1d(16)
        self.tiny = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("table", torch.randn(16, 16))


@pytest.fixture(scope="module")
def specs() -> tuple[TensorSpec, ...]:
    return open_source(Everything()).specs


def test_defaults(specs: tuple[TensorSpec, ...]) -> None:
    roles = {r.name: r for r in assign(specs)}
    compressed = {n for n, r in roles.items() if r.action == "compress"}
    assert compressed == {
        "linear.weight", "conv1.weight", "conv3.weight", "up.weight", "depthwise.weight", "embedding.weight",
        "attention.in_proj_weight", "attention.out_proj.weight", "experts",
    }  # fmt: skip
    assert (roles["head.weight"].action, roles["head.weight"].spec.like) == ("share", "embedding.weight")
    reasons = {n: roles[n].reason for n in ("tiny.weight", "scale", "table", "norm.num_batches_tracked", "linear.bias")}
    assert reasons == {
        "tiny.weight": "small: 9 weights",
        "scale": "a scalar",
        "table": "a buffer, not a weight",
        "norm.num_batches_tracked": "not floating point (int64)",
        "linear.bias": "one-dimensional",
    }
    assert [r.name for r in assign(specs)] == [s.name for s in specs]


def test_overrides(specs: tuple[TensorSpec, ...]) -> None:
    roles = {
        r.name: r
        for r in assign(
            specs,
            {"*.weight": {"min_bits": 2}, "conv*": "keep", "tiny.*": "compress", "emb*": {"bits": 6, "sensitivity": 3}},
        )
    }
    assert roles["linear.weight"].min_bits == 2
    assert roles["conv1.weight"].action == roles["conv1.bias"].action == "keep"
    assert roles["tiny.weight"].action == "compress"
    embedding = roles["embedding.weight"]
    assert (embedding.min_bits, embedding.max_bits, embedding.sensitivity) == (6, 6, 3)
    assert roles["head.weight"].action == "share"


def test_a_pattern_that_matches_nothing(specs: tuple[TensorSpec, ...]) -> None:
    with pytest.raises(PatternError, match=r"pattern 'nope\*' matches no tensor: wanted names like"):
        assign(specs, {"nope*": "keep"})


@pytest.mark.parametrize(
    "override", ["drop", {}, {"bit": 3}, {"bits": 0}, {"bits": "3"}, {"bits": True}, 3, {"min_bits": 4, "max_bits": 2}]
)
def test_an_override_without_meaning(specs: tuple[TensorSpec, ...], override: object) -> None:
    with pytest.raises(OptionError, match=r"overrides\['linear\*'\]"):
        assign(specs, {"linear*": override})  # type: ignore[dict-item]


def test_integers_cannot_be_compressed(specs: tuple[TensorSpec, ...]) -> None:
    with pytest.raises(OptionError, match=r"compresses tensor 'norm\.num_batches_tracked'"):
        assign(specs, {"norm.*": "compress"})


def test_what_the_user_keeps_is_exact_and_what_the_rules_keep_need_not_be(specs) -> None:  # type: ignore[no-untyped-def]
    roles = {r.name: r for r in assign(specs, {"linear.bias": "keep", "norm.*": "keep", "norm.weight": "compress"})}
    assert (roles["linear.bias"].exact, roles["linear.bias"].asked) == (True, True)
    assert (roles["norm.weight"].exact, roles["norm.weight"].asked) == (False, True)
    assert (roles["conv1.bias"].exact, roles["conv1.bias"].asked) == (False, False)
