r"""几篇短文拼成一行，怎样只算同一篇的？——一篇一篇地算，不画 T × T 的掩码。

打包（packing）之后一行里有几篇，互相不许看。照 masks.py 画一张真假表当然对，可是表里大多是
「不许」，照样要存、要乘、再遮掉。文档是首尾相接的，看得见的格子只是对角线上的几个小三角：

    document_ids  0 0 0 1 2 2        整张表 36 格        一篇一篇：9 + 1 + 4 格
                                     ■ · · · · ·         ■ · ·
                                     ■ ■ · · · ·         ■ ■ ·
                                     ■ ■ ■ · · ·         ■ ■ ■
                                     · · · ■ · ·               ■
                                     · · · · ■ ·                 ■ ·
                                     · · · · ■ ■                 ■ ■

于是把 q、k、v 按文档切开，每一段自己就是一次普通的因果注意力，走 fast_attention.py 最快的那条路
（连小掩码也不用）。第 i 篇长 T_i 时：

$$\text{格数：} T^2 \;\to\; \sum_i T_i^2 \qquad
  \text{掩码：} B\,T^2 \;\to\; 0 \qquad \sum_i T_i = T$$

切开只是换个看法（split 是视图），同样长的几段叠成一批、一次算完；最后按原来的次序接回去：

    q (B, H, T, d) ─► (B·T, H, d) ─split─► 每篇 (T_i, H, d) ─同长的叠起来─► (n, H, T_i, d)
                                                                                 │ 因果注意力
    o (B, H, T, d) ◄─ (B·T, H, d) ◄─ cat ── 每篇 (T_i, H, d) ◄────── 拆开 ───────┘

位置不变：RoPE 在切开之前已经转好，内积只看两个位置之差，从第几个数起都一样。

什么时候没有用：一行只有一篇（就是普通的因果注意力，连切也不切）；一篇占了几乎整行，
Σ T_i² ≈ T²，省下的只有那张掩码；行短、段碎、长短又各不相同——每种长度要派发一次，派发比乘法
还贵，量出来反而慢，所以 DocumentRuns.pays 先数一数再决定。

什么时候不走，仍画掩码：数下来不值；同一个编号断开后又出现（不是一段）；有填充或缓存；编译之中
（段的长短随数据变，会反复重编）；不在 CPU 上（要把编号取回来才知道怎样切，GPU 得停下来等；
那里该用变长的核，见「改哪里」）。

论文：Dao 2023《FlashAttention-2》的变长接口 (arXiv:2307.08691)；Krell 等 2021 打包与不相互污染
     (arXiv:2107.02027)

改哪里：
  · GPU 上的变长核（flash 的 varlen、FlexAttention 的 BlockMask）→ attend_by_runs 里换掉那一圈，
    并放宽 document_runs 的条件；它们要的「每段的起点」就是 lengths 的累加。
  · 何时走这条路 → document_runs 与开头的两个常数；谁来叫它 → gpt_model/inputs.py 的 visibility。
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from foundation.demonstration import run_demo
from transformer_basics.fast_attention import fast_attention
from transformer_basics.masks import attention_mask
from transformer_basics.speed_ups import SPEED_UPS

__all__ = ["DocumentRuns", "Visibility", "as_mask", "attend_by_runs", "document_runs"]

# 两个常数都是量出来的（前向加反向，一个核）：再短的行，float32 的库核配掩码更快；
# 派发一次的开销，约等于掩码里这么多格
SHORTEST_ROW, CELLS_A_CALL = 256, 8192


@dataclass(frozen=True, eq=False)
class DocumentRuns:
    """一批里每篇文档占哪一段：一行接一行、从左到右，首尾相接，不重不漏。

    形状：document_ids (B, T)；lengths 的和是 B·T，一段不会跨行
    """

    document_ids: Tensor
    lengths: tuple[int, ...]

    @property
    def whole_rows(self) -> bool:
        """每行恰好一篇：文档这条规则什么也没遮，等于没有。"""
        return len(self.lengths) == self.document_ids.shape[0]

    @property
    def pays(self) -> bool:
        """切开算是否比画掩码快；只看形状与段长，不试跑：试跑的结果随机器忙闲而变。

        公式：T ≥ SHORTEST_ROW 且 不同长度的个数 · CELLS_A_CALL ≤ B·T²
        """
        batch, length = self.document_ids.shape
        n_calls = len(set(self.lengths))
        return length >= SHORTEST_ROW and n_calls * CELLS_A_CALL <= batch * length**2

    def groups(self) -> dict[int, list[int]]:
        """长度 → 第几段；同样长的可以叠成一批，一次算完。"""
        found: dict[int, list[int]] = {}
        for index, length in enumerate(self.lengths):
            found.setdefault(length, []).append(index)
        return found


# 注意力的 mask 参数收的两种东西：画好的表，或者「一篇占哪一段」
Visibility: TypeAlias = Tensor | DocumentRuns


def document_runs(document_ids: Tensor) -> DocumentRuns | None:
    """每篇占哪一段；不能这样算的，返回 None，请去画掩码。值不值得，另问 pays。

    公式：第 t 个与前一个不同号（或在行首）⇒ 新的一段；段数 = 每行不同编号的个数 ⇔ 没有断开的
    形状：document_ids (B, T) 整数
    """
    # ① 先问不读数据的：编译时不能看数据，别的设备上看一眼要停下来等
    cheap = SPEED_UPS["documents"] and document_ids.device.type == "cpu"
    if not cheap or document_ids.ndim != 2 or torch.compiler.is_compiling():
        return None
    # ② 每段的第一个：行首总是，此外凡是编号变了的地方
    first = torch.ones_like(document_ids, dtype=torch.bool)  # (B, T)
    first[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    starts = first.flatten().nonzero().flatten()  # (段数,)
    # ③ 一行里两段同号：它们应当互相看得见，切开就错了
    rows = (starts // document_ids.shape[1]).tolist()
    names = set(zip(rows, document_ids.flatten()[starts].tolist(), strict=True))
    if len(names) < len(rows):
        return None
    # ④ 下一段的起点减这一段的起点；最后一段到头为止
    ends = torch.cat([starts[1:], starts.new_tensor([document_ids.numel()])])
    return DocumentRuns(document_ids, tuple((ends - starts).tolist()))


def as_mask(visibility: Visibility | None, window: int | None) -> Tensor | None:
    """画成表：照公式算的那条路、编译之后，都要一张看得见摸得着的掩码。

    形状：→ (B, 1, T, T) bool；本来就是表的原样返回
    """
    if not isinstance(visibility, DocumentRuns):
        return visibility
    ids = visibility.document_ids
    return attention_mask(ids.shape[1], ids.shape[1], document_ids=ids, window=window)


def attend_by_runs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    runs: DocumentRuns,
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """一篇一篇地做注意力；attend 是段内用的那一种，因果（与窗口）由它自己管。

    形状：Q (B, H, T, d)、K 与 V (B, G, T, d) → (B, H, T, d)
    类型：输出与 attend 的输出同 dtype
    错误：批或长度与 document_ids 的不同 → ValueError，写明两个形状
    """
    batch, _, length, _ = query.shape
    if (batch, length) != runs.document_ids.shape or key.shape[2] != length:
        raise ValueError(
            f"document_ids are for (B, T) = {tuple(runs.document_ids.shape)}, "
            f"got {(batch, length)} queries and {key.shape[2]} keys a row"
        )
    # ① 词元放到最前面，按段切开；split 的反向是一次 cat。
    #    若一段一段地写 q[:, :, a:b]，每段的反向都要先铺一张全零的 (B, H, T, d)
    pieces = [
        tensor.transpose(1, 2).flatten(0, 1).split(runs.lengths)  # 每段 (T_i, H, d)
        for tensor in (query, key, value)
    ]
    # ② 同样长的叠成一批：段越短越多，派发一次算许多段才划算
    outputs: list[Tensor] = [query] * len(runs.lengths)  # 先占位，下面逐个换掉
    for members in runs.groups().values():
        same = [
            torch.stack([part[index] for index in members]).transpose(1, 2)  # (n, H, T_i, d)
            for part in pieces
        ]
        done = attend(*same).transpose(1, 2)  # (n, T_i, H, d)
        # ③ 各回各位
        for index, output in zip(members, done.unbind(0), strict=True):
            outputs[index] = output
    # ④ 接起来就是 (B·T, H, d)；换回轴的次序只是视图，接下来 merge_heads 又换回去，不用复制
    joined = torch.cat(outputs).view(batch, length, *outputs[0].shape[1:])  # (B, T, H, d)
    return joined.transpose(1, 2)  # (B, H, T, d)


def largest_result(compute: Callable[[], object]) -> int:
    """算一遍，看途中最大的一个张量有多少字节；反向里的也算。"""
    # 私有的路径，只在量的时候用：每个算子的结果都从它手里过
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Watch(TorchDispatchMode):
        """逐个算子看结果的大小。"""

        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            """照常算，只记最大的。"""
            result = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    # 看内存而不看形状：广播出来的视图不占地方
                    self.largest = max(self.largest, leaf.untyped_storage().nbytes())
            return result

    with Watch() as watch:
        compute()
    return int(watch.largest)


def demo() -> None:
    """切一批看看，与掩码对答案，再量内存与时间。"""
    import time

    # ① 怎样切：两行，长短不一；同样长的归在一起
    ids = torch.tensor([[0, 0, 0, 1, 2, 2], [5, 5, 5, 5, 3, 3]])
    runs = document_runs(ids)
    assert runs is not None
    cells = sum(length**2 for length in runs.lengths)
    print(f"① {ids.tolist()}\n   每段的长度 {list(runs.lengths)}；长度 → 第几段 {runs.groups()}")
    print(f"   格子：掩码 2 × 6² = 72，一篇一篇 {cells}")
    assert cells == 9 + 1 + 4 + 16 + 4
    # 断开的编号：第 0 篇分在两处，它们该互相看得见
    assert document_runs(torch.tensor([[0, 1, 0]])) is None
    print("   [[0, 1, 0]]：同一篇断成两段，不走这条路，画掩码")

    # ② 一行八篇，同样长：与掩码同一个答案，梯度也同
    batch, heads, length, size = 2, 4, 1024, 16
    ids = (torch.arange(length) // 128).expand(batch, length)
    runs = document_runs(ids)
    assert runs is not None
    share = sum(n**2 for n in runs.lengths) / (batch * length**2)
    inputs = [torch.randn(batch, heads, length, size, requires_grad=True) for _ in range(3)]
    query, key, value = inputs
    slope = torch.randn(batch, heads, length, size)

    def with_mask() -> list[Tensor]:
        """画一张 (B, 1, T, T) 的表，交给库。"""
        output = fast_attention(query, key, value, attention_mask(length, length, document_ids=ids))
        return [output, *torch.autograd.grad(output, inputs, slope)]

    def by_runs() -> list[Tensor]:
        """一篇一篇。"""
        output = attend_by_runs(query, key, value, runs, fast_attention)
        return [output, *torch.autograd.grad(output, inputs, slope)]

    gaps = [
        float((a - b).detach().abs().max()) for a, b in zip(with_mask(), by_runs(), strict=True)
    ]
    print("② 与画掩码的差：" + "  ".join(f"{n} {g:.0e}" for n, g in zip("OQKV", gaps, strict=True)))
    assert max(gaps) < 1e-5

    # ③ 内存看得准：途中最大的一个张量。掩码在库里还要变成浮点数，一格四个字节
    print(f"③ T = {length}，一行 8 篇：Σ T_i² / T² = {share}")
    assert share == 1 / 8
    for name, compute in (("掩码    ", with_mask), ("一篇一篇", by_runs)):
        # 时间随机器而变，只印不断言；取最快的一次
        times = []
        for _ in range(3):
            began = time.perf_counter()
            compute()
            times.append(time.perf_counter() - began)
        largest = largest_result(compute)
        print(f"   {name}  最大的张量 {largest / 1e6:6.2f} MB  {1e3 * min(times):7.2f} 毫秒")
        # 一篇一篇时，最大的就是 q、k、v 自己
        assert (largest >= 4 * batch * length**2) == (compute is with_mask)
    assert largest == 4 * inputs[0].numel()


if __name__ == "__main__":
    run_demo(demo)
