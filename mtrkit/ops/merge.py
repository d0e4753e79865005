"""Apply a token map to features, and the way back to the sequence as it was."""

import torch
from torch import Tensor

from mtrkit.ops.rows import take
from mtrkit.types import TokenMap


def merge_tokens(tokens: Tensor, token_map: TokenMap) -> Tensor:
    """Replace ``tokens`` (B, L, D) by (B, L', D): at each slot the weighted mean of all that went there.

    Or their greatest or least value, channel by channel, if the map says so.

    Sums are products with a one-hot matrix rather than scattered additions, whose order, and with it the
    last bit, is left to chance on a GPU. A token that receives nothing is copied, bit for bit.
    """
    kept = take(tokens, token_map.kept)
    if not token_map.merged.shape[1]:
        return kept
    if token_map.combine != "mean":
        target = token_map.slot.gather(1, token_map.merged)[..., None].expand(-1, -1, tokens.shape[2])
        return kept.scatter_reduce(1, target, take(tokens, token_map.merged), f"a{token_map.combine}")
    onto = _one_hot(token_map, tokens.dtype)
    if token_map.weight is None:
        count = 1 + onto.sum(dim=2, keepdim=True)
        return torch.baddbmm(kept, onto, take(tokens, token_map.merged)) / count
    weight = token_map.weight.to(tokens.dtype)
    share, given = take(weight, token_map.kept), take(weight, token_map.merged)
    added = onto @ given
    mean = (kept * share + onto @ (take(tokens, token_map.merged) * given)) / (share + added)
    return torch.where(added > 0, mean, kept)


def merge_sizes(size: Tensor, token_map: TokenMap) -> Tensor:
    """Add up sizes (B, L, 1) to (B, L', 1); those of dropped tokens are lost."""
    kept = take(size, token_map.kept)
    if not token_map.merged.shape[1]:
        return kept
    return kept + _one_hot(token_map, size.dtype) @ take(size, token_map.merged)


def unmerge_tokens(tokens: Tensor, token_map: TokenMap, before: Tensor | None = None) -> Tensor:
    """Spread ``tokens`` (B, L', D) back over the L places they came from.

    Args:
        tokens: What stands at the slots now.
        token_map: The map that was applied.
        before: (B, L, D) the sequence before the reduction. A dropped token has no slot and takes its last
            features from here (as in the dense tasks of DyVM, arXiv:2504.04787).
    """
    spread = take(tokens, token_map.slot.clamp(min=0))
    if before is None:
        return spread
    return torch.where(token_map.slot[..., None] < 0, before, spread)


def _one_hot(token_map: TokenMap, dtype: torch.dtype) -> Tensor:
    """(B, L', m), one where a merged token goes."""
    target = token_map.slot.gather(1, token_map.merged)
    slots = torch.arange(token_map.num_kept, device=target.device)
    return (target[:, None, :] == slots[:, None]).to(dtype)
