"""Steps on tensors that several operators take: pick rows, compare and multiply precisely."""

import torch
from torch import Tensor


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Return rows ``index`` (B, n) of ``tokens`` (B, L, D) as (B, n, D).

    One flat row selection copies whole rows; ``gather`` with an expanded index, the usual spelling,
    looks every element up and is ten times slower on a CPU.

    >>> take(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[2, 0]])).flatten()
    tensor([3., 1.])
    """
    batch, length, width = tokens.shape
    start = torch.arange(batch, device=index.device)[:, None] * length
    rows = tokens.reshape(batch * length, width).index_select(0, (index + start).flatten())
    return rows.view(batch, index.shape[1], width)


def comparable(metric: Tensor) -> Tensor:
    """The metric in float32 at least."""
    return metric if metric.dtype == torch.float64 else metric.float()


def precise_product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in the factors' own dtype, under autocast too, which would round away what tells neighbours apart."""
    if a.device.type == "meta" or not torch.is_autocast_enabled(a.device.type):
        return a @ b
    with torch.autocast(a.device.type, enabled=False):
        return a @ b
