"""The model card of a compressed model, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from opq.base.paths import what_is
from opq.base.tables import printable
from opq.export import front_matter
from opq.file.folder_reader import FolderReader
from opq.file.reader import Reader
from opq.report.accounting import NOTHING, of_codes

LONGEST = 200
"""The most characters of a name that a card shows, far more than any real name has."""
TAGS = ("opq", "compressed")
_REPLACED = ("tags", "base_model", "base_model_relation", "model-index")
_OWN_CALL = """import opq.hub
model = opq.hub.from_pretrained("{repository}")"""
_CALLS = {
    "transformers": """import opq.hub  # teaches transformers to open the file
from transformers import AutoModel
model = AutoModel.from_pretrained("{repository}")"""
}
_REPOSITORY = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def model_card(
    reader: Reader | FolderReader,
    *,
    source: str,
    repository: str = "ORG/NAME",
    original: str = "",
    library: str | None = None,
) -> str:
    """Markdown with the figures of a file and the lines of Python that load it, followed by the original model's card.

    Args:
        reader: the open file.
        source: the model that was compressed: `hf:ORG/NAME`, or a folder, of which only the last name is shown.
        repository: the Hugging Face repository that will hold the file.
        original: the card of the model that was compressed. Its licence, languages and tags are kept; its text follows.
        library: the library whose `from_pretrained` loads the folder, which hubs show. If the original card names one,
            that name is kept.
    """
    blocks, text = front_matter.split(original)
    if library is not None:
        blocks.setdefault("library_name", f"library_name: {library}")
    below = f"\n# The original model card\n\n{text}\n" if text.strip() else ""
    front = front_matter.joined(_fronted(blocks, hub_name(source)))
    calls = _CALLS.get(library or "", _OWN_CALL).format(repository=repository)
    return f"{front}\n{_section(reader, source=source, calls=calls)}{below}"


def hub_name(source: str) -> str | None:
    """The ORG/NAME of a source on the hub; None for a local folder, even one that is written `hf:FOLDER`."""
    name = source.removeprefix("hf:").partition("@")[0]
    is_repository = source.startswith("hf:") and _REPOSITORY.fullmatch(name) and what_is(name) != "a folder"
    return name if is_repository else None


def _fronted(blocks: Mapping[str, str], base: str | None) -> dict[str, str]:
    """The front matter of the compressed model: that of its original, but without the original's scores."""
    kept = {key: block for key, block in blocks.items() if key not in _REPLACED}
    tags = dict.fromkeys((*front_matter.items(blocks.get("tags", "")), *TAGS))
    if base is not None:
        kept |= {"base_model": f"base_model: {base}", "base_model_relation": "base_model_relation: quantized"}
    return kept | {"tags": "\n".join(("tags:", *(f"- {tag}" for tag in tags)))}


def _section(reader: Reader | FolderReader, *, source: str, calls: str) -> str:
    elements, before = reader.plan.elements, reader.plan.source_bytes
    counts = NOTHING
    for tensor in (t for t in reader.plan.compressed if t.stepped):
        counts += of_codes(torch.from_numpy(reader.codes(tensor.name)))
    name = hub_name(source) or Path(source.removeprefix("hf:")).name
    return f"""## Compressed with opq

`model.opq.safetensors` holds the weights of {code(name)}, pruned, quantized and entropy coded.
Method {code(reader.plan.method)}.

| | |
|---|---|
| size | {reader.bytes:,} bytes, {before / reader.bytes:.2f}x smaller than {before:,} |
| bits per weight, all counted | {8 * reader.bytes / max(elements, 1):.3f} |
| compressed weights that are zero | {counts.sparsity:.1%} |
| tensors compressed / kept | {len(reader.plan.compressed)} / {len(reader.plan) - len(reader.plan.compressed)} |

Loading gives an ordinary dense model: the file is small, run-time speed and memory are those of the original.

```python
{calls}
```

Without this package: the file is a safetensors file whose layout `docs/format.md` of opq describes.
"""


def code(text: str) -> str:
    """Untrusted text as inline code of Markdown: nothing in it can end the code, the line or the page."""
    shown = printable(text)
    shown = shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    space = " " if len(ticks) > 1 or not shown.strip() else ""
    return f"{ticks}{space}{shown}{space}{ticks}"
