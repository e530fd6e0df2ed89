"""Texts without labels for training: lines from a list or a file, or texts that the model writes itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from opq.base.extras import brief, need
from opq.base.progress import Progress
from opq.errors import DataError
from opq.models.batch import Batch
from opq.probing.sensitivity import made_up
from opq.sources.hints import hint_of_module
from opq.training.lesson import Data, Inputs

if TYPE_CHECKING:
    from opq.training.loop import Training

OWN = "own"
WRITTEN = 256
"""Texts that a model writes. A choice: a decoder of 135 million weights writes them in about a minute."""
LENGTH = 128
"""The most tokens of a line."""
_ENDLESS = 10**6
"""Tokenizers that know no longest text say a number beyond this."""


def of_texts(model: nn.Module, texts: Any, tokenizer: Any, how: Training, told: Progress) -> Data:
    """The lesson's data of texts.

    Raises:
        DataError: there are too few lines, they cannot be read, or no tokenizer is known.
        MissingExtraError: the tokenizer needs transformers, which is not installed.
    """
    if isinstance(texts, str) and texts == OWN:
        return _own(model, how, told)
    lines = _lines(texts)
    encode = _encoder(model, tokenizer)

    def encoded(which: Sequence[int], epoch: int = 0) -> Inputs:
        return encode([lines[k] for k in which])

    encoded(range(min(2, len(lines))))  # what is wrong with the tokenizer is said before training
    return Data(len(lines), encoded, encoded)


def _lines(texts: Any) -> list[str]:
    """Lines that hold something."""
    if isinstance(texts, (str, os.PathLike)):
        try:
            texts = Path(texts).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {texts}", got=brief(error), wanted="a text a line, in UTF-8") from error
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        raise DataError("texts=", got=f"a {type(wrong).__name__}", wanted="a list of strings, or a file of lines")
    lines = [line.strip() for line in texts if line.strip()]
    if len(lines) < 2:
        raise DataError(
            "too few lines of text", got=len(lines), wanted="at least 2: one to learn from, one to judge by"
        )
    return lines


def _encoder(model: nn.Module, tokenizer: Any) -> Callable[[list[str]], dict[str, torch.Tensor]]:
    """What makes the model's arguments of a list of lines."""
    tokenizer = _known(model) if tokenizer is None else tokenizer
    options: dict[str, Any] = {}
    if hasattr(tokenizer, "pad_token"):  # one of transformers
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        hint = hint_of_module(model)
        longest = (LENGTH, tokenizer.model_max_length, None if hint is None else hint.tokens)
        most = min(n for n in longest if isinstance(n, int) and 0 < n < _ENDLESS)
        options = {"padding": True, "truncation": True, "max_length": most, "return_tensors": "pt"}

    def encode(lines: list[str]) -> dict[str, torch.Tensor]:
        found = tokenizer(lines, **options)
        if not isinstance(found, Mapping):
            raise DataError("tokenizer=", got=f"a {type(found).__name__}", wanted="a dict of the model's arguments")
        return dict(found)

    return encode


def _known(model: nn.Module) -> Any:
    """The tokenizer that belongs to a model of transformers."""
    name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    if not name:
        fact = "the model does not say which tokenizer it has"
        raise DataError(fact, got=type(model).__name__, remedy="Pass tokenizer=, from texts to the model's arguments.")
    transformers = need("transformers", "hf")
    try:
        return transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"no tokenizer in {name}", got=brief(error), remedy="Pass tokenizer=.") from error


def _own(model: nn.Module, how: Training, told: Progress) -> Data:
    batch, written = made_up(
        model, input_size=None, example_inputs=None, hint=hint_of_module(model), quick=False, samples=WRITTEN,
        seed=how.seed or 0, see=lambda done, total: told("texts", done, total),
    )  # fmt: skip
    if not written:
        raise DataError(
            "the model does not write texts", got=type(model).__name__, remedy="Pass lines of text as texts=."
        )

    def chosen(which: Sequence[int], epoch: int = 0) -> Inputs:
        return _arguments(batch.rows(torch.tensor(list(which))))

    return Data(batch.samples, chosen, chosen)


def _arguments(batch: Batch) -> Inputs:
    """A call as the loop makes it: by keywords, or by place."""
    if batch.args:
        return batch.args[0] if len(batch.args) == 1 else batch.args
    return dict(batch.kwargs)
