"""What everything stands on: arrays, threads, safe writing of files. Knows no network, no plan and no opq file.

Other folders use:

- `arrays`: types of arrays, by what they hold.
- `atomic`: outputs are written aside and renamed.
- `calls`: what public calls share.
- `compiled`: hot loops in machine code where that pays, in numpy otherwise.
- `counts`: the entropy of counts.
- `dtypes`: element types by the names that safetensors gives them.
- `extras`: optional packages, and errors of other libraries in one line.
- `format_v1`: every number that format version 1 fixes for ever.
- `kernels`: functions in machine code, for the modules of hot loops alone.
- `mapped`: memory for large arrays that stay, apart from the heap.
- `paths`: what is at a path, checked before it is opened.
- `pool`: threads for work on arrays.
- `process_state`: state that all threads of a process share, changed by one thread at a time.
- `progress`: progress of long work, by a callback or a bar.
- `rounding`: numbers rounded to a few bits, as the file holds them.
- `sizes`: sizes as people write them.
- `stages`: how long each stage of a call takes.
- `tables`: tables as plain text and as HTML.
"""

from __future__ import annotations

__all__ = [
    "arrays",
    "atomic",
    "calls",
    "compiled",
    "counts",
    "dtypes",
    "extras",
    "format_v1",
    "kernels",
    "mapped",
    "paths",
    "pool",
    "process_state",
    "progress",
    "rounding",
    "sizes",
    "stages",
    "tables",
]
