r"""一个块由哪些零件拼成？——照配置造出注意力、前馈与归一化，接成一个 TransformerBlock。

    GPTConfig ──┬─ norm, norm_eps ───────────────► 归一化 × 2
                ├─ n_heads, rope, window … ──────► CausalSelfAttention ─┐
                └─ ffn_dim, activation, gated ───► FeedForward ─────────┴─► TransformerBlock

$$x \leftarrow x + \text{Attention}(\text{Norm}(x)), \qquad
  x \leftarrow x + \text{FeedForward}(\text{Norm}(x))$$

这一页没有一处问「你是 GPT-2 还是 Llama」：家族之间的差别只是传进去的值不同。

论文：Vaswani 等 2017《Attention Is All You Need》(arXiv:1706.03762)

改哪里：
  · 想让某几层与别的层不同（一层看全文、一层看窗口）——build_block 加一个层号的参数。
  · 想换一种零件——把它登记进 layers.py 的 NORMS、ACTIVATIONS，配置里写上名字。
"""

from __future__ import annotations

from torch import nn

from gpt_model.config import GPTConfig
from transformer_basics.attention import CausalSelfAttention
from transformer_basics.layers import NORMS, FeedForward, LayerNorm, TransformerBlock
from transformer_basics.rotary import RotaryEmbedding

__all__ = ["build_block", "build_norm", "build_rotary"]


def build_norm(config: GPTConfig) -> nn.Module:
    """按配置取一种归一化；只有 LayerNorm 才有偏置，RMSNorm 连均值都不减。"""
    if config.norm == "layernorm":
        return LayerNorm(config.dim, eps=config.norm_eps, bias=config.proj_bias)
    return NORMS[config.norm](config.dim, eps=config.norm_eps)


def build_rotary(config: GPTConfig) -> RotaryEmbedding | None:
    """各层共用的一张旋转表；位置不是 rope 的没有。"""
    if config.position != "rope":
        return None
    return RotaryEmbedding(
        config.head_size,  # 每个头里两两一对地转
        theta=config.rope_theta,
        max_seq_len=config.max_seq_len,
        scaling=config.rope_scaling,  # None 就是原版
    )


def build_block(config: GPTConfig, rotary: RotaryEmbedding | None) -> TransformerBlock:
    """一个块 = 注意力（词元之间交流）+ 前馈（各自消化），各配一个归一化。

    公式：Pre-LN  x ← x + Attention(Norm(x))；x ← x + FeedForward(Norm(x))
    约定：rotary 由各层共用；None 表示位置不写进注意力
    """
    c = config
    attention = CausalSelfAttention(
        c.dim,
        c.n_heads,  # 各看各的关系，互不相扰
        n_kv_heads=c.kv_heads,  # 少于 n_heads 就是 grouped-query attention
        head_dim=c.head_size,  # H·d 可以不等于 D
        qkv_bias=c.qkv_bias,
        proj_bias=c.proj_bias,
        rotary=rotary,
        qk_norm=c.qk_norm,  # 打分前把 q、k 归一
        norm_eps=c.norm_eps,
        sliding_window=c.sliding_window,  # 只看最近的词元
        dropout=c.dropout,
    )
    feed_forward = FeedForward(
        c.dim,
        c.ffn_size,  # 先放宽再收窄
        activation=c.activation,
        gated=c.gated_ffn,  # silu 加门控就是 SwiGLU
        bias=c.proj_bias,
    )
    # dropout 照 GPT-2：词向量、注意力权重、写回残差的两处；前馈内部不再加
    norms = build_norm(c), build_norm(c)
    return TransformerBlock(
        attention, feed_forward, *norms, norm_position=c.norm_position, dropout=c.dropout
    )
