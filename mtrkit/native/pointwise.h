/* What is done to each token by itself: softplus of its time step, a sum, and a sum and its norm. */

static TARGET void FN(softplus_task)(const void *job, int64_t task, float *scratch) {
    const softplus_job *j = job;
    int64_t L = j->length, blocks = ceil_div(j->channels, BLOCK), b = task / blocks, e = task % blocks * BLOCK;
    int64_t channels = j->channels - e < BLOCK ? j->channels - e : BLOCK;
    float *bias = scratch, *spare_x = bias + BLOCK, *spare_y = spare_x + TILE * BLOCK;
    memset(bias, 0, BLOCK * sizeof(float));
    if (j->bias != NULL) memcpy(bias, j->bias + e, (size_t)channels * sizeof(float));
    walk wx = walk_from(j->x, b, e, L, 0), wy = walk_from(j->y, b, e, L, 0);
    for (int64_t from = 0; from < L; from += TILE) {
        int64_t steps = L - from < TILE ? L - from : TILE, sx, sy;
        const float *x = tile_in(wx, from, steps, channels, spare_x, &sx);
        float *out = tile_out(wy, from, steps, channels, spare_y, &sy);
        PARTS(v) STEPS(t) STORE(out + t * sy + v, FN(softplus)(LOAD(x + t * sx + v) + LOAD(bias + v)));
        tile_flush(wy, from, steps, channels, spare_y);
    }
}

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
        if (j->half) FN(widen)((const uint16_t *)j->x + row * K, K, normed);
        const float *x = j->half ? normed : (const float *)j->x + row * K;
        for (int64_t i = 0; i < K; i++) sum[i] = x[i] + j->residual[row * K + i];
        float scale = 1.0f / sqrtf(FN(add_squares)(sum, K) / (float)K + (float)j->eps);
        for (int64_t i = 0; i < K; i++) normed[i] = sum[i] * scale * j->weight[i];
    }
}

static TARGET void FN(add_task)(const void *job, int64_t task, float *scratch) {
    const add_job *j = job;
    int64_t from = task * ADD_SPAN, to = from + ADD_SPAN < j->count ? from + ADD_SPAN : j->count;
    (void)scratch;
    for (int64_t i = from; i < to; i++) j->sum[i] = j->a[i] + j->b[i];
}

static TARGET void FN(narrow_task)(const void *job, int64_t task, float *scratch) {
    const narrow_job *j = job;
    int64_t from = task * ADD_SPAN, to = from + ADD_SPAN < j->count ? from + ADD_SPAN : j->count;
    (void)scratch;
    if (j->to_bfloat16)
        for (int64_t i = from; i < to; i++) j->x[i] = widened(narrowed(j->x[i]));
    else
        for (int64_t i = from; i < to; i++) j->x[i] = as_float16(j->x[i]);
}
