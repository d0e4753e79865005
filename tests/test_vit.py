"""The adapter for timm's ViT and DeiT: it computes what timm's own blocks compute, and refuses what it cannot."""

import pytest
import torch
import torch.nn.functional as F

import mtrkit
from mtrkit.adapters import find_adapter
from mtrkit.errors import UnsupportedModelError
from mtrkit.patch.mixers import ReadableMixer
from mtrkit.types import MixerCall
from tests.helpers.families import FAMILIES

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
VITS = [name for name in FAMILIES if name.startswith("timm_vit")]
EVERY = frozenset({"keys", "attention"})


@pytest.fixture(params=VITS)
def vit(request):
    return FAMILIES[request.param]()


@torch.no_grad()
def test_a_reducing_block_computes_what_timms_own_does(vit):
    tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(IMAGES)))
    for block in vit.blocks:
        own = block(tokens)
        adapter, call = find_adapter(vit), MixerCall(EVERY)
        block.attn.forward = ReadableMixer(block.attn, adapter)
        ours = adapter.run_block(block, tokens, call)
        torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-5)
        tokens = own
    signals = call.take()
    assert call.signals is None and signals.keys.shape == (2, tokens.shape[1], 16)
    torch.testing.assert_close(signals.attention.sum(1), torch.ones(2, 1))


@torch.no_grad()
def test_signals_are_those_of_a_plain_attention(vit):
    block = vit.blocks[0]
    u = block.norm1(vit._pos_embed(vit.patch_embed(IMAGES)))
    _, signals = find_adapter(vit).run_mixer(block.attn, u, MixerCall(EVERY))
    heads, width = block.attn.num_heads, u.shape[-1] // block.attn.num_heads
    for sample in range(2):
        q, k, _ = F.linear(u[sample], block.attn.qkv.weight, block.attn.qkv.bias).chunk(3, dim=-1)
        keys = [block.attn.k_norm(k[:, h * width : (h + 1) * width]) for h in range(heads)]
        queries = [block.attn.q_norm(q[:, h * width : (h + 1) * width]) for h in range(heads)]
        torch.testing.assert_close(signals.keys[sample], sum(keys) / heads)
        rows = [torch.softmax(queries[h][0] @ keys[h].T * width**-0.5, dim=0) for h in range(heads)]
        torch.testing.assert_close(signals.attention[sample, :, 0], sum(rows) / heads)


def test_real_deit_costs_what_its_paper_says():
    import timm

    model = timm.create_model("deit_tiny_patch16_224")
    assert round(mtrkit.count_flops(model, directions="all").gflops, 1) == 1.3
    mtrkit.apply_reduction(model, "mtr", ratio=0.3, indicator="X")
    assert mtrkit.reduction_info(model).ratio_reached == pytest.approx(0.3, abs=0.005)


def test_what_needs_every_token_between_the_blocks_is_refused(vit):
    mtrkit.apply_reduction(vit, "mtr", indicator="X")
    with pytest.raises(UnsupportedModelError, match="forward_intermediates"):
        vit.forward_intermediates(IMAGES)
    with pytest.raises(UnsupportedModelError, match="mask"):
        vit.forward_features(IMAGES, attn_mask=torch.zeros(1))
    with mtrkit.reduction_disabled(vit):
        vit.forward_intermediates(IMAGES)


def test_signals_of_a_mamba_are_refused_by_name(vit):
    with pytest.raises(UnsupportedModelError, match="reads delta_mean, which models of 'timm_vit' do not have"):
        mtrkit.apply_reduction(vit, "mtr")
    assert mtrkit.reduction_info(vit) is None


def test_tome_costs_what_its_paper_says():
    """ToMe at r = 13 brings DeiT-S from 4.6 to 2.7 GFLOPs (Bolya et al., arXiv:2210.09461)."""
    import timm

    model = timm.create_model("deit_small_patch16_224")
    mtrkit.apply_reduction(model, "tome", r=13, layers=range(1, 13))
    assert round(mtrkit.count_flops(model, directions="all").gflops, 1) == 2.7
