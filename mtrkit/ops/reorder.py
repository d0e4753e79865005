"""Number the output slots: build a :class:`~mtrkit.types.TokenMap` from the tokens that stay and leave."""

import torch
from torch import Tensor

from mtrkit.ops.group import without
from mtrkit.scan.fastpath import numbering_kernels
from mtrkit.scan.kernels import token_kernels
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
    pair = (kept[:, :0],) * 2 if merged is None or target is None else (merged, target)
    kernels = numbering_kernels(kept, *pair)
    if kernels:
        slot, kept = token_kernels(kernels).number(num_tokens, kept, *pair, ordered)
        return TokenMap(slot, kept, pair[0])
    kept = torch.sort(kept, dim=1).values if ordered else kept
    batch, num_kept = kept.shape
    slots = torch.arange(num_kept, device=kept.device).expand(batch, num_kept)
    slot = torch.full((batch, num_tokens), -1, dtype=torch.int64, device=kept.device).scatter(1, kept, slots)
    if merged is None or target is None:
        return TokenMap(slot, kept, kept[:, :0])
    return TokenMap(slot.scatter(1, merged, slot.gather(1, target)), kept, merged)


def spread_places(count: int, num_patches: int) -> tuple[int, ...]:
    """Where n registers stand among M patches: each behind ⌊M / (n + 1)⌋ of them.

    Source: Mamba-Reg, arXiv:2405.14858.
    """
    group = num_patches // (count + 1)
    return tuple(group + k * (group + 1) for k in range(count))


def exact_slots(sequence: Tensor, special: Tensor) -> Tensor:
    """Slots (B, S) at which the special tokens (B, S) stand in a sequence (B, L') of positions."""
    return (sequence[:, None] == special[..., None]).to(torch.uint8).argmax(dim=2)


def scaled_slots(special: Tensor, numerator: int, denominator: int, num_kept: int) -> Tensor:
    """Slots at ``special · numerator / denominator``, rounded down: the same for samples that lost other tokens.

    The approximation of R-MeeTo's released code (arXiv:2412.12496), which holds one integer for a whole batch.
    Several special tokens keep their order, and one slot each.

    Args:
        special: (B, S) positions of the special tokens, rising.
        numerator: What is left of ...
        denominator: ... what was there.
        num_kept: L', the number of slots.
    """
    if not special.shape[1]:
        return special
    number = torch.arange(special.shape[1], device=special.device)
    wanted = special * numerator // denominator
    apart = torch.cummax(wanted - number, dim=1).values + number
    return torch.minimum(apart, num_kept - special.shape[1] + number)


def middle_slots(special: Tensor, num_kept: int) -> Tensor:
    """The slots in the middle of L', whatever was there before: the approximation of HSA's released code."""
    count = special.shape[1]
    number = torch.arange(count, device=special.device)
    return ((num_kept - count) // 2 + number).expand_as(special)


def hold_special(others: Tensor, special: Tensor, slots: Tensor) -> Tensor:
    """The sequence (B, L') with special tokens (B, S) at ``slots`` (B, S) and the others around them in order.

    >>> hold_special(torch.tensor([[5, 3, 4]]), torch.tensor([[9]]), torch.tensor([[1]]))
    tensor([[5, 9, 3, 4]])
    """
    length = others.shape[1] + special.shape[1]
    every = torch.arange(length, device=others.device).expand(others.shape[0], length)
    sequence = torch.zeros_like(every).scatter(1, without(every, slots), others)
    return sequence.scatter(1, slots, special)


def move_special(sequence: Tensor, special: Tensor, slots: Tensor) -> Tensor:
    """The same sequence (B, L') with its special tokens (B, S) at ``slots`` (B, S) instead of where they stand."""
    every = torch.arange(sequence.shape[1], device=sequence.device).expand_as(sequence)
    others = sequence.gather(1, without(every, exact_slots(sequence, special)))
    return hold_special(others, special, slots)
