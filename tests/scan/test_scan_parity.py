"""Every registered scan against the float64 reference: values, last state and every gradient, on every code path."""

import pytest
import torch

from mtrkit.scan import selective_scan
from mtrkit.scan.dispatch import BACKENDS
from tests.helpers.tolerances import SCAN_GRADIENTS, SCAN_VALUES, rms_error
from tests.scan.inputs import cast, leaves, make_inputs, on, present, scan, truth

SHAPES = [
    # batch, channels, length, states
    (1, 1, 1, 1),
    (2, 16, 2, 4),
    (1, 40, 3, 16),
    (2, 24, 63, 8),
    (1, 33, 100, 20),
    (2, 128, 197, 16),
    (3, 80, 16, 16),
    (2, 7, 32, 17),
]


def check(way, inputs, dtype=torch.float32, softplus=True, reverse=False):
    """Compare output, state and gradients with float64, for random gradients of both results."""
    if BACKENDS.get(way.backend).refuses(way.device, dtype):
        pytest.skip(f"{way.backend} takes no {dtype}")
    inputs = cast(inputs, dtype)
    ours, exact = leaves(inputs, device=way.device), leaves(inputs, torch.float64)
    y, last = scan(*ours, softplus, reverse, backend=way.backend)
    expected, expected_last = truth(exact, softplus, reverse)
    assert (y.dtype, y.shape) == (dtype, inputs.u.shape)
    assert rms_error(y, expected) < SCAN_VALUES[dtype]
    assert rms_error(last, expected_last) < SCAN_VALUES[dtype]
    with torch.no_grad():  # nothing is kept for a backward pass here: another branch of the kernel
        assert torch.equal(scan(*ours, softplus, reverse, backend=way.backend)[0], y)
    grad_y, grad_last = torch.randn(y.shape).to(dtype), torch.randn(last.shape, dtype=last.dtype)
    given = (grad_y.to(way.device), grad_last.to(way.device))
    grads = torch.autograd.grad((y, last), present(ours), given)
    wanted = torch.autograd.grad((expected, expected_last), present(exact), (grad_y.double(), grad_last.double()))
    names = [name for name, t in ours._asdict().items() if t is not None]
    for name, grad, right in zip(names, grads, wanted, strict=True):
        assert rms_error(grad, right) < SCAN_GRADIENTS[dtype], name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_shapes_and_directions(way, shape, reverse):
    check(way, make_inputs(*shape), reverse=reverse)


@pytest.mark.parametrize("shape", [(2, 24, 63, 8), (1, 33, 17, 16)], ids=str)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_tokens_as_neighbours_in_memory(way, shape, reverse):
    check(way, make_inputs(*shape, channels_last=False), reverse=reverse)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("channels_last", [True, False])
def test_dtypes(way, dtype, channels_last):
    check(way, make_inputs(2, 40, 37, 16, channels_last=channels_last), dtype)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_groups(way, groups, channels_last):
    check(way, make_inputs(2, 72, 21, 5, groups=groups, channels_last=channels_last))


def test_bare_scan_without_skip_gate_bias_and_softplus(way):
    inputs = make_inputs(2, 24, 50, 16, bare=True)
    check(way, inputs._replace(delta=inputs.delta.abs() * 0.1), softplus=False)


@pytest.mark.parametrize("absent", ["D", "z", "delta_bias"])
def test_each_optional_input_may_be_absent(way, absent):
    check(way, make_inputs(2, 20, 18, 16)._replace(**{absent: None}))


def test_many_channel_blocks_and_strided_everything(way):
    wide = make_inputs(2, 300, 70, 16)
    check(
        way,
        wide._replace(
            u=wide.u[:, ::2],
            delta=wide.delta[:, ::2],
            z=wide.z[:, ::2],
            A=wide.A[::2],
            D=wide.D[::2],
            delta_bias=wide.delta_bias[::2],
        ),
    )


def test_constant_B_and_C(way):
    inputs = make_inputs(2, 12, 9, 4)
    B, C = torch.randn(12, 4), torch.randn(12, 4)
    given = on(way.device, inputs._replace(B=B, C=C))
    y = selective_scan(*given, delta_softplus=True, backend=way.backend)
    spread = [t[None, :, :, None].expand(2, 12, 4, 9) for t in (B, C)]
    expected, _ = truth(inputs._replace(B=spread[0], C=spread[1]))
    assert rms_error(y, expected) < SCAN_VALUES[torch.float32]


def test_gradients_are_there_even_if_no_state_was_kept(path):
    ours = leaves(make_inputs(2, 24, 40, 16))
    y, _, none = torch.ops.mtrkit.selective_scan(*_grouped(ours), True, False, False)
    assert none.numel() == 0
    kept, _, _ = torch.ops.mtrkit.selective_scan(*_grouped(ours), True, False, True)
    for a, b in zip(*(torch.autograd.grad(t.sum(), ours) for t in (y, kept)), strict=True):
        assert torch.equal(a, b)


def test_gradcheck_of_torch_operations():
    ours = leaves(cast(make_inputs(1, 4, 5, 3), torch.float64))
    assert torch.autograd.gradcheck(lambda *t: scan(*t, True, False, backend="native"), tuple(ours))
    assert torch.autograd.gradcheck(lambda *t: scan(*t, True, True, backend="reference"), tuple(ours))


def test_long_sequence_keeps_its_accuracy(way):
    """Decays close to 1 over thousands of tokens: a biased exponential would show."""
    inputs = make_inputs(1, 16, 3000, 4)
    slow = inputs._replace(A=inputs.A * 1e-3, delta_bias=inputs.delta_bias - 2)
    y, _ = scan(*on(way.device, slow), True, backend=way.backend)
    assert rms_error(y, truth(slow)[0]) < 5 * SCAN_VALUES[torch.float32]


def _grouped(inputs):
    return inputs._replace(B=inputs.B.unsqueeze(1), C=inputs.C.unsqueeze(1))
