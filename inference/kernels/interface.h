// Python 与 C++ 之间的约定：两边各写一遍同样的结构，次序与类型必须一致（见 kernel_interface.py）。
//
// 全部是指针与整数：数据仍归 torch 的张量所有，这里只是借来读。
#pragma once
#include <stdint.h>

// 次数写死的小循环，早早展开：晚了，GCC 就不知道累加器可以一直留在寄存器里，每一步都写回内存，慢一半
#define UNROLL _Pragma("GCC unroll 32")

struct bf16 { uint16_t bits; };  // 16 位的浮点数：float32 的高一半

enum Kind : int64_t { NONE = 0, FLOAT32 = 1, BFLOAT16 = 2, INT8 = 3, INT4 = 4 };
enum NormKind : int64_t { NO_NORM = 0, LAYER_NORM = 1, RMS_NORM = 2 };
enum Activation : int64_t { RELU = 0, RELU2 = 1, SILU = 2, GELU_TANH = 3, GELU = 4 };

// 一个线性层 y = Wx + b；浮点的 W 按行存：第 n 行的 K 个数挨在一起，就是第 n 个输出要读的全部；
// 整数的 W 按片存：几行并排，见 integers.h
struct Matrix {
    Kind kind;
    int64_t rows, columns;  // N、K；INT8 与 INT4 的 K 已补成 block 的倍数
    int64_t block;          // INT8、INT4：几个权重共用一个刻度（32 或 64）
    const void* data;       // float32、bfloat16、int8，或每字节两个的四比特
    const bf16* scale;      // (⌈N / 片⌉, K / block, 片)
    const int8_t* zero;     // 同上，或空：ŵ = scale·(q − zero)
    const float* bias;      // (N,) 或空
};

struct Norm {
    NormKind kind;
    double epsilon;
    const float* weight;
    const float* bias;
};

struct Block {
    Norm attention_norm, ffn_norm, query_norm, key_norm;
    Matrix query, key, value, output, gate, up, down;
};

struct Model {
    int64_t dim, n_heads, n_kv_heads, head_dim, ffn_dim, vocab_size;
    int64_t window;       // 0：看到开头
    int64_t post_norm;    // 1：归一化在主路上
    Activation activation;
    double softcap;       // 0：不限幅
    Matrix embedding;     // 词向量表；kind = NONE 时由调用者算好 x
    const float* position_table;  // (C, D) 或空
    int64_t n_positions;
    const float* cos;     // RoPE 的两张表 (L, d)，或空；sin 的前一半已带负号
    const float* signed_sin;
    int64_t n_angles;
    Norm final_norm;
    Matrix head;
    const Block* blocks;
};

// 一次前向：B 行文本，每行 T 个新词元；缓存里已有 start 个
struct Step {
    int64_t n_sequences, n_new, start;
    int64_t first_block, last_block;  // 跑 [first, last) 这几块
    int64_t embed, score;             // 开头要不要查表；末尾打分的词元数：0、1（最后一个）或 T
    int64_t n_threads;
    const int64_t* ids;        // (B, T)
    const int64_t* positions;  // (T,)、(B, T) 或空
    int64_t position_stride;   // 0：各行相同
    const uint8_t* real;       // (B, S) 真 = 不是填充，或空
    int64_t real_stride;
    float* x;                  // (B·T, D) 残差流，进出都在这里
    float* logits;             // (B·score, V)
    Kind cache_kind;           // FLOAT32 或 BFLOAT16
    int64_t capacity;
    void* const* keys;         // 每层一个指针 (B, G, C, d)
    void* const* values;
};

// 返回值：0 成功；其余是「这一步不归我管」，由 Python 走 PyTorch 的路
enum Refusal { DONE = 0, HOLES_IN_MASK = 1, POSITION_OUT_OF_RANGE = 2, ID_OUT_OF_RANGE = 3 };
