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

出处：llama.cpp 的 llama-arch.cpp 与 src/models/ 各架构的 load_arch_tensors。
改哪里：多一种架构 → ARCHITECTURES 加一行；多一个张量名 → NAMES。
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

# ── 字段必须取的值；没有列出的字段（大小、词表共用与否、dropout……）随意 ────────────────
_PLAIN = {
    "norm_position": "pre",
    "logit_softcap": None,
    "token_shift": False,
    "bigram_rows": None,
}
_ROPE = {**_PLAIN, "norm": "rmsnorm", "position": "rope", "proj_bias": False}
_SWIGLU = {**_ROPE, "activation": "silu", "gated_ffn": True}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {
        **_PLAIN,
        "norm": "layernorm",
        "position": "learned",
        "activation": "gelu_tanh",  # ggml 的 gelu 就是 tanh 近似
        "gated_ffn": False,
        "qk_norm": False,
    },
    "llama": {**_SWIGLU, "qk_norm": False, "qkv_bias": False},
    "qwen2": {**_SWIGLU, "qk_norm": False, "qkv_bias": True},
    "qwen3": {**_SWIGLU, "qk_norm": True, "qkv_bias": False},
    "arcee": {
        **_ROPE,
        "activation": "relu2",
        "gated_ffn": False,
        "qk_norm": False,
        "qkv_bias": False,
    },
}
INTERLEAVED = ("llama", "arcee")  # 相邻两维配对；rope_freqs 也只有它们读
WIDTH_IS_HEADS = ("gpt2", "qwen2")  # 它们的 C++ 代码假定 n_heads · head_dim = dim

# ── 张量名：我们的 → GGUF 的；两家没有冲突，一张表就够 ─────────────────────────────────
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
NO_BIAS = ("token_embd", "position_embd", "output")  # 查表与打分从来没有偏置


@dataclass(frozen=True)
class GGUFTensor:
    """文件里的一个张量：名字、形状，与写到它时才做的那点整理。

    形状：parts 沿第 0 维接起来；pair_heads 给出头数时，再把每个头的行从两半改成相邻
    """

    name: str
    parts: tuple[Tensor, ...]
    pair_heads: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """接好之后的形状。"""
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

    错误：ValueError，写明最接近的架构、每个不合的字段、它现在的值与必须的值
    """
    # ① 每种架构差几样；差 0 样的就是它
    wrong = {
        name: {field: value for field, value in fixed.items() if getattr(config, field) != value}
        for name, fixed in ARCHITECTURES.items()
    }
    nearest = min(wrong, key=lambda name: len(wrong[name]))
    problems = [
        f"{field} {wanted!r} (got {getattr(config, field)!r})"
        for field, wanted in wrong[nearest].items()
    ]
    # ② 不在表里的两样，要算一算
    if nearest in WIDTH_IS_HEADS and config.n_heads * config.head_size != config.dim:
        problems.append(f"head_dim {config.dim / config.n_heads:g} (got {config.head_size})")
    #    窗口不小于上下文，就等于没有窗口
    if config.sliding_window is not None and config.sliding_window < config.max_seq_len:
        problems.append(
            f"sliding_window None or >= max_seq_len {config.max_seq_len} "
            f"(got {config.sliding_window})"
        )
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
        "context_length": config.max_seq_len,
        "embedding_length": config.dim,
        "block_count": config.n_layers,
        "feed_forward_length": config.ffn_size,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.kv_heads,
        f"attention.{epsilon}": float(config.norm_eps),
        # 头宽不必等于 dim / n_heads，所以总是写明；K 与 V 同宽
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "vocab_size": config.vocab_size,
    }
    if config.position == "rope":
        values |= {"rope.dimension_count": config.head_size, **rope_metadata(config)}
    return {f"{architecture}.{key}": value for key, value in values.items()}


def rope_metadata(config: GPTConfig) -> dict[str, Any]:
    """旋转的底数与拉长法。

    公式：ntk 是换底 θ' = θ·s^(d/(d−2))；其余不动 θ
    系数：attn_factor 乘在 llama.cpp 自己会乘的（yarn：0.1·ln s + 1）之上
    """
    scaling = config.rope_scaling
    if scaling is None:
        return {"rope.freq_base": float(config.rope_theta)}
    theta = float(config.rope_theta)
    if scaling.kind == "ntk":
        theta *= scaling.factor ** (config.head_size / max(config.head_size - 2, 1))
    values: dict[str, Any] = {"rope.freq_base": theta}
    if scaling.kind in ("linear", "yarn"):
        values |= {"rope.scaling.type": scaling.kind, "rope.scaling.factor": float(scaling.factor)}
    if scaling.kind == "yarn":
        values |= {
            "rope.scaling.original_context_length": scaling.original_max_seq_len,
            "rope.scaling.yarn_beta_fast": float(scaling.beta_fast),
            "rope.scaling.yarn_beta_slow": float(scaling.beta_slow),
        }
    if scaling.attention_factor is not None:
        # 同样的拉长法，系数不指定，就是两边自己会乘的那个
        automatic = dataclasses.replace(scaling, attention_factor=None)
        _, factor = rope_frequencies(config.head_size, config.rope_theta, automatic)
        values["rope.scaling.attn_factor"] = scaling.attention_factor / factor
    return values


def tensors_of(model: GPT, architecture: str) -> list[GGUFTensor]:
    """按文件里的次序列出全部张量；只记下从哪里来，一个数也不复制。

    错误：模型里有表上没有的零件（量化过的层、没有合并的 LoRA）→ ValueError，列出名字
    """
    config = model.config
    # ① 认出一个划掉一个；共用的词表只写一次，llama.cpp 找不到 output 就用 token_embd
    state = model.state_dict()
    if config.tie_embeddings:
        state.pop("lm_head.weight", None)
    tensors: list[GGUFTensor] = []
    if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
        tensors.append(GGUFTensor("rope_freqs.weight", (frequency_ratio(config),)))
    for ours, theirs in NAMES.items():
        for i in range(config.n_layers) if "{i}" in ours else (0,):
            for ending in (".weight", ".bias"):
                tensor = state.pop(ours.format(i=i) + ending, None)
                if tensor is None:
                    continue
                # ② 相邻配对的架构：q、k 的行（与偏置）要重排，各按自己的头数
                heads = {"q_proj": config.n_heads, "k_proj": config.kv_heads}
                pair = heads.get(ours.rpartition(".")[2]) if architecture in INTERLEAVED else None
                tensors.append(GGUFTensor(theirs.format(i=i) + ending, (tensor,), pair))
    if state:
        raise ValueError(
            f"GGUF has no place for {', '.join(sorted(state))}; "
            "export the plain model: merge LoRA, do not quantize first"
        )
    return fuse_and_fill(tensors, config) if architecture == "gpt2" else tensors


def fuse_and_fill(tensors: list[GGUFTensor], config: GPTConfig) -> list[GGUFTensor]:
    """GPT-2 的两样不同：q、k、v 接成一个；没有的偏置补 0。

    形状：(Hd, D) 与两个 (Gd, D) → attn_qkv (Hd + 2Gd, D)
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    # ① 补 0：凡有权重的，都要有偏置
    for tensor in tensors:
        module, _, ending = tensor.name.rpartition(".")
        if ending == "weight" and module not in NO_BIAS:
            zeros = GGUFTensor(f"{module}.bias", (torch.zeros(tensor.shape[0]),))
            by_name.setdefault(zeros.name, zeros)
    # ② 接起来：权重与偏置同样办理
    for i in range(config.n_layers):
        for ending in ("weight", "bias"):
            taken = [by_name.pop(f"blk.{i}.attn_{part}.{ending}") for part in "qkv"]
            name = f"blk.{i}.attn_qkv.{ending}"
            by_name[name] = GGUFTensor(name, tuple(part.parts[0] for part in taken))
    return list(by_name.values())


def frequency_ratio(config: GPTConfig) -> Tensor:
    """llama3 的拉长写成每对分量的除数：ω/ω'，形状 (d/2,)，不小于 1。"""
    plain, _ = rope_frequencies(config.head_size, config.rope_theta)
    scaled, _ = rope_frequencies(config.head_size, config.rope_theta, config.rope_scaling)
    return (plain / scaled).float()


def demo() -> None:
    """行的重排、各家的键，以及装不下的模型会听到什么。"""
    from gpt_model.config import preset

    # ① 一个头、8 行：前后两半 → 相邻两个
    rows = torch.arange(8)
    print("① 每头 8 行，重排前后：")
    print("   ", rows.tolist(), "→", interleave_pairs(rows, 1).tolist())
    assert interleave_pairs(rows, 1).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    # 转 0 度时谁和谁一起转都一样：q·k 不变，所以第 0 个位置看不出错
    query, key = torch.randn(2, 32).unbind()
    same = interleave_pairs(query, 4) @ interleave_pairs(key, 4)
    assert torch.allclose(same, query @ key, atol=1e-5)

    # ② GPT-2 与 Llama 的同一层
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
