"""Weights of RGB models in models of other channels, as timm adapts them."""

import pytest
import torch

import mtrkit

NAME = "vim_nano_patch4_stride2_32"


@torch.no_grad()
def test_a_grey_image_is_seen_as_its_rgb_copy():
    rgb, grey = mtrkit.create_model(NAME, "pretrained"), mtrkit.create_model(NAME, "pretrained", in_chans=1)
    images = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(grey(images), rgb(images.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_timm_adapts_them_alike():
    adapt = pytest.importorskip("timm.models").adapt_input_conv
    weight = mtrkit.create_model(NAME, "pretrained").patch_embed.proj.weight.detach()
    for channels in (1, 2, 4, 7):
        ours = mtrkit.create_model(NAME, "pretrained", in_chans=channels).patch_embed.proj.weight
        torch.testing.assert_close(ours.detach(), adapt(channels, weight.clone()))
