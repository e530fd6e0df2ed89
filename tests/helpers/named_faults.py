"""Faults that the tests once let through, each with the tests that catch it now; `put_faults.py` tries them."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """A change of one place of the package that some test must notice."""

    what: str
    """What the package does wrong then."""
    file: str
    """Below `opq/`."""
    before: str
    """Code that stands in the file once."""
    after: str
    tests: tuple[str, ...]
    """Tests of which one must fail, below `tests/`: files, folders, or functions as `FILE::FUNCTION`."""


NAMED = (
    Fault(
        what="the worst exponent of the sensitivities is chosen",
        file="compression/alpha.py",
        before="errors.index(min(errors))",
        after="errors.index(max(errors))",
        tests=(
            "compression/test_alpha.py::"
            "test_of_all_exponents_the_one_whose_plan_moves_the_outputs_least_is_taken",
        ),
    ),
    Fault(
        what="a path of the trellis has 64 rows, so that old files decode to other weights",
        file="base/format_v1.py",
        before="RUN = 128",
        after="RUN = 64",
        tests=("file/test_golden.py",),
    ),
    Fault(
        what="the chain of an axis' classes starts in another class, so that old files decode to other weights",
        file="coding/class_tables.py",
        before="k = 0\n    for i",
        after="k = size - 1\n    for i",
        tests=("file/test_golden.py",),
    ),
    Fault(
        what="CLIP-Q cuts the negative side by the positive maximum",
        file="methods/clip.py",
        before="_side(-w, -c_minus, -low, k_minus)",
        after="_side(-w, -c_minus, high, k_minus)",
        tests=("methods/test_clip.py::test_each_side_is_cut_between_its_own_threshold_and_its_own_extreme",),
    ),
    Fault(
        what="CLIP-Q's codebook costs twice as much",
        file="methods/clipq.py",
        before="16 * ((1 << b) - 1)",
        after="32 * ((1 << b) - 1)",
        tests=("methods/test_clip.py",),
    ),
    Fault(
        what="a loss that is not finite in one process is not seen by the others",
        file="training/processes.py",
        before="distributed.all_reduce(flag, distributed.ReduceOp.MIN)",
        after="pass",
        tests=("training/test_processes.py::test_every_process_says_what_is_wrong_in_one_of_them",),
    ),
    Fault(
        what="values 10^5 times as far from a tensor's are taken for it in an ONNX graph",
        file="export/onnx_model.py",
        before="(error <= ROUNDINGS * np.abs(target))",
        after="(error <= 1e5 * ROUNDINGS * np.abs(target))",
        tests=("export/test_onnx_model.py::test_values_further_away_than_two_roundings_stay_as_they_are",),
    ),
    Fault(
        what="a streamed run with other sensitivities is taken for the same run",
        file="streaming/resume.py",
        before='"constraints", "sensitivities", "alpha"',
        after='"constraints", "alpha"',
        tests=("streaming/test_resume.py::test_another_value_of_an_option_is_another_run",),
    ),
    Fault(
        what="the report's bits are bytes",
        file="plan.py",
        before="{8 * size / tensor.size:.3f}",
        after="{size / tensor.size:.3f}",
        tests=("report/test_table.py::test_the_table_gives_bits_a_weight_and_bytes_of_the_same_payload",),
    ),
    Fault(
        what="OLMP counts a step for every tensor of a layer",
        file="methods/surgery.py",
        before="if self.leads:\n            self.layer.step += 1",
        after="if True:\n            self.layer.step += 1",
        tests=("methods/test_olmp.py",),
    ),
    Fault(
        what="OLMP's search is not narrower at the end of the pruning",
        file="methods/olmp.py",
        before="(100 if late else 10)",
        after="10",
        tests=("methods/test_olmp.py::test_the_search_is_ten_times_narrower_from_two_thirds_of_the_pruning_on",),
    ),
    Fault(
        what="the search's children are drawn with another deviation",
        file="methods/ncs.py",
        before="rng.normal(c, sigma)",
        after="rng.normal(c, sigma / 2)",
        tests=("methods/test_ncs.py::test_children_are_drawn_with_the_deviation_that_was_asked_for",),
    ),
    Fault(
        what="the weights of a head count ten times as much",
        file="probing/collector.py",
        before="PRIOR = 0.5",
        after="PRIOR = 5.0",
        tests=("probing/test_moments.py::test_the_weights_of_a_head_count_for_half_of_what_its_inputs_do",),
    ),
    Fault(
        what="the budget that is suggested is rounded down",
        file="compression/fit.py",
        before="math.ceil(8e4 * smallest",
        after="math.floor(8e4 * smallest",
        tests=("compression/test_fit.py::test_the_budget_that_is_suggested_has_room_for_the_smallest_file",),
    ),
    Fault(
        what="the ratio that is suggested is rounded up",
        file="compression/fit.py",
        before="math.floor(1e4 * self.source.bytes",
        after="math.ceil(1e4 * self.source.bytes",
        tests=("compression/test_fit.py::test_the_budget_that_is_suggested_has_room_for_the_smallest_file",),
    ),
)  # fmt: skip
"""Those of an audit that put fifty faults into the package."""
