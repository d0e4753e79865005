"""Texts of different lengths in one batch: take the padding off, and put the answers back.

Padding that went through a reduction would be ranked, counted and merged like words. So rows of equal length are
taken out and go through the model together, each reduced as it would be alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtrkit.errors import InputError

Group = tuple[Tensor, Tensor]
"""Rows (n, 1) of equal length and the places (n, l) of their tokens: an index into a padded batch."""


def group_by_length(mask: Tensor, inputs: Tensor) -> list[Group]:
    """Sort the rows of a batch by the number of their tokens, the shortest first.

    Args:
        mask: (B, L), true or 1 for tokens and 0 for padding, before or after the tokens of each row.
        inputs: (B, L, ...) that it belongs to.

    Returns:
        One group per length; none if nothing is padded.

    Raises:
        InputError: The mask does not fit, or has a row without tokens or with padding between them.

    >>> [rows.flatten().tolist() for rows, _ in group_by_length(torch.tensor([[1, 1], [0, 1]]), torch.zeros(2, 2))]
    [[1], [0]]
    """
    if mask.shape != inputs.shape[:2]:
        raise InputError(f"attention_mask has shape {tuple(mask.shape)}, not {tuple(inputs.shape[:2])} as the input")
    real = mask.bool()
    if bool(real.all()):
        return []
    length, first = real.sum(dim=1), real.to(torch.uint8).argmax(dim=1)
    place = torch.arange(mask.shape[1], device=mask.device)
    run = (place >= first[:, None]) & (place < (first + length)[:, None])
    if not bool(torch.equal(run, real)) or not bool(length.all()):
        raise InputError(
            "attention_mask has a row without tokens or with padding between tokens; give padding before or after "
            "the tokens of each row"
        )
    groups = []
    for tokens in length.unique().tolist():
        rows = torch.nonzero(length == tokens)
        groups.append((rows, first[rows] + place[:tokens]))
    return groups


def spread(parts: Sequence[Tensor], groups: Sequence[Group], mask: Tensor) -> Tensor:
    """Put the answers (n, l, D) for each group at their places in a padded batch (B, L, D), zero at the padding."""
    if not groups:
        return parts[0]
    whole = parts[0].new_zeros(*mask.shape, parts[0].shape[2])
    for group, part in zip(groups, parts, strict=True):
        whole = whole.index_put(group, part)
    return whole
