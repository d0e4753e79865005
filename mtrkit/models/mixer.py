"""The two-direction Mamba mixer as a module: parameters under the official names, computed by mtrkit.scan.

Source: Zhu et al., "Vision Mamba" (arXiv:2401.09417), algorithm 1.
"""

import math

from torch import Tensor, nn

from mtrkit.scan import mixer_forward, mixer_parts
from mtrkit.scan.fastpath import known_forward
from mtrkit.scan.initial import init_decay, init_dt, init_skip
from mtrkit.types import MixerCall


@known_forward
class MambaMixer(nn.Module):
    """Projection, then convolution and selective scan along the tokens in either direction, then projection.

    The directions share the outer projections; parameters of the backward one end in ``_b``.

    Args:
        d_model: Width D of the tokens.
        d_state: State size N per channel.
        d_conv: Width K of the causal convolution.
        expand: Inner width E as a multiple of D.
        halve: Whether the sum of the directions is halved (Vim: yes, VideoMamba: no).
    """

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, halve: bool = True) -> None:
        super().__init__()
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.halve = halve
        self.d_inner, self.dt_rank = expand * d_model, math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d, self.conv1d_b = self._conv(), self._conv()
        self.x_proj, self.x_proj_b = self._x_proj(), self._x_proj()
        self.dt_proj, self.dt_proj_b = self._dt_proj(), self._dt_proj()
        self.A_log, self.A_b_log = (init_decay(self.d_inner, d_state) for _ in range(2))
        self.D, self.D_b = (init_skip(self.d_inner) for _ in range(2))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, hidden_states: Tensor, call: MixerCall | None = None) -> Tensor:
        """Normalised tokens (B, L, D) to (B, L, D); what a ``call`` asks for is left in it."""
        call = MixerCall() if call is None else call
        parts = mixer_parts(self, halve=self.halve)
        out, call.signals = mixer_forward(hidden_states, parts, call.reads, call.gaps, call.runs, call.gating)
        return out

    def extra_repr(self) -> str:
        """What printing the model shows."""
        return f"d_state={self.d_state}, dt_rank={self.dt_rank}, halve={self.halve}"

    def _conv(self) -> nn.Conv1d:
        width, taps = self.d_inner, self.d_conv
        return nn.Conv1d(width, width, taps, groups=width, padding=taps - 1)

    def _x_proj(self) -> nn.Linear:
        return nn.Linear(self.d_inner, self.dt_rank + 2 * self.d_state, bias=False)

    def _dt_proj(self) -> nn.Linear:
        projection = nn.Linear(self.dt_rank, self.d_inner)
        init_dt(projection)
        return projection
