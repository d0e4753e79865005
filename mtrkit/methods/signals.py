"""The signals of a block by the names that options use.

All are of the block that has just run, aligned with the tokens, and the sum of both scan directions. Δ is taken
after bias and softplus, as the scan uses it; B, C and y as the scan sees and gives them, before the gate.
"""

from typing import Literal

from torch import Tensor

from mtrkit.methods.base import Widths
from mtrkit.ops import ChannelReduction, channel_score, class_score, comparable
from mtrkit.types import BlockState

Signal = Literal["X", "features", "delta", "B", "C", "y", "keys"]
"""X is the mixer's output, features the residual stream behind it; keys are those of an attention block."""

Indicator = Literal["delta", "B", "C", "y", "X", "features", "cls", "attention"]
"""cls is the similarity of the features to the class token; attention is what a class token pays to each token."""

_FIELD = {
    "X": "hidden",
    "features": "features",
    "cls": "features",
    "delta": "delta",
    "B": "ssm_B",
    "C": "ssm_C",
    "y": "y",
    "keys": "keys",
    "attention": "attention",
}


def read_signal(state: BlockState, name: str) -> Tensor:
    """The signal (B, L, its channels)."""
    field = _FIELD[name]
    return getattr(state if field in ("hidden", "features") else state.signals, field)


def importance(state: BlockState, indicator: Indicator, channels: ChannelReduction) -> Tensor:
    """Scores (B, L) from a signal, its channels reduced to one; larger means kept."""
    if indicator == "cls":
        return class_score(state.features, state.special)
    mean = state.signals.delta_mean
    if mean is not None and (indicator, channels) == ("delta", "mean"):
        return comparable(mean)
    return channel_score(read_signal(state, indicator), channels)


def read_by(*names: str) -> frozenset[str]:
    """The fields of :class:`~mtrkit.types.Signals` behind these names that a block has to be asked for."""
    return frozenset(_FIELD[name] for name in names) - {"hidden", "features"}


def scored_by(indicator: Indicator, channels: ChannelReduction) -> frozenset[str]:
    """The same for what :func:`importance` needs; the mean of Δ takes a block less time than all of it."""
    return frozenset({"delta_mean"}) if (indicator, channels) == ("delta", "mean") else read_by(indicator)


def width_of(name: str, widths: Widths) -> int:
    """Channels of a signal; keys are the mean over the heads, and so as wide as one of them."""
    own = {"delta": widths.inner, "y": widths.inner, "B": widths.state, "C": widths.state, "attention": 1}
    return (own | {"keys": widths.keys or widths.dim}).get(name, widths.dim)


def scoring_flops(indicator: str, num_tokens: int, widths: Widths) -> int:
    """One addition per channel; for cls normalising (6) and comparing (2) each."""
    return num_tokens * (8 * widths.dim if indicator == "cls" else width_of(indicator, widths))
