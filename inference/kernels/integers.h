// 整数的乘法：16 行（W 行）权重并排走，每行一个整数累加器，一组走完才变成浮点。
//
//   存的样子（integer_blocks.py 排好的）        一步：一条指令
//   ┌ 行 0 的 4 个编码 ┐                       ┌ q₀₀ q₀₁ q₀₂ q₀₃ ┐   ┌ x₀ x₁ x₂ x₃ ┐
//   │ 行 1 的 4 个编码 │  挨着，正好一条缓存线  │ q₁₀ q₁₁ q₁₂ q₁₃ │ × │ 同样的四个   │
//   └ …… 行 15        ┘                       └ ……             ┘   └ ……          ┘
//
//   ŵ = s·(q − z)，x ≈ s_x·x̂：   y_n = Σ_组 s·s_x·(Σₖ q x̂ − z·Σₖ x̂)，括号里全是整数，一位不差
//
// 为什么不像浮点那样一行一行地走：那样每组的 16 个部分和都要各自变成浮点、各自乘刻度；
// 并排走，一组只变一次，给 16 行用，乘加的指令少了一半还多。
#pragma once
#include "products.h"

// 激活按组取成 16 位整数：x ≈ s_x·x̂，误差在十万分之几，比权重自己的舍入小两三个数量级
template <int B>
static void quantize(Input& in, int64_t columns, int64_t from, int64_t to) {
    const int64_t groups = columns / B;
    for (int64_t r = from; r < to; r++)
        for (int64_t g = 0; g < groups; g++) {
            float last[B];  // 最后一组可能不满：补零
            const float* x = in.x + r * in.columns + g * B;
            if ((g + 1) * B > in.columns) {
                for (int i = 0; i < B; i++) last[i] = g * B + i < in.columns ? x[i] : 0.0f;
                x = last;
            }
            Vec most = zero(), poison = zero();
            for (int i = 0; i < B; i += W) {
                most = maximum(magnitude(load(x + i)), most);
                poison = fma(load(x + i), zero(), poison);  // 有 NaN 或无穷大就变成 NaN
            }
            const float range = largest(most);
            const bool usable = range > 1e-30f;  // 全零的组：编码都是 0，刻度也是 0
            int8_t* digits = in.digits + 2 * (r * columns + g * B);
            in.totals[r * groups + g] = pack<B>(x, usable ? 32639.0f / range : 0.0f, digits);
            in.scales[r * groups + g] = (usable ? range / 32639.0f : 0.0f) + sum(poison);
        }
}

// 第 from … to−1 行按 block 个一组取整，末尾补零到整组；block 为 0 就什么也不做
static void quantize(Input& in, int64_t block, int64_t from, int64_t to) {
    if (block == 64) quantize<64>(in, (in.columns + 63) / 64 * 64, from, to);
    if (block == 32) quantize<32>(in, (in.columns + 31) / 32 * 32, from, to);
}

// 一步：M 片的一条缓存线，乘 N 行激活的同样几个数
template <int B, int M, int N>
static inline void once(const Codes* codes, const int8_t* digits, int64_t row, int j, Total* total) {
    UNROLL for (int n = 0; n < N; n++) {
        const Few x = digits_at<B>(digits + n * row, j);
        UNROLL for (int m = 0; m < M; m++) add(total[n * M + m], codes[m], x);
    }
}

// 一组：片与片相隔 apart 字节，行与行相隔 row
template <int B, bool FOUR, int M, int N>
static inline void group(const char* data, int64_t apart, const int8_t* digits, int64_t row, Ahead& ahead, Total* total) {
    static constexpr int LINE = W * DEPTH, STEPS = FOUR ? B / DEPTH / 2 : B / DEPTH;
    Codes codes[M];
    for (int j = 0; j < STEPS; j++, data += LINE) {
        ahead.step<M>();
        if (FOUR) {  // 低四位是组的前一半，高四位是后一半
            UNROLL for (int m = 0; m < M; m++) codes[m] = low_int4(data + m * apart);
            once<B, M, N>(codes, digits, row, j, total);
            UNROLL for (int m = 0; m < M; m++) codes[m] = high_int4(data + m * apart);
            once<B, M, N>(codes, digits, row, j + STEPS, total);
        } else {
            UNROLL for (int m = 0; m < M; m++) codes[m] = codes_int8(data + m * apart);
            once<B, M, N>(codes, digits, row, j, total);
        }
    }
}

// 第 p 片起的 M 片（各 W 行）权重 × N 行激活：out[n][M·W]
template <int B, bool FOUR, int M, int N>
static inline void panel(const Matrix& w, int64_t p, const Input& in, int64_t r, Ahead& ahead, float* out) {
    static constexpr int BYTES = FOUR ? W * B / 2 : W * B;  // 一片的一组
    const int64_t groups = w.columns / B, row = 2 * w.columns;
    const char* data = (const char*)w.data + p * groups * BYTES;
    Vec acc[N * M];
    UNROLL for (int i = 0; i < N * M; i++) acc[i] = zero();
    for (int64_t g = 0; g < groups; g++) {
        const int32_t* x = in.totals + r * groups + g;
        const int64_t at = (p * groups + g) * W, apart = groups * W;
        Total total[N * M];
        UNROLL for (int i = 0; i < N * M; i++) total[i] = start(-(FOUR ? 8 : INT8_SHIFT) * x[i / M * groups]);
        if (w.zero)
            UNROLL for (int i = 0; i < N * M; i++) subtract(total[i], w.zero + at + i % M * apart, x[i / M * groups]);
        group<B, FOUR, M, N>(data + g * BYTES, groups * BYTES, in.digits + r * row + 2 * g * B, row, ahead, total);
        UNROLL for (int i = 0; i < N * M; i++) {
            const Vec scale = load(w.scale + at + i % M * apart) * set(in.scales[(r + i / M) * groups + g]);
            acc[i] = fma(finish(total[i]), scale, acc[i]);
        }
    }
    UNROLL for (int i = 0; i < N * M; i++) store(out + i * W, acc[i]);
}

// M 片权重 × 全部的 x；out[r·CHUNK + i] = W[begin + i]·x[r]，只取 begin … end−1 之内的
template <int B, bool FOUR, int M>
static void panels(const Matrix& w, int64_t p, const Input& in, int64_t begin, int64_t end, float* out) {
    const int64_t bytes = w.columns * (FOUR ? W / 2 : W), passes = (in.n_rows + MANY - 1) / MANY;
    const int64_t first = p * W > begin ? p * W : begin, last = (p + M) * W < end ? (p + M) * W : end;
    // 一行激活：请 AHEAD 之后的；几行：每一批请下面几片的一份，见 Ahead
    Ahead ahead = {(const char*)w.data + p * bytes + (in.n_rows == 1 ? AHEAD : M * bytes), W * DEPTH / passes};
    float some[MANY * M * W];
    int64_t n;
    for (int64_t r = 0; r < in.n_rows; r += n) {
        const int64_t left = in.n_rows - r;
        if (left >= MANY) panel<B, FOUR, M, MANY>(w, p, in, r, ahead, some), n = MANY;
        else if (left >= 2) panel<B, FOUR, M, 2>(w, p, in, r, ahead, some), n = 2;
        else panel<B, FOUR, M, 1>(w, p, in, r, ahead, some), n = 1;
        for (int64_t m = 0; m < n; m++)
            for (int64_t i = first; i < last; i++) out[(r + m) * CHUNK + i - begin] = some[m * M * W + i - p * W];
    }
}

// 第 begin … end−1 行（至多 CHUNK 行，不一定从一片的开头起）
template <int B, bool FOUR>
static void chunk(const Matrix& w, const Input& in, int64_t begin, int64_t end, float* out) {
    int64_t p = begin / W;
    if (in.n_rows > 1)
        for (; (p + PANELS) * W <= end; p += PANELS) panels<B, FOUR, PANELS>(w, p, in, begin, end, out);
    for (; p * W < end; p++) panels<B, FOUR, 1>(w, p, in, begin, end, out);
}

// y[r][n] = W[n]·x[r] + b[n]，n 从 begin 到 end；每得到一个就交给 emit(r, n, 值)
template <class Emit>
static inline void multiply(const Matrix& w, Input& in, int64_t begin, int64_t end, float* out, Emit emit) {
    if (w.kind >= INT8 && in.block != w.block) quantize(in, w.block, 0, in.n_rows), in.block = w.block;
    for (int64_t n = begin; n < end; n += CHUNK) {
        const int64_t stop = n + CHUNK < end ? n + CHUNK : end;
        if (w.kind == FLOAT32) blocks<float>(w, in, n, stop, out);
        else if (w.kind == BFLOAT16) blocks<bf16>(w, in, n, stop, out);
        else if (w.kind == INT8 && w.block == 64) chunk<64, false>(w, in, n, stop, out);
        else if (w.kind == INT8) chunk<32, false>(w, in, n, stop, out);
        else if (w.block == 64) chunk<64, true>(w, in, n, stop, out);
        else chunk<32, true>(w, in, n, stop, out);
        for (int64_t r = 0; r < in.n_rows; r++)
            for (int64_t i = n; i < stop; i++) {
                const float value = out[r * CHUNK + i - n];
                emit(r, i, w.bias ? value + w.bias[i] : value);
            }
    }
}
