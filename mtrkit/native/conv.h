/* The causal convolution, forward and backward, and the product that follows it. */

/* Weights as (width, BLOCK) with the bias behind them. A width that the compiler knows is turned
 * by vectors. */
INLINE void FN(load_filter)(const conv_job *j, int64_t e, int64_t channels, float *w) {
    const uint32_t *weight = (const uint32_t *)(j->weight + e * j->width);
    if (channels == BLOCK && j->width == 4) FN(pack_words)(weight, 4, BLOCK, (uint32_t *)w);
    else FN(pack_words)(weight, j->width, channels, (uint32_t *)w);
    FN(load_vector)(j->bias, (place){.channel = e, .width = channels}, w + j->width * BLOCK);
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

/* The mean over the positions that each token lasts: as many different values as taps at most, of which the last, with
 * every tap inside of the token, counts for all that follow. Taps inside of it see the same, so that their weights are
 * added up. The first token is number `i` of `p`. */
INLINE void FN(convolve_runs)(const float *x, int64_t sx, const float *w, int64_t width, int silu, const past *p,
                              int64_t i, int64_t steps, float *out, int64_t so) {
    PARTS(v) for (int64_t t = 0; t < steps; t++) {
        int64_t count = p->token[i + t].lasts;
        const int64_t *back = p->token[i + t].back;
        const float *own = x + (t + width - 1) * sx + v;
        vf total = FN(splat)(0.0f), inside = total;
        for (int64_t n = 0; n < width && n < count; n++) {
            inside += LOAD(w + (width - 1 - n) * BLOCK + v);
            vf value = LOAD(w + width * BLOCK + v) + inside * LOAD(own);
            for (int64_t k = 0; k < width - 1 - n; k++) value += LOAD(w + k * BLOCK + v) * LOAD(own - back[n + k] * sx);
            if (silu) value *= FN(sigmoid)(value);
            total += n == width - 1 ? value * (float)(count - n) : value;
        }
        STORE(out + t * so + v, total * (1.0f / (float)count));
    }
}

/* The tokens from `first` to before `last` of a channel block; `p` is absent if every token lasts one position. */
static TARGET void FN(convolve_span)(const conv_job *j, int64_t b, int64_t e, int64_t first, int64_t last,
                                     const past *p, float *scratch) {
    int64_t L = j->length, channels = j->channels - e < BLOCK ? j->channels - e : BLOCK;
    float *w = scratch, *spare_y = w + (j->width + 1) * BLOCK, *spare_x = spare_y + TILE * BLOCK;
    FN(load_filter)(j, e, channels, w);
    walk wx = walk_from(j->x, b, e, L, j->reverse), wy = walk_from(j->y, b, e, L, j->reverse);
    for (int64_t from = first; from < last; from += TILE) {
        int64_t steps = last - from < TILE ? last - from : TILE, sx, sy;
        const float *x = FN(history)(j, wx, from, steps, channels, spare_x, &sx);
        float *out = tile_out(wy, from, steps, channels, spare_y, &sy);
        int longer = p != NULL && p->sees_runs[(from - first) / TILE];
        if (longer && j->width == 4 && j->silu) FN(convolve_runs)(x, sx, w, 4, 1, p, from - first, steps, out, sy);
        else if (longer) FN(convolve_runs)(x, sx, w, j->width, j->silu != 0, p, from - first, steps, out, sy);
        else if (j->width == 4 && j->silu) FN(convolve)(x, sx, w, 4, 1, out, sy);
        else FN(convolve)(x, sx, w, j->width, j->silu != 0, out, sy);
        tile_flush(wy, from, steps, channels, spare_y);
    }
}

static TARGET void FN(conv_forward_task)(const void *job, int64_t task, float *scratch) {
    const conv_job *j = job;
    int64_t blocks = ceil_div(j->channels, BLOCK), b = task / blocks, e = task % blocks * BLOCK, L = j->length;
    past *p = j->lengths == NULL ? NULL : (past *)(scratch + conv_scratch(j->width));
    for (int64_t first = 0; first < L; first += CONV_SPAN) {
        int64_t last = first + CONV_SPAN < L ? first + CONV_SPAN : L;
        if (p != NULL) look_back(lasting_from(j->lengths, b, L, j->reverse), first, last, j->width, p);
        FN(convolve_span)(j, b, e, first, last, p, scratch);
    }
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

/* The same for tokens that last several positions; the first token is number `i` of `p`. */
INLINE void FN(runs_convolve_back)(const float *x, int64_t sx, const float *dy, int64_t sg, const float *w, int64_t width,
                                   int silu, const past *p, int64_t i, int64_t steps, float *dx, float *sums) {
    PARTS(v) for (int64_t t = 0; t < steps; t++) {
        int64_t count = p->token[i + t].lasts, values = count < width ? count : width, own = t + width - 1;
        vf mean = LOAD(dy + t * sg + v) * (1.0f / (float)count);
        for (int64_t n = 0; n < values; n++) {
            const int64_t *back = p->token[i + t].back + n;
            vf grad = n == width - 1 ? mean * (float)(count - n) : mean;
            if (silu) {
                vf value = LOAD(w + width * BLOCK + v);
                for (int64_t k = 0; k < width; k++) value += LOAD(w + k * BLOCK + v) * LOAD(x + (own - back[k]) * sx + v);
                vf s = FN(sigmoid)(value);
                grad *= s + value * s * (1.0f - s);
            }
            for (int64_t k = 0; k < width; k++) {
                float *to = dx + (own - back[k]) * BLOCK + v, *sum = sums + k * BLOCK + v;
                STORE(to, LOAD(to) + grad * LOAD(w + k * BLOCK + v));
                STORE(sum, LOAD(sum) + grad * LOAD(x + (own - back[k]) * sx + v));
            }
            STORE(sums + width * BLOCK + v, LOAD(sums + width * BLOCK + v) + grad);
        }
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
    past *p = j->lengths == NULL ? NULL : (past *)(spare_x + (TILE + K) * BLOCK);
    for (int64_t from = 0; from < L; from += TILE) {
        int64_t steps = L - from < TILE ? L - from : TILE, first = from / CONV_SPAN * CONV_SPAN, sx, sg;
        int64_t last = first + CONV_SPAN < L ? first + CONV_SPAN : L;
        if (p != NULL && from == first) look_back(lasting_from(j->lengths, b, L, j->reverse), first, last, K, p);
        const float *x = FN(history)(j, wx, from, steps, channels, spare_x, &sx);
        const float *dy = tile_in(wg, from, steps, channels, spare_dy, &sg);
        if (p != NULL && p->sees_runs[(from - first) / TILE])
            FN(runs_convolve_back)(x, sx, dy, sg, w, K, j->silu != 0, p, from - first, steps, dx, sums);
        else if (K == 4) FN(convolve_back)(x, sx, dy, sg, w, 4, j->silu != 0, steps, dx, sums);
        else FN(convolve_back)(x, sx, dy, sg, w, K, j->silu != 0, steps, dx, sums);
        /* After the last tile all rows are finished; before, the last K - 1 still wait for their successors. */
        int64_t ready = from + steps == L ? steps + K - 1 : steps, before = K - 1 - from > 0 ? K - 1 - from : 0;
        if (ready > before) scatter(wd, from - K + 1 + before, ready - before, channels, dx + before * BLOCK);
        memmove(dx, dx + steps * BLOCK, (size_t)((K - 1) * BLOCK) * sizeof(float));
        memset(dx + (K - 1) * BLOCK, 0, (size_t)((TILE + 1) * BLOCK) * sizeof(float));
    }
    memcpy(j->sums + task * (K + 1) * BLOCK, sums, (size_t)((K + 1) * BLOCK) * sizeof(float));
}

/* Tokens `first` to before `last` times the blocks `begin` to before `end` of columns. Columns are outside, tokens inside:
 * a block of the weight comes from the nearest cache but the first time. */
INLINE void FN(multiply_span)(const project_job *q, walk tokens, walk out, int64_t first, int64_t last, int64_t begin,
                              int64_t end) {
    int64_t K = q->conv.channels;
    for (int64_t c = begin * BLOCK; c < end * BLOCK; c += BLOCK)
        FN(multiply)(tokens, first, last - first, K, (const float *)q->weight + c * K, out.p + first * out.t + c, out.t);
}

/* The same with weights of 16 bits, to which a tile of tokens at a time is rounded. */
INLINE void FN(multiply_span_halves)(const project_job *q, walk tokens, walk out, int64_t first, int64_t last,
                                     int64_t begin, int64_t end, uint16_t *rounded) {
    int64_t K = q->conv.channels;
    for (int64_t from = first; from < last; from += TILE) {
        int64_t steps = last - from < TILE ? last - from : TILE;
        for (int64_t t = 0; t < steps; t++) {
            const float *row = tokens.p + (from + t) * tokens.t;
            int64_t done = 0;
#ifdef HALF_PRODUCTS
            if (q->half == HALF_BY_INSTRUCTION) done = narrow_blocks(row, K, rounded + t * K);
#endif
            FN(narrow)(row + done, K - done, rounded + t * K + done);
        }
        for (int64_t c = begin * BLOCK; c < end * BLOCK; c += BLOCK) {
            const uint32_t *w = (const uint32_t *)q->weight + c * K / 2;
            float *to = out.p + from * out.t + c;
#ifdef HALF_PRODUCTS
            if (q->half == HALF_BY_INSTRUCTION) {
                multiply_tile_halves(rounded, steps, K, w, to, out.t);
                continue;
            }
#endif
            FN(multiply_pairs)(rounded, steps, K, w, to, out.t);
        }
    }
}

static TARGET void FN(project_task)(const void *job, int64_t task, float *scratch) {
    const project_job *q = job;
    const conv_job *j = &q->conv;
    int64_t L = j->length, K = j->channels, spans = ceil_div(L, q->span), part = task / (j->batch * spans);
    int64_t b = task / spans % j->batch, first = task % spans * q->span, last = first + q->span < L ? first + q->span : L;
    int64_t blocks = q->columns / BLOCK, begin = part * blocks / q->parts, end = (part + 1) * blocks / q->parts;
    if (q->left_out != NULL && q->left_out[b]) return;
    float *after = scratch + conv_scratch(j->width);
    past *p = j->lengths == NULL ? NULL : (past *)after;
    if (p != NULL) look_back(lasting_from(j->lengths, b, L, j->reverse), first, last, j->width, p);
    for (int64_t e = 0; e < K && j->width; e += BLOCK) FN(convolve_span)(j, b, e, first, last, p, scratch);
    walk tokens = walk_from(j->y, b, 0, L, j->reverse), out = walk_rows(q->out, b, 0, L, j->reverse);
    if (q->half) FN(multiply_span_halves)(q, tokens, out, first, last, begin, end, (uint16_t *)after);
    else FN(multiply_span)(q, tokens, out, first, last, begin, end);
}
