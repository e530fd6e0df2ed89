"""Models of transformers, built from a folder's configuration."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from opq.base.extras import brief, need
from opq.base.paths import json_object, what_is
from opq.base.process_state import same_random_state
from opq.errors import MissingExtraError, SourceError
from opq.sources import hub_config
from opq.sources.base import InputHint
from opq.sources.hints import hint_of_config

UNBUILDABLE = (Exception,)
"""The errors that transformers may raise if it cannot make a model of a folder: any, since a configuration that is not
trusted may contain anything."""
_LARGEST_CONFIG = 10_000_000
"""Bytes of the largest config.json. A choice: real ones are far smaller."""
_MOST = (
    (re.compile(r".*(layers?|depths?|blocks?|experts|heads|stages)"), 1 << 13),
    (re.compile(r".*(sizes?|dims?|width|channels|features|model|embd)"), 1 << 26),
    (re.compile(r".*", re.DOTALL), 1 << 40),
)
"""Limits on numbers in a configuration, by the ends of their names. A choice: no real model exceeds them, and building
one that does would take too long."""


def class_of(folder: Path, *, trust: bool = False) -> tuple[Any, Any]:
    """The transformers class that the config names (AutoModel if it names none), and the config.

    Args:
        trust: whether Python code in the folder may be run; if not, a model that needs it is an error.
    """
    transformers = need("transformers", "hf")
    raw = _checked_config(folder, trust)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust)
        hub_config.forget(config)
        return _kind(transformers, config, raw if trust else {}), config
    except UNBUILDABLE as error:
        remedy = "Build the model yourself and pass the module, or compress with probe=False."
        raise SourceError(
            f"transformers does not know the model in {folder}", got=brief(error), remedy=remedy
        ) from error


def _kind(transformers: Any, config: Any, raw: dict[str, Any]) -> Any:
    """The class of a configuration; `raw` is its JSON if code in the folder may be run."""
    if (auto := _own_class(raw)) is not None:
        return getattr(transformers, auto, transformers.AutoModel)
    given = getattr(config, "architectures", None)
    named = given[0] if isinstance(given, list) and given and isinstance(given[0], str) else ""
    kind = getattr(transformers, named, None)
    return kind if isinstance(kind, type) and issubclass(kind, nn.Module) else transformers.AutoModel


def _checked_config(folder: Path, trust: bool) -> dict[str, Any]:
    """The folder's config.json, after checks that it asks neither for untrusted code nor for impossible sizes.

    Raises:
        SourceError: it asks for one of these, or there is no config.json.
    """
    path = folder / "config.json"
    try:
        raw = json_object(path, largest=_LARGEST_CONFIG)
    except (ValueError, OSError) as error:
        raise SourceError(f"{path} cannot be read", got=error, wanted="a JSON object") from error
    if not trust:
        _refuse_code(folder, raw)
    for key, value in _entries(raw):
        most = next(limit for name, limit in _MOST if name.fullmatch(key.lower()))
        if isinstance(value, int) and abs(value) > most:
            raise SourceError(
                f"{path}: {key!r} is beyond all bounds",
                got=f"a number of {value.bit_length()} bits",
                wanted=f"at most {most}",
            )
    return raw


def _refuse_code(folder: Path, raw: dict[str, Any]) -> None:
    """Raises `SourceError` if building the model would run Python code that comes with it."""
    import transformers

    known = str(raw.get("model_type")) in transformers.CONFIG_MAPPING
    asked = "auto_map in its configuration" if raw.get("auto_map") and not known else None
    for key, value in _entries(raw):
        if key.endswith("_implementation") and isinstance(value, str) and "/" in value:
            asked = f"{key} {value!r}"  # code for a kernel, from a repository
    if asked is not None:
        raise SourceError(
            f"the model in {folder} runs Python code of its own",
            got=asked,
            remedy="If you have read that code and trust it, pass trust_remote_code=True (--trust-remote-code); "
            "or compress the weights alone, with probe=False.",
        )


def _entries(raw: object, deepest: int = 20) -> Iterator[tuple[str, Any]]:
    """Names and values in a configuration, including nested ones."""
    if isinstance(raw, dict) and deepest:
        for key, value in raw.items():
            yield str(key), value
            yield from _entries(value, deepest - 1)
    elif isinstance(raw, list) and deepest:
        for value in raw:
            yield from _entries(value, deepest - 1)


def _own_class(raw: dict[str, Any]) -> str | None:
    """The Auto class for which the folder registers a model class of its own; None if it has none."""
    given = raw.get("auto_map")
    names = [name for name in given if str(name).startswith("AutoModel")] if isinstance(given, dict) else []
    return next((name for name in names if name != "AutoModel"), next(iter(names), None))


def _empty(kind: Any, config: Any, trust: bool) -> nn.Module:
    """A model of a class, without the checkpoint's values."""
    if not hasattr(kind, "from_config"):
        model: nn.Module = kind(config)
        return model
    made: nn.Module = kind.from_config(config, trust_remote_code=trust)
    return made


def skeleton_of(folder: Path, *, trust: bool = False) -> nn.Module | str:
    """The model without values, or the reason why there is none."""
    if what_is(folder / "config.json") == "nothing":
        return "the folder has no config.json"
    try:
        kind, config = class_of(folder, trust=trust)
        with torch.device("meta"), same_random_state():
            model = _empty(kind, config, trust)
            if callable(tie := getattr(model, "tie_weights", None)):
                tie()
    except SourceError as error:
        return f"{error.fact}: {error.got}. {error.remedy}".removesuffix(".")
    except UNBUILDABLE as error:
        return brief(error)
    return model


def empty_model(folder: Path, *, trust: bool = False) -> nn.Module:
    """The model that the folder's config describes, with random weights; raises `SourceError` if there is none."""
    kind, config = class_of(folder, trust=trust)
    try:
        with same_random_state():
            return _empty(kind, config, trust)
    except UNBUILDABLE as error:
        raise _not_built(folder, error) from error


def build_transformers(folder: Path, *, trust: bool = False) -> nn.Module:
    """The model in the folder, of the class that its config names, in float32 and inference mode."""
    return load_transformers(folder, torch.float32, trust=trust)[0]


def load_transformers(folder: Path, dtype: Any, *, trust: bool = False) -> tuple[nn.Module, list[str], list[str]]:
    """The model in the folder, the names of tensors that the checkpoint lacks (they are random), and the names of those
    in the checkpoint that the model does not use."""
    transformers = need("transformers", "hf")
    kind, _ = class_of(folder, trust=trust)
    spelled = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    more = {"trust_remote_code": trust} if hasattr(kind, "from_config") else {}
    try:
        with same_random_state(seed=0), _no_progress(transformers.utils.logging):
            model, info = kind.from_pretrained(folder, output_loading_info=True, **{spelled: dtype}, **more)
    except UNBUILDABLE as error:
        raise _not_built(folder, error) from error
    return model.eval(), sorted(info["missing_keys"]), sorted(info["unexpected_keys"])


def build_of(folder: Path, state: dict[str, torch.Tensor], *, trust: bool = False) -> nn.Module:
    """The model that the folder's config describes, with these tensors instead of its quantized ones; float32."""
    kind, config = class_of(folder, trust=trust)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    try:
        with same_random_state(seed=0):
            model = _empty(kind, config, trust).float()
            return filled(model, state).eval()
    except UNBUILDABLE as error:
        raise _not_built(folder, error) from error


def filled(model: nn.Module, state: dict[str, torch.Tensor]) -> nn.Module:
    """A model of transformers with the tensors of a checkpoint, renamed and fused as transformers does when it loads.

    Raises:
        SourceError: the checkpoint lacks tensors of the model, or has others.
    """
    kind: Any = type(model)
    transformers = need("transformers", "hf")
    spelled = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    with same_random_state(seed=0), _no_progress(transformers.utils.logging):
        made, info = kind.from_pretrained(
            None, config=model.config, state_dict=dict(state), output_loading_info=True, **{spelled: dtype}
        )
    wrong = [
        *(f"{n} missing" for n in sorted(info["missing_keys"])),
        *(f"{n} not in the model" for n in sorted(info["unexpected_keys"])),
    ]
    if wrong:
        raise SourceError(f"the tensors are not those of {kind.__name__}", got="; ".join(wrong[:5]))
    model.load_state_dict(made.state_dict())
    return model


def _not_built(folder: Path, error: Exception) -> SourceError:
    return SourceError(
        f"transformers cannot build the model in {folder}",
        got=brief(error),
        remedy="Build the model yourself and pass the module, or compress with probe=False.",
    )


@contextlib.contextmanager
def _no_progress(logging: Any) -> Iterator[None]:
    """Hides the progress bars of transformers; afterwards they are as the user has set them."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def hint_of_folder(folder: Path, *, trust: bool = False) -> InputHint | None:
    """What the folder's config tells about the input; None if transformers cannot read it."""
    try:
        return hint_of_config(class_of(folder, trust=trust)[1])
    except (MissingExtraError, SourceError, *UNBUILDABLE):
        return None
