"""Matching, numbering and merging tokens by the compiled library, one call for a dozen operators of torch."""

import torch
from torch import Tensor

from mtrkit.errors import InputError
from mtrkit.native import jobs, library


def nearest(metric: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    """Of tokens ``dst`` (B, t) the one most similar to each of ``src`` (B, s), by the cosine of ``metric`` (B, L, D).

    Of targets that are equal up to rounding the first. Returns (B, s).
    """
    if src.dim() != 2 or dst.dim() != 2 or not len(metric) == len(src) == len(dst) or not dst.shape[1]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (metric, src, dst))
        raise InputError(f"metric, src and dst have shapes {shapes}; expected (B, L, D), (B, s) and (B, t), t ≥ 1")
    metric, src, dst = jobs.dense(metric), jobs.positions(src), jobs.positions(dst)
    found, wrong = torch.empty_like(src), src.new_zeros(1)
    places = (jobs.address(tensor) for tensor in (metric, src, dst, found, wrong))
    job = jobs.MATCH.pack(*metric.shape, src.shape[1], dst.shape[1], *places)
    _run(library.MATCH, job, wrong, metric.shape[1])
    return found


def cosines(metric: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The cosine (B, n) of each token ``a`` (B, n) to its token ``b`` (B, n), by ``metric`` (B, L, D)."""
    if a.dim() != 2 or a.shape != b.shape or metric.dim() != 3 or len(metric) != len(a):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (metric, a, b))
        raise InputError(f"metric, a and b have shapes {shapes}; expected (B, L, D), (B, n) and (B, n)")
    metric, a, b = jobs.dense(metric), jobs.positions(a), jobs.positions(b)
    found, wrong = metric.new_empty(a.shape), a.new_zeros(1)
    job = jobs.COSINES.pack(*metric.shape, a.shape[1], *map(jobs.address, (metric, a, b, found, wrong)))
    _run(library.COSINES, job, wrong, metric.shape[1])
    return found


def merge(tokens: Tensor, slot: Tensor, slots: int, weight: Tensor | None = None, mean: bool = True) -> Tensor:
    """(B, slots, D): at each slot the mean, or the sum, of the tokens (B, L, D) whose ``slot`` (B, L) it is.

    Args:
        tokens: (B, L, D) float32, or of 16 bits, which are widened, and rounded once in the end.
        slot: (B, L) int64; tokens of slot −1 are lost.
        slots: L', their number.
        weight: (B, L, 1), of each token in the mean. Default: all equal.
        mean: Whether to divide by the number of tokens that meet.
    """
    if slot.shape != tokens.shape[:2] or (weight is not None and weight.shape != (*slot.shape, 1)):
        raise InputError(f"slots of shape {tuple(slot.shape)} do not fit tokens of shape {tuple(tokens.shape)}")
    dtype = tokens.dtype
    tokens, slot, weight = jobs.dense(tokens), jobs.positions(slot), weight if weight is None else jobs.dense(weight)
    merged, wrong = tokens.new_empty((tokens.shape[0], slots, tokens.shape[2])), slot.new_zeros(1)
    places = [jobs.address(tensor) for tensor in (slot, tokens, weight, merged, wrong)]
    job = jobs.MERGE.pack(*tokens.shape[:2], slots, tokens.shape[2], mean, *places)
    _run(library.MERGE, job, wrong, slots)
    return merged.to(dtype)


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
    kept, merged, target = jobs.positions(kept), jobs.positions(merged), jobs.positions(target)
    slot, sequence, wrong = kept.new_empty((len(kept), num_tokens)), torch.empty_like(kept), kept.new_zeros(1)
    places = [jobs.address(tensor) for tensor in (kept, merged, target, slot, sequence, wrong)]
    job = jobs.SLOTS.pack(len(kept), num_tokens, kept.shape[1], merged.shape[1], ordered, *places)
    _run(library.SLOTS, job, wrong, num_tokens)
    return slot, sequence


def _run(kind: int, job: bytes, wrong: Tensor, limit: int) -> None:
    library.library().run((kind, job))
    if wrong.item():
        raise InputError(
            f"a reduction names a token or slot outside of 0 … {limit - 1}; give positions in the sequence"
        )
