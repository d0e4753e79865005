"""The causal depthwise convolution of tokens that last one position or several, forward and backward.

A program has a tile of tokens by channels. A copy of a token looks back position by position: first over the copies of
its own token in front of it, then into earlier tokens, whose lengths say how far each reaches. Tokens are numbered in
the order in which they are visited, so that both directions are the same walk.
"""

import triton
import triton.language as tl

from mtrkit.triton.kernels.pointwise import load, sigmoid, silu_slope


@triton.jit
def _lasting(lengths, token, length, first, forth):
    """How many positions tokens last; one if they are not there."""
    exists = (token >= 0) & (token < length)
    lasts = tl.load(lengths + (first + token * forth), mask=exists, other=1).to(tl.int32)
    return tl.maximum(lasts, 1)


@triton.jit
def _one_back(token, copy, lengths, length, first, forth):
    """The position in front of a copy of a token."""
    if lengths is None:
        token -= 1
    else:
        stays = copy > 0
        token = tl.where(stays, token, token - 1)
        copy = tl.where(stays, copy - 1, _lasting(lengths, token, length, first, forth) - 1)
    return token, copy


@triton.jit
def _rows(x, token, length, first, forth, x_t, in_block):
    """The tokens' channels; zeros in front of the first token."""
    exists = (token >= 0) & (token < length)
    return load(x[None, :] + (first + token * forth)[:, None] * x_t, exists[:, None] & in_block[None, :])


@triton.jit
def _before_silu(
    x, weight, shift, lengths, token, copy, length, first, forth, x_t, in_block, WIDTH: tl.constexpr
):  # fmt: skip
    """What the taps make of one copy of each token and of what lies in front of it."""
    total = _rows(x, token, length, first, forth, x_t, in_block) * load(weight + WIDTH - 1, in_block)[None, :]
    for lag in tl.static_range(1, WIDTH):
        token, copy = _one_back(token, copy, lengths, length, first, forth)
        tap = load(weight + (WIDTH - 1 - lag), in_block)
        total += _rows(x, token, length, first, forth, x_t, in_block) * tap[None, :]
    return total + shift


@triton.jit(do_not_specialize=["batch", "length"])
def conv_forward(
    x, weight, bias, lengths, y, other_weight, other_bias, batch, length, channels, backward,
    x_b, x_e, x_t, y_w, y_b, y_e, y_t,
    SILU: tl.constexpr, WIDTH: tl.constexpr, WAYS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The mean over each token's copies; copies that see nothing but their own token are equal and computed once."""
    blocks, tiles = tl.cdiv(channels, BLOCK_E), tl.cdiv(length, BLOCK_T)
    number = tl.program_id(0)
    channel = (number % blocks) * BLOCK_E + tl.arange(0, BLOCK_E)
    token = ((number // blocks) % tiles) * BLOCK_T + tl.arange(0, BLOCK_T)
    sample = ((number // (blocks * tiles)) % batch).to(tl.int64)
    way = (number // (blocks * tiles * batch)).to(tl.int64)
    in_block, exists = channel < channels, token < length
    if WAYS == 2:
        if way == 1:
            weight = other_weight
        if bias is not None:
            if way == 1:
                bias = other_bias
    turned = backward + way != 0
    first = tl.where(turned, length - 1, 0).to(tl.int64)
    forth = tl.where(turned, -1, 1).to(tl.int64)
    x += sample * x_b + channel.to(tl.int64) * x_e
    weight += channel * WIDTH
    shift = load(bias + channel, in_block)[None, :] if bias is not None else 0.0
    if lengths is None:
        found = _before_silu(x, weight, shift, lengths, token, 0, length, first, forth, x_t, in_block, WIDTH)
        if SILU:
            found *= sigmoid(found)
    else:
        lengths += sample * length
        lasts = _lasting(lengths, token, length, first, forth)
        found = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
        for copy in range(tl.max(tl.minimum(lasts, WIDTH), 0)):
            place = tl.zeros((BLOCK_T,), tl.int32) + copy
            value = _before_silu(x, weight, shift, lengths, token, place, length, first, forth, x_t, in_block, WIDTH)
            if SILU:
                value *= sigmoid(value)
            equal = tl.where(copy == WIDTH - 1, lasts - copy, 1).to(tl.float32)
            found += tl.where((copy < lasts)[:, None], value * equal[:, None], 0.0)
        found /= lasts.to(tl.float32)[:, None]
    y += way * y_w + sample * y_b + channel.to(tl.int64) * y_e
    tl.store(y[None, :] + (first + token * forth)[:, None] * y_t, found, mask=exists[:, None] & in_block[None, :])


@triton.jit
def _slope_at(
    grad_y, x, weight, shift, lengths, token, copy, lasts, length, first, forth, grad_y_t, x_t, in_block,
    SILU: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The gradient of what the taps made of one copy of each token."""
    grad = _rows(grad_y, token, length, first, forth, grad_y_t, in_block)
    if lengths is not None:
        grad /= lasts.to(tl.float32)[:, None]
    if SILU:
        before = _before_silu(x, weight, shift, lengths, token, copy, length, first, forth, x_t, in_block, WIDTH)
        grad *= silu_slope(before)
    return grad


@triton.jit
def _grad_x(
    grad_y, x, weight, shift, lengths, token, copy, share, length, first, forth, grad_y_t, x_t, in_block,
    SILU: tl.constexpr, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """What one copy of each token gets from the positions that see it: its own and the next ones."""
    total = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    lasts = _lasting(lengths, token, length, first, forth) if lengths is not None else 1
    for lag in range(WIDTH):
        grad = _slope_at(
            grad_y, x, weight, shift, lengths, token, copy, lasts, length, first, forth, grad_y_t, x_t, in_block,
            SILU, WIDTH,
        )  # fmt: skip
        tap = load(weight + (WIDTH - 1 - lag), in_block)
        total += tl.where((token < length)[:, None], grad * tap[None, :], 0.0)
        if lengths is None:
            token += 1
        else:
            leaves = copy + 1 >= lasts
            token = tl.where(leaves, token + 1, token)
            copy = tl.where(leaves, 0, copy + 1)
            lasts = tl.where(leaves, _lasting(lengths, token, length, first, forth), lasts)
    return total * share


@triton.jit
def _grad_tap(
    grad_y, x, weight, shift, lengths, token, lasts, length, first, forth, grad_y_t, x_t, in_block, lag,
    SILU: tl.constexpr, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The sum over a tile's copies of their gradient times what they see ``lag`` positions back; −1: times one."""
    total = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    copies = tl.max(tl.minimum(lasts, WIDTH), 0) if lengths is not None else 1
    for copy in range(copies):
        place = tl.zeros((BLOCK_T,), tl.int32) + copy
        grad = _slope_at(
            grad_y, x, weight, shift, lengths, token, place, lasts, length, first, forth, grad_y_t, x_t, in_block,
            SILU, WIDTH,
        )  # fmt: skip
        if lengths is not None:
            grad *= tl.where(copy == WIDTH - 1, lasts - copy, 1).to(tl.float32)[:, None]
            grad = tl.where((copy < lasts)[:, None], grad, 0.0)
        source = token
        for _ in range(lag):
            source, place = _one_back(source, place, lengths, length, first, forth)
        seen = _rows(x, source, length, first, forth, x_t, in_block)
        total += grad * tl.where(lag >= 0, seen, 1.0)
    return tl.sum(tl.where((token < length)[:, None], total, 0.0), 0)


@triton.jit(do_not_specialize=["length"])
def conv_backward(
    grad_y, x, weight, bias, lengths, dx, sums, length, channels, backward,
    grad_y_b, grad_y_e, grad_y_t, x_b, x_e, x_t, dx_b, dx_e, dx_t,
    SILU: tl.constexpr, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The gradient of x, and per tile of tokens the sums (WIDTH + 1, channels) for those of the taps and the bias.

    Nothing is kept from the forward pass: what stands before SiLU is computed again wherever it is needed.
    """
    blocks, tiles = tl.cdiv(channels, BLOCK_E), tl.cdiv(length, BLOCK_T)
    number = tl.program_id(0)
    channel = (number % blocks) * BLOCK_E + tl.arange(0, BLOCK_E)
    token = ((number // blocks) % tiles) * BLOCK_T + tl.arange(0, BLOCK_T)
    sample = (number // (blocks * tiles)).to(tl.int64)
    in_block, exists = channel < channels, token < length
    turned = backward != 0
    first = tl.where(turned, length - 1, 0).to(tl.int64)
    forth = tl.where(turned, -1, 1).to(tl.int64)
    x += sample * x_b + channel.to(tl.int64) * x_e
    grad_y += sample * grad_y_b + channel.to(tl.int64) * grad_y_e
    dx += sample * dx_b + channel.to(tl.int64) * dx_e
    weight += channel * WIDTH
    shift = load(bias + channel, in_block)[None, :] if bias is not None else 0.0
    if lengths is None:
        lasts = 1
        found = _grad_x(
            grad_y, x, weight, shift, lengths, token, 0, 1.0, length, first, forth, grad_y_t, x_t, in_block,
            SILU, WIDTH, BLOCK_T, BLOCK_E,
        )  # fmt: skip
    else:
        lengths += sample * length
        lasts = _lasting(lengths, token, length, first, forth)
        # Copies that neither see nor are seen by another token are equal: beyond 2 · WIDTH − 1 of them all but one.
        beyond = tl.maximum(lasts - (2 * WIDTH - 1), 0)
        found = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
        for copy in range(tl.max(lasts - beyond, 0)):
            place = tl.where(copy < WIDTH, copy, copy + beyond)
            equal = tl.where(copy == WIDTH - 1, 1 + beyond, 1).to(tl.float32)
            share = tl.where(copy < lasts - beyond, equal, 0.0)[:, None]
            found += _grad_x(
                grad_y, x, weight, shift, lengths, token, place, share, length, first, forth, grad_y_t, x_t, in_block,
                SILU, WIDTH, BLOCK_T, BLOCK_E,
            )  # fmt: skip
    rows = dx[None, :] + (first + token * forth)[:, None] * dx_t
    tl.store(rows, found, mask=exists[:, None] & in_block[None, :])
    sums += (sample * tiles + (number // blocks) % tiles) * (WIDTH + 1) * channels + channel
    for column in range(WIDTH + 1):
        total = _grad_tap(
            grad_y, x, weight, shift, lengths, token, lasts, length, first, forth, grad_y_t, x_t, in_block,
            WIDTH - 1 - column, SILU, WIDTH, BLOCK_T, BLOCK_E,
        )  # fmt: skip
        tl.store(sums + column * channels, total, mask=in_block)
