"""How a model is given token ids, and where in its output the scores of words are: for what writes texts by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from opq.models.batch import Batch, signature_of
from opq.models.outputs import floating
from opq.probing.facts import Facts

DECODED, READ = "decoder_input_ids", "input_ids"
"""What a decoder continues, and what a model reads."""
_KNOWN = (DECODED, READ, "")
"""Names that say which text has scores; of others it is the last whose scores depend on what stands before only."""
_MASK, _PLACES = "attention_mask", "position_ids"
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "decoder_start_token_id", "sep_token_id",
            "cls_token_id", "mask_token_id", "forced_bos_token_id", "image_token_id")  # fmt: skip
_NEVER, _TIMES = "suppress_tokens", "no_timestamps_token_id"
"""What the configuration of `generate` calls ids that it never writes, and the id that turns points in time off."""
_CHOSEN = (("lang_to_id", "<|en|>"), ("task_to_id", "transcribe"))
"""Where it has the ids of languages and of tasks, of which each text begins with one, and which one that is here."""
_FEW = 2
"""Texts to try things with."""
_SAME, _COARSE = 1e-3, 0.1
"""Scores that differ by less than this part of their deviation are the same but for rounding; those of a model in half
precision."""


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Page:
    """A batch whose token ids can be replaced, and its model, which gives every place of a text scores of words."""

    model: nn.Module
    members: Mapping[str, Any]
    """The arguments by name; one that is passed by place has the name ''."""
    name: str
    """That of the ids which have scores."""
    by_name: bool
    """Whether the forward takes them by name; else as one dict, or one tensor."""
    special: frozenset[int]
    """Ids that begin, end, pad or mask texts."""

    @staticmethod
    def holds_texts(batch: Batch) -> bool:
        """Whether a batch may be one of token ids."""
        return batch.dim == 0 and any(_texts(tensor) for tensor in batch.tensors)

    @classmethod
    def of(cls, model: nn.Module, batch: Batch) -> Page | None:
        """None where the batch holds no texts, or nothing in the output is as long and as wide as their words."""
        inner = batch.args[0] if len(batch.args) == 1 and not batch.kwargs else None
        members = inner if isinstance(inner, Mapping) else {"": inner} if inner is not None else dict(batch.kwargs)
        texts = [n for n, value in members.items() if _texts(value)]
        name = next((n for n in (DECODED, READ, "") if n in texts), texts[-1] if inner is None and texts else None)
        if name is None or (batch.args and inner is None):
            return None
        others = [n for n in texts if n not in (name, _MASK, _PLACES, READ)]
        if others and name in _KNOWN:  # kinds of tokens, or what else they may be
            return None
        page = cls(model, members, name, inner is None, frozenset(special_ids(model)))
        few = page.with_rows(_FEW)
        scores = few.read(few.ids)
        if scores is None or scores.shape[-1] <= int(page.ids.max()):
            return None
        return page if name in _KNOWN or page.goes_forward() else None

    @property
    def ids(self) -> torch.Tensor:
        """(texts, length) int64."""
        found: torch.Tensor = self.members[self.name]
        return found

    @property
    def beginning(self) -> list[int]:
        """The ids with which a decoder's texts begin whatever it reads, as `generate` has them; none if nothing says.

        These are the start, then what is forced: of Whisper the language, the task and that there are no times.
        """
        own = getattr(self.model, "generation_config", None)
        start = next((v for v in Facts.of(self.model).values("decoder_start_token_id") if _is_id(v)), None)
        if self.name != DECODED or start is None:
            return []
        forced = getattr(own, "forced_decoder_ids", None) or ()
        if all(isinstance(pair, (list, tuple)) and len(pair) == 2 and _is_id(pair[1]) for pair in forced) and forced:
            return [start, *(token for _, token in sorted(forced))]
        first = [_chosen(getattr(own, table, None), name) for table, name in _CHOSEN]
        first += [getattr(own, name, None) for name in (_TIMES, "forced_bos_token_id")]
        return [start, *(v for v in first if _is_id(v))]

    def batch(self) -> Batch:
        """The call of the forward."""
        if self.by_name:
            return Batch((), self.members)
        return Batch((self.members.get("", self.members),))

    def replace(self, **members: Any) -> Page:
        """With other arguments."""
        return dataclasses.replace(self, members={**self.members, **members})

    def with_ids(self, ids: torch.Tensor, name: str | None = None) -> Page:
        """With other texts of any length; by default those that have scores."""
        name = self.name if name is None else name
        changed: dict[str, Any] = {name: ids}
        if name in (READ, "") and _MASK in self.members:
            changed[_MASK] = torch.ones_like(ids)
        if name in (READ, "") and _PLACES in self.members:
            changed[_PLACES] = torch.arange(ids.shape[1], device=ids.device).expand_as(ids).contiguous()
        return self.replace(**changed)

    def with_rows(self, count: int, start: int = 0) -> Page:
        """With so many of the samples, from one on; they are repeated where there are fewer."""
        total = len(self.ids)
        rows = torch.arange(start, start + count) % total

        def chosen(value: Any) -> Any:
            fits = isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == total
            return value[rows] if fits else value

        return dataclasses.replace(self, members={n: chosen(v) for n, v in self.members.items()})

    def read(self, ids: torch.Tensor) -> torch.Tensor | None:
        """The scores of every place (texts, length, words) float32; None where the output holds none."""
        return self.scores(self.with_ids(ids).batch().to(self.model)(self.model), ids)

    @staticmethod
    def scores(output: Any, ids: torch.Tensor) -> torch.Tensor | None:
        """The tensor in an output that gives every place of the texts a vector of its own."""
        found = (t for t in floating(output) if t.dim() == 3 and t.shape[:2] == ids.shape)
        scores = next(found, None)
        return None if scores is None else scores.float().cpu()

    def goes_forward(self) -> bool:
        """Whether scores depend on what stands before them only."""
        few = self.with_rows(_FEW)
        ids = few.ids
        other = ids.clone()
        other[:, -1] = (other[:, -1] + 1) % int(self.ids.max() + 1)
        one, two = few.read(ids), few.read(other)
        assert one is not None
        assert two is not None
        return ids.shape[1] > 1 and self.same(one[:, :-1], two[:, :-1]) and not self.same(one[:, -1], two[:, -1])

    def same(self, one: torch.Tensor, other: torch.Tensor) -> bool:
        """Whether scores are equal but for rounding."""
        kinds = {parameter.dtype for parameter in self.model.parameters() if parameter.is_floating_point()}
        most = _SAME if kinds <= {torch.float32, torch.float64} else _COARSE
        return float((one - other).abs().max()) <= most * float(one.std())

    @property
    def remembers(self) -> bool:
        """Whether the forward says that it can go on from a state of its own, as models of transformers do."""
        return self.by_name and {"past_key_values", "use_cache"} <= set(signature_of(self.model).parameters)

    @property
    def length(self) -> int | None:
        """That which texts have to have, where one that is read beside them may decide it."""
        return None if self.name in _KNOWN else self.ids.shape[1]

    def fits(self, length: int) -> bool:
        """Whether texts of this length run through the forward and give finite scores."""
        few = self.with_rows(_FEW)
        ids = few.ids.repeat(1, -(-length // few.ids.shape[1]))[:, :length]
        try:
            scores = few.read(ids)
        except Exception:  # fewer places than that, or whatever a stranger's forward says
            return False
        return scores is not None and bool(torch.isfinite(scores).all())


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _chosen(ids: Any, name: str) -> Any:
    """One id of a table of them by name: that of `name`, else the first."""
    return ids.get(name, next(iter(ids.values()), None)) if isinstance(ids, Mapping) else None


def _texts(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 2 and value.dtype == torch.int64


def special_ids(model: nn.Module) -> set[int]:
    """What the configuration, and that of `generate`, call by such names, and what `generate` never writes."""
    facts, own = Facts.of(model), getattr(model, "generation_config", None)
    found = [*facts.values(*_SPECIAL), *(getattr(own, name, None) for name in (*_SPECIAL, _NEVER))]
    for name in facts.configs:
        found += facts.values(*_SPECIAL, first=(name,))
    times = getattr(own, _TIMES, None)
    if isinstance(times, int):  # the ids behind it are points in time
        found.append(list(range(times, facts.number("vocab_size") or times + 1)))
    flat = [v for value in found for v in (value if isinstance(value, (list, tuple)) else [value])]
    return {v for v in flat if _is_id(v)}
