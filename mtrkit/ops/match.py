"""Find for each source token its most similar target."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.ops.rows import take

Similarity = Literal["cosine", "l1", "l2"]


class Match(NamedTuple):
    """The partner found for each source token."""

    target: Tensor  # (B, s) int64: position of the partner among all L tokens
    similarity: Tensor  # (B, s): larger means more alike


def match_nearest(metric: Tensor, src: Tensor, dst: Tensor, similarity: Similarity = "cosine") -> Match:
    """Give each source token the most similar target; several may choose the same one.

    Half precision is matched in float32: rounding would otherwise decide between near neighbours.

    Args:
        metric: (B, L, D), what similarity is measured on.
        src: (B, s) positions of the sources.
        dst: (B, t) positions of the targets, in sequence order; t ≥ 1. Equal similarity goes to the first.
        similarity: Cosine, or the negative L1 or squared L2 distance.
    """
    metric = metric if metric.dtype == torch.float64 else metric.float()
    scores, scale = _similarity_matrix(take(metric, src), take(metric, dst), similarity)
    best = scores.amax(dim=2, keepdim=True)
    # Equal targets get products that differ in the last bits, depending on where the matrix product tiles.
    alike = scores >= best - 16 * torch.finfo(scores.dtype).eps * scale
    first = alike.to(torch.uint8).argmax(dim=2)
    return Match(dst.gather(1, first), best.squeeze(2))


def _similarity_matrix(a: Tensor, b: Tensor, similarity: Similarity) -> tuple[Tensor, Tensor | float]:
    """(B, s, D) and (B, t, D) to (B, s, t), and the size of the terms whose rounding it carries."""
    if similarity == "cosine":
        return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).transpose(1, 2), 1.0
    if similarity == "l1":
        return -torch.cdist(a, b, p=1.0), 0.0
    a2, b2 = a.square().sum(-1, keepdim=True), b.square().sum(-1)[:, None]
    return 2 * (a @ b.transpose(1, 2)) - (a2 + b2), a2 + b2.amax(dim=2, keepdim=True)
