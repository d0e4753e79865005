"""A block of a model with trained pruning: which scans run, and which patches go.

In training mode a patch that goes is masked: it moves behind those that stay, where no scan brings anything of it to
them, and its features stop changing. Otherwise it is dropped, as by any other method, to the same answer.

Source: DyVM, arXiv:2504.04787.
"""

from typing import cast

import torch
from torch import Tensor

from mtrkit.methods.dyvm import DyVM
from mtrkit.ops import columns, columns_without, hold_special, in_sequence, reduce_stream, take, token_map
from mtrkit.patch.two_tensor import TwoTensorBlock
from mtrkit.types import GatedPass, Gating, MixerCall, ReducedStream, Signals


class GatedBlock(TwoTensorBlock):
    """``forward`` of a block whose mixer leaves out scans and minds masked tokens."""

    @property
    def parts(self) -> DyVM:
        """What is trained."""
        return cast(DyVM, self.reduction.trained)

    def _is_read(self) -> bool:
        return True

    def _mixer_call(self, tokens: Tensor, stream: ReducedStream | None) -> MixerCall:
        call = super()._mixer_call(tokens, stream)
        select = self.parts.selector(self.index)
        mask = None if stream is None or stream.gated is None else stream.gated.mask
        if select is None and mask is None:
            return call
        slot = in_sequence(tokens) if stream is None else stream.slot
        call.gating = Gating(select, columns(slot, self.reduction.special_at(slot.shape[1])), mask, self.parts.training)
        return call

    def _end(self, hidden: Tensor, signals: Signals, stream: ReducedStream) -> tuple[Tensor, ReducedStream]:
        gated = GatedPass() if stream.gated is None else stream.gated
        if gated.mask is not None:  # a patch that is gone stays as it was, in a block whose out_proj has a bias too
            hidden = hidden * gated.mask.detach().to(hidden.dtype)
        if signals.gates is not None:
            gated = GatedPass(gated.mask, gated.kept, (*gated.gates, signals.gates))
        stream = stream.updated(gated=gated)
        if self.reduces and self.parts.training:
            return self._mask(hidden, stream, gated)
        return super()._end(hidden, signals, stream)

    def _mask(self, hidden: Tensor, stream: ReducedStream, gated: GatedPass) -> tuple[Tensor, ReducedStream]:
        """Draw the patches that stay; they come first, in their order, with the special tokens at their places."""
        places = self.reduction.special_at(stream.slot.shape[1])
        special, patches = columns(stream.slot, places), columns_without(stream.slot, places)
        features = take(stream.residual + hidden, patches)
        before = gated.kept[-1] if gated.kept else torch.ones_like(features[..., 0])
        kept = self.parts.draw(self.index + 1, features, before)
        gone = (kept < 0.5).to(torch.uint8)
        others = patches.gather(1, torch.sort(gone, dim=1, stable=True).indices)
        sequence = hold_special(others, special, self._special_slots(gone, special.shape[1]))
        to = token_map(sequence.shape[1], sequence, ordered=False)
        mask = torch.ones_like(sequence, dtype=kept.dtype).scatter(1, to.slot.gather(1, patches), kept)
        hidden, stream = reduce_stream(hidden, stream, to)
        return hidden, stream.updated(gated=GatedPass(mask[..., None], (*gated.kept, kept), gated.gates))

    def _special_slots(self, gone: Tensor, count: int) -> Tensor:
        """(B, S): where the special tokens stand among the patches that are left of M; ``gone`` (B, M) is 1 or 0."""
        patches = gone.shape[1]
        every = [self.reduction.special_at(kept + count) for kept in range(patches + 1)]
        table = torch.tensor(every, dtype=torch.int64, device=gone.device).view(patches + 1, count)
        return table[patches - gone.sum(dim=1)]
