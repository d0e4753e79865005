"""Checks of what users pass in; each error names the argument, what was given and what is expected."""

from torch import Tensor

from mtrkit.errors import InputError

_SCAN_NAMES = ("delta", "A", "B", "C", "D", "z", "delta_bias")
_CONV_NAMES = ("weight", "bias")


def check_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    """Raise :class:`InputError` unless the shapes, dtypes and devices of a scan fit together."""
    _check_sequence("u", u)
    batch, channels, length = u.shape
    _check_shape("delta", delta, u.shape, "the shape of u")
    if A.dim() != 2 or A.shape[0] != channels or A.shape[1] < 1:
        raise InputError(f"A has shape {tuple(A.shape)}; expected (E, N) with E = {channels} channels as in u")
    if A.is_complex():
        raise InputError("A is complex; only real A is supported, as all Vision Mamba models have it")
    for name, x in (("B", B), ("C", C)):
        _check_rows(name, x, batch, channels, A.shape[1], length)
    for name, vector in (("D", D), ("delta_bias", delta_bias)):
        if vector is not None:
            _check_shape(name, vector, (channels,), "one number per channel of u")
    if z is not None:
        _check_shape("z", z, u.shape, "the shape of u")
    _check_places(u, _SCAN_NAMES, (delta, A, B, C, D, z, delta_bias))


def check_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise :class:`InputError` unless x (B, E, L), weight (E, K) or (E, 1, K) and bias (E,) fit together."""
    _check_sequence("x", x)
    channels = x.shape[1]
    depthwise = weight.dim() == 2 or (weight.dim() == 3 and weight.shape[1] == 1)
    if not depthwise or weight.shape[0] != channels or weight.shape[-1] < 1:
        expected = f"(E, K) or (E, 1, K) with E = {channels} channels as in x"
        raise InputError(f"weight has shape {tuple(weight.shape)}; expected {expected}")
    if bias is not None:
        _check_shape("bias", bias, (channels,), "one number per channel of x")
    _check_places(x, _CONV_NAMES, (weight, bias))


def _check_sequence(name: str, x: Tensor) -> None:
    if x.dim() != 3 or x.shape[1] < 1 or x.shape[2] < 1:
        shape = tuple(x.shape)
        raise InputError(f"{name} has shape {shape}; expected (batch, channels, tokens), at least one of the last two")
    if not x.is_floating_point():
        raise InputError(f"{name} has dtype {x.dtype}; expected float32, bfloat16, float16 or float64")


def _check_rows(name: str, x: Tensor, batch: int, channels: int, states: int, length: int) -> None:
    shape = tuple(x.shape)
    # The number of dimensions first: comparing sizes of unlike things would fix a free batch size on export.
    constant = x.dim() == 2 and shape == (channels, states)
    single = x.dim() == 3 and shape == (batch, states, length)
    grouped = x.dim() == 4 and (shape[0], *shape[2:]) == (batch, states, length)
    if not (constant or single or grouped):
        one, many = (batch, states, length), f"({batch}, G, {states}, {length})"
        raise InputError(f"{name} has shape {shape}; expected {one}, {many} with G groups, or {(channels, states)}")
    if grouped and (shape[1] < 1 or channels % shape[1] != 0):
        raise InputError(f"{name} has {shape[1]} groups; expected a number that divides the {channels} channels of u")


def _check_shape(name: str, x: Tensor, expected: tuple[int, ...], meaning: str) -> None:
    if x.shape != expected:
        raise InputError(f"{name} has shape {tuple(x.shape)}; expected {tuple(expected)}, {meaning}")


def _check_places(first: Tensor, names: tuple[str, ...], others: tuple[Tensor | None, ...]) -> None:
    for name, x in zip(names, others, strict=True):
        if x is None:
            continue
        if x.device != first.device:
            raise InputError(f"{name} is on {x.device} and the sequence on {first.device}; move them to one device")
        if not x.is_floating_point():
            raise InputError(f"{name} has dtype {x.dtype}; expected a real floating-point dtype")
