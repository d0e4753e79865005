"""Every function of the stand-ins gives what plain float64 loops give, values and gradients."""

import inspect

import pytest
import torch

import mtrkit
from mtrkit.standin import conv, extensions, norms, scan, state
from mtrkit.standin.mamba import Mamba
from tests.helpers.tolerances import SCAN_GRADIENTS, SCAN_VALUES, rms_error
from tests.standin import plain
from tests.standins.language import plain_mixer

BATCH, WIDTH, CHANNELS, STATES, RANK, LENGTH = 2, 5, 6, 3, 2, 9
EXACT, EXACT_GRADIENT = SCAN_VALUES[torch.float64], SCAN_GRADIENTS[torch.float64]


def tensors(*shapes, seed=0):
    """Leaves in float64."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def gradients(output, leaves, seed=3):
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed), dtype=output.dtype)
    return torch.autograd.grad(output, leaves, weight, retain_graph=True)


def assert_same(ours, plainly, leaves):
    """The same values, and the same gradients of all leaves."""
    assert rms_error(ours.detach(), plainly.detach()) < EXACT
    for found, wanted in zip(gradients(ours, leaves), gradients(plainly, leaves), strict=True):
        assert wanted.norm() > 0 and rms_error(found, wanted) < EXACT_GRADIENT


def scan_inputs(groups=2):
    u, delta, A, B, C, D, z, bias = tensors(
        *[(BATCH, CHANNELS, LENGTH)] * 2,
        (CHANNELS, STATES),
        *[(BATCH, groups, STATES, LENGTH)] * 2,
        *[(CHANNELS,), (BATCH, CHANNELS, LENGTH), (CHANNELS,)],
    )
    return u, delta, (-A.detach().abs() - 0.1).requires_grad_(), B, C, D, z, bias


def inner_inputs():
    xz, conv_weight, conv_bias, x_proj, dt_proj, out, out_bias, A, D, bias = tensors(
        (BATCH, 2 * CHANNELS, LENGTH),
        *[(CHANNELS, 1, 4), (CHANNELS,), (RANK + 2 * STATES, CHANNELS), (CHANNELS, RANK)],
        *[(WIDTH, CHANNELS), (WIDTH,), (CHANNELS, STATES), (CHANNELS,), (CHANNELS,)],
    )
    return (
        xz,
        conv_weight,
        conv_bias,
        x_proj,
        dt_proj,
        out,
        out_bias,
        (-A.detach().abs() - 0.1).requires_grad_(),
        D,
        bias,
    )


@pytest.mark.parametrize("function", [scan.selective_scan_fn, scan.selective_scan_ref])
def test_scan(function):
    leaves = scan_inputs()
    _, wanted, final = plain.scan(*leaves, softplus=True)
    ours, last = function(*leaves, True, True)
    assert_same(ours, wanted, leaves)
    assert rms_error(last.detach(), final.detach()) < EXACT
    u, delta, A, B, C, *_ = leaves
    assert_same(function(u, delta, A, B[:, 0], C[:, 0]), plain.scan(u, delta, A, B[:, :1], C[:, :1])[1], (u, delta, A))


@pytest.mark.parametrize("optional", [True, False])
def test_scan_token_by_token(optional):
    u, delta, A, B, C, D, z, bias = scan_inputs(groups=1)
    D, z, bias = (D, z, bias) if optional else (None, None, None)
    _, wanted, last = plain.scan(u, delta, A, B, C, D, z, bias, optional)
    memory, steps = torch.zeros(BATCH, CHANNELS, STATES, dtype=torch.float64), []
    for t in range(LENGTH):
        gate = None if z is None else z[..., t]
        given = (u[..., t], delta[..., t], A, B[:, 0, :, t], C[:, 0, :, t], D, gate, bias, optional)
        steps.append(state.selective_state_update(memory, *given).detach())
    assert rms_error(torch.stack(steps, dim=2), wanted.detach()) < EXACT
    assert rms_error(memory, last.detach()) < EXACT
    with pytest.raises(mtrkit.InputError, match="as in Mamba-1"):
        state.selective_state_update(memory[None], *given)
    with pytest.raises(mtrkit.InputError, match="B has shape"):
        state.selective_state_update(memory, *given[:3], B[:, :, :, 0], *given[4:])


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
def test_convolution(activation):
    leaves = tensors((BATCH, CHANNELS, LENGTH), (CHANNELS, 4), (CHANNELS,))
    wanted = plain.conv(*leaves, silu=activation is not None)
    assert_same(conv.causal_conv1d_fn(*leaves, activation=activation), wanted, leaves)
    assert_same(conv.causal_conv1d_fn(*leaves, activation), wanted, leaves)  # as releases before 1.1 took it


def test_convolution_with_states():
    x, weight, bias, before = leaves = tensors((BATCH, CHANNELS, 2), (CHANNELS, 4), (CHANNELS,), (BATCH, CHANNELS, 3))
    place = torch.zeros(BATCH, CHANNELS, 3, dtype=torch.float64)
    ours, final = conv.causal_conv1d_fn(x, weight, bias, None, before, True, place)
    assert_same(ours, plain.conv(x, weight, bias, silu=False, before=before), leaves)
    assert final is place and torch.equal(final, torch.cat([before[..., 2:], x], dim=2))
    assert torch.equal(conv.causal_conv1d_fn(x, weight, return_final_states=True)[1][..., 1:], x)


def test_packed_sequences():
    leaves = tensors((BATCH, CHANNELS, LENGTH), (CHANNELS, 4), (CHANNELS,))
    names = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2], [0] * LENGTH], dtype=torch.int32)
    wanted = plain.conv(*leaves, names=names)
    assert_same(conv.causal_conv1d_fn(*leaves, seq_idx=names, activation="silu"), wanted, leaves)
    with pytest.raises(mtrkit.OptionError, match="seq_idx came with"):
        conv.causal_conv1d_fn(*leaves, seq_idx=names, return_final_states=True)


@pytest.mark.parametrize("kept", [3, 4, 6])
@torch.no_grad()
def test_convolution_token_by_token(kept):
    x, weight, bias = tensors((BATCH, CHANNELS, LENGTH), (CHANNELS, 4), (CHANNELS,))
    seen = torch.zeros(BATCH, CHANNELS, kept, dtype=torch.float64)
    steps = [conv.causal_conv1d_update(x[..., t], seen, weight, bias, "silu") for t in range(7)]
    steps += list(conv.causal_conv1d_update(x[..., 7:], seen, weight, bias, "silu").unbind(2))
    assert rms_error(torch.stack(steps, dim=2), plain.conv(x, weight, bias)) < EXACT
    assert torch.equal(seen, x[..., -kept:])
    with pytest.raises(mtrkit.OptionError, match="cache_seqlens"):
        conv.causal_conv1d_update(x[..., 0], seen, weight, cache_seqlens=torch.zeros(BATCH))
    with pytest.raises(mtrkit.InputError, match="conv_state has shape"):
        conv.causal_conv1d_update(x[..., 0], seen[..., :2], weight)


@pytest.mark.parametrize("function", [scan.mamba_inner_fn, scan.mamba_inner_ref])
def test_fused_mixer(function):
    xz, conv_weight, conv_bias, x_proj, dt_proj, out, out_bias, A, D, bias = leaves = inner_inputs()
    B_bias, C_bias = biases = tensors((STATES,), (STATES,), seed=1)
    y, _ = plain.inner(xz, conv_weight, conv_bias, x_proj, dt_proj, A, D, bias, None, None, B_bias, C_bias)
    ours = function(*leaves[:8], None, None, D, bias, B_bias, C_bias, True)
    assert_same(ours, torch.einsum("de,bel->bld", out, y) + out_bias, (*leaves, *biases))


def test_fused_mixer_without_projection():
    *before, out, out_bias, A, D, bias = inner_inputs()
    B, C = tensors(*[(BATCH, 1, STATES, LENGTH)] * 2, seed=1)
    for given in ((None, None), (B, C)):
        y, _ = plain.inner(*before, A, D, bias, *given)
        used = [*before, A, D, bias, *(x for x in given if x is not None)]
        ours = scan.mamba_inner_fn_no_out_proj(*before, A, *given, D, delta_bias=bias, delta_softplus=True)
        assert_same(ours, y, used)
    with pytest.raises(mtrkit.InputError, match="x_proj_weight has 7 rows"):
        scan.mamba_inner_fn_no_out_proj(*before[:3], before[3][:7], before[4], A)


def test_fused_mixer_in_two_directions():
    xz, conv_weight, conv_bias, x_proj, dt_proj, out, out_bias, A, D, bias = leaves = inner_inputs()
    A_b = (A.detach() * 1.5).requires_grad_()
    y, shared = plain.inner(xz, conv_weight, conv_bias, x_proj, dt_proj, A, D, bias)
    u, delta, B, C, z = (x.flip(-1) for x in shared)
    y = y + plain.scan(u, delta, A_b, B, C, D, z, bias, True)[1].flip(-1)
    ours = scan.bimamba_inner_fn(*leaves[:8], A_b, None, None, D, bias)
    assert_same(ours, torch.einsum("de,bel->bld", out, y) + out_bias, (*leaves, A_b))


@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("rms", [True, False])
def test_norms(rms, with_residual):
    x, weight, bias, residual = tensors((2, 3, WIDTH), (WIDTH,), (WIDTH,), (2, 3, WIDTH))
    other, leaves = (residual, [x, weight, bias, residual]) if with_residual else (None, [x, weight, bias])
    wanted, total = plain.norm(x, weight, bias, other, 1e-5, rms)
    late, early = (
        (norms.rms_norm_fn, norms.early_rms_norm_fn) if rms else (norms.layer_norm_fn, norms.early_layer_norm_fn)
    )
    for function in (late, early):
        ours, kept = function(x, weight, bias, residual=other, eps=1e-5, prenorm=True)
        assert_same(ours, wanted, leaves)
        assert torch.equal(kept, total)
        assert torch.equal(function(x, weight, bias, other, eps=1e-5), ours)
    if rms:
        module = norms.RMSNorm(WIDTH, eps=1e-5, dtype=torch.float64)
        assert list(module.state_dict()) == ["weight"] and module.bias is None
        assert rms_error(module(x, other).detach(), plain.norm(x, 1.0, None, other, 1e-5, True)[0].detach()) < EXACT


def test_norms_sum_in_float32():
    x, residual, weight = torch.randn(2, WIDTH, dtype=torch.bfloat16), torch.randn(2, WIDTH), torch.ones(WIDTH)
    y, total = norms.rms_norm_fn(x, weight, None, residual, prenorm=True)
    assert y.dtype == torch.bfloat16 and torch.equal(total, x.float() + residual)
    assert norms.rms_norm_fn(x, weight, None, prenorm=True)[1].dtype == torch.bfloat16
    assert norms.rms_norm_fn(x, weight, None, prenorm=True, residual_in_fp32=True)[1].dtype == torch.float32
    low = norms.rms_norm_fn(x, weight, None, residual.bfloat16(), prenorm=True, residual_in_fp32=True)[1]
    assert low.dtype == torch.bfloat16
    with pytest.raises(mtrkit.OptionError, match="without dropout_p"):
        norms.layer_norm_fn(x, weight, None, dropout_p=0.1)
    with pytest.raises(mtrkit.InputError, match="residual has shape"):
        norms.layer_norm_fn(x, weight, None, residual[:1])


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("optional", [True, False])
def test_scan_extension(gate, optional):
    u, delta, A, B, C, D, z, bias = scan_inputs()
    D, bias, z = D if optional else None, bias if optional else None, z if gate else None
    inputs = (u, delta, A, B, C, D, z, bias)
    ungated, wanted, final = plain.scan(*inputs, softplus=True)
    out, states, *gated = extensions.scan_forward(*(x if x is None else x.detach() for x in inputs), True)
    assert rms_error(out, ungated.detach()) < EXACT
    assert states.shape == (BATCH, CHANNELS, 1, 2 * STATES)
    assert rms_error(states[:, :, -1, 1::2], final.detach()) < EXACT
    dout = torch.randn(u.shape, dtype=u.dtype)
    dz = torch.empty(BATCH, 2 * CHANNELS, LENGTH, dtype=u.dtype).chunk(2, dim=1)[1] if gate else None
    found = extensions.scan_backward(*inputs, dout, states, out if gate else None, dz, True, gate)
    leaves = [x for x in inputs if x is not None]
    grads = iter(torch.autograd.grad(wanted, leaves, dout))
    du, ddelta, dA, dB, dC, dD, grad_z, dbias = (None if x is None else next(grads) for x in inputs)
    expected = [du, ddelta, dA, dB, dC, dD, dbias] + ([grad_z] if gate else [])
    for ours, grad in zip(found, expected, strict=False):
        assert (ours is None) == (grad is None)
        assert grad is None or rms_error(ours, grad) < EXACT_GRADIENT
    assert len(found) == (9 if gate else 7) and len(gated) == gate
    if gate:
        assert found[7] is dz and rms_error(found[8], wanted.detach()) < EXACT
        assert rms_error(gated[0], wanted.detach()) < EXACT


def test_extensions_in_half_precision():
    """Parameters are float32, as the kernels want them; gradients have the dtypes of what they belong to."""
    inputs = [x.detach().float() if x.dim() < 3 else x.detach().bfloat16() for x in scan_inputs()]
    wide = [x.double() for x in inputs]
    out, states, gated = extensions.scan_forward(*inputs, True)
    assert out.dtype == gated.dtype == torch.bfloat16 and states.dtype == torch.float32
    assert rms_error(gated, plain.scan(*wide, softplus=True)[1]) < 2 * SCAN_VALUES[torch.bfloat16]  # rounded twice
    *found, out_z = extensions.scan_backward(*inputs, torch.ones_like(out), states, out, None, True, True)
    u, delta, A, B, C, D, z, bias = inputs
    assert [grad.dtype for grad in found] == [x.dtype for x in (u, delta, A, B, C, D, bias, z)]
    assert torch.equal(out_z, gated)


def test_scan_extension_marks_what_it_does_not_compute():
    u = torch.zeros(1, 1, 4100)
    rows = torch.zeros(1, 1, 2, 4100)
    _, states = extensions.scan_forward(u, u, -torch.ones(1, 2), rows, rows, None, None, None, True)
    assert states.shape == (1, 1, 3, 4)
    assert states.isnan().sum() == 10 and not states[:, :, -1, 1::2].isnan().any()


def test_convolution_extension_in_every_form():
    x, weight, bias = leaves = tensors((BATCH, CHANNELS, LENGTH), (CHANNELS, 4), (CHANNELS,))
    wanted, dout = plain.conv(*leaves), torch.randn(x.shape, dtype=x.dtype)
    grads = torch.autograd.grad(wanted, leaves, dout)
    out = torch.empty_like(x)
    for rest in ([True], [None, True], [None, None, None, True], [None, None, out, None, True]):
        y = extensions.conv_forward(*leaves, *rest)
        assert (y is None) == (len(rest) == 5)
        assert rms_error(out if y is None else y, wanted.detach()) < EXACT
    for rest in ([True], [None, True], [None, None, None, False, True]):
        dx = torch.empty(BATCH, 2 * CHANNELS, LENGTH, dtype=x.dtype).chunk(2, dim=1)[0]
        place = len(rest) - 1 if len(rest) < 5 else 3
        given = [*rest[:place], dx, *rest[place:]]
        found = extensions.conv_backward(*leaves, dout, *given)
        assert found[0] is dx and len(found) == (4 if len(rest) == 5 else 3)
        for ours, grad in zip(found[:3], grads, strict=True):
            assert rms_error(ours, grad) < EXACT_GRADIENT
    places = [torch.empty_like(leaf) for leaf in leaves]
    assert extensions.conv_backward(*leaves, dout, None, None, None, *places, None, True) is None
    for ours, grad in zip(places, grads, strict=True):
        assert rms_error(ours, grad) < EXACT_GRADIENT
    with pytest.raises(mtrkit.InputError, match="causal_conv1d_fwd got 3 arguments"):
        extensions.conv_forward(*leaves, None, None, True)


def test_convolution_extension_with_states():
    x, weight, bias, before = leaves = tensors((BATCH, CHANNELS, 5), (CHANNELS, 4), (CHANNELS,), (BATCH, CHANNELS, 3))
    wanted, final = plain.conv(x, weight, bias, before=before), x[..., -3:]
    place = torch.empty(BATCH, CHANNELS, 3, dtype=x.dtype)
    assert rms_error(extensions.conv_forward(x, weight, bias, None, before, place, True), wanted.detach()) < EXACT
    assert torch.equal(place, final)
    dout, dfinal = torch.randn(x.shape, dtype=x.dtype), torch.randn(final.shape, dtype=x.dtype)
    grads = torch.autograd.grad((wanted, final), leaves, (dout, dfinal))
    found = extensions.conv_backward(x, weight, bias, dout, None, before, dfinal, None, True, True)
    for ours, grad in zip(found, grads, strict=True):
        assert rms_error(ours, grad) < EXACT_GRADIENT


@torch.no_grad()
def test_update_extension_in_every_form():
    x, weight, bias, before = tensors((BATCH, CHANNELS, 2), (CHANNELS, 4), (CHANNELS,), (BATCH, CHANNELS, 3))
    wanted, out = plain.conv(x, weight, bias, before=before), torch.empty_like(x)
    for rest in ([True], [True, None], [True, None, None], [out, True, None, None]):
        seen = before.clone()
        y = extensions.conv_update(x, seen, weight, bias, *rest)
        assert rms_error(out if y is None else y, wanted) < EXACT
        assert torch.equal(seen, torch.cat([before, x], dim=2)[..., -3:])


KEYS = {
    "A_log": (64, 16),
    "D": (64,),
    "in_proj.weight": (128, 32),
    "conv1d.weight": (64, 1, 4),
    "conv1d.bias": (64,),
    "x_proj.weight": (34, 64),
    "dt_proj.weight": (64, 2),
    "dt_proj.bias": (64,),
    "out_proj.weight": (32, 64),
}


@pytest.mark.parametrize("bias", [True, False])
def test_mamba(bias):
    torch.manual_seed(0)
    mixer, hidden = Mamba(32, bias=bias), torch.randn(2, 11, 32)
    outer = {"in_proj.bias": (128,), "out_proj.bias": (32,)} if bias else {}
    assert {name: tuple(value.shape) for name, value in mixer.state_dict().items()} == KEYS | outer
    with torch.no_grad():
        assert rms_error(mixer(hidden), plain_mixer(mixer, hidden)[0]) < 1e-5  # float32, three products and a scan
    wanted = torch.autograd.grad(plain_mixer(mixer, hidden)[0].square().sum(), list(mixer.parameters()))
    found = torch.autograd.grad(mixer(hidden).square().sum(), list(mixer.parameters()))
    assert all(rms_error(ours, grad) < 1e-4 for ours, grad in zip(found, wanted, strict=True))


def test_mamba_starts_as_published():
    mixer = Mamba(
        32, d_state=3, d_conv=2, expand=1, dt_rank=5, dt_min=0.01, dt_max=0.02, dt_init="constant", conv_bias=False
    )
    steps = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert steps.min() > 0.0099 and steps.max() < 0.0201
    assert torch.allclose(mixer.dt_proj.weight, torch.tensor(5**-0.5))
    assert torch.allclose(mixer.A_log.exp(), torch.tensor([1.0, 2.0, 3.0])) and mixer.conv1d.bias is None
    assert mixer.A_log._no_weight_decay and mixer.D._no_weight_decay and mixer.dt_proj.bias._no_reinit
    low = Mamba(32, dtype=torch.bfloat16)
    assert low.A_log.dtype == low.D.dtype == torch.float32 and low.in_proj.weight.dtype == torch.bfloat16
    parameters = list(inspect.signature(Mamba.__init__).parameters)[1:]
    assert parameters[:5] == ["d_model", "d_state", "d_conv", "expand", "dt_rank"]
    with pytest.raises(mtrkit.OptionError, match="dt_init='zero'"):
        Mamba(32, dt_init="zero")


def test_mamba_refuses_what_it_cannot():
    mixer, hidden = Mamba(32), torch.zeros(1, 2, 32)
    with pytest.raises(mtrkit.OptionError, match="seq_idx"):
        mixer(hidden, seq_idx=None)
    with pytest.raises(mtrkit.InputError, match=r"expected \(B, 1, 32\)"):
        mixer.step(hidden, *mixer.allocate_inference_cache(1, 2))
