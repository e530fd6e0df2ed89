"""What everything stands on: arrays, threads, files written aside. Knows no network, no plan and no opq file.

Other folders use:

- `arrays`: types of arrays, by what they hold.
- `atomic`: outputs are written aside and renamed.
- `dtypes`: element types by the names that safetensors gives them.
- `extras`: packages that only some calls need, and errors in one line.
- `paths`: what stands at a path, looked at before it is opened.
- `pool`: threads for work on arrays.
- `process_state`: what threads share (random states, warning filters, flags of torch), changed by one at a time.
- `progress`: how long work tells what it does.
- `rounding`: numbers rounded to a few bits, as the file holds them.
"""

from __future__ import annotations

__all__ = ["arrays", "atomic", "dtypes", "extras", "paths", "pool", "process_state", "progress", "rounding"]
