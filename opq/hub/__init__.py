"""Hugging Face repositories that hold an opq file: load one as any other model, or fill a folder to upload.

import opq.hub
from transformers import AutoModel
model = AutoModel.from_pretrained("ORG/NAME")

Importing this module is what teaches transformers to open such repositories.
"""

from __future__ import annotations

from opq.hub.registration import register, register_if_able
from opq.hub.repository import from_pretrained, save_pretrained

__all__ = ["from_pretrained", "register", "save_pretrained"]

register_if_able()
