"""Same bits for any number of threads and any batch; no reads of unwritten memory; extreme values."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from mtrkit.native import library as lib
from mtrkit.scan import causal_conv1d
from tests.helpers.tolerances import EXPONENTIAL, SCAN_VALUES, rms_error
from tests.scan.inputs import leaves, make_inputs, scan, truth


def everything(inputs):
    """Outputs and gradients of a convolution and a scan in both directions."""
    inputs = leaves(inputs)
    weight = torch.linspace(-1, 1, 4 * inputs.u.shape[1]).view(-1, 4).requires_grad_()
    results = []
    for reverse in (False, True):
        u = causal_conv1d(inputs.u, weight, inputs.D, reverse=reverse)
        y, last = scan(u, *inputs[1:], True, reverse)
        results += [y, last, *torch.autograd.grad((y * y).sum() + last.sum(), (*inputs, weight))]
    return [r.detach() for r in results]


def exponent_error(exponent):
    """Relative error allowed: rounding the exponent weighs the more the larger it is."""
    return EXPONENTIAL + 1.2e-7 * exponent.abs().double()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_runs_do_not_differ_by_a_bit(path):
    inputs = make_inputs(5, 200, 50, 16)
    assert same(everything(inputs), everything(inputs))


def test_threads_do_not_change_a_bit(compiled):
    inputs = make_inputs(5, 200, 50, 16)
    expected = everything(inputs)
    for threads in (1, 3, 4):
        torch.set_num_threads(threads)
        assert same(everything(inputs), expected)


def test_own_threads_where_no_openmp_is_found(compiled, monkeypatch):
    inputs = make_inputs(3, 100, 50, 16)
    expected = everything(inputs)
    monkeypatch.setattr(lib.library(), "_parallel", None)
    assert same(everything(inputs), expected)


def test_two_callers_at_once(path):
    many = [make_inputs(2, 64, 40 + i, 16) for i in range(6)]
    expected = [everything(inputs) for inputs in many]
    with ThreadPoolExecutor(2) as pool:
        for found, right in zip(pool.map(everything, many), expected, strict=True):
            assert same(found, right)


@pytest.mark.parametrize("path", lib.LEVELS, indirect=True)
def test_a_sample_does_not_depend_on_its_batch(path):
    """The torch operations promise less: torch itself rounds the ends of its loops differently."""
    inputs = make_inputs(4, 72, 33, 16)
    y, last = scan(*inputs, True)
    for i in range(4):
        alone = inputs._replace(**{k: getattr(inputs, k)[i : i + 1] for k in ("u", "delta", "B", "C", "z")})
        y_alone, last_alone = scan(*alone, True)
        assert torch.equal(y_alone[0], y[i])
        assert torch.equal(last_alone[0], last[i])


def test_fresh_memory_is_nan_here(path):
    """The premise of all tests, and that nothing of it reaches a result."""
    assert torch.empty(8).isnan().all()
    assert not any(r.isnan().any() for r in everything(make_inputs(2, 21, 18, 5)))


def test_empty_batch(path):
    results = everything(make_inputs(0, 24, 7, 4))
    assert results[0].shape == (0, 24, 7)
    assert all(not r.isnan().any() for r in results)


@pytest.mark.parametrize("channels_last", [True, False])
def test_output_keeps_the_memory_order(path, channels_last):
    inputs = make_inputs(2, 24, 7, 4, channels_last=channels_last)
    y, _ = scan(*inputs, True)
    u = causal_conv1d(inputs.u, torch.randn(24, 4))
    wanted = (7 * 24, 1, 24) if channels_last else (7 * 24, 7, 1)
    assert y.stride() == u.stride() == wanted


def test_softplus_over_its_whole_range(path):
    """One token and no decay: y = softplus(delta), down to where it is nearly nothing."""
    delta = torch.linspace(-80, 100, 16 * 400).view(1, 16, 400)
    ones = torch.ones(16, 1)
    y = torch.cat(
        [scan(torch.ones(1, 16, 1), d, -ones, ones, ones, softplus=True)[0] for d in delta.split(1, dim=2)],
        dim=2,
    )
    expected = F.softplus(delta.double())
    assert ((y - expected).abs() <= exponent_error(delta) * expected).all()


def test_exponential_over_its_whole_range(path):
    """The second state is exp(ΔA) times the first; below the smallest normal number it is as good as 0."""
    exponent = torch.linspace(-120, 80, 16 * 500).view(1, 16, 500)
    one = torch.ones(1, 16, 500)
    u = torch.stack((one, torch.zeros_like(one)), -1).reshape(1, -1, 2)
    delta = torch.stack((one, exponent), -1).reshape(1, -1, 2)
    ones = torch.ones(u.shape[1], 1)
    y, _ = scan(u, delta, ones, ones, ones)
    expected = torch.exp(exponent.double())
    assert ((y[0, :, 1].view(expected.shape) - expected).abs() <= exponent_error(exponent) * expected + 1e-37).all()


def test_large_steps_underflow_to_a_fresh_start(path):
    inputs = make_inputs(1, 32, 40, 16)
    inputs = inputs._replace(delta=inputs.delta * 60, delta_bias=None)
    y, _ = scan(*inputs, True)
    assert rms_error(y, truth(inputs)[0]) < SCAN_VALUES[torch.float32]


def test_a_long_step_changes_no_bit_of_other_channels(path):
    """Exponents are bounded where a step of the tile is long, and not where all are short."""
    inputs = make_inputs(1, 20, 40, 16)
    long = inputs.delta.clone()
    long[0, 3, 20] = 500.0
    same, _ = scan(*inputs, True)
    y, _ = scan(*inputs._replace(delta=long), True)
    assert not torch.equal(y[:, 3], same[:, 3])
    assert torch.equal(y[:, :3], same[:, :3]) and torch.equal(y[:, 4:], same[:, 4:])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["u", "delta", "B"])
def test_what_is_not_finite_shows(path, name, value):
    """It spoils the channel and the tokens behind it, and no token before it."""
    inputs = make_inputs(1, 20, 40, 16)
    clean, _ = scan(*inputs, True)
    broken = getattr(inputs, name).clone()
    broken[0, 3, 20] = value
    y, _ = scan(*inputs._replace(**{name: broken}), True)
    assert torch.equal(y[..., :20], clean[..., :20])
    if (name, value) != ("delta", float("-inf")):  # a step of 0, which is harmless
        assert not y[0, 3, 20:].isfinite().all()
    if name != "B":
        assert torch.equal(y[:, 4:], clean[:, 4:])
