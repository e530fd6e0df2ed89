"""Checkpoints that are quantized already: what decodes codes is kept bit for bit, or read as weights."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import opq
from opq.errors import SourceError
from opq.sources import open_source, packed_weights

State = dict[str, torch.Tensor]
GROUP = 32


def codes(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    info = torch.iinfo(dtype)
    return torch.randint(info.min, info.max, shape, dtype=dtype)


def scales(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return (torch.rand(*shape) * 0.01 + 0.001).to(dtype)


EMBEDDING = {"embed.weight": torch.randn(500, 64, generator=torch.Generator().manual_seed(0)).mul(0.02).half()}

FORMATS: dict[str, tuple[State, tuple[str, ...]]] = {
    "gptq": (
        {
            "l.qweight": codes(32, 512),
            "l.qzeros": codes(2, 64),
            "l.scales": scales(2, 512),
            "l.g_idx": torch.arange(256, dtype=torch.int32) // 128,
        },
        ("l.scales",),
    ),
    "awq": ({"l.qweight": codes(256, 64), "l.qzeros": codes(2, 64), "l.scales": scales(2, 512)}, ("l.scales",)),
    "compressed-tensors int8": (
        {
            "l.weight": codes(64, 128, dtype=torch.int8),
            "l.weight_scale": scales(64, 1, dtype=torch.bfloat16),
            "l.weight_zero_point": codes(64, 1, dtype=torch.int8),
            "l.input_scale": scales(1),
        },
        ("l.weight_scale", "l.input_scale"),
    ),
    "compressed-tensors packed": (
        {
            "l.weight_packed": codes(64, 16),
            "l.weight_scale": scales(64, 4),
            "l.weight_shape": torch.tensor([64, 128]),
        },
        ("l.weight_scale",),
    ),
    "nvfp4": (
        {
            "l.weight_packed": codes(64, 64, dtype=torch.uint8),
            "l.weight_scale": torch.rand(64, 8).to(torch.float8_e4m3fn),
            "l.weight_global_scale": scales(1, dtype=torch.float32),
        },
        ("l.weight_scale", "l.weight_global_scale"),
    ),
    "float8 blocks": (
        {
            "l.weight": torch.randn(256, 128).to(torch.float8_e4m3fn),
            "l.weight_scale_inv": scales(16, 8, dtype=torch.float32),
        },
        ("l.weight_scale_inv",),
    ),
    "float8 channels": (
        {"l.weight": torch.randn(128, 64).to(torch.float8_e4m3fn), "l.weight_scale": scales(128, 1)},
        ("l.weight_scale",),
    ),
    "bitsandbytes nf4": (
        {
            "l.weight": codes(4096, 1, dtype=torch.uint8),
            "l.weight.absmax": scales(128, dtype=torch.float32),
            "l.weight.quant_map": torch.linspace(-1, 1, 16),
            "l.weight.nested_absmax": scales(2, dtype=torch.float32),
            "l.weight.nested_quant_map": torch.linspace(-1, 1, 256),
            "l.weight.quant_state.bitsandbytes__nf4": codes(80, dtype=torch.uint8),
        },
        ("l.weight.absmax", "l.weight.quant_map", "l.weight.nested_absmax", "l.weight.nested_quant_map"),
    ),
    "bitsandbytes int8": (
        {"l.weight": codes(64, 64, dtype=torch.int8), "l.SCB": scales(64, dtype=torch.float32)},
        ("l.SCB",),
    ),
    "hqq": (
        {
            "l.W_q": codes(32, 64, dtype=torch.uint8),
            "l.scale": scales(64, 1),
            "l.zero": (torch.rand(64, 1) * 15).half(),
        },
        ("l.scale", "l.zero"),
    ),
    "quanto": (
        {"l.weight._data": codes(64, 64, dtype=torch.int8), "l.weight._scale": scales(64, 1)},
        ("l.weight._scale",),
    ),
    "aqlm": (
        {
            "l.codes": codes(64, 8, 2, dtype=torch.int16),
            "l.codebooks": torch.randn(2, 256, 1, 8).half(),
            "l.scales": scales(64, 1, 1, 1),
        },
        ("l.codebooks", "l.scales"),
    ),
    "mxfp4": (
        {
            "e.gate_up_proj_blocks": codes(2, 16, 2, 16, dtype=torch.uint8),
            "e.gate_up_proj_scales": codes(2, 16, 2, dtype=torch.uint8),
            "e.gate_up_proj_bias": torch.randn(2, 16).bfloat16(),
        },
        (),
    ),
}


@pytest.mark.parametrize("as_what", ["dict", "file", "folder", "shards", "pt"])
@pytest.mark.parametrize("name", FORMATS)
def test_what_decodes_codes_is_kept_bit_for_bit_and_says_so(tmp_path: Path, name: str, as_what: str) -> None:
    state, exact = FORMATS[name]
    source = placed(tmp_path, EMBEDDING | state, as_what)
    result = opq.compress(source, bits=200, probe=False)
    tight = opq.compress(source, size=result.bytes - 8000, probe=False)
    for tensor in exact:
        assert torch.equal(bytes_of(tight.tensor(tensor)), bytes_of(state[tensor])), tensor
        assert tight.plan[tensor].action == "keep"
        assert tight.plan[tensor].reason in ("decodes integer codes", "scales of float8 weights")
    assert tight.plan["embed.weight"].action == "compress"
    assert all(torch.equal(tight.tensor(n), t) for n, t in state.items() if not t.is_floating_point())


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def placed(folder: Path, state: State, as_what: str, config: object = None) -> object:
    """The state dict as a source of some kind."""
    if as_what == "dict":
        return state
    if as_what == "pt":
        torch.save(state, folder / "m.pt")
        return folder / "m.pt"
    if as_what == "shards":
        for k, (name, tensor) in enumerate(state.items(), 1):
            save_file({name: tensor}, folder / f"model-{k:05}-of-{len(state):05}.safetensors")
    else:
        save_file(state, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder / "model.safetensors" if as_what == "file" else folder


def test_scales_alone_are_known_by_the_configuration(tmp_path: Path) -> None:
    state = {"attn.k_scale": scales(64, 64), "l.qweight": codes(32, 512), "l.scales": scales(2, 512)}
    source = placed(tmp_path, EMBEDDING | state, "folder", {"quantization_config": {"quant_method": "gptq"}})
    assert open_source(source).by_name["attn.k_scale"].exact == "decodes integer codes"
    assert not open_source(EMBEDDING | state).by_name["attn.k_scale"].exact


def test_an_unknown_method_with_codes_is_refused(tmp_path: Path) -> None:
    state = EMBEDDING | {"l.thing": codes(32, 512), "l.other": scales(2, 512)}
    source = placed(tmp_path, state, "folder", {"quantization_config": {"quant_method": "mystery"}})
    with pytest.raises(
        SourceError, match=r"quantized by 'mystery', and nothing tells its scales .* codes in 'l\.thing'"
    ):
        open_source(source)


def test_packed_codes_without_scales_are_refused() -> None:
    with pytest.raises(SourceError, match="packed codes that nothing decodes"):
        open_source(EMBEDDING | {"l.qweight": codes(32, 512)})


def test_ordinary_networks_hold_nothing_that_decodes_codes() -> None:
    state = {
        "attn.relative_position_index": torch.arange(16).view(4, 4),
        "attn.logit_scale": torch.ones(3, 1, 1),
        "embeddings.position_ids": torch.arange(512)[None],
        "norm.weight": torch.ones(8),
        "norm.scale": torch.ones(8, 8),
        "attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
        "w": torch.randn(8, 8),
    }
    assert not [s.name for s in open_source(state) if s.exact]


# --- dequantized --------------------------------------------------------------------------------


def pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes (rows, n) in int32 along the rows, the slow way: one bit pattern after the other, lowest first."""
    rows = []
    for row in values.tolist():
        numbers = []
        for start in range(0, len(row), 32 // bits):
            word = sum((code & (1 << bits) - 1) << bits * k for k, code in enumerate(row[start : start + 32 // bits]))
            numbers.append(word - (1 << 32) if word >= 1 << 31 else word)
        rows.append(numbers)
    return torch.tensor(rows, dtype=torch.int32)


def read(state: State, name: str = "l.weight", **more: object) -> torch.Tensor:
    source = open_source(state, dequantize=True, **more)
    spec = source.by_name[name]
    value = source.tensor(name)
    assert (tuple(value.shape), value.dtype) == (spec.shape, spec.dtype)
    assert set(source.names) <= {name, "embed.weight"}
    return value


@settings(max_examples=25, deadline=None)
@given(
    bits=st.sampled_from([2, 4, 8]),
    groups=st.integers(1, 3),
    blocks=st.integers(1, 3),
    shuffled=st.booleans(),
    second=st.booleans(),
    seed=st.integers(0, 99),
)
def test_gptq_by_a_slow_reference(bits: int, groups: int, blocks: int, shuffled: bool, second: bool, seed: int) -> None:
    """w[o, i] = (code[i, o] - zero[g(i), o]) * scale[g(i), o]; the first version stores zeros less one."""
    torch.manual_seed(seed)
    inputs, outputs, middle = 32 * groups, 32 * blocks, 1 << (bits - 1)
    code = torch.randint(0, 1 << bits, (inputs, outputs))
    zero = torch.full((groups, outputs), middle)
    scale = scales(groups, outputs)
    order = torch.randint(0, groups, (inputs,)) if shuffled else torch.arange(inputs) // 32
    state = {
        "l.qweight": pack(code.t(), bits).t().contiguous(),
        "l.qzeros": pack(zero - (0 if second else 1), bits),
        "l.scales": scale,
        "l.g_idx": order.int(),
    }
    if not shuffled:
        del state["l.g_idx"]
    wanted = torch.zeros(outputs, inputs)
    for i, o in itertools.product(range(inputs), range(outputs)):
        g = int(order[i])
        wanted[o, i] = float(code[i, o] - zero[g, o]) * float(scale[g, o])
    assert torch.equal(read(EMBEDDING | state), wanted.half())


def test_gptq_of_either_version_is_told_by_its_configuration_or_refused(tmp_path: Path) -> None:
    state = EMBEDDING | {"l.qweight": codes(32, 64), "l.qzeros": codes(2, 8), "l.scales": scales(2, 64)}
    with pytest.raises(SourceError, match=r"qzeros: nothing tells whether they are stored less one"):
        open_source(state, dequantize=True)
    found = {}
    for version in ("gptq", "gptq_v2"):
        (tmp_path / version).mkdir()
        config = {"quantization_config": {"quant_method": "gptq", "checkpoint_format": version}}
        source = open_source(placed(tmp_path / version, state, "folder", config), dequantize=True)
        found[version] = source.tensor("l.weight").float()
    group = torch.arange(256) // 128
    assert torch.allclose(found["gptq_v2"] - found["gptq"], state["l.scales"].float()[group].t(), rtol=0.02)


@settings(max_examples=10, deadline=None)
@given(groups=st.integers(1, 3), seed=st.integers(0, 99))
def test_awq_by_a_slow_reference(groups: int, seed: int) -> None:
    """Eight outputs a number, in the order 0 2 4 6 1 3 5 7 from the lowest bits on; zeros likewise, as they are."""
    torch.manual_seed(seed)
    inputs, outputs = GROUP * groups, 64
    code, zero = torch.randint(0, 16, (inputs, outputs)), torch.randint(0, 16, (groups, outputs))
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])

    def packed(values: torch.Tensor) -> torch.Tensor:
        return pack(values.view(len(values), -1, 8)[..., order].flatten(1), 4)

    scale = scales(groups, outputs)
    state = {"l.qweight": packed(code), "l.qzeros": packed(zero), "l.scales": scale}
    wanted = torch.zeros(outputs, inputs)
    for i, o in itertools.product(range(inputs), range(outputs)):
        wanted[o, i] = float(code[i, o] - zero[i // GROUP, o]) * float(scale[i // GROUP, o])
    assert torch.equal(read(EMBEDDING | state), wanted.half())


@settings(max_examples=20, deadline=None)
@given(
    bits=st.sampled_from([4, 8]), columns=st.sampled_from([40, 64, 96]), zeros=st.booleans(), seed=st.integers(0, 99)
)
def test_compressed_tensors_packed_by_a_slow_reference(bits: int, columns: int, zeros: bool, seed: int) -> None:
    torch.manual_seed(seed)
    rows, groups, half = 32, columns // 8, 1 << (bits - 1)
    code = torch.randint(-half, half, (rows, columns))
    zero = torch.randint(-half, half, (rows, groups)) if zeros else torch.zeros(rows, groups, dtype=torch.long)
    scale = scales(rows, groups, dtype=torch.bfloat16)
    state = {
        "l.weight_packed": pack(code + half, bits),
        "l.weight_scale": scale,
        "l.weight_shape": torch.tensor([rows, columns]),
    }
    if zeros:
        state["l.weight_zero_point"] = pack((zero + half).t(), bits).t().contiguous()
    wanted = torch.zeros(rows, columns)
    for r, c in itertools.product(range(rows), range(columns)):
        wanted[r, c] = float(code[r, c] - zero[r, c // 8]) * float(scale[r, c // 8])
    assert torch.equal(read(EMBEDDING | state), wanted.bfloat16())


@pytest.mark.parametrize("shape", [(), (1,), (48, 1), (48,)])
def test_int8_and_float8_with_a_scale_for_all_or_a_row(shape: tuple[int, ...]) -> None:
    for kind in (torch.int8, torch.float8_e4m3fn):
        w = codes(48, 40, dtype=torch.int8) if kind == torch.int8 else torch.randn(48, 40).to(kind)
        scale = torch.rand(shape) + 0.5
        wanted = torch.stack([w[r].float() * (scale.reshape(-1)[r] if scale.numel() > 1 else scale) for r in range(48)])
        assert torch.equal(read(EMBEDDING | {"l.weight": w, "l.weight_scale": scale}), wanted)


def test_int8_with_zero_points() -> None:
    w, zero, scale = codes(16, 24, dtype=torch.int8), codes(16, 1, dtype=torch.int8), torch.rand(16, 1)
    state = EMBEDDING | {"l.weight": w, "l.weight_scale": scale, "l.weight_zero_point": zero}
    assert torch.equal(read(state), (w.float() - zero.float()) * scale)


@pytest.mark.parametrize("size", [(256, 128), (200, 300), (128, 130)])
def test_float8_with_block_scales(size: tuple[int, int]) -> None:
    rows, columns = size
    w, scale = torch.randn(size).to(torch.float8_e4m3fn), torch.rand(-(-rows // 128), -(-columns // 128))
    wanted = torch.zeros(size)
    for r, c in itertools.product(range(rows), range(columns)):
        wanted[r, c] = float(w[r, c]) * float(scale[r // 128, c // 128])
    assert torch.equal(read(EMBEDDING | {"l.weight": w, "l.weight_scale_inv": scale}), wanted)


def test_block_scales_that_fit_two_ways_are_refused() -> None:
    state = EMBEDDING | {"l.weight": torch.randn(200, 64).to(torch.float8_e4m3fn), "l.weight_scale": torch.rand(2, 1)}
    with pytest.raises(SourceError, match="its scales do not fit it"):
        open_source(state, dequantize=True)


@pytest.mark.parametrize("mark", ["_", "."])
def test_mxfp4_by_a_slow_reference(mark: str) -> None:
    numbers = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    blocks, scale = codes(2, 6, 2, 16, dtype=torch.uint8), torch.randint(120, 134, (2, 6, 2)).to(torch.uint8)
    wanted = torch.zeros(2, 6, 64)
    for e, r, c in itertools.product(range(2), range(6), range(64)):
        byte = int(blocks[e, r, c // 32, c % 32 // 2])
        nibble = byte >> 4 if c % 2 else byte & 15
        wanted[e, r, c] = (-1 if nibble & 8 else 1) * numbers[nibble & 7] * 2.0 ** (int(scale[e, r, c // 32]) - 127)
    wanted = wanted.transpose(1, 2) if mark == "_" else wanted
    state = EMBEDDING | {f"e.up{mark}blocks": blocks, f"e.up{mark}scales": scale}
    assert torch.equal(read(state, "e.up"), wanted.bfloat16())


def test_a_layout_that_is_not_known_is_refused_and_an_ordinary_source_is_itself() -> None:
    with pytest.raises(SourceError, match=r"codes of a layout that is not known: got l\.weight"):
        open_source(EMBEDDING | FORMATS["bitsandbytes nf4"][0], dequantize=True)
    assert open_source(EMBEDDING, dequantize=True).names == ("embed.weight",)


def test_dequantized_weights_are_compressed(tmp_path: Path) -> None:
    state = EMBEDDING | FORMATS["float8 channels"][0] | {"l.input_scale": scales(1)}
    result = opq.compress(state, bits=4, dequantize=True)
    assert result.plan["l.weight"].action == "compress"
    assert {t.name for t in result.plan} == {"embed.weight", "l.weight"}
    dense = open_source(state, dequantize=True).tensor("l.weight")
    assert float((result.tensor("l.weight") - dense).norm() / dense.norm()) < 0.2


@pytest.mark.parametrize(
    ("of", "blocks"),
    [((2, 3), (128, 128)), ((4, 4), (64, 75)), ((2, 1), (128, 300)), ((256,), (1, 300)), ((1,), (256, 300))],
)
def test_the_blocks_of_the_config_are_taken_where_the_scales_are_as_many(
    of: tuple[int, ...], blocks: tuple[int, ...]
) -> None:
    settings = {"weight_block_size": [128, 128]}
    assert packed_weights._blocks("w", (256, 300), of, settings, inverse=False) == blocks


def test_scales_that_fit_neither_the_config_nor_the_weights_are_refused() -> None:
    with pytest.raises(SourceError, match="its scales do not fit it"):
        packed_weights._blocks("w", (256, 300), (7,), {"weight_block_size": [128, 128]}, inverse=False)
