"""Language models and their kin without data: this package beside other tools, the whole file counted.

    python examples/bench/language.py --packages DIR [--download] [--only stories260k] [--budget BITS] [--no-peers]

`bits` is 8 x file bytes / parameters, embeddings and everything else in the file included. Causal models are scored by
perplexity, by the divergence (in nats a token) from the dense model's distribution of the next token, and by how often
both think the same token likeliest; MiniLM by the rank correlation of its embeddings' similarities, and their error;
the speaker encoder by the cosine of its embeddings; g2p and Whisper by their errors, in percent of the phonemes or
words that are right; Piper, of which there are only weights, by the words that Whisper mishears when it speaks.
`seconds` are the processor's; `memory` is the call's peak above what was there before, in MB. `language_models.py` says
which weights are looked for in DIR; `--download` puts those there that a package holds. Every row is written to
results/language.json as soon as it is measured, in place of an earlier one.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import peers
import results
import torch
from language_models import Case, cases, download, read_gguf
from safetensors.torch import save_file

import opq
from opq.base.pool import give_back

COLUMNS = ("model", "method", "budget", "bits", "perplexity_dense", "perplexity", "errors_dense", "errors",
           "divergence", "agreement", "correlation", "error_db", "cosine", "samples", "seconds", "memory")  # fmt: skip
BUDGETS = {"stories260k": (4.0, 3.0, 2.5), "smollm2-135m": (4.0, 3.0, 2.5), "minilm": (3.0, 2.5, 2.0),
           "speaker-encoder": (4.0, 3.0), "g2p": (4.0, 3.0, 2.5), "whisper-tiny.en": (4.0, 3.0, 2.5),
           "piper": (3.4, 3.0)}  # fmt: skip
OWN = {"rd": {}, "rd, quick": {"probe": "quick"}, "rd, weights only": {"probe": False}}
"""This package's rows, by the options of the call; those in a hurry of causal models."""
STREAMED = "rd, streamed"
METHODS = (*OWN, STREAMED, "round-to-nearest", "llama.cpp", "hqq", "nncodec")
SEEDS = {"speaker-encoder": 3}
"""Calls of which a row of the package gives the mean, where one seed differs much from another; else one."""
LEVEL = 19
"""Of zstandard."""

State = Mapping[str, torch.Tensor]


def row(case: Case, method: str, budget: float, size: float, state: State, seconds: float) -> dict[str, Any]:
    """One row: the network with some tensors replaced, scored."""
    network = copy.deepcopy(case.model)
    network.load_state_dict(dict(state), strict=False)
    dense = _dense(case)
    return {
        "model": case.name,
        "method": method,
        "budget": budget,
        "file_bytes": round(size),
        "bits": 8 * size / case.parameters,
        **{f"{name}_dense": dense[name] for name in ("perplexity", "errors") if name in dense},
        **case.score(network.eval()),
        "samples": case.samples,
        "seconds": seconds,
    }


@functools.cache
def _dense(case: Case) -> Mapping[str, float]:
    return case.score(case.model)


def package(case: Case, method: str, budget: float, **options: Any) -> dict[str, Any]:
    """The package as everyone calls it, by one seed or as the mean of several; `seeds` has the cosine of each."""
    count = 1 if options.get("probe") is False else SEEDS.get(case.name, 1)
    rows = [_once(case, method, budget, seed=seed, **options) for seed in range(count)]
    if count == 1:
        return rows[0]
    every = [one["cosine"] for one in rows]
    return rows[0] | {"cosine": statistics.mean(every), "seeds": every}


def _once(case: Case, method: str, budget: float, **options: Any) -> dict[str, Any]:
    """One call, saved, loaded again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.opq.safetensors"
        source: Any = case.model
        if case.bare:
            source = Path(folder) / "weights.safetensors"
            save_file(case.model.state_dict(), source)
        before, start = _memory("VmRSS"), time.process_time()
        result = opq.compress(source, size=int(budget * case.parameters / 8), **options)
        seconds, memory = time.process_time() - start, _memory("VmHWM") - before
        result.save(path)
        size, state = path.stat().st_size, opq.load_state_dict(path)
    return {**row(case, method, budget, size, state, seconds), "memory": round(memory)}


def streamed(case: Case, budget: float) -> dict[str, Any]:
    """A folder of the model compressed block by block with its probe, into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "model", Path(folder) / "made"
        case.model.save_pretrained(source)  # type: ignore[operator]
        before, start = _memory("VmRSS"), time.process_time()
        result = opq.compress_folder(source, made, size=int(budget * case.parameters / 8), probe=True)
        seconds, memory = time.process_time() - start, _memory("VmHWM") - before
        size, state = result.bytes, opq.load_state_dict(made)
    return {**row(case, STREAMED, budget, size, state, seconds), "memory": round(memory)}


def _memory(kind: str) -> float:
    """Megabytes of the process: `VmRSS` now, from where on the peak is counted, or `VmHWM` at most since then."""
    gc.collect()
    give_back()
    status = Path("/proc/self/status").read_text()
    if kind == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(kind)) / 1000


def _matrices(case: Case) -> dict[str, torch.Tensor]:
    """Every weight of two or more dimensions, tied ones once."""
    return {n: w.detach() for n, w in case.model.named_parameters() if w.dim() > 1}


def _others(case: Case) -> int:
    """Bytes of all other parameters in float16."""
    return sum(2 * w.numel() for _, w in case.model.named_parameters() if w.dim() <= 1)


def _state(case: Case, changed: State) -> dict[str, torch.Tensor]:
    """The changed tensors under all their names."""
    of = {id(w): changed[n] for n, w in case.model.named_parameters() if n in changed}
    every = case.model.named_parameters(remove_duplicate=False)
    return {n: of[id(w)] for n, w in every if id(w) in of}


def rounded(case: Case, bits: int) -> dict[str, Any]:
    """Every row of a matrix rounded to 2^bits - 1 levels between its extremes, its scale in float16; codes by zstd."""
    import zstandard

    start, size, state = time.process_time(), float(_others(case)), {}
    for name, w in _matrices(case).items():
        flat = w.flatten(1)
        scale = (flat.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)).clamp(min=1e-8).half().float()
        codes = torch.round(flat / scale)
        state[name] = (codes * scale).view(w.shape)
        size += len(zstandard.compress(codes.to(torch.int8).numpy().tobytes(), LEVEL)) + 2 * len(flat)
    seconds = time.process_time() - start
    return row(case, f"round-to-nearest {bits}-bit + zstd", bits, size, _state(case, state), seconds)


def hqq(case: Case, bits: int) -> dict[str, Any]:
    """HQQ, groups of 64, on every matrix, the embeddings among them; its codes are packed two groups at a time."""
    given = {n: w for n, w in _matrices(case).items() if w.numel() % 128 == 0}
    coded = peers.hqq({n: w.numpy() for n, w in given.items()}, bits=bits, group=64)
    left = sum(2 * w.numel() for n, w in _matrices(case).items() if n not in given)
    state = {n: torch.from_numpy(np.array(coded.arrays[n])).view(w.shape) for n, w in given.items()}
    size = coded.bytes + left + _others(case)
    return row(case, f"hqq {bits}-bit, groups of 64", bits, size, _state(case, state), coded.encode)


def nncodec(case: Case, budget: float) -> dict[str, Any]:
    """NNCodec 2 at the size nearest to the budget; of bare weights, with constants of a graph, the matrices alone."""
    arrays = {n: w.detach().numpy() for n, w in case.model.named_parameters() if w.dim() > 1 or not case.bare}
    left = _others(case) if case.bare else 0
    qp, coded = peers.nncodec_near(arrays, budget - 8 * left / case.parameters, case.parameters)
    state = {n: torch.from_numpy(np.array(coded.arrays[n])).view(arrays[n].shape) for n in arrays}
    return row(case, f"nncodec qp={qp}", budget, coded.bytes + left, _state(case, state), coded.encode)


def llama(case: Case, kind: str, library: Path) -> dict[str, Any]:
    """llama.cpp's quantizer without an importance matrix; the file as it is, its vocabulary left out of the bytes."""
    assert case.gguf is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        start = time.process_time()
        llama_cpp.quantize(library, case.gguf, path, kind)
        seconds = time.process_time() - start
        return row(case, f"llama.cpp {kind}", 0.0, llama_cpp.tensor_bytes(path), read_gguf(path).state_dict(), seconds)


def tasks(
    case: Case, budgets: tuple[float, ...], methods: list[str], packages: Path, *, with_peers: bool
) -> Iterator[Callable[[], Any]]:
    """All rows of one network, or those of some methods."""

    def wanted(method: str) -> bool:
        return not methods or method in methods

    for budget in budgets:
        for method in filter(wanted, OWN):
            if (case.bare and method != "rd, weights only") or (method == "rd, quick" and not case.in_blocks):
                continue
            yield functools.partial(package, case, method, budget, **OWN[method])
    for budget in budgets if wanted(STREAMED) and case.in_blocks else ():
        yield functools.partial(streamed, case, budget)
    for bits in (4, 3) if wanted("round-to-nearest") else ():
        yield functools.partial(rounded, case, bits)
    if wanted("llama.cpp") and case.gguf is not None and (library := llama_cpp.library(packages)) is not None:
        for kind in llama_cpp.KINDS:
            yield functools.partial(llama, case, kind, library)
    if with_peers and wanted("hqq") and peers.available("hqq"):
        for bits in (4, 3):
            yield functools.partial(hqq, case, bits)
    if with_peers and wanted("nncodec") and peers.available("nncodec"):
        for budget in budgets:
            yield functools.partial(nncodec, case, budget)


def _key(one: Mapping[str, Any]) -> tuple[str, str, float]:
    return one["model"], one["method"].split(" qp=")[0], one["budget"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder of unzipped packages with the weights")
    parser.add_argument("--download", action="store_true", help="download and unzip packages that are missing there")
    parser.add_argument("--only", action="append", default=[], help="only this network; may be repeated")
    parser.add_argument(
        "--method", action="append", default=[], choices=METHODS, help="only this: " + ", ".join(map(repr, METHODS))
    )
    parser.add_argument("--budget", type=float, action="append", default=[], help="only this budget, in bits")
    parser.add_argument("--no-peers", action="store_true", help="leave HQQ and NNCodec out, which are installed first")
    options = parser.parse_args()
    if options.download:
        download(options.packages)
    rows = list[results.Row]()
    for name, make in cases(options.packages).items():
        if options.only and name not in options.only:
            continue
        case = make()
        budgets = tuple(options.budget) or BUDGETS[name]
        for measure in tasks(case, budgets, options.method, options.packages, with_peers=not options.no_peers):
            new = measure()
            rows = results.keep("language", [new], _key, order=lambda r: (*_key(r)[:2], -r["budget"]))
            print({k: round(v, 4) if isinstance(v, float) else v for k, v in new.items()}, flush=True)
        results.show([r for r in rows if r["model"] == name], COLUMNS, name)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore", message=".*probe.*")
    main()
