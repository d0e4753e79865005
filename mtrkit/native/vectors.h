/* Vectors of neighbouring channels, and the functions of them that a scan needs. */

INLINE vf FN(splat)(float x) { return x - (vf){0}; }

/* Of pairs of 16-bit numbers (bfloat16, the upper half of a float) the first ones and the second ones. */
INLINE vf FN(low_half)(vf pairs) { return (vf)((vi)pairs << 16); }
INLINE vf FN(high_half)(vf pairs) { return (vf)((vi)pairs & -65536); }

INLINE void FN(widen)(const uint16_t *src, int64_t count, float *dst) {
    for (int64_t i = 0; i < count; i++) dst[i] = widened(src[i]);
}

INLINE void FN(narrow)(const float *src, int64_t count, uint16_t *dst) {
    for (int64_t i = 0; i < count; i++) dst[i] = narrowed(src[i]);
}

INLINE vf FN(choose)(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }

/* 2^x to about 1e-7 relative: x is k / ROOTS and a rest, 2^(k / ROOTS) a power of two times a root of two from a table
 * that fits into registers, and the more roots there are, the shorter is the polynomial of the rest. It is exactly 1
 * at 0, so a state that should not decay does not drift. Coefficients: minimax of (2^f - 1) / f for
 * |f| <= 1 / (2 * ROOTS), weighted by 2^-f. */
#if defined(AVX512_EXP2)
#define ROOTS 32
#elif defined(AVX2)
#define ROOTS 8
#else
#define ROOTS 1
#endif

/* 1.5 * 2^23 / ROOTS + 127: added to x, the integer nearest to x * ROOTS sits in the low mantissa bits, what is whole
 * of x biased as an exponent is. */
#define SHIFT (12582912.0f / ROOTS + 127.0f)

INLINE vf FN(exp2_rest)(vf f) {
#if ROOTS == 32
    vf p = f * 0.24022649737521082f + 0.6931573297731858f;
#elif ROOTS == 8
    vf p = f * 0.05549622179405853f + 0.24025762978391063f;
    p = p * f + 0.693147214260269f;
#else
    vf p = f * 0.001326472731307149f + 0.009671512991189957f;
    p = p * f + 0.05550733581185341f;
    p = p * f + 0.24022242426872253f;
    p = p * f + 0.6931470036506653f;
#endif
    return p * f + 1.0f;
}

#if ROOTS == 32
/* 2^(k / 32) for k from 0 on. */
static const float FN(roots)[ROOTS] = {
    1.0f, 1.0218972f, 1.0442737f, 1.0671405f, 1.0905077f, 1.1143868f, 1.1387886f, 1.1637249f,
    1.1892071f, 1.2152474f, 1.2418578f, 1.269051f, 1.2968396f, 1.3252367f, 1.3542556f, 1.38391f,
    1.4142135f, 1.4451808f, 1.4768262f, 1.5091645f, 1.5422108f, 1.5759809f, 1.6104903f, 1.6457555f,
    1.6817929f, 1.7186193f, 1.7562522f, 1.7947091f, 1.8340081f, 1.8741677f, 1.9152066f, 1.9571441f};

INLINE vf FN(exp2)(vf x) {
    /* Compilers would fuse the product that x is with both sums; additions have units of their own. */
    __asm__("" : "+v"(x));
    vf shifted = x + SHIFT, whole = shifted - SHIFT;
    __m512 root = _mm512_permutex2var_ps(_mm512_loadu_ps(FN(roots)), (__m512i)shifted, _mm512_loadu_ps(FN(roots) + 16));
    /* inf - inf is NaN: at an infinite x the rest does not matter, scalef gives 0 or inf. It rounds `whole` down. */
    return (vf)_mm512_scalef_ps((__m512)(FN(exp2_rest)(x - whole) * (vf)root), (__m512)whole);
}
#else
#ifdef AVX2
/* NaN stays NaN: of two numbers that cannot be compared these instructions give the second. */
INLINE vf FN(between)(float low, float high, vf x) {
    return (vf)_mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), (__m256)x));
}
#else
INLINE vf FN(between)(float low, float high, vf x) {
    x = FN(choose)(x < low, FN(splat)(low), x);
    return FN(choose)(x > high, FN(splat)(high), x);
}
#endif

#ifdef AVX2
/* The bits of 2^(k / 8) for k from 0 on, less those of k / 8 as part of an exponent, and less the bias. */
static const int32_t FN(roots)[ROOTS] = {0, -289342, -509968, -655657, -719629, -694486, -572163, -343865};
#endif

/* 2^(k / ROOTS), where `shifted` is k / ROOTS + SHIFT. */
INLINE vi FN(exp2_whole)(vf shifted) {
#ifdef AVX2
    __m256i root = _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i *)FN(roots)), (__m256i)shifted);
    return (vi)root + ((vi)shifted << 20);
#else
    return (vi)shifted << 23;
#endif
}

/* 2^(k / ROOTS + f). A product, not an addition to the exponent: NaN stays NaN. */
INLINE vf FN(exp2_parts)(vf shifted, vf f) { return FN(exp2_rest)(f) * (vf)FN(exp2_whole)(shifted); }

INLINE vf FN(exp2)(vf x) {
    x = FN(between)(-126.0f, 128.0f, x);
    vf shifted = x + SHIFT;
    return FN(exp2_parts)(shifted, x - (shifted - SHIFT));
}
#endif

/* 2^(step * rate), bounds left out where the caller knows that the exponent is within +-126: the same bits. */
INLINE vf FN(decay)(vf step, vf rate, int small) {
#ifdef AVX2
    vf shifted = (vf)_mm256_fmadd_ps((__m256)step, (__m256)rate, _mm256_set1_ps(SHIFT));
    if (!small) shifted = FN(between)(SHIFT - 126.0f, SHIFT + 128.0f, shifted);
    vf f = (vf)_mm256_fmsub_ps((__m256)step, (__m256)rate, (__m256)(shifted - SHIFT));
    return FN(exp2_parts)(shifted, small ? f : FN(between)(-0.5f / ROOTS, 0.5f / ROOTS, f));
#else
    (void)small;
    return FN(exp2)(step * rate);
#endif
}

INLINE vf FN(sigmoid)(vf x) { return 1.0f / (1.0f + FN(exp2)(x * -LOG2E)); }

/* log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)), and log1p(w) = 2 atanh(w / (2 + w)): accurate at both ends.
 * Above 20 the second term is below the rounding of the first, so this is the identity there as it should be. */
INLINE vf FN(softplus)(vf x) {
    vf positive = FN(choose)(x > 0.0f, x, FN(splat)(0.0f));
    vf w = FN(exp2)((x - 2.0f * positive) * LOG2E);
    vf s = w / (w + 2.0f);
    vf q = s * s;
    vf p = q * 0.2817833423614502f + 0.27960604429244995f;
    p = p * q + 0.40024909377098083f;
    p = p * q + 0.6666631698608398f;
    return positive + s * (p * q + 2.0f);
}
