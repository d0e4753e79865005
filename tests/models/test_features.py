"""Backbones that return feature maps: every map on the full grid, each place with the features of its own token."""

import pytest
import timm
import torch

import mtrkit
from tests.models.shared import tiny

BLOCKS = (5, 11, 17, 23)  # whose features UperNet reads in the setting of DyVM on ADE20K
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
PLACES = (2, 4, 7)  # blocks to reduce after, from 1: maps are taken at, between and after them
OUT = (0, 1, 2, 3, 5, 6, 8)


def backbone(class_token="none"):
    """Nine blocks on 8x8 patches, as a backbone in eval mode."""
    model = tiny(img_size=32, class_token=class_token, depth=9)
    return mtrkit.models.FeatureMaps(model, OUT).eval()


def reduce(model, **options):
    return mtrkit.apply_reduction(model, ratio=0.3, layers=PLACES, **options)


def rows(maps, sample):
    """(M, D) features of one image, patch by patch."""
    return maps[sample].flatten(1).T


def patch_slots(model, slot):
    """(B, M) of (B, L): the patches' columns, without the class token's."""
    index = model.model.class_index
    return slot if index is None else torch.cat([slot[:, :index], slot[:, index + 1 :]], dim=1)


def stages_before(trace, index):
    """The reductions whose effect the map after block ``index`` shows."""
    return [stage for stage in trace.stages if stage.layer <= index + 1]


@pytest.mark.parametrize("create", [timm.create_model, mtrkit.create_model])
@pytest.mark.parametrize("class_token", ["none", "middle"])
@torch.no_grad()
def test_the_setting_of_ade20k(create, class_token):
    options = {"img_size": 512, "class_token": class_token, "embed_dim": 16, "d_state": 4}
    model = create("vim_tiny_patch16_224", features_only=True, out_indices=BLOCKS, **options).eval()
    image = torch.randn(1, 3, 512, 512)
    dense = model(image)
    assert [tuple(features.shape) for features in dense] == [(1, 16, 32, 32)] * 4
    assert model.feature_info.channels() == [16] * 4 and model.feature_info.reduction() == [16] * 4
    mtrkit.apply_reduction(model, ratio=0.3)
    assert mtrkit.reduction_info(model).num_tokens == 1024 + (class_token == "middle")
    reduced = model(image)
    assert [features.shape for features in reduced] == [features.shape for features in dense]
    assert not any(map(torch.equal, reduced, dense))


@torch.no_grad()
def test_ours_and_timms_backbone_are_one():
    options = {"features_only": True, "out_indices": (2, -4)}
    ours = mtrkit.create_model("vim_micro_patch4_32", "pretrained", **options)
    theirs = timm.create_model("vim_micro_patch4_32", pretrained=True, **options).eval()
    assert ours.state_dict().keys() == theirs.state_dict().keys() and not ours.training
    assert ours.feature_info.channels() == theirs.feature_info.channels()
    assert ours.feature_info.reduction() == theirs.feature_info.reduction()
    for model in (ours, theirs):
        mtrkit.apply_reduction(model)
    assert all(map(torch.equal, ours(IMAGES), theirs(IMAGES)))


@torch.no_grad()
def test_backbone_and_its_model_may_be_passed_alike():
    outer, inner = backbone(), backbone()
    inner.load_state_dict(outer.state_dict())
    reduce(outer)
    reduce(inner.model)
    assert mtrkit.reduction_info(inner) == mtrkit.reduction_info(outer)
    assert all(map(torch.equal, inner(IMAGES), outer(IMAGES)))


@pytest.mark.parametrize("class_token", ["none", "middle", "front"])
@torch.no_grad()
def test_ratio_zero_and_removal_change_no_bit(class_token):
    model = backbone(class_token)
    dense = model(IMAGES)
    mtrkit.apply_reduction(model, ratio=0)
    assert all(map(torch.equal, model(IMAGES), dense))
    reduce(model)
    assert [torch.equal(*pair) for pair in zip(model(IMAGES), dense, strict=True)] == [True] + [False] * 6
    with mtrkit.reduction_disabled(model):
        assert all(map(torch.equal, model(IMAGES), dense))
    mtrkit.remove_reduction(model)
    assert all(map(torch.equal, model(IMAGES), dense))


@pytest.mark.parametrize("class_token", ["none", "middle", "front"])
@pytest.mark.parametrize("method", ["mtr", "tome", "rmeeto"])
@torch.no_grad()
def test_merged_places_share_their_features(method, class_token):
    model = reduce(backbone(class_token), method=method)
    with mtrkit.trace_reduction(model) as trace:
        maps = model(IMAGES)
    for index, features in zip(OUT[1:], maps[1:], strict=True):
        slot = patch_slots(model, stages_before(trace, index)[-1].slot)
        for sample in range(len(IMAGES)):
            found = rows(features, sample)
            together = slot[sample][:, None] == slot[sample]
            same = (found[:, None] == found).all(dim=-1)
            assert torch.equal(same, together), f"the map after block {index} is not aligned"


@pytest.mark.parametrize("class_token", ["none", "middle"])
@torch.no_grad()
def test_a_place_gets_the_mean_of_what_was_merged_there(class_token):
    model = reduce(backbone(class_token))
    with mtrkit.reduction_disabled(model):
        dense = model(IMAGES)[1]
    with mtrkit.trace_reduction(model) as trace:
        reduced = model(IMAGES)[1]  # after the first reducing block: dense features, merged once
    slot = patch_slots(model, trace.stages[0].slot)
    for sample in range(len(IMAGES)):
        together = (slot[sample][:, None] == slot[sample]).float()
        means = together @ rows(dense, sample) / together.sum(dim=1, keepdim=True)
        torch.testing.assert_close(rows(reduced, sample), means, rtol=1e-5, atol=1e-6)
        alone = together.sum(dim=1) == 1
        assert alone.any() and not alone.all()
        assert torch.equal(rows(reduced, sample)[alone], rows(dense, sample)[alone])


@torch.no_grad()
def test_dropped_places_keep_their_last_features():
    model = reduce(backbone(), operation="prune")
    with mtrkit.trace_reduction(model) as trace:
        maps = dict(zip(OUT, model(IMAGES), strict=True))
    with mtrkit.reduction_disabled(model):
        dense = dict(zip(OUT, model(IMAGES), strict=True))
    dropped = trace.stages[0].slot.unflatten(1, (8, 8)) < 0
    assert dropped.any()
    last = dense[PLACES[0] - 1].permute(0, 2, 3, 1)[dropped]
    for index in OUT[1:]:
        assert torch.equal(maps[index].permute(0, 2, 3, 1)[dropped], last)
        assert not torch.equal(dense[index].permute(0, 2, 3, 1)[dropped], last) or index + 1 == PLACES[0]


def test_out_indices_need_features_only():
    with pytest.raises(mtrkit.OptionError, match="features_only=True"):
        mtrkit.create_model("vim_micro_patch4_32", out_indices=(1,))
    with pytest.raises(mtrkit.OptionError, match="12 blocks"):
        mtrkit.create_model("vim_micro_patch4_32", features_only=True, out_indices=(12,))


def test_without_a_class_token_patches_are_averaged():
    assert mtrkit.create_model("vim_micro_patch4_32", class_token="none").global_pool == "avg"
    with pytest.raises(mtrkit.OptionError, match="needs a class token"):
        mtrkit.create_model("vim_micro_patch4_32", class_token="none", global_pool="token")
