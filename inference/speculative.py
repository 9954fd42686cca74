r"""大模型读一个词元与读五个几乎一样久，能不能先猜好几个，请它一次批改？——投机解码。

逐个地写时，每一步都要把全部权重搬一遍，却只算一行；搬一遍顺便算五行，时间几乎不变。所以：

    便宜的猜法            明　月　光　，　疑         （翻前文，或小模型打草稿，见 guessing.py）
    大模型读一遍       ▶  明　月　光　。　　         一次前向，五个位置的分数同时得到
    从左到右对照          ✓　✓　✓　✗
    收下                  明　月　光　。             对的三个，加上错处它自己选的：一遍写了四个
                                                     后面的不算，缓存截短，退回去

关键在「对照」：每个位置，大模型照自己的分布 p、用那个位置自己的运气 E 选一个（见 drawing.py）；
选的恰好是猜的，就算猜对。它选什么与猜了什么无关，所以

$$y_t = \arg\min_v \frac{E_{t,v}}{p_t(v)} \quad\text{与不猜时完全相同：同样的种子，同样的文本}$$

不是「分布相同」，而是同一段文字：猜不猜、猜几个、猜得好不好，都改变不了它。所以可以放心地随机器
的快慢改变猜的个数（pace.py），结果仍然可以重现。贪心是它的特例：运气不起作用，取最大。

论文里的规则（Leviathan 等、Chen 等）换了一个做法：猜的 x 来自小模型的分布 q，以 min(1, p/q) 的
概率收下；不收，就从多出来的部分再抽一个，

$$P(y) = \underbrace{q_y \min\!\big(1, \tfrac{p_y}{q_y}\big)}_{\text{收下}}
  + \underbrace{\Big(1 - \sum_x \min(p_x, q_x)\Big)}_{\text{没收}}
    \frac{\max(p_y - q_y,\, 0)}{\sum_x \max(p_x - q_x,\, 0)} = p_y$$

收下的概率是 Σ min(p, q) = 1 − d，谁也不能更高；代价是文本随猜法而变，只有分布不变。这里取前一种：
可重现更要紧，而两边用同样的运气，猜中的机会也不低于 (1 − d)/(1 + d)。翻前文时 q 只有一个词元，
两种规则猜中的机会一样。演示里把两种都算给你看。

例：小模型猜「明月光，疑」，大模型选的是「明月光。」，于是

    猜的      明 ✓   月 ✓   光 ✓   ，✗   疑        n_right = 3
    写下      明     月     光     。              3 + 1 个；「疑」接在错的后面，不看

合得来的：缓存（猜错的截掉）、停止串（收一个查一个）、流式（一步多交几个字）、惩罚（每个位置按
「前面都猜对」记账）、规则（每个位置各有名单）、对数概率（照旧是大模型的）、滑动窗口。
合不来的：束搜索（它要的是许多条路）；没有缓存时也不猜：每步反正从头读。

一批有好几行时不猜：搬一遍权重，已经由几行分摊了。等到只剩一行，才开始猜。

常见的错法：
    收下之后忘了退缓存        错的那几列还在，后面读到的就是没写过的字
    全猜对时少写一个          最后一个位置的分数也是现成的，白得一个
    小模型用贪心、大模型抽样  照 min(1, p/q) 收的话，q 必须真的是草稿的分布
    不收时从 p 里再抽         被拒绝的那一个又有机会，分布就偏了：要从多出来的部分抽

论文：Leviathan 等 2023 (arXiv:2211.17192)；Chen 等 2023 (arXiv:2302.01318)；
     Daliri 等 2024 (arXiv:2408.07978) 两边共用运气，文本与猜法无关，以及上面的下界。

改哪里：怎样猜 → guessing.py；猜几个、何时不猜 → pace.py；一步里怎样批改 → session.py。
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foundation.demonstration import run_demo
from inference.guessing import DraftModel, Guesser, PromptLookup
from inference.pace import MOST, Pace

if TYPE_CHECKING:
    from tokenization.tokenizer import Tokenizer

__all__ = ["Speculation", "accept_or_again", "n_right", "same_choice"]


def n_right(guessed: list[int], chosen: list[int]) -> int:
    """从左数猜对了几个；头一个错的之后都不算：它们接在错的后面，分数也就不作数。

    >>> n_right([5, 6, 7, 8], [5, 6, 9, 8, 1])
    2
    """
    pairs = zip(guessed, chosen, strict=False)
    return next((i for i, (mine, its) in enumerate(pairs) if mine != its), len(guessed))


def accept_or_again(p: Tensor, q: Tensor, guess: int, u: float, again: float) -> tuple[int, bool]:
    """论文的规则：收下猜的，或者从多出来的部分另抽；返回（词元，收下没有）。

    形状：p、q (V,) 概率，guess 是照 q 抽的；u、again 是两个互不相干的均匀随机数
    """
    # p ≥ q 的地方照单全收：那里猜的只嫌少，不嫌多。
    # 写成乘法而不是 p/q：q 是 0 的猜不到，也就不必防着除以零
    if u * float(q[guess]) < float(p[guess]):
        return guess, True
    extra = (p - q).clamp(min=0).cumsum(dim=0)  # 少猜了的，都在这里
    return int((extra > again * extra[-1]).int().argmax()), False


def same_choice(p: Tensor, q: Tensor) -> float:
    """两边用同样的运气、各按自己的分布选，选中同一个的概率。

    公式：Σ_i 1 / Σ_j max(p_j/p_i, q_j/q_i)：i 在两场赛跑里都第一，就是别人的 E_j 都大于
    E_i·max(p_j/p_i, q_j/q_i)
    """
    # 有一边是 0 的，不可能两场都赢
    i = ((p > 0) & (q > 0)).nonzero()[:, 0]
    slower = torch.maximum(p / p[i, None], q / q[i, None])  # (I, V)
    return float((1 / slower.sum(dim=-1)).sum())


class Speculation:
    """怎样猜，以及猜得怎样；可以用许多次，越用越知道这台机器上值不值得。

    用法：generate(提示, 参数, speculation=Speculation(PromptLookup()))
    most：一次至多猜几个；adaptive=False 总是猜满（测量用），不保证不变慢
    """

    def __init__(
        self, source: PromptLookup | DraftModel, most: int = MOST, *, adaptive: bool = True
    ) -> None:
        # 三样：怎样猜、猜几个、要不要自己收手
        self.source, self.pace, self.adaptive = source, Pace(most), adaptive
        # 下面四个数只管报告，不影响写什么；可以跨许多次 generate 累计。
        # 写了几个、大模型跑了几遍、猜了几个、对了几个；只算猜得了的那些步（一行、有缓存）
        self.written = self.runs = self.guessed = self.right = 0

    def check(self, tokenizer: Tokenizer) -> None:
        """草稿与正文的编号对得上吗？错误：对不上 → ValueError。"""
        self.source.check(tokenizer)

    def begin(self) -> Guesser:
        """为一份新的文本准备一个猜法。"""
        return self.source.begin()

    def size(self, most: int) -> int:
        """这一步猜几个；most 是放得下的。"""
        return self.pace.size(most) if self.adaptive else min(most, self.pace.most)

    def after(self, guessed: int, right: int, written: int, seconds: float) -> None:
        """记下一步：猜了几个，对了几个，写了几个，用了几秒。"""
        self.runs, self.written = self.runs + 1, self.written + written
        self.guessed, self.right = self.guessed + guessed, self.right + right
        self.pace.after(guessed, right, seconds)

    @property
    def acceptance(self) -> float:
        """猜的里面对了几成；一个也没猜就是 0。"""
        return self.right / self.guessed if self.guessed else 0.0

    @property
    def speed_up(self) -> float | None:
        """比一个一个地写快几倍，照量到的「不猜的一步」估计；没量到就是 None。"""
        plain = self.pace.plain_seconds
        return None if plain is None or not self.runs else self.written * plain / self.pace.seconds

    def report(self) -> str:
        """One line for people: acceptance, tokens per run of the model, speed-up."""
        if not self.guessed:
            return "speculation: nothing was guessed"
        # 对了几成、每遍写几个：前者说猜得好不好，后者说省了多少遍
        words = (
            f"speculation: {self.right} of {self.guessed} guesses were right "
            f"({self.acceptance:.0%}), {self.written / self.runs:.2f} tokens a run of the model"
        )
        # 没量到「不猜的一步」（例如一直猜满）就不提快几倍
        faster = self.speed_up
        return words if faster is None else f"{words}, about {faster:.2f} x as fast as without"


def demo() -> None:
    """两种规则各猜中多少，都不改变分布；小诗人边猜边写，一字不差，跑的遍数少得多。"""
    two_rules()
    from inference.generator import SamplingParams, TextGenerator
    from inference.poet import learn_poems

    model, tokenizer, _ = learn_poems()
    writer = TextGenerator(model, tokenizer)
    draft, _, _ = learn_poems(n_steps=20)  # 背得不熟的：常猜对，也常猜错
    # 0 号是「文章结束」，禁用它，好一直写下去
    params = SamplingParams(temperature=0.8, seed=1, max_new_tokens=90, logit_bias={0: -torch.inf})
    plain = writer.generate(["床前"], params)[0]
    print("3. 小诗人写 90 个字，温度 0.8；每次猜满 4 个：")
    sources: list[tuple[str, PromptLookup | DraftModel]] = [
        ("翻前文　　　　", PromptLookup()),
        ("请生手打草稿　", DraftModel(draft, tokenizer)),
        ("请自己打草稿　", DraftModel(model, tokenizer)),
    ]
    for name, source in sources:
        # adaptive=False：不量时间，总是猜，好看清猜中几个
        found = Speculation(source, 4, adaptive=False)
        (text,) = writer.generate(["床前"], params, speculation=found)
        print(
            f"   {name} 猜 {found.guessed:3} 个，对 {found.acceptance:4.0%}，"
            f"大模型跑 {found.runs:2} 遍写 {found.written} 个"
        )
        assert text == plain  # 同样的种子，同样的文本
        assert found.runs < found.written
    # 自己给自己打草稿：分布相同，运气相同，一个也不会错；每遍 5 个
    assert found.acceptance == 1.0
    print(f"   三种写出的都与不猜时相同：床前{plain.text[:18]}…".replace("\n", "⏎"))


def two_rules() -> None:
    """一个词元上的两种规则：猜中的机会，与写出的分布。"""
    p = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.float64)
    q = torch.tensor([0.3, 0.4, 0.1, 0.2], dtype=torch.float64)
    best, same = float(torch.minimum(p, q).sum()), same_choice(p, q)
    print(f"1. p = {p.tolist()}，q = {q.tolist()}；猜中的机会：")
    print(f"   照 min(1, p/q) 收 {best:.3f}，没有更高的；同样的运气 {same:.3f}")
    assert best / (2 - best) <= same <= best
    # 收下的与另抽的加起来，恰好是 p：不用抽签，直接算
    extra = (p - q).clamp(min=0)
    total = torch.minimum(p, q) + (1 - best) * extra / extra.sum()
    print(f"   收下的 + 另抽的 = {[round(x, 6) for x in total.tolist()]}")
    assert torch.allclose(total, p)

    # 真的抽：照 q 猜，照规则收；被拒绝后若仍从 p 里抽，分布就偏了
    n = 20_000
    u, again, drawn = torch.rand(3, n, dtype=torch.float64).unbind()
    guesses = torch.searchsorted(q.cumsum(dim=0), drawn, right=True).clamp(max=3).tolist()
    triples = list(zip(guesses, u.tolist(), again.tolist(), strict=True))
    found = [accept_or_again(p, q, *triple) for triple in triples]
    counts = torch.bincount(torch.tensor([token for token, _ in found]), minlength=4)
    chi_square = float(((counts - n * p) ** 2 / (n * p)).sum())
    rate = sum(kept for _, kept in found) / n
    print(f"2. 抽 {n:,} 次：收下 {rate:.3f}，χ² = {chi_square:.1f}；千次里有一次超过 16.3")
    assert chi_square < 16.3
    assert abs(rate - best) < 0.02
    p_again = torch.searchsorted(p.cumsum(dim=0), again, right=True).clamp(max=3).tolist()
    pairs = zip(found, p_again, strict=True)
    wrong = torch.tensor([token if kept else other for (token, kept), other in pairs])
    counts = torch.bincount(wrong, minlength=4)
    chi_square = float(((counts - n * p) ** 2 / (n * p)).sum())
    print(f"   不收时改从 p 里抽（常见的错法）：χ² = {chi_square:.0f}")
    assert chi_square > 100


if __name__ == "__main__":
    run_demo(demo)
