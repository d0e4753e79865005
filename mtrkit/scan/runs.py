"""Sequences whose tokens last several positions each: write them out, compute, and take means over the copies.

A token that stands for s neighbours has to last s positions: a convolution looks back over positions, and a scan's
state decays and takes in once per position. What is computed on the sequence with every token written out as often as
it lasts, and then averaged over each token's copies, is what the dense model would give on such a sequence. This is how
every backend keeps time; the compiled library does the same without writing anything out, see run_operators.py.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.scan.dispatch import standard_only
from mtrkit.types import Runs


class Written(NamedTuple):
    """Which token stands at each of P positions; those that a sample does not have come last."""

    token: Tensor  # (B, P) int64
    real: Tensor  # (B, P) bool: whether the sample has the position
    begin: Tensor  # (B, L' + 1) int64: the first position of each token, and of those that it does not have

    def repeat(self, x: Tensor, blank: bool = False) -> Tensor:
        """(B, C, L') to (B, C, P): every token as often as it lasts; if ``blank``, zero at positions beyond."""
        batch = torch.arange(x.shape[0], device=x.device)[:, None]
        copies = x.transpose(1, 2)[batch, self.token]
        if blank:
            copies = torch.where(self.real[..., None], copies, 0.0)
        return copies.transpose(1, 2)

    def average(self, x: Tensor) -> Tensor:
        """(B, C, P) to (B, C, L'): the mean over the copies of each token, in at least float32 inside."""
        batch, channels, positions = x.shape
        dtype = torch.promote_types(x.dtype, torch.float32)
        rows = x.transpose(1, 2).to(dtype)
        if standard_only():
            return self._average_by_sums(rows).transpose(1, 2).to(x.dtype)
        every = torch.arange(batch * positions, device=x.device)
        begin = self.begin + torch.arange(batch, device=x.device)[:, None] * positions
        found = F.embedding_bag(every, rows.reshape(-1, channels), begin.flatten(), mode="mean")
        return found.view(batch, -1, channels)[:, :-1].transpose(1, 2).to(x.dtype)

    def _average_by_sums(self, rows: Tensor) -> Tensor:
        """The same by what every transform of torch can take apart, and in no fixed order on a GPU."""
        lengths = self.begin.diff(dim=1)[..., None]
        rows = torch.where(self.real[..., None], rows, 0.0)
        total = rows.new_zeros(rows.shape[0], lengths.shape[1], rows.shape[2])
        return total.scatter_add(1, self.token[..., None].expand_as(rows), rows) / lengths


def write_out(runs: Runs) -> Written:
    """Find the token at every position."""
    lengths = runs.lengths
    ends = lengths.cumsum(dim=1)
    positions = torch.arange(runs.positions, device=lengths.device).expand(lengths.shape[0], -1).contiguous()
    if standard_only():
        token = (ends[:, None] <= positions[..., None]).sum(dim=2)
    else:
        token = torch.searchsorted(ends, positions, right=True)
    begin = torch.cat([ends - lengths, ends[:, -1:]], dim=1)
    return Written(token.clamp(max=lengths.shape[1] - 1), positions < ends[:, -1:], begin)
