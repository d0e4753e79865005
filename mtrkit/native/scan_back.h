/* The selective scan backward. */

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
