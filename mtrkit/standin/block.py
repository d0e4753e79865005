"""``mamba_ssm.modules.block`` and ``mlp``: the block around a mixer, and the gated MLP that may follow it."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrkit.errors import OptionError
from mtrkit.standin.norms import RMSNorm, layer_norm_fn

Build = Callable[[int], nn.Module]
"""Builds a part for tokens of a width, such as a class or a ``functools.partial`` of one."""


class Block(nn.Module):
    """Add, norm, mixer; perhaps add, norm, MLP. The running sum travels beside the tokens.

    Args:
        dim: Width D of the tokens.
        mixer_cls: Builds the mixer.
        mlp_cls: Builds the MLP; ``nn.Identity`` stands for none.
        norm_cls: Builds the norms.
        fused_add_norm: Whether sum and norm are one call, which takes LayerNorm and RMSNorm alone.
        residual_in_fp32: Whether the running sum is float32.

    Raises:
        OptionError: A norm that ``fused_add_norm`` does not take.
    """

    layer_idx: int | None = None

    def __init__(
        self,
        dim: int,
        mixer_cls: Build,
        mlp_cls: Build = nn.Identity,
        norm_cls: Build = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ) -> None:
        super().__init__()
        self.residual_in_fp32, self.fused_add_norm = residual_in_fp32, fused_add_norm
        self.norm = norm_cls(dim)
        self.mixer = mixer_cls(dim)
        self.mlp: nn.Module | None = None
        if mlp_cls is not nn.Identity:
            self.norm2, self.mlp = norm_cls(dim), mlp_cls(dim)
        if fused_add_norm and not isinstance(self.norm, nn.LayerNorm | RMSNorm):
            raise OptionError(f"fused_add_norm takes LayerNorm and RMSNorm, not {type(self.norm).__name__}")

    def forward(
        self, hidden_states: Tensor, residual: Tensor | None = None, inference_params: Any = None, **mixer_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, D) and their running sum to the output of the last part and the sum without it."""
        hidden_states, residual = self._add_norm(hidden_states, residual, self.norm)
        hidden_states = self.mixer(hidden_states, inference_params=inference_params, **mixer_kwargs)
        if self.mlp is not None:
            hidden_states, residual = self._add_norm(hidden_states, residual, self.norm2)
            hidden_states = self.mlp(hidden_states)
        return hidden_states, residual

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Any:
        """The mixer's states of a generation that has not begun."""
        mixer: Any = self.mixer
        return mixer.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)

    def _add_norm(self, hidden: Tensor, residual: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
        if self.fused_add_norm:
            wide, rms = self.residual_in_fp32, isinstance(norm, RMSNorm)
            found = layer_norm_fn(
                hidden, norm.weight, norm.bias, residual, None, None, None, norm.eps, 0.0, None, True, wide, rms
            )
            return found[0], found[1]
        total = hidden if residual is None else hidden + residual
        return norm(total.to(norm.weight.dtype)), total.float() if self.residual_in_fp32 else total


class EarlyBlock(Block):
    """:class:`Block` as it was in ``mamba_simple`` before 2.0: no MLP, and other places of the arguments."""

    def __init__(
        self,
        dim: int,
        mixer_cls: Build,
        norm_cls: Build = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ) -> None:
        super().__init__(dim, mixer_cls, nn.Identity, norm_cls, fused_add_norm, residual_in_fp32)


class GatedMLP(nn.Module):
    """A projection, half of which gates the other half, and another back.

    Args:
        in_features: Width of the tokens.
        hidden_features: Width inside. Default: 8/3 of ``in_features``.
        out_features: Width of what comes out. Default: ``in_features``.
        activation: Of the gate.
        bias: Whether the projections have one.
        multiple_of: ``hidden_features`` is rounded up to a multiple of it.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        activation: Callable[[Tensor], Tensor] = F.silu,
        bias: bool = False,
        multiple_of: int = 128,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        wanted = int(8 * in_features / 3) if hidden_features is None else hidden_features
        hidden = -(-wanted // multiple_of) * multiple_of
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.fc1 = nn.Linear(in_features, 2 * hidden, bias=bias, **place)
        self.activation = activation
        self.fc2 = nn.Linear(hidden, in_features if out_features is None else out_features, bias=bias, **place)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        value, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(value * self.activation(gate))
