"""Apply a token map to features, and the way back to the sequence as it was."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.native.tokens import Merge
from mtrkit.ops.tensors import precise_product, take
from mtrkit.scan.dispatch import standard_only
from mtrkit.scan.fastpath import merging_kernels
from mtrkit.scan.kernels import token_kernels
from mtrkit.types import TokenMap


def merge_tokens(tokens: Tensor, token_map: TokenMap) -> Tensor:
    """Replace ``tokens`` (B, L, D) by (B, L', D): at each slot the weighted mean of all that went there.

    Or their greatest or least value, channel by channel, if the map says so. A token that receives nothing is
    copied, bit for bit.
    """
    return Merger(token_map).tokens(tokens)


def merge_sizes(size: Tensor, token_map: TokenMap) -> Tensor:
    """Add up sizes (B, L, 1) to (B, L', 1); those of dropped tokens are lost."""
    return Merger(token_map).sizes(size)


class Merger:
    """:func:`merge_tokens` and :func:`merge_sizes` for all that travels together; what they share is found once."""

    def __init__(self, token_map: TokenMap) -> None:
        self.map = token_map
        self._bags: _Bags | None = None

    def bags(self) -> "_Bags":
        """What the sums of torch need."""
        if self._bags is None:
            self._bags = _bags(self.map)
        return self._bags

    def tokens(self, tokens: Tensor) -> Tensor:
        """(B, L, D) to (B, L', D)."""
        token_map = self.map
        if not token_map.merged.shape[1] or not tokens.shape[2]:
            return take(tokens, token_map.kept)
        if token_map.combine != "mean":
            return _merge_extreme(tokens, token_map)
        kernels = merging_kernels(tokens, token_map.slot)
        if kernels:
            merges = [Merge(tokens, token_map.weight)]
            return token_kernels(kernels).merge(merges, token_map.slot, token_map.num_kept)[0]
        if standard_only():
            return _multiply(tokens, token_map, token_map.weight)
        if token_map.weight is None:
            return _gather_up(tokens, self.bags(), "mean")
        return _gather_up(tokens, self.bags(), "sum", _shares(token_map, self.bags(), tokens.dtype))

    def sizes(self, size: Tensor) -> Tensor:
        """(B, L, 1) to (B, L', 1)."""
        token_map = self.map
        if not token_map.merged.shape[1]:
            return take(size, token_map.kept)
        kernels = merging_kernels(size, token_map.slot)
        if kernels:
            return token_kernels(kernels).merge([Merge(size, mean=False)], token_map.slot, token_map.num_kept)[0]
        if standard_only():
            return _multiply(size, token_map, mean=False)
        return _gather_up(size, self.bags(), "sum")

    def stream(self, hidden: Tensor, residual: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`tokens` of two and :meth:`sizes`: in one call if the same kernels take all three."""
        token_map = self.map
        several = token_map.merged.shape[1] and hidden.shape[2] and token_map.combine == "mean"
        found = {merging_kernels(tensor, token_map.slot) for tensor in (hidden, residual, size)} if several else {""}
        kernels = found.pop()
        if not kernels or found:
            return self.tokens(hidden), self.tokens(residual), self.sizes(size)
        merges = [Merge(hidden, token_map.weight), Merge(residual, token_map.weight), Merge(size, mean=False)]
        hidden, residual, size = token_kernels(kernels).merge(merges, token_map.slot, token_map.num_kept)
        return hidden, residual, size


class _Bags(NamedTuple):
    """The tokens by the slots they go to, as one list for the whole batch.

    A sum over such a list has a fixed order on every device, which scattered additions have not on a GPU, and takes a
    fraction of the time of a product with a one-hot matrix.
    """

    token: Tensor  # (B · L,) rows of the flattened tokens (B · L, D), slot by slot
    begin: Tensor  # (B · bags,) where each slot's tokens begin in it
    slots: int  # L'
    bags: int  # of a sample: its slots, and one more for dropped tokens if there are any


def _bags(token_map: TokenMap) -> _Bags:
    batch, length = token_map.slot.shape
    bags = token_map.num_kept + token_map.drops
    start = torch.arange(batch, device=token_map.slot.device)[:, None] * length
    slot = token_map.slot
    slot = torch.where(slot < 0, token_map.num_kept, slot) if token_map.drops else slot
    slot, token = torch.sort(slot, dim=1, stable=True)
    slots = torch.arange(bags, device=slot.device).expand(batch, bags).contiguous()
    begin = torch.searchsorted(slot, slots)
    return _Bags((token + start).flatten(), (begin + start).flatten(), token_map.num_kept, bags)


def _gather_up(tokens: Tensor, bags: _Bags, mode: str, share: Tensor | None = None) -> Tensor:
    rows = tokens.flatten(0, 1)
    shares = None if share is None else share.to(tokens.dtype)
    found = F.embedding_bag(bags.token, rows, bags.begin, mode=mode, per_sample_weights=shares)
    found = found.view(tokens.shape[0], bags.bags, tokens.shape[2])
    return found if bags.bags == bags.slots else found[:, : bags.slots].contiguous()


def _multiply(tokens: Tensor, token_map: TokenMap, weight: Tensor | None = None, mean: bool = True) -> Tensor:
    """Means, or sums, as a product with a matrix of shares: slow, and every transform of torch can take it apart."""
    every = torch.arange(token_map.num_kept, device=tokens.device)[:, None]
    share = (token_map.slot[:, None] == every).to(tokens.dtype)  # (B, L', L)
    if weight is not None:
        share = share * weight.transpose(1, 2).to(tokens.dtype)
    if mean:
        share = share / share.sum(dim=2, keepdim=True)
    return precise_product(share, tokens)


def _shares(token_map: TokenMap, bags: _Bags, dtype: torch.dtype) -> Tensor:
    """The weights as shares (B · L,) that add up to 1 in each slot; exactly 1 where a token is alone.

    They are as fine as the weights and as tokens of ``dtype``: a third in float32 would spoil float64 tokens.
    """
    assert token_map.weight is not None
    weight = token_map.weight.to(torch.promote_types(token_map.weight.dtype, dtype))
    total = take(_gather_up(weight, bags, "sum"), token_map.slot.clamp(min=0))
    return (weight / total).flatten()[bags.token]


def _merge_extreme(tokens: Tensor, token_map: TokenMap) -> Tensor:
    target = token_map.slot.gather(1, token_map.merged)[..., None].expand(-1, -1, tokens.shape[2])
    merged = take(tokens, token_map.merged)
    return take(tokens, token_map.kept).scatter_reduce(1, target, merged, f"a{token_map.combine}")


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
