"""Recognise weights of model families that look like Vim's and are not, to say so by name."""

import re
from collections.abc import Iterable

_SIGNS = {
    r"^rope\.freqs_": "a Vim with rotary positions (RoPE), such as the January 2024 release "
    "vim_tiny_73p1.pth, which is not supported; use a midclstok release",
    r"^temporal_pos_embedding$": "a VideoMamba for videos",
    r"^pos_embed_cls$": "Mamba-Reg, whose registers these models do not have",
    r"^cls_token_(head|tail)$": "a Vim with two class tokens, which is not supported",
    r"\.mixer\.(A_log|conv1d)_\d": "LocalVim or another model with more than two scan directions",
    r"\.mixer\.gamma$": "a Vim with layer scale (init_layer_scale), which is not supported",
    r"\.attn\.qkv\.": "a vision transformer",
    r"\.(mixer|op)\.(x_proj_weight|A_logs)$|\.op\.out_norm\.": "VMamba",
}


def family_of(keys: Iterable[str]) -> str | None:
    """What a state dict with these keys belongs to if that is another family, otherwise ``None``."""
    names = list(keys)
    for sign, family in _SIGNS.items():
        if any(re.search(sign, name) for name in names):
            return family
    if any(name.endswith("mixer.A_log") for name in names) and not any("conv1d_b" in name for name in names):
        return "a Mamba without backward weights (bimamba_type v1 or none), which is not supported"
    return None
