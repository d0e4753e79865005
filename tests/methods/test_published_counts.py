"""Token counts and FLOPs that the papers publish, by the methods' own cost."""

from functools import partial

import pytest

import mtrkit
from mtrkit.methods import METHODS, Widths
from mtrkit.schedule import EveryNth, model_flops, reduction_ratio, solve_removal

EVEN, ODD = EveryNth(2), EveryNth(2, start=1)


def gflops(shape, method, schedule, **options):
    """Of a reduced model, as papers count."""
    config = METHODS.get(method).configure(options)
    cost = partial(config.flops, widths=Widths(shape.dim, shape.inner, shape.state))
    return model_flops(shape, schedule, cost).gflops


def removing(shape, r, placement=EVEN):
    """The schedule of r tokens less at each place, by what R-MeeTo may remove."""
    return solve_removal(shape, placement.layers(shape.depth), r, METHODS.get("rmeeto").max_share)


@pytest.mark.parametrize("method", ["rmeeto", "tome", "pumer"])
@pytest.mark.parametrize(
    ("dim", "figures"),
    [
        (192, [1.2846, 1.0785, 1.0375, 0.9557, 0.8742, 0.6982]),
        (384, [4.4438, 3.7274, 3.5846, 3.2993, 3.0147, 2.3992]),
        (768, [16.3857, 13.7364, 13.2074, 12.1504, 11.0945, 8.8092]),
    ],
)
def test_r_meeto_after_even_blocks(vim, method, dim, figures):
    shape = vim(dim)
    counted = [gflops(shape, method, removing(shape, r)) for r in (5, 10, 11, 13, 15, 20)]
    assert [f"{value:.4f}" for value in counted] == [f"{value:.4f}" for value in figures]


@pytest.mark.parametrize(("dim", "r", "figure"), [(192, 5, 1.2687), (384, 11, 3.4457)])
def test_r_meeto_after_odd_blocks(vim, dim, r, figure):
    shape = vim(dim)
    assert gflops(shape, "rmeeto", removing(shape, r, ODD)) == pytest.approx(figure, abs=5e-5)


def test_r_meetos_table_of_r(vim):
    """Table 10: tokens at the end, and the share of tokens that blocks do not see."""
    schedules = {r: removing(vim(384), r) for r in (5, 10, 11, 13, 15, 20)}
    assert [schedule[-1] for schedule in schedules.values()] == [142, 87, 76, 54, 32, 6]
    ratios = [round(reduction_ratio(schedule, vim(384)), 4) for schedule in schedules.values()]
    assert ratios == [0.1396, 0.2792, 0.3071, 0.3629, 0.4188, 0.5398]
    assert sorted(set(schedules[20]), reverse=True) == [197, 177, 157, 137, 117, 97, 77, 57, 37, 19, 10, 6]


@pytest.mark.parametrize(
    ("dim", "depth", "end", "figure"), [(192, 24, 601, 9.49), (384, 24, 601, 30.99), (576, 32, 249, 71.71)]
)
def test_r_meeto_on_clips(vim, dim, depth, end, figure):
    shape = vim(dim, depth, tokens=1569, classes=400)
    schedule = removing(shape, 88)
    assert schedule[-1] == end
    assert gflops(shape, "rmeeto", schedule) == pytest.approx(figure, abs=5e-3)


@pytest.mark.parametrize(("metric", "width"), [("X", 384), ("B", 16), ("C", 16), ("delta", 768), ("y", 768)])
def test_a_narrow_metric_is_matched_for_less(vim, metric, width):
    shape = vim(384)
    free = model_flops(shape, removing(shape, 11)).gflops
    matching = sum(6 * n * width + width * n * n // 2 + 11 * 384 for n in range(197, 86, -11)) / 1e9
    assert gflops(shape, "rmeeto", removing(shape, 11), metric=metric) == pytest.approx(free + matching, abs=1e-9)


@pytest.mark.parametrize(("dim", "figure"), [(384, 3.565), (192, 1.021)])
def test_hsa_as_released(vim, dim, figure):
    """After blocks 5, 10 and 15 a fifth of the patches goes, an even number stays."""
    schedule = [197] * 4 + [157] * 5 + [125] * 5 + [101] * 10
    assert gflops(vim(dim), "hsa", schedule) == pytest.approx(figure, abs=1e-3)


def test_neighbours_cost_what_a_token_costs():
    config = METHODS.get("neighbor").configure({})
    widths = Widths(192, 384, 16)
    assert config.flops(2000, 1000, widths) == 10 * config.flops(200, 100, widths)


@pytest.mark.parametrize(("r", "end", "figure"), [(5, 142, 1.2846), (11, 76, 1.0375)])
def test_a_real_model_gets_the_published_plan(r, end, figure):
    model = mtrkit.create_model("vim_tiny_patch16_224")
    info = mtrkit.reduction_info(mtrkit.apply_reduction(model, "rmeeto", r=r, layers=EVEN))
    assert info.layers == tuple(range(2, 23, 2))
    assert info.tokens[-1] == end
    assert info.flops_dense.gflops == pytest.approx(1.4491, abs=5e-5)
    assert info.flops_reduced.gflops == pytest.approx(figure, abs=5e-5)
