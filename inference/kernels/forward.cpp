// 一次前向：B 行文本，每行 T 个新词元，从编号到下一个词元的分数，中间不回到 Python。
//
//   x ─► Norm ─► q、k、v（旋转，k、v 写进缓存）─► 注意力 ─► 输出投影 ─► +x
//     ─► Norm ─► 变宽、激活 ─► 变窄 ─► +x        …… 每块五段，段与段之间各个核等齐一次
//
// 编译时处理器认得哪些指令，就用哪一个 vector_*.h；公式只写一遍。
// 每个核自己归一化一遍输入（几百个数，比等别人算好再传过来快），各算自己的那些行。
//
// 改哪里：换一种归一化或激活 → pieces.h；换一种存权重的办法 → products.h 与 vector_*.h。
#include <math.h>
#include <stdlib.h>

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <new>
#include <vector>
#if defined(_OPENMP)
#include <omp.h>
#endif

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include "vector_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "vector_avx2.h"
#else
#include "vector_plain.h"
#endif
#include "pieces.h"
#include "sharing.h"

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

// 从一整条缓存线起头的草稿：一次读 64 字节，不齐的话每次都要碰两条
template <class T>
struct Lines {
    using value_type = T;
    Lines() = default;
    template <class U>
    Lines(const Lines<U>&) {}
    T* allocate(size_t n) { return (T*)::operator new(n * sizeof(T), std::align_val_t(64)); }
    void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t(64)); }
    bool operator==(const Lines&) const { return true; }
    bool operator!=(const Lines&) const { return false; }
};
using Floats32 = std::vector<float, Lines<float>>;

// 一个核自己的草稿：够大就不再申请
struct Desk {
    Floats32 normed, head, scores, scales, product;
    std::vector<int8_t, Lines<int8_t>> digits;
    std::vector<int32_t> totals;
};

float* room(Floats32& v, int64_t n) {
    if ((int64_t)v.size() < n) v.resize(n);
    return v.data();
}

struct Ledger {  // 每段活一份账
    std::unique_ptr<Share[]> owner;
    Share* items = nullptr;
    int64_t size = 0;
    void clear(int64_t n, int64_t n_threads) {
        if (n > size) owner.reset(new Share[n]), items = owner.get(), size = n;
        for (int64_t i = 0; i < n; i++) {
            for (int64_t t = 0; t < n_threads; t++) items[i].next[t].value.store(0, std::memory_order_relaxed);
            items[i].done.value.store(0, std::memory_order_relaxed);
        }
    }
};

// 各个核共用的：注意力的 q、汇总的结果、前馈的中间层
struct Table {
    Floats32 query, heads, hidden;
    std::vector<int64_t> first, position;
    Ledger shares;
    Desk rows;  // 长的提示：归一化、取整之后的各行
};

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// 取整要用的草稿：按最短的组（32 个）留地方
void lend(Input& in, Desk& desk) {
    const int64_t padded = (in.columns + 63) / 64 * 64, groups = in.n_rows * (padded / 32);
    if ((int64_t)desk.digits.size() < 2 * in.n_rows * padded) desk.digits.resize(2 * in.n_rows * padded);
    if ((int64_t)desk.totals.size() < groups) desk.totals.resize(groups);
    in.digits = desk.digits.data(), in.totals = desk.totals.data(), in.scales = room(desk.scales, groups);
}

constexpr int64_t ALONE = 16;  // 至多几行时，各个核各自归一化、取整

struct Pass {
    const Model& model;
    const Step& step;
    Table& table;
    int64_t R, T;
    int64_t unit;  // 一份活几行权重：几行激活时大些，权重才用得够；一行时小些，好分给几个核

    // 一段的输入：归一化过（或原样）的几行；给整数的权重用的还要取整。
    // 几百行时（长的提示）大家分着做，做完再乘；几行时各做一遍，比等别人快
    using Matrices = std::initializer_list<const Matrix*>;
    Input input(Desk& desk, Worker& worker, Matrices all, const Norm* norm, const float* x, int64_t columns) const {
        int64_t block = 0;
        bool agree = true;  // 几个矩阵的组一样大，取整才能只做一次
        for (const Matrix* w : all)
            if (w->kind >= INT8) agree = agree && (block == 0 || block == w->block), block = w->block;
        return R > ALONE && agree ? together(worker, block, norm, x, columns) : alone(desk, norm, x, R, columns);
    }

    Input alone(Desk& desk, const Norm* norm, const float* x, int64_t rows, int64_t columns) const {
        Input in = {norm && norm->kind != NO_NORM ? room(desk.normed, rows * columns) : x, rows, columns};
        if (in.x != x)
            for (int64_t r = 0; r < rows; r++) normalize(*norm, x + r * columns, columns, desk.normed.data() + r * columns);
        lend(in, desk);
        return in;
    }

    Input together(Worker& worker, int64_t block, const Norm* norm, const float* x, int64_t columns) const {
        const bool normed = norm && norm->kind != NO_NORM;
        Input in = {normed ? table.rows.normed.data() : x, R, columns};
        in.digits = table.rows.digits.data(), in.scales = table.rows.scales.data(), in.totals = table.rows.totals.data();
        worker.share(R, [&](int64_t r) {
            if (normed) normalize(*norm, x + r * columns, columns, table.rows.normed.data() + r * columns);
            quantize(in, block, r, r + 1);
        });
        in.block = block;
        return in;
    }

    float* out(Desk& desk) const { return room(desk.product, R * CHUNK); }

    // ① 第 u 个头：0…H−1 是查询，接着 G 个键、G 个值；一个头的 d 行由一个核算完，当场旋转、当场存好
    void project_head(const Block& block, Input& in, int64_t u, int64_t layer, Desk& desk) const {
        const int64_t H = model.n_heads, G = model.n_kv_heads, d = model.head_dim;
        const int64_t kind = u < H ? 0 : u < H + G ? 1 : 2, head = kind == 0 ? u : kind == 1 ? u - H : u - H - G;
        const Matrix& w = kind == 0 ? block.query : kind == 1 ? block.key : block.value;
        const Norm& norm = kind == 0 ? block.query_norm : block.key_norm;
        float* y = room(desk.head, R * d);
        multiply(w, in, head * d, head * d + d, out(desk), [&](int64_t r, int64_t n, float v) { y[r * d + n - head * d] = v; });
        for (int64_t r = 0; r < R; r++) {
            float* one = y + r * d;
            if (kind != 2) {
                if (norm.kind != NO_NORM) normalize(norm, one, d, one);
                const int64_t p = table.position[r];
                if (model.cos) rotate(one, d, model.cos + p * d, model.signed_sin + p * d);
            }
            if (kind == 0) {
                put(table.query.data() + (r * H + head) * d, one, d);
                continue;
            }
            void* cache = (kind == 1 ? step.keys : step.values)[layer];
            const int64_t at = ((r / T * G + head) * step.capacity + step.start + r % T) * d;
            if (step.cache_kind == FLOAT32) put((float*)cache + at, one, d);
            else put((bf16*)cache + at, one, d);
        }
    }

    // ② 第 r 个词元的第 h 个头：看自己和前文（窗口之内、填充之外）
    void attend_head(int64_t layer, int64_t r, int64_t h, Desk& desk) const {
        const int64_t H = model.n_heads, G = model.n_kv_heads, d = model.head_dim;
        const int64_t here = step.start + r % T;
        int64_t from = table.first[r / T] < here ? table.first[r / T] : here;  // 填充只看自己
        if (model.window && here - model.window + 1 > from) from = here - model.window + 1;
        const int64_t at = ((r / T * G + h / (H / G)) * step.capacity + from) * d, n = here - from + 1;
        const float* q = table.query.data() + (r * H + h) * d;
        float* out = table.heads.data() + (r * H + h) * d;
        float* scores = room(desk.scores, n);
        if (step.cache_kind == FLOAT32)
            attend(q, (const float*)step.keys[layer] + at, (const float*)step.values[layer] + at, n, d, scores, out);
        else
            attend(q, (const bf16*)step.keys[layer] + at, (const bf16*)step.values[layer] + at, n, d, scores, out);
    }

    // 一个核的全部工作；share 把一段活分给各个核，都做完才往下走
    void run(Desk& desk, Worker& worker) const {
        const int64_t D = model.dim, F = model.ffn_dim, H = model.n_heads, G = model.n_kv_heads;
        float* x = step.x;
        if (step.embed) embed(worker);
        for (int64_t layer = step.first_block; layer < step.last_block; layer++) {
            const Block& block = model.blocks[layer];
            const bool pre = !model.post_norm;
            Input in = input(desk, worker, {&block.query, &block.key, &block.value}, pre ? &block.attention_norm : nullptr, x, D);
            worker.share(H + 2 * G, [&](int64_t u) { project_head(block, in, u, layer, desk); });
            worker.share(R * H, [&](int64_t i) { attend_head(layer, i / H, i % H, desk); });
            // ③ 各头的发现混合起来，加到主路上
            in = input(desk, worker, {&block.output}, nullptr, table.heads.data(), H * model.head_dim);
            add_to(x, block.output, in, desk, worker);
            if (!pre) settle(block.attention_norm, x, worker);
            // ④ 变宽、激活：门与宽的同一段由同一个核算，当场相乘
            in = input(desk, worker, {&block.up, &block.gate}, pre ? &block.ffn_norm : nullptr, x, D);
            worker.share((F + unit - 1) / unit, [&](int64_t i) { widen(block, in, i * unit, least(i * unit + unit, F), desk); });
            // ⑤ 变窄，加到主路上
            in = input(desk, worker, {&block.down}, nullptr, table.hidden.data(), F);
            add_to(x, block.down, in, desk, worker);
            if (!pre) settle(block.ffn_norm, x, worker);
        }
        if (step.score) score(desk, worker);
    }

    void embed(Worker& worker) const {
        const int64_t D = model.dim;
        worker.share(R, [&](int64_t r) {
            const int64_t id = step.ids[r];
            float* x = step.x + r * D;
            for (int64_t i = 0; i < D; i++) {
                x[i] = entry(model.embedding, id, i);
                if (model.position_table) x[i] += model.position_table[table.position[r] * D + i];
            }
        });
    }

    void add_to(float* x, const Matrix& w, Input& in, Desk& desk, Worker& worker) const {
        const int64_t N = w.rows;
        worker.share((N + unit - 1) / unit, [&](int64_t i) {
            multiply(w, in, i * unit, least(i * unit + unit, N), out(desk),
                     [&](int64_t r, int64_t n, float v) { x[r * N + n] += v; });
        });
    }

    void settle(const Norm& norm, float* x, Worker& worker) const {  // Post-LN：主路上的归一化
        worker.share(R, [&](int64_t r) { normalize(norm, x + r * model.dim, model.dim, x + r * model.dim); });
    }

    void widen(const Block& block, Input& in, int64_t begin, int64_t end, Desk& desk) const {
        const int64_t F = model.ffn_dim, width = end - begin;
        float* hidden = table.hidden.data();
        const bool gated = block.gate.kind != NONE;
        multiply(gated ? block.gate : block.up, in, begin, end, out(desk),
                 [&](int64_t r, int64_t n, float v) { hidden[r * F + n] = v; });
        for (int64_t r = 0; r < R; r++)
            each(hidden + r * F + begin, width, [&](Vec v) { return activate(v, model.activation); });
        if (gated)
            multiply(block.up, in, begin, end, out(desk), [&](int64_t r, int64_t n, float v) { hidden[r * F + n] *= v; });
    }

    void score(Desk& desk, Worker& worker) const {
        const int64_t D = model.dim, V = model.vocab_size, each_row = step.score, rows = step.n_sequences * each_row;
        const float* x = step.x;
        if (each_row != T) {  // 只要每行的最后一个
            float* last = room(desk.head, rows * D);
            for (int64_t b = 0; b < rows; b++) put(last + b * D, x + (b * T + T - 1) * D, D);
            x = last;
        }
        Input in = alone(desk, &model.final_norm, x, rows, D);
        worker.share((V + unit - 1) / unit, [&](int64_t i) {
            const int64_t begin = i * unit, end = least(begin + unit, V);
            multiply(model.head, in, begin, end, out(desk),
                     [&](int64_t r, int64_t n, float v) { step.logits[r * V + n] = v; });
            if (model.softcap == 0.0) return;
            const float cap = (float)model.softcap;
            for (int64_t r = 0; r < rows; r++)  // c·tanh(v / c) = c·(2·sigmoid(2v / c) − 1)
                each(step.logits + r * V + begin, end - begin, [&](Vec v) {
                    return fma(sigmoid(v * set(2.0f / cap)), set(2.0f * cap), set(-cap));
                });
        });
    }
};

// 每行从哪里起是真词元（左填充）、每个词元的位置；有看不懂的就整步退回
int place(const Model& model, const Step& step, Table& table) {
    const int64_t T = step.n_new, length = step.start + T;
    table.first.assign(step.n_sequences, 0);
    table.position.resize(step.n_sequences * T);
    int64_t limit = INT64_MAX;
    if (model.position_table) limit = model.n_positions;
    if (model.cos && model.n_angles < limit) limit = model.n_angles;
    for (int64_t b = 0; b < step.n_sequences; b++) {
        if (step.real) {
            const uint8_t* real = step.real + b * step.real_stride;
            int64_t first = 0;
            while (first < length && !real[first]) first++;
            for (int64_t s = first; s < length; s++)
                if (!real[s]) return HOLES_IN_MASK;
            table.first[b] = first;
        }
        for (int64_t t = 0; t < T; t++) {
            const int64_t id = step.ids[b * T + t];
            if (id < 0 || id >= model.vocab_size) return ID_OUT_OF_RANGE;
            int64_t p = step.start + t - table.first[b];
            if (step.positions) p = step.positions[b * step.position_stride + t];
            else if (p < 0) p = 0;
            if (p < 0 || p >= limit) return POSITION_OUT_OF_RANGE;
            table.position[b * T + t] = p;
        }
    }
    return DONE;
}

}  // namespace

// 看一遍输入，什么也不动：0 是可以，别的说明为什么不可以
EXPORT int inspect(const Model* model, const Step* step) {
    static thread_local Table table;
    return place(*model, *step, table);
}

EXPORT int forward(const Model* model, const Step* step) {
    static thread_local Table table;
    const int refusal = place(*model, *step, table);
    if (refusal != DONE) return refusal;
    const int64_t R = step->n_sequences * step->n_new;
    room(table.query, R * model->n_heads * model->head_dim);
    room(table.heads, R * model->n_heads * model->head_dim);
    room(table.hidden, R * model->ffn_dim);
    const Pass pass = {*model, *step, table, R, step->n_new, R > 1 ? CHUNK : CHUNK / 2};
    if (R > ALONE) {
        Input widest = {nullptr, R, std::max({model->dim, model->n_heads * model->head_dim, model->ffn_dim})};
        room(table.rows.normed, R * model->dim);
        lend(widest, table.rows);
    }
    // 每块至多十一段，再加查表与打分
    const int64_t phases = 11 * (step->last_block - step->first_block) + 2;
    const int64_t threads = least(step->n_threads, MOST_THREADS);
    table.shares.clear(phases, threads);
    const Team team = {table.shares.items, threads};
#if defined(_OPENMP)
#pragma omp parallel num_threads((int)team.n_threads)
    {
        static thread_local Desk desk;
        Worker worker = {team, omp_get_thread_num()};
        pass.run(desk, worker);
    }
#else
    static thread_local Desk desk;
    Worker worker = {team, 0};
    pass.run(desk, worker);
#endif
    return DONE;
}

// 把 n 个数读一遍，加起来：内存每秒能读多少，就是写词元的上限；读法与乘法相同
EXPORT float read_all(const float* data, int64_t n, int64_t n_threads) {
    float total = 0.0f;
#if defined(_OPENMP)
#pragma omp parallel for num_threads((int)n_threads) reduction(+ : total)
#endif
    for (int64_t part = 0; part < n_threads; part++) {
        const int64_t begin = n * part / n_threads / (8 * W) * (8 * W), end = n * (part + 1) / n_threads;
        Vec sums[8];
        for (auto& one : sums) one = zero();
        for (int64_t i = begin; i + 8 * W <= end; i += 8 * W)
            for (int j = 0; j < 8; j++) {
                prefetch((const char*)(data + i + j * W) + AHEAD);
                sums[j] = sums[j] + load(data + i + j * W);
            }
        for (const auto& one : sums) total += sum(one);
    }
    return total;
}

// 处理器自己会乘 bfloat16 吗？不会的话，PyTorch 的那种乘法要慢好几倍
EXPORT int has_bfloat16() {
#if defined(__AVX512BF16__) || defined(__AMX_BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    return 1;
#else
    return 0;
#endif
}
// 整数的权重要怎样排，见 integers.h
EXPORT int vector_width() { return W; }
EXPORT int code_depth() { return DEPTH; }
