"""The short depthwise convolution in front of a scan."""

from torch import Tensor

from mtrkit.scan.checks import check_conv
from mtrkit.scan.dispatch import choose_backend


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    silu: bool = True,
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Depthwise convolution along the tokens in which no token sees a later one.

    Args:
        x: (B, E, L), any strides, L >= 1.
        weight: (E, K) or (E, 1, K); the last column belongs to the token itself.
        bias: (E,). Default: none.
        silu: Whether SiLU is applied to the result.
        reverse: Whether the tokens are visited from the last to the first: token t then sees t … t + K - 1.
            Equal to flipping the input and the result along L.
        backend: A name in :func:`mtrkit.scan_backends`, or ``"auto"`` for the best that can run.

    Returns:
        (B, E, L) in the dtype of ``x``; channels are neighbours in memory if they are in ``x``.

    Raises:
        InputError: Shapes, dtypes or devices do not fit together.
        BackendError: The backend that was asked for cannot run here.

    Source: Gu and Dao, "Mamba" (arXiv:2312.00752), figure 3.
    """
    check_conv(x, weight, bias)
    taps = weight.squeeze(1) if weight.dim() == 3 else weight
    return choose_backend(backend, x).conv(x, taps, bias, silu, reverse)
