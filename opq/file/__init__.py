"""The `.opq.safetensors` file, or a folder of them: writing, reading, loading.

Other folders use:

- `basis`: what the codes of a file rest on, a note in its header.
- `folder_reader`: a folder of `.opq.safetensors` shards with an index, read like one file.
- `header`: the header of a safetensors file, written and read.
- `index`: the index of a file.
- `kept`: how tensors that are not compressed are stored.
- `loading`: the calls that read a file back into dense tensors.
- `reader`: lazy access to the tensors of a file, which checks everything that the file says.
- `stored`: what a file holds of one tensor, and its bytes.
- `writer`: a plan and stored tensors -> one `.opq.safetensors` file. docs/format.md is the specification.
"""

from __future__ import annotations

__all__ = ["basis", "folder_reader", "header", "index", "kept", "loading", "reader", "stored", "writer"]
