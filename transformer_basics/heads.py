r"""为什么要好几个头，又怎样拆、怎样合？——多头（multi-head）的形状账。

一个头的 softmax 只能有一个重心：看了主语就看不了动词。把 D 维拆成 H 份，每份 d = D/H 维，
各算各的注意力，最后拼回来——参数与乘法次数不变，却有 H 种看法：

    (B, T, D) = (B, T, H·d) ──看成──► (B, T, H, d) ──换轴──► (B, H, T, d)   拆：不搬数据
    (B, H, T, d) ──换轴──► (B, T, H, d) ──拼──► (B, T, H·d)                 合：要搬一次

分组查询（grouped-query attention，GQA）再省一步：H 个查询头只配 G 个键值头，

$$\text{第 } h \text{ 个查询头用第 } \lfloor h \cdot G / H \rfloor \text{ 个键值头}$$

    查询头  0 1 2 3 4 5 6 7        H = 8
            └┬┘ └┬┘ └┬┘ └┬┘
    键值头   0   1   2   3         G = 4：K、V 的缓存减半

G = H 是普通的多头（MHA），G = 1 是多查询（multi-query，MQA）。

论文：Vaswani 等 2017 (arXiv:1706.03762) 3.2.2 节；Shazeer 2019 MQA (arXiv:1911.02150)；
     Ainslie 等 2023 GQA (arXiv:2305.13245)

代价的账：K、V 的投影与缓存都缩小 H/G 倍，查询的投影与打分的乘法次数一点不变。
          生成文本时，每一步都要把整个缓存从内存里读一遍，所以省缓存就是省时间。

改哪里：
  · 想少存 K、V——减小 n_kv_heads；它必须整除 n_heads，每组才一样大。
  · 想让头宽不等于 D/H（Qwen3 如此）——给 head_dim；拼回来的宽度是 H·d，由 out_proj 变回 D。
"""

from __future__ import annotations

import torch
from torch import Tensor

from foundation.checks import check_int
from foundation.demonstration import run_demo

__all__ = ["head_layout", "merge_heads", "repeat_heads", "split_heads"]


def head_layout(
    dim: int, n_heads: int, n_kv_heads: int | None = None, head_dim: int | None = None
) -> tuple[int, int]:
    """定下键值头数与每头维数，并检查它们除得尽。

    公式：G 默认等于 H；d 默认等于 D/H
    错误：D 不能被 H 整除（且没给 d）、H 不能被 G 整除时抛 ValueError，说出两个数
    """
    check_int("dim", dim, 1)
    check_int("n_heads", n_heads, 1)
    if n_kv_heads is None:
        n_kv_heads = n_heads
    check_int("n_kv_heads", n_kv_heads, 1, n_heads)
    if n_heads % n_kv_heads:
        raise ValueError(
            f"n_heads must be divisible by n_kv_heads, got n_heads={n_heads} and"
            f" n_kv_heads={n_kv_heads}"
        )
    if head_dim is not None:
        return n_kv_heads, check_int("head_dim", head_dim, 1)
    if dim % n_heads:
        raise ValueError(
            f"dim must be divisible by n_heads, got dim={dim} and n_heads={n_heads};"
            f" change one of them, or give head_dim"
        )
    return n_kv_heads, dim // n_heads


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """拆：(B, T, H·d) → (B, H, T, d)。

    只换一种看法（view 与 transpose），不复制：头 h 就是最后一维的第 h 段
    """
    batch, length, width = x.shape
    return x.view(batch, length, n_heads, width // n_heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """合：(B, H, T, d) → (B, T, H·d)，是 split_heads 的逆。

    换轴之后内存不再连续，flatten 在这里复制一次；T 为 1 时本来就连续，连这次也省了
    """
    return x.transpose(1, 2).flatten(2)


def repeat_heads(x: Tensor, n_heads: int) -> Tensor:
    """把 G 个键值头抄成 H 个：(B, G, T, d) → (B, H, T, d)。

    公式：第 h 份 = 第 ⌊h·G/H⌋ 个，即 0 0 1 1 2 2 …（而不是 0 1 2 0 1 2 …）
    """
    n_kv_heads = x.shape[1]
    return x if n_kv_heads == n_heads else x.repeat_interleave(n_heads // n_kv_heads, dim=1)


def demo() -> None:
    """拆开、合上、抄写，各看一眼真数。"""
    # ① 两个词元、四维、两个头：每个词元的前一半归头 0，后一半归头 1
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]])  # (1, 2, 4)
    heads = split_heads(x, n_heads=2)  # (1, 2, 2, 2)
    print("① 拆头：两个词元各 4 维 →", x[0].tolist())
    for h in range(2):
        print(f"   头 {h} 看到的两个词元：{heads[0, h].tolist()}")
    assert heads[0, 1].tolist() == [[3.0, 4.0], [7.0, 8.0]]

    # ② 拆是视图：两者指着同一块内存，所以不花时间也不占地方
    assert heads.data_ptr() == x.data_ptr()
    assert torch.equal(merge_heads(heads), x)
    print("② 拆头不复制（内存地址相同）；合回来与原来逐数相等")

    # ③ 分组查询：抄写的次序决定谁和谁同组，弄错了不会报错，只会让导入的模型说胡话
    numbered = torch.arange(4.0).view(1, 4, 1, 1)  # 4 个键值头，值就是编号
    owners = [int(head) for head in repeat_heads(numbered, 8).flatten()]
    print("③ 8 个查询头配 4 个键值头，各用第几个：", owners)
    assert owners == [h * 4 // 8 for h in range(8)]

    # ④ 缓存的账：GPT-2 XL 的宽度，一个词元在一层里要记多少个数
    dim, n_heads = 1600, 25
    for name, n_kv_heads in (("多头 MHA", 25), ("分组 GQA", 5), ("多查询 MQA", 1)):
        kv_heads, head_dim = head_layout(dim, n_heads, n_kv_heads)
        print(f"④ {name}：G = {kv_heads:2d}，每词元每层 2·G·d = {2 * kv_heads * head_dim} 个数")
    assert head_layout(dim, n_heads) == (25, 64)

    # ⑤ 除不尽时，错误说出两个数
    try:
        head_layout(100, 3)
    except ValueError as error:
        print(f"⑤ 除不尽：{error}")


if __name__ == "__main__":
    run_demo(demo)
