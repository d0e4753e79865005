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
from mtrkit.scan import fused, gates, steps
from mtrkit.scan.dispatch import length_last
from mtrkit.scan.fastpath import are_plain, can_mix, can_mix_alone, plain_tensors
from mtrkit.scan.steps import DirectionLayers, MixerLayers, Parts
from mtrkit.types import Gaps, Gating, Runs, Signals

_CACHE_BYTES = 5 << 19  # of x and z at a time: what the second-level caches of two cores hold


_Names = tuple[str, str, str, str, str]
_NAMES: dict[str, _Names] = {  # of a direction's layers and parameters; the backward ones end in _b, its A in A_b_log
    end: (f"conv1d{end}", f"x_proj{end}", f"dt_proj{end}", f"A{end}_log", f"D{end}") for end in ("", "_b")
}


def mixer_forward(
    hidden: Tensor,
    parts: Parts,
    reads: frozenset[str] = frozenset(),
    gaps: Gaps | None = None,
    runs: Runs | None = None,
    gating: Gating | None = None,
) -> tuple[Tensor, Signals]:
    """Run a mixer on normalised tokens.

    Args:
        hidden: (B, L, D).
        parts: The mixer's weights, or its layers; see :func:`mixer_parts`.
        reads: Names of the :class:`~mtrkit.types.Signals` to return; the others stay ``None``.
        gaps: Tokens that were dropped in front of each one: the scan's state decays over them as if they were
            there with no input, by their Δ, or by that of a token without content if only their number is
            given. Default: the state is carried on.
        runs: How many positions each token lasts: convolution and scan run as if it were written out as often, and
            give the mean over these copies; not together with ``gaps``. Default: one position each.
        gating: What chooses the scans that run, and the tokens that count in them; not together with the other three.
            Without a mask a scan is left out for the samples that do without it, unless something traces the pass:
            it then runs for all of them, and counts for nothing. Default: all scans run.

    Returns:
        The mixer output (B, L, D) and the signals.
    """
    if gating is not None:
        return _mix_gated(hidden, parts, gating)
    if gaps is None and can_mix(parts, hidden):
        return fused.mixer(hidden, parts, reads, runs)
    pieces = _pieces(hidden, parts)
    if pieces == 1:
        return steps.mix(hidden, parts, reads, gaps, runs)
    outputs, signals = [], []
    samples = -(-hidden.shape[0] // pieces)
    for start in range(0, hidden.shape[0], samples):
        part = slice(start, start + samples)
        gap = None if gaps is None else Gaps(gaps.forward[part], gaps.backward[part])
        run = None if runs is None else Runs(runs.lengths[part], runs.positions)
        out, found = steps.mix(hidden[part], parts, reads, gap, run)
        outputs.append(out)
        signals.append(found)
    return torch.cat(outputs), Signals(*(_join(found) for found in zip(*signals, strict=True)))


def _mix_gated(hidden: Tensor, parts: Parts, gating: Gating) -> tuple[Tensor, Signals]:
    if not isinstance(parts, MixerWeights) or not gates.can_leave_out(hidden, gating):
        return steps.mix_gated(hidden, parts, gating)
    chosen = gates.choose_early(hidden, parts, gating)
    if can_mix_alone(parts, hidden):
        return fused.mix_chosen(hidden, parts, chosen), Signals(gates=chosen)
    return gates.run_chosen(hidden, parts, chosen, lambda x, some: mixer_forward(x, some)[0]), Signals(gates=chosen)


def mixer_parts(mixer: Any, suffixes: tuple[str, ...] = ("", "_b"), halve: bool = False) -> Parts:
    """What :func:`mixer_forward` runs of a ``Mamba`` module: its weights if they say all, otherwise its layers.

    They do not if a layer is another class than torch's own, has hooks, a ``forward`` of its own or a bias more or
    less than plain Mamba, or if a weight is of a tensor subclass.

    Args:
        mixer: A module with the official names: in_proj, out_proj, and per direction conv1d, x_proj, dt_proj, A_log, D.
        suffixes: Of the names of each direction, ``""`` and ``"_b"``; that of A comes before ``_log``.
        halve: Whether the sum of the directions is halved.
    """
    names = [_NAMES[suffix] for suffix in suffixes]
    weights = None if torch.compiler.is_compiling() else _plain_weights(mixer, names, halve)
    if weights is not None:
        return weights
    ways = tuple([direction_layers(mixer, suffix) for suffix in suffixes])
    layers = MixerLayers(mixer.in_proj, mixer.out_proj, ways, halve)
    return _compiled_weights(layers) if torch.compiler.is_compiling() else layers


def direction_layers(mixer: Any, suffix: str = "") -> DirectionLayers:
    """The layers of one scan direction of a ``Mamba`` module, by the suffix of their names."""
    return DirectionLayers(*[getattr(mixer, name) for name in _NAMES[suffix]])


def _plain_weights(mixer: Any, names: list[_Names], halve: bool) -> MixerWeights | None:
    """All weights if they say all. Runs in every block: so past the slow attributes of modules, and without a loop."""
    modules, own = mixer._modules, mixer._parameters
    try:
        in_proj, out_proj = modules["in_proj"], modules["out_proj"]
        layers, directions = [in_proj, out_proj], []
        for conv1d, x_proj, dt_proj, A_log, D in names:
            conv, x, dt = modules[conv1d], modules[x_proj], modules[dt_proj]
            conv_, x_, dt_ = conv._parameters, x._parameters, dt._parameters
            layers += (conv, x, dt)
            if x_["bias"] is not None or dt_["bias"] is None:
                return None
            direction = (conv_["weight"], conv_["bias"], x_["weight"], dt_["weight"], dt_["bias"], own[A_log], own[D])
            if not plain_tensors(direction):
                return None
            directions.append(DirectionWeights._make(direction))
        outer = (*_outer(in_proj), *_outer(out_proj))
    except KeyError:  # replicas and parametrized mixers hold them elsewhere
        return None
    plain = plain_tensors(outer) and are_plain(layers)
    return MixerWeights._make((*outer, tuple(directions), halve)) if plain else None


def _outer(layer: Any) -> tuple[Tensor, Tensor | None]:
    parameters = layer._parameters
    return parameters["weight"], parameters["bias"]


def _compiled_weights(layers: Any) -> Parts:
    """The same while torch.compile looks, which follows attributes."""
    inside = [layer for way in layers.directions for layer in (way.conv, way.x_proj, way.dt_proj)]
    if not are_plain((layers.in_proj, layers.out_proj, *inside)):
        return layers
    if any(way.x_proj.bias is not None or way.dt_proj.bias is None for way in layers.directions):
        return layers
    directions = tuple(
        DirectionWeights(conv.weight, conv.bias, x.weight, dt.weight, dt.bias, A_log, D)
        for conv, x, dt, A_log, D in layers.directions
    )
    outer = (layers.in_proj.weight, layers.in_proj.bias, layers.out_proj.weight, layers.out_proj.bias)
    # torch.export has put stand-ins in the place of the weights by now, which say nothing of their kind.
    if torch.compiler.is_dynamo_compiling() and not (plain_tensors(outer) and all(map(plain_tensors, directions))):
        return layers
    return MixerWeights(*outer, directions, layers.halve)


def _pieces(hidden: Tensor, parts: Parts) -> int:
    """Into how many to cut the batch, so that what passes between the kernels stays in a CPU's cache."""
    alone = torch.compiler.is_compiling() or torch.is_grad_enabled() or length_last(hidden.device)
    if alone or not hidden.is_cpu or not isinstance(parts, MixerWeights):  # a layer with hooks is called once
        return 1
    between = hidden.shape[0] * hidden.shape[1] * parts.in_proj.shape[0] * hidden.element_size()
    return max(1, min(hidden.shape[0], round(between / _CACHE_BYTES)))


def _join(found: tuple[Tensor | None, ...]) -> Tensor | None:
    present = [signal for signal in found if signal is not None]
    return torch.cat(present) if present else None
