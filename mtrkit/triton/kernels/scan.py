"""The selective scan, forward and backward.

A program has one sample, one direction and a block of channels, and goes through the tokens one after the other, with
the states (N, channels) in registers. The channels are lanes of a warp: a thread owns one and keeps its N states, so
that the sum over the states stays within the thread, tokens of (B, L, E) are read in whole lines, and nothing is
exchanged between threads but the sums over channels that the gradients of B and C need. A scan in parallel over time
takes about twice the multiplications, rounds the length up to a tile, and has to know a token's decay in closed form,
which a token that lasts several positions makes long. The time of a full GPU is that of the exponentials, one per
state and token. The numbers of the next token are loaded while the present one is computed, so that a warp does not
wait for memory at every step.

A few long sequences do not fill a GPU like this. The forward pass then cuts them into segments, which take two passes:
one finds what each ends with if it begins with nothing, the other begins with what those before it end with.
"""

import triton
import triton.language as tl

from mtrkit.triton.kernels.pointwise import LN_2, LOG2_E, exp, load, narrowed, sigmoid, silu_slope, softplus

WHOLE, ENDS, JOIN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # passes


@triton.jit
def _decay_rates(A, in_tile, LOG_A: tl.constexpr):
    """A times log2(e), so that a decay is one power of two; zero where there is no state."""
    rates = load(A, in_tile)
    if LOG_A:
        rates = -exp(rates)
    return tl.where(in_tile, rates * LOG2_E, 0.0)


# What changes from batch to batch and from block to block would be compiled for again whenever 16 divides it. And that
# numbers of a tile are neighbours in memory must not be known, so a step between them is multiplied by ``unit``, which
# is one: loading or storing a tile once would otherwise decide which of its numbers a thread has in the loop.
@triton.jit(do_not_specialize=["batch", "length", "segment_length", "unit"])
def scan_forward(
    u, delta, A, B, C, D, z, bias, lengths, y, last, checkpoints, other_A, other_D, other_bias, ends, totals,
    batch, length, channels, states, groups, backward, segment_length,
    u_w, u_b, u_e, u_t, delta_w, delta_b, delta_e, delta_t, z_b, z_e, z_t, y_w, y_b, y_e, y_t,
    B_w, B_b, B_g, B_n, B_t, C_w, C_b, C_g, C_n, C_t, A_e, unit,
    LOG_A: tl.constexpr, SOFTPLUS: tl.constexpr, SPAN: tl.constexpr, WAYS: tl.constexpr, PASS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, EVEN_N: tl.constexpr, EVEN_E: tl.constexpr,
):  # fmt: skip
    """Outputs, and where wanted the state after the last token and in front of every SPAN-th.

    Strides are those of direction (w), sample, channel, state and token. With two directions the second one goes
    backward and has the other parameters. The pass ENDS writes, per segment, the state that it ends with alone and
    the sum of its steps, and no outputs; JOIN begins with them.
    """
    per_group = channels // groups
    blocks = tl.cdiv(per_group, BLOCK_E)
    number = tl.program_id(0)
    sample = ((number // (blocks * groups)) % batch).to(tl.int64)
    way = ((number // (blocks * groups * batch)) % WAYS).to(tl.int64)
    segment = number // (blocks * groups * batch * WAYS)
    group = (number // blocks) % groups
    inner = (number % blocks) * BLOCK_E + tl.arange(0, BLOCK_E)
    state_number = tl.arange(0, BLOCK_N)
    channel = (group * per_group + inner).to(tl.int64)
    in_tile = (state_number < states)[:, None] & (inner < per_group)[None, :]
    in_block = None if EVEN_E else inner < per_group  # a mask that is always true costs more than the loads
    in_state = None if EVEN_N else state_number < states
    if WAYS == 2:
        if way == 1:
            A, D, bias = other_A, other_D, other_bias
    turned = backward + way != 0
    first = tl.where(turned, length - 1, 0).to(tl.int64)
    forth = tl.where(turned, -1, 1).to(tl.int64)

    rates = _decay_rates(A + channel[None, :] * A_e + state_number[:, None] * unit, in_tile, LOG_A)
    u += way * u_w + sample * u_b + channel * u_e
    delta += way * delta_w + sample * delta_b + channel * delta_e
    y += way * y_w + sample * y_b + channel * y_e
    B += way * B_w + sample * B_b + group * B_g + state_number * B_n
    C += way * C_w + sample * C_b + group * C_g + state_number * C_n
    if z is not None:
        z += sample * z_b + channel * z_e
    if lengths is not None:
        lengths += sample * length
    skip = load(D + channel, in_block) if D is not None else 0.0
    shift = load(bias + channel, in_block) if bias is not None else 0.0
    place = state_number[:, None] * channels + (group * per_group + inner)[None, :] * unit

    begin = segment * segment_length
    end = tl.minimum(begin + segment_length, length)
    state = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)
    if PASS == JOIN:
        for earlier in range(segment):
            piece = (earlier * WAYS + way) * batch + sample
            passed = load(totals + piece * channels + channel, in_block)
            state = tl.exp2(passed[None, :] * rates) * state + load(ends + piece * states * channels + place, in_tile)
    total_step = tl.zeros((BLOCK_E,), tl.float32)
    now = first + begin * forth
    next_u, next_delta = load(u + now * u_t, in_block), load(delta + now * delta_t, in_block)
    next_B, next_C = load(B + now * B_t, in_state), load(C + now * C_t, in_state)
    for i in range(begin, end):
        t = first + i * forth
        if checkpoints is not None:
            if i % SPAN == 0:
                chunk = sample * tl.cdiv(length, SPAN) + i // SPAN
                tl.store(checkpoints + chunk * states * channels + place, state, mask=in_tile)
        now_u, now_delta, now_B, now_C = next_u, next_delta, next_B, next_C
        ahead = first + tl.minimum(i + 1, length - 1) * forth
        next_u, next_delta = load(u + ahead * u_t, in_block), load(delta + ahead * delta_t, in_block)
        next_B, next_C = load(B + ahead * B_t, in_state), load(C + ahead * C_t, in_state)
        step = now_delta + shift
        if SOFTPLUS:
            step = softplus(step)
        decay = tl.exp2(step[None, :] * rates)
        enters = (step * now_u)[None, :] * now_B[:, None]
        state = decay * state + enters
        if lengths is not None:
            lasts = tl.maximum(tl.load(lengths + t), 1)
            total = state
            for _ in range(1, lasts):
                state = decay * state + enters
                total += state
            found = tl.sum(now_C[:, None] * total, 0) / lasts.to(tl.float32)
            total_step += step * lasts.to(tl.float32)
        else:
            found = tl.sum(now_C[:, None] * state, 0)
            total_step += step
        if PASS != ENDS:
            found += skip * now_u
            if z is not None:
                gate = load(z + t * z_t, in_block)
                found *= gate * sigmoid(gate)
            tl.store(y + t * y_t, found, mask=in_block)
    if PASS == ENDS:
        piece = (segment * WAYS + way) * batch + sample
        tl.store(ends + piece * states * channels + place, state, mask=in_tile)
        tl.store(totals + piece * channels + channel, total_step, mask=in_block)
    if last is not None:
        tl.store(last + sample * states * channels + place, state, mask=in_tile & (end == length))


@triton.jit
def _token(
    u, delta, B, lengths, rates, shift, i, length, first, forth, u_t, delta_t, B_t, in_block, in_state,
    SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """The input of the i-th token, its step before and after softplus, row of B, decay and length.

    One behind the last takes no step, so that the state stays as it is.
    """
    t = first + tl.minimum(i, length - 1) * forth
    x = load(u + t * u_t, in_block)
    raw = load(delta + t * delta_t, in_block) + shift
    step = softplus(raw) if SOFTPLUS else raw
    step = tl.where(i < length, step, 0.0)
    row = load(B + t * B_t, in_state)
    lasts = 1
    if lengths is not None:
        lasts = tl.where(i < length, tl.maximum(tl.load(lengths + t), 1), 1)
    return x, raw, step, row, tl.exp2(step[None, :] * rates), lasts


@triton.jit
def _advance(state, decay, enters, lasts, lengths):
    """The state after a token."""
    state = decay * state + enters
    if lengths is not None:
        for _ in range(1, lasts):
            state = decay * state + enters
    return state


@triton.jit(do_not_specialize=["length", "unit"])
def scan_backward(
    grad_y, grad_last, u, delta, A, B, C, D, z, bias, lengths, checkpoints, du, ddelta, dz, dA, dB, dC, dD, dbias,
    length, channels, states, groups, backward,
    grad_y_b, grad_y_e, grad_y_t, u_b, u_e, u_t, delta_b, delta_e, delta_t, z_b, z_e, z_t,
    du_b, du_e, du_t, ddelta_b, ddelta_e, ddelta_t, dz_b, dz_e, dz_t,
    B_b, B_g, B_n, B_t, C_b, C_g, C_n, C_t, A_e, unit,
    SOFTPLUS: tl.constexpr, SPAN: tl.constexpr, HELD: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, EVEN_N: tl.constexpr, EVEN_E: tl.constexpr,
):  # fmt: skip
    """Gradients, those of the parameters per sample, those of B and C per block of channels.

    Tokens are visited from the one that the scan came to last. The states that it went through are found again from
    the checkpoint in front of them and held in registers, HELD at a time; in front of these, at most SPAN − HELD
    are passed through once more.

    Over a token that lasts s positions, with state h before it, decay a, input b, states h_j = a h_{j−1} + b at its
    positions and their gradients λ_j: the derivative of the state by the decay goes h'_j = h_{j−1} + a h'_{j−1}, and
    λ_{j−1} = a λ_j + C dy / s. For s = 1 this is the ordinary recurrence.
    """
    per_group = channels // groups
    blocks = tl.cdiv(per_group, BLOCK_E)
    number = tl.program_id(0)
    sample = (number // (blocks * groups)).to(tl.int64)
    group = (number // blocks) % groups
    inner = (number % blocks) * BLOCK_E + tl.arange(0, BLOCK_E)
    state_number = tl.arange(0, BLOCK_N)
    channel = (group * per_group + inner).to(tl.int64)
    in_tile = (state_number < states)[:, None] & (inner < per_group)[None, :]
    in_block = None if EVEN_E else inner < per_group  # a mask that is always true costs more than the loads
    in_state = None if EVEN_N else state_number < states
    turned = backward != 0
    first = tl.where(turned, length - 1, 0).to(tl.int64)
    forth = tl.where(turned, -1, 1).to(tl.int64)

    rates = _decay_rates(A + channel[None, :] * A_e + state_number[:, None] * unit, in_tile, False)
    grad_y += sample * grad_y_b + channel * grad_y_e
    u += sample * u_b + channel * u_e
    delta += sample * delta_b + channel * delta_e
    du += sample * du_b + channel * du_e
    ddelta += sample * ddelta_b + channel * ddelta_e
    B += sample * B_b + group * B_g + state_number * B_n
    C += sample * C_b + group * C_g + state_number * C_n
    if z is not None:
        z += sample * z_b + channel * z_e
        dz += sample * dz_b + channel * dz_e
    if lengths is not None:
        lengths += sample * length
    skip = load(D + channel, in_block) if D is not None else 0.0
    shift = load(bias + channel, in_block) if bias is not None else 0.0
    place = state_number[:, None] * channels + (group * per_group + inner)[None, :] * unit
    rows = number.to(tl.int64) * length * states + state_number  # of the partial sums of this program

    dstate = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)
    if grad_last is not None:
        dstate += load(grad_last + sample * states * channels + place, in_tile)
    sum_A = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)
    sum_D, sum_bias = tl.zeros((BLOCK_E,), tl.float32), tl.zeros((BLOCK_E,), tl.float32)
    chunks = tl.cdiv(length, SPAN)
    pieces = tl.cdiv(length, HELD)
    for behind in range(pieces):
        start = (pieces - 1 - behind) * HELD
        chunk = start // SPAN
        state = load(checkpoints + (sample * chunks + chunk) * states * channels + place, in_tile)
        for i in range(chunk * SPAN, start):
            x, raw, step, row, decay, lasts = _token(
                u, delta, B, lengths, rates, shift, i, length, first, forth, u_t, delta_t, B_t, in_block, in_state,
                SOFTPLUS,
            )  # fmt: skip
            state = _advance(state, decay, (step * x)[None, :] * row[:, None], lasts, lengths)
        held = (state,)
        for j in tl.static_range(HELD - 1):
            x, raw, step, row, decay, lasts = _token(
                u, delta, B, lengths, rates, shift, start + j, length, first, forth, u_t, delta_t, B_t,
                in_block, in_state, SOFTPLUS,
            )  # fmt: skip
            state = _advance(state, decay, (step * x)[None, :] * row[:, None], lasts, lengths)
            held = held + (state,)  # type: ignore[assignment]
        for j in tl.static_range(HELD):
            i = start + (HELD - 1 - j)
            exists, t = i < length, first + tl.minimum(i, length - 1) * forth
            x, raw, step, row, decay, lasts = _token(
                u, delta, B, lengths, rates, shift, i, length, first, forth, u_t, delta_t, B_t, in_block, in_state,
                SOFTPLUS,
            )  # fmt: skip
            read = load(C + t * C_t, in_state)
            grad = tl.where(exists, load(grad_y + t * grad_y_t, in_block), 0.0)
            before = held[HELD - 1 - j]
            enters = (step * x)[None, :] * row[:, None]
            after, slope = decay * before + enters, before
            mean, mean_slope = after, slope
            if lengths is not None:
                for _ in range(1, lasts):
                    slope = after + decay * slope
                    after = decay * after + enters
                    mean += after
                    mean_slope += slope
                share = 1.0 / lasts.to(tl.float32)
                mean *= share
                mean_slope *= share
            if z is not None:
                gate = load(z + t * z_t, in_block)
                ungated = tl.sum(read[:, None] * mean, 0) + skip * x
                tl.store(dz + t * dz_t, grad * ungated * silu_slope(gate), mask=narrowed(in_block, exists))
                grad *= gate * sigmoid(gate)
            direct = grad[None, :] * read[:, None]
            if lengths is not None:
                direct *= share
                carried = dstate + direct
                entered = carried
                for _ in range(1, lasts):
                    carried = decay * carried + direct
                    entered += carried
                through = dstate * slope + direct * mean_slope * lasts.to(tl.float32)
            else:
                carried = dstate + direct
                entered = carried
                through = carried * before
            through *= decay
            dstate = decay * carried
            contracted = tl.sum(entered * row[:, None], 0)
            dstep = contracted * x + tl.sum(through * rates, 0) * LN_2
            if SOFTPLUS:
                dstep *= sigmoid(raw)
            tl.store(du + t * du_t, contracted * step + skip * grad, mask=narrowed(in_block, exists))
            tl.store(ddelta + t * ddelta_t, dstep, mask=narrowed(in_block, exists))
            tl.store(dB + rows + t * states, tl.sum(entered * (step * x)[None, :], 1), mask=narrowed(in_state, exists))
            tl.store(dC + rows + t * states, tl.sum(grad[None, :] * mean, 1), mask=narrowed(in_state, exists))
            sum_A += through * step[None, :]
            sum_D += grad * x
            sum_bias += tl.where(exists, dstep, 0.0)
    tl.store(dA + sample * states * channels + place, sum_A, mask=in_tile)
    if D is not None:
        tl.store(dD + sample * channels + channel, sum_D, mask=in_block)
    if bias is not None:
        tl.store(dbias + sample * channels + channel, sum_bias, mask=in_block)
