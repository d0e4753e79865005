"""How important each token is: one number per token, larger means kept."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.ops.tensors import comparable, precise_product, take

ChannelReduction = Literal["mean", "clipped", "l1", "norm"]


def channel_score(signal: Tensor, reduction: ChannelReduction = "mean") -> Tensor:
    """Turn a signal (B, L, C) into scores (B, L), in float32 at least.

    Args:
        signal: Δ, B, C, y or features.
        reduction: ``"mean"`` over channels (MTR's choice for Δ, arXiv:2507.14042, section 3), ``"clipped"``
            the mean of the positive parts (UTR, arXiv:2410.14725), ``"l1"`` the mean of the sizes, ``"norm"`` the
            Euclidean norm.

    >>> channel_score(torch.tensor([[[1.0, -3.0], [2.0, 2.0]]]), "clipped")
    tensor([[0.5000, 2.0000]])
    """
    signal = comparable(signal)
    if reduction == "mean":
        return signal.mean(dim=-1)
    if reduction == "clipped":
        return signal.clamp(min=0).mean(dim=-1)
    if reduction == "l1":
        return signal.abs().mean(dim=-1)
    return torch.linalg.vector_norm(signal, dim=-1)


def class_score(features: Tensor, special: Tensor) -> Tensor:
    """Cosine similarity (B, L) of each token to the class token, the mean over all S special tokens; float32 at least.

    Args:
        features: (B, L, D).
        special: (B, S) where the special tokens stand. Without special tokens, the mean of all
            tokens is used.
    """
    unit = F.normalize(comparable(features), dim=-1)
    anchors = take(unit, special) if special.shape[1] else unit
    anchor = anchors.mean(dim=1, keepdim=True)  # (B, 1, D)
    return precise_product(unit, anchor.transpose(1, 2)).squeeze(-1)


def standardize(score: Tensor) -> Tensor:
    """Shift and scale scores (B, n) to mean 0 and variance 1 in every sample; equal ones all become 0.

    >>> standardize(torch.tensor([[1.0, 3.0], [5.0, 5.0]]))
    tensor([[-1.,  1.],
            [ 0.,  0.]])
    """
    centred = score - score.mean(dim=1, keepdim=True)
    spread = centred.square().mean(dim=1, keepdim=True).sqrt()
    return centred / spread.clamp(min=torch.finfo(score.dtype).tiny)
