"""How a model shows that it carries the compression module: known below, where weights are read."""

from __future__ import annotations

from torch import nn

from opq.errors import AttachError


class Attachment(nn.Module):
    """What `opq.attach` puts on a parameter."""


def is_attached(model: nn.Module) -> bool:
    """Whether `opq.attach` is in force anywhere in the model."""
    return any(isinstance(module, Attachment) for module in model.modules())


def check_detached(model: nn.Module) -> None:
    """Raises `AttachError` where the compression module is attached: such a model is compressed already."""
    if is_attached(model):
        raise AttachError(
            f"the compression module is attached to {type(model).__name__}",
            wanted="a model without it",
            remedy="Call opq.collect(model, plan) for the file of what was trained, or first opq.detach(model), with "
            "bake=True for the pruned and quantized weights.",
        )
