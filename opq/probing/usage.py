"""How often the rows of tables of tokens, and of output matrices, are used, so that rare tokens may be coarser.

A model that gives scores of words tells it itself: the mean of its predicted distributions over the places of texts is
its own frequency of every word, also of those that no text holds. Of other models with a vocabulary the place in it
tells: vocabularies are made so that common tokens come first, whatever makes them (merges in the order of their number,
pieces by their probability), and by Zipf's law the frequency of the i-th is about 1 / i.
"""

from __future__ import annotations

import contextlib
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
    """How much each row of tables of tokens, and of the matrix that gives their scores, counts: (rows,) by parameter
    name, under all names of one that has several; none where no ids are looked up.

    Args:
        batch: the inputs, of which some are run.
        real: whether these are real texts, whose own tokens tell something.
    """
    tables = {name: m for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    if not tables or not _texts(batch):
        return {}
    predicted, counted, places = dict[int, Floats](), dict[str, Floats](), 0
    heads = dict[str, int]()
    with untouched(model), batch_statistics(model):
        record = Record(model)
        for part in batch.to(model).parts(micro_batch):
            output, looked_up, last = _read(model, part, tables)
            record.restore()
            for name, ids in looked_up.items():
                rows = tables[name].num_embeddings
                told = np.bincount(_counted(ids, part.mask).flatten().cpu().numpy(), minlength=rows).astype(np.float64)
                counted[name] = counted[name] + told if name in counted else told
                for scores in _scores(output, ids, rows):
                    likely = _likely(_counted(scores, part.mask).flatten(0, -2))
                    predicted[rows] = predicted[rows] + likely if rows in predicted else likely
                    heads |= {head: rows for head, given in last.items() if torch.equal(given, scores)}
            places += max((ids.numel() for ids in looked_up.values()), default=0)
            if not looked_up or places >= PLACES:
                break
    used = {name: weight(predicted.get(len(ids)), len(ids), ids if real else None) for name, ids in counted.items()}
    used |= {name: weight(predicted[rows], rows) for name, rows in heads.items()}
    modules = dict(model.named_modules())
    by_weight = {id(modules[name].weight): found for name, found in used.items() if found is not None}
    every = model.named_parameters(remove_duplicate=False)
    return {name: by_weight[id(p)] for name, p in every if id(p) in by_weight}


def _texts(batch: Batch) -> list[torch.Tensor]:
    """The tensors among inputs that may be texts of token ids."""
    return [t for t in batch.tensors if t.dtype == torch.int64 and t.dim() == 2]


def _read(
    model: nn.Module, part: Batch, tables: Mapping[str, nn.Embedding]
) -> tuple[object, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The output for some inputs; by table the ids that were looked up in it, if they are those of the inputs; and what
    the last layer gave that has as many outputs as a table has rows, by its name.
    """
    looked_up, last, own = dict[str, torch.Tensor](), dict[str, torch.Tensor](), _texts(part)
    rows = {table.num_embeddings for table in tables.values()}

    def see(name: str, module: nn.Module, given: Sequence[torch.Tensor]) -> None:
        if any(given[0].shape == ids.shape and torch.equal(given[0], ids) for ids in own):
            looked_up[name] = given[0]

    def gave(name: str, given: torch.Tensor) -> None:
        last.clear()
        last[name] = given

    with contextlib.ExitStack() as stack:
        stack.enter_context(watching(tables, see))
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and module.out_features in rows:
                hook = module.register_forward_hook(lambda _, __, given, name=name: gave(name, given))
                stack.callback(hook.remove)
        output = part(model)
    return output, looked_up, last


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
