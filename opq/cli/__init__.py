"""The `opq` command: the only folder that prints.

Exit codes: 0 done, 1 the input or the file is wrong (one line says what and what to do), 2 wrong usage,
130 interrupted, 143 terminated.

- `entry`: where a run begins and ends; `commands`: the command and all that stand below it
- `compressing`, `looking`, `exporting`, `updating`, `measuring`, `training`: the commands by what they do
- `options`, `parsing`, `outputs`: what several commands share: options, values typed as text, checks of the output
- `printing`: lines, tables and JSON; `wording`: the library's messages in the words of the shell
"""

from opq.cli.commands import app
from opq.cli.entry import main

__all__ = ["app", "main"]
