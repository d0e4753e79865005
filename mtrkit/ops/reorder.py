"""Number the output slots: build a :class:`~mtrkit.types.TokenMap` from the tokens that stay and leave."""

import torch
from torch import Tensor

from mtrkit.types import TokenMap


def token_map(
    num_tokens: int,
    kept: Tensor,
    merged: Tensor | None = None,
    target: Tensor | None = None,
    *,
    ordered: bool = True,
) -> TokenMap:
    """Build the map in which ``kept`` stay, ``merged`` go where ``target`` stands, and the rest is dropped.

    Args:
        num_tokens: L, the tokens before the reduction.
        kept: (B, L') positions of the tokens that stay.
        merged: (B, m) positions of the tokens that are merged; default none.
        target: (B, m) positions of the kept tokens they are merged into.
        ordered: Slots follow the sequence (a scan needs this); otherwise the order of ``kept``.

    >>> token_map(4, torch.tensor([[3, 0]]), torch.tensor([[1]]), torch.tensor([[3]])).slot
    tensor([[ 0,  1, -1,  1]])
    """
    kept = torch.sort(kept, dim=1).values if ordered else kept
    batch, num_kept = kept.shape
    slots = torch.arange(num_kept, device=kept.device).expand(batch, num_kept)
    slot = torch.full((batch, num_tokens), -1, dtype=torch.int64, device=kept.device).scatter(1, kept, slots)
    if merged is None or target is None:
        return TokenMap(slot, kept, kept[:, :0])
    return TokenMap(slot.scatter(1, merged, slot.gather(1, target)), kept, merged)
