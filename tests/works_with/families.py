"""The models that things are put on: small ones of six families, with the names of their layers and an input."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

import mtrkit
from tests.helpers.families import FAMILIES
from tests.standins.language import VOCABULARY, hf_mamba

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))
IDS = torch.randint(VOCABULARY, (3, 40), generator=torch.Generator().manual_seed(4))
MAMBA = ("in_proj", "x_proj", "dt_proj", "out_proj")


class Family(NamedTuple):
    """One column of the table.

    Attributes:
        name: In tests.
        title: As readers see it.
        build: A fresh model in eval mode.
        inputs: What it is called with.
        stack: Name of its list of blocks.
        ours: Whether its blocks are mtrkit's own.
        mixer: Name of a block's mixer.
        linears: Names of a mixer's linear layers, the last one its output.
        conv: Name of a mixer's convolution, if it has one.
        method: The reduction.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    inputs: torch.Tensor
    stack: str
    ours: bool = False
    mixer: str = "mixer"
    linears: tuple[str, ...] = MAMBA
    conv: str | None = "conv1d"
    method: str = "mtr"

    def fresh(self) -> nn.Module:
        """A model, with the same weights at every call."""
        torch.manual_seed(0)
        return self.build()

    def blocks(self, model: nn.Module) -> Any:
        """The list of blocks."""
        return model.get_submodule(self.stack)

    def mixers(self, model: nn.Module) -> list[Any]:
        """The mixer of every block."""
        return [getattr(block, self.mixer) for block in self.blocks(model)]

    def layers(self, model: nn.Module) -> list[Any]:
        """The linear layers and the convolution of every mixer."""
        names = (*self.linears, *([self.conv] if self.conv else []))
        return [getattr(mixer, name) for mixer in self.mixers(model) for name in names]

    def reduce(self, model: Any, method: str | None = None) -> Any:
        """Patch the model, or what is inside of it."""
        return mtrkit.apply_reduction(model, method or self.method, ratio=0.3)

    def answer(self, model: Any, inputs: torch.Tensor | None = None) -> torch.Tensor:
        """Logits, whatever the model wraps them in."""
        found = model(self.inputs if inputs is None else inputs)
        return getattr(found, "logits", found)


VIT = {"mixer": "attn", "linears": ("qkv", "proj"), "conv": None, "method": "tome"}
COLUMNS = {
    family.name: family
    for family in (
        Family("vim", "Vim", FAMILIES["vim"], IMAGES, "layers", True),
        Family("videomamba", "VideoMamba", FAMILIES["vim_videomamba"], IMAGES, "layers", True),
        Family("mambar", "Mamba-Reg", FAMILIES["vim_mambar"], IMAGES, "layers", True),
        Family("official", "official classes", FAMILIES["hustvl_vim"], IMAGES, "layers"),
        Family("hf_mamba", "transformers Mamba", hf_mamba, IDS, "backbone.layers"),
        Family("timm_vit", "timm ViT", FAMILIES["timm_vit"], IMAGES, "blocks", **VIT),
    )
}
