r"""我们的 GPTConfig，在 llama.cpp 那里叫什么？——选一种架构，改名，有时还要重排 q、k 的行。

llama.cpp 每种架构一份 C++ 代码，文件里写着 general.architecture，它照这个名字选。
所以我们的字段必须恰好落在某一份代码会算的范围里，差一样就拒绝，并说出是哪个字段。

                norm       position  activation  gated_ffn  qk_norm  qkv_bias  旋转的配对
    gpt2        layernorm  learned   gelu_tanh   否         否       随意      —
    llama       rmsnorm    rope      silu        是         否       否        相邻两维
    qwen2       rmsnorm    rope      silu        是         否       是        前后两半
    qwen3       rmsnorm    rope      silu        是         是       否        前后两半
    arcee       rmsnorm    rope      relu2       否         否       否        相邻两维

最容易错的是最后一列。我们（与 Hugging Face）把第 i 维和第 i + d/2 维配成一对来旋转；llama.cpp 的
llama 架构沿用 Meta 原来的约定，配的是第 2i 维与第 2i + 1 维。于是 W_Q、W_K 的行要重排：

    我们的行    a₀ a₁ a₂ … │ b₀ b₁ b₂ …          第 i 对是 (a_i, b_i)，a、b 各 d/2 行
    llama 的行  a₀ b₀ a₁ b₁ a₂ b₂ …              $\mathrm{row}_{2i+j} = \mathrm{row}_{i + j\,d/2}$

q 与 k 按同样的次序重排，内积 q·k 一个数也不变，变的只是「谁与谁一起转」；V 不旋转，不动。
忘了重排不会报错，第 0 个位置（转 0 度）甚至完全正确，从第 1 个起才全错。

GPT-2 的 q、k、v 在文件里拼成一个（attn_qkv），(D, D) 三个竖着接成 (3D, D)；它处处要有偏置，
没有偏置的模型补上 0：y = x·Wᵀ + 0，一个比特也不差。

RoPE 的拉长：linear、yarn 有现成的键；ntk 只是换底，写进 freq_base；llama3 的频率写成一个小张量
rope_freqs（ω/ω'，推理时 ω 除以它），只有「相邻两维」的两种架构会读它。

常见疑问：
    为什么不都用「前后两半」？ 架构名决定配对：general.architecture 写 llama，就是相邻两维。
        Qwen 的作者直接用 Hugging Face 的约定，qwen2、qwen3 便是两半，行一动不动。
    Mistral 呢？ 没有自己的架构，结构与 llama 相同，就写 llama；滑动窗口比上下文短的要拒绝，
        那份 C++ 代码总是看全文。
    arcee 是谁？ 一家公司的模型，用 ReLU² 而不带门控：本书 modern-* 预设去掉 qk_norm 就是它。
    modern-* 为什么不行？ ReLU² 加 qk_norm，llama.cpp 里没有这样一份代码。
    lm_head 与词表共用时？ 只写词表；读的一方找不到 output，就拿 token_embd 来打分。

出处：llama.cpp 的 llama-arch.cpp 与 src/models/ 各架构的 load_arch_tensors。
改哪里：多一种架构 → ARCHITECTURES 加一行；多一个张量名 → NAMES；
       多一种 RoPE 的拉长 → rope_metadata，它有没有对应的键要查 llama-hparams.cpp。
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foundation.demonstration import run_demo
from gpt_model.config import GPTConfig
from gpt_model.huggingface_config import pairs
from gpt_model.model import GPT
from transformer_basics.rotary import rope_frequencies

__all__ = [
    "ARCHITECTURES",
    "GGUFTensor",
    "architecture_metadata",
    "architecture_of",
    "interleave_pairs",
    "tensors_of",
]

# ── 字段必须取的值 ──────────────────────────────────────────────────────────────────
# 没有列出的字段随意：大小与头数（写进键里）、词表共用与否（有没有 output）、
# norm_eps、rope_theta（也是键）、dropout 与初始化（推理时没有）。
# 一个字段没有列出、却会改变算出的数，就是这张表的错误：测试让 llama.cpp 逐个算过
_PLAIN: dict[str, Any] = {
    "norm_position": "pre",  # 各家都是先归一化；Post-LN 的顺序没有一份代码支持
    "logit_softcap": None,  # 有的架构（Gemma 2）会，但它还有别的不同
    "token_shift": False,  # 词向量只查表，不掺前一个词元的
    "bigram_rows": None,  # 也没有二元词嵌入的表
}
_ROPE = {**_PLAIN, "norm": "rmsnorm", "position": "rope", "proj_bias": False}
_SWIGLU = {**_ROPE, "activation": "silu", "gated_ffn": True}  # 三个矩阵的前馈
_TWO = {**_ROPE, "gated_ffn": False}  # 两个矩阵的前馈
_CLASSIC = {**_PLAIN, "norm": "layernorm", "position": "learned", "gated_ffn": False}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    # ggml 的 gelu 就是 tanh 近似（还查了一张 float16 的表，所以 logits 只到千分之一）
    "gpt2": {**_CLASSIC, "activation": "gelu_tanh", "qk_norm": False},
    "llama": {**_SWIGLU, "qk_norm": False, "qkv_bias": False},  # 也是 Mistral
    "qwen2": {**_SWIGLU, "qk_norm": False, "qkv_bias": True},  # 只有 q、k、v 带偏置
    "qwen3": {**_SWIGLU, "qk_norm": True, "qkv_bias": False},  # q、k 先归一化再旋转
    "arcee": {**_TWO, "activation": "relu2", "qk_norm": False, "qkv_bias": False},
}
INTERLEAVED = ("llama", "arcee")  # 相邻两维配对；rope_freqs 也只有它们读
WIDTH_IS_HEADS = ("gpt2", "qwen2")  # 它们的 C++ 代码假定 n_heads · head_dim = dim

# ── 张量名：我们的 → GGUF 的 ────────────────────────────────────────────────────────
# 各架构没有冲突，一张表就够：没有的零件在模型里找不到，跳过即可。
# .weight 与 .bias 两边相同，由 tensors_of 补上；次序就是文件里的次序
NAMES = pairs("""
    token_embedding token_embd
    position_embedding position_embd
    blocks.{i}.attention_norm blk.{i}.attn_norm
    blocks.{i}.attention.q_proj blk.{i}.attn_q
    blocks.{i}.attention.k_proj blk.{i}.attn_k
    blocks.{i}.attention.v_proj blk.{i}.attn_v
    blocks.{i}.attention.q_norm blk.{i}.attn_q_norm
    blocks.{i}.attention.k_norm blk.{i}.attn_k_norm
    blocks.{i}.attention.out_proj blk.{i}.attn_output
    blocks.{i}.ffn_norm blk.{i}.ffn_norm
    blocks.{i}.feed_forward.gate_proj blk.{i}.ffn_gate
    blocks.{i}.feed_forward.up_proj blk.{i}.ffn_up
    blocks.{i}.feed_forward.down_proj blk.{i}.ffn_down
    final_norm output_norm
    lm_head output
""")
ENDINGS = (".weight", ".bias")
NO_BIAS = ("token_embd", "position_embd", "output")  # 查表与打分从来没有偏置


@dataclass(frozen=True)
class GGUFTensor:
    """文件里的一个张量：名字、形状，与写到它时才做的那点整理。

    形状：parts 沿第 0 维接起来；pair_heads 给出头数时，再把每个头的行从两半改成相邻
    """

    name: str  # 带着 .weight 或 .bias
    parts: tuple[Tensor, ...]  # 多数只有一段，gpt2 的 attn_qkv 有三段
    pair_heads: int | None = None  # None：行的次序不动

    @property
    def shape(self) -> tuple[int, ...]:
        """接好之后的形状；写张量表只要它，不必真的接。"""
        return (sum(len(part) for part in self.parts), *self.parts[0].shape[1:])

    def build(self) -> Tensor:
        """现在才接、才重排：一次只有一个张量多占一份内存。"""
        whole = torch.cat(self.parts) if len(self.parts) > 1 else self.parts[0]
        return whole if self.pair_heads is None else interleave_pairs(whole, self.pair_heads)


def interleave_pairs(tensor: Tensor, n_heads: int) -> Tensor:
    """把每个头的行从 [a₀ a₁ … │ b₀ b₁ …] 重排成 [a₀ b₀ a₁ b₁ …]。

    形状：(H·d, D) 或 (H·d,) → 同样的形状
    """
    # (H, 2, d/2, …)：第 1 维分清是 a 还是 b；与第 2 维对调，a_i、b_i 就挨在一起
    halves = tensor.reshape(n_heads, 2, -1, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def architecture_of(config: GPTConfig) -> str:
    """哪一种架构算得出与我们相同的数；一种都不行就拒绝。

    做法：数一数每种架构差几样，差 0 样的就是它；都差，就说最接近的一种差在哪里
    错误：ValueError，写明每个不合的字段、必须的值与现在的值
    """
    # ① 表里的字段，逐个比
    wrong = {
        name: {field: value for field, value in fixed.items() if getattr(config, field) != value}
        for name, fixed in ARCHITECTURES.items()
    }
    nearest = min(wrong, key=lambda name: len(wrong[name]))  # 一样近的取表里靠前的
    problems = [
        f"{field} {wanted!r} (got {getattr(config, field)!r})"
        for field, wanted in wrong[nearest].items()
    ]
    # ② 不在表里的三样，要算一算。头宽：W_O 在这两家是 (D, D)，不是 (D, H·d)
    if nearest in WIDTH_IS_HEADS and config.n_heads * config.head_size != config.dim:
        problems.append(f"head_dim {config.dim / config.n_heads:g} (got {config.head_size})")
    #    窗口：不小于上下文，就等于没有窗口；小于它，别人就会看得比训练时远
    window, length = config.sliding_window, config.max_seq_len
    if window is not None and window < length:
        problems.append(f"sliding_window None or >= max_seq_len {length} (got {window})")
    #    llama3 的拉长：只能写成 rope_freqs，而 qwen 的代码不看它，等于没有拉长
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "llama3" and nearest not in INTERLEAVED:
        problems.append("rope_scaling linear, ntk or yarn (got llama3)")
    if problems:
        raise ValueError(
            "llama.cpp has no architecture for this model; "
            f"the nearest, {nearest}, needs {', '.join(problems)}"
        )
    return nearest


def architecture_metadata(config: GPTConfig, architecture: str) -> dict[str, Any]:
    """模型的大小与选择，写成 GGUF 的键；int、float、str 各有各的类型，不要混。

    键名：llama.cpp 用架构的名字作前缀，例如 qwen3.block_count
    """
    epsilon = "layer_norm_epsilon" if config.norm == "layernorm" else "layer_norm_rms_epsilon"
    values: dict[str, Any] = {
        "context_length": config.max_seq_len,  # gpt2 的位置表就这么多行
        "embedding_length": config.dim,
        "block_count": config.n_layers,
        "feed_forward_length": config.ffn_size,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.kv_heads,  # 不写就当作与 head_count 相同
        f"attention.{epsilon}": float(config.norm_eps),  # 文件里是 float32
        # 头宽不必等于 dim / n_heads，所以总是写明；K 与 V 同宽
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "vocab_size": config.vocab_size,  # 没有分词器时，只有它说得出词表有多大
    }
    if config.position == "rope":
        values |= {"rope.dimension_count": config.head_size, **rope_metadata(config)}  # 每一维都转
    return {f"{architecture}.{key}": value for key, value in values.items()}


def rope_metadata(config: GPTConfig) -> dict[str, Any]:
    """旋转的底数与拉长法；llama3 在这里什么也不写，见 frequency_ratio。

    公式：ntk 是换底 θ' = θ·s^(d/(d−2))；其余不动 θ
    系数：attn_factor 乘在 llama.cpp 自己会乘的（yarn：0.1·ln s + 1）之上
    """
    scaling, theta = config.rope_scaling, float(config.rope_theta)
    if scaling is None:
        return {"rope.freq_base": theta}
    scaling = scaling.fixed(config.max_seq_len)  # dynamic：到这个长度时就是 ntk
    # ① 换底：读的一方不知道有过拉长，只看到一个大一些的底数
    if scaling.kind == "ntk":
        theta *= scaling.factor ** (config.head_size / max(config.head_size - 2, 1))
    values: dict[str, Any] = {"rope.freq_base": theta}
    # ② 有现成的键：linear 只要倍数；yarn 还要训练时的长度与两个界限
    if scaling.kind in ("linear", "yarn"):
        values |= {"rope.scaling.type": scaling.kind, "rope.scaling.factor": float(scaling.factor)}
    if scaling.kind == "yarn":
        values["rope.scaling.original_context_length"] = scaling.original_max_seq_len
        values["rope.scaling.yarn_beta_fast"] = float(scaling.beta_fast)  # 缺省也是 32
        values["rope.scaling.yarn_beta_slow"] = float(scaling.beta_slow)  # 缺省也是 1
    # ③ 指定了系数：换算成「在自动的那个之上再乘几倍」
    if scaling.attention_factor is not None:
        automatic = dataclasses.replace(scaling, attention_factor=None)
        _, factor = rope_frequencies(config.head_size, config.rope_theta, automatic)
        values["rope.scaling.attn_factor"] = scaling.attention_factor / factor
    return values


def tensors_of(model: GPT, architecture: str) -> list[GGUFTensor]:
    """按文件里的次序列出全部张量；只记下从哪里来，一个数也不复制。

    次序：词表、各类张量逐层、末尾的归一化、lm_head；llama.cpp 按名字找，次序随意
    错误：模型里有表上没有的零件（量化过的层、没有合并的 LoRA）→ ValueError，列出名字
    """
    config = model.config
    # ① 认出一个划掉一个，最后剩下的就是装不下的；state_dict 是新的字典，划掉不伤模型
    state = model.state_dict()
    #    共用的词表只写一次
    if config.tie_embeddings:
        state.pop("lm_head.weight", None)
    tensors: list[GGUFTensor] = []
    if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
        tensors.append(GGUFTensor("rope_freqs.weight", (frequency_ratio(config),)))
    for ours, theirs in NAMES.items():
        for i in range(config.n_layers) if "{i}" in ours else (0,):
            for ending in ENDINGS:
                tensor = state.pop(ours.format(i=i) + ending, None)
                if tensor is None:  # 这种架构没有的零件，或没有的偏置
                    continue
                # ② 相邻配对的架构：q、k 的行（与偏置）要重排，各按自己的头数
                heads = {"q_proj": config.n_heads, "k_proj": config.kv_heads}
                pair = heads.get(ours.rpartition(".")[2]) if architecture in INTERLEAVED else None
                tensors.append(GGUFTensor(theirs.format(i=i) + ending, (tensor,), pair))
    # ③ 还剩下的，宁可不写，也不丢掉一部分
    if state:
        raise ValueError(
            f"GGUF has no place for {', '.join(sorted(state))}; "
            "export the plain model: merge LoRA first"
        )
    return fuse_and_fill(tensors, config) if architecture == "gpt2" else tensors


def fuse_and_fill(tensors: list[GGUFTensor], config: GPTConfig) -> list[GGUFTensor]:
    """GPT-2 的两样不同：q、k、v 接成一个；没有的偏置补 0。

    形状：(Hd, D) 与两个 (Gd, D) → attn_qkv (Hd + 2Gd, D)；偏置 (Hd + 2Gd,)
    次序：q、k、v；llama.cpp 照头数从结果里切开，所以键值头少几个也行
    """
    # 字典保持放进去的次序，按名字又好找
    by_name = {tensor.name: tensor for tensor in tensors}
    # ① 补 0：凡有权重的，都要有偏置
    for tensor in tensors:
        module, _, ending = tensor.name.rpartition(".")
        if ending == "weight" and module not in NO_BIAS:
            zeros = GGUFTensor(f"{module}.bias", (torch.zeros(tensor.shape[0]),))
            by_name.setdefault(zeros.name, zeros)
    # ② 接起来：权重与偏置同样办理；真正的拼接等到写它的时候
    for i in range(config.n_layers):
        for ending in ("weight", "bias"):
            taken = [by_name.pop(f"blk.{i}.attn_{part}.{ending}") for part in "qkv"]
            name = f"blk.{i}.attn_qkv.{ending}"
            by_name[name] = GGUFTensor(name, tuple(part.parts[0] for part in taken))
    return list(by_name.values())


def frequency_ratio(config: GPTConfig) -> Tensor:
    """llama3 的拉长写成每对分量的除数：ω/ω'，形状 (d/2,)，不小于 1。

    转得快的（近处）不动，除数是 1；转得慢的（远处）压慢 s 倍，除数是 s
    """
    plain, _ = rope_frequencies(config.head_size, config.rope_theta)
    scaled, _ = rope_frequencies(config.head_size, config.rope_theta, config.rope_scaling)
    return (plain / scaled).float()


def demo() -> None:
    """行的重排、各家的键，以及装不下的模型会听到什么。"""
    from gpt_model.config import preset

    # 故意用整数：重排是看得见的
    # ① 一个头、8 行：前后两半 → 相邻两个
    rows = torch.arange(8)
    print("① 每头 8 行，重排前后：")
    print("   ", rows.tolist(), "→", interleave_pairs(rows, 1).tolist())
    assert interleave_pairs(rows, 1).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    # 转 0 度时谁和谁一起转都一样：q·k 不变，所以第 0 个位置看不出错；
    # 从第 1 个位置起，要靠测试里真正的 llama.cpp
    query, key = torch.randn(2, 32).unbind()
    same = interleave_pairs(query, 4) @ interleave_pairs(key, 4)
    assert torch.allclose(same, query @ key, atol=1e-5)

    # ② GPT-2 与 Llama 的同一层：一个是接起来的，一个是分开的
    gpt2 = GPTConfig(vocab_size=11, max_seq_len=16, dim=12, n_layers=1, n_heads=3)
    llama = gpt2.replace(n_kv_heads=1, **ARCHITECTURES["llama"])
    for config in (gpt2, llama):
        name = architecture_of(config)
        tensors = tensors_of(GPT(config), name)
        print(f"② {name}：{len(tensors)} 个张量，第 0 层的注意力：")
        for tensor in tensors:
            if "attn_" in tensor.name:
                print(f"   {tensor.name:<24}{tensor.shape}")

    # ③ 装不下的：说出差在哪里
    for refused in (preset("modern-micro"), llama.replace(logit_softcap=30.0)):
        try:
            architecture_of(refused)
            raise AssertionError("a model that llama.cpp cannot compute was accepted")
        except ValueError as error:
            print("③", error)


if __name__ == "__main__":
    run_demo(demo)
