"""A model small enough to build in every test, and real images for the bundled one."""

import torch

from mtrkit.data import bundled_images
from mtrkit.models import VisionMamba

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def tiny(**options):
    """Three blocks of width 32 on 16x16 images, in eval mode, with weights that make tokens differ."""
    chosen = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_classes": 5} | options
    model = VisionMamba(**chosen).eval()
    with torch.no_grad():
        model.pos_embed.mul_(20)
        model.head.weight.mul_(20) if chosen["num_classes"] else None
    return model


def real_images(step):
    """Every ``step``-th bundled image, normalised as the bundled model wants it, with labels."""
    images, labels, _ = bundled_images()
    x = torch.from_numpy(images[::step].copy()).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.247, 0.2435, 0.2616])
    return (x - mean[:, None, None]) / std[:, None, None], torch.from_numpy(labels[::step].copy())
