"""The scan as standard operators against the float64 reference: any length, both directions, groups, the last state."""

import pytest
import torch

from mtrkit.ops import merge_tokens, token_map
from mtrkit.scan import causal_conv1d, selective_scan, use_scan_backend
from mtrkit.scan.runs import write_out
from mtrkit.types import Runs
from tests.helpers.tolerances import SCAN_VALUES, rms_error

FORMS = ["chunks", "operator"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("length", "groups"), [(1, 1), (2, 2), (16, 1), (17, 3), (50, 1)])
def test_scan(form, reverse, length, groups):
    generator = torch.Generator().manual_seed(length)
    u, delta, z = (torch.randn(2, 6, length, generator=generator) for _ in range(3))
    B, C = (torch.randn(2, groups, 4, length, generator=generator) for _ in range(2))
    A, D, bias = -torch.rand(6, 4, generator=generator) * 20, torch.randn(6), torch.randn(6)
    given = (u, delta, A, B, C, D, z, bias)
    with use_scan_backend(form):
        found = selective_scan(*given, delta_softplus=True, return_last_state=True, reverse=reverse)
    exact = [x.double() for x in given]
    with use_scan_backend("reference"):
        wanted = selective_scan(*exact, delta_softplus=True, return_last_state=True, reverse=reverse)
    for ours, right in zip(found, wanted, strict=True):
        assert rms_error(ours, right) < SCAN_VALUES[torch.float32]


@pytest.mark.parametrize("reverse", [False, True])
def test_convolution(reverse):
    x, weight, bias = torch.randn(2, 6, 9), torch.randn(6, 4), torch.randn(6)
    with use_scan_backend("chunks"):
        found = causal_conv1d(x, weight, bias, reverse=reverse)
    torch.testing.assert_close(found, causal_conv1d(x, weight, bias, reverse=reverse))


def test_runs_and_merges():
    runs = Runs(torch.tensor([[2, 1, 3], [1, 4, 1]]), 6)
    tokens, places = (
        torch.randn(2, 5, 3),
        token_map(5, torch.tensor([[0, 2, 4]] * 2), *torch.tensor([[[1]] * 2, [[2]] * 2])),
    )
    written, merged = write_out(runs), merge_tokens(tokens, places)
    with use_scan_backend("chunks"):
        again = write_out(runs)
        assert all(torch.equal(a, b) for a, b in zip(again, written, strict=True))
        x = torch.randn(2, 3, 6)
        found = again.average(x)
        torch.testing.assert_close(merge_tokens(tokens, places), merged)
    torch.testing.assert_close(found, written.average(x))
