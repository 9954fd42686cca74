r"""谁可以看谁？——注意力的掩码（mask）。

掩码是一张真假表：第 i 行第 j 列为真，表示查询 i 可以看键 j。四条规则，同时满足才可以看：

$$M_{ij} = \underbrace{j \le p_i}_{\text{因果}} \;\wedge\; \underbrace{j > p_i - w}_{\text{窗口}}
  \;\wedge\; \underbrace{\mathrm{real}_j}_{\text{不是填充}} \;\wedge\;
  \underbrace{\mathrm{doc}_i = \mathrm{doc}_j}_{\text{同一篇文档}}$$

查询总是键的最后 T 个，所以查询 i 的位置是 p_i = S − T + i：

               键 0 1 2 3 4 5                    键 0 1 2 3 4 5
    T = S = 6  0  ■ · · · · ·      T = 2, S = 6
               1  ■ ■ · · · ·      （前 4 个已在缓存里）
               2  ■ ■ ■ · · ·                       4  ■ ■ ■ ■ ■ ·
               …                                    5  ■ ■ ■ ■ ■ ■

为什么要因果：训练时一次喂进整句，每个位置都在预测下一个词；看得见答案，就什么也学不到。
为什么要窗口：T 个查询各看 w 个键，工作量从 T² 降到 T·w；每层能看 w − 1 步远，
              叠 n 层就能接力看到 n·(w − 1) 步远。
为什么分文档：把许多短文首尾相接拼满一行，一格填充都不浪费；但后一篇不该看见前一篇。
为什么左填充：一批提示长短不一，续写总是接在最右边；填充放左边，所有行的「最新」才对齐。

约定的陷阱：这里与 F.scaled_dot_product_attention 一样，True = 可以看；
            nn.MultiheadAttention 恰好相反，True = 遮住。两套约定混用不会报错，只会全错。

论文：Vaswani 等 2017 (arXiv:1706.03762) 3.2.3 节；Beltagy 等 2020 滑动窗口 (arXiv:2004.05150)

改哪里：
  · 想加一条规则（例如前缀双向可见）——在 attention_mask 里再 & 或 | 一张表。
  · 想让窗口随层变化——给每层的 CausalSelfAttention 不同的 sliding_window。
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from foundation.checks import check_int
from foundation.demonstration import new_figure, run_demo, save_figure

__all__ = ["attention_mask", "causal_mask", "check_mask"]

Device = torch.device | str | None


def causal_mask(
    n_queries: int, n_keys: int, *, window: int | None = None, device: Device = None
) -> Tensor:
    """因果掩码，可带滑动窗口（sliding window）。

    公式：查询 i 的位置 p = S − T + i；可看键 j ⇔ p − w < j ≤ p；window 为 None 即不限
    形状：→ (T, S) bool，True = 可以看；每行至多 w 个，最后一个总是自己
    错误：T > S，或 window < 1 时抛 ValueError
    """
    if n_queries > n_keys:
        raise ValueError(
            f"queries are the last of the keys: {n_queries} queries need at least as many keys,"
            f" got {n_keys}"
        )
    # 一列比一行，广播出整张表：不写循环，也不先造一张全一的方阵再取三角
    # 直接比大小，不先求差：差是 8 字节的整数，长文章时那张表比掩码大八倍，画它比打分还慢
    here = torch.arange(n_keys - n_queries, n_keys, device=device)[:, None]  # 查询的位置 p
    keys = torch.arange(n_keys, device=device)
    visible = keys <= here  # (T, S)
    if window is None:
        return visible
    return visible & (keys > here - check_int("window", window, 1))


def attention_mask(
    n_queries: int,
    n_keys: int,
    *,
    key_padding: Tensor | None = None,
    document_ids: Tensor | None = None,
    window: int | None = None,
    device: Device = None,
) -> Tensor:
    """把四条规则合成一张掩码，整个模型每次前向只需算一次。

    形状：key_padding (B, S) bool，True = 真词元；document_ids (B, S) 整数 → (B, 1, T, S) bool；
          两者都不给时 B 为 1；中间那个 1 让所有的头共用同一张表
    约定：对角线永远可见：填充位置的查询至少看得见自己，softmax 不会遇到空行
    错误：两个输入不是 (B, S)、key_padding 不是 bool 时抛 ValueError
    """
    # 长度先对一遍：若只差一格，广播会报一句看不懂的话；若恰好是 1，就一声不响地算错
    for name, given in (("key_padding", key_padding), ("document_ids", document_ids)):
        if given is not None and (given.ndim != 2 or given.shape[1] != n_keys):
            raise ValueError(f"{name} must be (batch, {n_keys}), got {tuple(given.shape)}")
        if given is not None and device is None:
            device = given.device
    if key_padding is not None and key_padding.dtype != torch.bool:
        raise ValueError(f"key_padding must be bool, True = real token; got {key_padding.dtype}")
    # ① 因果与窗口只看位置，每一行（句子）都一样
    mask = causal_mask(n_queries, n_keys, window=window, device=device)[None, None]  # (1, 1, T, S)
    # ② 填充的键谁也不许看：整列遮掉；再把对角线补回来，给填充位置的查询留一个可看的键
    if key_padding is not None:
        own = causal_mask(n_queries, n_keys, window=1, device=device)  # 窗口为 1，就是只看自己
        mask = (mask & key_padding[:, None, None, :]) | own  # (B, 1, T, S)
    # ③ 几篇短文拼成一行训练时，后一篇不许偷看前一篇；自己与自己总是同篇，对角线还在
    if document_ids is not None:
        query_documents = document_ids[:, None, n_keys - n_queries :, None]  # (B, 1, T, 1)
        mask = mask & (query_documents == document_ids[:, None, None, :])  # (B, 1, T, S)
    return mask


def check_mask(mask: Tensor) -> None:
    """拦住两种会悄悄算错的掩码。

    错误：不是 bool——浮点掩码在有的实现里是「加上去」，在有的实现里是「乘上去」；
          三维 (B, T, S)——会被当成 (H, T, S) 广播，B 恰好等于 H 时一声不响地错
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, True = may look; got {mask.dtype}")
    if mask.ndim not in (2, 4):
        raise ValueError(f"mask must be (T, S) or (B, 1, T, S), got {tuple(mask.shape)}")


def draw(mask: Tensor) -> str:
    """把一张 (T, S) 的表画成字：■ 可以看，· 不可以。"""
    return "\n".join("    " + " ".join("■" if seen else "·" for seen in row) for row in mask)


def demo() -> None:
    """四条规则各画一张，并数一数看得见几个。"""
    # 行是查询，列是键；读一行，就知道这个词元看得见谁
    print("① 因果：第 i 个词元看得见 0…i，共 1+2+…+6 = 21 格")
    causal = causal_mask(6, 6)
    print(draw(causal))
    assert causal.sum() == 21
    assert not causal.triu(diagonal=1).any()  # 对角线以上是未来，一格也不能有

    # 窗口把远处的键切掉：前两行还不满 3 个，以后每行恰好 3 个
    print("② 滑动窗口 w = 3：只看最近 3 个（含自己）。省下的是远处；信息靠多层接力传过去")
    window = causal_mask(6, 6, window=3)
    print(draw(window))
    assert window.sum(dim=1).tolist() == [1, 2, 3, 3, 3, 3]

    # 有缓存时键比查询多。若把掩码对齐在左上角，新词元就看不见最近的前文——
    # 不报错、输出也像话，只是变笨；这是缓存实现里最难发现的一种错
    print("③ 续写：4 个键已在缓存里，只来了 2 个新查询；表的右下角对齐，不是左上角")
    print(draw(causal_mask(2, 6)))
    assert torch.equal(causal_mask(2, 6), causal[-2:])

    # 填充位置的输出没有人用，但它必须是有限的数：NaN 乘 0 还是 NaN，会顺着梯度毒死全部权重
    print("④ 左填充：第 0、1 个是填充。它们自己的行只剩对角线，真词元看不见它们")
    padded = attention_mask(6, 6, key_padding=torch.tensor([[0, 0, 1, 1, 1, 1]]).bool())[0, 0]
    print(draw(padded))
    assert padded[2:, :2].sum() == 0
    assert bool(padded.any(dim=1).all())  # 没有空行，softmax 就不会算出 NaN

    # 文档编号只比相等，不必从 0 数起，也不必连续
    print("⑤ 三篇短文拼成一行：块与块之间互不可见，等于分开训练，却不浪费一格填充")
    packed = attention_mask(6, 6, document_ids=torch.tensor([[7, 7, 7, 8, 9, 9]]))[0, 0]
    print(draw(packed))
    assert packed.sum() == 6 + 1 + 3  # 长 3、1、2 的三篇各自的下三角


def plot(path: Path) -> None:
    """同样的规则，画大一点：深色的格子可以看。

    四张图从左到右：因果是一整块下三角；窗口是一条带子；左填充少了左边几列，
    只在对角线上留着填充自己；拼接的文档是一串小三角
    """
    length = 48
    real = torch.arange(length)[None] >= 12
    documents = (torch.arange(length)[None] // 5) ** 2 // 12
    panels = {
        "causal": causal_mask(length, length),
        "sliding window 12": causal_mask(length, length, window=12),
        "left padding 12": attention_mask(length, length, key_padding=real)[0, 0],
        "packed documents": attention_mask(length, length, document_ids=documents)[0, 0],
    }
    figure, axes = new_figure(1, 4, size=(13.0, 3.8))
    for axis, (title, mask) in zip(axes, panels.items(), strict=True):
        axis.imshow(mask, cmap="Greys", vmin=0, vmax=1.3)
        axis.set(title=title, xlabel="key j", ylabel="query i")
    save_figure(figure, path)


if __name__ == "__main__":
    run_demo(demo, plot)
