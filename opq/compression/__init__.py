"""From options to a problem, from a problem to codes, from codes to a file that meets its budget.

Other folders use:

- `alpha`: the exponent of the sensitivities.
- `budget`: the loop by which every budget in bytes is met.
- `by_outputs`: a source that gives tensors as matrices (outputs, inputs), and with rows scaled; which tensors.
- `coders`: from planned tensors to codes, with or without the probe.
- `compared`: whether a file with the probe is better than one without it.
- `copies`: tensors of one source that are equal.
- `differences`: a source as the differences to a base.
- `fit`: finds the plan whose file meets the budget.
- `in_file`: what a file holds of weights that a source gives by their outputs.
- `least_rates`: from which rate on a trellis pays, tried no further down than needed.
- `method`: methods as objects, and the two methods that need no data.
- `options`: the options of one compression, checked before any work is done.
- `prior`: how much each tensor matters, guessed from the weights alone.
- `problem`: statistics, sensitivities and a budget in bits -> the Plan.
- `result`: what `compress` returns.
- `shortfall`: why a file is smaller than its budget.
- `unchanged`: tensors that an older file holds already.
- `roles`: which tensors are compressed, kept or shared, and why.
- `trellised`: which of them may be quantized on a trellis.
"""

from __future__ import annotations

__all__ = [
    "alpha",
    "budget",
    "by_outputs",
    "coders",
    "compared",
    "copies",
    "differences",
    "fit",
    "in_file",
    "least_rates",
    "method",
    "options",
    "prior",
    "problem",
    "result",
    "roles",
    "shortfall",
    "trellised",
    "unchanged",
]
