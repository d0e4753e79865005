"""The bundled pretrained models on bundled real images: they know them, and answers change more the more is removed."""

import pytest
import torch

import mtrkit
from mtrkit.models.releases import BUNDLED
from tests.models.shared import real_images

FLOORS = {0.05: 15.4, 0.2: 8.4, 0.5: 2.4}  # dB of the dense logits over the difference, 1 below those seen


@torch.no_grad()
def test_logits_lose_more_the_more_is_removed():
    model = mtrkit.create_model("vim_micro_patch4_32", checkpoint="pretrained")
    images, _ = real_images(16)
    dense = model(images)
    decibels = []
    for ratio, floor in FLOORS.items():
        mtrkit.apply_reduction(model, ratio=ratio)
        noise = (model(images) - dense).square().mean()
        decibels.append(float(10 * torch.log10(dense.square().mean() / noise)))
        assert decibels[-1] > floor, (ratio, decibels)
    assert decibels == sorted(decibels, reverse=True)
    assert torch.equal(mtrkit.remove_reduction(model)(images), dense)


@pytest.mark.parametrize("name", BUNDLED)
@torch.inference_mode()
def test_every_bundled_model_knows_the_images(name):
    images, labels = real_images(10)
    model = mtrkit.create_model(name, checkpoint="pretrained")
    assert (model(images).argmax(dim=1) == labels).float().mean() > 0.65
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
