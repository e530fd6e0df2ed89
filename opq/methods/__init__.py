"""Methods as objects: `method=` of `opq.compress` takes an object of one of these classes, or its name as a short form.

    opq.compress(model, bits=3, method=opq.methods.RateDistortion(trellis=True))
    opq.compress(model, method=opq.methods.ClipQ(data=batches, epochs=10, weight=0.3))

`RateDistortion` and `Opq` need no data. The other published methods (`ClipQ`, `KMeans`, `Lamp`, `Magnitude`, `Olmp`,
`ProductQuantization`) give the same kind of file and report, and their results can be fine-tuned in the same way.
`from_json` reads what a method's `to_json` wrote. docs/methods/ has a page for each method. Other folders use `calling`
and `run`.
"""

from __future__ import annotations

from opq.compression.method import Method, Opq, RateDistortion
from opq.compression.options import Options
from opq.compression.result import Result
from opq.methods.baselines import KMeans, Lamp, Magnitude
from opq.methods.calling import METHODS, from_json
from opq.methods.clipq import ClipQ
from opq.methods.job import Job
from opq.methods.olmp import Olmp
from opq.methods.pq import ProductQuantization
from opq.sources.base import Source

__all__ = [
    "METHODS",
    "ClipQ",
    "KMeans",
    "Lamp",
    "Magnitude",
    "Method",
    "Olmp",
    "Opq",
    "ProductQuantization",
    "RateDistortion",
    "calling",
    "from_json",
    "options",
    "run",
]


def run(source: Source, options: Options) -> Result:
    """The result of a published method.

    Raises:
        DataError: the method needs data and there is none, or it does not fit the model. Raised before any work.
    """
    job = Job(source, options)
    return job.settings.run(job)
