// AVX2：一条指令算 8 个 float32；整数乘加用 16 位的 pmaddwd。
#pragma once
#include <immintrin.h>
#include <string.h>

#include "interface.h"

static constexpr int W = 8;  // 一个 Vec 装几个数
struct Vec { __m256 v; };

static inline Vec set(float a) { return {_mm256_set1_ps(a)}; }
static inline Vec zero() { return {_mm256_setzero_ps()}; }
static inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
// bfloat16 就是 float32 的高 16 位：左移回去，一位不差
static inline Vec load(const bf16* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}
static inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
static inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
static inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
static inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
static inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
static inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
// 有 NaN 时给出 b：可能是 NaN 的那个要写在后面
static inline Vec maximum(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
static inline Vec minimum(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
static inline Vec magnitude(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
// 8 个数加起来：每次把后一半叠到前一半上。次序写定了，下面的 sums 照它来，一位也不差
static inline float sum(Vec a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
// 8 个 Vec 各自的和，放进一个 Vec：叠的时候两个拼成一个，8 → 4 → 2 → 1
static inline Vec sums(const Vec* v) {
    __m256 half[4], quarter[2];  // half[p] 装着 v[p] 与 v[4 + p] 的和，各剩四个数
    UNROLL for (int p = 0; p < 4; p++) {
        const __m256 a = v[p].v, b = v[4 + p].v;
        half[p] = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    }
    UNROLL for (int p = 0; p < 2; p++) {
        const __m256d a = _mm256_castps_pd(half[2 * p]), b = _mm256_castps_pd(half[2 * p + 1]);
        quarter[p] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
    }
    return {_mm256_add_ps(_mm256_shuffle_ps(quarter[0], quarter[1], 0x88), _mm256_shuffle_ps(quarter[0], quarter[1], 0xdd))};
}
static inline float largest(Vec a) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
static inline Vec nearest(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// a · 2ⁿ，n 是整数值的浮点数：把 n 加进指数位
static inline Vec scale_by_power(Vec a, Vec n) {
    const __m256i power = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(_mm256_slli_epi32(power, 23)))};
}
static inline void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }

// ── 整数：激活取成 16 位整数，权重是 8 位或 4 位，变宽成 16 位再乘 ────────────────
static constexpr int DEPTH = 2;       // 一条指令里，一行权重的几个编码
static constexpr int INT8_SHIFT = 0;  // 乘的数比真正的编码大多少
static constexpr int PANELS = 1, MANY = 4;  // 几片权重、几行激活一起

template <int B>  // 一组 B 个激活 → B 个 int16；返回它们（取整之后）的和
static inline int32_t pack(const float* x, float inverse, int8_t* digits) {
    const __m256 scale = _mm256_set1_ps(inverse);
    __m256i total = _mm256_setzero_si256();
    for (int i = 0; i < B; i += 16) {
        const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), scale));
        const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8), scale));
        // packs 在两个 128 位里各自拼接，所以还要换一次次序
        const __m256i q = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8);
        _mm256_storeu_si256((__m256i*)(digits + 2 * i), q);
        total = _mm256_add_epi32(total, _mm256_add_epi32(a, b));
    }
    int32_t each[8], all = 0;
    _mm256_storeu_si256((__m256i*)each, total);
    for (int i = 0; i < 8; i++) all += each[i];
    return all;
}

struct Codes { __m256i q; };  // 8 行权重，每行 2 个编码

static inline Codes codes_int8(const char* data) {
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)data))};
}
static inline Codes low_int4(const char* data) {
    return {_mm256_and_si256(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)data)), _mm256_set1_epi16(15))};
}
static inline Codes high_int4(const char* data) {
    return {_mm256_srli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)data)), 4)};
}

struct Total { __m256i sum; };  // 8 行权重各一个整数

static inline Total start(int32_t a) { return {_mm256_set1_epi32(a)}; }
// 减去 零点 × 激活之和
static inline void subtract(Total& t, const int8_t* zero, int32_t x) {
    const __m256i z = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)zero));
    t.sum = _mm256_sub_epi32(t.sum, _mm256_mullo_epi32(z, _mm256_set1_epi32(x)));
}
struct Few { __m256i x; };  // 2 个激活，抄 8 份
template <int B>
static inline Few digits_at(const int8_t* digits, int j) {
    int32_t x;
    memcpy(&x, digits + 4 * j, 4);
    return {_mm256_set1_epi32(x)};
}
// 8 行权重的各 2 个编码，乘同样的 2 个激活
static inline void add(Total& t, Codes c, Few x) { t.sum = _mm256_add_epi32(t.sum, _mm256_madd_epi16(c.q, x.x)); }
static inline Vec finish(Total t) { return {_mm256_cvtepi32_ps(t.sum)}; }
