"""Shares in a mean that stand for something other than a plain one."""

import torch
from torch import Tensor

from mtrkit.types import TokenMap


def successive_weights(token_map: TokenMap) -> Tensor:
    """Weights (B, L, 1) that make the mean at a slot equal to merging its sources one after the other.

    The target is averaged with its first source in sequence order, the result with the second, and so on:
    of n sources the last weighs 1/2, the one before 1/4, and the first as much as the target, 2⁻ⁿ.
    """
    merged = token_map.merged
    slot = token_map.slot.gather(1, merged)  # (B, m)
    same, after = slot[:, :, None] == slot[:, None, :], merged[:, :, None] < merged[:, None, :]
    later = (same & after).sum(dim=2)  # sources that come after this one
    every = torch.arange(token_map.num_kept, device=slot.device)
    sources = (every[:, None] == slot[:, None, :]).sum(dim=2)  # (B, L')
    weight = torch.ones_like(token_map.slot, dtype=torch.float32)
    weight = weight.scatter(1, token_map.kept, 0.5 ** sources.float())
    return weight.scatter(1, merged, 0.5 ** (later + 1).float())[..., None]
