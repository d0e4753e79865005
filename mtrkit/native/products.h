/* Products of tokens with weights, and sums in a fixed order. */

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

/* As many channels of a full block as fill vectors, and how many they are. */
INLINE int64_t FN(pack_squares)(const float *src, int64_t K, float factor, float *dst) {
    int64_t e = 0;
    for (; e + LANES <= K; e += LANES) PARTS(v) {
        vf square[LANES];
        for (int i = 0; i < LANES; i++) square[i] = LOAD(src + (v + i) * K + e) * factor;
        FN(transpose)(square);
        for (int i = 0; i < LANES; i++) STORE(dst + (e + i) * BLOCK + v, square[i]);
    }
    return e;
}
#else
INLINE int64_t FN(pack_squares)(const float *src, int64_t K, float factor, float *dst) {
    (void)src, (void)K, (void)factor, (void)dst;
    return 0;
}
#endif

/* A block of columns side by side, as `multiply` reads them. */
static TARGET void FN(pack_task)(const void *job, int64_t task, float *scratch) {
    const pack_job *j = job;
    int64_t K = j->channels, first = task * BLOCK, count = j->columns - first < BLOCK ? j->columns - first : BLOCK;
    const float *src = j->src + first * K;
    float *dst = j->dst + first * K, scale = (float)j->scale, factor = j->decay ? LOG2E : scale;
    (void)scratch;
    if (count < BLOCK) memset(dst, 0, (size_t)(K * BLOCK) * sizeof(float));
    int64_t e = count == BLOCK ? FN(pack_squares)(src, K, factor, dst) : 0;
    for (; e < K; e++)
        for (int64_t c = 0; c < count; c++) dst[e * BLOCK + c] = src[c * K + e] * factor;
    for (int64_t i = 0; i < K * BLOCK && j->decay; i += LANES) STORE(dst + i, FN(exp2)(LOAD(dst + i)) * -scale);
}
