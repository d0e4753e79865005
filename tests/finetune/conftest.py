"""A small data set of real images, and a model that learns a step in milliseconds."""

import pytest
import torch
from PIL import Image

import mtrkit
from mtrkit.data import bundled_images
from mtrkit.finetune import Recipe
from mtrkit.models import VisionMamba

PLAIN = {"mixup": 0.0, "cutmix": 0.0, "auto_augment": None, "color_jitter": 0.0, "erase": 0.0, "repeats": 1}


def tiny_model(seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 4, "num_classes": 4}
    return VisionMamba(**{**sizes, **options})


def reduced(method="runs", ratio=0.25, **options):
    return mtrkit.apply_reduction(tiny_model(**options), method, ratio=ratio, layers=[1, 2])


def recipe(**changes):
    return Recipe(**{"epochs": 2, "batch_size": 8, "lr": 1e-3, "min_lr": 1e-4, **PLAIN, **changes})


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """48 bundled images of four classes, as PNG files."""
    root = tmp_path_factory.mktemp("images")
    images, labels, classes = bundled_images()
    for label in range(4):
        (root / classes[label]).mkdir()
        for number, index in enumerate((labels == label).nonzero()[0][:12]):
            Image.fromarray(images[index]).save(root / classes[label] / f"{number}.png")
    return root
