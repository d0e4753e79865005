/* The selective scan forward, and what both ways share. */

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

/* What a scan leaves that is left out: the sum as it was, or zeros, and its gate if there is one. */
static TARGET void FN(leave_out)(const scan_job *j, place at, float *scratch) {
    int64_t L = j->length, sy, sz = 0;
    float *spare_y = scratch, *spare_z = scratch + TILE * BLOCK;
    walk wy = walk_from(j->y, at.b, at.channel, L, 0), wz = walk_from(j->z, at.b, at.channel, L, 0);
    for (int64_t from = 0; from < L; from += TILE) {
        int64_t steps = L - from < TILE ? L - from : TILE;
        float *out = tile_out(wy, from, steps, at.width, spare_y, &sy);
        const float *z = wz.p == NULL ? NULL : tile_in(wz, from, steps, at.width, spare_z, &sz);
        if (j->add && out == spare_y) gather(wy, from, steps, at.width, TILE, spare_y);
        PARTS(v) {
            for (int64_t t = 0; t < steps; t++) {
                vf value = j->add ? LOAD(out + t * sy + v) : (vf){0};
                if (z != NULL) {
                    vf gate = LOAD(z + t * sz + v);
                    value *= gate * FN(sigmoid)(gate);
                }
                STORE(out + t * sy + v, value);
            }
        }
        tile_flush(wy, from, steps, at.width, spare_y);
    }
}

static TARGET void FN(scan_forward_task)(const void *job, int64_t task, float *scratch) {
    const scan_job *j = job;
    int64_t N = j->states, L = j->length, blocks = blocks_per_group(j), tiles = ceil_div(L, TILE);
    place at = FN(locate)(j, task / (blocks * j->groups), task / blocks % j->groups, task % blocks);
    if (j->left_out != NULL && j->left_out[at.b]) {
        FN(leave_out)(j, at, scratch);
        return;
    }
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
