"""The Mamba mixer, one or two scan directions, with every intermediate signal in reach.

The fused kernels of the official repositories hide Δ, B, C and y inside one call. Here the mixer is the
plain sequence projection → causal convolution → selective scan → gate → projection, which calls the same
convolution and scan kernels and gives the same output, so that a token-reduction method may read
whatever it scores by and nothing is computed twice. For inference one operator does it all on a CPU.

Source: Gu and Dao, "Mamba" (arXiv:2312.00752), section 3.4; two directions: Zhu et al., "Vision Mamba"
(arXiv:2401.09417), algorithm 1.
"""

from typing import Any

import torch
from torch import Tensor

from mtrkit.native.weights import DirectionWeights, MixerWeights
from mtrkit.scan import fused, steps
from mtrkit.scan.dispatch import length_last
from mtrkit.scan.fastpath import are_plain, can_mix, plain_tensors
from mtrkit.scan.steps import DirectionLayers, MixerLayers, Parts
from mtrkit.types import Gaps, Signals

_CACHE_BYTES = 5 << 19  # of x and z at a time: what the second-level caches of two cores hold


def mixer_forward(
    hidden: Tensor, parts: Parts, reads: frozenset[str] = frozenset(), gaps: Gaps | None = None
) -> tuple[Tensor, Signals]:
    """Run a mixer on normalised tokens.

    Args:
        hidden: (B, L, D).
        parts: The mixer's weights, or its layers; see :func:`mixer_parts`.
        reads: Names of the :class:`~mtrkit.types.Signals` to return; the others stay ``None``.
        gaps: Tokens that were dropped in front of each one: the scan's state decays over them as if they were
            there with no input, by their Δ, or by that of a token without content if only their number is
            given. Default: the state is carried on.

    Returns:
        The mixer output (B, L, D) and the signals.
    """
    if gaps is None and can_mix(parts, hidden):
        return fused.mixer(hidden, parts, reads)
    pieces = _pieces(hidden, parts)
    if pieces == 1:
        return steps.mix(hidden, parts, reads, gaps)
    cut = (
        [None] * pieces
        if gaps is None
        else [Gaps(*pair) for pair in zip(*(gap.chunk(pieces) for gap in gaps), strict=True)]
    )
    pairs = zip(hidden.chunk(pieces), cut, strict=False)  # chunk may make fewer than it was asked for
    outputs, signals = zip(*(steps.mix(piece, parts, reads, gap) for piece, gap in pairs), strict=True)
    return torch.cat(outputs), Signals(*(_join(found) for found in zip(*signals, strict=True)))


def mixer_parts(mixer: Any, suffixes: tuple[str, ...] = ("", "_b"), halve: bool = False) -> Parts:
    """What :func:`mixer_forward` runs of a ``Mamba`` module: its weights if they say all, otherwise its layers.

    They do not if a layer is another class than torch's own, has hooks, a ``forward`` of its own or a bias more or
    less than plain Mamba, or if a weight is of a tensor subclass.

    Args:
        mixer: A module with the official names: in_proj, out_proj, and per direction conv1d, x_proj, dt_proj, A_log, D.
        suffixes: Of the names of each direction, the forward one first; that of A comes before ``_log``.
        halve: Whether the sum of the directions is halved.
    """
    ways = [_direction_layers(mixer, suffix) for suffix in suffixes]
    layers = MixerLayers(mixer.in_proj, mixer.out_proj, tuple(ways), halve)
    inside = [layer for way in ways for layer in way[:3]]
    if not are_plain((layers.in_proj, layers.out_proj, *inside)):
        return layers
    if any(way.x_proj.bias is not None or way.dt_proj.bias is None for way in ways):
        return layers
    outer = mixer.in_proj.weight, mixer.in_proj.bias, mixer.out_proj.weight, mixer.out_proj.bias
    weights = MixerWeights(*outer, tuple(map(_direction_weights, ways)), halve)
    plain = plain_tensors((*outer, *(weight for way in weights.directions for weight in way)))
    return weights if plain else layers


def _direction_layers(mixer: Any, suffix: str) -> DirectionLayers:
    conv, x_proj, dt_proj = (getattr(mixer, f"{name}{suffix}") for name in ("conv1d", "x_proj", "dt_proj"))
    return DirectionLayers(conv, x_proj, dt_proj, getattr(mixer, f"A{suffix}_log"), getattr(mixer, f"D{suffix}"))


def _direction_weights(layers: Any) -> DirectionWeights:
    conv, x_proj, dt_proj, A_log, D = layers
    return DirectionWeights(conv.weight, conv.bias, x_proj.weight, dt_proj.weight, dt_proj.bias, A_log, D)


def _pieces(hidden: Tensor, parts: Parts) -> int:
    """Into how many to cut the batch, so that what passes between the kernels stays in a CPU's cache."""
    alone = torch.compiler.is_compiling() or torch.is_grad_enabled() or length_last(hidden.device)
    if alone or not isinstance(parts, MixerWeights):  # a layer with hooks is called once
        return 1
    between = hidden.shape[0] * hidden.shape[1] * parts.in_proj.shape[0] * hidden.element_size()
    return max(1, min(hidden.shape[0], round(between / _CACHE_BYTES)))


def _join(found: tuple[Tensor | None, ...]) -> Tensor | None:
    present = [signal for signal in found if signal is not None]
    return torch.cat(present) if present else None
