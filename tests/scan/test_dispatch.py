"""Which backend runs, what it says about itself, and what users are told when something does not fit."""

import dataclasses
import logging
import re
import sys
import types

import pytest
import torch

from mtrkit.errors import BackendError, InputError, UnknownNameError
from mtrkit.scan import (
    backend_for,
    causal_conv1d,
    dispatch,
    length_last,
    mamba_ssm,
    scan_backends,
    selective_scan,
    triton,
    use_scan_backend,
)
from mtrkit.scan.reference import causal_conv1d_reference, selective_scan_reference
from mtrkit.triton import availability
from mtrkit.types import Scan
from tests.helpers.tolerances import SCAN_VALUES, rms_error
from tests.scan.inputs import make_inputs, scan


@pytest.fixture(autouse=True)
def _forget_imports():
    """Optional packages are looked for and backends chosen once per process; each test here does it again."""
    for cached in (mamba_ssm._find, dispatch._chosen):
        cached.cache_clear()
    yield
    for cached in (mamba_ssm._find, dispatch._chosen):
        cached.cache_clear()


def test_order_and_reasons():
    found = scan_backends()
    assert [status.name for status in found] == [backend.name for backend in dispatch.BACKENDS]
    assert all(status.reason for status in found)
    assert [status.name for status in found][:4] == ["mamba_ssm", "triton", "native", "reference"]
    available = [status.name for status in found if status.available]
    assert available[-2:] == ["native", "reference"]


def test_native_says_what_it_runs_on(path):
    reason = next(status.reason for status in scan_backends() if status.name == "native")
    assert reason == ("torch fallback: hidden by a test" if path == "torch" else f"compiled, {path}")


def test_cpu_scans_natively_and_says_so_once(caplog):
    with caplog.at_level(logging.DEBUG, logger="mtrkit"):
        assert [backend_for("cpu") for _ in range(3)] == ["native"] * 3
    assert len(caplog.records) == 1
    assert not length_last(torch.device("cpu"))


def test_forcing_a_backend():
    inputs = make_inputs()
    with use_scan_backend("reference"):
        assert backend_for("cpu") == "reference"
        inside = scan(*inputs, True)[0]
    assert backend_for("cpu") == "native"
    assert torch.equal(inside, scan(*inputs, True, backend="reference")[0])
    with pytest.raises(RuntimeError, match="on purpose"), use_scan_backend("reference"):
        raise RuntimeError("on purpose")
    assert backend_for("cpu") == "native"


def test_selective_scan_returns_what_is_asked_for():
    inputs = make_inputs()
    y, last = selective_scan(*inputs, delta_softplus=True, return_last_state=True)
    assert torch.equal(selective_scan(*inputs, delta_softplus=True), y)
    assert last.shape == (2, 24, 16)


@pytest.mark.parametrize(
    "use",
    [lambda name: scan(*make_inputs(), backend=name), lambda name: use_scan_backend(name).__enter__()],
)
def test_asking_for_what_cannot_run(use, monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    with pytest.raises(BackendError, match="mamba_ssm cannot be imported"):
        use("mamba_ssm")
    with pytest.raises(UnknownNameError, match="Did you mean 'native'"):
        use("nativ")


BAD = {
    "u": [torch.randn(2, 24), torch.randn(2, 24, 0), torch.ones(2, 24, 19, dtype=torch.long)],
    "delta": [torch.randn(2, 24, 18), torch.randn(2, 19, 24), torch.randn(2, 24, 19, device="meta")],
    "A": [torch.randn(24), torch.randn(23, 4), torch.randn(24, 0), torch.randn(24, 4, dtype=torch.complex64)],
    "B": [torch.randn(2, 5, 19), torch.randn(2, 19, 4), torch.randn(2, 5, 4, 19), torch.randn(4)],
    "C": [torch.randn(1, 4, 19), torch.randn(2, 0, 4, 19)],
    "D": [torch.randn(23), torch.randn(24, 1)],
    "z": [torch.randn(2, 24, 20)],
    "delta_bias": [torch.randn(1)],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_bad_inputs_are_named(name, value):
    with pytest.raises(InputError, match=f"^{name} "):
        scan(*make_inputs(2, 24, 19, 4)._replace(**{name: value}))


def test_groups_of_B_and_C_have_to_fit():
    inputs = make_inputs(2, 24, 19, 4)
    rows = {groups: torch.randn(2, groups, 4, 19) for groups in (2, 3)}
    with pytest.raises(InputError, match="2 groups and C has 3"):
        scan(*inputs._replace(B=rows[2], C=rows[3]))


@pytest.mark.parametrize("weight", [torch.randn(5, 4), torch.randn(24, 2, 4), torch.randn(24), torch.randn(24, 0)])
def test_bad_convolution_weights_are_named(weight):
    with pytest.raises(InputError, match="^weight "):
        causal_conv1d(torch.randn(1, 24, 5), weight)


def fake_mamba(monkeypatch, scan=None, conv=None, extension=True):
    """Install stand-ins for mamba_ssm and causal_conv1d, or their absence."""
    interface = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = scan
    interface.selective_scan_cuda = object() if extension else None
    monkeypatch.setitem(sys.modules, "mamba_ssm", types.ModuleType("mamba_ssm"))
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops", types.ModuleType("mamba_ssm.ops"))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    package = types.ModuleType("causal_conv1d")
    package.causal_conv1d_fn = conv
    monkeypatch.setitem(sys.modules, "causal_conv1d", package if conv else None)


def stand_in_scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False):
    """The signature and the demands of mamba_ssm's function, computed by the reference."""
    assert {t.dtype for t in (u, delta, B, C, z)} == {u.dtype}
    assert {t.dtype for t in (A, D, delta_bias)} == {torch.float32}
    y, last = selective_scan_reference(Scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus))
    return (y, last) if return_last_state else y


def stand_in_conv(x, weight, bias=None, seq_idx=None, *, activation=None):
    assert seq_idx is None
    assert activation in (None, "silu", "swish")
    return causal_conv1d_reference(x, weight, bias, activation is not None, False)


@pytest.fixture
def on_cpu(monkeypatch):
    """Let the backend take CPU tensors, since the stand-ins do."""
    backend = mamba_ssm.BACKEND
    monkeypatch.setattr(mamba_ssm, "_refuses", lambda device, dtype: "")
    monkeypatch.setitem(
        dispatch.BACKENDS._entries,
        "mamba_ssm",
        dataclasses.replace(backend, refuses=mamba_ssm._refuses),
    )


@pytest.mark.parametrize("reverse", [False, True])
def test_mamba_ssm_is_called_as_it_stands(on_cpu, monkeypatch, reverse):
    fake_mamba(monkeypatch, stand_in_scan, stand_in_conv)
    assert scan_backends()[0] == ("mamba_ssm", True, "CUDA kernels for scan and convolution")
    assert backend_for("cpu") == "mamba_ssm"
    assert length_last(torch.device("cpu"))
    inputs, weight = make_inputs(2, 24, 19, 4), torch.randn(24, 4)
    mixed = inputs._replace(B=inputs.B.bfloat16().float(), D=inputs.D.double())
    y, last = scan(*mixed, True, reverse)
    expected, expected_last = scan(*mixed, True, reverse, backend="reference")
    assert rms_error(y, expected) < SCAN_VALUES[torch.float32]
    assert rms_error(last, expected_last) < SCAN_VALUES[torch.float32]
    found = causal_conv1d(inputs.u, weight, inputs.D, reverse=reverse)
    expected = causal_conv1d(inputs.u, weight, inputs.D, reverse=reverse, backend="reference")
    assert rms_error(found, expected) < SCAN_VALUES[torch.float32]


def test_mamba_ssm_without_causal_conv1d(on_cpu, monkeypatch):
    fake_mamba(monkeypatch, stand_in_scan)
    assert scan_backends()[0].available
    assert "causal_conv1d cannot be imported" in scan_backends()[0].reason
    x, weight = torch.randn(2, 24, 9), torch.randn(24, 4)
    expected = causal_conv1d(x, weight, backend="reference")
    assert rms_error(causal_conv1d(x, weight, backend="mamba_ssm"), expected) < SCAN_VALUES[torch.float32]


def test_mamba_ssm_without_its_extension(monkeypatch):
    fake_mamba(monkeypatch, stand_in_scan, extension=False)
    assert scan_backends()[0] == (
        "mamba_ssm",
        False,
        "mamba_ssm is installed without its CUDA extension selective_scan_cuda",
    )


def test_mamba_ssm_takes_cuda_tensors_only(monkeypatch):
    fake_mamba(monkeypatch, stand_in_scan, stand_in_conv)
    assert backend_for("cpu") == "native"
    assert backend_for("cuda") == "mamba_ssm"
    with pytest.raises(BackendError, match="takes CUDA tensors only"):
        scan(*make_inputs(), backend="mamba_ssm")


@pytest.fixture
def with_triton(monkeypatch):
    """As if kernels of Triton had run on a GPU here."""
    backend = dataclasses.replace(triton.BACKEND, status=lambda: (True, "Triton 3.3.0, compiled for a stand-in"))
    monkeypatch.setitem(dispatch.BACKENDS._entries, "triton", backend)


def test_triton_is_chosen_on_gpus_without_mamba_ssm(with_triton, monkeypatch):
    assert [backend_for(device) for device in ("cuda", "xpu", "cpu", "meta")] == [
        "triton",
        "triton",
        "native",
        "native",
    ]
    assert not length_last(torch.device("cuda"))
    assert dispatch.backend_of("cuda", torch.bfloat16) == "triton"
    assert dispatch.backend_of("cuda", torch.float64) == "native"
    fake_mamba(monkeypatch, stand_in_scan, stand_in_conv)
    for cached in (mamba_ssm._find, dispatch._chosen):
        cached.cache_clear()
    assert [backend_for(device) for device in ("cuda", "xpu", "cpu")] == ["mamba_ssm", "triton", "native"]


def test_triton_convolves_for_mamba_ssm_without_causal_conv1d(monkeypatch):
    for available, kernels in ((True, "triton"), (False, "native")):
        monkeypatch.setattr(availability, "status", lambda found=available: (found, ""))
        assert mamba_ssm._other_kernels("cuda", torch.float16) == kernels
        assert mamba_ssm._other_kernels("cuda", torch.float64) == "native"


def test_triton_takes_no_cpu_tensors_outside_of_its_interpreter(with_triton, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match="takes tensors on GPUs only, and these are on 'cpu'"):
        scan(*make_inputs(), backend="triton")


@pytest.mark.skipif(availability.status()[0], reason="Triton runs here")
def test_triton_says_why_it_cannot_run():
    available, reason = triton.BACKEND.status()
    assert not available and reason == "it needs a GPU, and torch sees none"
    message = r'cannot run here: it needs a GPU, and torch sees none; use backend="auto"'
    with pytest.raises(BackendError, match=message) as error, use_scan_backend("triton"):
        pass
    assert error.value.reason == reason


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("raise OSError('no C compiler')", r"cannot run a kernel here \(OSError: no C compiler\)"),
        ("__version__ = '3.2.0'", r"Triton 3.2.0 is too old; it needs 3.3"),
    ],
)
def test_an_installation_of_triton_that_cannot_run_is_a_reason(monkeypatch, tmp_path, broken, reason):
    (tmp_path / "triton.py").write_text(broken)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    availability._tried.cache_clear()
    try:
        available, found = availability.status()
        assert not available and re.search(reason, found)
        assert backend_for("cuda") == "native"
    finally:
        availability._tried.cache_clear()


@pytest.mark.parametrize(
    "error", [OSError("undefined symbol"), RuntimeError("broken"), NameError("bare_metal_version")]
)
def test_a_broken_installation_is_a_reason(monkeypatch, tmp_path, error):
    (tmp_path / "mamba_ssm").mkdir()
    (tmp_path / "mamba_ssm" / "__init__.py").write_text(f"raise {error!r}")
    monkeypatch.syspath_prepend(tmp_path)
    name, available, reason = scan_backends()[0]
    assert (name, available) == ("mamba_ssm", False)
    assert type(error).__name__ in reason
    assert str(error) in reason
