"""From a ratio to tokens: published tables, and promises checked on random models."""

from fractions import Fraction

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from mtrkit.errors import OptionError, ScheduleError
from mtrkit.schedule import (
    EveryNth,
    MambaShape,
    bipartite_cost,
    check_schedule,
    model_flops,
    solve_ratio,
    solve_removal,
)


@st.composite
def shapes(draw, most_tokens=400):
    dim, special = draw(st.integers(8, 800)), draw(st.integers(0, 13))
    tokens = special + draw(st.integers(1, most_tokens))
    return MambaShape(
        depth=draw(st.integers(2, 40)),
        dim=dim,
        inner=2 * dim,
        state=draw(st.integers(1, 32)),
        dt_rank=-(-dim // 16),
        conv=4,
        tokens=tokens,
        special=special,
        patches=tokens - special,
        patch_macs=dim * draw(st.integers(1, 2000)),
        head_macs=dim * draw(st.integers(0, 1000)),
        directions=draw(st.integers(1, 2)),
    )


@st.composite
def tasks(draw):
    """A model, its reducing blocks, and how a reduction is charged."""
    shape = draw(shapes())
    layers = sorted(draw(st.sets(st.integers(1, shape.depth - 1), min_size=1)))
    width = draw(st.sampled_from([0, shape.state, shape.dim, shape.inner]))
    return shape, layers, bipartite_cost(width, shape.dim) if width else None


def reach(shape, schedule, cost, directions="one"):
    return model_flops(shape, schedule, cost, directions).ratio_to(model_flops(shape, directions=directions))


def largest(shape, layers, cost, max_share, directions="one"):
    """The ratio reached if every reducing block takes all that it may."""
    schedule, now = [], shape.tokens
    for layer in range(1, shape.depth + 1):
        now -= int(max_share * (now - shape.special - 1)) if layer in layers else 0
        schedule.append(now)
    return reach(shape, schedule, cost, directions)


def half_a_token(shape, layers, cost, directions):
    """Share of the FLOPs of half a token in each block behind the first reduction, merging included."""
    full = shape.tokens
    step = shape.block_flops(1, directions) - shape.block_flops(0, directions)
    merging = cost(full, full - 1) - cost(full - 1, full - 1) if cost else 0
    flops = (shape.depth - layers[0]) * step + len(layers) * merging
    return flops / 2 / model_flops(shape, directions=directions).total


@pytest.mark.parametrize(
    ("layers", "ends"),
    [
        ((5, 10, 15), (131, 100, 70)),
        ((10, 15, 20), (99, 58, 26)),
        ((5, 10, 15, 20), (119, 85, 55)),
        (EveryNth(2).layers(24), (123, 90, 61)),  # the sheet's 89 removes 30.4 %, 90 removes 29.9 %
    ],
)
def test_mtr_ends_with_as_many_tokens(vim, layers, ends):
    """The k table of MTR's fact sheet: one k for all layers, class token protected, merging free."""
    for ratio, end in zip((0.2, 0.3, 0.4), ends, strict=True):
        schedule = solve_ratio(vim(384), layers, ratio, reduction_cost=None, max_share=0.51)
        assert schedule[-1] == end


def test_mtr_keeps_one_target_more_than_it_can_halve(vim):
    with pytest.raises(ScheduleError, match=r"up to 0\.39\d\d"):  # 0.4 would need k = 0.498
        solve_ratio(vim(384), (10, 15, 20), 0.4, reduction_cost=None)


@settings(max_examples=300, deadline=None)
@given(tasks(), st.floats(0, 0.999), st.sampled_from([0.3, 0.5, 1.0]), st.sampled_from(["one", "all"]))
def test_the_ratio_reached_is_the_one_asked(task, portion, max_share, directions):
    shape, layers, cost = task
    most = largest(shape, layers, cost, max_share, directions)
    assume(most > 0)
    ratio = portion * most
    schedule = solve_ratio(shape, layers, ratio, reduction_cost=cost, max_share=max_share, directions=directions)
    reached = reach(shape, schedule, cost, directions)
    assert reached >= 0
    assert abs(reached - ratio) <= half_a_token(shape, layers, cost, directions) * (1 + 1e-9)


@settings(max_examples=150, deadline=None)
@given(tasks(), st.floats(0, 0.999), st.sampled_from([0.3, 0.5, 1.0]))
def test_schedules_are_possible_and_shrink_only_where_they_may(task, portion, max_share):
    shape, layers, cost = task
    most = largest(shape, layers, cost, max_share)
    assume(most > 0)
    schedule = solve_ratio(shape, layers, portion * most, reduction_cost=cost, max_share=max_share)
    assert check_schedule(schedule, shape, max_share) == schedule
    for layer, (before, after) in enumerate(zip([shape.tokens, *schedule], schedule, strict=False), start=1):
        gone = before - after
        assert gone == 0 or layer in layers
        assert gone <= max_share * (before - shape.special - 1)


@settings(max_examples=200, deadline=None)
@given(tasks(), st.floats(0, 0.999), st.floats(0, 0.999), st.booleans())
def test_a_larger_ratio_leaves_no_block_with_more_tokens(task, one, other, tiny):
    shape, layers, cost = task
    most = largest(shape, layers, cost, 0.5)
    assume(most > 0)
    scale = min(most, 4 * half_a_token(shape, layers, cost, "one")) if tiny else most
    less, more = (solve_ratio(shape, layers, portion * scale, reduction_cost=cost) for portion in sorted([one, other]))
    assert all(a >= b for a, b in zip(less, more, strict=True))


def every_plan(shape, layers):
    """All schedules that one share k from 0 to 1/2 can give, by exact arithmetic on every k that matters."""
    count = shape.tokens - shape.special
    turns = {Fraction(2 * a + 1, 2 * n) for n in range(1, count + 1) for a in range(n) if 2 * a + 1 <= n}
    for share in [Fraction(0), *sorted(turns)]:
        schedule, now = [], shape.tokens
        for layer in range(1, shape.depth + 1):
            if layer in layers:
                held = now - shape.special
                now -= min(int(share * held + Fraction(1, 2)), (held - 1) // 2)
            schedule.append(now)
        yield schedule


@settings(max_examples=40, deadline=None)
@given(shapes(most_tokens=25), st.data())
def test_no_other_share_comes_nearer_where_merging_is_free(shape, data):
    layers = sorted(data.draw(st.sets(st.integers(1, shape.depth - 1), min_size=1, max_size=4)))
    reached = [reach(shape, schedule, None) for schedule in every_plan(shape, layers)]
    ratio = data.draw(st.floats(0, 1)) * max(reached)
    found = reach(shape, solve_ratio(shape, layers, ratio, reduction_cost=None), None)
    assert abs(found - ratio) == pytest.approx(min(abs(r - ratio) for r in reached), abs=1e-12)


@given(tasks())
@settings(max_examples=50, deadline=None)
def test_nothing_is_removed_at_ratio_0(task):
    shape, layers, cost = task
    assert solve_ratio(shape, layers, 0, reduction_cost=cost) == [shape.tokens] * shape.depth


def test_nothing_is_removed_where_merging_would_cost_more(vim):
    shape, cost = vim(192), bipartite_cost(192, 192)
    assert solve_ratio(shape, range(1, 24), 1e-4, reduction_cost=cost) == [197] * 24
    with pytest.raises(ScheduleError, match=r"up to 0\.0000"):
        solve_ratio(shape, [23], 0.01, reduction_cost=lambda before, after: 10**9)


@pytest.mark.parametrize("directions", ["one", "all"])
@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3, 0.4, 0.5])
def test_ratios_of_real_models(vim, ratio, directions):
    for dim in (192, 384, 768):
        shape, cost = vim(dim), bipartite_cost(dim, dim)
        schedule = solve_ratio(shape, (5, 10, 15), ratio, reduction_cost=cost, directions=directions)
        assert reach(shape, schedule, cost, directions) == pytest.approx(ratio, abs=0.0025)


def test_the_ratio_offered_by_the_message_can_be_had(vim):
    with pytest.raises(ScheduleError, match="more or earlier layers") as caught:
        solve_ratio(vim(192), (20, 22), 0.5, reduction_cost=None)
    offered = float(str(caught.value).split("up to ")[1].split()[0])
    schedule = solve_ratio(vim(192), (20, 22), offered, reduction_cost=None)
    assert reach(vim(192), schedule, None) == pytest.approx(offered, abs=1e-4)


def test_without_reducing_blocks_only_0_is_in_reach(vim):
    assert solve_ratio(vim(192), (), 0.0, reduction_cost=None) == [197] * 24
    with pytest.raises(ScheduleError, match="after no block"):
        solve_ratio(vim(192), (), 0.1, reduction_cost=None)


@pytest.mark.parametrize("ratio", [1, 1.0, -0.1, float("nan"), float("inf"), "0.3", None, True])
def test_impossible_ratios_are_refused(vim, ratio):
    with pytest.raises(OptionError, match="ratio is the share of FLOPs"):
        solve_ratio(vim(192), (5, 10, 15), ratio, reduction_cost=None)


@pytest.mark.parametrize("max_share", [0, 1.1, -1, True, "half", float("nan")])
def test_impossible_shares_are_refused(vim, max_share):
    with pytest.raises(OptionError, match="max_share"):
        solve_ratio(vim(192), (5,), 0.1, reduction_cost=None, max_share=max_share)
    with pytest.raises(OptionError, match="max_share"):
        solve_removal(vim(192), (5,), 10, max_share=max_share)


def test_removal_is_capped_as_in_r_meeto(vim):
    seen = solve_removal(vim(384), EveryNth(2).layers(24), 20)
    assert seen[::2] == [197, 177, 157, 137, 117, 97, 77, 57, 37, 19, 10, 6]
    assert seen[-1] == seen[-2]


def test_removal_always_leaves_one_token_that_is_not_special(vim):
    assert solve_removal(vim(192), (5, 10), 500, max_share=1)[-1] == 2


@example(r=10**9, layers={1, 2, 3})
@given(r=st.integers(0, 250), layers=st.sets(st.integers(1, 23)))
@settings(deadline=None)
def test_removal_leaves_a_possible_schedule(vim, r, layers):
    assert check_schedule(solve_removal(vim(192), sorted(layers), r), vim(192), 0.5)


@pytest.mark.parametrize("r", [-1, 2.0, True, "5", None])
def test_impossible_removals_are_refused(vim, r):
    with pytest.raises(OptionError, match="r is the number of tokens"):
        solve_removal(vim(192), (5,), r)


def test_solving_takes_few_looks_at_the_cost(vim):
    """A bisection over the shares, not a search: it may happen in a forward pass, when a new length comes along."""
    looks, cost = [], bipartite_cost(384, 384)
    solve_ratio(vim(384, depth=64), range(1, 64), 0.3, reduction_cost=lambda *counts: looks.append(1) or cost(*counts))
    assert len(looks) < 63 * 50
