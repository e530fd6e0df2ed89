"""What a live model tells about its input."""

from __future__ import annotations

from typing import Any

from torch import nn

from opq.sources.base import InputHint


def hint_of_module(model: nn.Module) -> InputHint | None:
    """From a timm `pretrained_cfg`, a Hugging Face `config`, or a torchvision class; None if there is none of these."""
    if isinstance(cfg := getattr(model, "pretrained_cfg", None), dict):
        return hint_of_timm(cfg)
    if isinstance(hint := getattr(model, "input_hint", None), InputHint):
        return hint
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "model_type"):
        return hint_of_config(config)
    if type(model).__module__.startswith("torchvision.models."):
        return _hint_of_torchvision(model)
    return None


def hint_of_timm(cfg: dict[str, Any]) -> InputHint | None:
    """From timm's `pretrained_cfg`: input size, mean and standard deviation."""
    if not cfg.get("input_size"):
        return None
    return InputHint(
        modality="image",
        image_size=tuple(cfg["input_size"]),
        mean=tuple(cfg["mean"]) if cfg.get("mean") else None,
        std=tuple(cfg["std"]) if cfg.get("std") else None,
    )


def hint_of_config(config: Any) -> InputHint | None:
    """From a Hugging Face config: image size and channels, or vocabulary and positions."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if isinstance(vocabulary := getattr(text, "vocab_size", None), int) and vocabulary > 0:
        return InputHint(
            modality="text",
            vocabulary=vocabulary,
            tokens=_whole(text, "max_position_embeddings", "n_positions") or None,
            token_types=_whole(text, "type_vocab_size"),
            pad=_whole(text, "pad_token_id"),
            bos=_whole(text, "bos_token_id"),
            eos=_whole(text, "eos_token_id"),
        )
    size = getattr(config, "image_size", None)
    channels = _whole(config, "num_channels", "in_channels")
    if size is None and channels is None:
        return None
    height, width = (size, size) if isinstance(size, int) else tuple(size or (224, 224))
    return InputHint(modality="image", image_size=(channels or 3, height, width))


def _whole(config: Any, *names: str) -> int | None:
    """The first of these attributes that is a count; a negative number means that there is none (XLNet's positions)."""
    return next((v for n in names if isinstance(v := getattr(config, n, None), int) and v >= 0), None)


def hint_of_weights(weights: Any) -> InputHint:
    """From a torchvision weights enum: crop, mean and standard deviation of its preset (224 pixels if it has none)."""
    preset = weights.transforms()
    size = getattr(preset, "crop_size", None) or [224]
    height, width = (size[0], size[-1]) if isinstance(size, (list, tuple)) else (size, size)
    mean, std = getattr(preset, "mean", None), getattr(preset, "std", None)
    return InputHint(
        modality="image",
        image_size=(3, int(height), int(width)),
        mean=tuple(mean) if mean else None,
        std=tuple(std) if std else None,
    )


_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


def _hint_of_torchvision(model: nn.Module) -> InputHint:
    """The size that torchvision's classification models were trained for."""
    side = 299 if type(model).__name__ == "Inception3" else int(getattr(model, "image_size", 224))
    return InputHint(modality="image", image_size=(3, side, side), mean=_IMAGENET_MEAN, std=_IMAGENET_STD)
