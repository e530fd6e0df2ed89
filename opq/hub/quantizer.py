"""Registers opq with transformers as a quantization method, which loads an opq file into an ordinary dense model.

A quantizer of transformers can say which file is opened, but not how: transformers reads safetensors entry by entry.
So its function `safe_open` is replaced by one that also opens files called `*.opq.safetensors`.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from opq.errors import OpqWarning, SourceError
from opq.hub.decoded import Decoded
from opq.sources.hub_config import FILE, METHOD, is_file_name

SUFFIX = ".opq.safetensors"


def define() -> None:
    """Defines configuration and quantizer, and registers them with transformers."""
    auto: Any = importlib.import_module("transformers.quantizers.auto")
    mixin: Any = importlib.import_module("transformers.utils.quantization_config").QuantizationConfigMixin
    base: Any = importlib.import_module("transformers.quantizers.base").HfQuantizer

    class OpqConfig(mixin):  # type: ignore[misc]
        """The entry `{"quant_method": "opq", "file": NAME}` of a config.json."""

        def __init__(self, file: str | None = None, **_: Any):
            if file is not None and not is_file_name(file):
                raise SourceError("config.json names no opq file", got=repr(file), wanted=f"a NAME{SUFFIX} beside it")
            self.quant_method = METHOD
            self.dequantize = True  # transformers forgets the method once the model is loaded
            self.file = file

    class OpqQuantizer(base):  # type: ignore[misc]
        """Loads an opq file into a dense model."""

        requires_calibration = True  # a model is compressed by opq.compress, not while it is loaded

        def update_device_map(self, device_map: Any) -> Any:
            """Refuses to leave modules on disk: accelerate would read them from the file as if it were dense."""
            places = device_map.values() if isinstance(device_map, dict) else [device_map]
            if "disk" in map(str, places):
                remedy = "Decompress the folder first (opq decompress), or give every module a device."
                raise SourceError(
                    "weights of an opq file cannot stay on disk", got="device_map with disk", remedy=remedy
                )
            return device_map

        def update_tp_plan(self, config: Any) -> Any:
            """Names the file to open; transformers 5.0 calls this before it looks for files."""
            return self.update_attn_implementation(config)

        def update_attn_implementation(self, config: Any) -> Any:
            """Names the file to open; later versions call this before they look for files."""
            config.transformers_weights = self.quantization_config.file or FILE
            open_opq_files()
            tell_what_is_saved()
            return config

        def _process_model_before_weight_loading(self, model: Any, checkpoint_files: Any = None, **_: Any) -> Any:
            if self.quantization_config.file is None:
                refuse_others(checkpoint_files or ())
            return model

        def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
            model.opq_file = model.config.transformers_weights
            del model.config.transformers_weights  # it names the compressed file; a model that is saved is dense
            return model

        def is_serializable(self, **_: Any) -> bool:
            return True

        @property
        def is_trainable(self) -> bool:
            return True

    auto.register_quantization_config(METHOD)(OpqConfig)
    auto.register_quantizer(METHOD)(OpqQuantizer)


def refuse_others(files: Iterable[str]) -> None:
    """Raises `SourceError` where other opq files stand beside the opened ones and config.json does not name one."""
    opened = {Path(file) for file in files}
    beside = {path for file in opened for path in file.parent.glob(f"*{SUFFIX}")}
    if beside - opened:
        got = ", ".join(sorted(path.name for path in beside))
        remedy = 'Say in config.json which one is meant: "quantization_config": {"quant_method": "opq", "file": NAME}.'
        raise SourceError("more than one opq file in the folder", got=got, wanted="one", remedy=remedy)


def open_opq_files() -> None:
    """Replaces the `safe_open` of transformers for the rest of the process; a second call changes nothing."""
    modeling: Any = importlib.import_module("transformers.modeling_utils")
    if not getattr(modeling.safe_open, "opens_opq_files", False):
        modeling.safe_open = opening(modeling.safe_open)


def tell_what_is_saved() -> None:
    """Lets `save_pretrained` of a model that came from an opq file say that it writes dense weights, once for all."""
    kind: Any = importlib.import_module("transformers.modeling_utils").PreTrainedModel
    if not getattr(kind.save_pretrained, "tells_of_opq_files", False):
        kind.save_pretrained = telling(kind.save_pretrained)


def telling(original: Callable[..., Any]) -> Callable[..., Any]:
    """`save_pretrained` that says what becomes of an opq file."""

    @functools.wraps(original)
    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        if (file := getattr(self, "opq_file", None)) is not None:
            size = sum(p.numel() * p.element_size() for p in self.parameters())
            text = f"save_pretrained writes the dense weights that {file} decoded to, {size:,} bytes, and no opq file"
            remedy = f"for a small one again, opq compress {save_directory} --bits N -o FILE"
            warnings.warn(f"{text}; {remedy}", OpqWarning, stacklevel=2)
        return original(self, save_directory, *args, **kwargs)

    save_pretrained.tells_of_opq_files = True  # type: ignore[attr-defined]
    return save_pretrained


def opening(original: Callable[..., Any]) -> Callable[..., Any]:
    """A `safe_open` that opens opq files, recognised by their names, and leaves all others to `original`."""

    def safe_open(filename: Any, *args: Any, **kwargs: Any) -> Any:
        if str(filename).endswith(SUFFIX):
            return Decoded(filename)
        return original(filename, *args, **kwargs)

    safe_open.opens_opq_files = True  # type: ignore[attr-defined]
    return safe_open
