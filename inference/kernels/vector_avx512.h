// AVX-512：一条指令算 16 个 float32；VNNI 一条指令做 64 对 8 位整数的乘加。
#pragma once
#include <immintrin.h>

#include "interface.h"

static constexpr int W = 16;  // 一个 Vec 装几个数
struct Vec { __m512 v; };

static inline Vec set(float a) { return {_mm512_set1_ps(a)}; }
static inline Vec zero() { return {_mm512_setzero_ps()}; }
static inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
// bfloat16 就是 float32 的高 16 位：左移回去，一位不差
static inline Vec load(const bf16* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
static inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
static inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
// 有 NaN 时给出 b：可能是 NaN 的那个要写在后面
static inline Vec maximum(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline Vec minimum(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
static inline Vec magnitude(Vec a) { return {_mm512_abs_ps(a.v)}; }
// 16 个数加起来：每次把后一半叠到前一半上。次序写定了，下面的 sums 照它来，一位也不差
static inline float sum(Vec a) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
// 16 个 Vec 各自的和，放进一个 Vec：叠的时候两个拼成一个，16 → 8 → 4 → 2 → 1，省下四分之三
static inline Vec sums(const Vec* v) {
    __m512 quarter[4];  // 第 p 个装着 v[p]、v[4 + p]、v[8 + p]、v[12 + p] 的和，各剩四个数
    UNROLL for (int p = 0; p < 4; p++) {
        const __m512 a = v[p].v, b = v[4 + p].v, c = v[8 + p].v, d = v[12 + p].v;
        const __m512 left = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
        const __m512 right = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
        quarter[p] = _mm512_add_ps(_mm512_shuffle_f32x4(left, right, 0x88), _mm512_shuffle_f32x4(left, right, 0xdd));
    }
    __m512 eighth[2];
    UNROLL for (int p = 0; p < 2; p++) {
        const __m512d a = _mm512_castps_pd(quarter[2 * p]), b = _mm512_castps_pd(quarter[2 * p + 1]);
        eighth[p] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    return {_mm512_add_ps(_mm512_shuffle_ps(eighth[0], eighth[1], 0x88), _mm512_shuffle_ps(eighth[0], eighth[1], 0xdd))};
}
static inline float largest(Vec a) { return _mm512_reduce_max_ps(a.v); }
static inline Vec nearest(Vec a) { return {_mm512_roundscale_ps(a.v, 8)}; }
// a · 2ⁿ，n 是整数值的浮点数：正好有一条指令
static inline Vec scale_by_power(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }
static inline void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }

// ── 整数：VNNI 只会「无符号 8 位 × 有符号 8 位」，所以 16 位的激活拆成两个「256 进制的数字」──
//      x = 256·高 + 低，高、低都在 −128…127；Σ qx = 256·Σ q·高 + Σ q·低，一位不差
// 权重变成无符号的：INT4 存的就是 q + 8；INT8 翻转符号位，等于加 128；多加的部分从开头就减掉
static constexpr int DEPTH = 4;         // 一条指令里，一行权重的几个编码
static constexpr int INT8_SHIFT = 128;  // 乘的数比真正的编码大多少
static constexpr int PANELS = 2, MANY = 4;  // 几片权重、几行激活一起：累加器正好放得下

template <int B>  // 一组 B 个激活 → B 个高位、B 个低位；返回它们（取整之后）的和
static inline int32_t pack(const float* x, float inverse, int8_t* digits) {
    __m512i total = _mm512_setzero_si512();
    for (int i = 0; i < B; i += 16) {
        const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(inverse)));
        // 低位取有符号的：先加 128 再取整除，高位才不会差一
        const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
        const __m512i low = _mm512_sub_epi32(q, _mm512_slli_epi32(high, 8));
        _mm_storeu_si128((__m128i*)(digits + i), _mm512_cvtepi32_epi8(high));
        _mm_storeu_si128((__m128i*)(digits + B + i), _mm512_cvtepi32_epi8(low));
        total = _mm512_add_epi32(total, q);
    }
    return _mm512_reduce_add_epi32(total);
}

struct Codes { __m512i q; };  // 16 行权重，每行 4 个编码

static inline Codes codes_int8(const char* data) {
    return {_mm512_xor_si512(_mm512_loadu_si512(data), _mm512_set1_epi8(-128))};
}
static inline Codes low_int4(const char* data) {
    return {_mm512_and_si512(_mm512_loadu_si512(data), _mm512_set1_epi8(15))};
}
static inline Codes high_int4(const char* data) {
    return {_mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(data), 4), _mm512_set1_epi8(15))};
}

struct Total { __m512i high, low; };  // 16 行权重各一个整数

static inline Total start(int32_t a) { return {_mm512_setzero_si512(), _mm512_set1_epi32(a)}; }
// 减去 零点 × 激活之和
static inline void subtract(Total& t, const int8_t* zero, int32_t x) {
    const __m512i z = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)zero));
    t.low = _mm512_sub_epi32(t.low, _mm512_mullo_epi32(z, _mm512_set1_epi32(x)));
}
struct Few { __m512i high, low; };  // 4 个激活，抄 16 份
template <int B>
static inline Few digits_at(const int8_t* digits, int j) {
    int32_t high, low;
    __builtin_memcpy(&high, digits + 4 * j, 4);
    __builtin_memcpy(&low, digits + B + 4 * j, 4);
    return {_mm512_set1_epi32(high), _mm512_set1_epi32(low)};
}
// 16 行权重的各 4 个编码，乘同样的 4 个激活
static inline void add(Total& t, Codes c, Few x) {
#if defined(__clang__)
    t.high = _mm512_dpbusd_epi32(t.high, c.q, x.high);
    t.low = _mm512_dpbusd_epi32(t.low, c.q, x.low);
#else  // GCC 12 用那个函数时，每条指令之外再搬一次累加器，慢一半；写明「就地加」就不搬
    asm("vpdpbusd %2, %1, %0" : "+v"(t.high) : "v"(c.q), "v"(x.high));
    asm("vpdpbusd %2, %1, %0" : "+v"(t.low) : "v"(c.q), "v"(x.low));
#endif
}
static inline Vec finish(Total t) {
    return {_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(t.high, 8), t.low))};
}
