"""Model families; importing this package registers them."""

from mtrkit.adapters import (
    audio_mamba,
    caduceus,
    fastvim,
    hf_mamba,
    mamba_lm,
    mamba_vision,
    official,
    ours,
    point_mamba,
    vit,
)
from mtrkit.adapters.base import ADAPTERS, Adapter, register_adapter
from mtrkit.adapters.host import find_adapter, find_host, shape_of
from mtrkit.adapters.unsupported import UNSUPPORTED, Unsupported

__all__ = [
    "ADAPTERS",
    "UNSUPPORTED",
    "Adapter",
    "Unsupported",
    "audio_mamba",
    "caduceus",
    "fastvim",
    "find_adapter",
    "find_host",
    "hf_mamba",
    "mamba_lm",
    "mamba_vision",
    "official",
    "ours",
    "point_mamba",
    "register_adapter",
    "shape_of",
    "vit",
]
