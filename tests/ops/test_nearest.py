"""The operators that match find what the plain operators find, on every code path."""

import pytest
import torch

from mtrkit.native import library as lib
from mtrkit.ops import match_nearest, pair_similarity
from mtrkit.scan.fastpath import matching_kernels
from mtrkit.scan.operators import cosines, nearest


@pytest.fixture(params=lib.LEVELS)
def level(request, monkeypatch):
    if lib.library().missing or lib.LEVELS.index(request.param) > lib.library().best_level:
        pytest.skip("not on this machine")
    monkeypatch.setattr(lib, "_level", lib.LEVELS.index(request.param))


def case(batch, length, sources, targets, width):
    metric = torch.randn(batch, length, width)
    order = torch.rand(batch, length).argsort(dim=1)
    src, dst = order[:, :sources].sort(dim=1).values, order[:, sources : sources + targets].sort(dim=1).values
    return metric, src, dst


@pytest.mark.parametrize(
    "sizes",
    [(3, 40, 12, 20, 24), (1, 2, 1, 1, 1), (2, 35, 17, 18, 33), (2, 9, 0, 3, 8), (0, 9, 3, 3, 8), (1, 99, 33, 65, 7)],
)
def test_finds_what_float64_finds(level, sizes):
    metric, src, dst = case(*sizes)
    assert torch.equal(nearest(metric, src, dst), match_nearest(metric.double(), src, dst))
    assert torch.equal(match_nearest(metric, src, dst), nearest(metric, src, dst))


def test_ties_go_to_the_first(level):
    metric, src, dst = case(2, 40, 8, 32, 16)
    metric[:] = metric[:, :4].repeat(1, 10, 1)  # every token ten times
    found = nearest(metric, src, dst)
    for sample in range(2):
        for source, target in zip(src[sample].tolist(), found[sample].tolist(), strict=True):
            same = [place for place in dst[sample].tolist() if place % 4 == source % 4]
            assert not same or target == min(same)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), 0.0])
def test_odd_numbers_stay_in_their_sample_and_decide_as_before(level, odd):
    metric, src, dst = case(3, 20, 8, 10, 16)
    clean = nearest(metric, src, dst)
    metric[1, 5] = odd
    found = nearest(metric, src, dst)
    assert torch.equal(found[[0, 2]], clean[[0, 2]])
    assert torch.equal(found, match_nearest(metric.double(), src, dst))


@pytest.mark.parametrize("width", [1, 7, 16, 24, 33])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e-14, 1e15])
def test_cosines_are_those_of_float64(level, width, scale):
    metric, a, b = case(3, 40, 20, 20, width)
    metric = metric * scale
    metric[0, 3] = 0.0
    expected = pair_similarity(metric.double(), a, b).float()
    torch.testing.assert_close(cosines(metric, a, b), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(cosines(metric, a, b), cosines(metric, b, a))
    assert torch.equal(cosines(metric, a, b), pair_similarity(metric, a, b))


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_odd_numbers_make_their_own_cosines_odd(level, odd):
    metric, a, b = case(3, 20, 8, 8, 16)
    metric[1, 5] = odd
    expected = pair_similarity(metric.double(), a, b).float()
    torch.testing.assert_close(cosines(metric, a, b), expected, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_threads_and_strides_change_nothing(level):
    metric, src, dst = case(5, 30, 10, 15, 12)
    expected = nearest(metric, src, dst)
    twice = torch.stack([metric, metric], dim=-1)[..., 0]
    torch.set_num_threads(1)
    assert torch.equal(nearest(twice, src.flip(0).flip(0), dst), expected)


def test_only_where_it_can():
    metric, src, dst = case(2, 20, 5, 8, 8)
    assert not matching_kernels(metric.double())
    assert not matching_kernels(metric.to("meta"))
    assert match_nearest(metric.to("meta"), src.to("meta"), dst.to("meta")).shape == (2, 5)


@pytest.mark.filterwarnings("ignore")
def test_is_a_well_formed_operator(level):
    metric, src, dst = case(2, 20, 5, 8, 8)
    for sources in (src, src.T.contiguous().T):
        torch.library.opcheck(torch.ops.mtrkit.nearest.default, (metric, sources, dst))
    torch.library.opcheck(torch.ops.mtrkit.cosines.default, case(2, 20, 8, 8, 8))
