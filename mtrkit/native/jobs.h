/* What a job is told, kind by kind: jobs.py packs the same fields in the same order. */

#define BLOCK 16      /* channels handled together, at every level */
#define TILE 16       /* time steps handled together; a state checkpoint is kept per tile */
#define PAIR 2        /* states whose gradients are found together */
#define TEAM_BLOCKS 4 /* channel blocks whose contributions to dB and dC are summed inside one task */
#define SUM_SPAN 256  /* columns that one task of a sum adds up */
#define CONV_SPAN 64  /* tokens that one task of a convolution takes, which has to look back */
#define ADD_SPAN 8192 /* numbers that one task of a sum, or of a rounding, takes */
#define PACK_SPAN 4096 /* numbers that one task packs, if it packs more than a block of columns */
#define NORM_SPAN 32  /* rows that one task of a norm takes */

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
    int64_t *left_out;   /* (batch): whether the forward scan adds nothing for this sample; absent: for none */
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
    int64_t *left_out; /* (batch): samples for which nothing is done; absent: none */
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

enum {
    SCAN_FORWARD, SCAN_BACKWARD, CONV_FORWARD, CONV_BACKWARD, SUM, SOFTPLUS, PROJECT, PACK, NORM, MATCH, COSINES, SLOTS,
    MERGE, SPLIT, BY_TURNS, NEIGHBORS, LINKS, FOLLOW, ROUND, ADD, NARROW, MIXER
};

enum { HALF_BY_INSTRUCTION = 2 };

/* Columns that one task packs: a whole number of blocks, more of them if they are short. */
static int64_t pack_span(const pack_job *j) {
    int64_t blocks = PACK_SPAN / (j->channels * BLOCK);
    return (blocks > 1 ? blocks : 1) * BLOCK;
}

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t blocks_per_group(const scan_job *j) { return ceil_div(j->channels / j->groups, BLOCK); }
static int64_t teams_per_group(const scan_job *j) { return ceil_div(blocks_per_group(j), TEAM_BLOCKS); }
