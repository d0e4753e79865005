"""``mamba_ssm.Mamba`` on our mixer: its constructor, its parameters and their names, whole sequences and generation."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from mtrkit.errors import InputError, OptionError
from mtrkit.scan import mixer_forward, mixer_parts, selective_scan
from mtrkit.scan.fastpath import known_forward
from mtrkit.scan.initial import init_decay, init_dt, init_skip
from mtrkit.standin.conv import causal_conv1d_update, convolve, last_inputs
from mtrkit.standin.state import selective_state_update

States = tuple[Tensor, Tensor]
"""What generation goes on from: the last inputs of the convolution (B, E, K) and the scan's state (B, E, N)."""


@known_forward
class Mamba(nn.Module):
    """One Mamba-1 mixer: projection, causal convolution, selective scan, gate, projection.

    Args:
        d_model: Width D of the tokens.
        d_state: State size N per channel.
        d_conv: Width K of the convolution.
        expand: Inner width E as a multiple of D.
        dt_rank: Rank R of Δ. Default: D / 16, rounded up.
        dt_min: Smallest Δ at the start of training.
        dt_max: Largest Δ at the start of training.
        dt_init: ``"random"`` or ``"constant"``: the weight of Δ at the start.
        dt_scale: Its scale.
        dt_init_floor: Lower bound of Δ at the start.
        conv_bias: Whether the convolution has a bias.
        bias: Whether the outer projections have one.
        use_fast_path: Has no effect: mtrkit chooses how it runs by itself.
        layer_idx: Under which generation keeps this mixer's states.
        device: Of the parameters.
        dtype: Of the parameters, but for ``A_log`` and ``D``, which are float32.

    Raises:
        OptionError: ``dt_init`` is neither of the two.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dt_init not in ("random", "constant"):
            raise OptionError(f"dt_init={dt_init!r}; expected 'random' or 'constant'")
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx
        self.activation, self.act = "silu", nn.SiLU()
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        inner, padding = self.d_inner, d_conv - 1
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=bias, **place)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=padding, bias=conv_bias, **place)
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False, **place)
        self.dt_proj = nn.Linear(self.dt_rank, inner, **place)
        init_dt(self.dt_proj, (dt_min, dt_max), dt_init_floor, dt_scale, constant=dt_init == "constant")
        self.dt_proj.bias._no_reinit = True  # type: ignore[attr-defined]  # training code leaves such a bias as it is
        self.A_log, self.D = init_decay(inner, d_state, device), init_skip(inner, device)
        self.out_proj = nn.Linear(inner, d_model, bias=bias, **place)

    def forward(self, hidden_states: Tensor, inference_params: Any = None, **kwargs: Any) -> Tensor:
        """Tokens (B, L, D) to (B, L, D), with gradients.

        Args:
            hidden_states: The tokens; after the first call of a generation, the one token that follows.
            inference_params: Where a generation keeps its states; see
                :class:`~mtrkit.standin.generation.InferenceParams`. Default: no generation.
            kwargs: Raise :class:`OptionError`.
        """
        if kwargs:
            raise OptionError(f"Mamba was called with {', '.join(kwargs)}; mtrkit's stand-in takes tokens alone")
        if inference_params is None:
            return mixer_forward(hidden_states, mixer_parts(self, suffixes=("",)))[0]
        states = self._states_in(inference_params, len(hidden_states))
        if inference_params.seqlen_offset > 0:
            return self.step(hidden_states, *states)[0]
        return self._begin(hidden_states, *states)

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One more token (B, 1, D), given the states, which are brought up to date in place and returned too."""
        if hidden_states.dim() != 3 or hidden_states.shape[1] != 1:
            expected = f"(B, 1, {self.d_model})"
            raise InputError(f"step() got tokens of shape {tuple(hidden_states.shape)}; expected {expected}")
        x, z = self.in_proj(hidden_states.squeeze(1)).chunk(2, dim=-1)
        u = causal_conv1d_update(x, conv_state, self.conv1d.weight.squeeze(1), self.conv1d.bias, "silu")
        delta, B, C = self._project(u)
        bias = self.dt_proj.bias
        y = selective_state_update(ssm_state, u, delta, self._decay(), B, C, self.D, z, bias, dt_softplus=True)
        return self.out_proj(y).unsqueeze(1), conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> States:
        """States of a generation that has not begun: zeros; ``max_seqlen`` has no effect."""
        del max_seqlen, kwargs
        weight = self.conv1d.weight
        shapes = ((batch_size, self.d_inner, self.d_conv), (batch_size, self.d_inner, self.d_state))
        conv_state, ssm_state = (torch.zeros(s, device=weight.device, dtype=dtype or weight.dtype) for s in shapes)
        return conv_state, ssm_state

    def _states_in(self, inference_params: Any, batch_size: int) -> States:
        """This mixer's states, made if there are none yet."""
        if self.layer_idx is None:
            raise OptionError("Mamba was asked to generate, and has no layer_idx; give each mixer its own")
        states = inference_params.key_value_memory_dict
        if self.layer_idx not in states:
            states[self.layer_idx] = self.allocate_inference_cache(batch_size, 0)
        found: States = states[self.layer_idx]
        if found[0].shape[0] != batch_size:
            raise InputError(f"the states are of {found[0].shape[0]} samples, and {batch_size} came; begin a new one")
        return found

    def _begin(self, hidden: Tensor, conv_state: Tensor, ssm_state: Tensor) -> Tensor:
        """A whole sequence, whose states are written down."""
        x, z = self.in_proj(hidden).transpose(1, 2).chunk(2, dim=1)
        u = convolve(x, self.conv1d.weight.squeeze(1), self.conv1d.bias, None, silu=True)
        delta, B, C = (part.transpose(1, 2) for part in self._project(u.transpose(1, 2)))
        scan = (u, delta, self._decay(), B, C, self.D, z, self.dt_proj.bias, True)
        y, last = selective_scan(*scan, return_last_state=True)
        with torch.no_grad():
            conv_state.copy_(last_inputs(x, None, self.d_conv))
            ssm_state.copy_(last)
        return self.out_proj(y.transpose(1, 2))

    def _project(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Δ before its bias (..., E), B and C (..., N) of tokens (..., E) behind the convolution."""
        steps, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return nn.functional.linear(steps, self.dt_proj.weight), B, C

    def _decay(self) -> Tensor:
        return -torch.exp(self.A_log.float())
