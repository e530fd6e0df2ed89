"""A language model whose weights stay on disk: its own code, its front and its tail, and one block in memory at a time.

The model is built by transformers from the folder's `config.json` with parameters that have no values; buffers such as
rotary frequencies have values. Its own forward is run with every block replaced by a function that passes the hidden
state through. So the model computes masks and position embeddings itself, and the arguments of each block are recorded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from opq.base.dtypes import dtype_name
from opq.base.extras import brief, need
from opq.base.process_state import same_random_state
from opq.errors import MissingExtraError, ProbeError, SourceError
from opq.probing.inputs import texts
from opq.probing.page import special_ids
from opq.sources.base import Source, TensorSpec
from opq.sources.hf_models import UNBUILDABLE, class_of
from opq.sources.names import model_name
from opq.streaming.chunks import Tensors
from opq.streaming.limits import LIMITS

TEXTS, PART = 128, 16
"""Synthetic texts in all, and in one part; parts are divided among threads and processes. A choice that trades time for
the accuracy of the moments."""
SECOND = 0.25
"""A list of blocks that has at least so many weights, as a part of the largest, is a stack of its own, as of an encoder
beside a decoder: that one alone would not be run as it is used. A choice; towers of images beside large language models
are smaller."""
_HIDDEN = "hidden_states"
_CAUSAL = ("ForCausalLM", "LMHeadModel")
"""How transformers' names of models end whose outputs at each place are scores of the next word."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Call:
    """The arguments of a block besides the hidden state, which is the first positional argument or a keyword."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    named: bool

    def __call__(self, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        given = {_HIDDEN: hidden} if self.named else {}
        out = block(*(() if self.named else (hidden,)), *self.args, **given, **self.kwargs)
        first: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return first


class Blocks:
    """The model of a folder, in pieces.

    Raises:
        ProbeError: the model cannot be divided in this way; the text says why.
    """

    def __init__(self, source: Source, tensors: Tensors, seed: int):
        self._source, self._tensors = source, tensors
        model = _without_values(source)
        self._trunk, blocks = _stack(model)
        self.blocks = list(blocks)
        try:
            self._embedding = self._trunk.get_input_embeddings()
        except NotImplementedError as error:  # of images, of sounds
            raise ProbeError("the model has no embedding", got=type(self._trunk).__name__) from error
        if not isinstance(self._embedding, nn.Embedding):
            raise ProbeError("the model's embedding is of an unknown kind", got=type(self._embedding).__name__)
        self.ids = _ids(source, seed)
        head = None if self._trunk is model else model.get_output_embeddings()  # type: ignore[operator]
        names = self._checked(model, head)
        self._names = [{n: names[id(p)] for n, p in _parameters(block)} for block in self.blocks]
        self._block_of = {name: k for k, block in enumerate(self._names) for name in block.values()}
        self.head = None if head is None else names[id(head.weight)]
        """The source's name of the output matrix, (vocabulary, width)."""
        self.writes = head is not None and type(model).__name__.endswith(_CAUSAL)
        """Whether its outputs are scores of the next word."""
        self.table, self._lookup = names[id(self._embedding.weight)], self._embedding.forward
        """The source's name of the embedding of tokens."""
        self._padding = self._embedding.padding_idx
        self._paths = [path for path, p in _parameters(self._trunk) if names[id(p)] == self.table]
        self._around = self._filled_around(names)
        self.reads(self.ids)
        self._calls = self._recorded()

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def parts(self) -> int:
        """The number of parts of the synthetic batch."""
        return len(self.ids) // PART

    def reads(self, ids: torch.Tensor) -> None:
        """Gives the model other texts of the same shape; of the embedding the rows are held that these use."""
        rows, self.ids = torch.unique(ids), ids
        values = nn.Parameter(torch.cat([self._rows(self.table, row, row + 1) for row in rows.tolist()]))
        for path in self._paths:
            self._around[self.table] = _set(self._trunk, path, values.requires_grad_(False))
        pad = (rows == self._padding).nonzero() if self._padding is not None else rows[:0]
        self._embedding.padding_idx = int(pad) if len(pad) else None
        self._embedding.forward = lambda ids: self._lookup(torch.searchsorted(rows, ids))

    @property
    def special(self) -> list[int]:
        """Ids that begin, end, pad or mask texts."""
        return sorted(special_ids(self._trunk))

    @property
    def scale(self) -> float:
        """What the products with the output matrix are multiplied by before they are scores of words."""
        config = self._trunk.config
        return float(getattr(config, "logit_scale", None) or 1) / float(getattr(config, "logits_scaling", None) or 1)

    def block_of(self, name: str) -> int | None:
        """The number of the block to which one of the source's tensors belongs; of `fed_head` that behind the last."""
        return len(self.blocks) if name == self.fed_head else self._block_of.get(name)

    @property
    def fed_head(self) -> str | None:
        """The tensor that holds the output matrix, if errors are fed back in it: not where its codes are too many."""
        if self.head is None or self.spec(self.head).size > LIMITS.cached:
            return None
        return self.spec(self.head).like or self.head

    def named(self, k: int) -> dict[str, str]:
        """Parameters of block k: the name within the block -> the source's name."""
        return self._names[k]

    @contextlib.contextmanager
    def filled(self, k: int) -> Iterator[nn.Module]:
        """Block k with its weights in float32; afterwards without them again."""
        block = self.blocks[k]
        empty = dict(_parameters(block))
        try:
            for name in empty:
                _set(block, name, self._read(self._names[k][name]))
            yield block
        finally:
            for name, parameter in empty.items():
                _set(block, name, parameter)

    def run(self, k: int, hidden: torch.Tensor) -> torch.Tensor:
        """Block k, filled, on the hidden state (PART, tokens, width) of one part."""
        return self._calls[k](self.blocks[k], hidden)

    def front(self, part: int) -> torch.Tensor:
        """The input of the first block for one part, (PART, tokens, width)."""
        return self._driven(self.ids[PART * part : PART * (part + 1)], None)[0]

    def tail(self, hidden: torch.Tensor) -> torch.Tensor:
        """The input of the output matrix, or the model's output if there is none, from the last block's output."""
        return self._driven(self.ids[:PART], hidden)[1]

    @property
    def around(self) -> dict[str, nn.Parameter]:
        """Matrices before the blocks, by the source's names; of the embedding only the rows that are used."""
        return {name: p for name, p in self._around.items() if p.dim() >= 2}

    def head_rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows of the output matrix in float32."""
        return self._rows(str(self.head), start, stop)

    @property
    def width(self) -> int:
        """The width of the hidden state."""
        return int(self._embedding.weight.shape[1])

    def spec(self, name: str) -> TensorSpec:
        """The spec of one of the source's tensors."""
        return self._source.by_name[name]

    # --- building ----------------------------------------------------------------------------

    def _rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        spec = self.spec(name)
        width = spec.size // spec.shape[0]
        flat = self._tensors.read(spec.like or name, start * width, stop * width)
        return flat.float().view(-1, *spec.shape[1:])

    def _read(self, name: str) -> torch.Tensor:
        return self._rows(name, 0, self.spec(name).shape[0])

    def _checked(self, model: nn.Module, head: nn.Module | None) -> dict[int, str]:
        """The source's name of every parameter, by identity, after a check of presence, shape and element type."""
        entries = {n: t for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, torch.Tensor)}
        prefix = str(getattr(model, "base_model_prefix", "") or "")
        files = {model_name(name, entries, prefix): name for name in self._source.names}
        names = {id(t): files[n] for n, t in entries.items() if n in files}
        for name, parameter in [*_parameters(self._trunk), *(_parameters(head) if head is not None else [])]:
            if id(parameter) not in names:
                raise ProbeError("the checkpoint lacks a tensor of the model", got=f"no {name!r}")
            spec = self.spec(names[id(parameter)])
            if spec.shape != tuple(parameter.shape) or spec.dtype.itemsize < 2 or not spec.dtype.is_floating_point:
                got = f"{dtype_name(spec.dtype)} {spec.shape}"
                raise ProbeError(f"tensor {spec.name!r} is not what the model computes with", got=got)
        return names

    def _filled_around(self, names: Mapping[int, str]) -> dict[str, nn.Parameter]:
        """Gives values to parameters outside of blocks, embedding and output matrix: norms, positions."""
        inside = {id(p) for block in self.blocks for p in block.parameters()}
        own = [(path, names[id(p)]) for path, p in _parameters(self._trunk) if id(p) not in inside]
        return {name: _set(self._trunk, path, self._read(name)) for path, name in own if name != self.table}

    def _recorded(self) -> list[_Call]:
        """How the model calls its blocks. A block returns a tensor, or in older versions of transformers a tuple."""
        for wrap in (lambda x: x, lambda x: (x,)):
            self._wrap: Callable[[torch.Tensor], Any] = wrap
            with contextlib.suppress(Exception), torch.no_grad():  # an unknown forward may fail in any way
                self._seen: list[tuple[torch.Tensor, _Call]] = []
                self.front(0)
                hidden = [h for h, _ in self._seen]
                if len(hidden) == len(self.blocks) and all(h is hidden[0] for h in hidden):
                    return [call for _, call in self._seen]
        raise ProbeError("the model does more between its blocks than pass a hidden state on",
                         got=type(self._trunk).__name__)  # fmt: skip

    def _driven(self, ids: torch.Tensor, last: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The input of the first block, and the trunk's output if the last block returns `last`."""
        seen = self._seen = []

        def passing(k: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                named = _HIDDEN in kwargs
                hidden = kwargs.pop(_HIDDEN) if named else args[0]
                seen.append((hidden, _Call(args if named else args[1:], kwargs, named)))
                return self._wrap(last if last is not None and k == len(self.blocks) - 1 else hidden)

            return forward

        try:
            for k, block in enumerate(self.blocks):
                block.forward = passing(k)
            out = self._trunk(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        finally:
            for block in self.blocks:
                del block.forward
        return seen[0][0], out[0]


def open_blocks(source: Source, tensors: Tensors, seed: int) -> Blocks:
    """The model of a source that is a folder in Hugging Face layout.

    Raises:
        ProbeError, SourceError, MissingExtraError: there is none, or it cannot be divided; the text says why.
    """
    if source.folder is None or not source.files:
        raise ProbeError("there is no model", got="weights alone", wanted="a folder with a config.json")
    return Blocks(source, tensors, seed)


def _ids(source: Source, seed: int) -> torch.Tensor:
    hint = source.input_hint
    if hint is None or not hint.vocabulary:
        raise ProbeError("the model is no language model", got="no vocabulary in its config")
    return texts(hint, samples=TEXTS // 2, seed=seed)


def _without_values(source: Source) -> nn.Module:
    need("transformers", "hf")
    kind, config = class_of(Path(str(source.folder)), trust=source.trusted)
    try:
        with same_random_state(), _no_parameters():
            model: nn.Module = kind.from_config(config) if kind.__name__ == "AutoModel" else kind(config)
            model.tie_weights()  # type: ignore[operator]
    except UNBUILDABLE as error:
        raise ProbeError("transformers does not build the model", got=brief(error)) from error
    return model.eval()


@contextlib.contextmanager
def _no_parameters() -> Iterator[None]:
    """Parameters that modules of this thread register in the block have no values, and take no memory.

    Use it within `same_random_state`, so that no two threads change the class at once.
    """
    real, own = nn.Module.register_parameter, threading.get_ident()

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        real(module, name, parameter)
        if parameter is not None and parameter.device.type != "meta" and threading.get_ident() == own:
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)

    nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = real  # type: ignore[method-assign]


def _stack(model: nn.Module) -> tuple[Any, nn.ModuleList]:
    """The largest list of blocks of one class, and the model around it whose forward takes token ids."""
    lists = [
        (sum(p.numel() for p in m.parameters()), name, m)
        for name, m in model.named_modules()
        if isinstance(m, nn.ModuleList) and len(m) and len({type(block) for block in m}) == 1
    ]
    if lists:
        largest, path, blocks = max(lists, key=lambda found: found[0])
        others = (name for size, name, _ in lists if size >= SECOND * largest and not _within(name, path))
        if (other := next(others, None)) is not None:
            raise ProbeError("the model has two stacks of blocks", got=f"{path} and {other}")
        while path:
            path = path.rpartition(".")[0]
            trunk = model.get_submodule(path)
            if hasattr(trunk, "get_input_embeddings") and hasattr(trunk, "config"):
                return trunk, blocks
    raise ProbeError("the model is no stack of blocks", got=type(model).__name__)


def _within(name: str, path: str) -> bool:
    """Whether one of two modules is a part of the other."""
    return f"{name}.".startswith(f"{path}.") or f"{path}.".startswith(f"{name}.")


def _parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(module.named_parameters(remove_duplicate=False))


def _set(root: nn.Module, name: str, values: torch.Tensor) -> nn.Parameter:
    path, _, last = name.rpartition(".")
    parameter = values if isinstance(values, nn.Parameter) else nn.Parameter(values, requires_grad=False)
    root.get_submodule(path)._parameters[last] = parameter
    return parameter


UNAVAILABLE = (ProbeError, SourceError, MissingExtraError)
"""The errors that `open_blocks` raises."""
