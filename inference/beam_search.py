r"""一步一步都选最好的，合起来未必最好——怎样找总概率更高的一整句？束搜索（beam search）。

一句话的得分是各步对数概率之和，再按长度打折：

$$s(y) = \frac{1}{|y|^{\alpha}} \sum_{t=1}^{|y|} \log p(y_t \mid y_{<t})$$

每加一个词元，和只会变小；不打折（α = 0）就偏爱短的，α 越大越偏爱长的。

贪心只留一条路，第一步选错就回不了头。束搜索同时留 b 条：

    第 1 步        第 2 步                        b = 2
    ┌ 今 0.6 ──┬ 天 0.3   → 0.18  ✓
    │          └ 夜 0.2   → 0.12  ✗ 淘汰
    └ 明 0.4 ──┬ 月 0.9   → 0.36  ✓  ← 贪心看不到它：第一步就没选「明」
               └ 天 0.1   → 0.04  ✗ 淘汰

每步做三件事：
  ① 展开  b 条路 × V 个词元，取总分最高的 2b 个候选
          为什么是 2b：其中至多 b 个以「结束」收尾（每条路只有一种收法），
          剩下的总够凑满 b 条继续走的路
  ② 收好  以「结束」收尾的，若排在前 b 名，打折后放进另外的名单，不再占路
  ③ 续走  没结束的取前 b 条；它们可能出自同一条旧路，缓存要跟着重排

什么时候停：名单满了，而且剩下的路再怎么走也赢不了名单里最差的那个。总和只减不增，
所以上限是「以后每步的概率都是 1，并停在最划算的长度」；用它判断，结果与走到底完全相同。

b 足够大时它就是穷举；b = 1 且不提前结束时它就是贪心。分数高不等于写得好：束越宽，
开放式的文本往往越短、越重复；翻译这类答案确定的任务才爱用它。

常见的错法：
    结束的路还占着名额      一个早早结束的高分会把别的路全挤掉，剩下的越来越少
    没结束的与结束的一起比  没走完的总和总是更大，长度又不同，比出来没有意义
    缓存没有跟着重排        第 2 条路接着第 0 条路的前文写，读起来像两句话拼成的
    第一步就摆 b 条一样的路 b 条都会选同样的词，永远一样；所以从一条开始，第一步才分开
    名单一满就停            后面也许还有更好的；要等到谁也追不上

代价：每步都算 b 行，缓存也要 b 份；而且要等整句选定才有输出，不能一个字一个字地交。

论文：Lowerre 1976（提出）；Wu 等 2016 GNMT (arXiv:1609.08144) 长度打折；
     Holtzman 等 2020 (arXiv:1904.09751) 为什么概率最高的文本读起来乏味。

改哪里：打折的公式 → length_normalized；何时提前停 → best_possible；
       让各条路彼此不同（diverse beam search）→ expand 里给候选减分。
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from foundation.checks import check_float, check_int
from foundation.demonstration import run_demo
from inference.drawing import check_scores
from inference.penalties import History, LogitsProcessor
from inference.sampling import best_tokens

__all__ = ["Hypothesis", "Steps", "beam_search"]


class Steps(Protocol):
    """束搜索对模型的全部要求；inference/decoder.py 的 Decoder 就是一个。"""

    def next_logits(self) -> Tensor:
        """每条路的下一个词元的分数：(b, V)。"""

    def keep(self, rows: Sequence[int]) -> None:
        """第 i 条路变成原来的第 rows[i] 条；可以重复，条数可以变。

        例：rows = [0, 0, 2] 表示旧的第 0 条一分为二，第 1 条被淘汰
        """

    def append(self, tokens: Sequence[int]) -> None:
        """每条路接上一个词元；次序与刚才 keep 之后的相同。"""


class Route(NamedTuple):
    """一条还在走的路。"""

    ids: tuple[int, ...]  # 写了哪些词元
    total: float  # Σ log p，不打折：还没走完的路长度相同，不必打折就能比
    row: int  # 它接在上一步的第几条路后面


class Hypothesis(NamedTuple):
    """一条走完的路。"""

    ids: tuple[int, ...]
    total: float  # Σ log p
    score: float  # 按长度打折之后；走完的路长短不一，只能比它


def length_normalized(total: float, length: int, penalty: float) -> float:
    """公式：s = Σ log p / |y|^α；长度含「结束」那一个，不含提示。

    α = 1 时就是平均每个词元的对数概率，也就是 −log（困惑度）
    """
    return float(total / length**penalty)


def best_possible(total: float, length: int, max_length: int, penalty: float) -> float:
    """一条还在走的路，最好能得多少分？

    公式：total ≤ 0 且只减不增。α > 0 时除数越大越好，取最长；否则取最近的下一步
    """
    return length_normalized(total, max_length if penalty > 0 else length + 1, penalty)


def beam_search(
    steps: Steps,
    *,
    num_beams: int,
    max_new_tokens: int,
    is_finished: Callable[[tuple[int, ...]], bool],
    length_penalty: float = 1.0,
    processors: Sequence[LogitsProcessor] = (),
    history: History | None = None,
    restrict: Callable[[Tensor, Sequence[tuple[int, ...]]], Tensor] | None = None,
) -> list[Hypothesis]:
    """返回至多 num_beams 条走完的路，分高的在前；steps 一开始只有一行：提示。

    restrict：（分数，每条路写了什么）→ 划掉不许写的之后的分数，见 constraints.py
    走完：is_finished 说是，或者写满了 max_new_tokens
    形状：分数 (b, V)；b 从 1 开始，至多 num_beams
    错误：分数里有 NaN、或每个词元都被禁用 → ValueError
    """
    check_int("num_beams", num_beams, 1)
    check_int("max_new_tokens", max_new_tokens, 1)
    check_float("length_penalty", length_penalty)
    live = [Route((), 0.0, 0)]  # 只有一条空路：从这里第一次分岔
    done: list[Hypothesis] = []
    for length in range(1, max_new_tokens + 1):
        # ① 展开：写满的也算走完
        candidates = expand(steps, live, 2 * num_beams, processors, history, restrict)
        at_end = [length == max_new_tokens or is_finished(path.ids) for path in candidates]
        # ② 收好：排在前 b 名的才收；排在后面的，有更好的路还在走，轮不到它
        #    打折只在这里做一次：以后它的长度不会再变
        for path, ended in zip(candidates[:num_beams], at_end, strict=False):
            if ended:
                score = length_normalized(path.total, length, length_penalty)
                done.append(Hypothesis(path.ids, path.total, score))
        done = sorted(done, key=lambda found: -found.score)[:num_beams]
        # ③ 续走
        going = [path for path, ended in zip(candidates, at_end, strict=True) if not ended]
        live = going[:num_beams]
        if not live:
            break
        # 名单满了，而最有希望的路也追不上名单里最差的：再走下去什么也不会变
        hope = best_possible(live[0].total, length, max_new_tokens, length_penalty)
        if len(done) == num_beams and done[-1].score >= hope:
            break
        follow(steps, live, history)
    return done


def expand(
    steps: Steps,
    live: Sequence[Route],
    width: int,
    processors: Sequence[LogitsProcessor],
    history: History | None,
    restrict: Callable[[Tensor, Sequence[tuple[int, ...]]], Tensor] | None = None,
) -> list[Route]:
    """所有「旧路 × 词元」里总分最高的 width 个，分高的在前；并列时先旧路、后编号。

    公式：total' = total + log p(v)，p = softmax(惩罚之后的分数)
    形状：(b, V) → 每条路先各取 width 个，再合起来排：b·V 个里真正要看的只有 b·width 个
    """
    # 惩罚改的是分数，要在归一化之前；改完再 log-softmax，才仍是一个概率分布
    logits = steps.next_logits()  # (b, V)
    if restrict is not None:
        logits = restrict(logits, [path.ids for path in live])
    for process in processors:
        logits = process(logits, history)
    check_scores(logits)
    log_probs = logits.log_softmax(dim=-1)  # (b, V)
    found = [
        (path.total + value, row, token)
        for row, (path, best) in enumerate(zip(live, best_tokens(log_probs, width), strict=True))
        for value, token in best
        if value > -math.inf  # 被禁用的路不走
    ]
    found.sort(key=lambda item: (-item[0], item[1], item[2]))
    return [Route((*live[row].ids, token), total, row) for total, row, token in found[:width]]


def follow(steps: Steps, live: Sequence[Route], history: History | None) -> None:
    """让模型一侧跟上：淘汰的行丢掉，一分为二的行复制，再各接上自己的新词元。

    账本（history）同样：每条路说过什么不一样，惩罚也就不一样
    """
    # 先重排、再接上：接上之后旧的行号就没有意义了
    rows = [path.row for path in live]
    tokens = [path.ids[-1] for path in live]
    steps.keep(rows)  # 缓存、填充都跟着走；忘了它，每条路读到的就是别人的前文
    steps.append(tokens)
    if history is not None:
        device = history.counts.device
        history.keep(torch.tensor(rows, device=device))
        history.record(torch.tensor(tokens, device=device))


class TableSteps:
    """演示用的「模型」：下一个词元的概率只看刚写的那一个，查表即得。"""

    def __init__(self, table: Tensor, start: int) -> None:
        self.log_table = table.log()  # (V, V)，第 i 行是「i 之后」
        self.last = [start]

    def next_logits(self) -> Tensor:
        """对数概率也是合法的分数：softmax 之后正好变回概率。"""
        return self.log_table[self.last]

    def keep(self, rows: Sequence[int]) -> None:
        """每条路的全部状态就是最后一个词元。"""
        self.last = [self.last[row] for row in rows]

    def append(self, tokens: Sequence[int]) -> None:
        """换成新的最后一个。"""
        self.last = list(tokens)


START, END, STEPS = 0, 5, 3  # 演示里的起点、「结束」与最多步数


def search(table: Tensor, num_beams: int, penalty: float = 0.0) -> list[Hypothesis]:
    """在查表的「模型」上做束搜索。"""
    return beam_search(
        TableSteps(table, START),
        num_beams=num_beams,
        max_new_tokens=STEPS,
        is_finished=lambda ids: ids[-1] == END,
        length_penalty=penalty,
    )


def exhaustive(table: Tensor, penalty: float) -> Hypothesis:
    """把 V^T 种写法全试一遍；只有小得可怜的例子才办得到，正好用来核对。"""
    found = []
    for ids in itertools.product(range(len(table)), repeat=STEPS):
        # 写到「结束」为止，后面的不算
        cut = ids[: ids.index(END) + 1] if END in ids else ids
        pairs = itertools.pairwise((START, *cut))
        total = sum(math.log(p) if (p := float(table[i, j])) else -math.inf for i, j in pairs)
        found.append(Hypothesis(cut, total, length_normalized(total, len(cut), penalty)))
    return max(found, key=lambda path: path.score)


def demo() -> None:
    """六个词的小语言：贪心错在第一步，两条路就够纠正；再看长度怎样打折。"""
    words = ["⟨始⟩", "今", "明", "天", "月", "。"]
    table = torch.tensor(
        [
            [0.0, 0.6, 0.4, 0.0, 0.0, 0.0],  # 始 → 今或明
            [0.0, 0.0, 0.0, 0.6, 0.2, 0.2],  # 今 → 天、月、。
            [0.0, 0.0, 0.0, 0.1, 0.9, 0.0],  # 明 → 月
            [0.2, 0.2, 0.2, 0.2, 0.1, 0.1],  # 天 → 什么都可能
            [0.0, 0.0, 0.0, 0.0, 0.0, 1.0],  # 月 → 。
            [0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
        ]
    )
    print("1. 束宽与找到的最好一句（α = 0，比总概率）：")
    for num_beams in (1, 2, 4):
        best = search(table, num_beams, penalty=0.0)[0]
        text = "".join(words[token] for token in best.ids)
        print(f"   b = {num_beams}   {text}　概率 {math.exp(best.total):.3f}")
    # 贪心先走「今」，拿不到 0.4 × 0.9 × 1 的「明月。」
    assert search(table, 1)[0].ids != search(table, 2)[0].ids == (2, 4, 5)
    assert abs(math.exp(search(table, 2)[0].total) - 0.36) < 1e-6

    # 「今」之后七成会结束：短句的总概率 0.6 × 0.7 = 0.42 更高，该不该选它？
    table[1] = torch.tensor([0.0, 0.0, 0.0, 0.2, 0.1, 0.7])
    print("\n2. 让「今。」的概率升到 0.42，三种长度打折下的名单（b = 3）：")
    for penalty in (0.0, 0.5, 1.0):
        done = search(table, 3, penalty)
        shown = [f"{''.join(words[token] for token in h.ids)} {h.score:.3f}" for h in done]
        print(f"   α = {penalty:.1f}   " + "   ".join(shown))
    print("   除数是 |y|^α：α 越大，长句的（负的）总分被除得越接近 0，长句越占便宜")
    assert search(table, 3, 0.0)[0].ids == (1, 5)
    assert search(table, 3, 1.0)[0].ids == (2, 4, 5)

    # 穷举 6³ = 216 种：束宽够大，一种都不会漏
    for penalty in (-1.0, 0.0, 1.0, 3.0):
        every, found = exhaustive(table, penalty), search(table, 216, penalty)[0]
        assert every.ids == found.ids
        assert abs(every.score - found.score) < 1e-6
    print("\n3. 束宽 216 与穷举全部 216 种写法：四种 α 下答案都相同")


if __name__ == "__main__":
    run_demo(demo)
