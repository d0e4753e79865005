"""Split the tokens of a sample into those that stay, those that receive and those that may leave."""

import torch
from torch import Tensor

from mtrkit.native import tokens as native
from mtrkit.scan.fastpath import can_split
from mtrkit.types import Split


def in_sequence(tokens: Tensor) -> Tensor:
    """(B, L) positions 0 … L − 1 of ``tokens`` (B, L, D), the same for every sample."""
    return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])


def without(sequence: Tensor, gone: Tensor) -> Tensor:
    """Take tokens out of a sequence; the others stay in their order.

    Args:
        sequence: (B, L), all positions 0 … L − 1 in any order.
        gone: (B, g) positions to leave out, each once.

    Returns:
        (B, L − g).

    >>> without(torch.tensor([[3, 0, 2, 1]]), torch.tensor([[2]]))
    tensor([[3, 0, 1]])
    """
    leaves = torch.zeros_like(sequence, dtype=torch.uint8).scatter(1, gone, 1).gather(1, sequence)
    stays = sequence.shape[1] - gone.shape[1]
    return sequence.gather(1, torch.sort(leaves, dim=1, stable=True).indices[:, :stays])


def rank_tokens(score: Tensor, special: Tensor) -> Tensor:
    """Positions (B, L − S) of the tokens that are not special, the best first.

    Equal scores rank by position, the earlier token higher; a NaN ranks last.

    Args:
        score: (B, L), larger means kept.
        special: (B, S) positions of the special tokens.
    """
    limits = torch.finfo(score.dtype)
    finite = score.nan_to_num(nan=limits.min, posinf=limits.max, neginf=limits.min)
    # Finite before, so that nothing ties with a special token. A tensor: AOTInductor cannot write an infinite number.
    ranked = finite.scatter(1, special, finite.new_full(special.shape, torch.inf))
    return torch.sort(ranked, dim=1, descending=True, stable=True).indices[:, special.shape[1] :]


def split_by_rank(score: Tensor, special: Tensor, top: int, bottom: int) -> Split:
    """Keep the ``top`` best tokens, offer the ``bottom`` worst as sources and the middle as targets.

    Special tokens are kept, neither source nor target, and count towards none of the numbers. Ties as in
    :func:`rank_tokens`.

    Args:
        score: (B, L), larger means kept.
        special: (B, S) positions of the special tokens.
        top: Tokens to keep untouched.
        bottom: Tokens that may leave.

    Source: MTR, arXiv:2507.14042, section 3 (Keep, Target and Source groups).
    """
    if can_split(score, special):
        return Split(*native.split(score.detach(), special, top, bottom))
    ranked = rank_tokens(score, special)
    keep, dst, src = ranked.split([top, ranked.shape[1] - top - bottom, bottom], dim=1)
    # In sequence order, so that ties between equally similar targets go to the earliest.
    return Split(*(torch.sort(group, dim=1).values for group in (torch.cat([special, keep], dim=1), dst, src)))
