"""``mamba_ssm.ops.triton.layer_norm``, and ``layernorm`` as it was called before 2.0, by torch's own norms."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrkit.errors import InputError
from mtrkit.standin.conv import refuse

Maybe = Tensor | None
Normed = Tensor | tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, of a sum if there is a residual.

    Args:
        hidden_size: Length D of the last axis.
        eps: Added to the mean square.
        device: Of the weight.
        dtype: Of the weight.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def forward(
        self, x: Tensor, residual: Maybe = None, prenorm: bool = False, residual_in_fp32: bool = False
    ) -> Normed:
        """See :func:`rms_norm_fn`."""
        return _norm(x, self.weight, None, residual, self.eps, prenorm, residual_in_fp32, True)


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Maybe,
    residual: Maybe = None,
    x1: Maybe = None,
    weight1: Maybe = None,
    bias1: Maybe = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Maybe = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
) -> Normed:
    """Layer norm of ``residual + x``, with gradients; the sum is in float32 at least.

    Args:
        x: (..., D).
        weight: (D,).
        bias: (D,) or ``None``.
        residual: Like ``x``, of any dtype. Default: none.
        x1: Not supported, like ``weight1``, ``bias1``, ``dropout_p``, ``rowscale`` and ``return_dropout_mask``.
        weight1: See above.
        bias1: See above.
        eps: Added to the variance.
        dropout_p: See above; 0 is taken.
        rowscale: See above.
        prenorm: Whether the sum is returned too.
        residual_in_fp32: Whether that sum is float32 if no residual is given; with one it has its dtype.
        is_rms_norm: Whether the norm is by the root mean square, without a mean.
        return_dropout_mask: See above.

    Returns:
        The norm like ``x``, or ``(norm, sum)``.

    Raises:
        OptionError: An argument that is not supported.
        InputError: The residual has another shape than ``x``.
    """
    refuse("layer_norm_fn", x1=x1, weight1=weight1, bias1=bias1, rowscale=rowscale)
    refuse("layer_norm_fn", dropout_p=dropout_p or None, return_dropout_mask=return_dropout_mask)
    return _norm(x, weight, bias, residual, eps, prenorm, residual_in_fp32, is_rms_norm)


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Maybe,
    residual: Maybe = None,
    x1: Maybe = None,
    weight1: Maybe = None,
    bias1: Maybe = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Maybe = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    return_dropout_mask: bool = False,
) -> Normed:
    """:func:`layer_norm_fn` by the root mean square."""
    second = (residual, x1, weight1, bias1, eps, dropout_p, rowscale, prenorm, residual_in_fp32)
    return layer_norm_fn(x, weight, bias, *second, True, return_dropout_mask)


def layer_norm_forward(
    x: Tensor,
    weight: Tensor,
    bias: Maybe,
    eps: float,
    residual: Maybe = None,
    *,
    residual_dtype: torch.dtype | None = None,
    is_rms_norm: bool = False,
) -> tuple[Tensor]:
    """``_layer_norm_fwd``, which the package's own fused mixer calls: the norm alone, which is all that it reads."""
    del residual_dtype  # of a sum that is not returned
    normed, _ = _norm(x, weight, bias, residual, eps, True, False, is_rms_norm)
    return (normed,)


def early_layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Maybe,
    residual: Maybe = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Normed:
    """:func:`layer_norm_fn` in the order of arguments that it had before 2.0."""
    return _norm(x, weight, bias, residual, eps, prenorm, residual_in_fp32, is_rms_norm)


def early_rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Maybe,
    residual: Maybe = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Normed:
    """:func:`rms_norm_fn` in the order of arguments that it had before 2.0."""
    return _norm(x, weight, bias, residual, eps, prenorm, residual_in_fp32, True)


def _norm(
    x: Tensor,
    weight: Tensor,
    bias: Maybe,
    residual: Maybe,
    eps: float,
    prenorm: bool,
    residual_in_fp32: bool,
    is_rms_norm: bool,
) -> Normed:
    if residual is not None and residual.shape != x.shape:
        raise InputError(f"residual has shape {tuple(residual.shape)}; expected that of x, {tuple(x.shape)}")
    dtype = torch.promote_types(x.dtype, torch.float32)
    total, scale = x.to(dtype), weight.to(dtype)
    if residual is not None:
        total = total + residual.to(dtype)
    shift = None if bias is None else bias.to(dtype)
    if is_rms_norm:
        y = F.rms_norm(total, scale.shape, scale, eps)
        y = y if shift is None else y + shift
    else:
        y = F.layer_norm(total, scale.shape, scale, shift, eps)
    kept = x.dtype if residual is None and not residual_in_fp32 else dtype if residual is None else residual.dtype
    return (y.to(x.dtype), total.to(kept)) if prenorm else y.to(x.dtype)
