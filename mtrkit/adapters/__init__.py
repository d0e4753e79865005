"""Model families, one file each; importing this package registers them."""

from mtrkit.adapters import hf_mamba, hustvl_vim, mamba_lm, mamba_vision, mambar, ours, videomamba, vit
from mtrkit.adapters.base import ADAPTERS, Adapter, find_adapter, register_adapter
from mtrkit.adapters.unsupported import UNSUPPORTED, Unsupported

__all__ = [
    "ADAPTERS",
    "UNSUPPORTED",
    "Adapter",
    "Unsupported",
    "find_adapter",
    "hf_mamba",
    "hustvl_vim",
    "mamba_lm",
    "mamba_vision",
    "mambar",
    "ours",
    "register_adapter",
    "videomamba",
    "vit",
]
