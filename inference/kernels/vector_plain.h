// 没有专门指令的写法：八个数一组的普通循环，编译器自己会挑它认得的指令（SSE、NEON……）。
//
// 三个 vector_*.h 说同一套话（Vec、load、fma、sum…），上面的公式只写一遍，各编译一次；
// 这一份最好懂，也是另外两份的标准答案。
#pragma once
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "interface.h"

static constexpr int W = 8;  // 一个 Vec 装几个数
struct Vec { float v[W]; };

#define EACH for (int i = 0; i < W; i++)

static inline Vec set(float a) { Vec r; EACH r.v[i] = a; return r; }
static inline Vec zero() { return set(0.0f); }
static inline Vec load(const float* p) { Vec r; EACH r.v[i] = p[i]; return r; }
// bfloat16 就是 float32 的高 16 位：左移回去，一位不差
static inline Vec load(const bf16* p) {
    uint32_t wide[W];
    EACH wide[i] = (uint32_t)p[i].bits << 16;
    Vec r;
    memcpy(r.v, wide, sizeof wide);
    return r;
}
static inline Vec load(const int8_t* p) { Vec r; EACH r.v[i] = p[i]; return r; }
static inline void store(float* p, Vec a) { EACH p[i] = a.v[i]; }
static inline Vec fma(Vec a, Vec b, Vec c) { EACH c.v[i] += a.v[i] * b.v[i]; return c; }
static inline Vec operator+(Vec a, Vec b) { EACH a.v[i] += b.v[i]; return a; }
static inline Vec operator-(Vec a, Vec b) { EACH a.v[i] -= b.v[i]; return a; }
static inline Vec operator*(Vec a, Vec b) { EACH a.v[i] *= b.v[i]; return a; }
static inline Vec operator/(Vec a, Vec b) { EACH a.v[i] /= b.v[i]; return a; }
// 有 NaN 时给出 b：与 SSE 的指令同一个约定，所以可能是 NaN 的那个要写在后面
static inline Vec maximum(Vec a, Vec b) { EACH b.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return b; }
static inline Vec minimum(Vec a, Vec b) { EACH b.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return b; }
static inline Vec magnitude(Vec a) { EACH a.v[i] = fabsf(a.v[i]); return a; }
static inline float sum(Vec a) {
    return ((a.v[0] + a.v[4]) + (a.v[2] + a.v[6])) + ((a.v[1] + a.v[5]) + (a.v[3] + a.v[7]));
}
static inline Vec sums(const Vec* v) { Vec r; EACH r.v[i] = sum(v[i]); return r; }
static inline float largest(Vec a) {
    float m = a.v[0];
    EACH m = a.v[i] > m ? a.v[i] : m;
    return m;
}
static inline Vec nearest(Vec a) { EACH a.v[i] = rintf(a.v[i]); return a; }
// a · 2ⁿ，n 是整数值的浮点数：把 n 加进指数位
static inline Vec scale_by_power(Vec a, Vec n) {
    uint32_t power[W];
    float factor[W];
    EACH power[i] = (uint32_t)((int32_t)n.v[i] + 127) << 23;
    memcpy(factor, power, sizeof power);
    EACH a.v[i] *= factor[i];
    return a;
}
static inline void prefetch(const void* p) {
#if defined(__GNUC__)
    __builtin_prefetch(p);
#endif
}

// ── 整数：激活取成 16 位整数，权重是 8 位或 4 位 ────────────────────────────────
// 一组 B 个激活占 2·B 个字节：普通写法里就是 B 个 int16
template <int B>
static inline void pack(const float* x, float inverse, int8_t* digits) {
    int16_t q[B];
    for (int i = 0; i < B; i++) q[i] = (int16_t)lrintf(x[i] * inverse);
    memcpy(digits, q, sizeof q);
}

struct Codes { int8_t q[64]; };

template <int B>
static inline Codes codes_int8(const void* data) {
    Codes c;
    memcpy(c.q, data, B);
    return c;
}

template <int B>  // 低四位是前一半，高四位是后一半；存的是 q + 8
static inline Codes codes_int4(const void* data) {
    Codes c;
    const uint8_t* p = (const uint8_t*)data;
    for (int i = 0; i < B / 2; i++) c.q[i] = (int8_t)(p[i] & 15), c.q[B / 2 + i] = (int8_t)(p[i] >> 4);
    return c;
}

template <int B>
static inline Vec inner(Codes c, const int8_t* digits) {
    int16_t x[B];
    memcpy(x, digits, sizeof x);
    int s[W] = {0};
    for (int j = 0; j < B; j += W) EACH s[i] += (int)c.q[j + i] * x[j + i];
    Vec r;
    EACH r.v[i] = (float)s[i];
    return r;
}
static constexpr int INT8_SHIFT = 0;  // 存的数比真正的编码大多少
#undef EACH
