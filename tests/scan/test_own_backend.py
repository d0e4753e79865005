"""A backend from outside, as CONTRIBUTING describes it: registered, chosen, covered by the parity tests at once."""

import pytest
import torch
import torch.nn.functional as F

import mtrkit
from mtrkit.native import library as lib
from mtrkit.scan.backend import Backend
from mtrkit.scan.dispatch import BACKENDS, _chosen
from mtrkit.scan.reference import causal_conv1d_reference, delta_softplus_reference
from tests.helpers.families import FAMILIES
from tests.scan import test_conv, test_delta, test_scan_parity
from tests.scan.conftest import every_way, take_way
from tests.scan.inputs import make_inputs


def scan(arguments):
    """One matrix of all powers of the decay instead of a recurrence: fine for short sequences, and plain torch."""
    wide = torch.promote_types(arguments.u.dtype, torch.float32)
    u, delta, A, B, C, D, z, bias = (x if x is None else x.to(wide) for x in arguments.tensors)
    delta = delta if bias is None else delta + bias[:, None]
    delta = F.softplus(delta) if arguments.softplus else delta
    B, C = (x.repeat_interleave(u.shape[1] // x.shape[1], dim=1) for x in (B, C))
    if arguments.reverse:
        u, delta, B, C = (x.flip(-1) for x in (u, delta, B, C))
    passed = (delta[:, :, None] * A[..., None]).cumsum(-1)  # (B, E, N, L)
    decay = torch.exp((passed[..., None] - passed[..., None, :]).tril().clamp(max=0)).tril()
    states = torch.einsum("bents,bes,bens->bent", decay, delta * u, B)
    y, last = (states * C).sum(2), states[..., -1]
    y, u = (x.flip(-1) if arguments.reverse else x for x in (y, u))
    y = y if D is None else y + D[:, None] * u
    return (y if z is None else y * F.silu(z)).to(arguments.u.dtype), last


TOY = Backend(
    "toy",
    lambda: (True, "all powers at once"),
    lambda device, dtype: "" if device == "cpu" else "it takes CPU tensors only",
    scan,
    causal_conv1d_reference,
    delta_softplus_reference,
)


@pytest.fixture
def toy():
    BACKENDS.add(TOY.name, TOY)
    yield TOY.name
    BACKENDS.remove(TOY.name)
    _chosen.cache_clear()


def test_is_listed_and_covered(toy):
    assert mtrkit.scan_backends()[-1] == ("toy", True, "all powers at once")
    assert toy in every_way()


def test_passes_the_parity_tests(toy, monkeypatch):
    way = take_way(toy, torch.float32, monkeypatch)
    for reverse in (False, True):
        test_scan_parity.test_shapes_and_directions(way, (1, 33, 17, 5), reverse)
    test_scan_parity.test_groups(way, 2, True)
    test_conv.test_lengths(way, 16, False, True)
    test_delta.test_without_a_bias(way)


@pytest.mark.parametrize("name", ["toy", "reference"])
@pytest.mark.parametrize("method", mtrkit.list_methods())
def test_no_compiled_code_runs_under_another_backend(toy, monkeypatch, name, method):
    """Matching, merging, numbering, norms and the time step included."""
    model, images = FAMILIES["vim"](), torch.randn(2, 3, 32, 32)
    dense = model(images)
    monkeypatch.setattr(lib.Library, "_run", lambda *_: pytest.fail("compiled code ran"))
    with torch.inference_mode(), mtrkit.scan.use_scan_backend(name):
        torch.testing.assert_close(model(images), dense, rtol=1e-4, atol=1e-4)
        assert mtrkit.apply_reduction(model, method, ratio=0.3)(images).isfinite().all()


def test_takes_no_device_that_it_refuses(toy):
    with pytest.raises(mtrkit.errors.BackendError, match="takes CPU tensors only"):
        mtrkit.selective_scan(*(t.to("meta") for t in make_inputs(bare=True)[:5]), backend="toy")
