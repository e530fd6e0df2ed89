"""Against a base the differences are compressed; the file names its base and is nothing without it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import opq
from opq import demo
from opq.errors import CorruptFileError, MismatchError, NewerFormatError, OptionError, WrongBaseError
from opq.export import save_dense
from opq.file.header import check_version

State = dict[str, torch.Tensor]


def pair(dtype: torch.dtype = torch.float32) -> tuple[State, State]:
    """A network and its later version: matrices moved a little, one is new, one as it was, integers too."""
    g = torch.Generator().manual_seed(0)
    old = {f"{k}.weight": torch.randn(128, 96, generator=g).to(dtype) for k in range(3)}
    old |= {
        "0.bias": torch.randn(96, generator=g).to(dtype),
        "ids": torch.arange(40),
        "0.norm": torch.rand(64).to(dtype),
    }
    new = {
        n: t + 0.01 * torch.randn(t.shape, generator=g).to(dtype) if t.is_floating_point() else t
        for n, t in old.items()
    }
    new["2.weight"] = old["2.weight"]
    return old, {**new, "extra.weight": torch.randn(64, 64, generator=g).to(dtype), "ids": torch.arange(1, 41)}


def error(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], name: str) -> float:
    return float((found[name].double() - wanted[name].double()).square().mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_differences_are_far_better_at_few_bits_than_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    old, new = pair(dtype)
    path = tmp_path / "new.opq.safetensors"
    result = opq.compress(new, base=old, bits=1.0)
    result.save(path)
    found, alone = opq.load_state_dict(path, base=old), opq.compress(new, bits=1.0).state_dict()
    assert list(found) == list(new)
    assert {n: (t.shape, t.dtype) for n, t in found.items()} == {n: (t.shape, t.dtype) for n, t in new.items()}
    assert result.bytes <= result.elements / 8
    for name in ("0.weight", "1.weight"):
        assert error(found, new, name) < 0.01 * error(alone, new, name)
        assert error(found, new, name) < error(old, new, name)
    assert torch.equal(found["2.weight"], new["2.weight"])
    assert torch.equal(found["ids"], new["ids"])
    assert error(found, new, "0.bias") < 1e-3 * error(old, new, "0.bias") or dtype == torch.bfloat16
    assert error(found, new, "extra.weight") < 0.8
    assert all(torch.equal(t, result.state_dict()[n]) for n, t in found.items())


def test_a_weight_matters_as_much_whatever_its_difference_is() -> None:
    """Without a probe sensitivities come from the new weights, not from the tiny differences."""
    old, new = pair()
    new["0.weight"] = old["0.weight"] + 1e-3 * (new["0.weight"] - old["0.weight"])
    alone, based = opq.solve(new, bits=2), opq.solve(new, base=old, bits=2)
    wanted = {t.name: t.sensitivity for t in alone.compressed}
    assert {t.name: t.sensitivity for t in based.compressed} == pytest.approx(wanted, rel=1e-3)


def test_a_base_is_known_by_its_tensors_in_whatever_they_lie(tmp_path: Path) -> None:
    old, new = pair()
    result = opq.compress(new, base=old, bits=1.0)
    result.save(tmp_path / "new.opq.safetensors")
    save_file(old, tmp_path / "one.safetensors")
    (tmp_path / "shards").mkdir()
    names = list(old)
    for k, some in enumerate((names[:2], names[2:]), start=1):
        save_file({n: old[n] for n in some}, tmp_path / "shards" / f"model-0000{k}-of-00002.safetensors")
    wanted = result.state_dict()
    for base in (dict(reversed(old.items())), tmp_path / "one.safetensors", str(tmp_path / "shards")):
        found = opq.load_state_dict(tmp_path / "new.opq.safetensors", base=base)
        assert all(torch.equal(t, wanted[n]) for n, t in found.items())


def test_the_base_may_be_an_opq_file(tmp_path: Path) -> None:
    """The receiver has the old version as a small file, and gets the new one as a smaller one."""
    old, new = pair()
    first, second = tmp_path / "first.opq.safetensors", tmp_path / "second.opq.safetensors"
    opq.compress(old, bits=5).save(first)
    opq.compress(new, base=first, bits=2.0).save(second)
    found = opq.load_state_dict(second, base=first)
    assert error(found, new, "0.weight") < 0.3 * error(opq.load_state_dict(first), new, "0.weight")


def test_without_its_base_or_with_another_one_a_file_says_what_it_wants(tmp_path: Path) -> None:
    old, new = pair()
    path = tmp_path / "new.opq.safetensors"
    opq.compress(new, base=old, bits=1.0).save(path)
    with pytest.raises(WrongBaseError, match=r"got no base, wanted [0-9]+ bytes of tensors, SHA-256 [0-9a-f]{64}"):
        opq.load_state_dict(path)
    for wrong in (new, {**old, "0.bias": old["0.bias"] + 1}):
        with pytest.raises(WrongBaseError, match="is not the base of"):
            opq.load_state_dict(path, base=wrong)
    with pytest.raises(WrongBaseError):
        save_dense(path, tmp_path / "dense.safetensors")
    assert not (tmp_path / "dense.safetensors").exists()
    save_dense(path, tmp_path / "dense.safetensors", base=old)
    assert torch.equal(load_file(tmp_path / "dense.safetensors")["ids"], new["ids"])
    with opq.Reader(path) as reader:
        assert reader.base is not None
        assert reader.stored("0.weight").abs().max() < 0.1
        assert torch.equal(reader.tensor("ids"), new["ids"])


def test_a_model_is_left_alone_without_the_base(tmp_path: Path) -> None:
    """And filled with it; the probe's sensitivities are those of the new network."""
    model, base = demo.load(), demo.load().state_dict()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn_like(p))
    path = tmp_path / "m.opq.safetensors"
    result = opq.compress(model, base=base, bits=0.8)
    result.save(path)
    assert "sensitivities" in result.basis
    assert {t.sensitivity for t in result.plan.compressed} != {1.0}
    other = demo.load()
    before = {n: t.clone() for n, t in other.state_dict().items()}
    with pytest.raises(WrongBaseError):
        opq.load(path, other)
    assert all(torch.equal(t, before[n]) for n, t in other.state_dict().items())
    images = demo.test_split()[0][:100]
    wanted, old = model(images), other(images)
    opq.load(path, other, base=base)
    assert (other(images) - wanted).square().mean() < 0.3 * (old - wanted).square().mean()


def test_a_reader_of_version_1_takes_it_for_newer(tmp_path: Path) -> None:
    old, new = pair()
    path = tmp_path / "new.opq.safetensors"
    opq.compress(new, base=old, bits=1.0).save(path)
    with pytest.raises(NewerFormatError):
        check_version({"opq": "2"}, "a file")
    (tmp_path / "wrong").write_bytes(path.read_bytes().replace(b"opq_base", b"opq_bass", 1))
    with pytest.raises(NewerFormatError):
        opq.Reader(tmp_path / "wrong")
    digit = path.read_bytes().index(b'"opq_base":"') + 12
    data = bytearray(path.read_bytes())
    data[digit] = ord("g")
    (tmp_path / "wrong").write_bytes(data)
    with pytest.raises(CorruptFileError, match="does not name its base"):
        opq.Reader(tmp_path / "wrong")


def test_what_has_no_meaning_is_refused(tmp_path: Path) -> None:
    old, new = pair()
    with pytest.raises(MismatchError, match="has no tensor of"):
        opq.compress(new, base={"other": torch.randn(4, 4)}, bits=1)
    with pytest.raises(OptionError, match="does not take base="):
        opq.compress(new, base=old, bits=1, method="kmeans")
    with pytest.raises(OptionError, match="like= does not go with base="):
        opq.compress(new, base=old, like=tmp_path / "x", bits=1)


def test_a_result_with_a_base_can_be_pickled_whatever_the_base_was_read_from(tmp_path: Path) -> None:
    old, new = pair()
    save_file(old, tmp_path / "old.safetensors")
    opq.compress(old, bits=5).save(tmp_path / "old.opq.safetensors")
    for base in (old, tmp_path / "old.safetensors", tmp_path / "old.opq.safetensors"):
        result = opq.compress(new, base=base, bits=1.0)
        data, wanted = pickle.dumps(result), result.state_dict()
        if isinstance(base, Path):
            base.unlink()
        again = pickle.loads(data)
        assert again.plan == result.plan
        assert again.base.name == result.base.name
        assert all(torch.equal(t, wanted[n]) for n, t in again.state_dict().items())


def test_a_base_for_a_file_that_has_none_is_refused(tmp_path: Path) -> None:
    old, new = pair()
    opq.compress(new, bits=4).save(tmp_path / "new.opq.safetensors")
    with pytest.raises(WrongBaseError, match=r"has no base.*Leave base= out"):
        opq.load_state_dict(tmp_path / "new.opq.safetensors", base=old)
