/* Matching, numbering and merging tokens. */

/* A row as a unit vector, with its elements `stride` apart. */
INLINE void FN(unit)(const float *row, int64_t count, float *out, int64_t stride) {
    float norm = sqrtf(FN(add_squares)(row, count)), scale = 1.0f / (norm > 1e-12f ? norm : 1e-12f);
    if (norm != norm) scale = norm;
    for (int64_t e = 0; e < count; e++) out[e * stride] = row[e] * scale;
}

/* The first of the greatest scores up to rounding; the first of all if one is NaN. */
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

/* Whether all positions lie in a sequence of `length` tokens. */
INLINE int FN(all_within)(const int64_t *positions, int64_t count, int64_t length) {
    for (int64_t i = 0; i < count; i++)
        if (positions[i] < 0 || positions[i] >= length) return 0;
    return 1;
}

static TARGET void FN(match_task)(const void *job, int64_t b, float *scratch) {
    const match_job *j = job;
    int64_t K = j->channels, columns = ceil_div(j->targets, BLOCK) * BLOCK;
    float *packed = scratch, *tile = packed + columns * K, *scores = tile + BLOCK * K;
    const float *rows = j->metric + b * j->length * K;
    const int64_t *src = j->src + b * j->sources, *dst = j->dst + b * j->targets;
    if (!FN(all_within)(src, j->sources, j->length) || !FN(all_within)(dst, j->targets, j->length)) {
        *j->wrong = 1;
        return;
    }
    memset(packed, 0, (size_t)(columns * K) * sizeof(float));
    for (int64_t i = 0; i < j->targets; i++)
        FN(unit)(rows + dst[i] * K, K, packed + i / BLOCK * BLOCK * K + i % BLOCK, BLOCK);
    walk tokens = {tile, 1, K};
    for (int64_t first = 0; first < j->sources; first += BLOCK) {
        int64_t steps = j->sources - first < BLOCK ? j->sources - first : BLOCK;
        for (int64_t i = 0; i < steps; i++) FN(unit)(rows + src[first + i] * K, K, tile + i * K, 1);
        for (int64_t c = 0; c < columns; c += BLOCK)
            FN(multiply)(tokens, 0, steps, K, packed + c * K, scores + c, columns);
        for (int64_t i = 0; i < steps; i++)
            j->found[b * j->sources + first + i] = dst[FN(first_best)(scores + i * columns, j->targets)];
    }
}

/* Added up in the same order for every pair, so that equal pairs are equally alike wherever they stand. */
INLINE float FN(cosine)(const float *x, const float *y, int64_t count) {
    float parts[3][LANES], sum[3] = {0};
    vf xy = FN(splat)(0.0f), xx = xy, yy = xy;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        vf a = LOAD(x + i), b = LOAD(y + i);
        xy += a * b, xx += a * a, yy += b * b;
    }
    STORE(parts[0], xy), STORE(parts[1], xx), STORE(parts[2], yy);
    for (int k = 0; k < LANES; k++)
        for (int s = 0; s < 3; s++) sum[s] += parts[s][k];
    for (; i < count; i++) sum[0] += x[i] * y[i], sum[1] += x[i] * x[i], sum[2] += y[i] * y[i];
    float one = sqrtf(sum[1]), other = sqrtf(sum[2]);
    return sum[0] / ((one > 1e-12f ? one : 1e-12f) * (other > 1e-12f ? other : 1e-12f));
}

static TARGET void FN(cosines_task)(const void *job, int64_t b, float *scratch) {
    const cosines_job *j = job;
    const float *rows = j->metric + b * j->length * j->channels;
    const int64_t *first = j->a + b * j->pairs, *second = j->b + b * j->pairs;
    (void)scratch;
    if (!FN(all_within)(first, j->pairs, j->length) || !FN(all_within)(second, j->pairs, j->length)) {
        *j->wrong = 1;
        return;
    }
    for (int64_t i = 0; i < j->pairs; i++)
        j->found[b * j->pairs + i] =
            FN(cosine)(rows + first[i] * j->channels, rows + second[i] * j->channels, j->channels);
}

/* Whether two neighbours in a sequence without special tokens should stay apart. */
INLINE int FN(apart)(const neighbors_job *j, const int64_t *special, int64_t one, int64_t next) {
    if (!j->across && next - one > 1) return 1;
    for (int64_t i = 0; i < j->specials && j->protect; i++) {
        int64_t from_one = one - special[i], from_next = next - special[i];
        if (from_one == 1 || from_one == -1 || from_next == 1 || from_next == -1) return 1;
    }
    return 0;
}

static TARGET void FN(neighbors_task)(const void *job, int64_t b, float *scratch) {
    const neighbors_job *j = job;
    const float *rows = j->metric + b * j->length * j->channels;
    const int64_t *special = j->special + b * j->specials;
    float *between = scratch;
    int32_t *tokens = (int32_t *)(between + j->length);
    int64_t count = find_others(special, j->specials, j->length, tokens), half = (count + 1) / 2;
    if (count < 2) {
        *j->wrong = 1;
        return;
    }
    for (int64_t i = 0; i + 1 < count; i++) {
        int64_t one = tokens[i], next = tokens[i + 1];
        between[i] = FN(apart)(j, special, one, next)
                         ? -FLT_MAX
                         : FN(cosine)(rows + one * j->channels, rows + next * j->channels, j->channels);
    }
    for (int64_t i = 0; i < count; i += 2) {
        float before = i > 0 ? between[i - 1] : -INFINITY, after = i + 1 < count ? between[i] : -INFINITY;
        int64_t one = i > 0 ? i - 1 : 1, other = i + 1 < count ? i + 1 : count - 2, at = b * half + i / 2;
        j->src[at] = tokens[i];
        j->target[at] = tokens[after > before ? other : one];
float best = after > before ? after : before;
        j->likeness[at] = before != before ? before : after != after ? after : best;
    }
}

/* Needs no vectors; here beside its siblings. */
static TARGET void FN(slots_task)(const void *job, int64_t b, float *scratch) {
    const slots_job *j = job;
    const int64_t *keep = j->keep == NULL ? NULL : j->keep + b * j->kept;
    const int64_t *merge = j->merge + b * j->merged, *target = j->target + b * j->merged;
    int64_t *slot = j->slot + b * j->length, *sequence = j->sequence + b * j->kept, number = 0;
    (void)scratch;
    for (int64_t t = 0; t < j->length; t++) slot[t] = j->keep == NULL ? 0 : -1;
    for (int64_t i = 0; i < j->merged && j->keep == NULL; i++)
        if (merge[i] >= 0 && merge[i] < j->length) slot[merge[i]] = -1;
    for (int64_t i = 0; i < j->kept && j->keep != NULL; i++) {
        if (keep[i] < 0 || keep[i] >= j->length) *j->wrong = 1;
        else slot[keep[i]] = i;
        sequence[i] = keep[i];
    }
    for (int64_t t = 0; t < j->length && (j->ordered || j->keep == NULL); t++) {
        if (slot[t] < 0) continue;
        if (number < j->kept) sequence[number] = t;
        slot[t] = number++;
    }
    if (j->keep == NULL && number != j->kept) *j->wrong = 1;
    for (int64_t i = 0; i < j->merged; i++) {
        if (merge[i] < 0 || merge[i] >= j->length || target[i] < 0 || target[i] >= j->length) *j->wrong = 1;
        else slot[merge[i]] = slot[target[i]];
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
