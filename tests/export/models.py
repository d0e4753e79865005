"""What is exported in the tests: models as small as they can be and still reduce, and what they see."""

import torch

import mtrkit
from tests.helpers.families import FAMILIES, _spread

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(5))
SHAPE = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_classes": 5}


def vim(method=None, **options):
    """A Vim of 17 tokens and two blocks, of which the first reduces."""
    torch.manual_seed(0)
    model = _spread(mtrkit.VisionMamba(**SHAPE).eval())
    if method:
        mtrkit.apply_reduction(model, method, **({"ratio": 0.15, "layers": [1]} | options))
    return model


def family(name, method=None):
    """A small model of a family, for images of 32 × 32. It has two blocks only, because tracing a block takes long."""
    model, blocks = FAMILIES[name](), "blocks" if name.startswith("timm") else "layers"
    setattr(model, blocks, getattr(model, blocks)[:2])
    return mtrkit.apply_reduction(model, method, ratio=0.15, layers=[1]) if method else model


@torch.no_grad()
def answer(model, images=IMAGES):
    """What the model itself says."""
    return model(images)
