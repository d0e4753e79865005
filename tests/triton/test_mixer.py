"""Whole mixers, norms and models on Triton's kernels, dense and reduced."""

import pytest
import torch

import mtrkit
from mtrkit.measure import Parity, check_backend
from mtrkit.scan import backend_for, fused, mixer_forward, use_scan_backend
from mtrkit.scan.fastpath import can_mix
from mtrkit.types import Runs, Signals
from tests.helpers.tolerances import SCAN_GRADIENTS, SCAN_VALUES, rms_error
from tests.scan.test_fused import cast, make_weights
from tests.scan.test_runs import gradients_of, runs_of, some_runs

READS = frozenset({"delta", "delta_mean", "ssm_B", "ssm_C", "y"})


def exact(hidden, weights, reads=frozenset(), runs=None):
    """The mixer in float64 by torch's operators, on the CPU."""
    with use_scan_backend("native"):
        return mixer_forward(hidden.double(), cast(weights, torch.float64), reads, runs=runs)


@torch.no_grad()
def check_mixer(device, weights, runs=None, dtype=torch.float32, reads=READS, factor=1):
    hidden = torch.randn(2, 11, weights.in_proj.shape[1]).to(dtype)
    weights = cast(weights, dtype)
    wanted, signals = exact(hidden, weights, reads, runs)
    moved = None if runs is None else Runs(runs.lengths.to(device), runs.positions)
    given = on(device, weights)
    assert can_mix(given, hidden.to(device))
    found, seen = mixer_forward(hidden.to(device), given, reads, runs=moved)
    assert found.dtype == dtype and found.is_contiguous()
    assert rms_error(found, wanted) < factor * SCAN_VALUES[dtype]
    for name in reads:
        assert rms_error(getattr(seen, name), getattr(signals, name)) < factor * SCAN_VALUES[dtype], name
    assert {name for name in Signals._fields if getattr(seen, name) is not None} == reads


def on(device, weights):
    ways = tuple(type(way)(*(w if w is None else w.to(device) for w in way)) for way in weights.directions)
    return weights._replace(in_proj=weights.in_proj.to(device), out_proj=weights.out_proj.to(device), directions=ways)


@pytest.mark.parametrize(
    "sizes", [{}, {"directions": 1, "halve": True}, {"inner": 20, "states": 3, "taps": 5, "conv_bias": False}], ids=str
)
@pytest.mark.parametrize("lasting", [False, True])
def test_mixers(by_triton, sizes, lasting):
    runs = runs_of(some_runs(2, 11, 3, 0)) if lasting else None
    check_mixer(by_triton, make_weights(**({"inner": 24, "states": 4} | sizes)), runs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(by_triton, dtype):
    """It is rounded between the steps, five times in a row."""
    check_mixer(by_triton, make_weights(inner=24, states=4), dtype=dtype, factor=5)


@torch.no_grad()
def test_both_directions_go_in_one_launch(by_triton, launches):
    weights = on(by_triton, make_weights(inner=24, states=4))
    mixer_forward(torch.randn(1, 9, 24, device=by_triton), weights)
    assert launches == ["conv_forward", "scan_forward", "gate"]


def test_training(by_triton):
    """Through every step of a mixer, on tokens that last; those that do not are in test_scan.py."""
    weights, hidden, grad = make_weights(inner=12, states=4, taps=2), torch.randn(2, 7, 24), torch.randn(2, 7, 24)
    runs = runs_of(some_runs(2, 7, 3, 0))
    with use_scan_backend("native"):
        wanted = gradients_of(hidden.double(), cast(weights, torch.float64), runs, grad.double())
    moved = Runs(runs.lengths.to(by_triton), runs.positions)
    found = gradients_of(hidden.to(by_triton), on(by_triton, weights), moved, grad.to(by_triton))
    for name, value in wanted.items():
        assert rms_error(found[name], value) < SCAN_GRADIENTS[torch.float32], name


@pytest.mark.filterwarnings("ignore")  # torch's compiler has its own
def test_compiles_to_one_graph(by_triton):
    weights, hidden = on(by_triton, make_weights(inner=12, states=4)), torch.randn(1, 5, 24, device=by_triton)
    runs = runs_of(some_runs(1, 5, 2, 0).to(by_triton))
    run = lambda x: mixer_forward(x, weights, READS, runs=runs)  # noqa: E731
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for a, b in zip((compiled(hidden)[0], *compiled(hidden)[1]), (run(hidden)[0], *run(hidden)[1]), strict=True):
            assert (a is b is None) or torch.equal(a, b)
    leaf = hidden.requires_grad_()
    torch.testing.assert_close(*(torch.autograd.grad(call(leaf)[0].sum(), leaf)[0] for call in (run, compiled)))


@pytest.mark.parametrize(
    "dtypes", [(torch.float32,) * 2, (torch.bfloat16, torch.float32), (torch.bfloat16,) * 2], ids=str
)
@torch.no_grad()
def test_norm(by_triton, dtypes):
    x, residual = (torch.randn(3, 7, 20, device=by_triton).to(dtype) for dtype in dtypes)
    weight = torch.randn(20, device=by_triton)
    normed, total = fused.add_rms_norm(x, residual, weight, 1e-5)
    assert (normed.dtype, total.dtype) == (x.dtype, residual.dtype)
    assert rms_error(total, residual.double() + x.double()) < SCAN_VALUES[residual.dtype]
    truth = torch.nn.functional.rms_norm(total.double(), (20,), weight.double(), 1e-5)
    assert rms_error(normed, truth) < SCAN_VALUES[x.dtype]
    strided = torch.randn(3, 7, 40, device=by_triton)[..., ::2]
    assert torch.equal(fused.add_rms_norm(strided, strided, weight, 1e-5)[1], strided * 2)


@pytest.mark.parametrize("method", ["mtr", "runs"])
@torch.inference_mode()
def test_reduced_models(by_triton, launches, method):
    model = mtrkit.VisionMamba(img_size=16, patch_size=4, embed_dim=16, depth=6, num_classes=10).eval()
    images = torch.randn(1, 3, 16, 16)
    with use_scan_backend("native"):
        wanted = mtrkit.apply_reduction(model, method, ratio=0.3)(images)
    model.to(by_triton)
    torch.testing.assert_close(model(images.to(by_triton)).cpu(), wanted, rtol=1e-4, atol=1e-4)
    assert {"add_rms_norm", "conv_forward", "scan_forward", "gate", "number", "merge"} < set(launches)
    assert ("cosines" if method == "runs" else "nearest") in launches
    assert mtrkit.reduction_info(model).scan_backend.startswith("triton (Triton 3")


def test_doctor_checks_it(device):
    found = check_backend("triton", torch.device(device), length=11)
    assert isinstance(found, Parity) and found.good


def test_no_one_gets_the_interpreter_unasked(device):
    assert backend_for(device) == ("native" if device == "cpu" else "triton")
