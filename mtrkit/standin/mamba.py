"""``mamba_ssm.Mamba`` on our mixer: its constructor, its parameters and their names, its forward pass.

Source: Gu and Dao, "Mamba" (arXiv:2312.00752), section 3.6 for the initial values.
"""

import math
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from mtrkit.errors import OptionError
from mtrkit.scan import mixer_forward, mixer_parts
from mtrkit.scan.fastpath import known_forward


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
        layer_idx: Kept as an attribute.
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
        self._init_dt(dt_init, dt_scale, (dt_min, dt_max), dt_init_floor)
        rates = torch.arange(1, d_state + 1, dtype=torch.float32, device=device)
        self.A_log = _undecayed(torch.log(rates).repeat(inner, 1))
        self.D = _undecayed(torch.ones(inner, device=device))
        self.out_proj = nn.Linear(inner, d_model, bias=bias, **place)

    def forward(self, hidden_states: Tensor, inference_params: Any = None, **kwargs: Any) -> Tensor:
        """Tokens (B, L, D) to (B, L, D), with gradients; the state of a generation raises :class:`OptionError`."""
        if inference_params is not None:
            _refuse("inference_params")
        if kwargs:
            raise OptionError(f"Mamba was called with {', '.join(kwargs)}; mtrkit's stand-in takes tokens alone")
        return mixer_forward(hidden_states, mixer_parts(self, suffixes=("",)))[0]

    def step(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not supported: raises :class:`OptionError`."""
        _refuse("step()")

    def allocate_inference_cache(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not supported: raises :class:`OptionError`."""
        _refuse("allocate_inference_cache()")

    def _init_dt(self, kind: str, scale: float, limits: tuple[float, float], floor: float) -> None:
        """Δ starts log-uniform between the limits; the bias is its inverse softplus."""
        bound = self.dt_rank**-0.5 * scale
        if kind not in ("random", "constant"):
            raise OptionError(f"dt_init={kind!r}; expected 'random' or 'constant'")
        low, high = map(math.log, limits)
        weight, bias = self.dt_proj.weight, self.dt_proj.bias
        dt = torch.exp(low + (high - low) * torch.rand_like(bias)).clamp(min=floor)
        with torch.no_grad():
            weight.uniform_(-bound, bound) if kind == "random" else weight.fill_(bound)
            bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        bias._no_reinit = True  # type: ignore[attr-defined]  # training code leaves such a bias as it is


def _refuse(what: str) -> NoReturn:
    raise OptionError(
        f"Mamba was asked for {what}, and mtrkit's stand-in does not generate token by token; run whole sequences, or "
        "install mamba_ssm"
    )


def _undecayed(values: Tensor) -> nn.Parameter:
    """A parameter with the mark by which Mamba training code leaves it out of weight decay."""
    parameter = nn.Parameter(values)
    parameter._no_weight_decay = True  # type: ignore[attr-defined]
    return parameter
