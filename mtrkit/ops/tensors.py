"""Steps on tensors that several operators take: pick rows and columns, compare and multiply precisely."""

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


def columns(x: Tensor, positions: tuple[int, ...]) -> Tensor:
    """(B, S, ...): what x (B, L, ...) has at ``positions``, without moving an index list to the device."""
    if not positions:
        return x[:, :0]
    return torch.stack([x[:, position] for position in positions], dim=1)


def columns_without(x: Tensor, positions: tuple[int, ...]) -> Tensor:
    """(B, L − S, ...): what x (B, L, ...) has elsewhere than at ``positions``, which rise."""
    if not positions:
        return x
    starts, ends = (0, *(position + 1 for position in positions)), (*positions, x.shape[1])
    return torch.cat([x[:, start:end] for start, end in zip(starts, ends, strict=True)], dim=1)
