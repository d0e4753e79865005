/* Products of tokens with weights, and sums in a fixed order. */

/* One channel of `rows` tokens times BLOCK columns of w. Every third token has an address of its own, from which the
 * other two are reached: there are not enough registers for the addresses of all. */
INLINE void FN(multiply_channel)(int rows, const float *const *third, int64_t t, int64_t e, const float *w,
                                 vf (*sum)[VECTORS]) {
    vf column[VECTORS];
    UNROLL for (int k = 0; k < VECTORS; k++) column[k] = LOAD(w + e * BLOCK + k * LANES);
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int k = 0; k < VECTORS; k++) sum[i][k] += column[k] * third[i / 3][i % 3 * t + e];
}

/* Matrix product of `rows` tokens with `count` channels and BLOCK columns of w. Each token's sums stay in registers, so
 * that a column is loaded once for all tokens. */
INLINE void FN(multiply_rows)(int rows, const float *tokens, int64_t t, int64_t count, const float *w, float *out,
                              int64_t stride) {
    enum { AT_ONCE = 2 };
    const float *third[(ROWS + 2) / 3];
    vf sum[ROWS][VECTORS];
    UNROLL for (int i = 0; i < rows; i += 3) third[i / 3] = tokens + i * t;
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int k = 0; k < VECTORS; k++) sum[i][k] = FN(splat)(0.0f);
    for (; count >= AT_ONCE; count -= AT_ONCE, w += AT_ONCE * BLOCK) {
        UNROLL for (int e = 0; e < AT_ONCE; e++) FN(multiply_channel)(rows, third, t, e, w, sum);
        UNROLL for (int i = 0; i < rows; i += 3) NEXT(third[i / 3], AT_ONCE);
    }
    if (count > 0) FN(multiply_channel)(rows, third, t, 0, w, sum);
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int k = 0; k < VECTORS; k++) STORE(out + i * stride + k * LANES, sum[i][k]);
}

/* Of the tokens from `i` to before `steps` as many as fill groups of `rows`; returns the next one. */
INLINE int64_t FN(multiply_groups)(int rows, int64_t i, walk tokens, int64_t steps, int64_t count, const float *w,
                                   float *out, int64_t stride) {
    for (; i + rows <= steps; i += rows)
        FN(multiply_rows)(rows, tokens.p + i * tokens.t, tokens.t, count, w, out + i * stride, stride);
    return i;
}

/* The product of `steps` tokens from `from` on, as many at a time as there are registers for. */
INLINE void FN(multiply)(walk tokens, int64_t from, int64_t steps, int64_t count, const float *w, float *out,
                         int64_t stride) {
    tokens.p += from * tokens.t;
    int64_t i = FN(multiply_groups)(ROWS, 0, tokens, steps, count, w, out, stride);
    i = FN(multiply_groups)(ROWS / 2, i, tokens, steps, count, w, out, stride);
    i = FN(multiply_groups)(ROWS / 4, i, tokens, steps, count, w, out, stride);
    FN(multiply_groups)(1, i, tokens, steps, count, w, out, stride);
}

static TARGET void FN(sum_task)(const void *job, int64_t task, float *scratch) {
    const sum_job *j = job;
    int64_t spans = ceil_div(j->inner, SUM_SPAN), from = task % spans * SUM_SPAN;
    int64_t size = j->inner - from < SUM_SPAN ? j->inner - from : SUM_SPAN;
    const float *src = j->src + task / spans * j->count * j->inner + from;
    (void)scratch;
    float sum[SUM_SPAN] = {0};
    for (int64_t i = 0; i < j->count; i++)
        for (int64_t c = 0; c < size; c++) sum[c] += src[i * j->inner + c];
    for (int64_t c = 0; c < size; c++) sum[c] /= (float)j->divisor;
    memcpy(j->dst + task / spans * j->inner + from, sum, (size_t)size * sizeof(float));
}

#ifdef INTERLEAVE_LOW
/* LANES vectors as the rows of a square, which becomes its columns: each round puts the halves between each other. */
INLINE void FN(transpose)(vf *rows) {
    for (int round = LANES; round > 1; round /= 2) {
        vf mixed[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            mixed[2 * i] = INTERLEAVE_LOW(rows[i], rows[i + LANES / 2]);
            mixed[2 * i + 1] = INTERLEAVE_HIGH(rows[i], rows[i + LANES / 2]);
        }
        memcpy(rows, mixed, sizeof mixed);
    }
}

/* As many words of a full block as fill vectors, and how many they are. */
INLINE int64_t FN(pack_squares)(const uint32_t *src, int64_t words, uint32_t *dst) {
    int64_t e = 0;
    for (; e + LANES <= words; e += LANES) PARTS(v) {
        vf square[LANES];
        for (int i = 0; i < LANES; i++) square[i] = LOAD(src + (v + i) * words + e);
        FN(transpose)(square);
        for (int i = 0; i < LANES; i++) STORE(dst + (e + i) * BLOCK + v, square[i]);
    }
    return e;
}
#else
INLINE int64_t FN(pack_squares)(const uint32_t *src, int64_t words, uint32_t *dst) {
    (void)src, (void)words, (void)dst;
    return 0;
}
#endif

/* (count, words) -> (words, BLOCK), zeros after the last column; a word is a float, or two 16-bit ones. */
INLINE void FN(pack_words)(const uint32_t *src, int64_t words, int64_t count, uint32_t *dst) {
    if (count < BLOCK) memset(dst, 0, (size_t)(words * BLOCK) * sizeof(uint32_t));
    int64_t e = count == BLOCK ? FN(pack_squares)(src, words, dst) : 0;
    for (; e < words; e++)
        for (int64_t c = 0; c < count; c++) dst[e * BLOCK + c] = src[c * words + e];
}

/* Both numbers of each word times a power of two. */
INLINE void FN(scale_pairs)(uint32_t *pairs, int64_t count, float scale) {
    for (int64_t i = 0; i < count; i += LANES) {
        vf low = FN(low_half)(LOAD(pairs + i)) * scale, high = FN(high_half)(LOAD(pairs + i)) * scale;
        STORE(pairs + i, (vf)((vi)high | ((vi)low >> 16 & 0xffff)));
    }
}

/* A block of columns side by side, as `multiply` reads them. */
INLINE void FN(pack_block)(const pack_job *j, int64_t first, float *scratch) {
    int64_t K = j->channels, count = j->columns - first < BLOCK ? j->columns - first : BLOCK;
    float scale = (float)j->scale, factor = j->decay ? LOG2E : scale;
    if (j->half) {
        uint32_t *pairs = (uint32_t *)j->dst + first * K / 2;
        FN(pack_words)((const uint32_t *)j->src + first * K / 2, K / 2, count, pairs);
        if (scale != 1.0f) FN(scale_pairs)(pairs, K / 2 * BLOCK, scale);
        return;
    }
    const float *src = (const float *)j->src + first * K;
    float *dst = j->dst + first * K;
    if (j->half_src) {
        FN(widen)((const uint16_t *)j->src + first * K, count * K, scratch);
        src = scratch;
    }
    FN(pack_words)((const uint32_t *)src, K, count, (uint32_t *)dst);
    for (int64_t i = 0; i < K * BLOCK && factor != 1.0f; i += LANES) STORE(dst + i, LOAD(dst + i) * factor);
    for (int64_t i = 0; i < K * BLOCK && j->decay; i += LANES) STORE(dst + i, FN(exp2)(LOAD(dst + i)) * -scale);
}

static TARGET void FN(pack_task)(const void *job, int64_t task, float *scratch) {
    const pack_job *j = job;
    int64_t first = task * pack_span(j), last = first + pack_span(j) < j->columns ? first + pack_span(j) : j->columns;
    for (; first < last; first += BLOCK) FN(pack_block)(j, first, scratch);
}

/* A tile of tokens, rounded to 16 bits, times BLOCK columns of packed pairs; sums in 32 bits. */
INLINE void FN(multiply_pairs)(const uint16_t *tokens, int64_t steps, int64_t K, const uint32_t *w, float *out,
                               int64_t stride) {
    for (int64_t i = 0; i < steps; i++) PARTS(v) {
        vf sum = FN(splat)(0.0f);
        for (int64_t e = 0; e < K; e += 2) {
            vf pairs = LOAD(w + e / 2 * BLOCK + v);
            sum += FN(low_half)(pairs) * widened(tokens[i * K + e]) + FN(high_half)(pairs) * widened(tokens[i * K + e + 1]);
        }
        STORE(out + i * stride + v, sum);
    }
}
