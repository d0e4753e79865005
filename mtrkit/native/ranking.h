/* Jobs without vectors, the same at every level: which tokens stay, and where they go. */

/* A token and its score, with those that cannot be compared made the least. */
typedef struct {
    float score;
    int32_t token;
} ranked;

static int by_rank(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->token < y->token ? -1 : x->token > y->token;
}

/* Mark the special tokens of a sample, and find those that are not; returns how many these are, or -1 if one is wrong. */
static int64_t find_others(const int64_t *special, int64_t specials, int64_t length, int32_t *others) {
    int64_t count = 0;
    for (int64_t t = 0; t < length; t++) others[t] = 0;
    for (int64_t i = 0; i < specials; i++) {
        if (special[i] < 0 || special[i] >= length || others[special[i]]) return -1;
        others[special[i]] = 1;
    }
    for (int64_t t = 0; t < length; t++)
        if (!others[t]) others[count++] = (int32_t)t;
    return count;
}

enum { KEEP, BETWEEN, LEAVE };

static void split_task(const void *job, int64_t b, float *scratch) {
    const split_job *j = job;
    int64_t L = j->length, between = L - j->specials - j->top - j->bottom;
    ranked *order = (ranked *)scratch;
    int32_t *others = (int32_t *)(order + L), *group = others; /* in their place, as order has copied them by then */
    int64_t count = find_others(j->special + b * j->specials, j->specials, L, others);
    if (count < 0) {
        *j->wrong = 1;
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        float score = j->score[b * L + others[i]];
        score = score != score || score < -FLT_MAX ? -FLT_MAX : score > FLT_MAX ? FLT_MAX : score;
        order[i] = (ranked){score, others[i]};
    }
    qsort(order, (size_t)count, sizeof(ranked), by_rank);
    for (int64_t t = 0; t < L; t++) group[t] = KEEP;
    for (int64_t i = j->top; i < count; i++) group[order[i].token] = i < count - j->bottom ? BETWEEN : LEAVE;
    int64_t *to[] = {j->keep + b * (j->specials + j->top), j->dst + b * between, j->src + b * j->bottom};
    for (int64_t t = 0; t < L; t++) *to[group[t]]++ = t;
}

static void by_turns_task(const void *job, int64_t b, float *scratch) {
    const by_turns_job *j = job;
    int32_t *others = (int32_t *)scratch;
    int64_t count = find_others(j->special + b * j->specials, j->specials, j->length, others);
    if (count < 0) *j->wrong = 1;
    int64_t *first = j->first + b * ((count + 1) / 2), *second = j->second + b * (count / 2);
    for (int64_t i = 0; i < count; i++) *(i % 2 ? second++ : first++) = others[i];
}

typedef struct {
    float strength;
    int32_t link;
} strong;

static int by_strength(const void *a, const void *b) {
    const strong *x = a, *y = b;
    int x_nan = x->strength != x->strength, y_nan = y->strength != y->strength;
    if (x_nan != y_nan) return x_nan ? -1 : 1;
    if (!x_nan && x->strength != y->strength) return x->strength > y->strength ? -1 : 1;
    return x->link < y->link ? -1 : x->link > y->link;
}

static void links_task(const void *job, int64_t b, float *scratch) {
    const links_job *j = job;
    strong *order = (strong *)scratch;
    for (int64_t i = 0; i < j->links; i++) order[i] = (strong){j->strength[b * j->links + i], (int32_t)i};
    qsort(order, (size_t)j->links, sizeof(strong), by_strength);
    for (int64_t i = 0; i < j->best; i++) {
        j->best_src[b * j->best + i] = j->src[b * j->links + order[i].link];
        j->best_target[b * j->best + i] = j->target[b * j->links + order[i].link];
    }
}

static void follow_task(const void *job, int64_t b, float *scratch) {
    const follow_job *j = job;
    (void)scratch;
    for (int64_t t = b * j->places; t < (b + 1) * j->places; t++) {
        int64_t now = j->before[t];
        if (now >= j->length) *j->wrong = 1;
        j->after[t] = now < 0 || now >= j->length ? -1 : j->slot[b * j->length + now];
    }
}

static void round_task(const void *job, int64_t task, float *scratch) {
    const round_job *j = job;
    (void)task, (void)scratch;
    for (int64_t i = 0; i < j->count; i++) j->dst[i] = (int64_t)nearbyintf(j->src[i]);
}
