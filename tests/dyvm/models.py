"""Tiny models of the three families in float64, and trained parts whose choices differ from image to image."""

import torch

from mtrkit.dyvm import DyVM, DyVMCheckpoint
from mtrkit.models import MambaReg, VideoMamba, VisionMamba

SIZE = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 4, "num_classes": 5}
MODELS = {
    "vim": lambda: VisionMamba(**SIZE),
    "videomamba": lambda: VisionMamba(**SIZE, class_token="front", halve=False),
    "mambareg": lambda: MambaReg(**SIZE, num_registers=12),
    "mean": lambda: VisionMamba(**SIZE, class_token="none"),
}
LAYERS = (1, 2, 3)


def biased():
    """A model without a class token whose blocks add something to every token, whatever their scans say."""
    model = MODELS["mean"]()
    for block in model.layers:
        block.mixer.out_proj = torch.nn.Linear(32, 16)
    return model


MODELS["biased"] = biased


def build(family="vim"):
    """A model whose tokens differ, in float64 and eval mode."""
    torch.manual_seed(0)
    model = MODELS[family]().double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "dt_proj" in name and name.endswith("weight"):
                parameter.normal_(0, 1.5)
            elif name.endswith("proj.weight") or "embed" in name:
                parameter.mul_(6)
    return model


def clips():
    """A model of clips."""
    torch.manual_seed(0)
    return VideoMamba(**SIZE, num_frames=2).double().eval()


def images(count=4):
    """(N, 3, 32, 32) in float64."""
    return torch.randn(count, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def choosing(parts):
    """Let about half of the scans run, other ones for each image."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for head in parts.block_heads:
            head.weight.normal_(0, 1, generator=generator)
            head.bias.zero_()
    return parts


def trained(model, **options):
    """A checkpoint for a model of ``SIZE``, as if it had been trained."""
    torch.manual_seed(3)
    parts = DyVM(16, 32, 4, **({"layers": LAYERS, "keep": 0.6} | options))
    return DyVMCheckpoint.of(model, choosing(parts.double().eval()))
