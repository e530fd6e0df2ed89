"""The budget loop: what it is given, in which order it tries, when it stops and what it holds."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import opq
from opq.compression.budget import WINDOW, Round, Search, by_halves, by_line

SIZES = {"line": lambda bits: 100 + bits / 8, "steep": lambda bits: 100 + 2.2 * bits / 8, "square": lambda b: b * b}


def maker(size: Callable[[float], float]) -> Callable[[float, Sequence[Round]], tuple[Round, float]]:
    return lambda setting, before: (Round(setting, size(setting)), setting)


@pytest.mark.parametrize("first", [3.0, 30.0, 300.0, 7600.0, 8400.0, 1e5])
@pytest.mark.parametrize("size", [SIZES["line"], SIZES["steep"]], ids=["line", "steep"])
def test_sizes_that_grow_with_the_setting_end_in_the_window(first: float, size: Callable[[float], float]) -> None:
    """Also where bytes move more than twice as fast as bits: each step by itself would lead further away."""
    search = Search(target=1100, least=0.0, rounds=12, step=by_line)
    found = search.run(maker(size), lambda: first)
    assert found.chosen is not None
    assert WINDOW * 1100 <= found.chosen.bytes <= 1100
    assert found.chosen is found.rounds[-1]
    assert found.made == found.chosen.setting


def test_between_two_rounds_a_step_stays_well_inside() -> None:
    search = Search(target=1000, least=0.0, rounds=12, step=by_line)
    low, high = Round(1000, 100), Round(9000, 1001)
    setting = search.following([low, high])
    assert setting is not None
    assert setting == pytest.approx(1000 + 0.9 * 8000)


@given(
    st.lists(st.integers(1, 2000), min_size=12, max_size=12),
    st.floats(1, 1e4),
    st.sampled_from([by_line, by_halves]),
)
def test_whatever_the_sizes_the_largest_within_the_target_is_chosen_and_no_more_rounds_are_made(
    sizes: list[int], first: float, step: Callable[..., float]
) -> None:
    search = Search(target=1000, least=0.5, rounds=12, step=step)
    found = search.run(lambda setting, before: (Round(setting, sizes[len(before)]), len(before)), lambda: first)
    assert 1 <= len(found.rounds) <= 12
    assert all(one.setting >= 0.5 for one in found.rounds)
    within = [one.bytes for one in found.rounds if one.bytes <= 1000]
    if found.chosen is None:
        assert not within
        assert found.made is None
    else:
        assert found.made is not None
        assert found.chosen.bytes == max(within)
        assert found.rounds[found.made] is found.chosen
    assert not any(search.good(one) for one in found.rounds[:-1])


@given(st.integers(1, 11), st.floats(10, 1e5), st.sampled_from(list(SIZES)))
def test_a_search_that_is_interrupted_goes_on_as_if_it_had_not_been(rounds: int, first: float, kind: str) -> None:
    search = Search(target=5000, least=1.0, rounds=12, step=by_line)
    whole = search.run(maker(SIZES[kind]), lambda: first)
    resumed = search.run(maker(SIZES[kind]), lambda: first, whole.rounds[:rounds])
    assert resumed.rounds == whole.rounds
    assert resumed.chosen == whole.chosen


def test_where_nothing_makes_more_a_round_below_the_window_is_good() -> None:
    search = Search(target=1000, least=0.0, rounds=12, step=by_line)
    found = search.run(lambda setting, before: (Round(setting, 400, most=True), "all"), lambda: 5000.0)
    assert (len(found.rounds), found.made) == (1, "all")


def test_where_the_least_setting_makes_too_much_nothing_is_chosen() -> None:
    search = Search(target=1000, least=64.0, rounds=12, step=by_line)
    found = search.run(maker(lambda bits: 2000 + bits), lambda: 1.0)
    assert [one.setting for one in found.rounds] == [64.0]
    assert found.chosen is None


def test_of_all_that_was_made_two_are_held_at_most() -> None:
    """Drafts of a large model's file are large: the best one and the one that is being made."""

    class Made:
        pass

    alive: list[weakref.ref[Made]] = []
    most = 0

    def make(setting: float, before: Sequence[Round]) -> tuple[Round, Made]:
        nonlocal most
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive))
        made = Made()
        alive.append(weakref.ref(made))
        return Round(setting, [10, 20, 2000, 30, 40, 50][len(before)]), made

    Search(target=1000, least=0.0, rounds=6, step=by_line).run(make, lambda: 100.0)
    assert len(alive) == 6
    assert most == 1


def test_halving_tries_the_largest_and_the_least_setting_first() -> None:
    search = Search(target=100, least=-10.0, rounds=20, step=by_halves)
    found = search.run(maker(lambda octaves: 128 * 2**octaves), lambda: 0.0)
    assert [one.setting for one in found.rounds[:4]] == [0.0, -10.0, -5.0, -2.5]
    assert found.chosen is not None
    assert 99.5 <= found.chosen.bytes <= 100


# --- why a file stays below its budget -----------------------------------------------------------


def test_a_file_in_the_window_has_no_shortfall() -> None:
    torch.manual_seed(0)
    assert opq.compress({"w": torch.randn(128, 128)}, bits=3).shortfall is None


def test_far_outliers_leave_codes_of_16_bits_too_few_levels_and_the_result_says_so() -> None:
    torch.manual_seed(0)
    result = opq.compress({"a.w": torch.distributions.Cauchy(0.0, 1.0).sample((256, 256))}, bits=5)
    short = result.shortfall
    assert short is not None
    assert (short.cause, short.tensors) == ("codes", ("a.w",))
    assert short.share == pytest.approx(result.bits / 5)
    assert short.share < WINDOW
    assert f"takes {short.share:.1%} of its budget, because codes have 16 bits" in str(short)
    assert str(short) in repr(result)


def test_a_gaussian_tensor_takes_no_more_than_the_bits_that_the_options_name() -> None:
    g = torch.Generator().manual_seed(0)
    result = opq.compress({"w": torch.randn(512, 512, generator=g)}, bits=20)
    assert result.shortfall is not None
    assert result.shortfall.cause == "codes"
    assert 14.6 < result.bits < 15.1


def test_few_distinct_values_make_the_size_jump_and_the_result_says_so() -> None:
    g = torch.Generator().manual_seed(0)
    result = opq.compress({"w": torch.randint(-3, 4, (256, 256), generator=g).float()}, bits=2)
    assert result.shortfall is not None
    assert result.shortfall.cause == "values"
    assert result.bits < 2 * WINDOW


def test_bounds_that_the_user_gave_are_named_as_what_keeps_the_file_small() -> None:
    torch.manual_seed(0)
    state = {"w": torch.randn(128, 128)}
    result = opq.compress(state, bits=6, overrides={"w": {"max_bits": 3}})
    assert result.shortfall is not None
    assert result.shortfall.cause == "bounds"
    assert "no tensor can take more bits: 'w'" in str(result.shortfall)
