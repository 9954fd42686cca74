r"""一个词元怎样从别的词元那里取得信息？——注意力（attention）。

每个词元发出三样东西：查询 q（我在找什么）、键 k（我有什么可找）、值 v（找到了给你什么）。
q 与每个 k 的内积就是相关程度；softmax 把它们变成权重；再按权重把 v 加起来：

$$\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\!\left(\frac{QK^\top}{\sqrt{d}} + M\right) V$$

可以把它想成一本「软的字典」：普通字典只返回键完全相同的那个值；这里每个键都像一点，
于是返回所有值的加权平均，而且处处可导，所以「找什么」「拿什么去找」都能学出来。

    x (B, T, D) ─┬─ q_proj ─► Q (B, H, T, d) ─┐
                 │                            ├─► QKᵀ/√d + M ─► softmax ─► A (B, H, T, S) ─┐
                 ├─ k_proj ─► K (B, H, S, d) ─┘                                            ├─► A·V
                 └─ v_proj ─► V (B, H, S, d) ──────────────────────────────────────────────┘    │
    y (B, T, D) ◄─ out_proj ◄─── 各头拼回 (B, T, H·d) ◄───────────────── (B, H, T, d) ◄──────────┘

    B 批大小   T 新来的词元数   S 键的个数（自注意力且无缓存时 S = T）
    D 模型维数  H 查询头数  G 键值头数  d 每头维数   M 掩码：可看处 0，不可看处 −∞

本页由简到全：公式 → SelfAttention（一个头）→ MultiHeadAttention（多个头，也能看别的句子）→
CausalSelfAttention（GPT 真正用的：分组查询、RoPE、q/k 归一化、滑动窗口、缓存、快路）。
容易写错的四处，错了都不报错：忘了除以 √d；softmax 沿错了维（要沿键，每一行和为 1）；
先 softmax 再遮（行和不再是 1）；掩码的真假弄反。本页的演示与测试各守一处。
M 怎样画在 masks.py，头怎样拆在 heads.py，怎样算得快在 fast_attention.py，
训练之后每个头在看哪里，见 head_patterns.py（本页的 --plot 画的就是它）。

论文：Vaswani 等 2017《Attention Is All You Need》(arXiv:1706.03762)；
     Ainslie 等 2023《GQA》(arXiv:2305.13245)；Henry 等 2020《QKNorm》(arXiv:2010.04245)

改哪里：
  · 想换打分方式（加偏置、改温度、把 softmax 换掉）——scaled_dot_product_attention，
    并用 implementation="lesson" 跑：融合的核不知道你的改动。
  · 想换位置编码或缓存——传入别的 rotary、cache，本页不用改。
  · 想看每个头在看哪里——attention_weights，或者 `--plot FILE`。
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.checks import check_choice, check_float, check_int
from foundation.demonstration import run_demo
from transformer_basics.document_attention import DocumentRuns, Visibility, as_mask, attend_by_runs
from transformer_basics.fast_attention import fast_attention
from transformer_basics.flash_attention import flash_attention
from transformer_basics.heads import head_layout, merge_heads, repeat_heads, split_heads
from transformer_basics.kv_cache import GrowingCache, KVCache
from transformer_basics.layers import RMSNorm
from transformer_basics.linear import Linear, project_together
from transformer_basics.masks import attention_mask, causal_mask, check_mask
from transformer_basics.recomputation import recompute
from transformer_basics.rotary import RotaryEmbedding, rotate

__all__ = ["CausalSelfAttention", "MultiHeadAttention", "SelfAttention"]
__all__ += ["attention_mask", "causal_mask", "scaled_dot_product_attention"]


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """缩放点积注意力，一步一步写出来；全书的注意力都以它为准。

    公式：O = A·V，A = softmax(QKᵀ·scale + M)，scale 默认 1/√d
    形状：Q (…, T, d)、K (…, S, d)、V (…, S, e) → O (…, T, e)、A (…, T, S)；mask 可广播到 A
    类型：打分与 softmax 至少 float32：bf16 只有三位有效数字，相近的分数会并成一个
          （自动混合精度下，打分的乘法由它换成 bf16，softmax 仍是 float32）；
          O 与 V 同 dtype，A 留在 float32 供人看
    约定：一个键也看不见的行，输出与权重都是 0，梯度也是 0
    错误：mask 不是 bool 时抛 ValueError
    """
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, True = may look; got {mask.dtype}")
    # ① 打分：d 个乘积之和的方差是 d，除以 √d 才回到 1，否则 softmax 饱和、梯度消失
    wide = torch.promote_types(query.dtype, torch.float32)
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = query.to(wide) @ key.to(wide).transpose(-2, -1) * scale  # (…, T, S)
    # ② 不可看的填上最小的有限数，而不是 −∞：整行都不可看时，−∞ − (−∞) 会变成 NaN
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    # ③ 归一化：每行非负、和为 1；softmax 内部先减去每行最大的分数，exp 不会溢出
    weights = torch.softmax(scores, dim=-1, dtype=wide)  # (…, T, S)
    # ④ 一个键也看不见的行，到这里是均匀的权重；它什么也没看见，所以归零（别的行本来就是 0）
    if mask is not None:
        weights = weights.masked_fill(~mask, 0.0)
    # ⑤ 按权重汇总；随机失活只丢汇总时的权重，返回给人看的那份不丢
    kept = F.dropout(weights, dropout_p) if dropout_p else weights
    return kept.to(value.dtype) @ value, weights  # (…, T, e), (…, T, S)


class SelfAttention(nn.Module):
    """一个头的自注意力（self-attention）：Q、K、V 都从同一串 x 里来。

    公式：Q = xW_Q，K = xW_K，V = xW_V，O = softmax(QKᵀ/√d + M)·V
    形状：x (B, T, D) → O (B, T, d)、A (B, T, T)；d 默认等于 D
    约定：causal=True 时只看过去；又给了 mask，就两者都要满足

    为什么不直接用 x·xᵀ 打分：那是对称的，「它」看「猫」多少，「猫」就得看「它」多少，
    而且每个词元总是最像自己。W_Q 与 W_K 不同，关系才有方向。
    """

    def __init__(
        self, dim: int, head_dim: int | None = None, *, causal: bool = False, bias: bool = False
    ) -> None:
        super().__init__()
        head_dim = head_layout(dim, 1, head_dim=head_dim)[1]
        self.causal = causal
        # 偏置默认不要：键的偏置会在 softmax 里整行抵消，其余的也几乎没有用处
        self.q_proj = nn.Linear(dim, head_dim, bias=bias)
        self.k_proj = nn.Linear(dim, head_dim, bias=bias)
        self.v_proj = nn.Linear(dim, head_dim, bias=bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """返回汇总的结果与权重。"""
        if self.causal:
            past = causal_mask(x.shape[1], x.shape[1], device=x.device)  # (T, T)
            mask = past if mask is None else past & mask
        return scaled_dot_product_attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), mask)


class MultiHeadAttention(nn.Module):
    """多头注意力：H 个头各看各的，拼起来再由 W_O 混合。

    公式：head_h = Attention(xW_Q^h, yW_K^h, yW_V^h)，O = [head_1 … head_H]·W_O
    形状：x (B, T, D)、y (B, S, D) → O (B, T, D)、A (B, H, T, S)；mask (T, S) 或 (B, 1, T, S)
    约定：不给 y 就是自注意力；给了 y（另一句话、一张图）就是交叉注意力（cross attention）
    错误：D 不能被 H 整除时抛 ValueError，说出两个数

    参数总是 4D²（不算偏置），与 H 无关：头多则每头窄，是「几种看法」与「每种看得多细」的取舍。
    """

    def __init__(self, dim: int, n_heads: int, *, bias: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        head_layout(dim, n_heads)
        self.n_heads = n_heads
        self.dropout = check_float("dropout", dropout, 0.0, exclusive_maximum=1.0)
        self.q_proj = nn.Linear(dim, dim, bias=bias)
        self.k_proj = nn.Linear(dim, dim, bias=bias)
        self.v_proj = nn.Linear(dim, dim, bias=bias)
        self.out_proj = nn.Linear(dim, dim, bias=bias)

    def forward(
        self, query_input: Tensor, key_value_input: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """返回混合后的结果与每个头的权重。"""
        if mask is not None:
            check_mask(mask)
        # ① 谁来问、问谁：查询来自 x，键与值来自 y
        source = query_input if key_value_input is None else key_value_input
        query = split_heads(self.q_proj(query_input), self.n_heads)  # (B, H, T, d)
        key = split_heads(self.k_proj(source), self.n_heads)  # (B, H, S, d)
        value = split_heads(self.v_proj(source), self.n_heads)  # (B, H, S, d)
        # ② H 个头互不相干，并排放在批的维度上，一次乘法全算完
        dropout_p = self.dropout if self.training else 0.0
        heads, weights = scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout_p)
        # ③ W_O 让各头的发现互相说话；没有它，头 h 的输出只能待在第 h 段
        output: Tensor = self.out_proj(merge_heads(heads))  # (B, T, D)
        return output, weights


class CausalSelfAttention(nn.Module):
    """GPT 用的注意力：只看过去，其余的花样都是选项。

    公式：O = softmax(QKᵀ/√d + M)·V；M 在 p−w < j ≤ p 处为 0，其余为 −∞
    形状：x (B, T, D) → (B, T, D)；S = 已缓存长度 + T
    类型：输出与 x 同 dtype；softmax 一律在 float32 中计算
    错误：头数除不尽、rotary 的维数不符时抛 ValueError，说出两个数

    选项：n_kv_heads      G 个键值头，H/G 个查询头共用一个（分组查询）；默认 G = H
          head_dim        每头维数 d；默认 D/H；可以更宽，out_proj 会变回 D
          qkv_bias        q、k、v 的投影带不带偏置；proj_bias 管输出的那一个
          rotary          旋转位置编码；None 即不用，位置由词嵌入一侧给
          qk_norm         打分前把每个头的 q、k 归一化，打分有了上界，训练更稳
          sliding_window  只看最近 w 个（含自己）；None 即看到开头
          implementation  "fast" 融合的核，"lesson" 上面的公式，"flash" 分块的在线 softmax
                          （flash_attention.py、flash_kernel.py）；三者的结果相同
    """

    implementations = ("fast", "lesson", "flash")

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
        self.n_heads = n_heads
        self.n_kv_heads, self.head_dim = head_layout(dim, n_heads, n_kv_heads, head_dim)
        # 转动的是每个头的 d 维，不是整个 D 维
        if rotary is not None and rotary.head_dim != self.head_dim:
            raise ValueError(
                f"rotary was made for head_dim {rotary.head_dim}, the attention has {self.head_dim}"
            )
        if sliding_window is not None:
            check_int("sliding_window", sliding_window, 1)
        self.sliding_window = sliding_window
        self.dropout = check_float("dropout", dropout, 0.0, exclusive_maximum=1.0)
        self.implementation = check_choice("implementation", implementation, self.implementations)
        # q、k、v 各有各的矩阵：导入 Llama、Qwen 的权重只需改名；LoRA 也能只改其中一个
        self.q_proj = Linear(dim, n_heads * self.head_dim, bias=qkv_bias)
        self.k_proj = Linear(dim, self.n_kv_heads * self.head_dim, bias=qkv_bias)
        self.v_proj = Linear(dim, self.n_kv_heads * self.head_dim, bias=qkv_bias)
        self.out_proj = Linear(n_heads * self.head_dim, dim, bias=proj_bias)
        self.q_norm = RMSNorm(self.head_dim, norm_eps) if qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, norm_eps) if qk_norm else None
        self.rotary = rotary
        self.recompute_level, self.recompute = "selective", False  # 见 recomputation.py

    def forward(
        self,
        x: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Visibility | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """让每个词元按相关程度汇总自己和前文的信息。

        positions  (T,) 或 (B, T)，只给 RoPE 用；None 时接着缓存往下数：S−T … S−1
        mask       (T, S) 或 (B, 1, T, S)；给了就全听它的，因果与窗口都须已在其中
                   （用 attention_mask 画）；None 时自己按因果与窗口来；DocumentRuns 再加只看同一篇
        cache      这一层的缓存；本次的 K、V 会接进去，它的 length 前进 T
        """
        if isinstance(mask, Tensor):
            check_mask(mask)
        query, key, value, mask = self._query_key_value(x, positions, mask, cache)
        dropout_p = self.dropout if self.training else 0.0  # 只在训练时
        # 几条路同进同出：快的用来跑，写出来的用来读，并由测试逐一对照
        if self.recompute:  # 不存权重 A，反向时由 q、k 再算
            heads = recompute(self._attend, query, key, value, mask, dropout_p)
        else:
            heads = self._attend(query, key, value, mask, dropout_p)  # (B, H, T, d)
        return self.out_proj(merge_heads(heads))  # type: ignore[no-any-return]

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Visibility | None, dropout_p: float
    ) -> Tensor:
        """打分、归一、汇总，由 implementation 挑一条路；分块的不收掩码与随机失活，交给快路。"""
        if self.implementation == "lesson":
            return self._written_out(query, key, value, mask, dropout_p)[0]  # 只要 O，不要 A
        # 一篇之内是普通的因果，没有掩码；编译的图不能随段长而变，所以照旧画
        if isinstance(mask, DocumentRuns) and not torch.compiler.is_compiling():
            inside = partial(self._attend, mask=None, dropout_p=dropout_p)
            return attend_by_runs(query, key, value, mask, inside)
        window, mask = self.sliding_window, as_mask(mask, self.sliding_window)
        if self.implementation == "flash" and mask is None and not dropout_p:
            if query.is_cuda:  # 到用时才导入：别处不必有 Triton
                from transformer_basics.flash_kernel import kernel_or_tiles

                return kernel_or_tiles(query, key, value, window=window)
            return flash_attention(query, key, value, window=window)
        return fast_attention(query, key, value, mask, window=window, dropout_p=dropout_p)

    def attention_weights(
        self, x: Tensor, *, positions: Tensor | None = None, mask: Visibility | None = None
    ) -> Tensor:
        """只为看：权重 A (B, H, T, T)，每行和为 1。

        融合的核从不存下这张表，所以照公式另算一遍；不收缓存，免得看一眼就把它弄脏
        """
        query, key, value, mask = self._query_key_value(x, positions, mask, None)  # 不带缓存
        return self._written_out(query, key, value, mask, 0.0)[1]

    def _query_key_value(
        self, x: Tensor, positions: Tensor | None, mask: Visibility | None, cache: KVCache | None
    ) -> tuple[Tensor, Tensor, Tensor, Visibility | None]:
        """从 x 到打分之前：x (B, T, D) → Q (B, H, T, d)、K 与 V (B, G, S, d)、掩码。"""
        # ① 投影并拆头；键值头可以比查询头少
        projected = project_together(x, (self.q_proj, self.k_proj, self.v_proj))
        query = split_heads(projected[0], self.n_heads)  # (B, H, T, d)
        key = split_heads(projected[1], self.n_kv_heads)  # (B, G, T, d)
        value = split_heads(projected[2], self.n_kv_heads)  # (B, G, T, d)
        # ② 先归一化、再旋转：旋转不改变长度，次序反过来 γ 就会打乱角度
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        if cache is not None and cache.reach is not None:  # 滑动的缓存自己定位置、画掩码
            return cache.place(query, key, value, self.rotary)
        if self.rotary is not None:
            offset = 0 if cache is None else cache.length
            cos, signed_sin = self.rotary.cos_sin(x.shape[1], offset, positions, x.device)
            query, key = rotate(query, cos, signed_sin), rotate(key, cos, signed_sin)
        # ③ 旧的 K、V 不会再变（键已经转好），取回即可，省去重算
        if cache is not None:
            key, value = cache.append(key, value)  # (B, G, S, d)
        return query, key, value, mask

    def _written_out(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Visibility | None, dropout_p: float
    ) -> tuple[Tensor, Tensor]:
        """与快路同一件事，照公式写：画出掩码，把键值头抄成 H 份，再套公式。"""
        n_new, n_keys = query.shape[2], key.shape[2]
        mask = as_mask(mask, self.sliding_window)
        if mask is None:
            mask = causal_mask(n_new, n_keys, window=self.sliding_window, device=query.device)
        key, value = repeat_heads(key, self.n_heads), repeat_heads(value, self.n_heads)
        return scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout_p)


def worked_example() -> None:
    """手算得出来的例子：三个词元，二维，「它」在找名词。

    第 0 维约定为「名词的程度」：猫与鱼的键在这一维大；「它」的查询只问这一维，
    所以「吃」的分数是 0。值里记下取自谁，输出就能看出各取了多少
    """
    words = ["猫", "吃", "鱼"]
    query = torch.tensor([[2.0, 0.0]])  # (1, 2)
    key = torch.tensor([[1.5, 0.0], [0.0, 1.5], [1.0, 0.5]])  # (3, 2)
    value = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])  # (3, 2) 记下取自谁
    output, weights = scaled_dot_product_attention(query, key, value)
    print("① 「它」去问三个词：分数 q·k/√2，权重 = softmax(分数)")
    for word, score, weight in zip(words, key @ query[0] / math.sqrt(2), weights[0], strict=True):
        print(f"   {word}  分数 {score:.3f}  权重 {weight:.3f}  " + "█" * round(30 * float(weight)))
    print(f"   输出 = 权重·V = {[round(v, 3) for v in output[0].tolist()]}")
    assert abs(float(weights.sum()) - 1.0) < 1e-6
    assert torch.allclose(output[0], weights[0, [0, 2]])


def why_divide_by_sqrt_d() -> None:
    """随机的 q、k 各分量方差为 1，则 q·k 的方差是 d。

    不除以 √d，d 一大，分数就拉得很开，权重全挤到一个键上；
    此时 softmax 的导数 A·(1 − A) 接近 0，梯度传不回 q 与 k
    """
    print("② 为什么除以 √d：32 个随机键，最大的那个权重平均占多少（均分时是 0.031）")
    for d in (4, 64, 1024):
        query, key = torch.randn(500, 1, d), torch.randn(500, 32, d)
        bare = scaled_dot_product_attention(query, key, key, scale=1.0)[1].amax(-1).mean()
        scaled = scaled_dot_product_attention(query, key, key)[1].amax(-1).mean()
        print(f"   d = {d:4d}   不除 {bare:.3f}   除以 √d {scaled:.3f}")
    assert bare > 0.9 > 0.3 > scaled  # 饱和的 softmax 几乎没有梯度，学不动


def the_future_does_not_leak() -> None:
    """最硬的检验是求导：第 i 个输出对第 j 个输入的梯度，在 j > i 处必须恰好是 0。

    不是「很小」，是 0：只要有一处漏，模型就能在训练时偷看答案，损失低得可疑，生成却是胡话
    """
    attention = CausalSelfAttention(16, 4, n_kv_heads=2, rotary=RotaryEmbedding(4), qk_norm=True)
    x = torch.randn(1, 5, 16, requires_grad=True)
    rows = [torch.autograd.grad(attention(x)[0, i].sum(), x)[0][0].norm(dim=-1) for i in range(5)]
    print("③ 输出 i（行）对输入 j（列）的梯度大小：右上角全是 0，未来没有泄漏")
    for row in rows:
        print("   " + "  ".join(f"{float(size):.3f}" for size in row))
    assert torch.stack(rows).triu(diagonal=1).eq(0).all()


def three_ways_agree() -> None:
    """写出来的公式、融合的核、一个一个喂进缓存，三条路必须走到同一个地方。

    差别只剩浮点数的舍入：加法的次序不同，末位就不同
    """
    attention = CausalSelfAttention(64, 8, n_kv_heads=2, rotary=RotaryEmbedding(8), qk_norm=True)
    x, cache = torch.randn(2, 10, 64), GrowingCache()
    fast = attention(x)
    stepwise = torch.cat([attention(token, cache=cache) for token in x.split(1, dim=1)], dim=1)
    attention.implementation = "lesson"
    for name, other in (("公式", attention(x)), ("逐个词元＋缓存", stepwise)):
        error = float((fast - other).detach().abs().max())
        print(f"④ 快路与{name}最大相差 {error:.1e}")
        assert error < 1e-5


def demo() -> None:
    """四步看懂注意力：手算一遍，问为什么，查泄漏，对答案。"""
    for step in (worked_example, why_divide_by_sqrt_d, the_future_does_not_leak, three_ways_agree):
        step()


def plot(path: Path) -> None:
    """画出两个训练过的头各在看哪里。"""
    # 那一页要用本页的类，所以到用时才导入
    from transformer_basics.head_patterns import plot as plot_head_patterns

    plot_head_patterns(path)


if __name__ == "__main__":
    run_demo(demo, plot)
