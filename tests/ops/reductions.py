"""Random batches of tokens and random maps over them, for the tests beside this file."""

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from mtrkit.ops import channel_score, match_nearest, split_by_rank, token_map
from mtrkit.types import TokenMap


class Case(NamedTuple):
    """A batch, and how many of its tokens to keep untouched and to remove."""

    tokens: Tensor  # (B, L, D) float64
    special: Tensor  # (B, S), other places in each sample
    top: int
    bottom: int

    @property
    def protected(self):
        """(B, L) bool, true at the special tokens."""
        return torch.zeros(self.tokens.shape[:2]).scatter(1, self.special, 1.0).bool()


def make_case(batch, length, special, width, top, bottom, seed):
    """Build a case from its sizes; everything random comes from ``seed``."""
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, length, width, generator=rng, dtype=torch.float64)
    places = torch.rand(batch, length, generator=rng).argsort(dim=1)[:, :special].sort(dim=1).values
    return Case(tokens, places, top, bottom)


@st.composite
def cases(draw, least_batch=1, least_special=0):
    """Cases in which each group but the targets may be empty."""
    special = draw(st.integers(least_special, 3))
    free = draw(st.integers(1, 24))
    bottom = draw(st.integers(0, free - 1))
    top = draw(st.integers(0, free - 1 - bottom))
    batch, width = draw(st.integers(least_batch, 3)), draw(st.integers(1, 6))
    return make_case(batch, free + special, special, width, top, bottom, draw(st.integers(0, 2**31)))


@st.composite
def maps(draw, num_tokens, batch, *, drops=True, ordered=True):
    """Maps of ``num_tokens`` tokens in which any may be kept, merged or dropped; one at least is kept."""
    num_kept = draw(st.integers(1, num_tokens))
    gone = num_tokens - num_kept
    num_merged = draw(st.integers(0, gone)) if drops else gone
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    order = torch.rand(batch, num_tokens, generator=rng).argsort(dim=1)
    kept, merged = order[:, :num_kept], order[:, num_kept : num_kept + num_merged].sort(dim=1).values
    target = kept.gather(1, torch.randint(num_kept, (batch, num_merged), generator=rng))
    return token_map(num_tokens, kept, merged, target, ordered=ordered)


def decide(tokens, special, top, bottom, similarity="cosine") -> TokenMap:
    """The whole way from features to a map: score, group, match, reorder."""
    split = split_by_rank(channel_score(tokens), special, top, bottom)
    target = match_nearest(tokens, split.src, split.dst, similarity)
    return token_map(tokens.shape[1], torch.cat([split.keep, split.dst], dim=1), split.src, target)
