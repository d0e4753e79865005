"""Families that are known and not reduced, each with the reason that lies in its structure.

They are recognised by form, so that their users read why, not which attributes other families have. Some are forks of
families that are reduced. docs/models.md has the same decisions with numbers.
"""

from dataclasses import dataclass

from torch import nn

_BETWEEN_BLOCKS = (
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
        _BETWEEN_BLOCKS,
    ),
    Unsupported(
        "r_meeto",
        "the models of the NUS-HPC-AI-Lab/R-MeeTo repository that merge tokens",
        ("if_merge", "merge", "metric"),
        "its blocks merge tokens by themselves, and return sizes and places besides; load its weights into the plain "
        'Vim or VideoMamba and give method="rmeeto"',
    ),
    Unsupported(
        "dyvm",
        "DyVM of the NUS-HPC-AI-Lab/DyVM repository",
        ("pruning_loc", "token_ratio"),
        "its predictors drop tokens and scan directions by themselves, image by image, and its blocks return three "
        "values; load its file into the plain model by mtrkit.dyvm.load_release",
    ),
    Unsupported(
        "famba_v",
        "VisionMamba of the AIoT-MLSys-Lab/Famba-V repository",
        ("fusion_strategy", "bi_merge"),
        "it merges tokens by itself (fusion_strategy), and with a class token in the middle its head reads the first "
        "token all the same; use the class of hustvl/Vim",
    ),
    Unsupported(
        "arm",
        "ARM of the OliverRensu/ARM repository",
        ("A_c_log", "A_c_b_log"),
        "its mixers scan along the columns of a square grid too, which needs a token for every patch",
    ),
    Unsupported(
        "fastvim",
        "FastVim and FastChannelVim of the insitro/FastVim repository",
        ("collapse_method", "use_norm_after_ssm"),
        "its mixers pool the tokens along rows or columns of the grid in front of every scan, which needs a token for "
        "every patch; the Vim of the same repository, with a norm behind its scans, is reduced",
    ),
    Unsupported(
        "zamba",
        "Zamba of Hugging Face transformers",
        ("x_proj_weight", "dt_proj_weight", "A_log"),
        "its mixers have heads, each with its own Δ, B and C, and one block of attention is run in many places",
    ),
    Unsupported(
        "mamba2",
        "Mamba-2 mixers: Mamba2, Bamba, Zamba2, Granite hybrids, Nemotron-H and Falcon-H1 of Hugging Face "
        "transformers, Mamba2 of mamba_ssm",
        ("in_proj", "A_log", "D", "dt_bias"),
        "its mixers have one Δ and one decay per head, where the adapters read the layers of Mamba-1, and in the "
        "hybrids attention stands between them; CONTRIBUTING.md says how to describe a new kind of mixer",
    ),
    Unsupported(
        "jamba",
        "Jamba of Hugging Face transformers",
        ("mamba", "feed_forward", "pre_ff_layernorm"),  # as the blocks of Bamba, whose mixers are Mamba-2
        "attention and experts stand between its Mamba blocks, whose mixers normalise Δ, B and C in front of the scan",
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


def known_family(model: nn.Module) -> Unsupported | None:
    """The first of these families that the model, or what is inside it, has all the marks of."""
    return next((family for family in UNSUPPORTED if family.fits(model)), None)


def known_refusal(model: nn.Module) -> str | None:
    """Which known family the model is of and why that is not reduced; ``None`` if it is of none."""
    family = known_family(model)
    if family is None:
        return None
    return (
        f"{type(model).__name__} is of the family {family.name} ({family.summary}), which cannot be reduced: "
        f"{family.reason}"
    )
