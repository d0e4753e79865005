/* The way through a tensor in time, forward or backward, and tiles of it in a thread's scratch. */

/* One direction through time: where the first visited token of a channel block lies, and the way to the next. */
typedef struct {
    float *p;
    int64_t e, t;
} walk;

static walk walk_from(view v, int64_t b, int64_t e, int64_t length, int64_t reverse) {
    walk w = {v.p, v.e, v.t};
    if (v.p == NULL) return w;
    w.p += b * v.b + e * v.e;
    if (reverse) {
        w.p += (length - 1) * v.t;
        w.t = -v.t;
    }
    return w;
}

static walk walk_rows(rows r, int64_t b, int64_t g, int64_t length, int64_t reverse) {
    view v = {r.p, r.b, r.g, r.t};
    return walk_from(v, b, g, length, reverse);
}

/* How many positions the tokens of one sample last, in the order in which they are visited. */
typedef struct {
    const int64_t *p;
    int64_t length, step;
} lasting;

static lasting lasting_from(const int64_t *lengths, int64_t b, int64_t length, int64_t reverse) {
    if (lengths == NULL) return (lasting){NULL, length, 1};
    return (lasting){lengths + b * length + (reverse ? length - 1 : 0), length, reverse ? -1 : 1};
}

/* Outside of the sequence, and for a number that cannot be, one. */
static int64_t lasts(lasting w, int64_t t) {
    int64_t count = t < 0 || t >= w.length ? 1 : w.p[t * w.step];
    return count < 1 ? 1 : count;
}

/* What the taps of a convolution see from each token of a span. */
typedef struct {
    int64_t sees_runs[CONV_SPAN / TILE]; /* whether any tap of a tile sees a token of more than one position */
    struct {
        int64_t lasts, sees_runs;
        const int64_t *back;
    } token[CONV_SPAN];
    int64_t back[]; /* how many tokens back the taps of its `width` first values see, from the farthest to its own last */
} past;

static int64_t past_size(int64_t width) {
    return (int64_t)sizeof(past) + CONV_SPAN * (2 * width - 1) * (int64_t)sizeof(int64_t);
}

/* Find it for the tokens from `first` to before `last`. */
static void look_back(lasting lengths, int64_t first, int64_t last, int64_t width, past *p) {
    int64_t ones = 0, *back = p->back; /* tokens of one position in a row, this one included */
    memset(p->sees_runs, 0, sizeof p->sees_runs);
    for (int64_t t = first + 1 - width; t < last; t++) {
        int64_t token = 0, left = 0, count = lasts(lengths, t), i = t - first;
        ones = count == 1 ? ones + 1 : 0;
        if (i < 0) continue;
        p->token[i].lasts = count, p->token[i].sees_runs = ones < width, p->token[i].back = back;
        p->sees_runs[i / TILE] |= ones < width;
        for (int64_t k = width - 2; k >= 0; k--, left--) {
            if (left == 0) left = lasts(lengths, t - ++token);
            back[k] = token;
        }
        for (int64_t k = width - 1; k < 2 * width - 1; k++) back[k] = 0;
        back += 2 * width - 1;
    }
}

/* The floats of scratch that the convolution of one channel block needs. */
static int64_t conv_scratch(int64_t width) { return (2 * width + 2 * TILE + 1) * BLOCK; }

/* Copy `steps` tokens of `width` channels into (count, BLOCK) scratch, zero elsewhere. */
static void gather(walk w, int64_t step, int64_t steps, int64_t width, int64_t count, float *scratch) {
    const float *p = w.p + step * w.t;
    if (steps < count || width < BLOCK) memset(scratch, 0, (size_t)(count * BLOCK) * sizeof(float));
    if (w.e == 1) {
        for (int64_t t = 0; t < steps; t++) memcpy(scratch + t * BLOCK, p + t * w.t, (size_t)width * sizeof(float));
        return;
    }
    for (int64_t c = 0; c < width; c++)
        for (int64_t t = 0; t < steps; t++) scratch[t * BLOCK + c] = p[c * w.e + t * w.t];
}

static void scatter(walk w, int64_t step, int64_t steps, int64_t width, const float *scratch) {
    float *p = w.p + step * w.t;
    if (w.e == 1) {
        for (int64_t t = 0; t < steps; t++) memcpy(p + t * w.t, scratch + t * BLOCK, (size_t)width * sizeof(float));
        return;
    }
    for (int64_t c = 0; c < width; c++)
        for (int64_t t = 0; t < steps; t++) p[c * w.e + t * w.t] = scratch[t * BLOCK + c];
}

/* Whole vectors can be read and written in place: a full block of neighbouring channels, a full tile. */
static int in_place(walk w, int64_t steps, int64_t width) { return w.e == 1 && width == BLOCK && steps == TILE; }

static const float *tile_in(walk w, int64_t step, int64_t steps, int64_t width, float *scratch, int64_t *stride) {
    if (in_place(w, steps, width)) {
        *stride = w.t;
        return w.p + step * w.t;
    }
    gather(w, step, steps, width, TILE, scratch);
    *stride = BLOCK;
    return scratch;
}

static float *tile_out(walk w, int64_t step, int64_t steps, int64_t width, float *scratch, int64_t *stride) {
    int direct = in_place(w, steps, width);
    *stride = direct ? w.t : BLOCK;
    return direct ? w.p + step * w.t : scratch;
}

static void tile_flush(walk w, int64_t step, int64_t steps, int64_t width, const float *scratch) {
    if (!in_place(w, steps, width)) scatter(w, step, steps, width, scratch);
}

/* Ask for the cache lines of tokens that are about to be read: they lie too far apart for the processor to foresee. */
static void fetch(walk w, int64_t step, int64_t length) {
    int64_t end = step + TILE < length ? step + TILE : length;
    if (w.p == NULL || w.e != 1) return;
    for (; step < end; step++) __builtin_prefetch(w.p + step * w.t);
}

/* Rows of B or C for one tile: in place, or padded with zeros where the sequence ends inside the tile. */
static const float *rows_in(walk w, int64_t step, int64_t steps, int64_t states, float *scratch, int64_t *stride) {
    const float *p = w.p + step * w.t;
    *stride = w.t;
    if (steps == TILE) return p;
    memset(scratch, 0, (size_t)(TILE * states) * sizeof(float));
    for (int64_t t = 0; t < steps; t++) memcpy(scratch + t * states, p + t * w.t, (size_t)states * sizeof(float));
    *stride = states;
    return scratch;
}
