r"""一个词元怎样从别的词元那里取得信息？——注意力。

每个词元发出三样东西：查询 q（我在找什么）、键 k（我有什么）、值 v（给你什么）。
q 与每个 k 的内积就是相关程度，经 softmax 变成权重，再对 v 加权求和：

$$\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\!\left(\frac{QK^\top}{\sqrt{d}} + M\right) V$$

    x (B, T, D) ─► q_proj ─► Q (B, H, T, d) ─┐
        │                                    ├─ QKᵀ/√d + M ─ softmax ─► A (B, H, T, S) ─┐
        ├───────► k_proj ─► K (B, G, S, d) ──┘                                          ├─ A·V
        └───────► v_proj ─► V (B, G, S, d) ─────────────────────────────────────────────┘   │
    y (B, T, D) ◄─ out_proj ◄─ 拼回各头 (B, T, H·d) ◄───────────────────────────────────────┘

本页由简到全：公式 → SelfAttention（一个头）→ MultiHeadAttention（多个头，也能交叉）→
CausalSelfAttention（GPT 真正用的：分组查询、RoPE、q/k 归一化、滑动窗口、缓存）。

论文：Vaswani 等 2017 (arXiv:1706.03762)；Ainslie 等 2023《GQA》(arXiv:2305.13245)；
     Henry 等 2020《QKNorm》(arXiv:2010.04245)；Beltagy 等 2020 滑动窗口 (arXiv:2004.05150)

改哪里：
  · 想换打分方式或掩码规则——scaled_dot_product_attention、attention_mask。
  · 想换位置编码或缓存——传入别的 rotary、cache，本页不用改。
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.checks import check_choice, check_float, check_int
from foundation.demonstration import run_demo
from transformer_basics.kv_cache import KVCache
from transformer_basics.layers import RMSNorm, wide_dtype
from transformer_basics.rotary import RotaryEmbedding, rotate

__all__ = [
    "CausalSelfAttention",
    "MultiHeadAttention",
    "SelfAttention",
    "attention_mask",
    "causal_mask",
    "scaled_dot_product_attention",
]

IMPLEMENTATIONS = ("fast", "lesson")


def causal_mask(
    n_queries: int,
    n_keys: int,
    *,
    window: int | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """因果掩码：谁可以看谁。

    公式：查询 i 的位置 p = S − T + i；可看键 j ⇔ p − w < j ≤ p（w 为窗口，None 即不限）
    形状：→ (T, S) bool，True = 可以看
    错误：T > S 时抛 ValueError：查询必须是键的最后 T 个
    """
    if n_queries > n_keys:
        raise ValueError(
            f"queries are the last of the keys: {n_queries} queries need >= {n_queries} keys,"
            f" got {n_keys}"
        )
    query_positions = torch.arange(n_keys - n_queries, n_keys, device=device)
    distance = query_positions[:, None] - torch.arange(n_keys, device=device)  # (T, S)
    visible = distance >= 0
    return visible if window is None else visible & (distance < window)


def attention_mask(
    n_queries: int,
    n_keys: int,
    *,
    key_padding: Tensor | None = None,
    document_ids: Tensor | None = None,
    window: int | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """把四条规则合成一张掩码：因果、窗口、不看填充（padding）、不看别的文档。

    形状：key_padding (B, S) bool，True = 真词元；document_ids (B, S) → (B, 1, T, S) bool
    约定：对角线永远可见，所以填充位置的查询也有一个键可看，不会算出 NaN
    错误：两个输入的长度不是 S、key_padding 不是 bool 时抛 ValueError
    """
    for name, given in (("key_padding", key_padding), ("document_ids", document_ids)):
        if given is not None and (given.ndim != 2 or given.shape[1] != n_keys):
            raise ValueError(f"{name} must be (batch, {n_keys}), got {tuple(given.shape)}")
    if key_padding is not None and key_padding.dtype != torch.bool:
        raise ValueError(f"key_padding must be bool, True = real token; got {key_padding.dtype}")
    # ① 因果与窗口与内容无关，所有行共用
    mask = causal_mask(n_queries, n_keys, window=window, device=device)[None, None]  # (1, 1, T, S)
    # ② 填充：整列不可看
    if key_padding is not None:
        mask = mask & key_padding[:, None, None, :]  # (B, 1, T, S)
    # ③ 文档：只看同一篇
    if document_ids is not None:
        queries = document_ids[:, None, n_keys - n_queries :, None]  # (B, 1, T, 1)
        mask = mask & (queries == document_ids[:, None, None, :])  # (B, 1, T, S)
    # ④ 自己总能看自己
    own = torch.arange(n_keys - n_queries, n_keys, device=device)[:, None]
    return mask | (own == torch.arange(n_keys, device=device))


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """缩放点积注意力，逐步写出。

    公式：O = A·V，A = softmax(QKᵀ·scale + M)，scale 默认 1/√d
    形状：Q (…, T, d)、K (…, S, d)、V (…, S, e) → O (…, T, e)、A (…, T, S)；mask 可广播到 A
    类型：打分与 softmax 至少 float32；O 与 V 同 dtype，A 保持 float32
    错误：mask 不是 bool 时抛 ValueError
    """
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, True = may look; got {mask.dtype}")
    wide = wide_dtype(query.dtype)
    # ① 打分：除以 √d 使方差回到 1，否则 softmax 饱和、梯度消失
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = query.to(wide) @ key.to(wide).transpose(-2, -1) * scale  # (…, T, S)
    # ② 不可看的填上最小的有限数而不是 −∞：整行都不可看时，−∞ − (−∞) 会变成 NaN
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(wide).min)
    # ③ 归一化：每行非负、和为 1
    weights = torch.softmax(scores, dim=-1)  # (…, T, S)
    # ④ 一个键也看不到的行，②③ 会给出均匀的权重；这样的行什么也没看到，归零
    if mask is not None:
        weights = weights.masked_fill(~mask, 0.0)
    # ⑤ 按权重汇总值
    kept = F.dropout(weights, dropout_p) if dropout_p else weights
    return kept.to(value.dtype) @ value, weights  # (…, T, e), (…, T, S)


class SelfAttention(nn.Module):
    """一个头的自注意力：Q、K、V 都来自同一串 x。

    公式：Q = xW_Q，K = xW_K，V = xW_V，O = softmax(QKᵀ/√d + M)·V
    形状：x (B, T, D) → O (B, T, d)、A (B, T, T)
    """

    def __init__(
        self, dim: int, head_dim: int | None = None, *, causal: bool = False, bias: bool = False
    ) -> None:
        super().__init__()
        check_int("dim", dim, 1)
        self.head_dim = dim if head_dim is None else check_int("head_dim", head_dim, 1)
        self.causal = causal
        self.q_proj = nn.Linear(dim, self.head_dim, bias=bias)
        self.k_proj = nn.Linear(dim, self.head_dim, bias=bias)
        self.v_proj = nn.Linear(dim, self.head_dim, bias=bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """causal 与 mask 都给时取交集。"""
        if self.causal:
            causal = causal_mask(x.shape[1], x.shape[1], device=x.device)  # (T, T)
            mask = causal if mask is None else causal & mask
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)  # (B, T, d) ×3
        return scaled_dot_product_attention(query, key, value, mask)


class MultiHeadAttention(nn.Module):
    """多头注意力：H 个头各看各的，拼起来再混合；也能做交叉注意力（cross attention）。

    公式：head_h = Attention(xW_Q^h, yW_K^h, yW_V^h)，O = [head_1 … head_H]·W_O
    形状：query_input (B, T, D)、key_value_input (B, S, D) → O (B, T, D)、A (B, H, T, S)
    错误：dim 不能被 n_heads 整除、mask 不是 2 维或 4 维时抛 ValueError
    """

    def __init__(self, dim: int, n_heads: int, *, bias: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.n_heads = check_int("n_heads", n_heads, 1)
        self.head_dim = divide_heads(dim, n_heads)
        self.dropout = check_float("dropout", dropout, 0.0, exclusive_maximum=1.0)
        self.q_proj = nn.Linear(dim, dim, bias=bias)
        self.k_proj = nn.Linear(dim, dim, bias=bias)
        self.v_proj = nn.Linear(dim, dim, bias=bias)
        self.out_proj = nn.Linear(dim, dim, bias=bias)

    def forward(
        self, query_input: Tensor, key_value_input: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """不给 key_value_input 就是自注意力。"""
        check_mask_dimensions(mask)
        source = query_input if key_value_input is None else key_value_input
        query = split_heads(self.q_proj(query_input), self.n_heads)  # (B, H, T, d)
        key = split_heads(self.k_proj(source), self.n_heads)  # (B, H, S, d)
        value = split_heads(self.v_proj(source), self.n_heads)  # (B, H, S, d)
        dropout_p = self.dropout if self.training else 0.0
        output, weights = scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout_p)
        mixed: Tensor = self.out_proj(output.transpose(1, 2).flatten(2))  # (B, T, D)
        return mixed, weights


def divide_heads(dim: int, n_heads: int) -> int:
    """每个头分到几维；不能整除时两个数都要说出来。"""
    check_int("dim", dim, 1)
    if dim % n_heads:
        raise ValueError(f"dim must be divisible by n_heads, got dim={dim} and n_heads={n_heads}")
    return dim // n_heads


def check_mask_dimensions(mask: Tensor | None) -> None:
    """三维的 (B, T, S) 会被当成 (H, T, S) 广播，B = H 时悄悄算错，所以不收。"""
    if mask is not None and mask.ndim not in (2, 4):
        raise ValueError(f"mask must be (T, S) or (B, 1, T, S), got {tuple(mask.shape)}")


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """(B, T, H·d) → (B, H, T, d)：只是换一种看法，不搬数据。"""
    batch, length, width = x.shape
    return x.view(batch, length, n_heads, width // n_heads).transpose(1, 2)


class CausalSelfAttention(nn.Module):
    """GPT 用的注意力：因果，可选分组查询、RoPE、q/k 归一化、滑动窗口、缓存。

    公式：O = softmax(QKᵀ/√d + M)·V；M 在 p−w < j ≤ p 处为 0，其余为 −∞
    形状：x (B, T, D) → (B, T, D)；S = 已缓存长度 + T；H 个查询头共用 G 个键值头
    类型：输出与 x 同 dtype；softmax 一律在 float32 中计算
    错误：维数与头数对不上时抛 ValueError，说出两个数
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        *,
        n_kv_heads: int | None = None,
        head_dim: int | None = None,
        qkv_bias: bool = False,
        proj_bias: bool = False,
        rotary: RotaryEmbedding | None = None,
        qk_norm: bool = False,
        norm_eps: float = 1e-5,
        sliding_window: int | None = None,
        dropout: float = 0.0,
        implementation: str = "fast",
    ) -> None:
        super().__init__()
        check_int("dim", dim, 1)
        self.n_heads = check_int("n_heads", n_heads, 1)
        self.n_kv_heads = (
            n_heads if n_kv_heads is None else check_int("n_kv_heads", n_kv_heads, 1, n_heads)
        )
        if n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads must be divisible by n_kv_heads, got n_heads={n_heads} and"
                f" n_kv_heads={self.n_kv_heads}"
            )
        self.head_dim = (
            divide_heads(dim, n_heads) if head_dim is None else check_int("head_dim", head_dim, 1)
        )
        if rotary is not None and rotary.head_dim != self.head_dim:
            raise ValueError(
                f"rotary was made for head_dim={rotary.head_dim}, attention has {self.head_dim}"
            )
        if sliding_window is not None:
            check_int("sliding_window", sliding_window, 1)
        self.sliding_window = sliding_window
        self.dropout = check_float("dropout", dropout, 0.0, exclusive_maximum=1.0)
        self.implementation = check_choice("implementation", implementation, IMPLEMENTATIONS)
        kv_dim = self.n_kv_heads * self.head_dim
        self.q_proj = nn.Linear(dim, n_heads * self.head_dim, bias=qkv_bias)
        self.k_proj = nn.Linear(dim, kv_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(dim, kv_dim, bias=qkv_bias)
        self.out_proj = nn.Linear(n_heads * self.head_dim, dim, bias=proj_bias)
        self.q_norm = RMSNorm(self.head_dim, norm_eps) if qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, norm_eps) if qk_norm else None
        self.rotary = rotary

    def forward(
        self,
        x: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """让每个词元按相关程度汇总自己和前文的信息。

        positions (T,) 或 (B, T)，只给 RoPE 用，None 时接着缓存往下数；
        mask 可广播到 (B, H, T, S)，给了就全听它的：因果与窗口都须已在其中（见 attention_mask）
        """
        query, key, value = self._query_key_value(x, positions, cache)
        attend = self._fast if self.implementation == "fast" else self._lesson
        context = attend(query, key, value, mask)  # (B, H, T, d)
        return self.out_proj(context.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def attention_weights(
        self, x: Tensor, *, positions: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """只为看：返回 A (B, H, T, T)，每行和为 1。"""
        query, key, value = self._query_key_value(x, positions, None)
        return self._written_out(query, key, value, mask, 0.0)[1]

    def _query_key_value(
        self, x: Tensor, positions: Tensor | None, cache: KVCache | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        # ① 投影并拆头
        batch, n_new, _ = x.shape
        head_dim = self.head_dim
        query = self.q_proj(x).view(batch, n_new, self.n_heads, head_dim).transpose(1, 2)
        key = self.k_proj(x).view(batch, n_new, self.n_kv_heads, head_dim).transpose(1, 2)
        value = self.v_proj(x).view(batch, n_new, self.n_kv_heads, head_dim).transpose(1, 2)
        # ② q、k 先归一化：打分有了上界，训练不再因为某个头的打分爆掉而发散
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        # ③ 再旋转：缓存里存的是转好的键，以后不用再转
        if self.rotary is not None:
            offset = 0 if cache is None else cache.length
            cos, signed_sin = self.rotary.cos_sin(n_new, offset, positions, x.device)
            query, key = rotate(query, cos, signed_sin), rotate(key, cos, signed_sin)
        # ④ 旧的 K、V 不会再变，取回即可，省去重算
        if cache is not None:
            key, value = cache.append(key, value)  # (B, G, S, d)
        return query, key, value

    def _fast(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        n_new, n_keys, window = query.shape[2], key.shape[2], self.sliding_window
        causal = False
        if mask is None:
            if n_new == 1:
                # 最新的词元什么都能看，不必有掩码；有窗口就只取最后 w 个键
                if window is not None and n_keys > window:
                    key, value = key[:, :, -window:], value[:, :, -window:]
            elif n_new == n_keys and (window is None or window >= n_keys):
                causal = True
            else:
                # is_causal 把掩码对齐在左上角；有缓存时要的是右下角，所以自己画
                mask = causal_mask(n_new, n_keys, window=window, device=query.device)
        else:
            check_mask_dimensions(mask)
        dropout_p = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout_p,
            is_causal=causal,
            enable_gqa=self.n_heads != self.n_kv_heads,
        )

    def _lesson(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        dropout_p = self.dropout if self.training else 0.0
        return self._written_out(query, key, value, mask, dropout_p)[0]

    def _written_out(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float
    ) -> tuple[Tensor, Tensor]:
        if mask is None:
            mask = causal_mask(
                query.shape[2], key.shape[2], window=self.sliding_window, device=query.device
            )
        check_mask_dimensions(mask)
        # 分组查询：第 h 个查询头用第 ⌊h·G/H⌋ 个键值头，等于把每个键值头抄 H/G 份
        copies = self.n_heads // self.n_kv_heads
        key = key.repeat_interleave(copies, dim=1)  # (B, H, S, d)
        value = value.repeat_interleave(copies, dim=1)  # (B, H, S, d)
        return scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout_p)


def demo() -> None:
    """演示（稍后补全）。"""


if __name__ == "__main__":
    run_demo(demo)
