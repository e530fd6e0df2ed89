"""What everything stands on: arrays, threads, files written aside. Knows no network, no plan and no opq file.

Other folders use:

- `arrays`: types of arrays, by what they hold.
- `atomic`: outputs are written aside and renamed.
- `calls`: what public calls share.
- `compiled`: where hot loops come from, machine code or numpy.
- `counts`: the entropy of counts.
- `dtypes`: element types by the names that safetensors gives them.
- `extras`: packages that only some calls need, and errors in one line.
- `format_v1`: every number that format version 1 fixes for ever.
- `paths`: what stands at a path, looked at before it is opened.
- `pool`: threads for work on arrays.
- `process_state`: what threads share (random states, warning filters, flags of torch), changed by one at a time.
- `progress`: how long work tells what it does.
- `rounding`: numbers rounded to a few bits, as the file holds them.
- `sizes`: sizes as people write them.
- `stages`: where the time of one call goes.
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
    "paths",
    "pool",
    "process_state",
    "progress",
    "rounding",
    "sizes",
    "stages",
    "tables",
]
