"""Split the tokens of a sample into those that stay, those that receive and those that may leave."""

import torch
from torch import Tensor

from mtrkit.types import Split


def split_by_rank(score: Tensor, special: Tensor, top: int, bottom: int) -> Split:
    """Keep the ``top`` best tokens, offer the ``bottom`` worst as sources and the middle as targets.

    Special tokens are kept, neither source nor target, and count towards none of the numbers. Equal scores
    rank by position, the earlier token higher; a NaN ranks last.

    Args:
        score: (B, L), larger means kept.
        special: (B, S) positions of the special tokens.
        top: Tokens to keep untouched.
        bottom: Tokens that may leave.

    Source: MTR, arXiv:2507.14042, section 3 (Keep, Target and Source groups).
    """
    length, num_special = score.shape[1], special.shape[1]
    limits = torch.finfo(score.dtype)
    finite = score.nan_to_num(nan=limits.min, posinf=limits.max, neginf=limits.min)
    ranked = finite.scatter(1, special, torch.inf)  # finite before, so that nothing ties with a special token
    order = torch.sort(ranked, dim=1, descending=True, stable=True).indices
    keep, dst, src = order.split([num_special + top, length - num_special - top - bottom, bottom], dim=1)
    return Split(*map(_in_sequence, (keep, dst, src)))


def _in_sequence(index: Tensor) -> Tensor:
    """Sort indices by position, so that ties between equally similar targets go to the earliest."""
    return torch.sort(index, dim=1).values
