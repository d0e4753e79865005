"""Counters of others give mtrkit's count: torch's FlopCounterMode twice it, fvcore the same."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import mtrkit
from mtrkit.scan.flops import FORMULAS
from tests.helpers.families import FAMILIES
from tests.standins import hustvl_vim

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
REDUCTIONS = [("vim", "mtr"), ("vim", "rmeeto"), ("vim", "runs"), ("vim_mambar", "tome"), ("vim_mean", "neighbor")]
REDUCTIONS += [("hustvl_vim", "mtr"), ("videomamba", "rmeeto"), ("mambar", "hsa"), ("timm_vit", "tome")]
CASES = [(family, None) for family in FAMILIES] + REDUCTIONS


@pytest.fixture(autouse=True)
def _seen(monkeypatch):
    """Official classes on mtrkit's scan, as under ``mtrkit.as_mamba_ssm``, and attention by products that torch counts.

    The scan of their own code, and on a CPU torch's fused attention, no counter sees.
    """
    monkeypatch.setattr(hustvl_vim, "loop_scan", mtrkit.selective_scan)
    with sdpa_kernel(SDPBackend.MATH):
        yield


def built(family, method):
    """A tiny model of a family, reduced by a method if there is one."""
    model = FAMILIES[family]()
    return model if method is None else mtrkit.apply_reduction(model, method, ratio=0.3)


def counted(run):
    """What torch counts while ``run`` runs, per image."""
    with FlopCounterMode(display=False) as mode:
        run()
    return mode.get_total_flops() / len(IMAGES)


def ours(model):
    """What mtrkit counts per image."""
    return mtrkit.count_flops(model, directions="all").total


@pytest.mark.parametrize(("family", "method"), CASES)
def test_torch_counts_two_per_multiply_add(family, method):
    model = built(family, method)
    with torch.inference_mode():
        assert counted(lambda: model(IMAGES)) == pytest.approx(2 * ours(model), rel=0.01)
    assert counted(lambda: model(IMAGES)) == pytest.approx(2 * ours(model), rel=0.01)


@pytest.mark.parametrize(("family", "method"), [("vim", None), ("vim", "mtr"), ("vim", "runs")])
def test_a_backward_pass_counts_twice_a_forward_pass(family, method):
    model = built(family, method)
    embedding = mtrkit.count_flops(model, directions="all").embedding  # whose input needs no derivative
    expected = 2 * (3 * ours(model) - embedding)
    assert counted(lambda: model(IMAGES).sum().backward()) == pytest.approx(expected, rel=0.02)


def test_every_operator_has_a_formula():
    names = {
        name.removeprefix("mtrkit::").partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("mtrkit::")
    }
    assert names == set(FORMULAS) and all(getattr(torch.ops.mtrkit, name) in flop_registry for name in names)


@pytest.mark.parametrize("first", ["torch.utils.flop_counter", "mtrkit"])
def test_formulas_are_there_whatever_is_imported_first(first):
    code = f"""
import {first}, mtrkit, torch
assert {first == "mtrkit"} == ("torch.utils.flop_counter" not in sys.modules)
import torch.utils.flop_counter as counter
assert torch.ops.mtrkit.mixer in counter.flop_registry
"""
    done = subprocess.run([sys.executable, "-c", f"import sys{code}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore")  # fvcore traces, and names what it does not count
@pytest.mark.parametrize(("family", "method"), [("vim", None), *[c for c in REDUCTIONS if c[0] != "timm_vit"]])
def test_fvcore_counts_one_per_multiply_add(family, method):
    from fvcore.nn import FlopCountAnalysis

    model = built(family, method)
    analysis = FlopCountAnalysis(model, IMAGES[:1])
    assert analysis.total() == pytest.approx(ours(model), rel=0.01)
    assert not any(name.startswith("mtrkit::") for name in analysis.unsupported_ops())
    with torch.no_grad():
        assert FlopCountAnalysis(model, IMAGES[:1]).total() == pytest.approx(ours(model), rel=0.01)


def test_scans_that_do_not_run_are_not_counted():
    class Half(nn.Module):
        def forward(self, seen):
            return torch.tensor([[1.0, 0.0], [0.0, 0.0]]).to(seen)

    from mtrkit.scan import mixer_forward, mixer_parts
    from mtrkit.types import Gating

    mixer = FAMILIES["vim"]().layers[0].mixer
    hidden, parts = torch.randn(2, 9, 32), mixer_parts(mixer)
    gating = Gating(Half(), torch.zeros(2, 1, dtype=torch.int64))
    with torch.no_grad():
        all_scans = counted(lambda: mixer_forward(hidden, parts))
        some = counted(lambda: mixer_forward(hidden, parts, gating=gating))
    assert some < 0.5 * all_scans
