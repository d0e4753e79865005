"""timm finds the models and its tools work on them; nothing of it is needed otherwise."""

import subprocess
import sys

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

import mtrkit
from mtrkit.models import create_model
from mtrkit.models.releases import BUNDLED, OFFICIAL
from tests.models.shared import IMAGES, tiny

NAMES = mtrkit.list_models()


def micro(**options):
    return timm.create_model("vim_micro_patch4_32", **options).eval()


def test_every_model_is_registered():
    assert set(NAMES) <= set(timm.list_models(["vim_*", "videomamba_*", "mambar_*"]))
    with_weights = {*OFFICIAL, *BUNDLED}
    assert set(timm.list_models(["vim_*", "videomamba_*"], pretrained=True)) >= with_weights


@pytest.mark.parametrize("name", NAMES)
def test_created_through_timm_and_through_us_alike(name):
    with torch.device("meta"):
        theirs, ours = timm.create_model(name), create_model(name)
    assert type(theirs) is type(ours)
    assert {k: v.shape for k, v in theirs.state_dict().items()} == {k: v.shape for k, v in ours.state_dict().items()}
    for key in ("input_size", "mean", "std", "interpolation", "crop_pct", "num_classes", "architecture"):
        assert theirs.pretrained_cfg[key] == ours.pretrained_cfg[key]


@torch.no_grad()
def test_pretrained():
    images = torch.randn(2, 3, 32, 32)
    wanted = create_model("vim_micro_patch4_32", "pretrained")(images)
    assert torch.equal(micro(pretrained=True)(images), wanted)
    other = micro(pretrained=True, num_classes=3)
    assert other(images).shape == (2, 3)
    assert torch.equal(other.norm_f.weight, micro(pretrained=True).norm_f.weight)
    larger = micro(pretrained=True, img_size=48)
    assert larger.pos_embed.shape == (1, 145, 96)
    assert timm.data.resolve_model_data_config(larger)["mean"] == (0.4914, 0.4822, 0.4465)


@torch.no_grad()
def test_features_only():
    model = micro(features_only=True, out_indices=(2, -4))
    assert [tuple(f.shape) for f in model(torch.randn(2, 3, 32, 32))] == [(2, 96, 8, 8)] * 2
    assert model.feature_info.channels() == [96, 96] and model.feature_info.reduction() == [4, 4]
    assert len(model.model.layers) == 9


@torch.no_grad()
def test_forward_is_features_then_head():
    model = tiny()
    tokens = model.forward_features(IMAGES)
    assert tokens.shape == (3, 17, 32)
    assert torch.equal(model.forward_head(tokens), model(IMAGES))
    assert torch.equal(model.forward_head(tokens, pre_logits=True), tokens[:, 8])


def test_reset_classifier():
    model = tiny().double()
    model.reset_classifier(7)
    assert model.get_classifier().out_features == 7 and model.global_pool == "token"
    assert model(IMAGES.double()).shape == (3, 7)
    model.reset_classifier(0, "avg")
    assert model.num_classes == 0 and model(IMAGES.double()).shape == (3, 32)
    with pytest.raises(mtrkit.OptionError, match="needs a class token"):
        tiny(class_token="none", global_pool="avg").reset_classifier(3, "token")


@torch.no_grad()
def test_intermediates_agree_with_forward():
    model = tiny()
    final, features = model.forward_intermediates(IMAGES)
    assert torch.equal(final, model.forward_features(IMAGES))
    assert [tuple(f.shape) for f in features] == [(3, 32, 4, 4)] * 3
    (last,) = model.forward_intermediates(IMAGES, indices=1, norm=True, output_fmt="NLC", intermediates_only=True)
    assert torch.equal(last, torch.cat([final[:, :8], final[:, 9:]], dim=1))
    assert torch.equal(features[0].flatten(2).transpose(1, 2)[:, 8], _after_first_block(model)[:, 9])


def _after_first_block(model):
    hidden, residual = model.layers[0](model._embed(IMAGES))
    return hidden + residual


@torch.no_grad()
def test_intermediates_of_chosen_blocks():
    model = tiny()
    _, every = model.forward_intermediates(IMAGES)
    final, some = model.forward_intermediates(IMAGES, [0, -2], stop_early=True)
    assert torch.equal(some[0], every[0]) and torch.equal(some[1], every[1])
    tokens = model.forward_intermediates(IMAGES, [1], return_prefix_tokens=True, output_fmt="NLC")[1][0]
    assert tokens[0].shape == (3, 16, 32) and tokens[1].shape == (3, 1, 32)
    pruned = tiny()
    pruned.load_state_dict(model.state_dict())
    assert pruned.prune_intermediate_layers([0, -2]) == [0, 1] and len(pruned.layers) == 2
    assert torch.equal(pruned.forward_intermediates(IMAGES, [1], intermediates_only=True)[0], every[1])
    assert torch.equal(pruned.forward_features(IMAGES), final)


@pytest.mark.parametrize("indices", [0, 4, [3], [-4], []])
def test_blocks_that_are_not_there(indices):
    with pytest.raises(mtrkit.OptionError, match="3 blocks"):
        tiny().forward_intermediates(IMAGES, indices)
    with pytest.raises(mtrkit.OptionError, match="'NCHW', 'NLC'"):
        tiny().forward_intermediates(IMAGES, output_fmt="NHWC")


@pytest.mark.parametrize("class_token", ["middle", "front"])
@torch.no_grad()
def test_intermediates_of_a_reduced_model_are_on_the_full_grid(class_token):
    model = tiny(class_token=class_token, depth=6)
    dense = model.forward_intermediates(IMAGES, norm=True)
    mtrkit.apply_reduction(model, ratio=0.2, layers=(3,))
    reduced = model.forward_intermediates(IMAGES, norm=True)
    assert torch.equal(reduced[0], model.forward_features(IMAGES))
    assert [f.shape for f in reduced[1]] == [f.shape for f in dense[1]]
    same = [torch.equal(a, b) for a, b in zip(reduced[1], dense[1], strict=True)]
    assert same == [True, True, False, False, False, False]
    early, _ = model.forward_intermediates(IMAGES, [3], stop_early=True)
    assert early.shape == dense[0].shape


def test_no_weight_decay():
    model = tiny()
    skipped = model.no_weight_decay()
    assert {"pos_embed", "cls_token", "layers.2.mixer.A_b_log", "layers.0.mixer.D_b"} <= skipped
    assert len(skipped) == 2 + 4 * 3
    marked = {name for name, p in model.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert marked == skipped - {"pos_embed", "cls_token"}
    plain, decayed = param_groups_weight_decay(model, 0.05, no_weight_decay_list=skipped)
    assert plain["weight_decay"] == 0 and len(decayed["params"]) == 2 + 3 * 8


def test_layer_decay_groups():
    groups = param_groups_layer_decay(tiny(), layer_decay=0.5)
    assert sorted({group["lr_scale"] for group in groups}) == [0.0625, 0.125, 0.25, 0.5, 1.0]
    assert len(tiny().group_matcher(coarse=True)) == 2


def test_training_step_with_drop_path_and_dropout():
    model = tiny(drop_path_rate=0.3, drop_rate=0.1).train()
    before = model(IMAGES)
    assert not torch.equal(before, model(IMAGES))
    before.sum().backward()


BLOCKED = """
import sys
sys.modules["timm"] = {fake}
import mtrkit.models, torch
model = mtrkit.models.create_model("vim_micro_patch4_32", "pretrained")
assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
mtrkit.models._timm.register_with_timm()
"""
BROKEN = "type('Broken', (), {'__path__': property(lambda self: 1 / 0), '__spec__': None})()"


@pytest.mark.parametrize("fake", ["None", BROKEN], ids=["absent", "broken"])
def test_without_timm(fake):
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(fake=fake)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
