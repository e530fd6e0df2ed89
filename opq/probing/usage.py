"""How often the rows of tables of tokens are used, so that rare tokens may be coarser than common ones.

A model that gives scores of words tells it itself: the mean of its predicted distributions over the places of texts is
its own frequency of every word, also of those that no text holds. Of other models with a vocabulary the place in it
tells: vocabularies are made so that common tokens come first, whatever makes them (merges in the order of their number,
pieces by their probability), and by Zipf's law the frequency of the i-th is about 1 / i.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from opq.base.arrays import Floats
from opq.models.batch import Batch
from opq.models.observe import batch_statistics, untouched, watching
from opq.models.outputs import floating
from opq.models.record import Record

POWER = 0.75
"""Rows count by this power of their use. Measured with 1/2 and 1 as well, on stories260K, SmolLM2 and MiniLM
(docs/research.md): texts to come are not those that use is told from."""
FIRST = 1000
"""Places at the beginning of a vocabulary that hold special tokens, bytes and letters, and count about alike."""
VOCABULARY = 4096
"""Rows from which on a table of ids is taken for one of a vocabulary, whose order says something. A choice."""
PLACES = 768
"""Places of texts from which on no more are looked at. A choice."""
_AT_ONCE = 64
"""Places whose scores are looked at together: they are as many as there are words."""


@torch.no_grad()
def of(model: nn.Module, batch: Batch, *, micro_batch: int, real: bool) -> dict[str, Floats]:
    """How much each row of tables of tokens counts, (rows,) by parameter name; none where no ids are looked up.

    Args:
        batch: the inputs, of which some are run.
        real: whether these are real texts, whose own tokens tell something.
    """
    tables = {name: m for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    if not tables or not _texts(batch):
        return {}
    predicted, counted, places = dict[int, Floats](), dict[str, Floats](), 0
    with untouched(model), batch_statistics(model):
        record = Record(model)
        for part in batch.to(model).parts(micro_batch):
            output, looked_up = _read(model, part, tables)
            record.restore()
            for name, ids in looked_up.items():
                rows = tables[name].num_embeddings
                told = np.bincount(_counted(ids, part.mask).flatten().cpu().numpy(), minlength=rows).astype(np.float64)
                counted[name] = counted[name] + told if name in counted else told
                for scores in _scores(output, ids, rows):
                    likely = _likely(_counted(scores, part.mask).flatten(0, -2))
                    predicted[rows] = predicted[rows] + likely if rows in predicted else likely
            places += max((ids.numel() for ids in looked_up.values()), default=0)
            if not looked_up or places >= PLACES:
                break
    found = {name: weight(predicted.get(len(ids)), len(ids), ids if real else None) for name, ids in counted.items()}
    return {f"{name}.weight" if name else "weight": used for name, used in found.items() if used is not None}


def _texts(batch: Batch) -> list[torch.Tensor]:
    """The tensors among inputs that may be texts of token ids."""
    return [t for t in batch.tensors if t.dtype == torch.int64 and t.dim() == 2]


def _read(model: nn.Module, part: Batch, tables: Mapping[str, nn.Embedding]) -> tuple[object, dict[str, torch.Tensor]]:
    """The output for some inputs, and by table the ids that were looked up in it, if they are those of the inputs."""
    seen, own = dict[str, torch.Tensor](), _texts(part)

    def see(name: str, module: nn.Module, given: Sequence[torch.Tensor]) -> None:
        if any(given[0].shape == ids.shape and torch.equal(given[0], ids) for ids in own):
            seen[name] = given[0]

    with watching(tables, see):
        output = part(model)
    return output, seen


def weight(predicted: Floats | None, rows: int, told: Floats | None = None) -> Floats | None:
    """How much each row of a table counts, up to a factor; None if nothing tells it.

    Args:
        predicted: how often a model expects each token.
        told: how often each is in real texts.
    """
    if predicted is not None and np.isfinite(predicted).all():
        return _counting(predicted)
    if rows < VOCABULARY:
        return None
    found: Floats = 1.0 / (FIRST + np.arange(rows))
    if told is not None:
        found += told * (found.sum() / told.sum())
    return _counting(found)


def _counting(use: Floats) -> Floats:
    counts: Floats = use**POWER
    return counts


def _likely(scores: torch.Tensor) -> Floats:
    """The sum of the distributions that scores (places, words) give."""
    parts = (some.float().softmax(-1).sum(0, dtype=torch.float64) for some in torch.split(scores, _AT_ONCE))
    found: Floats = torch.stack(list(parts)).sum(0).cpu().numpy()
    return found


def _counted(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """What belongs to tokens that the mask counts: (samples, length, ...) to (tokens, ...)."""
    return values[mask.to(values.device)] if mask is not None and values.shape[:2] == mask.shape else values


def _scores(output: object, ids: torch.Tensor, rows: int) -> list[torch.Tensor]:
    """The tensors of an output that give every place of the texts a score of each row, at most one."""
    return [t for t in floating(output) if t.dim() == 3 and t.shape == (*ids.shape, rows)][:1]
