"""A trained model back into a compression result: the file is exactly what was trained."""

from __future__ import annotations

from torch import nn

from opq import container
from opq.keep import keep
from opq.module import collect, dense_state_dict
from opq.plan import Plan
from opq.result import Result
from opq.sources import open_source


def trained_result(model: nn.Module, plan: Plan | Result) -> Result:
    """The result of a model trained under `opq.attach`: its codes, proved, and its kept tensors as they are now.

    The plan stays bit for bit; only the entropy coder's frequencies are those of the new codes. Under `fully_shard`
    every process must call it.

    Raises:
        OffCodebookError: a weight, mask or step is not the plan's; the tensor is named.
        MismatchError: the plan is another model's.
    """
    codes = collect(model, plan)
    label = type(model).__name__ if isinstance(plan, Plan) else plan.label
    plan = plan if isinstance(plan, Plan) else plan.plan
    source = open_source(dense_state_dict(model))
    packed = container.pack(plan, [*(container.Grid(n, q.numpy()) for n, q in codes.items()), *keep(source, plan, {})])
    return Result(plan=plan, packed=packed, label=label, elements=source.elements, source_bytes=source.bytes)
