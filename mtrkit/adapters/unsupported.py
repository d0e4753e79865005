"""Families that are known and not reduced, each with the reason that lies in its structure.

They are recognised by the form of their mixers, so that their users read why, not which attributes other families
have. docs/models.md has the same decisions with numbers.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

BETWEEN_BLOCKS = (
    "it lays out the tokens between its blocks on the image's grid by itself, where a reduced model has fewer; use "
    "mtrkit.create_model(name, features_only=True, out_indices=...), whose maps stay on the full grid"
)


@dataclass(frozen=True)
class Unsupported:
    """One family and why it is refused.

    Attributes:
        name: As in ``mtrkit list``.
        summary: Which models.
        marks: Attributes that a module of such a model has, and no module of another family: all on one module.
        reason: Completes "cannot be reduced: ".
    """

    name: str
    summary: str
    marks: tuple[str, ...]
    reason: str

    def fits(self, model: nn.Module) -> bool:
        """Whether any module inside has all the marks."""
        return any(all(hasattr(module, mark) for mark in self.marks) for module in model.modules())


UNSUPPORTED: tuple[Unsupported, ...] = (
    Unsupported(
        "vim_dense",
        "Vim's backbones for segmentation and detection in the hustvl/Vim repository",
        ("layers", "if_cls_token", "out_indices"),
        BETWEEN_BLOCKS,
    ),
    Unsupported(
        "local_mamba",
        "LocalVim and LocalVMamba of the hunto/LocalMamba repository",
        ("multi_scan", "in_proj"),
        "its mixers scan in windows and columns, by tables with a place for every patch of the grid, and gate their "
        "channels by the mean over the patches: a shorter sequence has neither",
    ),
    Unsupported(
        "plain_mamba",
        "PlainMamba of the ChenhongyiYang/PlainMamba repository",
        ("direction_Bs",),
        "every mixer needs the whole grid, for a 7x7 convolution and for four serpentine scans; their steps between "
        "neighbours are coded in B, and the Δ, B and C of one patch meet the features of another",
    ),
    Unsupported(
        "vmamba",
        "VMamba of the MzeroMiko/VMamba repository, and what is built from its SS2D",
        ("x_proj_weight", "dt_projs_weight", "A_logs", "Ds"),
        "every block needs the whole grid, for a 3x3 convolution and for scans along rows and columns, and so do the "
        "2x2 reductions between stages; putting the tokens back inside each block would leave its projections and "
        "MLP at full length, 85 to 95 % of the released models' cost",
    ),
)


def known_refusal(model: Any) -> str | None:
    """Which known family the model is of and why that is not reduced; ``None`` if it is of none."""
    family = next((family for family in UNSUPPORTED if family.fits(model)), None)
    if family is None:
        return None
    return (
        f"{type(model).__name__} is of the family {family.name} ({family.summary}), which cannot be reduced: "
        f"{family.reason}"
    )
