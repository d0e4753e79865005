/* How large each kind of job is, what runs it, and how the threads of a team share the tasks of a chain of jobs. */

#if defined(_WIN32)
__declspec(dllimport) int __stdcall SwitchToThread(void);
#define YIELD SwitchToThread
#else
#include <sched.h>
#define YIELD sched_yield
#endif
#define SPINS 4096 /* looks at the others' progress before a waiting thread yields its processor */

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
