"""Texts that a language model writes itself: they look more like what it is made for than random tokens do.

A causal model, a decoder too, writes word by word. A model that sees the whole text at once has words of a random text
filled in again and again. What gives no scores of words keeps its random tokens.

In a hurry, or where one block of the model is in memory at a time, all words of random texts are drawn anew at once,
each from those that stand before it, and that again with the same noise (Jacobi's iteration): the first words are then
what the model writes, and all others follow from words that resemble them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import nn

from opq.base.stages import stage
from opq.models.batch import Batch
from opq.models.observe import batch_statistics, untouched
from opq.probing.facts import Facts
from opq.probing.page import DECODED, READ, Page

LENGTH = 48
"""Tokens of a text, where the model takes so long ones."""
ENOUGH, LONGEST = 64, 3
"""What is decoded from sounds or images is longer in proportion where there are fewer of these than `ENOUGH`, as of
sounds of half a minute, up to `LONGEST` times. A choice: a decoder's layers then see some thousand tokens."""
TEMPERATURES = (0.7, 1.1)
"""Of the texts in turn: cool ones are likely ones, hot ones have more of the rare words."""
LED = 1
"""Tokens that are written before those that count: the first of a text is led to by nothing, and may be a rare one."""
ROWS, ANEW = 64, 16
"""Texts that are written side by side, at most; by a model that reads them anew for every word, all scores of which are
then in memory. A choice: 64 texts of SmolLM2-135M, remembered, take 140 MB."""
DRAWN = 2
"""How often all words are drawn where that is done at once. Measured on stories260K in memory at 3 bits, two seeds:
divergence 0.261 with one, 0.231 with two, 0.236 with eight, 0.220 with sixteen; texts written word by word 0.202
(docs/research.md)."""
ROUNDS, FILLED = 12, 0.25
"""How often a text is filled in, and in which part of its places."""


Seen = Callable[[int, int], None]
"""Called with (texts done, texts in all); a text that is read, and then written anew, counts twice."""


def written(model: nn.Module, batch: Batch, *, seed: int = 0, see: Seen | None = None) -> Batch:
    """A batch of token ids with texts in their place that the model writes; the batch itself where it cannot write.

    The same for the same seed. Tokens that begin, end or pad texts are not written: they stand for nothing that
    occurs, and some models give the first place of a text, or such a token, activations far beyond all others.
    """
    if not Page.holds_texts(batch):
        return batch
    generator = torch.Generator().manual_seed(seed)
    with stage("texts"), untouched(model), batch_statistics(model), torch.no_grad():
        try:
            return _written(model, batch, generator, see or (lambda _, __: None)) or batch
        except Exception:  # a stranger's forward may fail in any way; through random tokens it did run
            return batch


def drafted(model: nn.Module, batch: Batch, *, seed: int = 0) -> Batch:
    """The same of which all words are drawn at once, `DRAWN` times; the batch itself where no model writes forwards."""
    if not Page.holds_texts(batch):
        return batch
    with stage("texts"), untouched(model), batch_statistics(model), torch.no_grad():
        try:
            page = Page.of(model, batch)
            return batch if page is None or not page.goes_forward() else _drafted(page, seed)
        except Exception:  # a stranger's forward may fail in any way; through random tokens it did run
            return batch


def divergence(before: torch.Tensor, after: torch.Tensor, mask: torch.Tensor | None) -> float:
    """Mean over the tokens that count of the divergence between the words that scores (texts, length, words) expect."""
    counts = mask if mask is not None and mask.shape == before.shape[:-1] else before.new_ones(before.shape[:-1]).bool()
    apart = 0.0
    for one, other, counted in zip(before, after, counts, strict=True):  # of a text all scores of words are many
        p, q = one[counted].float().log_softmax(-1), other[counted].float().log_softmax(-1)
        apart += float((p.exp() * (p - q)).sum(dtype=torch.float64))
    found = apart / max(1, int(counts.sum()))
    return math.inf if math.isnan(found) else found


def _written(model: nn.Module, batch: Batch, generator: torch.Generator, see: Seen) -> Batch | None:
    page = Page.of(model, batch)
    if page is None:
        return None
    length = next((n for n in _lengths(page) if page.fits(n + LED)), page.ids.shape[1] - LED)
    if not page.goes_forward():
        return page.with_ids(_filled(page, length, generator, see)).batch()
    texts = len(page.ids)
    if not (page.name == DECODED and READ in page.members):
        return page.with_ids(_told(page, length, generator, see)).batch()
    first = _told(page, length, generator, lambda done, _: see(done, 2 * texts))
    page = page.with_ids(first, READ)  # what it reads is a text of its own, then
    return page.with_ids(_told(page, length, generator, lambda done, _: see(texts + done, 2 * texts))).batch()


def _lengths(page: Page) -> Iterator[int]:
    """Lengths that texts may have, the best first."""
    if page.length is None and page.name == DECODED and READ not in page.members:
        yield LENGTH * max(1, min(LONGEST, ENOUGH // len(page.ids)))
    yield page.length or LENGTH


def _told(page: Page, length: int, generator: torch.Generator, see: Seen) -> torch.Tensor:
    """Texts word by word, (texts, length)."""
    beginning = page.beginning
    led = 0 if page.name == DECODED else LED
    parts = []
    rows = ROWS if page.remembers else ANEW
    for at in range(0, len(page.ids), rows):
        few = page.with_rows(min(rows, len(page.ids) - at), at)
        heat = temperatures(len(few.ids))
        ids = torch.tensor([beginning]).expand(len(few.ids), -1) if beginning else _random(few, 1, generator)
        parts.append(_continued(few, ids, length + led, heat, generator)[:, led:])
        see(at + len(few.ids), len(page.ids))
    return torch.cat(parts)


def _continued(
    page: Page, ids: torch.Tensor, length: int, heat: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    state, first = (_Memory(page) if page.remembers else None), ids.shape[1]
    while ids.shape[1] < length:
        scores = page.read(ids) if state is None else state.read(ids)
        assert scores is not None
        if state is not None and ids.shape[1] == first + 2:  # is what it remembers what it has read?
            anew = page.read(ids)
            assert anew is not None
            state, scores = (state, scores) if page.same(anew[:, -1], scores[:, -1]) else (None, anew)
        ids = torch.cat([ids, _drawn(scores[:, -1], heat, page.special, generator)[:, None]], 1)
    return ids


def _drafted(page: Page, seed: int) -> Batch:
    beginning, ids = page.beginning, page.ids.clone()
    kept = max(1, len(beginning))
    if beginning:
        ids[:, :kept] = torch.tensor(beginning)[: ids.shape[1]]
    heat, special = temperatures(len(ids))[:, None, None], list(page.special)
    for _ in range(DRAWN):
        generator = torch.Generator().manual_seed(seed)
        for at in range(0, len(ids), ANEW):
            some = ids[at : at + ANEW]
            scores = page.with_rows(len(some), at).read(some)
            assert scores is not None
            scores[..., [word for word in special if word < scores.shape[-1]]] = -torch.inf
            words = shaken(scores / heat[at : at + ANEW], generator).argmax(-1)
            some[:, kept:] = words[:, kept - 1 : -1]
    return page.with_ids(ids).batch()


def shaken(scores: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Scores with noise of Gumbel's distribution, by which the largest is that of a word drawn by their softmax."""
    return scores - torch.rand(scores.shape, generator=generator).log_().neg_().log_()


class _Memory:
    """The state of a model that has read the beginning of some texts."""

    def __init__(self, page: Page):
        self._page, self._state, self._encoded, self._done = page, None, None, 0

    def read(self, ids: torch.Tensor) -> torch.Tensor | None:
        """The scores of the places that it has not read before, (texts, places, words)."""
        page, new = self._page.with_ids(ids), ids[:, self._done :]
        more = {page.name: new, "use_cache": True, "past_key_values": self._state}
        if self._encoded is not None:
            more["encoder_outputs"] = (self._encoded,)
        if "position_ids" in page.members:
            more["position_ids"] = page.members["position_ids"][:, self._done :]
        output = page.replace(**more).batch().to(page.model)(page.model)
        self._state = output.past_key_values
        self._encoded = getattr(output, "encoder_last_hidden_state", None)
        self._done = ids.shape[1]
        return page.scores(output, new)


def _filled(page: Page, length: int, generator: torch.Generator, see: Seen) -> torch.Tensor:
    """Texts of which places are filled in, a few at a time, by what the others make likely; (texts, length)."""
    mask = next((v for v in Facts.of(page.model).values("mask_token_id") if isinstance(v, int)), None)
    every = []
    for at in range(0, len(page.ids), ANEW):
        few = page.with_rows(min(ANEW, len(page.ids) - at), at)
        heat = temperatures(len(few.ids))[:, None].expand(-1, length)
        ids = _random(few, length, generator)
        for _ in range(ROUNDS):
            open_ = torch.rand(ids.shape, generator=generator) < FILLED
            hidden = _random(few, length, generator) if mask is None else torch.full_like(ids, mask)
            scores = few.read(torch.where(open_, hidden, ids))
            assert scores is not None
            ids[open_] = _drawn(scores[open_], heat[open_], page.special, generator)
        every.append(ids)
        see(at + len(ids), len(page.ids))
    return torch.cat(every)


def temperatures(texts: int) -> torch.Tensor:
    """That of each text, (texts,)."""
    return torch.tensor(TEMPERATURES).repeat(-(-texts // len(TEMPERATURES)))[:texts]


def _random(page: Page, length: int, generator: torch.Generator) -> torch.Tensor:
    """Words that are not special, (texts, length), uniform over the ids that random texts have."""
    allowed = torch.ones(int(page.ids.max()) + 1, dtype=torch.bool)
    allowed[[w for w in page.special if w < len(allowed)]] = False
    words = allowed.nonzero().flatten()
    return words[torch.randint(len(words), (len(page.ids), length), generator=generator)]


def _drawn(
    scores: torch.Tensor, heat: torch.Tensor, special: frozenset[int], generator: torch.Generator
) -> torch.Tensor:
    """One word for each row of scores (texts, words), by their softmax at each text's temperature."""
    scores = scores / heat[:, None]
    scores[:, [w for w in special if w < scores.shape[1]]] = -torch.inf
    rising = scores.softmax(-1).double().cumsum(-1)
    at = torch.rand((len(scores), 1), generator=generator, dtype=torch.float64) * rising[:, -1:]
    return torch.searchsorted(rising, at, right=True).squeeze(1).clamp(max=scores.shape[1] - 1)
