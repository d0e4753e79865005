"""Matching, numbering and merging tokens by Triton's kernels, one launch each; the twin of ``mtrkit.native.tokens``."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtrkit.errors import InputError
from mtrkit.native.layout import expect
from mtrkit.native.tokens import Merge
from mtrkit.triton.kernels import tokens as kernels
from mtrkit.triton.launch import check_kind, launch, positions, power_of_two

SOURCES, TARGETS, CHANNELS = 32, 64, 32  # of a tile of cosines
PAIRS = 16
SLOTS, SEARCHED = 16, 64  # slots of a tile, and tokens looked through at a time
NUMBERED = 1024


def nearest(metric: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    """Of tokens ``dst`` (B, t) the one most similar to each of ``src`` (B, s), by the cosine of ``metric`` (B, L, D).

    Of targets that are equal up to rounding the first. Returns (B, s).
    """
    if src.dim() != 2 or dst.dim() != 2 or not len(metric) == len(src) == len(dst) or not dst.shape[1]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (metric, src, dst))
        raise InputError(f"metric, src and dst have shapes {shapes}; expected (B, L, D), (B, s) and (B, t), t ≥ 1")
    check_kind(metric)
    src, dst = positions(src), positions(dst)
    batch, length, width = metric.shape
    found, tiles = torch.empty_like(src), -(-src.shape[1] // SOURCES)
    arguments = (metric, src, dst, found, length, width, src.shape[1], dst.shape[1], *metric.stride())
    sizes = {"BLOCK_S": SOURCES, "BLOCK_T": TARGETS, "BLOCK_D": CHANNELS}
    launch(kernels.nearest, batch * tiles, metric, arguments, warps=4, **sizes)
    return found


def cosines(metric: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The cosine (B, n) of each token ``a`` (B, n) to its token ``b`` (B, n), by ``metric`` (B, L, D)."""
    if a.dim() != 2 or a.shape != b.shape or metric.dim() != 3 or len(metric) != len(a):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (metric, a, b))
        raise InputError(f"metric, a and b have shapes {shapes}; expected (B, L, D), (B, n) and (B, n)")
    check_kind(metric)
    a, b = positions(a), positions(b)
    batch, length, width = metric.shape
    found, tiles = metric.new_empty(a.shape), -(-a.shape[1] // PAIRS)
    arguments = (metric, a, b, found, length, width, a.shape[1], *metric.stride())
    launch(
        kernels.cosines, batch * tiles, metric, arguments, warps=4, BLOCK_P=PAIRS, BLOCK_D=power_of_two(min(width, 256))
    )
    return found


def merge(merges: Sequence[Merge], slot: Tensor, slots: int) -> list[Tensor]:
    """As :func:`mtrkit.native.tokens.merge`, one launch for each."""
    slot = positions(slot)
    return [_merge(each, slot, slots) for each in merges]


def _merge(given: Merge, slot: Tensor, slots: int) -> Tensor:
    tokens, weight, mean = given
    expect("slot", slot, tokens.shape[:2])
    if weight is not None:
        expect("weight", weight, (*slot.shape, 1))
        weight = weight.contiguous()
    check_kind(tokens)
    tokens, (batch, length, width) = tokens.resolve_neg(), tokens.shape
    merged = tokens.new_empty((batch, slots, width))
    columns = min(power_of_two(width), 256)
    programs = batch * -(-slots // SLOTS) * -(-width // columns)
    arguments = (tokens, slot, weight, merged, length, slots, width, *tokens.stride())
    sizes = {"BLOCK_S": SLOTS, "BLOCK_T": SEARCHED, "BLOCK_D": columns}
    launch(kernels.merge, programs, tokens, arguments, warps=4, MEAN=mean, **sizes)
    return merged


def number(num_tokens: int, kept: Tensor, merged: Tensor, target: Tensor, ordered: bool) -> tuple[Tensor, Tensor]:
    """Slots (B, L) of all tokens, −1 for those that are lost, and the kept ones (B, L') in the order of their slots.

    Args:
        num_tokens: L.
        kept: (B, L') int64, each token once.
        merged: (B, m) int64, tokens that get the slot of ...
        target: ... (B, m) int64, these kept ones.
        ordered: Whether slots follow the sequence; otherwise the order of ``kept``.
    """
    if merged.shape != target.shape or len(merged) != len(kept):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (kept, merged, target))
        raise InputError(f"kept, merged and target tokens have shapes {shapes}; the last two must be equal")
    kept, merged, target = positions(kept), positions(merged), positions(target)
    slot, sequence = kept.new_empty((len(kept), num_tokens)), torch.empty_like(kept)
    arguments = (kept, merged, target, slot, sequence, num_tokens, kept.shape[1], merged.shape[1])
    launch(kernels.number, len(kept), kept, arguments, warps=4, ORDERED=ordered, BLOCK=NUMBERED)
    return slot, sequence
