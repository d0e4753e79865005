"""Scans that run for some samples of a batch: who chooses them, and how the others are left out.

Source: DyVM, arXiv:2504.04787.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.native.weights import MixerWeights
from mtrkit.scan.dispatch import can_look
from mtrkit.types import Gating


def choose(projected: Tensor, gating: Gating) -> Tensor | None:
    """Gates (B, 2) from what in_proj has made of all tokens, (B, L, 2E); ``None`` if every scan runs."""
    return None if gating.select is None else gating.select(_seen(projected, gating))


def choose_early(hidden: Tensor, weights: MixerWeights, gating: Gating) -> Tensor:
    """The same from normalised tokens (B, L, D), of which in_proj sees no more than it has to: it is linear."""
    assert gating.select is not None
    return gating.select(F.linear(_seen(hidden, gating), weights.in_proj, weights.in_bias))


def _seen(tokens: Tensor, gating: Gating) -> Tensor:
    """The mean (B, C) of the tokens (B, L, C) that the choice is made by.

    The released code for segmentation, which has no class token, divides by one more than count while it trains and not
    afterwards; here both divide by their number.
    """
    if gating.tokens.shape[1]:
        places = gating.tokens[..., None].expand(-1, -1, tokens.shape[2])
        return tokens.gather(1, places).mean(dim=1)
    if gating.mask is None:
        return tokens.mean(dim=1)
    mask = gating.mask.to(tokens.dtype)
    return (tokens * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)  # training may drop every patch


def can_leave_out(hidden: Tensor, gating: Gating) -> bool:
    """Whether a scan may be left out for single samples: the host looks at the gates, which nothing records."""
    if gating.select is None or gating.mask is not None or gating.trains:
        return False
    return can_look(hidden) and not (hidden.is_cuda and torch.cuda.is_current_stream_capturing())


def run_chosen(
    hidden: Tensor, weights: MixerWeights, gates: Tensor, run: Callable[[Tensor, MixerWeights], Tensor]
) -> Tensor:
    """Mixer output (B, L, D), each scan run for the samples whose gate is 1 alone.

    A backward scan alone is a forward one on the reversed tokens. A sample without any scan skips the mixer: its
    output is that of out_proj for zeros.

    Args:
        hidden: (B, L, D).
        weights: Of both directions; a sum that is halved is halved for one direction too.
        gates: (B, 2), forward and backward.
        run: Runs a mixer of one direction or of both.
    """
    forward, backward = weights.directions
    used = (gates > 0.5).detach().to(torch.int64)
    found = (used[:, 0] + 2 * used[:, 1]).cpu()
    ways = {1: (forward,), 2: (backward,), 3: weights.directions}
    outputs, samples = [], []
    for number in range(4):
        group = (found == number).nonzero().flatten()
        if not len(group):
            continue
        tokens = hidden if len(group) == len(found) else hidden.index_select(0, group.to(hidden.device))
        tokens = tokens.flip(1) if number == 2 else tokens
        out = run(tokens, weights._replace(directions=ways[number])) if number else _nothing(tokens, weights)
        outputs.append(out.flip(1) if number == 2 else out)
        samples.append(group)
    if len(outputs) < 2:
        return outputs[0] if outputs else torch.zeros_like(hidden)
    dtype = outputs[-1].dtype  # under autocast that of a product
    joined, order = torch.cat([out.to(dtype) for out in outputs]), torch.argsort(torch.cat(samples))
    return joined.index_select(0, order.to(hidden.device))


def _nothing(tokens: Tensor, weights: MixerWeights) -> Tensor:
    out = torch.zeros_like(tokens)
    return out if weights.out_bias is None else out + weights.out_bias
