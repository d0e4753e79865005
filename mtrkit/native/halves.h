/* Numbers of 16 bits as floats. */

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
