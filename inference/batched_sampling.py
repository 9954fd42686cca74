r"""一批文本，每行各有各的温度、top-k、top-p、种子，怎样一次抽完？——而且不给整个词表排队。

sampling.py 里一样一个小对象，一次只认一组参数，读起来清楚；这里是同一件事的快路，每行一组：

$$p^{(b)}_v \propto \mathbb{1}[v \in \text{留下}^{(b)}]\; e^{(z^{(b)}_v - \max z^{(b)})/\tau_b}$$

一步里做三件事，次序与 sampling.py 的约定相同：

    分数 (B, V) ─▶ 偏置、惩罚，各行的强弱竖着排成 (B, 1)，一次广播完
                 │
        ┌────────┼──────────────┐  按行分三类，各走各的
        ▼        ▼              ▼
      贪心     不淘汰          要淘汰（top-k、top-p、min-p）
      取最大   整行抽           只取前 n 名 (B, n)，在里面淘汰、抽

淘汰为什么不必排队？把五万个词元排好要几毫秒，而留下的多半只有几十个。先只取前 n 名，再问一句
「够不够」，这一问是准的，不是估计：

  · top-k    n > k 就够：第 k 名与第 k+1 名都看得见
  · top-p    前 n 名的概率之和已经到 p 就够；分母仍是整个词表的
  · 都不够   n 放大八倍再来，最后才排整个词表

只剩并列（ties）：第 k 名与后面的分数恰好相同时，「前 n 名」里有谁说不准，约定是留编号小的。
遇到了就在那一行里按编号点名；float32 很少遇到，bf16 只有 8 位有效数字，常常遇到。

抽的时候每个词元的运气随编号走（见 drawing.py），概率为 0 的本来就跑不到；所以只在留下的里面抽，
与 sampling.py 在整行里抽，抽到的是同一个。测试就拿那一条慢路作标准答案。

一行的结果只由它自己的分数、参数与运气决定：(B, 1) 的广播逐行独立，
所以旁边有谁、有几行、排第几，都不影响它。运气从哪里来，见 random_stream.py。

例如三行各要各的：

    SamplingParams(temperature=0)                  → 第一行取最大
    SamplingParams(temperature=1.3, top_p=0.9)     → 第二行，前 64 名够不够九成？够就不必多看
    SamplingParams(top_k=40, min_p=0.02)           → 第三行，前 64 名里有第 40 名，也有第 41 名

常见的错法：
    先按 top-p 淘汰、再除以温度    次序反了，留下的个数不对；这里的概率都是除过温度的
    top-p 的分母只加前 n 名        n 小的时候概率偏大，留下的偏少
    贪心当作温度 10⁻⁶ 来抽         并列时会随机；贪心约定取编号最小的
    各行先合成一份「平均」参数     每行都错一点，而且看不出来

改哪里：多一种淘汰 → survivors 里加一段，并在 sampling.py 写出它的慢路；前 n 名取多少 → FIRST。
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from foundation.demonstration import run_demo
from inference.drawing import check_scores, draw, drawing_device
from inference.penalties import (
    FrequencyPenalty,
    History,
    LogitBias,
    LogitsProcessor,
    RepetitionPenalty,
)
from inference.sampling import GREEDY_BELOW, SamplingParams, TopP, sample_next

__all__ = ["BatchSampler"]

FIRST = 64  # 先看这么多名：top-k 40、top-p 0.9 多半就够了
GROWTH = 8  # 不够就多看这么多倍
SORTED = 8  # 要看的超过词表的几分之一，就不如排整个词表
ALL = 2**62  # 没有 top-k：多少名都行


def column(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """一个参数，每行一个：(B, 1)；大家都一样就是 (1, 1)，广播出来的数相同，也不必跟着行裁。"""
    # 多半整批一组参数：一个数广播出去，与抄 B 份得到的一样
    if len(set(values)) == 1:
        values = values[:1]
    return torch.tensor(values, dtype=dtype, device=device)[:, None]


class Limits(NamedTuple):
    """抽签要的四样，每样 (B, 1) 或 (1, 1)；不用的那一样是放行一切的值。"""

    temperature: Tensor  # τ，float64：温度除在 float64 里
    top_k: Tensor  # 至多几名；不用就是很大的数
    top_p: Tensor  # 1 = 不用
    min_p: Tensor  # log m；不用就是 −∞

    def of(self, rows: Tensor) -> Limits:
        """挑出这几行的；大家都一样的不必挑。"""
        return Limits(*(one if len(one) == 1 else one[rows] for one in self))


class BatchSampler:
    """一批行的选词：第 b 行用第 b 组参数；行退出时用 keep 跟着裁。

    形状：B 组参数；choose 收 (B, V)。只有一组参数时也收 (R, V)：R 行共用它（投机解码的几个位置）
    类型：淘汰与抽签的概率都用 float64；分数是 float32
    """

    def __init__(
        self, params: Sequence[SamplingParams], device: torch.device | str = "cpu"
    ) -> None:
        self.params, self.device = list(params), torch.device(device)
        self._arrange()

    def keep(self, rows: Sequence[int]) -> None:
        """第 i 行变成原来的第 rows[i] 行。"""
        # 重排一遍也就几十微秒，而且只在有行退出时
        self.params = [self.params[row] for row in rows]
        self._arrange()

    def _arrange(self) -> None:
        """把各行的参数竖着排好；两次 keep 之间不变，所以不在每一步里做。"""
        params, here = self.params, drawing_device(self.device)
        # ① 三类行：贪心、整行抽、淘汰之后再抽
        kinds = [0 if one.is_greedy else 2 if one.truncates else 1 for one in params]
        self._rows = [[row for row, kind in enumerate(kinds) if kind == k] for k in range(3)]
        # ② 改分数的几步，不起作用的不列；各行的强弱不同，就是一列数
        self._penalties: list[LogitsProcessor] = []
        floats = torch.float32, self.device
        if any(one.repetition_penalty != 1.0 for one in params):
            strength = column([one.repetition_penalty for one in params], *floats)
            self._penalties.append(RepetitionPenalty(strength))
        if any(one.presence_penalty or one.frequency_penalty for one in params):
            presence = column([one.presence_penalty for one in params], *floats)
            frequency = column([one.frequency_penalty for one in params], *floats)
            self._penalties.append(FrequencyPenalty(presence, frequency))
        self._biases = [LogitBias(one.logit_bias) if one.logit_bias else None for one in params]
        # ③ 抽签用的；min-p 比的是分数的差，所以先取对数，log 0 就是放行一切的 −∞
        minima = [math.log(one.min_p) if one.min_p else -math.inf for one in params]
        self._limits = Limits(
            column([max(one.temperature, GREEDY_BELOW) for one in params], torch.float64, here),
            column([one.top_k or ALL for one in params], torch.long, here),
            column([one.top_p for one in params], torch.float64, here),
            column(minima, torch.float64, here),
        )
        #    top-k 最大的是几：少看一名都不行，所以记下来
        self._widest = max((one.top_k for one in params), default=0)

    def choose(
        self, logits: Tensor, history: History | None = None, keys: Sequence[int] = ()
    ) -> Tensor:
        """选出每行的下一个词元。

        形状：logits (B, V)，keys 每行一个整数，决定运气（贪心的行给什么都行）→ (B,) int64
        错误：某行有 NaN、+∞，或者一个能选的都没有 → ValueError，写明是第几行
        """
        scores = self._penalize(logits, history)
        check_scores(scores)
        # 多半整批同一类：不必挑出来再放回去
        for kind, rows in enumerate(self._rows):
            if len(rows) == len(self.params):
                return self._choose(kind, scores, keys, self._limits)
        # 三类都有：挑出来各走各的，再放回原来的行
        chosen = torch.empty(len(scores), dtype=torch.long, device=scores.device)
        for kind, rows in enumerate(self._rows):
            if rows:
                index = torch.tensor(rows, device=scores.device)
                limits = self._limits.of(index.to(drawing_device(self.device)))
                chosen[index] = self._choose(
                    kind, scores[index], [keys[row] for row in rows], limits
                )
        return chosen

    def _choose(self, kind: int, scores: Tensor, keys: Sequence[int], limits: Limits) -> Tensor:
        """同一类的几行；kind 是 0 贪心、1 整行抽、2 淘汰之后抽。

        limits 只含这几行的，或者大家共用的一份
        """
        # 并列取编号最小的；温度与淘汰都改变不了第一名
        if kind == 0:
            return scores.argmax(dim=-1)
        # 抽签用 float64
        here = scores.to(drawing_device(self.device))
        # 整行抽，一个也不淘汰
        if kind == 1:
            return draw(here, keys, limits.temperature).to(scores.device)
        # 只在留下的里面抽；抽到的是第几列，再换成编号
        values, tokens = survivors(here, limits, self._widest)
        places = draw(values, keys, limits.temperature, tokens)  # (B,)
        return tokens.gather(-1, places[:, None])[:, 0].to(scores.device)

    def _penalize(self, logits: Tensor, history: History | None) -> Tensor:
        """偏置 → 惩罚；不用的那一行拿不起作用的值（除以 1、减 0），一位也不变。"""
        # 只有一组参数：几行一起加，往前看的几个位置也是这样
        if len(self._biases) == 1 and self._biases[0]:
            logits = self._biases[0](logits)
        elif any(self._biases):
            # 各行偏置的编号不同，只好逐行加
            pairs = zip(torch.split(logits, 1), self._biases, strict=True)
            logits = torch.cat([row if bias is None else bias(row) for row, bias in pairs])
        for penalty in self._penalties:
            logits = penalty(logits, history)
        return logits


def survivors(scores: Tensor, limits: Limits, widest: int) -> tuple[Tensor, Tensor]:
    """淘汰之后留下的：先看前 n 名，不够再多看。

    形状：scores (B, V) → 分数 (B, n)，从高到低，淘汰了的记 −∞；编号 (B, n)
    widest：各行里最大的 top-k；第 k 名之后还要多看一名，才知道有没有并列
    """
    # 从少的看起：多半第一次就够。
    # total 只与分数、温度有关，所以放大 n 时不必再算
    vocab_size = scores.shape[-1]
    n, total = max(FIRST, widest + 1), None
    while True:
        # 看得太多，挑还不如排
        n = vocab_size if n > vocab_size // SORTED else n
        values, tokens = scores.topk(n, dim=-1)  # (B, n)
        scaled = scaled_by(values, limits.temperature)  # (B, n)
        # ① top-k：第几名
        count = limits.top_k.clamp(max=vocab_size).expand(len(scores), 1)  # (B, 1)
        # ② top-p：分母是 top-k 留下的；没有 top-k 就是整个词表，与看了几名无关，只算一次
        if bool((limits.top_p < 1).any()):
            weights = scaled.exp()
            if total is None:
                total = scaled_by(scores, limits.temperature).exp().sum(dim=-1, keepdim=True)
            inside = torch.arange(n, device=scores.device) < count  # (B, n)
            few = (weights * inside).sum(dim=-1, keepdim=True)
            mass = torch.where(count < vocab_size, few, total)  # (B, 1)
            short = (weights / mass).cumsum(dim=-1)[:, :-1] < limits.top_p - TopP.SLACK
            nucleus = 1 + short.sum(dim=-1, keepdim=True)  # (B, 1)
            count = torch.where(limits.top_p < 1, nucleus.minimum(count), count)
        # ③ min-p：离第一名多远；它只看自己，没有并列的麻烦
        near = scaled >= limits.min_p  # (B, n)
        left = near.sum(dim=-1, keepdim=True).minimum(count)  # (B, 1)
        # ④ 够不够：最后一名的后面还看得见一名，才敢说后面的都淘汰了
        if n == vocab_size or bool((left < n).all()):
            break
        n *= GROWTH
    settle_ties(scores, values, tokens, count)
    kept = near & (torch.arange(n, device=scores.device) < count)
    return values.masked_fill(~kept, -math.inf), tokens


def scaled_by(values: Tensor, temperature: Tensor) -> Tensor:
    """(z − max z) / τ，在 float64 里：最大的变成 0，其余是负数。

    全行 −∞ 的早已被 check_scores 拒绝，所以 max 是有限的
    """
    wide = values.double()
    return (wide - wide.amax(dim=-1, keepdim=True)) / temperature


def settle_ties(scores: Tensor, values: Tensor, tokens: Tensor, count: Tensor) -> None:
    """第 count 名若与后面的并列，改成留编号小的；就地改 tokens。

    topk 只保证分数对，不保证并列时给谁；分数都一样，所以 values 不必改
    """
    # 取到了全部的话，后面没有谁可以并列
    n = values.shape[-1]
    last = values.gather(-1, count.clamp(max=n) - 1)  # (B, 1) 第 count 名的分数
    after = values.gather(-1, count.clamp(max=n - 1))  # (B, 1) 它的下一名
    for row in ((last == after) & (count < n))[:, 0].nonzero()[:, 0].tolist():
        # 比它高的都留着；剩下几个空位，才是并列者的
        first = int((values[row] > last[row]).sum())
        room = int(count[row]) - first
        # 整行里与它同分的，nonzero 给出的编号本来就从小到大
        tokens[row, first : first + room] = (scores[row] == last[row]).nonzero()[:room, 0]


def demo() -> None:
    """三行三样参数，一次抽完；与慢路对答案；再看看不排队省下多少。"""
    params = [
        SamplingParams(temperature=0),
        SamplingParams(temperature=1.3, top_p=0.9),
        SamplingParams(temperature=0.8, top_k=40, min_p=0.02),
    ]
    scores = torch.randn(3, 5_000) * 3
    keys = [1, 2, 3]
    together = BatchSampler(params).choose(scores, keys=keys).tolist()
    print("1. 三行一起抽，与各自用 sampling.py 的慢路抽：")
    for row, one in enumerate(params):
        own = None if one.is_greedy else [keys[row]]
        slow = int(sample_next(scores[row : row + 1], one.processors(), keys=own))
        names = " → ".join(type(step).__name__ for step in one.processors()) or "贪心"
        print(f"   {names:28} 一起 {together[row]:4}　慢路 {slow:4}")
        assert together[row] == slow

    # 旁边有谁都不要紧：换个次序、少几行，各行还是抽到自己的
    for rows in ([2, 0, 1], [1], [0, 2]):
        sampler = BatchSampler([params[row] for row in rows])
        found = sampler.choose(scores[rows], keys=[keys[row] for row in rows]).tolist()
        print(f"2. 行的次序 {rows!s:9} → {found}")
        assert found == [together[row] for row in rows]

    # 并列：五个同分，只有三个名额，留编号小的
    tied = torch.zeros(1, 3_000).index_fill(1, torch.tensor([7, 50, 90, 200, 250]), 2.0)
    sampler = BatchSampler([SamplingParams(top_k=3)])
    drawn = {int(sampler.choose(tied, keys=[key])) for key in range(20)}
    print(f"3. 7、50、90、200、250 同分，top-k 3：抽到过 {sorted(drawn)}")
    assert drawn == {7, 50, 90}
    speed()


def speed() -> None:
    """五万个词元的词表，一行：一样一样的慢路与合在一起的快路，各用多久。"""
    # 真实的分数近似 Zipf 律：第 i 名的概率 ∝ i^(−1.2)
    scores = -1.2 * torch.arange(1, 50_001).float().log()[None]
    scores = scores[:, torch.randperm(50_000)]
    print("4. 词表五万，抽一个，毫秒（慢路 → 快路）：")
    for name, one in (
        ("不淘汰　　　　　", SamplingParams()),
        ("top-k 40　　　　", SamplingParams(top_k=40)),
        ("top-p 0.8　　　 ", SamplingParams(top_p=0.8)),
        ("0.7、40、0.9 一起", SamplingParams(temperature=0.7, top_k=40, top_p=0.9)),
    ):
        steps, sampler = one.processors(), BatchSampler([one])
        slow = median_ms(lambda: sample_next(scores, steps, None, [5]))  # noqa: B023
        fast = median_ms(lambda: sampler.choose(scores, keys=[5]))  # noqa: B023
        # 秒数每台机器不同，只打印，不断言
        print(f"   {name}　{slow:6.2f} → {fast:5.2f}")


def median_ms(work: Callable[[], object], n: int = 15) -> float:
    """跑 n 遍的中位数，毫秒；第一遍热身不算。"""
    seconds = []
    for _ in range(n + 1):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return 1e3 * sorted(seconds[1:])[n // 2]


if __name__ == "__main__":
    run_demo(demo)
