"""Matching, numbering and merging tokens by the compiled library, one call for a dozen operators of torch."""

from collections.abc import Sequence

from torch import Tensor

from mtrkit.errors import InputError
from mtrkit.native import jobs, token_jobs
from mtrkit.native.chain import Chain
from mtrkit.native.token_jobs import Merge


def nearest(metric: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    """Of tokens ``dst`` (B, t) the one most similar to each of ``src`` (B, s), by the cosine of ``metric`` (B, L, D).

    Of targets that are equal up to rounding the first. Returns (B, s).
    """
    if src.dim() != 2 or dst.dim() != 2 or not len(metric) == len(src) == len(dst) or not dst.shape[1]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (metric, src, dst))
        raise InputError(f"metric, src and dst have shapes {shapes}; expected (B, L, D), (B, s) and (B, t), t ≥ 1")
    with Chain() as chain:
        return token_jobs.match(chain, jobs.dense(metric), jobs.positions(src), jobs.positions(dst))


def cosines(metric: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The cosine (B, n) of each token ``a`` (B, n) to its token ``b`` (B, n), by ``metric`` (B, L, D)."""
    if a.dim() != 2 or a.shape != b.shape or metric.dim() != 3 or len(metric) != len(a):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (metric, a, b))
        raise InputError(f"metric, a and b have shapes {shapes}; expected (B, L, D), (B, n) and (B, n)")
    with Chain() as chain:
        return token_jobs.cosines(chain, jobs.dense(metric), jobs.positions(a), jobs.positions(b))


def merge(merges: Sequence[Merge], slot: Tensor, slots: int) -> list[Tensor]:
    """Of each, (B, slots, D): at each slot the mean, or the sum, of the tokens whose slot it is.

    Those of 16 bits are widened, and rounded once in the end.

    Args:
        merges: What travels together.
        slot: (B, L) int64; tokens of slot −1 are lost.
        slots: L', their number.
    """
    slot, merged = jobs.positions(slot), []
    with Chain() as chain:
        for tokens, weight, mean in merges:
            if slot.shape != tokens.shape[:2] or (weight is not None and weight.shape != (*slot.shape, 1)):
                raise InputError(f"slots of shape {tuple(slot.shape)} do not fit tokens of shape {tuple(tokens.shape)}")
            wide = Merge(jobs.dense(tokens), weight if weight is None else jobs.dense(weight), mean)
            merged.append(token_jobs.merge(chain, wide, slot, slots))
    return [found.to(given.tokens.dtype) for found, given in zip(merged, merges, strict=True)]


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
    with Chain() as chain:
        return token_jobs.number(chain, num_tokens, kept, merged, target, ordered)


def split(score: Tensor, special: Tensor, top: int, bottom: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions in sequence order: of special and ``top`` best tokens, of those between, of the ``bottom`` worst.

    Equal scores rank by position, the earlier token higher; a NaN ranks last.

    Args:
        score: (B, L) float32.
        special: (B, S) int64, each token once.
        top: Of the tokens that are not special.
        bottom: Of the same.
    """
    batch, length = score.shape
    between = length - special.shape[1] - top - bottom
    if len(special) != batch or min(top, between, bottom) < 0:
        given = f"{top} to keep, {bottom} to leave and special ones of shape {tuple(special.shape)}"
        raise InputError(f"scores of shape {tuple(score.shape)} do not fit {given}")
    with Chain() as chain:
        return token_jobs.split(chain, jobs.dense(score), jobs.positions(special), top, bottom)
