"""Mamba-Reg: sizes as published, the official layout loads unchanged, and registers are where they belong."""

import pytest
import torch

import mtrkit
from mtrkit.errors import CheckpointError, OptionError
from mtrkit.models import MambaReg, load_checkpoint
from tests.models.plain_vim import on_one_thread
from tests.standins import official

SIZES = {  # parameters, keys, tokens and width that the head reads, of the official classes
    "mambar_tiny_patch16_224": (9_264_232, 416, 208, 2304),
    "mambar_small_patch16_224": (27_801_064, 418, 208, 2304),
    "mambar_base_patch16_224": (99_301_096, 418, 208, 2304),
    "mambar_large_patch16_224": (341_222_376, 826, 212, 2048),
}
SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_classes": 10}


def small(**options):
    torch.manual_seed(0)
    return MambaReg(**(SMALL | options)).eval()


@pytest.mark.parametrize("name", SIZES)
def test_models_are_those_published(name):
    with torch.device("meta"):
        model = mtrkit.create_model(name)
    flops = mtrkit.count_flops(model)
    found = sum(p.numel() for p in model.parameters()), len(model.state_dict()), flops.tokens[0], model.head.in_features
    assert found == SIZES[name]


@pytest.mark.parametrize(("registers", "reduce"), [(3, 1), (4, 2), (12, 4)])
@on_one_thread
@torch.no_grad()
def test_official_weights_load_unchanged_and_answer_alike(registers, reduce, tmp_path):
    theirs = official.MambaReg(depth=3, num_cls_tokens=registers, cls_reduce=reduce).eval()
    torch.save({"model": theirs.state_dict()}, tmp_path / "official.pth")
    ours = small(num_registers=registers, reduce=reduce)
    load_checkpoint(ours, tmp_path / "official.pth")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)
    assert list(ours.places) == theirs.cls_positions.tolist()


@torch.no_grad()
def test_parts_of_the_sequence():
    model, images = small(num_registers=5), torch.randn(2, 3, 32, 32)
    tokens = model._embed(images)
    patches, registers = model._apart(tokens)
    torch.testing.assert_close(patches, model.patch_embed(images) + model.pos_embed)
    torch.testing.assert_close(registers, (model.cls_token + model.pos_embed_cls).expand(2, -1, -1))
    maps, special = model.forward_intermediates(images, 1, return_prefix_tokens=True, intermediates_only=True)[0]
    assert maps.shape == (2, 32, 8, 8) and special.shape == (2, 5, 32)


@torch.no_grad()
def test_other_sizes_and_heads(tmp_path):
    model = small(num_registers=4, reduce=2)
    torch.save(model.state_dict(), tmp_path / "small.pth")
    larger = small(num_registers=4, reduce=2, img_size=48)
    load_checkpoint(larger, tmp_path / "small.pth")
    model.set_input_size(48)
    images = torch.randn(1, 3, 48, 48)
    assert torch.equal(model(images), larger(images))
    for pool, width in (("avg", 32), ("", 32), ("token", 64)):
        model.reset_classifier(7, pool)
        assert model.head.in_features == width and model(images).shape[-1] == 7


@torch.no_grad()
def test_registers_are_protected_image_by_image():
    model = small(num_registers=6)
    mtrkit.apply_reduction(model, ratio=0.3, layers=(1, 2))
    with mtrkit.trace_reduction(model) as trace:
        model(torch.randn(3, 3, 32, 32))
    for sample in trace.stages[-1].present.tolist():
        assert set(model.places) <= set(sample)


def test_a_size_that_is_refused_changes_nothing():
    model = small(num_registers=12)
    images, before = torch.randn(1, 3, 32, 32), model.state_dict()
    with torch.no_grad():
        answer = model(images)
        for size in (8, 1):
            with pytest.raises(OptionError):
                model.set_input_size(size)
        assert torch.equal(model(images), answer)
    assert all(value is before[name] or torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_cannot_be():
    with pytest.raises(OptionError, match="registers in its place; leave class_token out"):
        small(class_token="middle")
    with pytest.raises(OptionError, match="more patches"):
        small(num_registers=64)
    with pytest.raises(OptionError, match="divisor"):
        small(reduce=5)
    with pytest.raises(CheckpointError, match="no registers"):
        small().adapt_state_dict({"pos_embed": torch.zeros(1, 64, 32)})
