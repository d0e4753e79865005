"""The scan's kernels against the reference in float64: values, last state and every gradient."""

import pytest
import torch

from mtrkit.errors import InputError
from mtrkit.scan import selective_scan
from mtrkit.types import Runs, Scan
from tests.helpers.tolerances import SCAN_GRADIENTS, SCAN_VALUES, rms_error
from tests.scan import test_conv, test_delta, test_scan_parity
from tests.scan.inputs import leaves, make_inputs, present, scan, truth
from tests.scan.test_runs import some_runs
from tests.scan.test_scan_parity import check

# One state and one channel; a second block of channels; lengths around the 6 states that are held and the 12 between
# two that are kept.
SHAPES = [(1, 1, 1, 1), (1, 33, 7, 4), (2, 5, 13, 16), (1, 3, 27, 20)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_shapes_and_directions(way, shape, reverse):
    check(way, make_inputs(*shape), reverse=reverse)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dtypes(way, dtype):
    check(way, make_inputs(1, 17, 8, 16, channels_last=False), dtype)


def test_groups(way):
    check(way, make_inputs(1, 12, 9, 5, groups=2), reverse=True)


def test_bare_scan_without_skip_gate_bias_and_softplus(way):
    inputs = make_inputs(1, 20, 8, 16, bare=True)
    check(way, inputs._replace(delta=inputs.delta.abs() * 0.1), softplus=False)


def test_other_shapes_and_strides(way):
    test_scan_parity.test_constant_B_and_C(way)
    wide = make_inputs(1, 10, 7, 4)
    every_other = {"u": wide.u[:, ::2], "delta": wide.delta[:, ::2], "z": wide.z[:, ::2], "A": wide.A[::2]}
    check(way, wide._replace(**every_other, D=wide.D[::2], delta_bias=wide.delta_bias[::2]))


def test_softplus(way):
    for dtype in (torch.float32, torch.bfloat16):
        test_delta.test_equals_torch(way, 3, 35, 19, True, dtype)
    test_delta.test_equals_torch(way, 0, 16, 4, False, torch.float32)
    test_delta.test_without_a_bias(way)


@pytest.mark.parametrize(
    ("length", "reverse", "channels_last"), [(2, False, True), (18, True, True), (18, False, False)]
)
def test_convolution(way, length, reverse, channels_last):
    test_conv.test_lengths(way, length, reverse, channels_last)


@pytest.mark.parametrize("width", [1, 2, 7])
def test_widths_of_the_convolution(way, width):
    test_conv.test_widths(way, width, silu=width != 2)


def test_convolution_of_half_precision(way):
    test_conv.test_dtypes(way, torch.bfloat16)


def written_out(inputs, lengths, reverse):
    """The scan of every token as often as it lasts, and the means over its copies."""
    outputs = []
    for i, lasts in enumerate(lengths):
        sample = [x if x is None or x.dim() < 3 else x[i : i + 1].repeat_interleave(lasts, dim=2) for x in inputs]
        y = truth(type(inputs)(*sample), reverse=reverse)[0]
        outputs.append(torch.stack([part.mean(2) for part in y.split(lasts.tolist(), dim=2)], dim=2))
    return torch.cat(outputs)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("longest", [1, 3, 9])
def test_tokens_that_last(device, longest, reverse):
    from mtrkit.scan.run_operators import scan_runs

    inputs, lengths = make_inputs(2, 17, 9, 4), some_runs(2, 9, longest, 0)
    ours, exact = leaves(inputs, device=device), leaves(inputs, torch.float64)
    grouped = ours._replace(B=ours.B.unsqueeze(1), C=ours.C.unsqueeze(1))
    runs = Runs(lengths.to(device), int(lengths.sum(1).max()))
    y = scan_runs(Scan(*grouped, True, reverse), runs, "triton")
    expected = written_out(exact, lengths, reverse)
    assert rms_error(y, expected) < SCAN_VALUES[torch.float32]
    grad = torch.randn(y.shape)
    found = torch.autograd.grad(y, present(ours), grad.to(device))
    wanted = torch.autograd.grad(expected, present(exact), grad.double())
    for name, got, right in zip(inputs._fields, found, wanted, strict=True):
        assert rms_error(got, right) < SCAN_GRADIENTS[torch.float32], name


def test_one_position_each_keeps_every_bit(device):
    from mtrkit.scan.run_operators import scan_runs

    inputs = leaves(make_inputs(1, 5, 9, 4), device=device)
    grouped = inputs._replace(B=inputs.B.unsqueeze(1), C=inputs.C.unsqueeze(1))
    ones = Runs(torch.ones(1, 9, dtype=torch.int64, device=device), 12)
    stepped = scan_runs(Scan(*grouped, True, False), ones, "triton")
    plain = scan(*inputs, True, backend="triton")[0]
    assert torch.equal(stepped, plain)
    found, wanted = (torch.autograd.grad(y.square().sum(), inputs) for y in (stepped, plain))
    assert all(rms_error(a, b) < SCAN_GRADIENTS[torch.float32] for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("longest", "reverse"), [(1, True), (3, False)])
def test_segments_of_long_sequences(device, monkeypatch, longest, reverse):
    """Cut where few samples would leave most of a GPU idle: into three of 12 tokens and a rest here."""
    from mtrkit.triton import scan as host

    inputs, lengths = make_inputs(2, 5, 40, 4), some_runs(2, 40, longest, 0).to(device)
    u, delta, A, B, C, D, z, bias = (x.to(device) for x in inputs)
    problem = Scan(u, delta, A, B.unsqueeze(1), C.unsqueeze(1), D, z, bias, True, reverse)
    whole = host.scan_forward(problem, True, lengths)
    monkeypatch.setattr(host, "SHORTEST", 12)
    monkeypatch.setattr(host, "_processors", lambda device: 100)
    calls, launch = [], host.launch
    monkeypatch.setattr(host, "launch", lambda *rest, **sizes: (calls.append(rest[1]), launch(*rest, **sizes)))
    for found, expected in zip(host.scan_forward(problem, True, lengths), whole, strict=True):
        assert rms_error(found, expected) < SCAN_VALUES[torch.float32]
    assert calls == [8, 8]  # two samples, four segments, two passes


def test_how_sequences_are_cut():
    host = pytest.importorskip("mtrkit.triton.scan")
    cut = host._segment_length
    assert cut(24, 197, 132) == 197  # too short
    assert cut(1536, 12545, 132) == 12545  # enough of them
    assert cut(24, 12545, 132) == 276 and cut(24, 1569, 132) == 120 and cut(400, 12545, 132) == 12545
    assert cut(24, 12545, 0) == 12545
    assert all(cut(8, length, 132) % host.SPAN == 0 for length in range(400, 500))


def test_gradients_are_there_even_if_no_state_was_kept(device):
    ours = leaves(make_inputs(1, 5, 14, 4), device=device)
    grouped = ours._replace(B=ours.B.unsqueeze(1), C=ours.C.unsqueeze(1))
    run = torch.ops.mtrkit.selective_scan
    y, kept = (run(*grouped, True, False, save, "triton")[0] for save in (False, True))
    for a, b in zip(*(torch.autograd.grad(t.sum(), ours) for t in (y, kept)), strict=True):
        assert torch.equal(a, b)


def test_what_kernels_cannot_take_is_refused(device):
    inputs = [x.to(device) for x in make_inputs(1, 5, 7, 4, bare=True)[:5]]
    u, delta, A, B, C = inputs
    B, C, rest = B.unsqueeze(1), C.unsqueeze(1), (None, None, None, True, False, False, "triton")
    with pytest.raises(InputError, match="not torch.float64"):
        torch.ops.mtrkit.selective_scan(u.double(), delta.double(), A.double(), B.double(), C.double(), *rest)
    with pytest.raises(InputError, match=r"delta has shape \(1, 5, 6\)"):
        torch.ops.mtrkit.selective_scan(u, delta[..., 1:], A, B, C, *rest)
    with pytest.raises(InputError, match="no kernels 'trito'"):
        torch.ops.mtrkit.causal_conv1d(u, A, None, True, False, "trito")


@pytest.mark.filterwarnings("ignore")  # opcheck reads .grad of what it has copied
def test_operators_keep_their_promises(device):
    inputs = leaves(make_inputs(1, 6, 5, 4, groups=2), device=device)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    scan_inputs = (*inputs, True, True, True, "triton")
    torch.library.opcheck(torch.ops.mtrkit.selective_scan.default, scan_inputs, test_utils=checks)
    u, weight, bias = (part.detach().clone().requires_grad_() for part in (inputs.u, inputs.A, inputs.D))
    conv_inputs = (u, weight, bias, True, False, "triton")
    torch.library.opcheck(torch.ops.mtrkit.causal_conv1d.default, conv_inputs, test_utils=checks)


def test_public_function(way):
    u, delta, A, B, C, D, z, bias = (x.to(way.device) for x in make_inputs(1, 5, 7, 4))
    y = selective_scan(u, delta, A, B, C, D, z, bias, True, backend="triton")
    assert rms_error(y, selective_scan(u, delta, A, B, C, D, z, bias, True, backend="reference")) < 1e-6
