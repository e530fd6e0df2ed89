"""What a model's configuration says of its inputs, whatever library wrote it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

_HOLDERS = ("config", "cfg", "dims", "args", "hparams")
"""Attributes under which models keep their configuration."""
_WITHIN = ("text_config", "vision_config", "audio_config", "encoder", "decoder", "encoder_config", "decoder_config",
           "audio_encoder", "text_encoder", "backbone_config", "question_encoder", "codec_config")  # fmt: skip
"""Configurations inside others."""


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """The numbers of a configuration and of those inside it; it may be an object or a mapping, or not there at all."""

    configs: Mapping[str, Any]
    """By name; the whole one has the name ''."""

    @classmethod
    def of(cls, model: nn.Module) -> Facts:
        """What the model itself holds, or the only of its submodules that does."""
        for module in (model, *model.children()):
            for holder in _HOLDERS:
                config = getattr(module, holder, None)
                if config is not None and not isinstance(config, (nn.Module, str, int, float, list, tuple)):
                    inner = {name: c for name in _WITHIN if (c := _entry(config, name)) is not None}
                    return cls({"": config} | {name: c for name, c in inner.items() if not isinstance(c, (str, int))})
        return cls({})

    def __bool__(self) -> bool:
        return bool(self.configs)

    def values(self, *names: str, first: tuple[str, ...] = ()) -> Iterator[Any]:
        """What stands under the first of the names, in the configurations named `first`, the whole one, the others."""
        order = [*(f for f in first if f in self.configs), "", *(c for c in self.configs if c not in first)]
        for config in dict.fromkeys(order):
            for name in names:
                value = _entry(self.configs.get(config), name)
                if value is not None:
                    yield value

    def number(self, *names: str, first: tuple[str, ...] = ()) -> int | None:
        """The first positive whole number under one of the names; of a list its first member counts."""
        for value in self.values(*names, first=first):
            value = value[0] if isinstance(value, (list, tuple)) and value else value
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        return None

    def sizes(self, *names: str, dims: int, first: tuple[str, ...] = ()) -> tuple[int, ...] | None:
        """The first value that gives `dims` sizes: a number for all of them, or a list, or height and width."""
        for value in self.values(*names, first=first):
            value = [value.get(k) for k in ("height", "width")] if isinstance(value, Mapping) else value
            sizes = [value] * dims if isinstance(value, int) else value
            if isinstance(sizes, (list, tuple)) and len(sizes) == dims and all(isinstance(n, int) for n in sizes):
                return tuple(sizes)
        return None

    def says(self, *names: str) -> bool:
        """Whether a value that is not false, none or empty stands under one of the names."""
        return any(bool(value) for value in self.values(*names))


def _entry(config: Any, name: str) -> Any:
    if isinstance(config, Mapping):
        return config.get(name)
    try:
        return getattr(config, name, None)
    except Exception:  # a stranger's configuration may compute what it says
        return None
