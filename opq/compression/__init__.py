"""Options to a problem, a problem to codes, codes to a file that meets its budget.

Other folders use:

- `alpha`: the exponent of the sensitivities.
- `budget`: the one loop that meets a budget in bytes.
- `coders`: accuracy without data.
- `copies`: tensors of one source that hold the very same values.
- `fit`: meets the budget in bytes of the file.
- `method`: methods as objects: what a method of compression is, and the two that need no data.
- `options`: the options of one compression, checked before any work is done.
- `prior`: how much each tensor matters, guessed from the weights alone.
- `problem`: statistics, sensitivities and a budget in bits -> the Plan. Pure.
- `result`: what `compress` gives back.
- `shortfall`: why a file stays below its budget.
- `roles`: which tensors are compressed, kept or shared, and why.
"""

from __future__ import annotations

__all__ = [
    "alpha",
    "budget",
    "coders",
    "copies",
    "fit",
    "method",
    "options",
    "prior",
    "problem",
    "result",
    "roles",
    "shortfall",
]
