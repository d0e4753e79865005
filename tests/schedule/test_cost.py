"""Every FLOPs figure that R-MeeTo publishes, and what "all directions" adds."""

from dataclasses import replace

import pytest

from mtrkit.errors import OptionError, ScheduleError
from mtrkit.schedule import EveryNth, TransformerShape, bipartite_cost, model_flops, solve_ratio, solve_removal

EVEN = EveryNth(2).layers(24)
ODD = EveryNth(2, start=1).layers(24)


def merged(shape, layers, r, *, charged=True):
    """GFLOPs with r tokens merged after each of ``layers``."""
    cost = bipartite_cost(shape.dim, shape.dim) if charged else None
    return model_flops(shape, solve_removal(shape, layers, r), cost).gflops


@pytest.mark.parametrize(
    ("dim", "block", "one", "both"),
    [(192, 59.161, 1.4491, 1.823), (384, 209.100, 5.0769, 5.912), (768, 781.311, 18.8684, 20.887)],
)
def test_dense_models(vim, dim, block, one, both):
    assert vim(dim).block_flops(197) / 1e6 == pytest.approx(block, abs=5e-4)
    assert model_flops(vim(dim)).gflops == pytest.approx(one, abs=5e-5)
    assert model_flops(vim(dim), directions="all").gflops == pytest.approx(both, abs=5e-4)


@pytest.mark.parametrize(
    ("dim", "figures"),
    [
        (192, [1.2846, 1.0785, 1.0375, 0.9557, 0.8742, 0.6982]),
        (384, [4.4438, 3.7274, 3.5846, 3.2993, 3.0147, 2.3992]),
        (768, [16.3857, 13.7364, 13.2074, 12.1504, 11.0945, 8.8092]),
    ],
)
def test_merging_after_even_blocks(vim, dim, figures):
    counted = [merged(vim(dim), EVEN, r) for r in (5, 10, 11, 13, 15, 20)]
    assert counted == pytest.approx(figures, abs=5e-5)


@pytest.mark.parametrize(("dim", "r", "gflops"), [(192, 5, 1.2509), (384, 11, 3.5358), (768, 11, 13.1099)])
def test_merging_counted_as_free(vim, dim, r, gflops):
    assert merged(vim(dim), EVEN, r, charged=False) == pytest.approx(gflops, abs=5e-5)


@pytest.mark.parametrize(("dim", "r", "gflops"), [(192, 5, 1.2687), (384, 11, 3.4457)])
def test_merging_after_odd_blocks(vim, dim, r, gflops):
    assert merged(vim(dim), ODD, r) == pytest.approx(gflops, abs=5e-5)


@pytest.mark.parametrize(
    ("dim", "depth", "dense", "places", "end", "gflops"),
    [
        (192, 24, 11.54, 11, 601, 9.49),
        (384, 24, 40.43, 11, 601, 30.99),
        (576, 32, 115.33, 15, 249, 71.71),
    ],
)
def test_videos_of_8_frames(vim, dim, depth, dense, places, end, gflops):
    clip = vim(dim, depth=depth, tokens=1569, classes=400)
    layers = EveryNth(2).layers(depth)
    assert len(layers) == places
    assert solve_removal(clip, layers, 88)[-1] == end
    assert model_flops(clip).gflops == pytest.approx(dense, abs=5e-3)
    assert merged(clip, layers, 88) == pytest.approx(gflops, abs=5e-3)


def test_the_worked_check_of_vim_s_term_by_term(vim):
    report = model_flops(vim(384), solve_removal(vim(384), EVEN, 11), bipartite_cost(384, 384))
    assert sum(report.tokens) == 3276
    assert sum(report.blocks) / 1e9 == pytest.approx(3.47729, abs=5e-6)
    assert sum(report.reductions) / 1e9 == pytest.approx(0.04879, abs=5e-6)
    assert (report.embedding + report.head) / 1e9 == pytest.approx(0.05848, abs=5e-6)


def test_mamba_reg_s_carries_twelve_special_tokens(vim):
    assert model_flops(vim(384, tokens=208, special=12)).gflops == pytest.approx(5.360, abs=5e-4)


def test_bipartite_cost_written_out():
    assert bipartite_cost(64, 192)(10, 7) == 6 * 10 * 64 + 2 * 64 * 5**2 + 3 * 192


def test_reports_add_up(vim):
    shape = vim(192)
    dense = model_flops(shape)
    report = model_flops(shape, solve_removal(shape, EVEN, 5), bipartite_cost(192, 192))
    assert report.total == report.embedding + sum(report.blocks) + sum(report.reductions) + report.head
    assert report.tokens[:3] == (197, 197, 192)
    assert [i + 1 for i, flops in enumerate(report.reductions) if flops] == list(EVEN)
    assert report.ratio_to(dense) == pytest.approx(1 - 1.2846 / 1.4491, abs=1e-4)
    assert dense.ratio_to(dense) == 0
    assert str(report).startswith("1.2846 GFLOPs (one scan direction): 24 blocks")
    assert str(report).endswith("tokens 197 → 142")


def test_a_block_that_removes_nothing_is_not_charged(vim):
    assert model_flops(vim(192), [197] * 24, bipartite_cost(192, 192)) == model_flops(vim(192))


def test_a_hardware_count_of_one_direction_differs_only_in_the_embedding(vim):
    shape = replace(vim(192), directions=1)
    one, every = model_flops(shape), model_flops(shape, directions="all")
    assert one.blocks == every.blocks
    assert one.embedding - every.embedding == shape.patch_macs  # the class token is no patch


@pytest.mark.parametrize(
    ("field", "value"),
    [("depth", 0), ("dim", 1.5), ("inner", -1), ("directions", 3), ("special", 197), ("state", True)],
)
def test_impossible_shapes_are_refused(vim, field, value):
    with pytest.raises(OptionError, match=field):
        replace(vim(192), **{field: value})


def test_other_mistakes_are_named(vim):
    with pytest.raises(OptionError, match="'two'"):
        model_flops(vim(192), directions="two")
    with pytest.raises(ScheduleError, match="24 are needed, 2 were given"):
        model_flops(vim(192), [197, 190])


def test_deit_costs_what_its_paper_says():
    """DeiT-Ti / S / B: 1.3 / 4.6 / 17.6 GFLOPs (Touvron et al., arXiv:2012.12877)."""
    for dim, published in ((192, 1.3), (384, 4.6), (768, 17.6)):
        deit = TransformerShape(
            depth=12,
            dim=dim,
            hidden=4 * dim,
            tokens=197,
            special=1,
            patches=196,
            patch_macs=dim * 768,
            head_macs=dim * 1000,
        )
        assert round(model_flops(deit, directions="all").gflops, 1) == published


def test_a_ratio_is_solved_where_cost_is_quadratic():
    deit = TransformerShape(
        depth=12, dim=384, hidden=1536, tokens=197, special=1, patches=196, patch_macs=384 * 768, head_macs=384_000
    )
    schedule = solve_ratio(deit, (3, 6, 9), 0.35, reduction_cost=None)
    assert model_flops(deit, schedule).ratio_to(model_flops(deit)) == pytest.approx(0.35, abs=0.003)
