/* The arithmetic for one instruction set; native.c includes this file once per level.
 *
 * SUFFIX names the level, LANES is the floats in a vector, TARGET the function attribute. A vector holds
 * neighbouring channels, so a sum over states is an ordinary sum of vectors and no horizontal sums are needed.
 */
typedef float FN(vf) __attribute__((vector_size(LANES * 4)));
typedef float FN(uf) __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t FN(vi) __attribute__((vector_size(LANES * 4)));
#define vf FN(vf)
#define vi FN(vi)
#define INLINE static inline TARGET __attribute__((always_inline))
#define LOAD(p) ((vf)*(const FN(uf) *)(p))
#define STORE(p, v) (*(FN(uf) *)(p) = (FN(uf))(v))
#define PARTS(v) for (int v = 0; v < BLOCK; v += LANES)
#define STEPS(t) for (int t = 0; t < TILE; t++)

INLINE vf FN(splat)(float x) { return x - (vf){0}; }
INLINE vf FN(choose)(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }

/* 2^x to about 1e-7 relative. The polynomial is exactly 1 at 0, so a state that should not decay does not drift.
 * Coefficients: minimax of (2^f - 1) / f on [-1/2, 1/2], weighted by 2^-f. */
INLINE vf FN(exp2_fraction)(vf f) {
    vf p = f * 0.001326472731307149f + 0.009671512991189957f;
    p = p * f + 0.05550733581185341f;
    p = p * f + 0.24022242426872253f;
    p = p * f + 0.6931470036506653f;
    return p * f + 1.0f;
}

#ifdef AVX2
/* NaN stays NaN: of two numbers that cannot be compared these instructions give the second. */
INLINE vf FN(between)(float low, float high, vf x) {
    return (vf)_mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), (__m256)x));
}
#else
INLINE vf FN(between)(float low, float high, vf x) {
    x = FN(choose)(x < low, FN(splat)(low), x);
    return FN(choose)(x > high, FN(splat)(high), x);
}
#endif

/* 1.5 * 2^23 + 127: added to x, the integer nearest to it sits in the low mantissa bits, biased as an exponent is. */
#define SHIFT 12583039.0f

/* 2^(whole + f), where `shifted` is whole + SHIFT. A product, not an addition to the exponent: NaN stays NaN. */
INLINE vf FN(exp2_parts)(vf shifted, vf f) { return FN(exp2_fraction)(f) * (vf)((vi)shifted << 23); }

INLINE vf FN(exp2)(vf x) {
#ifdef AVX512_EXP2
    __m512 whole = _mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    vf f = x - (vf)whole;
    /* inf - inf is NaN: at an infinite x the fraction does not matter, scalef gives 0 or inf. */
    return (vf)_mm512_scalef_ps((__m512)FN(exp2_fraction)(f), whole);
#else
    x = FN(between)(-126.0f, 128.0f, x);
    vf shifted = x + SHIFT;
    return FN(exp2_parts)(shifted, x - (shifted - SHIFT));
#endif
}

/* 2^(step * rate), bounds left out where the caller knows that the exponent is within +-126: the same bits. */
INLINE vf FN(decay)(vf step, vf rate, int small) {
#ifdef AVX2
    vf shifted = (vf)_mm256_fmadd_ps((__m256)step, (__m256)rate, _mm256_set1_ps(SHIFT));
    if (!small) shifted = FN(between)(SHIFT - 126.0f, SHIFT + 128.0f, shifted);
    vf f = (vf)_mm256_fmsub_ps((__m256)step, (__m256)rate, (__m256)(shifted - SHIFT));
    return FN(exp2_parts)(shifted, small ? f : FN(between)(-0.5f, 0.5f, f));
#else
    (void)small;
    return FN(exp2)(step * rate);
#endif
}

INLINE vf FN(sigmoid)(vf x) { return 1.0f / (1.0f + FN(exp2)(x * -LOG2E)); }

/* log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)), and log1p(w) = 2 atanh(w / (2 + w)): accurate at both ends.
 * Above 20 the second term is below the rounding of the first, so this is the identity there as it should be. */
INLINE vf FN(softplus)(vf x) {
    vf positive = FN(choose)(x > 0.0f, x, FN(splat)(0.0f));
    vf w = FN(exp2)((x - 2.0f * positive) * LOG2E);
    vf s = w / (w + 2.0f);
    vf q = s * s;
    vf p = q * 0.2817833423614502f + 0.27960604429244995f;
    p = p * q + 0.40024909377098083f;
    p = p * q + 0.6666631698608398f;
    return positive + s * (p * q + 2.0f);
}

/* ---- selective scan ---------------------------------------------------------------------------------------- */

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

/* Matrix product of up to `rows` tokens with `count` channels and LANES columns of w. Each token's sum stays in a
 * register, so that a product costs one load; the tokens past the end are the first one again. */
INLINE void FN(multiply_rows)(int rows, walk tokens, int64_t from, int64_t steps, int64_t count, const float *w,
                              float *out, int64_t stride) {
    const float *row[LANES];
    vf sum[LANES];
    for (int i = 0; i < rows; i++) {
        row[i] = tokens.p + (from + (i < steps ? i : 0)) * tokens.t;
        sum[i] = FN(splat)(0.0f);
    }
    for (int64_t e = 0; e < count; e++)
        for (int i = 0; i < rows; i++) sum[i] += LOAD(w + e * BLOCK) * row[i][e];
    for (int i = 0; i < rows; i++)
        if (i < steps) STORE(out + i * stride, sum[i]);
}

/* LANES tokens at once, or the few at the end. */
INLINE void FN(multiply)(walk tokens, int64_t from, int64_t steps, int64_t count, const float *w, float *out,
                         int64_t stride) {
    if (steps > LANES / 2) FN(multiply_rows)(LANES, tokens, from, steps, count, w, out, stride);
    else FN(multiply_rows)(LANES / 2, tokens, from, steps, count, w, out, stride);
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
    vf a[PAIR], state[PAIR];
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

/* The recurrence over one tile: the state of a channel vector runs through all steps, few states at a time. */
INLINE void FN(advance)(int small, int64_t states, int64_t steps, const float *A2, float *h, const float *dt,
                        const float *du, const float *B, int64_t B_stride, const float *C, int64_t C_stride, float *y) {
    memset(y, 0, TILE * BLOCK * sizeof(float));
    PARTS(v) {
        int64_t n = 0;
        for (; n + PAIR <= states; n += PAIR)
            FN(advance_states)(PAIR, small, n, v, steps, A2, h, dt, du, B, B_stride, C, C_stride, y);
        for (; n < states; n++) FN(advance_states)(1, small, n, v, steps, A2, h, dt, du, B, B_stride, C, C_stride, y);
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
    for (int64_t tile = 0; tile < tiles; tile++) {
        int64_t from = tile * TILE, steps = L - from < TILE ? L - from : TILE;
        int64_t su, sd = BLOCK, sz = 0, sy, sn = 0;
        fetch(wu, from + TILE, L), fetch(wd, from + TILE, L), fetch(wz, from + TILE, L), fetch(wy, from + TILE, L);
        const float *u = tile_in(wu, from, steps, at.width, spare_u, &su);
        const float *d = j->rank ? spare_d : tile_in(wd, from, steps, at.width, spare_d, &sd);
        if (j->rank) PARTS(v) for (int64_t t = 0; t < steps; t += LANES)
            FN(multiply)(wf, from + t, steps - t, j->rank, weight + v, spare_d + t * BLOCK + v, BLOCK);
        const float *z = wz.p == NULL ? NULL : tile_in(wz, from, steps, at.width, spare_z, &sz);
        if (j->checkpoints != NULL)
            memcpy(j->checkpoints + (at.block * tiles + tile) * N * BLOCK, h, (size_t)(N * BLOCK) * sizeof(float));
        if (j->softplus) FN(prepare)(d, sd, u, su, bias, 1, steps, dt, du);
        else FN(prepare)(d, sd, u, su, bias, 0, steps, dt, du);
        if (ws.p != NULL && j->sum_steps) FN(sum_steps)(ws, from, steps, at.width, j->add != 0, dt);
        else if (ws.p != NULL) FN(show_steps)(ws, from, steps, at.width, j->add != 0, dt, spare_s);
        const float *B = wB.p + from * wB.t, *C = wC.p + from * wC.t;
        if (FN(all_short)(dt, steps, longest)) FN(advance)(1, N, steps, A2, h, dt, du, B, wB.t, C, wC.t, y);
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
INLINE void FN(retreat_states)(int count, int64_t n, int v, int64_t steps, const float *A, const float *h, float *dh,
                               float *dA, FN(tile) s, const float *B, int64_t B_stride, const float *C,
                               int64_t C_stride, float *dB, float *dC) {
    vf a[PAIR], a2[PAIR], state[PAIR], carry[PAIR], grad_a[PAIR], decay[PAIR][TILE], before[PAIR][TILE];
    for (int k = 0; k < count; k++) {
        int64_t o = (n + k) * BLOCK + v;
        a[k] = LOAD(A + o), a2[k] = a[k] * LOG2E;
        state[k] = LOAD(h + o), carry[k] = LOAD(dh + o), grad_a[k] = LOAD(dA + o);
    }
    B += n, C += n, dB += n * TILE * BLOCK + v, dC += n * TILE * BLOCK + v;
    for (int64_t t = 0; t < steps; t++) {
        int64_t o = t * BLOCK + v;
        vf dt = LOAD(s.dt + o), du = LOAD(s.du + o), gate = LOAD(s.gate + o), y = LOAD(s.y + o);
        for (int k = 0; k < count; k++) {
            float *to_C = dC + (k * TILE + t) * BLOCK;
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
            float *to_B = dB + (k * TILE + t) * BLOCK;
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

/* Gradients of the recurrence over one tile. Runs the states forward from the checkpoint, then everything
 * backward; `dh` carries the gradient of the state from later tiles, dB and dC are summed per lane over blocks. */
INLINE void FN(retreat)(int64_t states, int64_t steps, const float *A, const float *h, float *dh, float *dA,
                        FN(tile) s, const float *B, int64_t B_stride, const float *C, int64_t C_stride, float *dB,
                        float *dC) {
    PARTS(v) {
        STEPS(t) {
            STORE(s.y + t * BLOCK + v, FN(splat)(0.0f));
            STORE(s.ddt + t * BLOCK + v, FN(splat)(0.0f));
            STORE(s.ddu + t * BLOCK + v, FN(splat)(0.0f));
        }
        int64_t n = 0;
        for (; n + PAIR <= states; n += PAIR)
            FN(retreat_states)(PAIR, n, v, steps, A, h, dh, dA, s, B, B_stride, C, C_stride, dB, dC);
        for (; n < states; n++)
            FN(retreat_states)(1, n, v, steps, A, h, dh, dA, s, B, B_stride, C, C_stride, dB, dC);
    }
}

/* What a task keeps for each of its blocks from the last tile to the first. */
typedef struct {
    place at;
    walk u, delta, z, dy, du, ddelta, dz;
    float *A, *dh, *dA, *skip, *bias, *dskip, *dbias;
} FN(lane_team);
#define lane_team FN(lane_team)

INLINE lane_team FN(enter)(const scan_job *j, place at, float *memory) {
    int64_t N = j->states, L = j->length, r = j->reverse, b = at.b, e = at.channel;
    lane_team m = {.at = at, .A = memory};
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

static TARGET void FN(backward_tile)(const scan_job *j, const lane_team *m, int64_t tile, const float *B, int64_t sB,
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
    FN(retreat)(N, steps, m->A, h, m->dh, m->dA, s, B, sB, C, sC, dB, dC);
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

/* Sum the lanes of (states, TILE, BLOCK) into the column of dB or dC that `dst` points at. */
INLINE void FN(fold)(const float *src, int64_t states, int64_t steps, float *dst, int64_t stride) {
    for (int64_t n = 0; n < states; n++)
        for (int64_t t = 0; t < steps; t++) {
            const float *p = src + (n * TILE + t) * BLOCK;
            float sum[4];
            for (int c = 0; c < 4; c++) sum[c] = (p[c] + p[c + 4]) + (p[c + 8] + p[c + 12]);
            dst[t * stride + n] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        }
}

static TARGET void FN(scan_backward_task)(const void *job, int64_t task, float *scratch) {
    const scan_job *j = job;
    int64_t N = j->states, L = j->length, tiles = ceil_div(L, TILE), blocks = blocks_per_group(j);
    int64_t teams = teams_per_group(j), crew = task % teams, g = task / teams % j->groups, b = task / teams / j->groups;
    int64_t first = crew * TEAM_BLOCKS, count = blocks - first < TEAM_BLOCKS ? blocks - first : TEAM_BLOCKS;
    lane_team members[TEAM_BLOCKS];
    for (int64_t i = 0; i < count; i++, scratch += (3 * N + 4) * BLOCK)
        members[i] = FN(enter)(j, FN(locate)(j, b, g, first + i), scratch);
    float *dB = scratch, *dC = dB + TILE * N * BLOCK, *memory = dC + TILE * N * BLOCK;
    float *spare_B = memory + 13 * TILE * BLOCK, *spare_C = spare_B + TILE * N;
    walk wB = walk_rows(j->B, b, g, L, j->reverse), wC = walk_rows(j->C, b, g, L, j->reverse);
    float *to = j->dBC + task * L * 2 * N + (j->reverse ? (L - 1) * 2 * N : 0);
    int64_t stride = j->reverse ? -2 * N : 2 * N;
    for (int64_t tile = tiles - 1; tile >= 0; tile--) {
        int64_t from = tile * TILE, steps = L - from < TILE ? L - from : TILE, sB, sC;
        const float *B = rows_in(wB, from, steps, N, spare_B, &sB), *C = rows_in(wC, from, steps, N, spare_C, &sC);
        memset(dB, 0, (size_t)(2 * TILE * N * BLOCK) * sizeof(float));
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

/* ---- causal convolution ------------------------------------------------------------------------------------ */

/* Weights as (width, BLOCK) with the bias behind them. */
INLINE void FN(load_filter)(const conv_job *j, int64_t e, int64_t channels, float *w) {
    memset(w, 0, (size_t)((j->width + 1) * BLOCK) * sizeof(float));
    for (int64_t c = 0; c < channels; c++) {
        for (int64_t k = 0; k < j->width; k++) w[k * BLOCK + c] = j->weight[(e + c) * j->width + k];
        if (j->bias != NULL) w[j->width * BLOCK + c] = j->bias[e + c];
    }
}

/* The tokens from - (K - 1) .. from + TILE - 1: in place, or copied with zeros before the start. */
INLINE const float *FN(history)(const conv_job *j, walk w, int64_t from, int64_t steps, int64_t channels, float *spare,
                                int64_t *stride) {
    int64_t past = j->width - 1, missing = from < past ? past - from : 0;
    if (missing == 0 && in_place(w, steps, channels)) {
        *stride = w.t;
        return w.p + (from - past) * w.t;
    }
    memset(spare, 0, (size_t)((past + TILE) * BLOCK) * sizeof(float));
    int64_t rows = past + steps - missing;
    gather(w, from - past + missing, rows, channels, rows, spare + missing * BLOCK);
    *stride = BLOCK;
    return spare;
}

INLINE vf FN(filter)(const float *x, int64_t stride, const float *w, int64_t width, int v) {
    vf sum = LOAD(w + width * BLOCK + v);
    for (int64_t k = 0; k < width; k++) sum += LOAD(w + k * BLOCK + v) * LOAD(x + k * stride + v);
    return sum;
}

INLINE void FN(convolve)(const float *x, int64_t sx, const float *w, int64_t width, int silu, float *out, int64_t so) {
    PARTS(v) for (int64_t t = 0; t < TILE; t++) {
        vf value = FN(filter)(x + t * sx, sx, w, width, v);
        if (silu) value *= FN(sigmoid)(value);
        STORE(out + t * so + v, value);
    }
}

/* The tokens from `first` to before `last` of a channel block. */
static TARGET void FN(convolve_span)(const conv_job *j, int64_t b, int64_t e, int64_t first, int64_t last,
                                     float *scratch) {
    int64_t L = j->length, channels = j->channels - e < BLOCK ? j->channels - e : BLOCK;
    float *w = scratch, *spare_y = w + (j->width + 1) * BLOCK, *spare_x = spare_y + TILE * BLOCK;
    FN(load_filter)(j, e, channels, w);
    walk wx = walk_from(j->x, b, e, L, j->reverse), wy = walk_from(j->y, b, e, L, j->reverse);
    for (int64_t from = first; from < last; from += TILE) {
        int64_t steps = last - from < TILE ? last - from : TILE, sx, sy;
        const float *x = FN(history)(j, wx, from, steps, channels, spare_x, &sx);
        float *out = tile_out(wy, from, steps, channels, spare_y, &sy);
        if (j->width == 4 && j->silu) FN(convolve)(x, sx, w, 4, 1, out, sy);
        else FN(convolve)(x, sx, w, j->width, j->silu != 0, out, sy);
        tile_flush(wy, from, steps, channels, spare_y);
    }
}

static TARGET void FN(conv_forward_task)(const void *job, int64_t task, float *scratch) {
    const conv_job *j = job;
    int64_t blocks = ceil_div(j->channels, BLOCK);
    FN(convolve_span)(j, task / blocks, task % blocks * BLOCK, 0, j->length, scratch);
}

/* Columns outside, tokens inside: a block of the weight is read from the nearest cache but the first time. */
static TARGET void FN(project_task)(const void *job, int64_t task, float *scratch) {
    const project_job *q = job;
    const conv_job *j = &q->conv;
    int64_t L = j->length, K = j->channels, span = span_of(q), spans = ceil_div(L, span);
    int64_t b = task / spans, first = task % spans * span, last = first + span < L ? first + span : L;
    for (int64_t e = 0; e < K && j->width; e += BLOCK) FN(convolve_span)(j, b, e, first, last, scratch);
    walk tokens = walk_from(j->y, b, 0, L, j->reverse), out = walk_rows(q->out, b, 0, L, j->reverse);
    for (int64_t c = 0; c < q->columns; c += BLOCK)
        for (int64_t from = first; from < last; from += LANES) PARTS(v) {
            float *to = out.p + from * out.t + c + v;
            FN(multiply)(tokens, from, last - from, K, q->weight + c * K + v, to, out.t);
        }
}

/* A block of columns side by side, as `multiply` reads them. */
static TARGET void FN(pack_task)(const void *job, int64_t task, float *scratch) {
    const pack_job *j = job;
    int64_t K = j->channels, first = task * BLOCK, count = j->columns - first < BLOCK ? j->columns - first : BLOCK;
    const float *src = j->src + first * K;
    float *dst = j->dst + first * K, scale = (float)j->scale, factor = j->decay ? LOG2E : scale;
    (void)scratch;
    if (count < BLOCK) memset(dst, 0, (size_t)(K * BLOCK) * sizeof(float));
    for (int64_t e = 0; e < K; e++)
        for (int64_t c = 0; c < count; c++) dst[e * BLOCK + c] = src[c * K + e] * factor;
    for (int64_t i = 0; i < K * BLOCK && j->decay; i += LANES) STORE(dst + i, FN(exp2)(LOAD(dst + i)) * -scale);
}

/* Gradients of one tile; row r of `dx` is token from - (K - 1) + r, finished once the tile before which it lies is. */
INLINE void FN(convolve_back)(const float *x, int64_t sx, const float *dy, int64_t sg, const float *w, int64_t width,
                              int silu, int64_t steps, float *dx, float *sums) {
    PARTS(v) for (int64_t t = 0; t < steps; t++) {
        vf grad = LOAD(dy + t * sg + v);
        if (silu) {
            vf value = FN(filter)(x + t * sx, sx, w, width, v), s = FN(sigmoid)(value);
            grad *= s + value * s * (1.0f - s);
        }
        for (int64_t k = 0; k < width; k++) {
            float *to = dx + (t + k) * BLOCK + v, *sum = sums + k * BLOCK + v;
            STORE(to, LOAD(to) + grad * LOAD(w + k * BLOCK + v));
            STORE(sum, LOAD(sum) + grad * LOAD(x + (t + k) * sx + v));
        }
        STORE(sums + width * BLOCK + v, LOAD(sums + width * BLOCK + v) + grad);
    }
}

static TARGET void FN(conv_backward_task)(const void *job, int64_t task, float *scratch) {
    const conv_job *j = job;
    int64_t L = j->length, K = j->width, blocks = ceil_div(j->channels, BLOCK), b = task / blocks;
    int64_t e = task % blocks * BLOCK, channels = j->channels - e < BLOCK ? j->channels - e : BLOCK;
    float *w = scratch, *sums = w + (K + 1) * BLOCK, *spare_dy = sums + (K + 1) * BLOCK;
    float *dx = spare_dy + TILE * BLOCK, *spare_x = dx + (TILE + K) * BLOCK;
    FN(load_filter)(j, e, channels, w);
    memset(sums, 0, (size_t)((K + 1) * BLOCK) * sizeof(float));
    memset(dx, 0, (size_t)((TILE + K) * BLOCK) * sizeof(float));
    walk wx = walk_from(j->x, b, e, L, j->reverse), wg = walk_from(j->dy, b, e, L, j->reverse);
    walk wd = walk_from(j->dx, b, e, L, j->reverse);
    for (int64_t from = 0; from < L; from += TILE) {
        int64_t steps = L - from < TILE ? L - from : TILE, sx, sg;
        const float *x = FN(history)(j, wx, from, steps, channels, spare_x, &sx);
        const float *dy = tile_in(wg, from, steps, channels, spare_dy, &sg);
        if (K == 4) FN(convolve_back)(x, sx, dy, sg, w, 4, j->silu != 0, steps, dx, sums);
        else FN(convolve_back)(x, sx, dy, sg, w, K, j->silu != 0, steps, dx, sums);
        /* After the last tile all rows are finished; before, the last K - 1 still wait for their successors. */
        int64_t ready = from + steps == L ? steps + K - 1 : steps, before = K - 1 - from > 0 ? K - 1 - from : 0;
        if (ready > before) scatter(wd, from - K + 1 + before, ready - before, channels, dx + before * BLOCK);
        memmove(dx, dx + steps * BLOCK, (size_t)((K - 1) * BLOCK) * sizeof(float));
        memset(dx + (K - 1) * BLOCK, 0, (size_t)((TILE + 1) * BLOCK) * sizeof(float));
    }
    memcpy(j->sums + task * (K + 1) * BLOCK, sums, (size_t)((K + 1) * BLOCK) * sizeof(float));
}

/* ---- softplus of a biased time step, where somebody wants to look at it ------------------------------------- */

static TARGET void FN(softplus_task)(const void *job, int64_t task, float *scratch) {
    const softplus_job *j = job;
    int64_t L = j->length, blocks = ceil_div(j->channels, BLOCK), b = task / blocks, e = task % blocks * BLOCK;
    int64_t channels = j->channels - e < BLOCK ? j->channels - e : BLOCK;
    float *bias = scratch, *spare_x = bias + BLOCK, *spare_y = spare_x + TILE * BLOCK;
    memset(bias, 0, BLOCK * sizeof(float));
    memcpy(bias, j->bias + e, (size_t)channels * sizeof(float));
    walk wx = walk_from(j->x, b, e, L, 0), wy = walk_from(j->y, b, e, L, 0);
    for (int64_t from = 0; from < L; from += TILE) {
        int64_t steps = L - from < TILE ? L - from : TILE, sx, sy;
        const float *x = tile_in(wx, from, steps, channels, spare_x, &sx);
        float *out = tile_out(wy, from, steps, channels, spare_y, &sy);
        PARTS(v) STEPS(t) STORE(out + t * sy + v, FN(softplus)(LOAD(x + t * sx + v) + LOAD(bias + v)));
        tile_flush(wy, from, steps, channels, spare_y);
    }
}

/* ---- a sum and its norm ------------------------------------------------------------------------------------- */

/* Added up in the same order at every place. */
INLINE float FN(add_squares)(const float *row, int64_t count) {
    float parts[LANES], total = 0.0f;
    vf square = FN(splat)(0.0f);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) square += LOAD(row + i) * LOAD(row + i);
    STORE(parts, square);
    for (int k = 0; k < LANES; k++) total += parts[k];
    for (; i < count; i++) total += row[i] * row[i];
    return total;
}

static TARGET void FN(norm_task)(const void *job, int64_t task, float *scratch) {
    const norm_job *j = job;
    int64_t K = j->columns, first = task * NORM_SPAN, last = first + NORM_SPAN < j->rows ? first + NORM_SPAN : j->rows;
    (void)scratch;
    for (int64_t row = first; row < last; row++) {
        float *sum = j->sum + row * K, *normed = j->normed + row * K;
        for (int64_t i = 0; i < K; i++) sum[i] = j->x[row * K + i] + j->residual[row * K + i];
        float scale = 1.0f / sqrtf(FN(add_squares)(sum, K) / (float)K + (float)j->eps);
        for (int64_t i = 0; i < K; i++) normed[i] = sum[i] * scale * j->weight[i];
    }
}

/* ---- the most similar of some rows ------------------------------------------------------------------------- */

/* A row as a unit vector, with its elements `stride` apart. */
INLINE void FN(unit)(const float *row, int64_t count, float *out, int64_t stride) {
    float norm = sqrtf(FN(add_squares)(row, count)), scale = 1.0f / (norm > 1e-12f ? norm : 1e-12f);
    if (norm != norm) scale = norm;
    for (int64_t e = 0; e < count; e++) out[e * stride] = row[e] * scale;
}

/* The first of the greatest scores up to rounding; the first of all if one is no number. */
INLINE int64_t FN(first_best)(const float *scores, int64_t count) {
    float best = scores[0];
    for (int64_t i = 0; i < count; i++) {
        if (scores[i] != scores[i]) return 0;
        if (scores[i] > best) best = scores[i];
    }
    for (int64_t i = 0; i < count; i++)
        if (scores[i] >= best - 16.0f * FLT_EPSILON) return i;
    return 0;
}

static TARGET void FN(match_task)(const void *job, int64_t b, float *scratch) {
    const match_job *j = job;
    int64_t K = j->channels, columns = ceil_div(j->targets, BLOCK) * BLOCK;
    float *packed = scratch, *tile = packed + columns * K, *scores = tile + BLOCK * K;
    const float *rows = j->metric + b * j->length * K;
    const int64_t *src = j->src + b * j->sources, *dst = j->dst + b * j->targets;
    memset(packed, 0, (size_t)(columns * K) * sizeof(float));
    for (int64_t i = 0; i < j->targets; i++)
        FN(unit)(rows + dst[i] * K, K, packed + i / BLOCK * BLOCK * K + i % BLOCK, BLOCK);
    walk tokens = {tile, 1, K};
    for (int64_t first = 0; first < j->sources; first += BLOCK) {
        int64_t steps = j->sources - first < BLOCK ? j->sources - first : BLOCK;
        for (int64_t i = 0; i < steps; i++) FN(unit)(rows + src[first + i] * K, K, tile + i * K, 1);
        for (int64_t c = 0; c < columns; c += BLOCK)
            for (int64_t from = 0; from < steps; from += LANES) PARTS(v)
                FN(multiply)(tokens, from, steps - from, K, packed + c * K + v, scores + from * columns + c + v, columns);
        for (int64_t i = 0; i < steps; i++)
            j->found[b * j->sources + first + i] = dst[FN(first_best)(scores + i * columns, j->targets)];
    }
}

static TARGET void FN(merge_task)(const void *job, int64_t b, float *scratch) {
    const merge_job *j = job;
    const int64_t *slot = j->slot + b * j->length;
    const float *weight = j->weight == NULL ? NULL : j->weight + b * j->length;
    int64_t K = j->channels;
    float *dst = j->dst + b * j->slots * K, *total = scratch, *met = scratch + j->slots;
    memset(dst, 0, (size_t)(j->slots * K) * sizeof(float));
    memset(scratch, 0, (size_t)(2 * j->slots) * sizeof(float));
    for (int64_t t = 0; t < j->length; t++) {
        if (slot[t] >= j->slots) *j->wrong = 1;
        else if (slot[t] >= 0) total[slot[t]] += weight == NULL ? 1.0f : weight[t];
    }
    for (int64_t t = 0; t < j->length; t++) {
        if (slot[t] < 0 || slot[t] >= j->slots) continue;
        const float *from = j->src + (b * j->length + t) * K;
        float *to = dst + slot[t] * K, share = weight == NULL ? 1.0f : weight[t] / total[slot[t]];
        /* The first is written, not added to zero, so that a token alone keeps every bit. */
        if (met[slot[t]]++ == 0.0f) for (int64_t c = 0; c < K; c++) to[c] = share * from[c];
        else for (int64_t c = 0; c < K; c++) to[c] += share * from[c];
    }
    for (int64_t s = 0; s < j->slots && j->mean && weight == NULL; s++)
        for (int64_t c = 0; c < K && total[s] > 1.0f; c++) dst[s * K + c] /= total[s];
}

/* ---- sums in a fixed order --------------------------------------------------------------------------------- */

static TARGET void FN(sum_task)(const void *job, int64_t task, float *scratch) {
    const sum_job *j = job;
    int64_t spans = ceil_div(j->inner, SUM_SPAN), from = task % spans * SUM_SPAN;
    int64_t size = j->inner - from < SUM_SPAN ? j->inner - from : SUM_SPAN;
    const float *src = j->src + task / spans * j->count * j->inner + from;
    (void)scratch;
    float sum[SUM_SPAN] = {0};
    for (int64_t i = 0; i < j->count; i++)
        for (int64_t c = 0; c < size; c++) sum[c] += src[i * j->inner + c];
    memcpy(j->dst + task / spans * j->inner + from, sum, (size_t)size * sizeof(float));
}

#undef place
#undef lane_team
#undef vf
#undef vi
#undef INLINE
#undef LOAD
#undef STORE
#undef PARTS
#undef STEPS
#undef SUFFIX
#undef LANES
#undef TARGET
#undef SHIFT
#undef AVX2
#undef AVX512_EXP2
