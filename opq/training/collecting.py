"""From a trained model back to a compression result, whose file holds exactly the trained weights."""

from __future__ import annotations

import dataclasses

from torch import nn

from opq.compression.fit import assemble
from opq.compression.result import Result
from opq.file.basis import TRAINING
from opq.models.wrappers import unwrapped
from opq.plan import Plan
from opq.sources import open_source
from opq.training.attaching import plan_in_force
from opq.training.proving import dense_state_dict, proved_codes


def collect(model: nn.Module, plan: Plan | Result) -> Result:
    """The result of a model trained under `opq.attach`: its codes, proved, and its kept tensors as they are now.

    The plan is unchanged; only the entropy coder's frequencies follow the new codes. Under `fully_shard` every process
    must call it.

    Raises:
        OffCodebookError: a weight, mask or step is not the plan's; the tensor is named.
        MismatchError: the plan is that of another model.

    Example:
        >>> import opq
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> plan = opq.solve(model, bits=6, probe=False)
        >>> result = opq.collect(opq.attach(model, plan), plan)
        >>> sorted(result.codes)
        ['0.weight', '2.weight']
    """
    model = unwrapped(model)
    trained = plan_in_force(model, plan)
    codes = {name: q.numpy() for name, q in proved_codes(model, trained).items()}
    label = type(model).__name__ if isinstance(plan, Plan) else plan.label
    source = dataclasses.replace(
        open_source(dense_state_dict(model)), label=label, origin="module", make=lambda: model
    )  # with the model at hand, which knows the eps of its BatchNorms
    return assemble(source, trained.replace(basis=TRAINING), codes, {})
