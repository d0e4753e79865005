"""Model families, one file each; importing this package registers them."""

from mtrkit.adapters import hustvl_vim, mambar, videomamba, vim, vit
from mtrkit.adapters.base import ADAPTERS, Adapter, find_adapter, register_adapter

__all__ = [
    "ADAPTERS",
    "Adapter",
    "find_adapter",
    "hustvl_vim",
    "mambar",
    "register_adapter",
    "videomamba",
    "vim",
    "vit",
]
