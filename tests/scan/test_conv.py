"""Every registered convolution against the reference: values and every gradient, on every code path."""

import pytest
import torch

from mtrkit.scan import causal_conv1d
from mtrkit.scan.reference import causal_conv1d_reference
from tests.helpers.tolerances import SCAN_GRADIENTS, SCAN_VALUES, rms_error


def check(way, x, weight, bias, dtype=torch.float32, **options):
    x = x.to(dtype)
    ours = [t.detach().to(way.device).requires_grad_() for t in (x, weight, bias) if t is not None]
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias) if t is not None]
    y = causal_conv1d(*ours, **options, backend=way.backend)
    flat = [exact[0], exact[1].reshape(weight.shape[0], -1), exact[2] if bias is not None else None]
    expected = causal_conv1d_reference(*flat, options.get("silu", True), options.get("reverse", False))
    assert (y.dtype, y.shape) == (dtype, x.shape)
    assert rms_error(y, expected) < SCAN_VALUES[dtype]
    grad = torch.randn(y.shape).to(dtype)
    wanted = torch.autograd.grad(expected, exact, grad.double())
    for got, right in zip(torch.autograd.grad(y, ours, grad.to(way.device)), wanted, strict=True):
        assert rms_error(got, right) < SCAN_GRADIENTS[dtype]


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("length", [1, 2, 3, 16, 63, 197])
def test_lengths(way, length, reverse, channels_last):
    x = torch.randn(2, length, 80).transpose(1, 2)[:, :40]
    x = x if channels_last else x.contiguous()
    check(way, x, torch.randn(40, 1, 4), torch.randn(40), reverse=reverse)


@pytest.mark.parametrize("width", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("silu", [False, True])
def test_widths(way, width, silu):
    check(way, torch.randn(2, 17, 19).transpose(1, 2), torch.randn(19, width), None, silu=silu, reverse=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(way, dtype):
    weight = torch.randn(24, 4, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    check(way, torch.randn(2, 33, 24).transpose(1, 2), weight, weight[:, 0].contiguous(), dtype)


def test_reference_is_torchs_convolution():
    """The truth itself, against a direct sum over the tokens in sight."""
    x, weight = torch.randn(1, 3, 6, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    for reverse in (False, True):
        y = causal_conv1d_reference(x, weight, None, False, reverse)
        for t in range(6):
            seen = [(k, t + 3 - k if reverse else t - 3 + k) for k in range(4)]
            direct = sum(weight[:, k] * x[0, :, s] for k, s in seen if 0 <= s < 6)
            torch.testing.assert_close(y[0, :, t], direct)


def test_gradcheck(path):
    x, weight = (torch.randn(2, 3, n, dtype=torch.float64, requires_grad=True) for n in (5, 4))
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    for reverse in (False, True):
        assert torch.autograd.gradcheck(
            lambda *t, r=reverse: causal_conv1d(*t, reverse=r, backend="native"),
            (x, weight[0].detach(), bias),
        )
