"""A matrix product that stays as precise as its factors are."""

import torch
from torch import Tensor


def precise_product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in the factors' own dtype, under autocast too, which would round away what tells neighbours apart."""
    if a.device.type == "meta" or not torch.is_autocast_enabled(a.device.type):
        return a @ b
    with torch.autocast(a.device.type, enabled=False):
        return a @ b
