"""The other published methods, each to the same file, report and fine-tuning loop as `rd` and `opq`.

    opq.compress(model, method="clipq", data=batches, method_options={...})

`METHODS` maps a name to what runs it and to the type of its options; docs/methods/ has a page for each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from opq.compression.options import Options
from opq.compression.result import Result
from opq.errors import OptionError
from opq.methods import options as method_options
from opq.methods.baselines import kmeans_sharing, uniform
from opq.methods.clipq import clipq
from opq.methods.job import Job
from opq.methods.olmp import olmp
from opq.methods.pq import pq
from opq.sources.base import Source

__all__ = ["METHODS", "Method", "run"]


@dataclasses.dataclass(frozen=True)
class Method:
    """One published method."""

    run: Callable[[Job], Result]
    settings: type[method_options.Settings]
    sized_by: str = ""
    """The options that set the size of the file, where a budget cannot."""


METHODS = {
    "clipq": Method(clipq, method_options.ClipQ, sized_by="lambda (weight=) or theta="),
    "kmeans": Method(kmeans_sharing, method_options.Sharing),
    "lamp": Method(uniform, method_options.Uniform),
    "magnitude": Method(uniform, method_options.Uniform),
    "olmp": Method(olmp, method_options.Olmp, sized_by="delta=, bounds= and prune_epochs="),
    "pq": Method(pq, method_options.ProductQuantization),
}


def run(source: Source, options: Options) -> Result:
    """The result of the method that the options name.

    Raises:
        OptionError: `method_options=` or a budget of the file has no meaning for it.
        DataError: it needs data and has none, or none that fits. Both before any work.
    """
    method = METHODS[options.method]
    if method.sized_by and options.budget is not None:
        fact, remedy = "takes no budget of the file", f"Leave the budget out: {method.sized_by} set the size."
        raise OptionError(f"method={options.method!r} {fact}", got=options.budget.kind, remedy=remedy)
    return method.run(Job(source, options, method_options.read(method.settings, options.method_options)))
