/* A mixer, from projection to projection, as a chain of the jobs of jobs.h. */

typedef struct {
    float *conv_weight, *conv_bias; /* (inner, taps), and (inner) or absent */
    void *x_proj;                   /* (rank + 2 * states, inner) */
    float *dt_weight, *dt_bias;     /* (inner, rank), (inner) */
    float *A_log, *D;               /* (inner, states), (inner) */
} direction_weights;

/* Everything is contiguous; columns that fill_up adds are written too. The second direction runs backward. */
typedef struct {
    int64_t batch, length, width, inner, states, rank, taps, directions;
    int64_t chunk; /* samples that are taken through all steps before the next ones */
    int64_t sum_steps;
    int64_t half_src;          /* whether in_proj, out_proj and both x_proj are bfloat16 */
    int64_t half;              /* 0, or how the products with them are made, see project_job */
    double scale;              /* of what out_proj gives, a power of two */
    float *out;                /* (batch, length, filled_up(width)) */
    float *projected;          /* (directions, batch, length, filled_up(rank + 2 * states)) */
    float *step;               /* absent, or (batch, length, inner), or (batch, blocks, length) if sum_steps */
    float *ungated;            /* absent, or (batch, length, inner): the sum of the scans before the gate */
    float *xz, *u, *y;         /* (chunk, length, filled_up(2 * inner)), twice (chunk, length, inner) */
    float *packed;             /* every weight that is packed, with its columns filled up */
    float *hidden;             /* (batch, length, width) */
    void *in_proj, *out_proj;  /* (2 * inner, width), (width, inner) */
    direction_weights weights[2];
    int64_t *lengths;          /* (batch, length): how many positions each token lasts; absent: one */
    int64_t *left_out;         /* (directions, batch): scans that are left out; absent: none */
} mixer_job;

/* At most: weights that are packed, and steps of a chunk of samples, which are products and scans. */
enum { MIXER_PACKS = 8, MIXER_STEPS = 6 };

enum { MANY_TASKS = 32 }; /* of one step: the last of them keep threads waiting for little */

static int64_t filled_up(int64_t count) { return ceil_div(count, BLOCK) * BLOCK; }

/* The jobs so far, and where the next weight is packed. */
typedef struct {
    char *end;
    int64_t count;
    float *packed;
} chain;

typedef struct {
    float *in_proj, *out_proj, *x_proj[2], *dt_weight[2], *A[2];
} packed_weights;

static void append(chain *c, int64_t kind, const void *job, size_t bytes) {
    header h = {kind, (int64_t)bytes};
    memcpy(c->end, &h, sizeof h);
    memcpy(c->end + sizeof h, job, bytes);
    c->end += sizeof h + bytes;
    c->count++;
}

static float *append_packed(chain *c, pack_job job) {
    job.dst = c->packed;
    append(c, PACK, &job, sizeof job);
    c->packed += filled_up(job.columns) * job.channels;
    return job.dst;
}

static float *append_pack(chain *c, float *weight, int64_t columns, int64_t channels, double scale, int64_t decay) {
    pack_job job = {.columns = columns, .channels = channels, .decay = decay, .scale = scale, .src = weight};
    return append_packed(c, job);
}

/* Of a weight that may have 16 bits. */
static float *append_big_pack(chain *c, const mixer_job *m, void *weight, int64_t columns, int64_t channels, double scale) {
    pack_job job = {.columns = columns, .channels = channels, .scale = scale, .src = weight};
    job.half_src = m->half_src, job.half = m->half != 0;
    return append_packed(c, job);
}

static packed_weights append_packs(chain *c, const mixer_job *m) {
    int64_t E = m->inner, N = m->states, R = m->rank;
    packed_weights p = {.in_proj = append_big_pack(c, m, m->in_proj, 2 * E, m->width, 1.0)};
    for (int64_t i = 0; i < m->directions; i++) {
        const direction_weights *w = &m->weights[i];
        p.x_proj[i] = append_big_pack(c, m, w->x_proj, R + 2 * N, E, 1.0);
        p.dt_weight[i] = append_pack(c, w->dt_weight, E, R, 1.0, 0);
        p.A[i] = append_pack(c, w->A_log, E, N, LOG2E, 1);
    }
    p.out_proj = append_big_pack(c, m, m->out_proj, m->width, E, m->scale);
    return p;
}

/* Few tokens are cut into more tasks, so that threads end together; the results do not depend on it. */
static int64_t conv_span(int64_t tokens) {
    int64_t tiles = tokens / (MANY_TASKS * TILE);
    return TILE * (tiles < 1 ? 1 : tiles < CONV_SPAN / TILE ? tiles : CONV_SPAN / TILE);
}

static int64_t parts_of(int64_t tokens, int64_t columns) {
    int64_t parts = ceil_div(MANY_TASKS, ceil_div(tokens, TILE)), blocks = columns / BLOCK;
    return parts < blocks ? parts : blocks;
}

/* The product of tokens and a packed weight; samples one behind the other fill the tiles of the product. */
static void append_product(chain *c, const mixer_job *m, float *tokens, int64_t count, int64_t channels, float *weight, int64_t columns,
                           float *out) {
    int64_t all = filled_up(columns);
    project_job job = {{.batch = 1, .channels = channels, .length = count, .y = {tokens, 0, 1, channels}},
                       all, weight, {out, 0, 0, all}, TILE, parts_of(count, all), m->half, NULL};
    append(c, PROJECT, &job, sizeof job);
}

/* A view of samples from `first` on; an absent one stays absent. */
static view samples_from(view v, int64_t first) {
    if (v.p != NULL) v.p += first * v.b;
    return v;
}

/* One direction of the samples from `first` on: x is convolved to u, which is projected and scanned; what the scan gives
 * is added to y. */
static void append_direction(chain *c, const mixer_job *m, const packed_weights *p, int64_t i, int64_t first,
                             int64_t samples) {
    const direction_weights *w = &m->weights[i];
    int64_t B = samples, L = m->length, E = m->inner, N = m->states, R = m->rank;
    int64_t columns = filled_up(R + 2 * N), both = filled_up(2 * E);
    float *seen = m->projected + (i * m->batch + first) * L * columns;
    int64_t *lengths = m->lengths == NULL ? NULL : m->lengths + first * L;
    int64_t *left_out = m->left_out == NULL ? NULL : m->left_out + i * m->batch + first;
    view x = {m->xz, L * both, 1, both}, inside = {m->u, L * E, 1, E}, sum = {m->y, L * E, 1, E}, absent = {0};
    rows found = {seen, L * columns, 1, columns};
    int last = i == m->directions - 1;
    view gate = last ? (view){m->xz + E, L * both, 1, both} : absent;
    view step = m->sum_steps ? (view){m->step, ceil_div(E, BLOCK) * L, L, 1} : (view){m->step, L * E, 1, E};
    conv_job conv = {B, E, L, m->taps, 1, i == 1, .x = x, .y = inside};
    conv.weight = w->conv_weight, conv.bias = w->conv_bias, conv.lengths = lengths;
    project_job project = {conv, columns, p->x_proj[i], found, conv_span(B * L), 1, m->half, left_out};
    append(c, PROJECT, &project, sizeof project);
    scan_job scan = {.batch = B, .channels = E, .length = L, .states = N, .groups = 1, .softplus = 1};
    scan.reverse = i == 1, scan.rank = R, scan.add = i > 0, scan.sum_steps = m->sum_steps;
    scan.u = inside, scan.z = gate, scan.y = sum, scan.step = samples_from(step, first);
    if (last) scan.ungated = samples_from((view){m->ungated, L * E, 1, E}, first);
    scan.dt = scan.B = scan.C = found, scan.B.p = seen + R, scan.C.p = seen + R + N;
    scan.dt_weight = p->dt_weight[i], scan.A = p->A[i];
    scan.D = w->D, scan.bias = w->dt_bias, scan.lengths = lengths, scan.left_out = left_out;
    append(c, SCAN_FORWARD, &scan, sizeof scan);
}

static void append_mixer(chain *c, const mixer_job *m) {
    int64_t L = m->length, E = m->inner, D = m->width;
    c->packed = m->packed;
    packed_weights p = append_packs(c, m);
    for (int64_t first = 0; first < m->batch; first += m->chunk) {
        int64_t samples = m->batch - first < m->chunk ? m->batch - first : m->chunk;
        float *hidden = m->hidden + first * L * D, *out = m->out + first * L * filled_up(D);
        append_product(c, m, hidden, samples * L, D, p.in_proj, 2 * E, m->xz);
        for (int64_t i = 0; i < m->directions; i++) append_direction(c, m, &p, i, first, samples);
        append_product(c, m, m->y, samples * L, E, p.out_proj, D, out);
    }
}

/* How many jobs a mixer becomes, at most; none is larger than a scan. */
static int64_t most_jobs(const mixer_job *m) { return MIXER_PACKS + ceil_div(m->batch, m->chunk) * MIXER_STEPS; }
