"""Tiny models of every supported family and variant: name → a function that builds one in eval mode."""

import torch

import mtrkit
from mtrkit.models import MambaReg
from tests.standins import forks, hustvl_vim, official


def _official(**options):
    def build():
        return _spread(hustvl_vim.VisionMamba(**options).eval())

    return build


def _other(cls, **options):
    return lambda: _spread(cls(**options).eval())


def _ours(cls=mtrkit.VisionMamba, **options):
    size = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 6, "num_classes": 10}
    return lambda: _spread(cls(**size, **options).eval())


def _timm_vit(**options):
    def build():
        from timm.models.vision_transformer import VisionTransformer

        size = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 6, "num_heads": 2, "num_classes": 10}
        return _spread(VisionTransformer(**size, **options).eval())

    return build


def _spread(model):
    """Give a fresh model weights that make tokens differ, as training does."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "dt_proj" in name and name.endswith("weight"):
                parameter.normal_(0, 1.5)
            elif name.endswith(("proj.weight", "pos_embed", "head.weight")):
                parameter.mul_(4)
    return model


FAMILIES = {
    "vim": _ours(),
    "vim_front": _ours(class_token="front"),
    "vim_videomamba": _ours(class_token="front", halve=False),
    "vim_mean": _ours(class_token="none", global_pool="avg"),
    "vim_mambar": _ours(MambaReg, num_registers=3),
    "hustvl_vim": _official(),
    "hustvl_vim_front": _official(use_middle_cls_token=False),
    "hustvl_vim_double": _official(use_double_cls_token=True),
    "hustvl_vim_mean": _official(if_cls_token=False, final_pool_type="mean"),
    "hustvl_vim_last": _official(if_cls_token=False, final_pool_type="none"),
    "hustvl_vim_max": _official(if_cls_token=False, final_pool_type="max"),
    "hustvl_vim_layernorm": _official(rms_norm=False),
    "hustvl_vim_unfused": _official(fused_add_norm=False),
    "hustvl_vim_layerscale": _official(init_layer_scale=0.5, if_divide_out=False),
    "hustvl_vim_early": _other(forks.EarlyVim),
    "vim4path": _other(forks.Vim4Path),
    "videomamba": _other(official.VideoMamba),
    "mambar": _other(official.MambaReg),
    "mambar_neck": _other(official.MambaReg, num_cls_tokens=4, cls_reduce=2),
    "timm_vit": _timm_vit(),
    "timm_vit_registers": _timm_vit(reg_tokens=4, qk_norm=True, init_values=0.5),
    "timm_vit_mean": _timm_vit(class_token=False, global_pool="avg"),
}

# Not in the matrix: where no gradient is recorded, torch warns of its reentrant checkpoints.
videomamba_checkpointed = _other(official.VideoMamba, use_checkpoint=True, checkpoint_num=4)
