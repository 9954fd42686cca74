r"""一个词元怎样最便宜地知道它前面是谁？——词元平移（token shift）与二元词嵌入（bigram embedding）。

语言里最有用的一条线索是「上一个词元」。注意力当然找得到它，但要先学会：一个头得把 q、k 与位置
编码配合好，才能恰好看向前一格，这要练上许多步，还占掉一个头。可是「前一个是谁」根本不必学着找，
它就在左边，直接递过来即可：

$$x_t = E[\mathrm{id}_t] \;+\; w \odot E[\mathrm{id}_{t-1}]
  \;+\; B\big[h(\mathrm{id}_{t-1}, \mathrm{id}_t)\big]$$

    编号        床  前  明  月                E (V, D) 词向量；w (D,) 每一维递过来几成
    前一个      ∅   床  前  明                B (R, D) 一对词元的向量，h 把一对变成行号
                │   │   │   │
    x_t   =   E[床] E[前]+w⊙E[床]+B[床前] …   ∅：没有前一个，平移那一项就是 0

平移（smear）   D 个参数，每个词元多 D 次乘加。有了它，第一层就能按「前一个是 q」来找东西：
                归纳头（induction head，抄下文的头）本来要两层，现在一层就能做。
二元词嵌入      查表不是乘法，几乎不花时间，却等于记住了每一对相邻词元；一对太多时，几对共用一行
                （散列，hash），常见的对难免偶尔撞上别的对，模型会学着将就。

只看编号、不看隐藏状态，是有意的：用缓存续写时只要记得上一个编号，左填充、文档的边界也只在编号上
判断一次。每一层都平移隐藏状态（RWKV）也可以，那样每层都要多存一个向量。

论文：token shift — Peng et al., *RWKV*, arXiv:2305.13048；归纳头与「前一个词元」— Olsson et al.,
      arXiv:2209.11895；散列的 n 元嵌入 — Clark et al., *CANINE*, arXiv:2103.06874，
      Huang et al., *Over-Tokenized Transformer*, arXiv:2501.16975。

改哪里：再往前看一个 → previous_ids 多移一格，TokenShift 多一个 w；换散列 → pair_rows；
        前一个「算不算数」（填充、文档）→ previous_ids。
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.checks import check_int
from foundation.demonstration import run_demo
from transformer_basics.embeddings import TokenEmbedding
from transformer_basics.kv_cache import ModelCache

__all__ = ["NO_PREVIOUS", "BigramEmbedding", "PreviousToken", "TokenShift", "previous_ids"]

NO_PREVIOUS = -1  # 「没有前一个」：词元的编号都不小于 0，不会混淆

# 散列用的两个数：一个素数当模，一个奇数把相邻的编号打散；都小于 2³²，乘起来不超过 int64
_PRIME, _MULTIPLIER = 4_294_967_291, 1_640_531_527


def previous_ids(
    ids: Tensor,
    last: Tensor | None = None,
    real: Tensor | None = None,
    document_ids: Tensor | None = None,
) -> Tensor:
    """每个词元的前一个是谁；没有就是 NO_PREVIOUS。

    公式：prev_t = id_{t−1}；t 是第一个、前一个是填充、前一个属于别的文档 → −1
    形状：ids (B, T)，last (B, 1)：缓存里最后一个，没有缓存就是 None；real (B, S) 真 = 不是填充，
          连缓存里的一起；document_ids (B, T) → (B, T)
    约定：填充要在左边（见 gpt_model/inputs.py）：夹在中间的填充会被当成一个断口
    """
    # ① 右移一格，开头补上缓存里的最后一个
    if last is None:
        last = torch.full_like(ids[:, :1], NO_PREVIOUS)
    previous = torch.cat((last, ids[:, :-1]), dim=1)  # (B, T)
    # ② 前一个若是填充，就当没有；缓存里的也可能是填充，所以从整张表里取
    if real is not None:
        before = F.pad(real, (1, 0))[:, -ids.shape[1] - 1 : -1]  # (B, T)
        previous = previous.masked_fill(~before, NO_PREVIOUS)
    # ③ 不许越过文档的边界：打包的几篇互不相干
    if document_ids is not None:
        same = document_ids[:, 1:] == document_ids[:, :-1]  # (B, T − 1)
        previous = previous.masked_fill(~F.pad(same, (1, 0)), NO_PREVIOUS)
    return previous


class TokenShift(nn.Module):
    """把前一个词元的向量按维递过来几成：x_t + w ⊙ E[prev_t]。

    形状：x (B, T, D)、previous (B, T) → (B, T, D)
    约定：w 从 0 开始，也就是一开始不递；递哪几维、递几成、正还是负，都由数据定
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(check_int("dim", dim, 1)))  # w (D,)

    def forward(self, x: Tensor, previous: Tensor, embedding: Callable[[Tensor], Tensor]) -> Tensor:
        """embedding 与当前词元用的是同一张表：前一个字母仍是那个字母。"""
        # −1 不是编号，先换成 0 去查，查到的再抹成 0
        missing = previous < 0  # (B, T)
        shifted = embedding(previous.masked_fill(missing, 0))  # (B, T, D)
        return x + self.weight * shifted.masked_fill(missing[..., None], 0.0)


class BigramEmbedding(nn.Module):
    """一对相邻词元的向量：按 (前一个, 这一个) 查一张有 R 行的表。

    公式：B[h(prev, id)]，h 见 pair_rows
    形状：ids、previous (B, T) → (B, T, D)
    约定：从 0 开始，所以刚建好时与没有它一样；「没有前一个」也是一种前一个，有自己的行
    """

    def __init__(self, rows: int, vocab_size: int, dim: int) -> None:
        super().__init__()
        check_int("bigram_rows", rows, 1)
        self.rows, self.vocab_size = rows, check_int("vocab_size", vocab_size, 1)
        self.weight = nn.Parameter(torch.zeros(rows, check_int("dim", dim, 1)))  # (R, D)

    def forward(self, ids: Tensor, previous: Tensor) -> Tensor:
        """(B, T)、(B, T) → (B, T, D)。"""
        return F.embedding(pair_rows(previous, ids, self.vocab_size, self.rows), self.weight)


class PreviousToken(nn.Module):
    """两样合在一起，供 GPT 用：先弄清前一个是谁，再把平移与二元表加到词向量上。

    公式：x ← x + w ⊙ E[prev] + B[h(prev, id)]，没有要的那一项不加
    形状：x (B, T, D)、ids (B, T) → (B, T, D)
    参数名：shift.weight (D,)，pairs.weight (R, D)
    """

    def __init__(self, vocab_size: int, dim: int, *, shift: bool, rows: int | None) -> None:
        super().__init__()
        self.shift = TokenShift(dim) if shift else None
        self.pairs = None if rows is None else BigramEmbedding(rows, vocab_size, dim)

    def forward(
        self,
        x: Tensor,
        ids: Tensor,
        embedding: Callable[[Tensor], Tensor],
        cache: ModelCache | None = None,
        real: Tensor | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """续写时前一个记在缓存里：取出上一个，再把这一段的记进去，留给下一次。"""
        last = None if cache is None else cache.last_ids()  # (B, 1)
        previous = previous_ids(ids, last, real, document_ids)  # (B, T)
        if cache is not None:
            cache.remember_ids(ids)  # 各层的 K、V 稍后才接上；没接成的，下次会切掉
        if self.shift is not None:
            x = self.shift(x, previous, embedding)  # (B, T, D)
        if self.pairs is not None:
            x = x + self.pairs(ids, previous)  # (B, T, D)
        return x


def pair_rows(previous: Tensor, ids: Tensor, vocab_size: int, rows: int) -> Tensor:
    """一对词元 → 行号 0 … R − 1。

    公式：n = (prev + 1)·V + id；R ≥ (V + 1)·V 时行号就是 n，一对一行；否则 n·m mod p mod R
    类型：int64；中间的乘积小于 2⁶³，各种设备上结果相同
    """
    number = (previous + 1) * vocab_size + ids  # 每一对一个号，prev = −1 排在最前
    if rows >= (vocab_size + 1) * vocab_size:
        return number
    # 直接 mod R 会让相邻的对挤在一起：先乘一个大数打散
    return number % _PRIME * _MULTIPLIER % _PRIME % rows


def who_is_before() -> None:
    """四种情形下的「前一个」：整句、续写、左填充、打包。"""
    ids = torch.tensor([[5, 6, 7, 8]])
    real = torch.tensor([[0, 0, 1, 1]]).bool()  # 前两个是填充
    documents = torch.tensor([[0, 0, 1, 1]])  # 两篇，各两个词元
    cases = {
        "一整句": previous_ids(ids),
        "缓存里最后一个是 4": previous_ids(ids, last=torch.tensor([[4]])),
        "前两个是填充": previous_ids(ids, real=real),
        "两篇打包": previous_ids(ids, document_ids=documents),
    }
    print("① 编号 [5, 6, 7, 8] 的前一个（−1 = 没有）")
    for name, found in cases.items():
        print(f"   {name:　<10} {found[0].tolist()}")
    assert cases["一整句"].tolist() == [[-1, 5, 6, 7]]
    assert cases["前两个是填充"][0, 2] == cases["两篇打包"][0, 2] == -1  # 各自的开头


def a_table_of_pairs_learns_at_once() -> None:
    """下一个由最近两个决定的数列：只看当前的学不会，有了平移或二元表，一层线性就够。"""
    torch.manual_seed(0)
    rule = torch.randint(7, (7, 7))  # (前一个, 这一个) → 下一个
    sequence = torch.randint(7, (1, 2000))
    targets = rule[previous_ids(sequence).clamp(min=0), sequence]  # (1, T)
    print("② 答案由前一个与这一个共同决定；训练 150 步后的损失（瞎猜是 log 7 = 1.95）")
    losses = {}
    for name in ("只看这一个", "加上平移", "加上二元表"):
        embedding, head = TokenEmbedding(7, 16), nn.Linear(16, 7)
        nn.init.normal_(embedding.weight)
        shift, pairs = TokenShift(16), BigramEmbedding(56, 7, 16)
        parameters = [p for m in (embedding, head, shift, pairs) for p in m.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=0.03)
        for _ in range(150):
            x, previous = embedding(sequence), previous_ids(sequence)
            if name == "加上平移":
                x = shift(x, previous, embedding)
            if name == "加上二元表":
                x = x + pairs(sequence, previous)
            loss = F.cross_entropy(head(x)[0, 1:], targets[0, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[name] = loss.item()
        print(f"   {name:　<6} {losses[name]:.3f}")
    # 平移之后仍是线性的：它只能把两个各自的影响相加；二元表记得住每一对
    assert losses["只看这一个"] > losses["加上平移"] + 0.1 > losses["加上二元表"] + 1.0


def how_often_pairs_collide() -> None:
    """65 种字母、4290 对；表的行数与撞在一起的对数。"""
    previous, ids = torch.arange(-1, 65).repeat_interleave(65), torch.arange(65).repeat(66)
    print("③ 65 种字母有 66·65 = 4290 对（含「没有前一个」），表有 R 行时，用上了几行")
    for rows in (4290, 2048, 512):
        used = len(pair_rows(previous, ids, 65, rows).unique())
        print(f"   R = {rows:<5} 用上 {used:>4} 行，平均一行 {4290 / used:.1f} 对")
    assert len(pair_rows(previous, ids, 65, 4290).unique()) == 4290  # 够大就没有碰撞
    assert used == 512  # 散得开，没有空着的行


def demo() -> None:
    """前一个是谁；有了它学得多快；散列撞得多不多。"""
    who_is_before()
    a_table_of_pairs_learns_at_once()
    how_often_pairs_collide()


if __name__ == "__main__":
    run_demo(demo)
