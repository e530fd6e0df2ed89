"""Reads from a model's configuration what it says about the inputs, whichever library the model comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

_HOLDERS = ("config", "cfg", "dims", "args", "hparams")
"""Attributes in which models keep their configuration."""
_WITHIN = ("text_config", "vision_config", "audio_config", "encoder", "decoder", "encoder_config", "decoder_config",
           "audio_encoder", "text_encoder", "backbone_config", "question_encoder", "codec_config")  # fmt: skip
"""Names of configurations that stand inside others."""


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """The values of a configuration and of those inside it. A configuration is an object or a mapping."""

    configs: Mapping[str, Any]
    """The configurations by name; the outer one has the name ''. Empty where the model has none."""

    @classmethod
    def of(cls, model: nn.Module) -> Facts:
        """The configuration of the model, or of the first of its children that has one."""
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
        """All values under these names: in the configurations named `first`, then the outer one, then the others."""
        order = [*(f for f in first if f in self.configs), "", *(c for c in self.configs if c not in first)]
        for config in dict.fromkeys(order):
            for name in names:
                value = _entry(self.configs.get(config), name)
                if value is not None:
                    yield value

    def number(self, *names: str, first: tuple[str, ...] = ()) -> int | None:
        """The first value under these names that is a positive integer, or a list that begins with one."""
        for value in self.values(*names, first=first):
            value = value[0] if isinstance(value, (list, tuple)) and value else value
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        return None

    def sizes(self, *names: str, dims: int, first: tuple[str, ...] = ()) -> tuple[int, ...] | None:
        """The first value that gives `dims` sizes: one number for all of them, a list, or `height` and `width`."""
        for value in self.values(*names, first=first):
            value = [value.get(k) for k in ("height", "width")] if isinstance(value, Mapping) else value
            sizes = [value] * dims if isinstance(value, int) else value
            if isinstance(sizes, (list, tuple)) and len(sizes) == dims and all(isinstance(n, int) for n in sizes):
                return tuple(sizes)
        return None

    def says(self, *names: str) -> bool:
        """Whether one of the names has a value that Python takes for true."""
        return any(bool(value) for value in self.values(*names))


def _entry(config: Any, name: str) -> Any:
    if isinstance(config, Mapping):
        return config.get(name)
    try:
        return getattr(config, name, None)
    except Exception:  # an attribute may be a property, which may fail in any way
        return None
