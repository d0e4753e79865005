/* Selective scan and causal convolution for CPUs, forward and backward, whole mixers, and reductions of tokens.
 *
 * Python packs the jobs of jobs.h and calls one of the mtr_* functions with one job or more, of which each may need the
 * results of those before. A job is cut into independent tasks that the threads of a team take from a counter; which
 * thread runs a task never changes a result. The arithmetic is in the headers that kernels.h names, compiled three times
 * for three instruction sets into this one library; the caller chooses the level at run time.
 */
#include <float.h>
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)
#define FN(name) JOIN(name, SUFFIX)
#define LOG2E 1.4426950408889634f

#include "jobs.h"
#include "walks.h"
#include "ranking.h"
#include "halves.h"

/* Before a loop over sums that are to stay in registers: otherwise clang leaves 16 of them in memory, and GCC those
 * that a loop of another length reads. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* Move a pointer on. The assembler code is empty: it keeps the pointer in a register, as clang would otherwise find all
 * the addresses again each time. */
#define NEXT(pointer, count)         \
    do {                             \
        (pointer) += (count);        \
        __asm__("" : "+r"(pointer)); \
    } while (0)

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

/* A pair of channels of TILE tokens times BLOCK columns, each product of two pairs one instruction. */
HALVES static inline void multiply_pair(
    const uint16_t *const *third, int64_t K, int64_t e, const uint32_t *w, __m512 *sum) {
    __m512bh pairs = (__m512bh)_mm512_loadu_si512(w + e / 2 * BLOCK);
    UNROLL for (int i = 0; i < TILE; i++) {
        int32_t two;
        memcpy(&two, third[i / 3] + i % 3 * K + e, sizeof two);
        sum[i] = _mm512_dpbf16_ps(sum[i], pairs, (__m512bh)_mm512_set1_epi32(two));
    }
}

/* A tile of tokens times BLOCK columns of pairs of channels, as multiply_rows does it. Only `steps` tokens are written,
 * but there is memory for all. */
HALVES static void multiply_tile_halves(
    const uint16_t *tokens, int64_t steps, int64_t K, const uint32_t *w, float *out, int64_t stride) {
    enum { AT_ONCE = 4 };
    const uint16_t *third[(TILE + 2) / 3];
    __m512 sum[TILE];
    int64_t count = K;
    UNROLL for (int i = 0; i < TILE; i += 3) third[i / 3] = tokens + i * K;
    UNROLL for (int i = 0; i < TILE; i++) sum[i] = _mm512_setzero_ps();
    for (; count >= AT_ONCE; count -= AT_ONCE, w += AT_ONCE / 2 * BLOCK) {
        UNROLL for (int e = 0; e < AT_ONCE; e += 2) multiply_pair(third, K, e, w, sum);
        UNROLL for (int i = 0; i < TILE; i += 3) NEXT(third[i / 3], AT_ONCE);
    }
    if (count > 0) multiply_pair(third, K, 0, w, sum);
    UNROLL for (int i = 0; i < TILE; i++)
        if (i < steps) _mm512_storeu_ps(out + i * stride, sum[i]);
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
#include "team.h"

/* So that Python can refuse a library whose structs or tiling differ from what it packs: library.py has the same list. */
EXPORT void mtr_layout(int64_t *sizes) {
    const int64_t own[] = {TILE, BLOCK, TEAM_BLOCKS, sizeof(header), sizeof(scan_job), sizeof(conv_job),
                           sizeof(sum_job), sizeof(softplus_job), sizeof(project_job), sizeof(pack_job),
                           sizeof(norm_job), sizeof(match_job), sizeof(cosines_job), sizeof(slots_job), sizeof(merge_job), sizeof(split_job),
                           sizeof(by_turns_job), sizeof(neighbors_job), sizeof(links_job), sizeof(follow_job),
                           sizeof(round_job), sizeof(add_job), sizeof(narrow_job), sizeof(mixer_job)};
    memcpy(sizes, own, sizeof own);
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
