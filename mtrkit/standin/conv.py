"""``causal_conv1d`` on our convolution: its functions under their own names and arguments."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.errors import InputError, OptionError
from mtrkit.scan import causal_conv1d

Maybe = Tensor | None


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Maybe = None,
    seq_idx: Tensor | str | None = None,
    initial_states: Maybe = None,
    return_final_states: bool = False,
    final_states_out: Maybe = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The causal depthwise convolution, with gradients.

    Args:
        x: (B, E, L), any strides.
        weight: (E, K).
        bias: (E,). Default: none.
        seq_idx: (B, L) integers: which sequence each token belongs to; tokens see their own sequence only. The
            activation is taken in this place too, where releases before 1.1 had it.
        initial_states: (B, E, K - 1), the inputs before the first. Default: zeros.
        return_final_states: Whether the last K - 1 inputs (B, E, K - 1) are returned too.
        final_states_out: Where they are written. Default: a new tensor.
        activation: ``None``, ``"silu"`` or ``"swish"``, which is the same.

    Returns:
        (B, E, L) in the dtype of ``x``, or that and the final states.

    Raises:
        OptionError: Another activation, or ``seq_idx`` together with states.
        InputError: Shapes, dtypes or devices do not fit together.
    """
    if isinstance(seq_idx, str):
        seq_idx, activation = None, seq_idx
    silu = is_silu(activation)
    if seq_idx is not None:
        if initial_states is not None or return_final_states:
            raise OptionError("seq_idx came with initial_states or return_final_states; give one or the other")
        return convolve_packed(x, weight, bias, seq_idx, silu)
    y = convolve(x, weight, bias, initial_states, silu)
    if not return_final_states:
        return y
    final = last_inputs(x, initial_states, weight.shape[-1] - 1)
    return y, final if final_states_out is None else final_states_out.copy_(final)


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Maybe = None,
    activation: str | None = None,
    cache_seqlens: Maybe = None,
    conv_state_indices: Maybe = None,
) -> Tensor:
    """The convolution of one token or a few more, given the inputs before them, which are brought up to date in place.

    Args:
        x: (B, E) or (B, E, L).
        conv_state: (B, E, S) with S >= K - 1: the last S inputs, the latest last.
        weight: (E, K).
        bias: (E,). Default: none.
        activation: ``None``, ``"silu"`` or ``"swish"``.
        cache_seqlens: Not supported; give ``None``.
        conv_state_indices: Not supported; give ``None``.

    Returns:
        Like ``x``.

    Raises:
        OptionError: Another activation, or an argument that is not supported.
        InputError: Shapes, dtypes or devices do not fit together.
    """
    refuse("causal_conv1d_update", cache_seqlens=cache_seqlens, conv_state_indices=conv_state_indices)
    tokens = x if x.dim() == 3 else x.unsqueeze(-1)
    if conv_state.shape[:2] != tokens.shape[:2] or conv_state.shape[2] < weight.shape[-1] - 1:
        expected = (*tokens.shape[:2], f"at least {weight.shape[-1] - 1}")
        raise InputError(f"conv_state has shape {tuple(conv_state.shape)}; expected {expected}")
    y = convolve(tokens, weight, bias, conv_state, is_silu(activation))
    with torch.no_grad():
        conv_state.copy_(last_inputs(tokens, conv_state, conv_state.shape[2]))
    return y if x.dim() == 3 else y.squeeze(-1)


def causal_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Maybe = None,
    initial_states: Maybe = None,
    return_final_states: bool = False,
    final_states_out: Maybe = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`causal_conv1d_fn` under the arguments of the package's reference."""
    return causal_conv1d_fn(x, weight, bias, None, initial_states, return_final_states, final_states_out, activation)


def causal_conv1d_update_ref(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Maybe = None,
    activation: str | None = None,
    cache_seqlens: Maybe = None,
) -> Tensor:
    """:func:`causal_conv1d_update` under the arguments of the package's reference."""
    return causal_conv1d_update(x, conv_state, weight, bias, activation, cache_seqlens)


def is_silu(activation: str | None) -> bool:
    """Whether SiLU follows the convolution; other names than those of causal_conv1d raise :class:`OptionError`."""
    if activation not in (None, "silu", "swish"):
        raise OptionError(f"activation={activation!r}; expected None, 'silu' or 'swish'")
    return activation is not None


def refuse(function: str, **given: object) -> None:
    """Raise :class:`OptionError` for arguments that are given, but that mtrkit does not support."""
    names = [name for name, value in given.items() if value is not None and value is not False]
    if names:
        raise OptionError(f"mtrkit stands in for {function} without {', '.join(names)}; leave it out")


def convolve(x: Tensor, weight: Tensor, bias: Maybe, before: Maybe, silu: bool) -> Tensor:
    """(B, E, L) convolved, where ``before`` (B, E, any) are the inputs in front of it."""
    if before is None:
        return causal_conv1d(x, weight, bias, silu=silu)
    return causal_conv1d(torch.cat([before.to(x.dtype), x], dim=2), weight, bias, silu=silu)[..., before.shape[2] :]


def last_inputs(x: Tensor, before: Maybe, count: int) -> Tensor:
    """The last ``count`` inputs (B, E, count), zeros in front."""
    joined = x if before is None else torch.cat([before.to(x.dtype), x], dim=2)
    padded = F.pad(joined, (max(0, count - joined.shape[2]), 0))
    return padded[..., padded.shape[2] - count :]


def convolve_packed(x: Tensor, weight: Tensor, bias: Maybe, seq_idx: Tensor, silu: bool) -> Tensor:
    """The convolution in which a token sees those of its own sequence only; ``seq_idx`` (B, L) names it."""
    if seq_idx.shape != (x.shape[0], x.shape[2]):
        raise InputError(f"seq_idx has shape {tuple(seq_idx.shape)}; expected {(x.shape[0], x.shape[2])}")
    dtype, width, length = torch.promote_types(x.dtype, torch.float32), weight.shape[-1], x.shape[2]
    wide, taps = F.pad(x.to(dtype), (width - 1, 0)), weight.to(dtype)
    names = F.pad(seq_idx, (width - 1, 0))[:, None]  # whatever is in front is zero
    y = torch.zeros_like(x, dtype=dtype)
    for k in range(width):
        same = names[..., k : k + length] == seq_idx[:, None]
        y = y + taps[:, k, None] * torch.where(same, wide[..., k : k + length], 0)
    if bias is not None:
        y = y + bias.to(dtype)[:, None]
    return (F.silu(y) if silu else y).to(x.dtype)
