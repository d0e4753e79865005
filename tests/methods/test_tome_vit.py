"""ToMe inside a ViT gives what the paper's formulas give, in a whole model, and costs what is counted."""

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import mtrkit
from mtrkit.errors import OptionError, ScheduleError, UnsupportedModelError
from mtrkit.schedule import TransformerShape, model_flops, solve_ratio
from tests.helpers.families import FAMILIES
from tests.methods import plain_vit

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3, "num_classes": 7}
KINDS = {
    "none": ({"class_token": False, "global_pool": "avg"}, ()),
    "none, norm in front of the mean": ({"class_token": False, "global_pool": "avg", "fc_norm": False}, ()),
    "class": ({}, ("cls_token",)),
    "class, all norms": ({"qk_norm": True, "init_values": 0.5}, ("cls_token",)),
    "class and distillation": (None, ("cls_token", "dist_token")),
    "class and register": ({"reg_tokens": 1}, ("cls_token", "reg_token")),
    "class and four registers": ({"reg_tokens": 4}, ("cls_token", "reg_token")),
}


def vit(kind):
    """A small float64 model with weights that make tokens differ, and the names of its tokens in front."""
    torch.manual_seed(3)
    options, prefixes = KINDS[kind]
    model = VisionTransformerDistilled(**SIZES) if options is None else VisionTransformer(**SIZES, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model.double().eval(), prefixes


@torch.no_grad()
def assert_same(kind, counts, options=None, plainly=None):
    """The model reduced with ``options`` and the plain one with ``plainly``: logits to 1e-10, on every picture."""
    model, prefixes = vit(kind)
    length = 16 + model.num_prefix_tokens
    left = [length - sum(counts[: i + 1]) for i in range(len(counts))]
    mtrkit.apply_reduction(model, "tome", tokens=left, **options or {})
    logits, w = model(IMAGES), plain_vit.weights_of(model)
    for picture, row in zip(IMAGES.numpy(), logits, strict=True):
        wanted, sizes = plain_vit.forward(picture, w, counts, heads=3, patch=8, prefixes=prefixes, **plainly or {})
        assert len(sizes) == left[-1]
        torch.testing.assert_close(row, torch.from_numpy(wanted), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (3, 3, 3, 0), (3, 3, 2, 2), (0, 8, 0, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_vit_is_the_papers(kind, counts):
    assert_same(kind, counts)


VARIANTS = [
    ({"place": "after_block"}, {"place": "after_block"}),
    ({"proportional_attention": False}, {"weighs": False}),
    ({"proportional_attention": False, "place": "after_block"}, {"weighs": False, "place": "after_block"}),
    ({"grouping": "odd_even"}, {"counted": False}),
    ({"order": "restore"}, {"order": "restore"}),
    ({"metric": "X"}, {"metric": "X"}),
    ({"metric": "features", "place": "after_block"}, {"metric": "X", "place": "after_block"}),
]


@pytest.mark.parametrize("kind", ["none", "class", "class and register"])
@pytest.mark.parametrize(("options", "plainly"), VARIANTS)
def test_so_are_its_options(kind, options, plainly):
    assert_same(kind, (3, 4, 3, 0), options, plainly)


def test_defaults_follow_the_kind_of_model():
    model = mtrkit.apply_reduction(FAMILIES["timm_vit"](), "tome")
    own = {"metric": "keys", "order": "leave", "grouping": "sequence", "place": "before_mlp"}
    assert own.items() <= mtrkit.reduction_info(model).options.items()
    assert mtrkit.reduction_info(model).options["proportional_attention"] is True
    model = mtrkit.apply_reduction(FAMILIES["vim"](), "tome")
    own = {"metric": "X", "order": "restore", "grouping": "odd_even", "place": "after_block"}
    assert own.items() <= mtrkit.reduction_info(model).options.items()
    assert mtrkit.reduction_info(model).options["proportional_attention"] is False


@pytest.mark.parametrize("option", [{"place": "before_mlp"}, {"proportional_attention": True}])
def test_a_mamba_has_no_such_blocks(option):
    with pytest.raises(UnsupportedModelError, match=f"{next(iter(option))}.*needs blocks of attention and MLP.*leave"):
        mtrkit.apply_reduction(FAMILIES["vim"](), "tome", **option)


def test_the_last_block_reduces_only_before_its_mlp():
    model, _ = vit("class")
    mtrkit.apply_reduction(model, "tome", r=2, layers=(1, 4))
    assert mtrkit.reduction_info(model).tokens == (15, 15, 15, 13)
    with pytest.raises(OptionError, match="integers from 1 to 3"):
        mtrkit.apply_reduction(model, "tome", r=2, layers=(1, 4), place="after_block")
    with pytest.raises(ScheduleError, match="after the last block"):
        mtrkit.apply_reduction(model, "tome", tokens=(15, 15, 15, 13), place="after_block")
    with pytest.raises(OptionError, match="integers from 1 to 4: counted from 1$"):
        mtrkit.apply_reduction(model, "tome", layers=(1, 5))


@pytest.mark.parametrize("options", [{}, {"place": "after_block"}, {"proportional_attention": False}])
@pytest.mark.parametrize("kind", ["none", "class", "class and four registers"])
@torch.no_grad()
def test_a_counted_forward_has_the_flops_that_are_promised(kind, options):
    model, _ = vit(kind)
    mtrkit.apply_reduction(model.float(), "tome", r=4, layers=(1, 3), **options)
    for active in (model, mtrkit.remove_reduction):
        if active is not model:
            active(model)
        # What is fused is not counted on every device.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(IMAGES[:1].float())
        counted = mtrkit.count_flops(model, directions="all")
        # How a reduction is counted differs by what merging costs, and by norms that are found twice.
        assert counter.get_total_flops() == pytest.approx(2 * counted.total, rel=0.01 * bool(sum(counted.reductions)))


def test_a_ratio_minds_the_shorter_mlp():
    sizes = {"depth": 12, "dim": 384, "hidden": 1536, "heads": 6, "patch_macs": 384 * 768, "head_macs": 384_000}
    deit = TransformerShape(**sizes, tokens=197, special=1, patches=196, place="before_mlp")
    for ratio in (0.1, 0.25, 0.35):
        schedule = solve_ratio(deit, (3, 6, 9, 12), ratio, reduction_cost=None)
        assert model_flops(deit, schedule).ratio_to(model_flops(deit)) == pytest.approx(ratio, abs=0.003)


class Deaf(torch.nn.Module):
    """Something around a module that hands on its first argument alone."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, *args):
        return self.inner(x)


@torch.no_grad()
def test_a_wrapper_that_holds_the_sizes_back_is_refused():
    model, _ = vit("class")
    mtrkit.apply_reduction(model, "tome", r=2, layers=(1,))
    model.blocks[2].attn = Deaf(model.blocks[2].attn)  # behind the only block that reads
    with pytest.raises(UnsupportedModelError, match="the mixer of block 3 .* holds back an argument"):
        model(IMAGES)
