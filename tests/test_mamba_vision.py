"""MambaVision is reduced inside its third stage, and everything outside of that stage sees the whole grid."""

import copy
import sys
import warnings

import pytest
import torch
from torch import nn

import mtrkit
from mtrkit.adapters import find_adapter
from tests.standins.mamba_vision import Attention, MambaVision, Mixer
from tests.test_matrix import fingerprint

IMAGES = torch.randn(3, 3, 128, 128, generator=torch.Generator().manual_seed(4))
METHODS = ("tome", "random", "rmeeto")
FEATURES = {"rmeeto": {"indicator": "X"}}  # what a method reads by default, where that is no feature


@pytest.fixture
def model():
    return MambaVision().eval()


def reduce(model, method="tome", ratio=0.1, **options):
    return mtrkit.apply_reduction(model, method, ratio, **(FEATURES.get(method, {}) | options))


@torch.no_grad()
def stage_output(model, images=IMAGES):
    """(B, rows, columns, D) in front of the convolution that ends the third stage."""
    seen = []
    handle = model.levels[2].downsample.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    model(images)
    handle.remove()
    return seen[0].permute(0, 2, 3, 1)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_reduces_and_restores(model, method):
    before, dense = fingerprint(model), model(IMAGES)
    reduce(model, method)
    info, reduced = mtrkit.reduction_info(model), model(IMAGES)
    assert info.adapter == "mamba_vision" and info.num_tokens == 64 and info.tokens[-1] < 64
    assert reduced.shape == dense.shape and not torch.equal(reduced, dense)
    with mtrkit.reduction_disabled(model):
        assert torch.equal(model(IMAGES), dense)
    reduce(model, method, ratio=0)
    assert torch.equal(model(IMAGES), dense)
    mtrkit.remove_reduction(model)
    assert fingerprint(model) == before and torch.equal(model(IMAGES), dense)


@pytest.mark.parametrize("method", METHODS)
def test_the_stage_passes_on_the_whole_grid(model, method):
    reduce(model, method)
    with mtrkit.trace_reduction(model) as trace:
        rows = stage_output(model).flatten(1, 2)
    assert rows.shape == (3, 64, 32)
    for sample in range(len(IMAGES)):
        kept = trace.slot[sample] >= 0
        together = (trace.slot[sample][:, None] == trace.slot[sample])[kept][:, kept]
        found = rows[sample][kept]
        assert torch.equal((found[:, None] == found).all(dim=-1), together)


@torch.no_grad()
def test_blocks_run_on_fewer_tokens(model):
    seen = []
    for block in model.levels[2].blocks:
        block.norm1.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    reduce(model)(IMAGES)
    info = mtrkit.reduction_info(model)
    assert seen == [64, *info.tokens[:-1]] and len(set(seen)) > 1


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch(model):
    reduce(model)
    alone = torch.cat([model(image[None]) for image in IMAGES])
    torch.testing.assert_close(model(IMAGES), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(128, 128), (256, 128), (200, 136)])
@torch.no_grad()
def test_flops_are_those_of_the_layers_that_run(model, size):
    counted = []

    def count(module, args, out):
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            channels = 1 if isinstance(module, nn.Linear) else out.shape[1]
            places = out.numel() // out.shape[-1] if channels == 1 else out.numel() // channels
            counted.append(module.weight.numel() * places)
        elif isinstance(module, Attention):
            counted.append(2 * out.numel() * out.shape[1])
        elif isinstance(module, Mixer):
            counted.append(out.numel() // 2 * (9 * 8 + 1))

    for module in model.modules():
        module.register_forward_hook(count)
    model(torch.randn(1, 3, *size))
    assert mtrkit.count_flops(model, (3, *size)).total == pytest.approx(sum(counted), rel=1e-6)


@torch.no_grad()
def test_windows_are_reduced_each_by_itself(model):
    """At twice the size there are four windows; the first stage's padding makes none of them another length."""
    reduce(model)
    images = torch.randn(2, 3, 256, 200)
    assert stage_output(model, images).shape == (2, 16, 13, 32)
    assert model(images).shape == (2, 10)


def test_matching_is_counted_in_every_window(model):
    small, large = (mtrkit.count_flops(reduce(model, ratio=0.05), input_size=(3, side, side)) for side in (128, 256))
    assert small.tokens == large.tokens and sum(small.reductions) > 0
    assert large.reductions == tuple(4 * cost for cost in small.reductions)
    assert large.blocks == tuple(4 * cost for cost in small.blocks)


def test_methods_that_read_a_scan_are_refused(model):
    with pytest.raises(mtrkit.UnsupportedModelError, match="'mtr'.*delta.*'mamba_vision'"):
        mtrkit.apply_reduction(model)


def test_more_than_the_stage_has_is_out_of_reach(model):
    with pytest.raises(mtrkit.ScheduleError, match=r"0\.\d+"):
        reduce(model, ratio=0.6)


def test_gradients_and_copies(model):
    reduce(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(copied(IMAGES), model(IMAGES))
    model(IMAGES).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("part", ["mlp", "gamma_1"])
def test_another_form_is_named(model, part):
    delattr(model.levels[2].blocks[1], part)
    with pytest.raises(mtrkit.UnsupportedModelError, match=f"mamba_vision: a block of `levels` has no `{part}`"):
        mtrkit.apply_reduction(model)


@pytest.fixture
def package():
    """The package of its authors, over our scan where mamba_ssm, which builds for CUDA only, is not installed."""
    with mtrkit.as_mamba_ssm(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("mambavision", reason="pip install --no-deps mambavision einops")


@torch.no_grad()
def test_the_package_runs_on_our_scan(package, monkeypatch):
    model, images = package.create_model("mamba_vision_T", pretrained=False).eval(), torch.randn(1, 3, 224, 224)
    code, logits, calls = sys.modules[type(model).__module__], model(images), []

    def by_loops(*arguments, **options):
        calls.append(len(arguments))
        return mtrkit.selective_scan(*arguments, **options | {"backend": "reference"})

    monkeypatch.setattr(code, "selective_scan_fn", by_loops)
    torch.testing.assert_close(logits, model(images), rtol=1e-4, atol=1e-5)
    assert calls


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_the_package_of_its_authors(package, method):
    model, images = package.create_model("mamba_vision_T", pretrained=False).eval(), torch.randn(2, 3, 224, 224)
    assert find_adapter(model).name == "mamba_vision"
    assert mtrkit.count_flops(model).gflops == pytest.approx(4.4, rel=0.05)  # as published
    before, dense = fingerprint(model), model(images)
    reduced = reduce(model, method)(images)
    assert reduced.shape == (2, 1000) and not torch.equal(reduced, dense)
    mtrkit.remove_reduction(model)
    assert fingerprint(model) == before and torch.equal(model(images), dense)
