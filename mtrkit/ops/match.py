"""Find for each source token its most similar target."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.ops.tensors import comparable, precise_product, take
from mtrkit.scan import operators
from mtrkit.scan.dispatch import standard_only
from mtrkit.scan.fastpath import matching_kernels

Similarity = Literal["cosine", "l1", "l2"]


class Links(NamedTuple):
    """Sources with their partners, and the sources that are left over."""

    src: Tensor  # (B, r) int64, the strongest link first
    target: Tensor  # (B, r) int64
    rest: Tensor  # (B, s − r) int64: the other sources, the strongest first


def match_nearest(metric: Tensor, src: Tensor, dst: Tensor, similarity: Similarity = "cosine", kth: int = 1) -> Tensor:
    """Give each source token the most similar target; several may choose the same one.

    Half precision is matched in float32, under autocast too: rounding would otherwise decide between near neighbours.

    Args:
        metric: (B, L, D), what similarity is measured on.
        src: (B, s) positions of the sources.
        dst: (B, t) positions of the targets, in sequence order; t ≥ 1. Equal similarity goes to the first.
        similarity: Cosine, or the negative L1 or squared L2 distance.
        kth: Take the k-th most similar instead of the first, or the last where there are fewer targets.

    Returns:
        (B, s) position of each source's partner.
    """
    metric = comparable(metric)
    if similarity == "cosine":
        kernels = matching_kernels(metric) if kth == 1 and dst.shape[1] else ""
        if kernels:
            return operators.nearest(metric.detach(), src, dst, kernels)
        metric = F.normalize(metric, dim=-1)
    scores, scale = _similarity_matrix(take(metric, src), take(metric, dst), similarity)
    first = _first_best(scores, scale)
    for _ in range(min(kth, dst.shape[1]) - 1):
        scores = scores.scatter(2, first, scores.new_full(first.shape, -torch.inf))
        first = _first_best(scores, scale)
    return dst.gather(1, first.squeeze(2))


def match_neighbors(
    metric: Tensor, sequence: Tensor, blocked: Tensor, similarity: Similarity = "cosine"
) -> tuple[Tensor, Tensor]:
    """Give every second token of a sequence the more similar of its two neighbours.

    Compares neighbours only, O(L·D) instead of the O(L²·D) of :func:`match_nearest`.

    Args:
        metric: (B, L, D), what similarity is measured on.
        sequence: (B, n) positions of the tokens that take part, n ≥ 2; the first, third, … are sources.
        blocked: (B, n − 1) bool, true where a token and the next one should stay apart.
        similarity: As in :func:`match_nearest`. Equal similarity goes to the neighbour before.

    Returns:
        The partner (B, s) of each source and how similar it is. A source takes a blocked neighbour only if it
        has no other; the link then gets the lowest possible similarity.
    """
    between = pair_similarity(metric, sequence[:, :-1], sequence[:, 1:], similarity)
    between = between.masked_fill(blocked, torch.finfo(between.dtype).min)
    beyond = torch.full_like(between[:, :1], -torch.inf)  # the ends have one neighbour, which stands for both
    similar_before = torch.cat([beyond, between], dim=1)[:, 0::2]
    similar_after = torch.cat([between, beyond], dim=1)[:, 0::2]
    before = torch.cat([sequence[:, 1:2], sequence[:, :-1]], dim=1)[:, 0::2]
    after = torch.cat([sequence[:, 1:], sequence[:, -2:-1]], dim=1)[:, 0::2]
    target = torch.where(similar_after > similar_before, after, before)
    return target, torch.maximum(similar_before, similar_after)


def pair_similarity(metric: Tensor, a: Tensor, b: Tensor, similarity: Similarity = "cosine") -> Tensor:
    """How alike tokens ``a`` (B, n) are to tokens ``b`` (B, n), pair by pair: (B, n).

    Equal pairs get equal numbers, bit for bit, wherever they stand; a matrix product, which works in tiles,
    does not promise that.
    """
    metric = comparable(metric)
    if similarity == "cosine":
        kernels = matching_kernels(metric)
        if kernels:
            return operators.cosines(metric.detach(), a, b, kernels)
        metric = F.normalize(metric, dim=-1)
        return (take(metric, a) * take(metric, b)).sum(dim=-1)
    apart = take(metric, a) - take(metric, b)
    return -apart.abs().sum(dim=-1) if similarity == "l1" else -apart.square().sum(dim=-1)


def strongest_links(src: Tensor, target: Tensor, strength: Tensor, r: int) -> Links:
    """Sort links (B, s) by ``strength`` (B, s), the greatest first, and take r of them; ties to the earlier."""
    order = torch.sort(strength, dim=1, descending=True, stable=True).indices
    ranked, best = src.gather(1, order), order[:, :r]
    return Links(ranked[:, :r], target.gather(1, best), ranked[:, r:])


def _first_best(scores: Tensor, scale: Tensor | float) -> Tensor:
    """(B, s, t) to the index (B, s, 1) of the first of the greatest, up to rounding."""
    best = scores.amax(dim=2, keepdim=True)
    # Equal targets get products that differ in the last bits, depending on where the matrix product tiles.
    alike = scores >= best - 16 * torch.finfo(scores.dtype).eps * scale
    return alike.to(torch.uint8).argmax(dim=2, keepdim=True)


def _similarity_matrix(a: Tensor, b: Tensor, similarity: Similarity) -> tuple[Tensor, Tensor | float]:
    """(B, s, D) and (B, t, D), units for cosines, to (B, s, t), and the size of the terms whose rounding it has."""
    if similarity == "cosine":
        return precise_product(a, b.transpose(1, 2)), 1.0
    if similarity == "l1":
        if standard_only():
            return -(a[:, :, None] - b[:, None]).abs().sum(dim=3), 0.0
        return -torch.cdist(a, b, p=1.0), 0.0
    a, b = _centred(a, b)
    terms = a.square().sum(-1, keepdim=True) + b.square().sum(-1)[:, None]
    return 2 * precise_product(a, b.transpose(1, 2)) - terms, terms


def _centred(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both less the mean of ``b`` in each sample: distances stay, but what all share no longer cancels in them.

    A channel whose mean is not finite stays as it is, so that what is not a number stays in its token.
    """
    mean = b.mean(dim=1, keepdim=True)
    mean = torch.where(mean.isfinite(), mean, 0.0)
    return a - mean, b - mean
