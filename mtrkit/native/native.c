/* Selective scan and causal convolution for CPUs, forward and backward.
 *
 * Python fills the job structs below (mtrkit/native/jobs.py packs them in the same order) and calls one of the
 * mtr_* functions with one job or more, of which each may need the results of those before. A job is cut into
 * independent tasks that the threads of a team take from a counter; which thread runs a task never changes a
 * result. The arithmetic is in the headers that
 * kernels.h names, compiled three times for three instruction sets into this one
 * library; the caller chooses the level at run time.
 */
#include <float.h>
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
__declspec(dllimport) int __stdcall SwitchToThread(void);
#define EXPORT __declspec(dllexport)
#define YIELD SwitchToThread
#else
#include <sched.h>
#define EXPORT __attribute__((visibility("default")))
#define YIELD sched_yield
#endif

#define BLOCK 16      /* channels handled together, at every level */
#define TILE 16       /* time steps handled together; a state checkpoint is kept per tile */
#define PAIR 2        /* states whose gradients are found together */
#define TEAM_BLOCKS 4 /* channel blocks whose contributions to dB and dC are summed inside one task */
#define SUM_SPAN 256  /* columns that one task of a sum adds up */
#define CONV_SPAN 64  /* tokens that one task of a convolution takes, which has to look back */
#define ADD_SPAN 8192 /* numbers that one task of a sum, or of a rounding, takes */
#define PACK_SPAN 4096 /* numbers that one task packs, if it packs more than a block of columns */
#define NORM_SPAN 32  /* rows that one task of a norm takes */
#define SPINS 4096    /* looks at the others' progress before a waiting thread yields its processor */

/* A (batch, channel, time) tensor of floats: address and strides in elements. A null address means absent. */
typedef struct {
    float *p;
    int64_t b, e, t;
} view;

/* A (batch, group, state, time) tensor whose states lie next to each other. */
typedef struct {
    float *p;
    int64_t b, g, t;
} rows;

typedef struct {
    int64_t batch, channels, length, states, groups, softplus, reverse;
    int64_t rank; /* 0, or delta is not given but the product of dt and dt_weight, one group only */
    int64_t add;  /* whether the output is added to what lies in y, before the gate */
    int64_t sum_steps;
    view u, delta, z, y, dy, du, ddelta, dz;
    /* Absent, or where the forward scan writes delta as it used it, or adds it as it adds its output; of each block
     * the sum over its channels if sum_steps, and the view is (batch, block, time). */
    view step;
    view ungated; /* absent, or where the forward scan writes its output as it is before the gate */
    rows B, C, dt;
    float *dt_weight;    /* packed like A, if there is a rank */
    float *A, *D, *bias; /* A is (channels, states), contiguous; with a rank times log2(e) and packed by a job */
    float *last, *dlast; /* (batch, states, channels), contiguous */
    float *checkpoints;  /* (batch, blocks, tiles, states, BLOCK): the state before each tile */
    float *sums;         /* (batch, blocks, states + 2, BLOCK): this sample's part of dA, dD, dbias */
    float *dBC;          /* (batch, groups, teams, length, 2 * states): each team's part of dB and dC */
    int64_t *lengths;    /* (batch, length): how many positions each token lasts; absent: one */
} scan_job;

typedef struct {
    int64_t batch, channels, length, width, silu, reverse;
    view x, y, dy, dx;
    float *weight, *bias; /* (channels, width), contiguous */
    float *sums;          /* (batch, blocks, width + 1, BLOCK): this sample's part of dweight, dbias */
    int64_t *lengths;     /* as in a scan */
} conv_job;

/* A matrix product of the tokens in conv.y, whose channels lie next to each other; unless its width is 0, the
 * convolution writes them there first. */
typedef struct {
    conv_job conv;
    int64_t columns; /* a multiple of BLOCK */
    void *weight;    /* (columns / BLOCK, channels, BLOCK), or (columns / BLOCK, channels / 2, BLOCK, 2) of 16 bits */
    rows out;        /* (batch, 1, columns, length) */
    int64_t span;    /* tokens that one task takes, a multiple of TILE, at most CONV_SPAN */
    int64_t parts;   /* into which the columns are cut for more tasks; 1 with a convolution */
    int64_t half;    /* 0, or the weights are bfloat16, and HALF_BY_INSTRUCTION if the processor multiplies these */
} project_job;

typedef struct {
    int64_t columns, channels;
    int64_t decay; /* whether what is packed is -exp(src) */
    int64_t half_src, half; /* whether bfloat16 is read, and whether it is packed as it is, in pairs of channels */
    double scale;  /* of what is packed */
    void *src;     /* (columns, channels) */
    float *dst;    /* (columns / BLOCK, channels, BLOCK), zeros after the last column */
} pack_job;

/* The root-mean-square norm of the sum of x and residual, row by row; all (rows, columns), contiguous. */
typedef struct {
    int64_t rows, columns;
    int64_t half; /* whether x is bfloat16 */
    double eps;
    void *x;
    float *residual, *weight, *sum, *normed;
} norm_job;

/* For each source row of a sample the target row most alike by cosine; of those that are equal up to rounding the
 * first. */
typedef struct {
    int64_t batch, length, channels, sources, targets;
    float *metric;              /* (batch, length, channels), contiguous */
    int64_t *src, *dst, *found; /* (batch, sources), (batch, targets), (batch, sources), contiguous */
    int64_t *wrong;             /* set to 1 if an index is out of range */
} match_job;

/* The cosine of each token `a` of a sample to its token `b`. */
typedef struct {
    int64_t batch, length, channels, pairs;
    float *metric;   /* (batch, length, channels), contiguous */
    int64_t *a, *b;  /* (batch, pairs), contiguous */
    float *found;    /* (batch, pairs) */
    int64_t *wrong;  /* as above */
} cosines_job;

/* Tokens by their scores, the best first and of equal ones the earlier: the special ones and the `top` best, the `bottom`
 * worst, and those between, each group in sequence order. */
typedef struct {
    int64_t batch, length, specials, top, bottom;
    float *score;               /* (batch, length), contiguous, as are the others; NaN ranks last */
    int64_t *special;           /* (batch, specials), each token once */
    int64_t *keep, *dst, *src;  /* (batch, specials + top), (batch, the rest), (batch, bottom) */
    int64_t *wrong;             /* as above */
} split_job;

/* The tokens that are not special, by turns to the first half and to the second, which may be the shorter one. */
typedef struct {
    int64_t batch, length, specials;
    int64_t *special;        /* (batch, specials), each token once, contiguous, as are the others */
    int64_t *first, *second; /* (batch, half the others, rounded up), (batch, the rest) */
    int64_t *wrong;          /* as above */
} by_turns_job;

/* Every second token that is not special, beginning with the first, and which of the two beside it is the more alike by
 * cosine, the one before if both are. Of those that should stay apart the likeness is the least that there is. */
typedef struct {
    int64_t batch, length, channels, specials;
    int64_t across, protect;    /* whether a special token may lie between two; whether those beside one stay alone */
    float *metric;              /* (batch, length, channels), contiguous, as are the others */
    int64_t *special;           /* (batch, specials), each token once */
    int64_t *src, *target;      /* (batch, half of the tokens that are not special, rounded up), these at least two */
    float *likeness;            /* the same */
    int64_t *wrong;             /* as above */
} neighbors_job;

/* The `best` links of greatest strength, the strongest first and of equal ones the earlier; NaN is the greatest. */
typedef struct {
    int64_t batch, links, best;
    int64_t *src, *target;            /* (batch, links), contiguous, as are the others */
    float *strength;                  /* the same */
    int64_t *best_src, *best_target;  /* (batch, best) */
} links_job;

/* Where a slot of each place leads; -1 stays -1. */
typedef struct {
    int64_t batch, places, length;
    int64_t *before, *slot, *after; /* (batch, places), (batch, length), (batch, places), contiguous */
    int64_t *wrong;                 /* as above */
} follow_job;

/* What is rounded to whole numbers, halves to even ones. */
typedef struct {
    int64_t count;
    float *src;
    int64_t *dst;
} round_job;

typedef struct {
    int64_t count;
    float *a, *b, *sum;
} add_job;

/* Numbers that are rounded to those of 16 bits, and stay floats. */
typedef struct {
    int64_t count;
    int64_t to_bfloat16; /* otherwise to float16 */
    float *x;
} narrow_job;

/* The tokens that stay, numbered in their order in the sequence if `ordered`; those that merge get their target's
 * number, all others -1. */
typedef struct {
    int64_t batch, length, kept, merged, ordered;
    int64_t *keep;           /* (batch, kept), contiguous, as are the others; absent: all that do not merge, in order */
    int64_t *merge, *target; /* (batch, merged) */
    int64_t *slot, *sequence;       /* (batch, length), (batch, kept): the numbers, and who has them */
    int64_t *wrong;                 /* as above */
} slots_job;

/* At each slot the sum, or the mean, or the mean by weights, of the tokens that go there; those of slot -1 are lost. */
typedef struct {
    int64_t batch, length, slots, channels, mean;
    int64_t *slot;          /* (batch, length), contiguous, as are the others */
    float *src, *weight;    /* (batch, length, channels), and (batch, length) or absent */
    float *dst;             /* (batch, slots, channels) */
    int64_t *wrong;         /* as above */
} merge_job;

/* Sums over the middle, divided. */
typedef struct {
    int64_t outer, count, inner;
    double divisor;
    float *src, *dst; /* (outer, count, inner) -> (outer, inner) */
} sum_job;

typedef struct {
    int64_t batch, channels, length;
    view x, y;
    float *bias; /* (channels), or absent */
} softplus_job;

/* What lies in front of every job; jobs lie one behind the other. */
typedef struct {
    int64_t kind, bytes; /* of the job */
} header;

enum { SCAN_FORWARD, SCAN_BACKWARD, CONV_FORWARD, CONV_BACKWARD, SUM, SOFTPLUS, PROJECT, PACK, NORM, MATCH, COSINES, SLOTS, MERGE, SPLIT, BY_TURNS, NEIGHBORS, LINKS,
       FOLLOW, ROUND, ADD, NARROW, MIXER };

enum { HALF_BY_INSTRUCTION = 2 };

/* Columns that one task packs: a whole number of blocks, more of them if they are short. */
static int64_t pack_span(const pack_job *j) {
    int64_t blocks = PACK_SPAN / (j->channels * BLOCK);
    return (blocks > 1 ? blocks : 1) * BLOCK;
}

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t blocks_per_group(const scan_job *j) { return ceil_div(j->channels / j->groups, BLOCK); }
static int64_t teams_per_group(const scan_job *j) { return ceil_div(blocks_per_group(j), TEAM_BLOCKS); }

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

#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)
#define FN(name) JOIN(name, SUFFIX)
#define LOG2E 1.4426950408889634f

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

enum { KEEP, BETWEEN, LEAVE };

static void split_task(const void *job, int64_t b, float *scratch) {
    const split_job *j = job;
    int64_t L = j->length, count = 0, between = L - j->specials - j->top - j->bottom;
    ranked *others = (ranked *)scratch;
    int32_t *group = (int32_t *)(others + L);
    for (int64_t t = 0; t < L; t++) group[t] = BETWEEN;
    for (int64_t i = 0; i < j->specials; i++) {
        int64_t t = j->special[b * j->specials + i];
        if (t < 0 || t >= L || group[t] == KEEP) {
            *j->wrong = 1;
            return;
        }
        group[t] = KEEP;
    }
    for (int64_t t = 0; t < L; t++) {
        float score = j->score[b * L + t];
        score = score != score || score < -FLT_MAX ? -FLT_MAX : score > FLT_MAX ? FLT_MAX : score;
        if (group[t] != KEEP) others[count++] = (ranked){score, (int32_t)t};
    }
    qsort(others, (size_t)count, sizeof(ranked), by_rank);
    for (int64_t i = 0; i < j->top; i++) group[others[i].token] = KEEP;
    for (int64_t i = count - j->bottom; i < count; i++) group[others[i].token] = LEAVE;
    int64_t *to[] = {j->keep + b * (j->specials + j->top), j->dst + b * between, j->src + b * j->bottom};
    for (int64_t t = 0; t < L; t++) *to[group[t]]++ = t;
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

/* bfloat16 is the upper half of a float. */
static inline float widened(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

/* To the nearest, of two as near the even one; NaN stays NaN. */
static inline uint16_t narrowed(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded);
}

/* The float16 nearest to x, as a float: 11 bits, or multiples of 2^-24, which are the steps of floats at 0.5. */
static inline float as_float16(float x) {
    uint32_t bits, sign, magnitude;
    memcpy(&bits, &x, sizeof bits);
    sign = bits & 0x80000000, magnitude = bits & 0x7fffffff;
    uint32_t rounded = (magnitude + 0xfff + (magnitude >> 13 & 1)) & ~0x1fffu;
    float small = (fabsf(x) + 0.5f) - 0.5f;
    if (magnitude < 0x38800000) memcpy(&rounded, &small, sizeof rounded);
    if (rounded > 0x477fe000) rounded = 0x7f800000;
    if (magnitude > 0x7f800000) rounded = 0x7fc00000;
    rounded |= sign;
    memcpy(&x, &rounded, sizeof x);
    return x;
}

/* Compilers without a shuffle of two vectors (GCC before 12) pack number by number. */
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLES
#endif
#endif

#define SUFFIX _base
#define LANES 4
#define TARGET
#ifdef SHUFFLES
#define INTERLEAVE_LOW(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define INTERLEAVE_HIGH(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
#endif
#include "kernels.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#include <immintrin.h>

#define SUFFIX _avx2
#define LANES 8
#define TARGET __attribute__((target("avx2,fma")))
#define AVX2
#ifdef SHUFFLES
#define INTERLEAVE_LOW(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define INTERLEAVE_HIGH(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#endif
#include "kernels.h"

#define HALVES __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

/* Each to the nearest bfloat16, BLOCK at a time, and how many were rounded. */
HALVES static int64_t narrow_blocks(const float *src, int64_t count, uint16_t *dst) {
    int64_t i = 0;
    for (; i + BLOCK <= count; i += BLOCK)
        _mm256_storeu_si256((__m256i *)(dst + i), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(src + i)));
    return i;
}

/* A tile of tokens times BLOCK columns of pairs of channels, each product of two pairs one instruction. */
HALVES static void multiply_tile_halves(
    const uint16_t *tokens, int64_t steps, int64_t K, const uint32_t *w, float *out, int64_t stride) {
    __m512 sum[TILE];
    const uint16_t *row[TILE];
    for (int i = 0; i < TILE; i++) {
        row[i] = tokens + (i < steps ? i : 0) * K;
        sum[i] = _mm512_setzero_ps();
    }
    for (int64_t e = 0; e < K; e += 2) {
        __m512i pairs = _mm512_loadu_si512(w + e / 2 * BLOCK);
        for (int i = 0; i < TILE; i++) {
            int32_t two;
            memcpy(&two, row[i] + e, sizeof two);
            sum[i] = _mm512_dpbf16_ps(sum[i], (__m512bh)pairs, (__m512bh)_mm512_set1_epi32(two));
        }
    }
    for (int64_t i = 0; i < steps; i++) _mm512_storeu_ps(out + i * stride, sum[i]);
}

#define SUFFIX _avx512
#define HALF_PRODUCTS
#define LANES 16
#define TARGET __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")))
#define AVX512_EXP2
#ifdef SHUFFLES
#define INTERLEAVE_LOW(a, b) __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define INTERLEAVE_HIGH(a, b) \
    __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#endif
#include "kernels.h"
#endif

/* Levels: 0 baseline (SSE2 or NEON), 1 AVX2 with FMA, 2 AVX-512. Asked of the processor directly, since not every
 * compiler brings a runtime with __builtin_cpu_supports. */
EXPORT int mtr_best_level(void) {
#if defined(__x86_64__) || defined(_M_X64)
    const unsigned fma = 1u << 12, osxsave = 1u << 27, avx2 = 1u << 5;
    const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & fma) || !(c & osxsave)) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & avx2)) return 0;
    /* The operating system has to save the wide registers too. */
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 0x06) != 0x06) return 0;
    return (b & avx512) == avx512 && (low & 0xe6) == 0xe6 ? 2 : 1;
#else
    return 0;
#endif
}

/* Whether the processor multiplies pairs of bfloat16; AVX-512 comes with it. */
EXPORT int mtr_has_half_products(void) {
#if defined(__x86_64__) || defined(_M_X64)
    unsigned a, b, c, d;
    return mtr_best_level() == 2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 5) != 0;
#else
    return 0;
#endif
}

#include "mixer.h"

/* So that Python can refuse a library whose structs or tiling differ from what it packs: library.py has the same list. */
EXPORT void mtr_layout(int64_t *sizes) {
    const int64_t own[] = {TILE, BLOCK, TEAM_BLOCKS, sizeof(header), sizeof(scan_job), sizeof(conv_job),
                           sizeof(sum_job), sizeof(softplus_job), sizeof(project_job), sizeof(pack_job),
                           sizeof(norm_job), sizeof(match_job), sizeof(cosines_job), sizeof(slots_job), sizeof(merge_job), sizeof(split_job),
                           sizeof(by_turns_job), sizeof(neighbors_job), sizeof(links_job), sizeof(follow_job),
                           sizeof(round_job), sizeof(add_job), sizeof(narrow_job), sizeof(mixer_job)};
    memcpy(sizes, own, sizeof own);
}

/* How many tasks a job has, and how many floats of scratch a thread needs for one. */
typedef struct {
    int64_t tasks, scratch;
} work_size;

static work_size scan_forward_size(const void *job) {
    const scan_job *j = job;
    return (work_size){j->batch * j->groups * blocks_per_group(j), (2 * j->states + 9 * TILE) * BLOCK};
}

static work_size scan_backward_size(const void *job) {
    const scan_job *j = job;
    int64_t gradients = TEAM_BLOCKS * (3 * j->states + 4) * BLOCK;
    int64_t tiles = 2 * TILE * j->states * (BLOCK + 1); /* fewer where a vector is less than a block */
    return (work_size){j->batch * j->groups * teams_per_group(j), gradients + tiles + 13 * TILE * BLOCK};
}

static work_size conv_size(const void *job) {
    const conv_job *j = job;
    int64_t floats = (4 * j->width + 3 * TILE + 2) * BLOCK + past_size(j->width) / (int64_t)sizeof(float);
    return (work_size){j->batch * ceil_div(j->channels, BLOCK), floats};
}

static work_size softplus_size(const void *job) {
    const softplus_job *j = job;
    return (work_size){j->batch * ceil_div(j->channels, BLOCK), (2 * TILE + 1) * BLOCK};
}

static work_size project_size(const void *job) {
    const project_job *j = job;
    int64_t tasks = j->conv.batch * ceil_div(j->conv.length, j->span) * j->parts;
    int64_t past = past_size(j->conv.width) / (int64_t)sizeof(float), halves = TILE * j->conv.channels / 2;
    return (work_size){tasks, conv_scratch(j->conv.width) + (past > halves ? past : halves)};
}

static work_size pack_size(const void *job) {
    const pack_job *j = job;
    return (work_size){ceil_div(j->columns, pack_span(j)), j->half_src && !j->half ? BLOCK * j->channels : 0};
}

static work_size norm_size(const void *job) {
    const norm_job *j = job;
    return (work_size){ceil_div(j->rows, NORM_SPAN), 0};
}

static work_size match_size(const void *job) {
    const match_job *j = job;
    int64_t columns = ceil_div(j->targets, BLOCK) * BLOCK;
    return (work_size){j->batch, (columns + BLOCK) * j->channels + columns * BLOCK};
}

static work_size cosines_size(const void *job) {
    const cosines_job *j = job;
    return (work_size){j->batch, 0};
}

static work_size slots_size(const void *job) {
    const slots_job *j = job;
    return (work_size){j->batch, 0};
}

static work_size merge_size(const void *job) {
    const merge_job *j = job;
    return (work_size){j->batch, 2 * j->slots};
}

static work_size split_size(const void *job) {
    const split_job *j = job;
    return (work_size){j->batch, j->length * (int64_t)(sizeof(ranked) + sizeof(int32_t)) / (int64_t)sizeof(float) + 1};
}

static work_size by_turns_size(const void *job) {
    const by_turns_job *j = job;
    return (work_size){j->batch, j->length};
}

static work_size neighbors_size(const void *job) {
    const neighbors_job *j = job;
    return (work_size){j->batch, 2 * j->length};
}

static work_size links_size(const void *job) {
    const links_job *j = job;
    return (work_size){j->batch, j->links * (int64_t)sizeof(strong) / (int64_t)sizeof(float)};
}

static work_size follow_size(const void *job) {
    const follow_job *j = job;
    return (work_size){j->batch, 0};
}

static work_size round_size(const void *job) {
    (void)job;
    return (work_size){1, 0};
}

static work_size add_size(const void *job) {
    const add_job *j = job;
    return (work_size){ceil_div(j->count, ADD_SPAN), 0};
}

static work_size narrow_size(const void *job) {
    const narrow_job *j = job;
    return (work_size){ceil_div(j->count, ADD_SPAN), 0};
}

static work_size sum_size(const void *job) {
    const sum_job *j = job;
    return (work_size){j->outer * ceil_div(j->inner, SUM_SPAN), 0};
}

/* What a kind of job is: its task at each level, and its size. */
typedef struct {
    void (*run[3])(const void *job, int64_t task, float *scratch);
    work_size (*size)(const void *job);
} job_kind;

#if defined(__x86_64__) || defined(_M_X64)
#define LEVELS(name) {name##_task_base, name##_task_avx2, name##_task_avx512}
#else
#define LEVELS(name) {name##_task_base, name##_task_base, name##_task_base}
#endif
static const job_kind kinds[] = {
    [SCAN_FORWARD] = {LEVELS(scan_forward), scan_forward_size},
    [SCAN_BACKWARD] = {LEVELS(scan_backward), scan_backward_size},
    [CONV_FORWARD] = {LEVELS(conv_forward), conv_size},
    [CONV_BACKWARD] = {LEVELS(conv_backward), conv_size},
    [SUM] = {LEVELS(sum), sum_size},
    [SOFTPLUS] = {LEVELS(softplus), softplus_size},
    [PROJECT] = {LEVELS(project), project_size},
    [PACK] = {LEVELS(pack), pack_size},
    [NORM] = {LEVELS(norm), norm_size},
    [MATCH] = {LEVELS(match), match_size},
    [COSINES] = {LEVELS(cosines), cosines_size},
    [SLOTS] = {LEVELS(slots), slots_size},
    [MERGE] = {LEVELS(merge), merge_size},
    [SPLIT] = {{split_task, split_task, split_task}, split_size},
    [BY_TURNS] = {{by_turns_task, by_turns_task, by_turns_task}, by_turns_size},
    [NEIGHBORS] = {LEVELS(neighbors), neighbors_size},
    [LINKS] = {{links_task, links_task, links_task}, links_size},
    [FOLLOW] = {{follow_task, follow_task, follow_task}, follow_size},
    [ROUND] = {{round_task, round_task, round_task}, round_size},
    [ADD] = {LEVELS(add), add_size},
    [NARROW] = {LEVELS(narrow), narrow_size},
};

typedef struct {
    int level;
    int64_t count;
    const header *jobs;
    _Atomic int64_t *shared; /* whether memory ran out, then of every job how many tasks are taken and how many done */
} team;

static const header *after(const header *h) { return (const header *)((const char *)(h + 1) + h->bytes); }

/* The most tasks and the most scratch of any job. */
static void measure_all(const team *t, int64_t *tasks, int64_t *scratch) {
    const header *h = t->jobs;
    *tasks = *scratch = 0;
    for (int64_t k = 0; k < t->count; k++, h = after(h)) {
        work_size size = kinds[h->kind].size(h + 1);
        if (size.tasks > *tasks) *tasks = size.tasks;
        if (size.scratch > *scratch) *scratch = size.scratch;
    }
}

/* Take tasks until none is left. */
static void share_job(const header *h, int level, _Atomic int64_t *taken, _Atomic int64_t *done, float *scratch) {
    const job_kind *kind = &kinds[h->kind];
    int64_t tasks = kind->size(h + 1).tasks;
    for (int64_t task; (task = atomic_fetch_add(taken, 1)) < tasks; atomic_fetch_add(done, 1))
        kind->run[level](h + 1, task, scratch);
}

/* Wait for the tasks that others still work on. The wait is for tasks, not for threads, as some may never come. */
static void wait_for(const header *h, _Atomic int64_t *done) {
    int64_t tasks = kinds[h->kind].size(h + 1).tasks;
    for (int spins = 0; atomic_load(done) < tasks; spins++)
        if (spins > SPINS) YIELD();
}

static void work(void *data) {
    team *t = data;
    int64_t tasks, floats;
    measure_all(t, &tasks, &floats);
    char *memory = malloc((size_t)floats * sizeof(float) + 64);
    if (memory == NULL) {
        atomic_store(t->shared, 1);
        return;
    }
    float *scratch = (float *)(((uintptr_t)memory + 63) & ~(uintptr_t)63);
    const header *h = t->jobs, *waits = h;
    _Atomic int64_t *done = t->shared + 2;
    for (int64_t k = 0; k < t->count; k++, h = after(h)) {
        share_job(h, t->level, t->shared + 1 + 2 * k, t->shared + 2 + 2 * k, scratch);
        /* A pack needs nothing that packs before it do. */
        if (h->kind == PACK && k + 1 < t->count && after(h)->kind == PACK) continue;
        for (; waits <= h; waits = after(waits), done += 2) wait_for(waits, done);
    }
    free(memory);
}

/* The most bytes that mtr_expand writes. */
EXPORT int64_t mtr_expanded_size(const void *jobs, int64_t count) {
    int64_t bytes = 0;
    const header *h = jobs;
    for (int64_t k = 0; k < count; k++, h = after(h)) {
        int64_t most = h->kind == MIXER ? most_jobs((const mixer_job *)(h + 1)) : 1;
        int64_t each = h->kind == MIXER ? (int64_t)sizeof(scan_job) : h->bytes;
        bytes += most * ((int64_t)sizeof(header) + each);
    }
    return bytes;
}

/* The same chain with the jobs of every mixer in its place; returns how many jobs it has. */
EXPORT int64_t mtr_expand(const void *jobs, int64_t count, void *expanded) {
    chain c = {expanded, 0, NULL};
    const header *h = jobs;
    for (int64_t k = 0; k < count; k++, h = after(h)) {
        if (h->kind == MIXER)
            append_mixer(&c, (const mixer_job *)(h + 1));
        else
            append(&c, h->kind, h + 1, (size_t)h->bytes);
    }
    return c.count;
}

typedef void (*parallel_fn)(void (*fn)(void *), void *data, unsigned threads, unsigned flags);

/* Join a team that runs jobs one after the other; `shared` is all zero at first. Any number of threads may call this
 * for the same jobs, at any time. */
EXPORT void mtr_join(int level, const void *jobs, int64_t count, int64_t *shared) {
    team t = {level, count, jobs, (_Atomic int64_t *)shared};
    work(&t);
}

/* The same with a team of threads of the OpenMP runtime that is loaded already, whose GOMP_parallel is `parallel`, or
 * with this thread alone if that is null. */
EXPORT void mtr_run(int level, const void *jobs, int64_t count, int64_t *shared, parallel_fn parallel, int threads) {
    team t = {level, count, jobs, (_Atomic int64_t *)shared};
    int64_t tasks, unused;
    measure_all(&t, &tasks, &unused);
    if (tasks < threads) threads = (int)tasks;
    if (parallel != NULL && threads > 1)
        parallel(work, &t, (unsigned)threads, 0);
    else
        work(&t);
}
