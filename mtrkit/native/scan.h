/* The selective scan, forward and backward. */

/* Which sample, group and channels a task works on, and the walks that start there. */
typedef struct {
    int64_t b, g, channel, width, block;
} FN(place);
#define place FN(place)

INLINE place FN(locate)(const scan_job *j, int64_t b, int64_t g, int64_t blk) {
    int64_t per_group = j->channels / j->groups;
    int64_t width = per_group - blk * BLOCK < BLOCK ? per_group - blk * BLOCK : BLOCK;
    int64_t block = (b * j->groups + g) * blocks_per_group(j) + blk;
    return (place){b, g, g * per_group + blk * BLOCK, width, block};
}

/* This block's rows of a (channels, count) matrix as (count, BLOCK), scaled; zero in absent lanes. */
INLINE void FN(load_matrix)(const float *src, int64_t count, place at, float scale, float *dst) {
    memset(dst, 0, (size_t)(count * BLOCK) * sizeof(float));
    for (int64_t c = 0; c < at.width; c++)
        for (int64_t n = 0; n < count; n++) dst[n * BLOCK + c] = src[(at.channel + c) * count + n] * scale;
}

INLINE void FN(load_vector)(const float *src, place at, float *dst) {
    memset(dst, 0, BLOCK * sizeof(float));
    if (src != NULL) memcpy(dst, src + at.channel, (size_t)at.width * sizeof(float));
}

INLINE void FN(load_state)(const float *src, const scan_job *j, place at, float *h) {
    memset(h, 0, (size_t)(j->states * BLOCK) * sizeof(float));
    if (src == NULL) return;
    for (int64_t n = 0; n < j->states; n++)
        memcpy(h + n * BLOCK, src + (at.b * j->states + n) * j->channels + at.channel, (size_t)at.width * sizeof(float));
}

INLINE void FN(store_state)(float *dst, const scan_job *j, place at, const float *h) {
    if (dst == NULL) return;
    for (int64_t n = 0; n < j->states; n++)
        memcpy(dst + (at.b * j->states + n) * j->channels + at.channel, h + n * BLOCK, (size_t)at.width * sizeof(float));
}

/* Step sizes of a tile, and the input scaled by them. Steps past the end get 0, which leaves the state alone. */
INLINE void FN(prepare)(const float *delta, int64_t delta_stride, const float *u, int64_t u_stride, const float *bias,
                        int softplus, int64_t steps, float *dt, float *du) {
    PARTS(v) {
        vf shift = LOAD(bias + v);
        for (int64_t t = 0; t < TILE; t++) {
            vf step = FN(splat)(0.0f);
            if (t < steps) {
                step = LOAD(delta + t * delta_stride + v) + shift;
                if (softplus) step = FN(softplus)(step);
            }
            STORE(dt + t * BLOCK + v, step);
            STORE(du + t * BLOCK + v, step * LOAD(u + t * u_stride + v));
        }
    }
}

/* Write the step sizes of a tile where they can be looked at, or add them to what lies there. */
INLINE void FN(show_steps)(walk to, int64_t from, int64_t steps, int64_t width, int add, const float *dt, float *spare) {
    int64_t stride;
    float *out = tile_out(to, from, steps, width, spare, &stride);
    if (add && out == spare) gather(to, from, steps, width, TILE, spare);
    PARTS(v) for (int64_t t = 0; t < steps; t++) {
        float *step = out + t * stride + v;
        STORE(step, add ? LOAD(step) + LOAD(dt + t * BLOCK + v) : LOAD(dt + t * BLOCK + v));
    }
    tile_flush(to, from, steps, width, spare);
}

/* The same with their sum over the channels, in four parts that do not wait for each other. */
INLINE void FN(sum_steps)(walk to, int64_t from, int64_t steps, int64_t width, int add, const float *dt) {
    float *out = to.p + from * to.t, present[BLOCK];
    for (int64_t c = 0; c < BLOCK; c++) present[c] = c < width ? 1.0f : 0.0f;
    for (int64_t t = 0; t < steps; t++) {
        float part[4] = {0};
        for (int c = 0; c < BLOCK; c += 4)
            for (int k = 0; k < 4; k++) part[k] += dt[t * BLOCK + c + k] * present[c + k];
        float sum = (part[0] + part[1]) + (part[2] + part[3]);
        out[t * to.t] = add ? out[t * to.t] + sum : sum;
    }
}

/* Per channel, the longest step with which no state's exponent leaves +-126. */
INLINE void FN(longest_steps)(int64_t states, const float *A2, float *longest) {
    PARTS(v) {
        vf most = FN(splat)(1e-9f);
        for (int64_t n = 0; n < states; n++) {
            vf rate = LOAD(A2 + n * BLOCK + v);
            rate = FN(choose)(rate < 0.0f, -rate, rate);
            most = FN(choose)(rate > most, rate, most);
        }
        STORE(longest + v, 126.0f / most);
    }
}

/* Whether no step of a tile is longer or negative; only AVX2 gains by it. */
INLINE int FN(all_short)(const float *dt, int64_t steps, const float *longest) {
    int within = 1;
#ifdef AVX2
    PARTS(v) {
        vi beyond = {0};
        for (int64_t t = 0; t < steps; t++) {
            vf step = LOAD(dt + t * BLOCK + v);
            beyond |= ~((step >= 0.0f) & (step <= LOAD(longest + v)));
        }
        within &= _mm256_testz_si256((__m256i)beyond, (__m256i)beyond);
    }
#else
    (void)dt, (void)steps, (void)longest, within = 0;
#endif
    return within;
}

/* The recurrence of `count` states, which share what they read, over one tile. */
INLINE void FN(advance_states)(int count, int small, int64_t n, int v, int64_t steps, const float *A2, float *h,
                               const float *dt, const float *du, const float *B, int64_t B_stride, const float *C,
                               int64_t C_stride, float *y) {
    vf a[TOGETHER], state[TOGETHER];
    for (int k = 0; k < count; k++) a[k] = LOAD(A2 + (n + k) * BLOCK + v), state[k] = LOAD(h + (n + k) * BLOCK + v);
    for (int64_t t = 0; t < steps; t++) {
        int64_t o = t * BLOCK + v;
        vf step = LOAD(dt + o), input = LOAD(du + o), sum = LOAD(y + o);
        for (int k = 0; k < count; k++) {
            state[k] = FN(decay)(step, a[k], small) * state[k] + input * B[t * B_stride + n + k];
            sum += state[k] * C[t * C_stride + n + k];
        }
        STORE(y + o, sum);
    }
    for (int k = 0; k < count; k++) STORE(h + (n + k) * BLOCK + v, state[k]);
}

/* The same for tokens that last several positions: `y` is the sum of the outputs at each of them. A loop of its own: one
 * loop for both made the compiler contract the plain recurrence in another way, which changed its bits. */
INLINE void FN(advance_runs)(int count, int small, int64_t n, int v, int64_t steps, const int64_t *lengths,
                             const float *A2, float *h, const float *dt, const float *du, const float *B,
                             int64_t B_stride, const float *C, int64_t C_stride, float *y) {
    vf a[TOGETHER], state[TOGETHER];
    for (int k = 0; k < count; k++) a[k] = LOAD(A2 + (n + k) * BLOCK + v), state[k] = LOAD(h + (n + k) * BLOCK + v);
    for (int64_t t = 0; t < steps; t++) {
        int64_t o = t * BLOCK + v;
        vf step = LOAD(dt + o), input = LOAD(du + o), sum = LOAD(y + o), decay[TOGETHER], taken[TOGETHER], total[TOGETHER];
        for (int k = 0; k < count; k++) {
            decay[k] = FN(decay)(step, a[k], small), taken[k] = input * B[t * B_stride + n + k];
            total[k] = state[k] = decay[k] * state[k] + taken[k];
        }
        for (int64_t i = lengths[t]; i > 1; i--)
            for (int k = 0; k < count; k++) state[k] = decay[k] * state[k] + taken[k], total[k] += state[k];
        for (int k = 0; k < count; k++) sum += total[k] * C[t * C_stride + n + k];
        STORE(y + o, sum);
    }
    for (int k = 0; k < count; k++) STORE(h + (n + k) * BLOCK + v, state[k]);
}

/* The lengths of a tile, ones behind it and for numbers that cannot be; returns whether any is more than one. */
INLINE int FN(tile_lengths)(lasting w, int64_t from, int64_t steps, int64_t *lengths) {
    if (w.p == NULL) return 0;
    const int64_t *p = w.p + from * w.step;
    int64_t longer = 0;
    if (steps == TILE && w.step == 1) STEPS(t) lengths[t] = p[t];
    else if (steps == TILE) STEPS(t) lengths[t] = p[-t];
    else STEPS(t) lengths[t] = t < steps ? p[t * w.step] : 1;
    STEPS(t) lengths[t] = lengths[t] < 1 ? 1 : lengths[t];
    STEPS(t) longer |= lengths[t] != 1;
    return longer != 0;
}

/* The recurrence over one tile: the state of a channel vector runs through all steps, few states at a time. */
INLINE void FN(advance)(int small, int64_t states, int64_t steps, const float *A2, float *h, const float *dt,
                        const float *du, const float *B, int64_t B_stride, const float *C, int64_t C_stride, float *y) {
    memset(y, 0, TILE * BLOCK * sizeof(float));
    PARTS(v) {
        int64_t n = 0;
        for (; n + TOGETHER <= states; n += TOGETHER)
            FN(advance_states)(TOGETHER, small, n, v, steps, A2, h, dt, du, B, B_stride, C, C_stride, y);
        for (; n < states; n++) FN(advance_states)(1, small, n, v, steps, A2, h, dt, du, B, B_stride, C, C_stride, y);
    }
}

/* The same for tokens that last several positions: `y` becomes the mean over them. */
INLINE void FN(advance_all_runs)(int small, int64_t states, int64_t steps, const int64_t *lengths, const float *A2,
                                 float *h, const float *dt, const float *du, const float *B, int64_t B_stride,
                                 const float *C, int64_t C_stride, float *y) {
    float share[TILE];
    STEPS(t) share[t] = 1.0f / (float)lengths[t];
    memset(y, 0, TILE * BLOCK * sizeof(float));
    PARTS(v) {
        int64_t n = 0;
        for (; n + TOGETHER <= states; n += TOGETHER)
            FN(advance_runs)(TOGETHER, small, n, v, steps, lengths, A2, h, dt, du, B, B_stride, C, C_stride, y);
        for (; n < states; n++)
            FN(advance_runs)(1, small, n, v, steps, lengths, A2, h, dt, du, B, B_stride, C, C_stride, y);
        for (int64_t t = 0; t < steps; t++)
            STORE(y + t * BLOCK + v, LOAD(y + t * BLOCK + v) * share[t]);
    }
}

static TARGET void FN(scan_forward_task)(const void *job, int64_t task, float *scratch) {
    const scan_job *j = job;
    int64_t N = j->states, L = j->length, blocks = blocks_per_group(j), tiles = ceil_div(L, TILE);
    place at = FN(locate)(j, task / (blocks * j->groups), task / blocks % j->groups, task % blocks);
    float *h = scratch, *dt = h + N * BLOCK;
    const float *A2 = j->A + at.channel * N, *weight = j->dt_weight + at.channel * j->rank;
    float *du = dt + TILE * BLOCK, *y = du + TILE * BLOCK;
    float *spare_u = y + TILE * BLOCK, *spare_d = spare_u + TILE * BLOCK, *spare_z = spare_d + TILE * BLOCK;
    float *spare_y = spare_z + TILE * BLOCK, *spare_s = spare_y + TILE * BLOCK, *spare_n = spare_s + TILE * BLOCK;
    float *spare_A = spare_n + TILE * BLOCK;
    float skip[BLOCK], bias[BLOCK], longest[BLOCK];
    if (!j->rank) {
        FN(load_matrix)(j->A, N, at, LOG2E, spare_A);
        A2 = spare_A;
    }
    FN(longest_steps)(N, A2, longest);
    FN(load_vector)(j->D, at, skip);
    FN(load_vector)(j->bias, at, bias);
    memset(h, 0, (size_t)(N * BLOCK) * sizeof(float));
    walk wu = walk_from(j->u, at.b, at.channel, L, j->reverse), wd = walk_from(j->delta, at.b, at.channel, L, j->reverse);
    walk wz = walk_from(j->z, at.b, at.channel, L, j->reverse), wy = walk_from(j->y, at.b, at.channel, L, j->reverse);
    walk wB = walk_rows(j->B, at.b, at.g, L, j->reverse), wC = walk_rows(j->C, at.b, at.g, L, j->reverse);
    walk wf = walk_rows(j->dt, at.b, 0, L, j->reverse), ws;
    ws = walk_from(j->step, at.b, j->sum_steps ? at.channel / BLOCK : at.channel, L, j->reverse);
    walk wn = walk_from(j->ungated, at.b, at.channel, L, j->reverse);
    lasting wl = lasting_from(j->lengths, at.b, L, j->reverse);
    int64_t lengths[TILE];
    for (int64_t tile = 0; tile < tiles; tile++) {
        int64_t from = tile * TILE, steps = L - from < TILE ? L - from : TILE;
        int64_t su, sd = BLOCK, sz = 0, sy, sn = 0;
        fetch(wu, from + TILE, L), fetch(wd, from + TILE, L), fetch(wz, from + TILE, L), fetch(wy, from + TILE, L);
        const float *u = tile_in(wu, from, steps, at.width, spare_u, &su);
        const float *d = j->rank ? spare_d : tile_in(wd, from, steps, at.width, spare_d, &sd);
        if (j->rank) FN(multiply)(wf, from, steps, j->rank, weight, spare_d, BLOCK);
        const float *z = wz.p == NULL ? NULL : tile_in(wz, from, steps, at.width, spare_z, &sz);
        if (j->checkpoints != NULL)
            memcpy(j->checkpoints + (at.block * tiles + tile) * N * BLOCK, h, (size_t)(N * BLOCK) * sizeof(float));
        if (j->softplus) FN(prepare)(d, sd, u, su, bias, 1, steps, dt, du);
        else FN(prepare)(d, sd, u, su, bias, 0, steps, dt, du);
        if (ws.p != NULL && j->sum_steps) FN(sum_steps)(ws, from, steps, at.width, j->add != 0, dt);
        else if (ws.p != NULL) FN(show_steps)(ws, from, steps, at.width, j->add != 0, dt, spare_s);
        const float *B = wB.p + from * wB.t, *C = wC.p + from * wC.t;
        int longer = FN(tile_lengths)(wl, from, steps, lengths), small = FN(all_short)(dt, steps, longest);
        if (longer && small) FN(advance_all_runs)(1, N, steps, lengths, A2, h, dt, du, B, wB.t, C, wC.t, y);
        else if (longer) FN(advance_all_runs)(0, N, steps, lengths, A2, h, dt, du, B, wB.t, C, wC.t, y);
        else if (small) FN(advance)(1, N, steps, A2, h, dt, du, B, wB.t, C, wC.t, y);
        else FN(advance)(0, N, steps, A2, h, dt, du, B, wB.t, C, wC.t, y);
        float *out = tile_out(wy, from, steps, at.width, spare_y, &sy);
        float *seen = wn.p == NULL ? NULL : tile_out(wn, from, steps, at.width, spare_n, &sn);
        if (j->add && out == spare_y) gather(wy, from, steps, at.width, TILE, spare_y);
        PARTS(v) {
            vf D = LOAD(skip + v);
            for (int64_t t = 0; t < steps; t++) {
                vf value = LOAD(y + t * BLOCK + v) + D * LOAD(u + t * su + v);
                if (j->add) value += LOAD(out + t * sy + v);
                if (seen != NULL) STORE(seen + t * sn + v, value);
                if (z != NULL) {
                    vf gate = LOAD(z + t * sz + v);
                    value *= gate * FN(sigmoid)(gate);
                }
                STORE(out + t * sy + v, value);
            }
        }
        tile_flush(wy, from, steps, at.width, spare_y);
        if (seen != NULL) tile_flush(wn, from, steps, at.width, spare_n);
    }
    FN(store_state)(j->last, j, at, h);
}

/* Scratch of one tile of one block in the backward pass; each is (TILE, BLOCK). */
typedef struct {
    float *dt, *du, *gate, *ddt, *ddu, *y;
} FN(tile);

/* Gradients of `count` states, which share what they read, over one tile. */
INLINE void FN(states_back)(int count, int64_t n, int v, int64_t steps, const float *A, const float *h, float *dh,
                               float *dA, FN(tile) s, const float *B, int64_t B_stride, const float *C,
                               int64_t C_stride, float *dB, float *dC) {
    vf a[PAIR], a2[PAIR], state[PAIR], carry[PAIR], grad_a[PAIR], decay[PAIR][TILE], before[PAIR][TILE];
    for (int k = 0; k < count; k++) {
        int64_t o = (n + k) * BLOCK + v;
        a[k] = LOAD(A + o), a2[k] = a[k] * LOG2E;
        state[k] = LOAD(h + o), carry[k] = LOAD(dh + o), grad_a[k] = LOAD(dA + o);
    }
    B += n, C += n, dB += n * TILE * LANES, dC += n * TILE * LANES;
    for (int64_t t = 0; t < steps; t++) {
        int64_t o = t * BLOCK + v;
        vf dt = LOAD(s.dt + o), du = LOAD(s.du + o), gate = LOAD(s.gate + o), y = LOAD(s.y + o);
        for (int k = 0; k < count; k++) {
            float *to_C = dC + (k * TILE + t) * LANES;
            decay[k][t] = FN(exp2)(dt * a2[k]);
            before[k][t] = state[k];
            state[k] = decay[k][t] * state[k] + du * B[t * B_stride + k];
            y += state[k] * C[t * C_stride + k];
            STORE(to_C, LOAD(to_C) + gate * state[k]);
        }
        STORE(s.y + o, y);
    }
    for (int64_t t = steps - 1; t >= 0; t--) {
        int64_t o = t * BLOCK + v;
        vf dt = LOAD(s.dt + o), du = LOAD(s.du + o), gate = LOAD(s.gate + o);
        vf ddu = LOAD(s.ddu + o), ddt = LOAD(s.ddt + o);
        for (int k = 0; k < count; k++) {
            float *to_B = dB + (k * TILE + t) * LANES;
            carry[k] += gate * C[t * C_stride + k];
            STORE(to_B, LOAD(to_B) + carry[k] * du);
            ddu += carry[k] * B[t * B_stride + k];
            carry[k] *= decay[k][t];
            vf through = carry[k] * before[k][t];
            ddt += through * a[k];
            grad_a[k] += through * dt;
        }
        STORE(s.ddu + o, ddu);
        STORE(s.ddt + o, ddt);
    }
    for (int k = 0; k < count; k++) {
        STORE(dh + (n + k) * BLOCK + v, carry[k]);
        STORE(dA + (n + k) * BLOCK + v, grad_a[k]);
    }
}

/* What the recurrence over a run of one token comes to, and its derivatives: with decay a and input b per position, of the
 * state after the last position and of the sum of the states after each. Found forward, position by position, so that
 * nothing is divided by 1 - a, and no state inside of a run is kept. */
typedef struct {
    vf decay, last_a, sum_a, last_b, sum_b, last_h, sum_h;
} FN(run_slopes);

INLINE FN(run_slopes) FN(run_through)(vf decay, vf taken, int64_t count, vf *state, vf *sum) {
    vf one = FN(splat)(1.0f);
    FN(run_slopes) r = {decay, *state, *state, one, one, decay, decay};
    *sum = *state = decay * *state + taken;
    for (int64_t i = 1; i < count; i++) {
        r.last_a = decay * r.last_a + *state, r.sum_a += r.last_a;
        r.last_b = decay * r.last_b + 1.0f, r.sum_b += r.last_b;
        r.last_h *= decay, r.sum_h += r.last_h;
        *state = decay * *state + taken, *sum += *state;
    }
    return r;
}

/* states_back of one state for tokens that last several positions; `s.y` is the mean over them. */
INLINE void FN(runs_back)(int64_t n, int v, int64_t steps, const int64_t *lengths, const float *share, const float *A,
                          const float *h, float *dh, float *dA, FN(tile) s, const float *B, int64_t B_stride,
                          const float *C, int64_t C_stride, float *dB, float *dC) {
    vf a = LOAD(A + n * BLOCK + v), a2 = a * LOG2E, state = LOAD(h + n * BLOCK + v);
    vf carry = LOAD(dh + n * BLOCK + v), grad_a = LOAD(dA + n * BLOCK + v), sum;
    FN(run_slopes) slopes[TILE];
    B += n, C += n, dB += n * TILE * LANES, dC += n * TILE * LANES;
    for (int64_t t = 0; t < steps; t++) {
        int64_t o = t * BLOCK + v;
        slopes[t] = FN(run_through)(FN(exp2)(LOAD(s.dt + o) * a2), LOAD(s.du + o) * B[t * B_stride], lengths[t], &state, &sum);
        sum *= share[t];
        STORE(s.y + o, LOAD(s.y + o) + sum * C[t * C_stride]);
        STORE(dC + t * LANES, LOAD(dC + t * LANES) + LOAD(s.gate + o) * sum);
    }
    for (int64_t t = steps - 1; t >= 0; t--) {
        int64_t o = t * BLOCK + v;
        const FN(run_slopes) *r = &slopes[t];
        vf each = LOAD(s.gate + o) * (C[t * C_stride] * share[t]);
        vf taken = each * r->sum_b + carry * r->last_b;
        vf through = (each * r->sum_a + carry * r->last_a) * r->decay;
        carry = each * r->sum_h + carry * r->last_h;
        STORE(dB + t * LANES, LOAD(dB + t * LANES) + taken * LOAD(s.du + o));
        STORE(s.ddu + o, LOAD(s.ddu + o) + taken * B[t * B_stride]);
        STORE(s.ddt + o, LOAD(s.ddt + o) + through * a);
        grad_a += through * LOAD(s.dt + o);
    }
    STORE(dh + n * BLOCK + v, carry);
    STORE(dA + n * BLOCK + v, grad_a);
}

/* Gradients of the recurrence over one tile. Runs the states forward from the checkpoint, then everything
 * backward; `dh` carries the gradient of the state from later tiles, dB and dC are summed per lane over vectors. */
INLINE void FN(advance_back)(int64_t states, int64_t steps, const int64_t *lengths, const float *A, const float *h, float *dh, float *dA,
                        FN(tile) s, const float *B, int64_t B_stride, const float *C, int64_t C_stride, float *dB,
                        float *dC) {
    float share[TILE];
    if (lengths != NULL) STEPS(t) share[t] = 1.0f / (float)lengths[t];
    PARTS(v) {
        STEPS(t) {
            STORE(s.y + t * BLOCK + v, FN(splat)(0.0f));
            STORE(s.ddt + t * BLOCK + v, FN(splat)(0.0f));
            STORE(s.ddu + t * BLOCK + v, FN(splat)(0.0f));
        }
        int64_t n = 0;
        for (; lengths != NULL && n < states; n++)
            FN(runs_back)(n, v, steps, lengths, share, A, h, dh, dA, s, B, B_stride, C, C_stride, dB, dC);
        for (; n + PAIR <= states; n += PAIR)
            FN(states_back)(PAIR, n, v, steps, A, h, dh, dA, s, B, B_stride, C, C_stride, dB, dC);
        for (; n < states; n++)
            FN(states_back)(1, n, v, steps, A, h, dh, dA, s, B, B_stride, C, C_stride, dB, dC);
    }
}

/* What a task keeps for each of its blocks from the last tile to the first. */
typedef struct {
    place at;
    walk u, delta, z, dy, du, ddelta, dz;
    float *A, *dh, *dA, *skip, *bias, *dskip, *dbias;
} FN(block_grads);
#define block_grads FN(block_grads)

INLINE block_grads FN(start_block)(const scan_job *j, place at, float *memory) {
    int64_t N = j->states, L = j->length, r = j->reverse, b = at.b, e = at.channel;
    block_grads m = {.at = at, .A = memory};
    m.u = walk_from(j->u, b, e, L, r), m.delta = walk_from(j->delta, b, e, L, r), m.z = walk_from(j->z, b, e, L, r);
    m.dy = walk_from(j->dy, b, e, L, r), m.du = walk_from(j->du, b, e, L, r);
    m.ddelta = walk_from(j->ddelta, b, e, L, r), m.dz = walk_from(j->dz, b, e, L, r);
    m.dh = m.A + N * BLOCK, m.dA = m.dh + N * BLOCK, m.skip = m.dA + N * BLOCK, m.bias = m.skip + BLOCK;
    m.dskip = m.bias + BLOCK, m.dbias = m.dskip + BLOCK;
    FN(load_matrix)(j->A, N, at, 1.0f, m.A);
    FN(load_state)(j->dlast, j, at, m.dh);
    memset(m.dA, 0, (size_t)(N * BLOCK) * sizeof(float));
    FN(load_vector)(j->D, at, m.skip);
    FN(load_vector)(j->bias, at, m.bias);
    memset(m.dskip, 0, 2 * BLOCK * sizeof(float));
    return m;
}

static TARGET void FN(backward_tile)(const scan_job *j, const block_grads *m, int64_t tile, const float *B, int64_t sB,
                                     const float *C, int64_t sC, float *dB, float *dC, float *memory) {
    int64_t N = j->states, tiles = ceil_div(j->length, TILE), from = tile * TILE, size = TILE * BLOCK;
    int64_t steps = j->length - from < TILE ? j->length - from : TILE, width = m->at.width, su, sd, sz = 0, sg, so, sp, sq = 0;
    FN(tile) s = {memory, memory + size, memory + 2 * size, memory + 3 * size, memory + 4 * size, memory + 5 * size};
    float *spare = memory + 6 * size, *spare_dz = spare + 6 * size;
    const float *u = tile_in(m->u, from, steps, width, spare, &su);
    const float *d = tile_in(m->delta, from, steps, width, spare + size, &sd);
    const float *z = m->z.p == NULL ? NULL : tile_in(m->z, from, steps, width, spare + 2 * size, &sz);
    const float *g = tile_in(m->dy, from, steps, width, spare + 3 * size, &sg);
    float *to_u = tile_out(m->du, from, steps, width, spare + 4 * size, &so);
    float *to_d = tile_out(m->ddelta, from, steps, width, spare + 5 * size, &sp);
    float *to_z = z == NULL ? NULL : tile_out(m->dz, from, steps, width, spare_dz, &sq);
    if (j->softplus) FN(prepare)(d, sd, u, su, m->bias, 1, steps, s.dt, s.du);
    else FN(prepare)(d, sd, u, su, m->bias, 0, steps, s.dt, s.du);
    PARTS(v) for (int64_t t = 0; t < TILE; t++) {
        vf grad = LOAD(g + t * sg + v);
        if (z != NULL) {
            vf x = LOAD(z + t * sz + v);
            grad *= x * FN(sigmoid)(x);
        }
        STORE(s.gate + t * BLOCK + v, grad);
    }
    const float *h = j->checkpoints + (m->at.block * tiles + tile) * N * BLOCK;
    int64_t lengths[TILE];
    int longer = FN(tile_lengths)(lasting_from(j->lengths, m->at.b, j->length, j->reverse), from, steps, lengths);
    FN(advance_back)(N, steps, longer ? lengths : NULL, m->A, h, m->dh, m->dA, s, B, sB, C, sC, dB, dC);
    PARTS(v) {
        vf D = LOAD(m->skip + v), shift = LOAD(m->bias + v), dD = LOAD(m->dskip + v), dbias = LOAD(m->dbias + v);
        for (int64_t t = 0; t < steps; t++) {
            int64_t o = t * BLOCK + v;
            vf x = LOAD(u + t * su + v), grad = LOAD(s.gate + o), ddu = LOAD(s.ddu + o);
            vf step = ddu * x + LOAD(s.ddt + o);
            if (j->softplus) step *= FN(sigmoid)(LOAD(d + t * sd + v) + shift);
            STORE(to_u + t * so + v, grad * D + ddu * LOAD(s.dt + o));
            STORE(to_d + t * sp + v, step);
            dD += grad * x;
            dbias += step;
            if (z != NULL) {
                vf gate = LOAD(z + t * sz + v), sig = FN(sigmoid)(gate), y = LOAD(s.y + o) + D * x;
                STORE(to_z + t * sq + v, LOAD(g + t * sg + v) * y * (sig + gate * sig * (1.0f - sig)));
            }
        }
        STORE(m->dskip + v, dD);
        STORE(m->dbias + v, dbias);
    }
    tile_flush(m->du, from, steps, width, spare + 4 * size);
    tile_flush(m->ddelta, from, steps, width, spare + 5 * size);
    if (z != NULL) tile_flush(m->dz, from, steps, width, spare_dz);
}

/* Sum the lanes of (states, TILE, LANES) into the column of dB or dC that `dst` points at. */
INLINE void FN(fold)(const float *src, int64_t states, int64_t steps, float *dst, int64_t stride) {
    for (int64_t n = 0; n < states; n++)
        for (int64_t t = 0; t < steps; t++) {
            const float *p = src + (n * TILE + t) * LANES;
            float sum[4] = {p[0], p[1], p[2], p[3]};
            for (int lane = 4; lane < LANES; lane++) sum[lane % 4] += p[lane];
            dst[t * stride + n] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        }
}

static TARGET void FN(scan_backward_task)(const void *job, int64_t task, float *scratch) {
    const scan_job *j = job;
    int64_t N = j->states, L = j->length, tiles = ceil_div(L, TILE), blocks = blocks_per_group(j);
    int64_t teams = teams_per_group(j), team_index = task % teams, g = task / teams % j->groups, b = task / teams / j->groups;
    int64_t first = team_index * TEAM_BLOCKS, count = blocks - first < TEAM_BLOCKS ? blocks - first : TEAM_BLOCKS;
    block_grads members[TEAM_BLOCKS];
    for (int64_t i = 0; i < count; i++, scratch += (3 * N + 4) * BLOCK)
        members[i] = FN(start_block)(j, FN(locate)(j, b, g, first + i), scratch);
    float *dB = scratch, *dC = dB + TILE * N * LANES, *memory = dC + TILE * N * LANES;
    float *spare_B = memory + 13 * TILE * BLOCK, *spare_C = spare_B + TILE * N;
    walk wB = walk_rows(j->B, b, g, L, j->reverse), wC = walk_rows(j->C, b, g, L, j->reverse);
    float *to = j->dBC + task * L * 2 * N + (j->reverse ? (L - 1) * 2 * N : 0);
    int64_t stride = j->reverse ? -2 * N : 2 * N;
    for (int64_t tile = tiles - 1; tile >= 0; tile--) {
        int64_t from = tile * TILE, steps = L - from < TILE ? L - from : TILE, sB, sC;
        const float *B = rows_in(wB, from, steps, N, spare_B, &sB), *C = rows_in(wC, from, steps, N, spare_C, &sC);
        memset(dB, 0, (size_t)(2 * TILE * N * LANES) * sizeof(float));
        for (int64_t i = 0; i < count; i++) FN(backward_tile)(j, &members[i], tile, B, sB, C, sC, dB, dC, memory);
        FN(fold)(dB, N, steps, to + from * stride, stride);
        FN(fold)(dC, N, steps, to + from * stride + N, stride);
    }
    for (int64_t i = 0; i < count; i++) {
        float *sums = j->sums + members[i].at.block * (N + 2) * BLOCK;
        memcpy(sums, members[i].dA, (size_t)(N * BLOCK) * sizeof(float));
        memcpy(sums + N * BLOCK, members[i].dskip, 2 * BLOCK * sizeof(float)); /* dbias lies behind dskip */
    }
}
