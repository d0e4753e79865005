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

/* 2^x to about 1e-7 relative. The polynomial is exactly 1 at 0, so a state that should not decay does not drift.
 * Coefficients: minimax of (2^f - 1) / f on [-1/2, 1/2], weighted by 2^-f. */
INLINE vf FN(exp2_fraction)(vf f) {
    vf p = f * 0.001326472731307149f + 0.009671512991189957f;
    p = p * f + 0.05550733581185341f;
    p = p * f + 0.24022242426872253f;
    p = p * f + 0.6931470036506653f;
    return p * f + 1.0f;
}

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

/* 1.5 * 2^23 + 127: added to x, the integer nearest to it sits in the low mantissa bits, biased as an exponent is. */
#define SHIFT 12583039.0f

/* 2^(whole + f), where `shifted` is whole + SHIFT. A product, not an addition to the exponent: NaN stays NaN. */
INLINE vf FN(exp2_parts)(vf shifted, vf f) { return FN(exp2_fraction)(f) * (vf)((vi)shifted << 23); }

INLINE vf FN(exp2)(vf x) {
#ifdef AVX512_EXP2
    __m512 whole = _mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    vf f = x - (vf)whole;
    /* inf - inf is NaN: at an infinite x the fraction does not matter, scalef gives 0 or inf. */
    return (vf)_mm512_scalef_ps((__m512)FN(exp2_fraction)(f), whole);
#else
    x = FN(between)(-126.0f, 128.0f, x);
    vf shifted = x + SHIFT;
    return FN(exp2_parts)(shifted, x - (shifted - SHIFT));
#endif
}

/* 2^(step * rate), bounds left out where the caller knows that the exponent is within +-126: the same bits. */
INLINE vf FN(decay)(vf step, vf rate, int small) {
#ifdef AVX2
    vf shifted = (vf)_mm256_fmadd_ps((__m256)step, (__m256)rate, _mm256_set1_ps(SHIFT));
    if (!small) shifted = FN(between)(SHIFT - 126.0f, SHIFT + 128.0f, shifted);
    vf f = (vf)_mm256_fmsub_ps((__m256)step, (__m256)rate, (__m256)(shifted - SHIFT));
    return FN(exp2_parts)(shifted, small ? f : FN(between)(-0.5f, 0.5f, f));
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
