"""The correction's closed form against least squares by hand, and where it is added."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrkit.calibration.correction import Folds, Moments
from mtrkit.ops import correct_stream, open_stream
from mtrkit.types import Correction


def pairs(count=200, dim=12, rank=3, noise=0.0):
    """Features x, and y = x + x·A + c for a matrix A of low rank."""
    x = torch.randn(count, 1, dim, dtype=torch.float64) + 2
    low = torch.randn(dim, rank, dtype=torch.float64) @ torch.randn(rank, dim, dtype=torch.float64)
    y = x + x @ low + torch.randn(dim, dtype=torch.float64)
    return x, y + noise * torch.randn_like(y)


def test_an_affine_difference_of_low_rank_is_found():
    x, y = pairs()
    found = Moments.of(x, y).fit(damping=1e-12)
    torch.testing.assert_close(x + found.of(x), y, rtol=1e-6, atol=1e-6)


def test_the_rank_keeps_most_of_what_is_predicted():
    """The best approximation of the fitted values is their truncated SVD (Eckart–Young)."""
    x, y = pairs(rank=12, noise=1.0)
    found = Moments.of(x, y).fit(damping=1e-12)
    centred, missing = (z.flatten(0, 1) - z.flatten(0, 1).mean(dim=0) for z in (x, y - x))
    fitted = centred @ torch.linalg.lstsq(centred, missing).solution
    u, s, v = torch.linalg.svd(fitted, full_matrices=False)
    rank = found.up.shape[0]
    assert rank == 8
    torch.testing.assert_close(centred @ found.down @ found.up, u[:, :rank] * s[:rank] @ v[:rank], rtol=1e-6, atol=1e-6)


@given(damping=st.sampled_from([0.01, 1.0, 10.0]), split=st.integers(20, 180))
@settings(deadline=None)
def test_the_error_is_that_of_the_corrected_features(damping, split):
    x, y = pairs(noise=0.5)
    found = Moments.of(x[:split], y[:split]).fit(damping)
    rest = Moments.of(x, y) - Moments.of(x[:split], y[:split])
    plain = ((y - x - found.of(x))[split:] ** 2).sum() - ((y - x)[split:] ** 2).sum()
    assert rest.error(found) == pytest.approx(plain.item(), rel=1e-8)


def test_the_damping_is_the_one_that_foresees_best():
    """With more noise than samples can average out, a strong one; without noise, the weakest."""
    for noise, expected in ((0.0, 0.01), (300.0, 10.0)):
        x, y = pairs(count=60, noise=noise)
        folds = Folds()
        for some, others in zip(x.split(20), y.split(20), strict=True):
            folds.add(some, others)
        found, wanted = folds.fit(), Moments.of(x, y).fit(expected)
        torch.testing.assert_close(found.of(x.float()), wanted.of(x).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("special", [(), (2,), (0, 4)])
@pytest.mark.parametrize("has_hidden", [True, False])
def test_only_what_the_head_reads_is_corrected(special, has_hidden):
    torch.manual_seed(0)
    residual, other = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    correction = Correction(torch.randn(8, 2), torch.randn(2, 8), torch.randn(8))
    hidden = other if has_hidden else None
    slots = torch.tensor(special, dtype=torch.long).expand(3, -1)
    found = correct_stream(hidden, open_stream(residual), correction, slots).residual
    features = residual + other if has_hidden else residual
    wanted = residual.clone()
    for token in special or range(5):
        wanted[:, token] += features[:, token] @ correction.down @ correction.up + correction.bias
    torch.testing.assert_close(found, wanted)
