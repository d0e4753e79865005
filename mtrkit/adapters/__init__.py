"""Model families, one file each; importing this package registers them."""

from mtrkit.adapters import vim, vit
from mtrkit.adapters.base import ADAPTERS, Adapter, find_adapter, register_adapter

__all__ = ["ADAPTERS", "Adapter", "find_adapter", "register_adapter", "vim", "vit"]
