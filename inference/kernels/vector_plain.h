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
static constexpr int DEPTH = 2;       // 一步里，一行权重的几个编码
static constexpr int INT8_SHIFT = 0;  // 乘的数比真正的编码大多少
static constexpr int PANELS = 1, MANY = 4;  // 几片权重、几行激活一起

// 一组 B 个激活占 2·B 个字节：普通写法里就是 B 个 int16；返回它们的和
template <int B>
static inline int32_t pack(const float* x, float inverse, int8_t* digits) {
    int16_t q[B];
    int32_t all = 0;
    for (int i = 0; i < B; i++) all += q[i] = (int16_t)lrintf(x[i] * inverse);
    memcpy(digits, q, sizeof q);
    return all;
}

struct Codes { int16_t q[DEPTH][W]; };  // 8 行权重，每行 2 个编码

static inline Codes codes_int8(const char* data) {
    Codes c;
    for (int k = 0; k < DEPTH; k++) EACH c.q[k][i] = (int8_t)data[i * DEPTH + k];
    return c;
}
static inline Codes low_int4(const char* data) {
    Codes c;
    for (int k = 0; k < DEPTH; k++) EACH c.q[k][i] = (uint8_t)data[i * DEPTH + k] & 15;
    return c;
}
static inline Codes high_int4(const char* data) {
    Codes c;
    for (int k = 0; k < DEPTH; k++) EACH c.q[k][i] = (uint8_t)data[i * DEPTH + k] >> 4;
    return c;
}

struct Total { int32_t sum[W]; };  // 8 行权重各一个整数

static inline Total start(int32_t a) { Total t; EACH t.sum[i] = a; return t; }
static inline void subtract(Total& t, const int8_t* zero, int32_t x) { EACH t.sum[i] -= zero[i] * x; }
struct Few { int16_t x[DEPTH]; };  // 2 个激活
template <int B>
static inline Few digits_at(const int8_t* digits, int j) {
    Few f;
    memcpy(f.x, digits + 2 * DEPTH * j, sizeof f.x);
    return f;
}
// 8 行权重的各 2 个编码，乘同样的 2 个激活
static inline void add(Total& t, Codes c, Few f) {
    for (int k = 0; k < DEPTH; k++) EACH t.sum[i] += c.q[k][i] * f.x[k];
}
static inline Vec finish(Total t) { Vec r; EACH r.v[i] = (float)t.sum[i]; return r; }
#undef EACH
