"""Derivatives that are not backward passes: forward mode, torch.func, vmap. Right, or refused; never silently zero."""

import pytest
import torch
from torch.autograd import forward_ad

from mtrkit.errors import BackendError
from mtrkit.scan import causal_conv1d, selective_scan, use_scan_backend
from tests.scan.inputs import make_inputs

pytestmark = pytest.mark.filterwarnings("ignore")  # torch compiles its own derivative formulas


def scan(*tensors, backend="auto"):
    """The public scan with softplus."""
    return selective_scan(*tensors, delta_softplus=True, backend=backend)


@pytest.fixture
def inputs():
    return tuple(t.double() for t in make_inputs(2, 6, 7, 4))


def test_jvp_equals_a_backward_pass(inputs):
    tangents = tuple(torch.randn_like(t) for t in inputs)
    y, slope = torch.func.jvp(scan, inputs, tangents)
    leaves = [t.clone().requires_grad_() for t in inputs]
    covector = torch.randn_like(y)
    grads = torch.autograd.grad((scan(*leaves) * covector).sum(), leaves)
    wanted = sum((g * t).sum() for g, t in zip(grads, tangents, strict=True))
    torch.testing.assert_close((slope * covector).sum(), wanted)


def test_dual_numbers_keep_their_tangents_without_gradients(inputs):
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(inputs[0], torch.ones_like(inputs[0]))
        assert forward_ad.unpack_dual(scan(dual, *inputs[1:])).tangent.abs().sum() > 0
        weight = torch.randn(6, 4, dtype=torch.float64)
        assert forward_ad.unpack_dual(causal_conv1d(dual, weight)).tangent.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grad_and_vmap(inputs, dtype):
    inputs = tuple(t.to(dtype) for t in inputs)
    found = torch.func.grad(lambda u: scan(u, *inputs[1:]).square().sum())(inputs[0])
    leaf = inputs[0].clone().requires_grad_()
    (wanted,) = torch.autograd.grad(scan(leaf, *inputs[1:]).square().sum(), leaf)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    u, delta, A, B, C, D, z, bias = inputs

    def one(u, delta, B, C, z):
        return scan(u[None], delta[None], A, B[None], C[None], D, z[None], bias)[0]

    torch.testing.assert_close(torch.func.vmap(one)(u, delta, B, C, z), scan(*inputs), rtol=1e-4, atol=1e-4)


def test_a_backend_that_cannot_is_refused(inputs):
    def call(u):
        return scan(u, *inputs[1:], backend="native")

    with pytest.raises(BackendError, match="backward passes only"):
        torch.func.jvp(call, inputs[:1], inputs[:1])
    with use_scan_backend("native"), pytest.raises(BackendError, match='use backend="auto"'):
        torch.func.grad(lambda u: scan(u, *inputs[1:]).sum())(inputs[0])
