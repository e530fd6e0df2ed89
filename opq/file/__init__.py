"""The `.opq.safetensors` file, or a folder of them: written, read, loaded.

Other folders use:

- `basis`: what a file's codes rest on, a note in its header.
- `folder_reader`: A folder of `.opq.safetensors` shards with an index, read like one file.
- `header`: the header of a safetensors file, written and read.
- `index`: the index of a file.
- `kept`: how tensors that are not compressed are stored.
- `loading`: the calls that read a file back into dense tensors.
- `reader`: lazy access to the tensors of a file. Nothing that the file says is believed before it is checked.
- `stored`: what a file holds of one tensor, and the bytes of it.
- `writer`: plan + stored tensors -> one `.opq.safetensors` file, and back. docs/format.md is the specification.
"""

from __future__ import annotations

__all__ = ["basis", "folder_reader", "header", "index", "kept", "loading", "reader", "stored", "writer"]
