"""Schedules written by hand."""

import pytest

from mtrkit.errors import OptionError, ScheduleError
from mtrkit.schedule import EveryNth, check_schedule, reduction_ratio, solve_removal

R_MEETO = EveryNth(2).layers(24)


@pytest.mark.parametrize(
    ("r", "ratio", "end"),
    [
        (5, 0.1396, 142),
        (10, 0.2792, 87),
        (11, 0.3071, 76),
        (13, 0.3629, 54),
        (15, 0.4188, 32),
        (20, 0.5398, 6),
    ],
)
def test_reduction_ratios_of_table_10(vim, r, ratio, end):
    schedule = solve_removal(vim(384), R_MEETO, r)
    assert schedule[-1] == end
    assert reduction_ratio(schedule, vim(384)) == pytest.approx(ratio, abs=5e-5)


def test_a_possible_schedule_is_returned_as_a_list(vim):
    schedule = (197,) * 4 + (150,) * 8 + (100,) * 12
    assert check_schedule(schedule, vim(192)) == list(schedule)
    assert check_schedule(schedule, vim(192), max_share=0.5) == list(schedule)


@pytest.mark.parametrize("tokens", [197, "197", [197.0] * 24, [True] * 24, None])
def test_what_is_no_list_of_integers_is_refused(vim, tokens):
    with pytest.raises(OptionError, match="list of integers"):
        check_schedule(tokens, vim(192))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([197] * 23, "24 are needed, 23 were given"),
        ([198] * 24, "198 after block 1 that only sees 197"),
        ([197] * 5 + [100] + [101] * 18, "101 after block 7 that only sees 100"),
        ([197] + [1] * 23, "1 special tokens"),
        ([197] * 23 + [150], "after the last block"),
        ([197] + [80] * 23, "at most 98 of the 196"),
    ],
)
def test_impossible_schedules_are_refused(vim, tokens, message):
    with pytest.raises(ScheduleError, match=message):
        check_schedule(tokens, vim(192), max_share=0.5)
