"""Hugging Face repositories that hold an opq file: loads one like any other model, or fills a folder to upload.

    import opq.hub
    from transformers import AutoModel
    model = AutoModel.from_pretrained("ORG/NAME")

When this module is imported, transformers learns to open such repositories (see `register`).
"""

from __future__ import annotations

from opq.hub.pipelines import compress_pipeline, diffusers_components
from opq.hub.registration import register, register_if_able
from opq.hub.repository import from_pretrained, save_pretrained

__all__ = [
    "compress_pipeline",
    "diffusers_components",
    "from_pretrained",
    "pipelines",
    "register",
    "save_pretrained",
]

register_if_able()
