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
