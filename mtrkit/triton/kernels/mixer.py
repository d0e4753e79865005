"""What a mixer does between its products beside convolution and scan: Δ where it is read, and the gate."""

import triton
import triton.language as tl

from mtrkit.triton.kernels.pointwise import load, sigmoid, softplus


@triton.jit(do_not_specialize=["batch", "length"])
def delta_softplus(
    delta, bias, out, batch, length, channels, delta_b, delta_e, delta_t, out_b, out_e, out_t,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """softplus(delta + bias), (batch, channels, length) in any order of memory."""
    blocks, tiles = tl.cdiv(channels, BLOCK_E), tl.cdiv(length, BLOCK_T)
    channel = ((tl.program_id(0) % blocks) * BLOCK_E + tl.arange(0, BLOCK_E))[None, :]
    token = (((tl.program_id(0) // blocks) % tiles) * BLOCK_T + tl.arange(0, BLOCK_T))[:, None].to(tl.int64)
    sample = (tl.program_id(0) // (blocks * tiles)).to(tl.int64)
    inside = (channel < channels) & (token < length)
    raw = load(delta + sample * delta_b + channel.to(tl.int64) * delta_e + token * delta_t, inside)
    if bias is not None:
        raw += load(bias + channel, channel < channels)
    tl.store(out + sample * out_b + channel.to(tl.int64) * out_e + token * out_t, softplus(raw), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def sum_deltas(
    delta, bias, other_bias, sums, means, rows, width,
    WAYS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The sum over the directions of softplus(delta + bias), (rows, width), and its mean (rows,); each if wanted."""
    row = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    whole = tl.zeros((BLOCK_R, BLOCK_E), tl.float32)
    for start in range(0, width, BLOCK_E):
        column = start + tl.arange(0, BLOCK_E)[None, :]
        inside = (row < rows)[:, None] & (column < width)
        place = row[:, None] * width + column
        found = softplus(load(delta + place, inside) + load(bias + column, column < width))
        if WAYS == 2:
            backward = delta + rows.to(tl.int64) * width
            found += softplus(load(backward + place, inside) + load(other_bias + column, column < width))
        if sums is not None:
            tl.store(sums + place, found, mask=inside)
        whole += tl.where(inside, found, 0.0)
    if means is not None:
        tl.store(means + row, tl.sum(whole, 1) / width, mask=row < rows)


@triton.jit(do_not_specialize=["rows", "length"])
def gate(
    y, z, gated, ungated, rows, length, width, scale, z_b, z_t,
    WAYS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The sum over the directions of y (rows, width) times SiLU(z) times ``scale``; and the sum alone if wanted."""
    blocks = tl.cdiv(width, BLOCK_E)
    column = ((tl.program_id(0) % blocks) * BLOCK_E + tl.arange(0, BLOCK_E))[None, :]
    row = ((tl.program_id(0) // blocks) * BLOCK_R + tl.arange(0, BLOCK_R))[:, None].to(tl.int64)
    inside = (row < rows) & (column < width)
    place = row * width + column
    total = load(y + place, inside)
    if WAYS == 2:
        total += load(y + rows.to(tl.int64) * width + place, inside)
    if ungated is not None:
        tl.store(ungated + place, total, mask=inside)
    opening = load(z + (row // length) * z_b + (row % length) * z_t + column, inside)
    tl.store(gated + place, total * (opening * sigmoid(opening)) * scale, mask=inside)
