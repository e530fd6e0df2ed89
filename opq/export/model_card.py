"""The model card section of a compressed model, in Markdown."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from opq.file.reader import Reader
from opq.report.accounting import NOTHING, of_codes
from opq.report.table import printable

LONGEST = 200
"""Characters of a name that a card shows: the published methods' have ten."""


def model_card(reader: Reader, *, source: str, repository: str = "ORG/NAME") -> str:
    """Markdown with the figures of a file and the two lines that load it.

    Args:
        reader: the open file.
        source: the name of the model that was compressed.
        repository: the Hugging Face repository that will hold it.
    """
    elements, before = reader.plan.elements, reader.plan.source_bytes
    counts = NOTHING
    for tensor in (t for t in reader.plan.compressed if t.stepped):
        counts += of_codes(torch.from_numpy(reader.codes(tensor.name)))
    name = source.removeprefix("hf:") if source.startswith("hf:") else Path(source).name
    front = f"---\nbase_model: {name}\ntags: [opq, compressed]\n---\n\n" if source.startswith("hf:") else ""
    return f"""{front}## Compressed with opq

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
import opq.hub
model = opq.hub.from_pretrained("{repository}")
```

Without this package: the file is a safetensors file whose layout `docs/format.md` of opq describes.
"""


def code(text: str) -> str:
    """Text of unknown origin as code within a line of Markdown: nothing in it ends the code, the line or the page."""
    shown = printable(text)
    shown = shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    space = " " if len(ticks) > 1 or not shown.strip() else ""
    return f"{ticks}{space}{shown}{space}{ticks}"
