/* SIMD vectors with the same operations on every instruction set, which the compiler's flags select:
 *
 *     vf  LANES floats
 *     vi  LANES 32-bit integers
 *     vb  4 · LANES bytes
 *
 * vb_dot4 and vb_dot8 add to each lane i of `sum` the dot product of codes 4i to 4i + 3 (of 4 and 8 bits) with the four
 * signed bytes of x.
 *
 * Every operation is exactly defined, so that a variant computes the same bits on every machine: fused multiply-adds
 * are explicit, never the compiler's choice (-ffp-contract=off).
 */
#ifndef EK_VECTORS_H
#define EK_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef uint16_t half_t; /* IEEE binary16, as stored */

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

#include <immintrin.h>
#define LANES 16
#define MAX_ROWS 8 /* rows of activations multiplied in one pass over a tile: limited by the registers */
typedef __m512 vf;
typedef __m512i vi, vb;

INLINE vf vf_set(float x) { return _mm512_set1_ps(x); }
INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void vf_store(float *p, vf x) { _mm512_storeu_ps(p, x); }
INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf vf_abs(vf a) { return _mm512_abs_ps(a); }
INLINE vf vf_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vf vf_power_of_two(vf n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
INLINE vf vf_from_half(const half_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE void vf_to_half(half_t *p, vf x) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE vf vf_from_int(vi a) { return _mm512_cvtepi32_ps(a); }
INLINE vi vi_set(int32_t x) { return _mm512_set1_epi32(x); }
INLINE void vi_store_rounded(int8_t *p, vf x) {
    _mm_storeu_si128((__m128i *)p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x)));
}
INLINE vb vb_load(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE vb vb_low(vb a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
INLINE vb vb_high(vb a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15)); }
INLINE vi vb_dot4(vi sum, vb codes, int32_t x) { return _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(x)); }
INLINE vi vb_dot8(vi sum, vb codes, int32_t x) { return _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(x)); }
#define DOT8_BIAS 0 /* vb_dot8 subtracts this from every code */

#elif defined(__AVX2__) && defined(__FMA__)

#include <immintrin.h>
#define LANES 8
#define MAX_ROWS 4
typedef __m256 vf;
typedef __m256i vi, vb;

INLINE vf vf_set(float x) { return _mm256_set1_ps(x); }
INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void vf_store(float *p, vf x) { _mm256_storeu_ps(p, x); }
INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf vf_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
INLINE vf vf_round(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vf vf_power_of_two(vf n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
INLINE vf vf_from_half(const half_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE void vf_to_half(half_t *p, vf x) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE vf vf_from_int(vi a) { return _mm256_cvtepi32_ps(a); }
INLINE vi vi_set(int32_t x) { return _mm256_set1_epi32(x); }
INLINE void vi_store_rounded(int8_t *p, vf x) {
    int32_t ints[LANES];
    _mm256_storeu_si256((__m256i *)ints, _mm256_cvtps_epi32(x));
    for (int i = 0; i < LANES; i++) p[i] = (int8_t)ints[i];
}
INLINE vb vb_load(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE vb vb_low(vb a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
INLINE vb vb_high(vb a) { return _mm256_and_si256(_mm256_srli_epi16(a, 4), _mm256_set1_epi8(15)); }
INLINE vi vb_dot4(vi sum, vb codes, int32_t x) {
    __m256i pairs = _mm256_maddubs_epi16(codes, _mm256_set1_epi32(x));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
/* maddubs would saturate on two 8-bit codes: their highest bit is multiplied separately. */
INLINE vi vb_dot8(vi sum, vb codes, int32_t x) {
    __m256i low = _mm256_and_si256(codes, _mm256_set1_epi8(127));
    __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes, 7), _mm256_set1_epi8(1));
    __m256i times = _mm256_set1_epi32(x);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(low, times), _mm256_set1_epi16(1)));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(high, times), _mm256_set1_epi16(128)));
}
#define DOT8_BIAS 0

#elif defined(__ARM_FEATURE_DOTPROD) && defined(__ARM_FP16_FORMAT_IEEE)

#include <arm_neon.h>
#define LANES 4
#define MAX_ROWS 8
typedef float32x4_t vf;
typedef int32x4_t vi;
typedef uint8x16_t vb;

INLINE vf vf_set(float x) { return vdupq_n_f32(x); }
INLINE vf vf_load(const float *p) { return vld1q_f32(p); }
INLINE void vf_store(float *p, vf x) { vst1q_f32(p, x); }
INLINE vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
INLINE vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
INLINE vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
INLINE vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
INLINE vf vf_max(vf a, vf b) { return vmaxq_f32(a, b); }
INLINE vf vf_min(vf a, vf b) { return vminq_f32(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
INLINE vf vf_abs(vf a) { return vabsq_f32(a); }
INLINE vf vf_round(vf a) { return vrndnq_f32(a); }
INLINE vf vf_power_of_two(vf n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23));
}
INLINE vf vf_from_half(const half_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
INLINE void vf_to_half(half_t *p, vf x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x))); }
INLINE vf vf_from_int(vi a) { return vcvtq_f32_s32(a); }
INLINE vi vi_set(int32_t x) { return vdupq_n_s32(x); }
INLINE void vi_store_rounded(int8_t *p, vf x) {
    int32_t ints[LANES];
    vst1q_s32(ints, vcvtnq_s32_f32(x));
    for (int i = 0; i < LANES; i++) p[i] = (int8_t)ints[i];
}
INLINE vb vb_load(const uint8_t *p) { return vld1q_u8(p); }
INLINE vb vb_low(vb a) { return vandq_u8(a, vdupq_n_u8(15)); }
INLINE vb vb_high(vb a) { return vshrq_n_u8(a, 4); }
INLINE vi vb_dot4(vi sum, vb codes, int32_t x) {
    return vdotq_s32(sum, vreinterpretq_s8_u8(codes), vreinterpretq_s8_s32(vdupq_n_s32(x)));
}
INLINE vi vb_dot8(vi sum, vb codes, int32_t x) {
    int8x16_t signed_codes = vreinterpretq_s8_u8(veorq_u8(codes, vdupq_n_u8(128)));
    return vdotq_s32(sum, signed_codes, vreinterpretq_s8_s32(vdupq_n_s32(x)));
}
#define DOT8_BIAS 128 /* vdotq_s32 takes signed bytes */

#else

#define LANES 4
#define MAX_ROWS 4
typedef struct { float v[LANES]; } vf;
typedef struct { int32_t v[LANES]; } vi;
typedef struct { uint8_t v[4 * LANES]; } vb;
#define EACH for (int i = 0; i < LANES; i++)

INLINE vf vf_set(float x) { vf r; EACH r.v[i] = x; return r; }
INLINE vf vf_load(const float *p) { vf r; memcpy(&r, p, sizeof r); return r; }
INLINE void vf_store(float *p, vf x) { memcpy(p, &x, sizeof x); }
INLINE vf vf_add(vf a, vf b) { EACH a.v[i] += b.v[i]; return a; }
INLINE vf vf_sub(vf a, vf b) { EACH a.v[i] -= b.v[i]; return a; }
INLINE vf vf_mul(vf a, vf b) { EACH a.v[i] *= b.v[i]; return a; }
INLINE vf vf_div(vf a, vf b) { EACH a.v[i] /= b.v[i]; return a; }
INLINE vf vf_max(vf a, vf b) { EACH a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return a; }
INLINE vf vf_min(vf a, vf b) { EACH a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return a; }
INLINE vf vf_fma(vf a, vf b, vf c) { EACH a.v[i] = a.v[i] * b.v[i] + c.v[i]; return a; }
INLINE vf vf_abs(vf a) { EACH a.v[i] = fabsf(a.v[i]); return a; }
INLINE vf vf_round(vf a) { EACH a.v[i] = rintf(a.v[i]); return a; }
INLINE vf vf_power_of_two(vf n) { EACH n.v[i] = ldexpf(1.0f, (int)n.v[i]); return n; }
INLINE float half_to_float(half_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 1023, bits;
    float x;
    if (exponent == 0) {
        x = ldexpf((float)fraction, -24);
        return sign ? -x : x;
    }
    bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
    memcpy(&x, &bits, 4);
    return x;
}
INLINE half_t float_to_half(float x) {
    uint32_t bits, sign;
    memcpy(&bits, &x, 4);
    sign = (bits >> 16) & 0x8000, bits &= 0x7fffffff;
    if (bits > 0x7f800000) return (half_t)(sign | 0x7e00);
    if (bits >= 0x47800000) return (half_t)(sign | 0x7c00);
    if (bits < 0x38800000) { /* subnormal */
        float small;
        memcpy(&small, &bits, 4);
        return (half_t)(sign | (uint32_t)rintf(ldexpf(small, 24)));
    }
    bits += 0xfff + ((bits >> 13) & 1); /* round to nearest, ties to even */
    return (half_t)(sign | ((bits >> 13) - (112 << 10)));
}
INLINE vf vf_from_half(const half_t *p) { vf r; EACH r.v[i] = half_to_float(p[i]); return r; }
INLINE void vf_to_half(half_t *p, vf x) { EACH p[i] = float_to_half(x.v[i]); }
INLINE vf vf_from_int(vi a) { vf r; EACH r.v[i] = (float)a.v[i]; return r; }
INLINE vi vi_set(int32_t x) { vi r; EACH r.v[i] = x; return r; }
INLINE void vi_store_rounded(int8_t *p, vf x) { EACH p[i] = (int8_t)rintf(x.v[i]); }
INLINE vb vb_load(const uint8_t *p) { vb r; memcpy(&r, p, sizeof r); return r; }
INLINE vb vb_low(vb a) { for (int i = 0; i < 4 * LANES; i++) a.v[i] &= 15; return a; }
INLINE vb vb_high(vb a) { for (int i = 0; i < 4 * LANES; i++) a.v[i] >>= 4; return a; }
#if defined(__clang__) || __GNUC__ >= 9
/* Compilers do not vectorize the loop below, and every 64-bit processor multiplies 8 numbers of 16 bits at once. A
 * product fits: it is at most 255 · 128. */
typedef uint8_t bytes __attribute__((vector_size(8)));
typedef int16_t words __attribute__((vector_size(16)));
typedef int32_t ints __attribute__((vector_size(16)));
INLINE ints add_pairs(const uint8_t *codes, words times) {
    bytes b;
    memcpy(&b, codes, sizeof b);
    const ints pairs = (ints)(__builtin_convertvector(b, words) * times);
    return ((pairs << 16) >> 16) + (pairs >> 16);
}
INLINE vi vb_dot4(vi sum, vb codes, int32_t x) {
    const int16_t a = (int8_t)x, b = (int8_t)(x >> 8), c = (int8_t)(x >> 16), d = (int8_t)(x >> 24);
    const words times = {a, b, c, d, a, b, c, d};
    const ints first = add_pairs(codes.v, times), second = add_pairs(codes.v + 8, times);
    for (int i = 0; i < 2; i++) {
        sum.v[i] += first[2 * i] + first[2 * i + 1];
        sum.v[i + 2] += second[2 * i] + second[2 * i + 1];
    }
    return sum;
}
#else
INLINE vi vb_dot4(vi sum, vb codes, int32_t x) {
    int8_t times[4];
    memcpy(times, &x, 4);
    EACH for (int j = 0; j < 4; j++) sum.v[i] += codes.v[4 * i + j] * times[j];
    return sum;
}
#endif
INLINE vi vb_dot8(vi sum, vb codes, int32_t x) { return vb_dot4(sum, codes, x); }
#define DOT8_BIAS 0

#endif

INLINE float vf_reduce_sum(vf x) {
    float lanes[LANES], sum = 0;
    vf_store(lanes, x);
    for (int i = 0; i < LANES; i++) sum += lanes[i];
    return sum;
}
INLINE float vf_reduce_max(vf x) {
    float lanes[LANES], max;
    vf_store(lanes, x);
    max = lanes[0];
    for (int i = 1; i < LANES; i++) max = lanes[i] > max ? lanes[i] : max;
    return max;
}

/* e^x with a relative error of about 1e-7: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes' expf). */
INLINE vf vf_exp(vf x) {
    vf n, r, p;
    x = vf_min(vf_max(x, vf_set(-87.0f)), vf_set(88.0f));
    n = vf_round(vf_mul(x, vf_set(1.44269504088896341f)));
    r = vf_fma(n, vf_set(-0.693359375f), x);
    r = vf_fma(n, vf_set(2.12194440e-4f), r);
    p = vf_set(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set(5.0000001201e-1f));
    p = vf_add(vf_fma(vf_mul(r, r), p, r), vf_set(1.0f));
    return vf_mul(p, vf_power_of_two(n));
}

#endif
