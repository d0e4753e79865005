"""A block that passes on one tensor, as those of a ViT or of MambaVision do."""

from typing import Any

import torch
from torch import Tensor

from mtrkit.errors import InputError
from mtrkit.ops import reduce_sum, restore_sum, with_residual
from mtrkit.patch.block import PatchedBlock
from mtrkit.types import MixerCall, ReducedStream, Signals


class OneTensorBlock(PatchedBlock):
    """``forward`` of a block that passes on one tensor: the stream travels in its place."""

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the block on the tokens, reduce if this is the place, restore the sequence after the last."""
        reduced, stream = self._enter(x, x)
        if not reduced:
            return self.hidden(x, *args, **kwargs)
        tokens = x if stream is None else stream.residual
        call = self._mixer_call(tokens, stream)
        hidden, residual, signals = self._run(tokens, call, *args, **kwargs)
        tokens = hidden if residual is None else residual + hidden
        stream = with_residual(stream, tokens)
        if self.reduces:
            stream = self._shorten(hidden, residual, signals, stream)
        if self.reduces_inside:
            stream = stream.updated(residual=self.reduction.adapter.run_mlp(self.module, stream.residual))
        stream = self._correct(None, stream)
        return restore_sum(stream) if self.restores else stream

    def _run(self, tokens: Tensor, call: MixerCall, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None, Signals]:
        """What the block reduces: mixer output and residual, or the tokens alone if they are not such a sum."""
        adapter = self.reduction.adapter
        if self.repeats:
            self._check_arguments(args, kwargs)
        if self.reduces_inside:
            return adapter.run_attention(self.module, tokens, call), None, self._signals(call)
        split = adapter.split_block(self.module, tokens, call) if self.reduces or call.runs is not None else None
        if split is not None:
            return *split, self._signals(call)
        if call.says_something:
            return adapter.run_block(self.module, tokens, call), None, self._signals(call)
        return self.hidden(tokens, *args, **kwargs), None, Signals()

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise :class:`InputError` if the block was given what the adapter's code leaves out."""
        given = [f"an argument of type {type(value).__name__}" for value in args if value is not None]
        given += [name for name, value in kwargs.items() if value is not None and value is not False]
        if given:
            raise InputError(
                f"block {self.index + 1} was given {', '.join(given)} beside its tokens, of which a reduced model has "
                "fewer; call the model without, or inside mtrkit.reduction_disabled(model)"
            )

    def _shorten(
        self, hidden: Tensor, residual: Tensor | None, signals: Signals, stream: ReducedStream
    ) -> ReducedStream:
        """If nothing is beside the tokens, methods see them as the mixer's output and no residual."""
        beside = torch.zeros_like(hidden) if residual is None else residual
        decision = self._decide(hidden, beside, signals, stream)
        if decision is None:
            return stream
        return self._keep_time(reduce_sum(hidden, residual, stream, decision.token_map, decision.hidden_map))
