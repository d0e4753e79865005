"""What tells neighbours apart is not rounded away: the dtype to compare in, and a product that keeps it."""

import torch
from torch import Tensor


def comparable(metric: Tensor) -> Tensor:
    """The metric in float32 at least."""
    return metric if metric.dtype == torch.float64 else metric.float()


def precise_product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in the factors' own dtype, under autocast too, which would round away what tells neighbours apart."""
    if a.device.type == "meta" or not torch.is_autocast_enabled(a.device.type):
        return a @ b
    with torch.autocast(a.device.type, enabled=False):
        return a @ b
