"""From an opq file to formats of other tools: dense tensors, Hugging Face folders, ONNX, web pages, integer layouts."""

from __future__ import annotations

from opq.export.compressed_tensors import save_compressed_tensors
from opq.export.dense import save_dense
from opq.export.hf_folder import save_compressed_folder, save_folder
from opq.export.onnx_model import Exported, save_onnx
from opq.export.web_site import Site, save_web

__all__ = [
    "Exported",
    "Site",
    "compressed_tensors",
    "dense",
    "hf_folder",
    "onnx_model",
    "save_compressed_folder",
    "save_compressed_tensors",
    "save_dense",
    "save_folder",
    "save_onnx",
    "save_web",
    "web_site",
]
