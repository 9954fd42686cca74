// 一层的乘法 y = Wx：写一个词元的时间几乎全花在这里，而且不是花在乘，是花在把 W 从内存读进来。
//
//   内存里的 W（按行存）          每个核拿相连的一段行，从头读到尾，一遍，不回头
//   ┌───────────────┐
//   │ w₀₀ w₀₁ … w₀K │ ──► y₀ = Σₖ w₀ₖ xₖ      一次 16 个数（AVX-512），一个累加器
//   │ w₁₀ w₁₁ … w₁K │ ──► y₁                 读到第 k 个时，先请内存把 2 KB 之后的也送来
//   └───────────────┘
//
// 约定：一个 y 的加法次序只由 K 决定，与有几行 x、几个线程无关，所以成批与单独逐比特相同。
#pragma once
#include "interface.h"

// 预取多远（字节）。硬件自己会预取，但每条指令做的事越多（16 位要先变回 32 位），
// 它跑得越不够远；量出来 1–4 KB 都好，不预取少三成
static constexpr int64_t AHEAD = 2048;

// 几行激活，和它们取成 16 位整数的样子（给 INT8、INT4 的权重用，见 integers.h）
struct Input {
    const float* x;      // (R, K)
    int64_t n_rows, columns;
    int64_t block = 0;   // 0：还没有取整
    int8_t* digits = nullptr;   // (R, K′) 每个两字节，怎样排由 vector_*.h 定
    float* scales = nullptr;    // (R, K′/block)：一组共用的刻度
    int32_t* totals = nullptr;  // 同上：一组的整数之和
};

// 预取往哪里走：每算一步，请内存送来 P 处，每处往前挪 stride 字节
//   一行激活：  读到哪里，就请 AHEAD 之后的
//   几行激活：  同样的权重要给好几批 x 用，只有第一批在读内存，其余的在等乘法；
//               所以每一批各请「下面四行权重」的一份，读与乘才重得起来
struct Ahead {
    const char* place;
    int64_t stride;
    template <int P>
    inline void step() {
        for (int i = 0; i < P; i++) prefetch(place), place += stride;
    }
};

// 几个累加器各自的和：out[i] = sum(acc[i])
template <int C>
static inline void totals(const Vec* acc, float* out) {
    UNROLL for (int i = 0; i < C / W; i++) store(out + i * W, sums(acc + i * W));
    UNROLL for (int i = C / W * W; i < C; i++) out[i] = sum(acc[i]);
}

// 一步：N 行激活的 W 个数，乘 M 行权重的 W 个数；两行之间相距 stride 个
template <class T, int M, int N>
static inline void accumulate(const T* rows, const float* x, int64_t stride, Vec* acc) {
    Vec inputs[N];
    UNROLL for (int n = 0; n < N; n++) inputs[n] = load(x + n * stride);
    UNROLL for (int m = 0; m < M; m++) {
        const Vec weights = load(rows + m * stride);
        UNROLL for (int n = 0; n < N; n++) acc[n * M + m] = fma(weights, inputs[n], acc[n * M + m]);
    }
}

// M 行权重 × N 行激活的一小块；权重读一次，给 N 行用。out[n][m]
template <class T, int M, int N, int P>
static inline void tile(const Matrix& w, int64_t row, const Input& in, int64_t r, Ahead& ahead, float* out) {
    const int64_t K = w.columns, whole = K / W * W;
    const T* rows = (const T*)w.data + row * K;
    const float* x = in.x + r * K;
    Vec acc[N * M];
    UNROLL for (int i = 0; i < N * M; i++) acc[i] = zero();
    for (int64_t k = 0; k < whole; k += W) {
        ahead.step<P>();
        accumulate<T, M, N>(rows + k, x + k, K, acc);
    }
    if (whole < K) {  // K 不是 W 的倍数：剩下的抄到补了零的一格里
        float inputs[N][W] = {};
        T weights[M][W] = {};
        for (int64_t i = whole; i < K; i++) {
            for (int n = 0; n < N; n++) inputs[n][i - whole] = x[n * K + i];
            for (int m = 0; m < M; m++) weights[m][i - whole] = rows[m * K + i];
        }
        accumulate<T, M, N>(weights[0], inputs[0], W, acc);
    }
    totals<N * M>(acc, out);
}

static constexpr int64_t CHUNK = 32;  // 一次至多算多少行权重
static constexpr int TALL = 4, WIDE = W / TALL;  // 几行激活时的一小块：正好 W 个累加器

// 第 begin … end−1 行（至多 CHUNK 行）乘全部的 x：out[r·CHUNK + i] = W[begin + i]·x[r]
template <class T>
static void chunk(const Matrix& w, const Input& in, int64_t begin, int64_t end, float* out) {
    static constexpr int64_t STEP = W * sizeof(T);  // 一步读一行权重的几个字节
    const char* data = (const char*)w.data;
    const int64_t row_bytes = w.columns * sizeof(T);
    int64_t n = begin;
    if (in.n_rows == 1) {  // 写一个词元：一行一行地读，内存里只有一条连续的路
        for (; n < end; n++) {
            Ahead ahead = {data + n * row_bytes + AHEAD, STEP};
            tile<T, 1, 1, 1>(w, n, in, 0, ahead, out + n - begin);
        }
        return;
    }
    float square[WIDE * TALL], column[TALL];
    const int64_t passes = in.n_rows < WIDE ? 1 : in.n_rows / WIDE;
    const bool few = passes < TALL;  // 批少，每批就要多请几处
    for (; n + TALL <= end; n += TALL) {  // 几行激活：四行权重留在缓存里，给所有的 x 用完再走
        Ahead ahead = {data + (n + TALL) * row_bytes, (few ? 1 : TALL) * STEP / passes};
        int64_t r = 0;
        for (; r + WIDE <= in.n_rows; r += WIDE) {
            if (few) tile<T, TALL, WIDE, TALL>(w, n, in, r, ahead, square);
            else tile<T, TALL, WIDE, 1>(w, n, in, r, ahead, square);
            for (int i = 0; i < WIDE; i++)
                for (int m = 0; m < TALL; m++) out[(r + i) * CHUNK + n - begin + m] = square[i * TALL + m];
        }
        for (; r < in.n_rows; r++) {
            tile<T, TALL, 1, 1>(w, n, in, r, ahead, column);
            for (int m = 0; m < TALL; m++) out[r * CHUNK + n - begin + m] = column[m];
        }
    }
    for (; n < end; n++)
        for (int64_t r = 0; r < in.n_rows; r++) {
            Ahead ahead = {data + n * row_bytes, STEP};
            tile<T, 1, 1, 1>(w, n, in, r, ahead, square);
            out[r * CHUNK + n - begin] = square[0];
        }
}

// 长的提示：几十行几十行地走，这几十行与一份权重都留在二级缓存里
template <class T>
static void blocks(const Matrix& w, const Input& in, int64_t begin, int64_t end, float* out) {
    for (int64_t r = 0; r < in.n_rows; r += CHUNK) {
        const Input some = {in.x + r * w.columns, in.n_rows - r < CHUNK ? in.n_rows - r : CHUNK, in.columns};
        chunk<T>(w, some, begin, end, out + r * CHUNK);
    }
}
