"""Weights of RGB models in models of other channels, as timm adapts them."""

import pytest
import torch

import mtrkit

NAME = "vim_nano_patch4_stride2_32"


@pytest.mark.parametrize("channels", [1, 2, 4])
@torch.no_grad()
def test_a_grey_image_is_seen_as_its_rgb_copy(channels):
    """Equal channels give what as many equal ones gave."""
    rgb, other = mtrkit.create_model(NAME, "pretrained"), mtrkit.create_model(NAME, "pretrained", in_chans=channels)
    grey = torch.randn(2, 1, 32, 32)
    weight, ours = rgb.patch_embed.proj.weight, other.patch_embed.proj.weight
    if channels == 1:
        torch.testing.assert_close(other(grey), rgb(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)
    assert torch.equal(ours[:, 0], weight.sum(1) if channels == 1 else weight[:, 0] * (3 / channels))


def test_timm_adapts_them_alike():
    adapt = pytest.importorskip("timm.models").adapt_input_conv
    weight = mtrkit.create_model(NAME, "pretrained").patch_embed.proj.weight.detach()
    for channels in (1, 2, 4):
        ours = mtrkit.create_model(NAME, "pretrained", in_chans=channels).patch_embed.proj.weight
        torch.testing.assert_close(ours.detach(), adapt(channels, weight.clone()))
