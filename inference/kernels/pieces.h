// 乘法之外的零件：指数、激活、归一化、旋转、注意力。每一个的公式见 transformer_basics 里同名的课。
#pragma once
#include <math.h>

#include "integers.h"

// eˣ = 2ⁿ·eʳ，n = round(x / ln 2)，|r| ≤ ln 2 / 2；eʳ 用六次多项式，误差与 float32 的一格相当
static inline Vec exponential(Vec x) {
    x = minimum(set(88.0f), maximum(set(-87.0f), x));
    const Vec n = nearest(x * set(1.44269504f));
    Vec r = fma(n, set(-0.693359375f), x);  // ln 2 拆成两段，免得相减时丢掉末位
    r = fma(n, set(2.12194440e-4f), r);
    Vec p = set(1.9875691500e-4f);
    p = fma(p, r, set(1.3981999507e-3f));
    p = fma(p, r, set(8.3334519073e-3f));
    p = fma(p, r, set(4.1665795894e-2f));
    p = fma(p, r, set(1.6666665459e-1f));
    p = fma(p, r, set(5.0000001201e-1f));
    p = fma(p, r * r, r + set(1.0f));
    return scale_by_power(p, n);
}

static inline Vec sigmoid(Vec x) { return set(1.0f) / (set(1.0f) + exponential(zero() - x)); }

static inline Vec activate(Vec x, Activation kind) {
    if (kind == RELU) return maximum(zero(), x);
    if (kind == RELU2) return maximum(zero(), x) * maximum(zero(), x);
    if (kind == SILU) return x * sigmoid(x);
    if (kind == GELU_TANH) {  // ½(1 + tanh u) = sigmoid(2u)
        const Vec cubic = fma(x * x * x, set(0.044715f), x);
        return x * sigmoid(cubic * set(1.5957691216f));
    }
    // erf(z) ≈ 1 − t·P(t)·e^{−z²}，t = 1/(1 + 0.3275911·z)（Abramowitz 与 Stegun 7.1.26）
    const Vec z = magnitude(x) * set(0.70710678f);
    const Vec t = set(1.0f) / fma(z, set(0.3275911f), set(1.0f));
    Vec p = set(1.061405429f);
    p = fma(p, t, set(-1.453152027f));
    p = fma(p, t, set(1.421413741f));
    p = fma(p, t, set(-0.284496736f));
    p = fma(p, t, set(0.254829592f));
    const Vec rest = p * t * exponential(zero() - z * z);  // 1 − erf|z|
    // x·½(1 + erf z)：x ≥ 0 时是 x − ½x·rest，x < 0 时是 ½x·rest
    return maximum(zero(), x) - magnitude(x * rest * set(0.5f));
}

// 对 n 个数就地逐元素地做：不满一格的尾巴抄出来做
template <class F>
static inline void each(float* x, int64_t n, F f) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(x + i, f(load(x + i)));
    if (i == n) return;
    float tail[W] = {};
    for (int64_t j = i; j < n; j++) tail[j - i] = x[j];
    store(tail, f(load(tail)));
    for (int64_t j = i; j < n; j++) x[j] = tail[j - i];
}

// Σ f(xᵢ)
template <class F, class G>
static inline float gather(const float* x, int64_t n, F f, G scalar) {
    Vec total = zero();
    int64_t i = 0;
    for (; i + W <= n; i += W) total = total + f(load(x + i));
    float rest = sum(total);
    for (; i < n; i++) rest += scalar(x[i]);
    return rest;
}

// 归一化：先减均值再平方；直接用 E[x²] − μ²，μ 大时会把有效数字减光
static void normalize(const Norm& norm, const float* x, int64_t n, float* y) {
    float mean = 0.0f;
    if (norm.kind == LAYER_NORM)
        mean = gather(x, n, [](Vec a) { return a; }, [](float a) { return a; }) / (float)n;
    const Vec centre = set(mean);
    const float square = gather(
        x, n, [&](Vec a) { return (a - centre) * (a - centre); },
        [&](float a) { return (a - mean) * (a - mean); });
    const float scale = 1.0f / sqrtf(square / (float)n + (float)norm.epsilon);
    for (int64_t i = 0; i < n; i++) {
        const float value = (x[i] - mean) * scale * norm.weight[i];
        y[i] = norm.bias ? value + norm.bias[i] : value;
    }
}

// 旋转：[a | b] → [a·cos − b·sin | b·cos + a·sin]；signed_sin 的前一半已带负号
static inline void rotate(float* x, int64_t d, const float* cos, const float* signed_sin) {
    for (int64_t i = 0, half = d / 2; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cos[i] + b * signed_sin[i];
        x[i + half] = b * cos[i + half] + a * signed_sin[i + half];
    }
}

static inline void put(float* p, const float* x, int64_t n) {
    for (int64_t i = 0; i < n; i++) p[i] = x[i];
}
static inline void put(bf16* p, const float* x, int64_t n) {  // 舍入到最近，一半时取偶
    for (int64_t i = 0; i < n; i++) {
        uint32_t u;
        __builtin_memcpy(&u, x + i, 4);
        const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
        p[i].bits = (uint16_t)(nan ? 0x7fc0u : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
    }
}

static inline float number(float a) { return a; }
static inline float number(bf16 a) {
    const uint32_t wide = (uint32_t)a.bits << 16;
    float f;
    __builtin_memcpy(&f, &wide, 4);
    return f;
}

// out 的 C·W 维：Σ_s p_s·v_s / Σ p。单数的 s 与双数的各加各的，免得下一次乘加总在等上一次
template <int C, class T>
static inline void average(const float* p, const T* values, int64_t n, int64_t d, float total, float* out) {
    Vec even[C], odd[C];
    UNROLL for (int c = 0; c < C; c++) even[c] = odd[c] = zero();
    int64_t s = 0;
    for (; s + 2 <= n; s += 2) {
        UNROLL for (int c = 0; c < C; c++) even[c] = fma(set(p[s]), load(values + s * d + c * W), even[c]);
        UNROLL for (int c = 0; c < C; c++) odd[c] = fma(set(p[s + 1]), load(values + s * d + d + c * W), odd[c]);
    }
    if (s < n) UNROLL for (int c = 0; c < C; c++) even[c] = fma(set(p[s]), load(values + s * d + c * W), even[c]);
    UNROLL for (int c = 0; c < C; c++) store(out + c * W, (even[c] + odd[c]) / set(total));
}

// 词表的第 i 行的第 k 个数：浮点的直接取，整数的还原，ŵ = scale·(q − zero)；整数的怎样排，见 integers.h
static inline float entry(const Matrix& table, int64_t i, int64_t k) {
    if (table.kind == FLOAT32) return ((const float*)table.data)[i * table.columns + k];
    if (table.kind == BFLOAT16) return number(((const bf16*)table.data)[i * table.columns + k]);
    const int64_t B = table.block, group = i / W * (table.columns / B) + k / B, inside = k % B, half = B / 2;
    // 第 j 步里的第几个字节
    const auto place = [&](int64_t j) { return (j / DEPTH * W + i % W) * DEPTH + j % DEPTH; };
    int q;
    if (table.kind == INT8) q = ((const int8_t*)table.data)[group * B * W + place(inside)];
    else {  // 组里的前一半在低四位，后一半在高四位
        const uint8_t two = ((const uint8_t*)table.data)[group * half * W + place(inside % half)];
        q = (inside < half ? two & 15 : two >> 4) - 8;
    }
    const int64_t at = group * W + i % W;
    return number(table.scale[at]) * (float)(q - (table.zero ? table.zero[at] : 0));
}

// 一个查询头：q (d,) 看 n 个键值 (n, d) → out (d,)；scores 是 n 个数的草稿
template <class T>
static void attend(const float* q, const T* keys, const T* values, int64_t n, int64_t d, float* scores, float* out) {
    // ① 打分：键当作权重，正是同一个乘法；W 个键一起，加法才省得下来
    const Matrix matrix = {sizeof(T) == 4 ? FLOAT32 : BFLOAT16, n, d, 0, keys, nullptr, nullptr, nullptr};
    Input in = {q, 1, d};
    Ahead ahead = {(const char*)keys + AHEAD, (int64_t)(W * sizeof(T))};
    const float scale = 1.0f / sqrtf((float)d);
    int64_t s = 0;
    Vec best = set(-INFINITY);
    for (; s + W <= n; s += W) {
        tile<T, W, 1, W>(matrix, s, in, 0, ahead, scores + s);
        const Vec some = load(scores + s) * set(scale);
        store(scores + s, some);
        best = maximum(some, best);
    }
    float most = largest(best);
    for (; s < n; s++) {
        tile<T, 1, 1, 1>(matrix, s, in, 0, ahead, scores + s);
        scores[s] *= scale;
        most = scores[s] > most ? scores[s] : most;
    }
    // ② softmax：减去最大的再取指数；除法留到最后，一个头只除一次
    each(scores, n, [&](Vec x) { return exponential(x - set(most)); });
    const float total = gather(scores, n, [](Vec a) { return a; }, [](float a) { return a; });
    // ③ 按权重汇总：out 的一段留在寄存器里，把所有的值走一遍
    int64_t i = 0;
    for (; i + 4 * W <= d; i += 4 * W) average<4>(scores, values + i, n, d, total, out + i);
    for (; i + W <= d; i += W) average<1>(scores, values + i, n, d, total, out + i);
    for (; i < d; i++) {
        float a = 0.0f;
        for (int64_t s = 0; s < n; s++) a += scores[s] * number(values[s * d + i]);
        out[i] = a / total;
    }
}
