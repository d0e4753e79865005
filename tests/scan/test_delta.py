"""Δ on its own, where a method reads it: equal to torch's softplus, gradients included, in every layout."""

import pytest
import torch
import torch.nn.functional as F

from mtrkit.scan.dispatch import BACKENDS
from mtrkit.scan.operators import delta_softplus

ERROR = {
    torch.float32: 2e-6,
    torch.bfloat16: 1e-2,
    torch.float16: 1e-3,
    torch.float64: 1e-12,
}  # roundings; float32: also that of the exponent


@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize(("batch", "channels", "length"), [(2, 16, 16), (3, 35, 19), (1, 1, 1), (0, 16, 4)])
@pytest.mark.parametrize("channels_last", [True, False])
def test_equals_torch(way, batch, channels, length, channels_last, dtype):
    shape = (batch, length, channels) if channels_last else (batch, channels, length)
    x, bias = 5 * torch.randn(shape), torch.randn(channels) - 4
    delta = (x.transpose(1, 2) if channels_last else x).to(dtype)
    softplus, given = BACKENDS.get(way.backend).softplus, bias.to(dtype) if dtype == torch.float64 else bias
    found = softplus(delta.to(way.device), given.to(way.device)).cpu()
    shifted = delta + bias.to(torch.promote_types(dtype, torch.float32))[:, None]
    wanted = F.softplus(shifted.double())
    assert found.dtype == dtype and found.shape == delta.shape
    torch.testing.assert_close(
        found.double(), wanted, rtol=ERROR[dtype], atol=1e-7 if dtype == torch.float16 else 1e-30
    )


def test_without_a_bias(way):
    delta = torch.randn(2, 5, 3, device=way.device)
    found = BACKENDS.get(way.backend).softplus(delta, None)
    torch.testing.assert_close(found, F.softplus(delta), rtol=2e-6, atol=1e-30)


def test_gradients():
    delta = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(delta_softplus, (delta, bias))


@pytest.mark.filterwarnings("ignore")  # opcheck reads .grad of what it has copied
def test_is_a_well_formed_operator(path):
    torch.library.opcheck(delta_softplus, (torch.randn(2, 5, 3, requires_grad=True), torch.randn(5)))
