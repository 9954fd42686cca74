r"""同一个公式，怎样算得快？——把活交给融合的核（fused kernel），并避开它的三个陷阱。

写出来的公式要把整张打分表 (T, S) 存进内存；融合的核（FlashAttention）一块一块地算，边算边
归一化，表从不落地：

$$O = \mathrm{softmax}(QK^\top/\sqrt{d} + M)\,V \qquad
  \text{内存：} O(T S) \;\to\; O(T)$$

    Q (B, H, T, d) ─┐
    K (B, G, S, d) ─┼─► F.scaled_dot_product_attention ─► O (B, H, T, d)
    V (B, G, S, d) ─┘   选 is_causal？给 mask？还是都不要？

内存为什么能省：softmax 的分母可以边走边修正（在线 softmax）。每来一块键，若出现了更大的分数，
就把已经累加的部分乘上一个小于 1 的修正，再加上新的一块；走完一遍，恰好等于整张表一起算。

选择比计算本身更容易错：
  陷阱一  is_causal=True 把下三角对齐在左上角。有缓存时（T < S）要的是右下角，
          一用就看不见最近的前文；只来一个查询时（T = 1），它只看得见第 0 个键。
  陷阱二  给了掩码，就不能再用只认 is_causal 的最快的核。所以能不给就不给。
  陷阱三  只来一个查询时什么都看得见，本不必有掩码；有滑动窗口，也只要切下最后 w 个键。

论文：Dao 等 2022《FlashAttention》(arXiv:2205.14135)；Milakov 与 Gimelshein 2018 在线 softmax
     (arXiv:1805.02867)

改哪里：
  · 想接入别的核——照 fast_attention 的签名写一个，在 CausalSelfAttention 里换上。
  · 公式本身写在 attention.py 的 scaled_dot_product_attention，它是本页的标准答案。
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from foundation.demonstration import run_demo
from transformer_basics.blocked_attention import blocked_attention
from transformer_basics.heads import repeat_heads
from transformer_basics.masks import causal_mask
from transformer_basics.speed_ups import SPEED_UPS

__all__ = ["fast_attention"]


def fast_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    window: int | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """因果注意力的快路：为眼前的形状挑最省的一种算法。

    公式：O = softmax(QKᵀ/√d + M)·V；mask 为 None 时 M 是因果（与窗口）
    形状：Q (B, H, T, d)、K 与 V (B, G, S, d) → O (B, H, T, d)；H 是 G 的倍数
    类型：输出与 V 同 dtype；核内部以 float32 累加
    约定：给了 mask 就全听它的，window 不再起作用；mask 是 (T, S) 或 (B, 1 或 H, T, S)
    错误：形状不合时由核报错；头数与掩码的检查在 CausalSelfAttention 里做，这里不重复
    """
    # 只读形状，不碰数据：生成文本时这几行比乘法还贵，能省则省
    n_heads, n_new = query.shape[1], query.shape[2]
    n_kv_heads, n_keys = key.shape[1], key.shape[2]
    causal = False
    if mask is None:
        if n_new == 1:
            # ① 最新的词元什么都能看：不要掩码；有窗口就切一段视图，远处的键连读都不读
            if window is not None and n_keys > window:
                key, value = key[:, :, -window:], value[:, :, -window:]
        elif n_new == n_keys and (window is None or window >= n_keys):
            # ② 方阵：左上角就是右下角，可以放心用 is_causal
            causal = True
            #    CPU 上的 bf16 训练：库的反向慢，换成分块的矩阵乘法
            if not dropout_p and trains_in_half_on_cpu(query):
                return blocked_attention(query, key, value)
        else:
            # ③ 其余的（缓存之后又来一段、方阵带窗口）自己画掩码
            mask = causal_mask(n_new, n_keys, window=window, device=query.device)
    # ④ 一个查询、又分了组：同组的 H/G 个头看同样的键，把它们当成 H/G 个查询一次算完，
    #    K、V 一份也不用抄。各头的掩码不同时不能这样做
    if n_new == 1 and n_heads != n_kv_heads and (mask is None or mask.shape[-3:-2] in ((), (1,))):
        grouped = query.reshape(query.shape[0], n_kv_heads, n_heads // n_kv_heads, -1)
        output = F.scaled_dot_product_attention(
            grouped, key, value, attn_mask=mask, dropout_p=dropout_p
        )  # (B, G, H/G, d)
        return output.reshape(query.shape)  # (B, H, 1, d)
    # ⑤ q、k 比 v 宽（滑动的缓存一次来好几个时）：融合的核只收一样宽的，v 补零，算完切掉
    #    补的零只让输出多出几维零，不改变前 d 维
    width = value.shape[-1]
    if query.shape[-1] != width:
        value = F.pad(value, (0, query.shape[-1] - width))
    # ⑥ 其余情形直接交给融合的核；enable_gqa 让它自己处理 H 与 G 的对应
    output = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout_p,
        is_causal=causal,
        enable_gqa=n_heads != n_kv_heads,
    )
    # 一样宽时不切：训练时多一个切片，反向就多抄一份
    return output if output.shape[-1] == width else output[..., :width]


def trains_in_half_on_cpu(query: Tensor) -> bool:
    """blocked_attention.py 比库快的那种情形：CPU、16 位、要求导、没有编译。

    不求导时（评估、生成）库的前向不慢，还省内存；编译之后，库的核由编译器安排
    约定：只看张量的类型与状态，不碰数据
    """
    return (
        query.dtype is torch.bfloat16
        and query.device.type == "cpu"
        and query.requires_grad
        and SPEED_UPS["blocked"]  # 关掉它，就量得出它值多少
        and not torch.compiler.is_compiling()
    )


def demo() -> None:
    """把陷阱踩一遍，再看快路怎样绕开。

    每一步都拿「六个词元一次算完」的输出作标准：有没有缓存、怎样分块，结果都应当与它相同
    """
    # 批 1、头 2、词元 6、每头 4 维；只有一份随机数，后面全从它切
    query, key, value = (torch.randn(1, 2, 6, 4) for _ in range(3))
    whole = fast_attention(query, key, value)  # 六个词元一次算完，作为标准答案

    # ① 缓存里已有 4 个键，又来了 2 个查询
    trapped = F.scaled_dot_product_attention(query[:, :, 4:], key, value, is_causal=True)
    right = fast_attention(query[:, :, 4:], key, value)
    print("① 缓存之后来了 2 个查询，与一次算完的差：")
    print(f"   直接用 is_causal  {difference(trapped, whole[:, :, 4:]):.6f}   ← 对齐错了角")
    print(f"   fast_attention    {difference(right, whole[:, :, 4:]):.6f}")
    assert difference(right, whole[:, :, 4:]) < 1e-5 < difference(trapped, whole[:, :, 4:])

    # ② 只来 1 个查询：is_causal 让它只看得见第 0 个键，输出就是 v₀ 本身
    trapped = F.scaled_dot_product_attention(query[:, :, 5:], key, value, is_causal=True)
    right = fast_attention(query[:, :, 5:], key, value)
    print("② 只来 1 个查询时，is_causal 的输出就是第 0 个值：", end="")
    print(f"与 v₀ 差 {difference(trapped, value[:, :, :1]):.6f}")
    assert difference(trapped, value[:, :, :1]) < 1e-6
    assert difference(right, whole[:, :, 5:]) < 1e-5

    # ③ 窗口：切视图与画掩码相等，但切视图只读 w 个键
    masked = fast_attention(query, key, value, window=3)[:, :, 5:]
    sliced = fast_attention(query[:, :, 5:], key, value, window=3)
    print(f"③ 窗口 w = 3：切下最后 3 个键，与画掩码的差 {difference(masked, sliced):.6f}")
    assert difference(masked, sliced) < 1e-6

    # ④ 分组：2 个查询头共用 1 个键值头；当成 2 个查询，与把键值抄成 2 份相等
    shared_key, shared_value = key[:, :1], value[:, :1]  # (1, 1, 6, 4)
    folded = fast_attention(query[:, :, 5:], shared_key, shared_value)
    copied = fast_attention(
        query[:, :, 5:], repeat_heads(shared_key, 2), repeat_heads(shared_value, 2)
    )
    print(f"④ 分组不抄 K、V，与抄了再算的差 {difference(folded, copied):.6f}")
    assert difference(folded, copied) < 1e-6


def difference(left: Tensor, right: Tensor) -> float:
    """两个张量最大的差。"""
    return float((left - right).abs().max())


if __name__ == "__main__":
    run_demo(demo)
