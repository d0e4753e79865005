/* The arithmetic for one instruction set; native.c includes this file once per level.
 *
 * SUFFIX names the level, LANES is the floats in a vector, TARGET the function attribute. A vector holds
 * neighbouring channels, so a sum over states is an ordinary sum of vectors and no horizontal sums are needed.
 */
typedef float FN(vf) __attribute__((vector_size(LANES * 4)));
typedef float FN(uf) __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t FN(vi) __attribute__((vector_size(LANES * 4)));
#define vf FN(vf)
#define vi FN(vi)
#define INLINE static inline TARGET __attribute__((always_inline))
#define LOAD(p) ((vf)*(const FN(uf) *)(p))
#define STORE(p, v) (*(FN(uf) *)(p) = (FN(uf))(v))
#define PARTS(v) for (int v = 0; v < BLOCK; v += LANES)
#define VECTORS (BLOCK / LANES)     /* of a block of channels */
#define ROWS (LANES == 16 ? 16 : 4) /* tokens that are multiplied together, as many as registers do for */
#define TOGETHER (LANES == 16 ? 4 : 2) /* states that go through a tile together, likewise */
#define STEPS(t) for (int t = 0; t < TILE; t++)

#include "vectors.h"
#include "products.h"
#include "scan.h"
#include "scan_back.h"
#include "conv.h"
#include "pointwise.h"
#include "tokens.h"

#undef place
#undef block_grads
#undef vf
#undef vi
#undef INLINE
#undef LOAD
#undef STORE
#undef PARTS
#undef VECTORS
#undef ROWS
#undef TOGETHER
#undef STEPS
#undef SUFFIX
#undef LANES
#undef TARGET
#undef SHIFT
#undef ROOTS
#undef AVX2
#undef INTERLEAVE_LOW
#undef INTERLEAVE_HIGH
#undef HALF_PRODUCTS
#undef AVX512_EXP2
