r"""怎样让模型少说车轱辘话？——按「说过什么」改分数：重复、出现、次数三种惩罚，外加人为偏置。

语言模型有正反馈：一个词出现过，它再出现的概率往往更高，贪心时尤其容易陷进循环。
办法是抽之前先改分数 z（logits）。v 是词元，c_v 是它在**生成的**文本里出现的次数：

$$\begin{aligned}
\text{偏置}\quad & z_v \leftarrow z_v + b_v \\
\text{重复惩罚}\quad & z_v \leftarrow
    \begin{cases} z_v/\theta & z_v > 0 \\ z_v\cdot\theta & z_v \le 0 \end{cases}
    \quad v \in \text{提示} \cup \text{生成} \\
\text{出现与次数}\quad & z_v \leftarrow z_v - \alpha_p\,[c_v > 0] - \alpha_f\,c_v
\end{aligned}$$

    提示 "白 日"     生成 "白 白 依"
                      白    日    依    山
    重复惩罚看          √     √     √     ·      提示也算
    出现惩罚看          √     ·     √     ·      只看生成的，有没有
    次数惩罚看          2     0     1     0      只看生成的，有几次

常用的值：重复惩罚 1.1 到 1.3；后两种 0.1 到 1。罚得太重，连「的」「，」都不敢再用，
文本会越写越怪；写代码时尤其如此，变量名本来就该重复。

三点值得记住：
  · 重复惩罚（θ > 1）必须按正负分开。一律除以 θ，负分反而升高，等于奖励重复。
  · 它依赖分数的零点：softmax 不在乎整体加减一个常数，它却在乎。所以它必须在别的
    改动之前，直接作用在模型给的分数上。
  · 出现惩罚与次数惩罚用减法，没有零点的问题；前者催模型换话题，后者治口头禅。

论文：Keskar 等 2019 CTRL (arXiv:1909.05858) 4.1 节提出重复惩罚；
     后两种出自 OpenAI 接口文档的 presence_penalty 与 frequency_penalty。

改哪里：加一种看历史的规则（例如禁止重复三元组）——照这里写一个小类，实现 __call__，
       再到 sampling.py 的 SamplingParams.processors 里给它排个次序。
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Protocol

import torch
from torch import Tensor

from foundation.checks import check_float
from foundation.demonstration import run_demo

__all__ = ["FrequencyPenalty", "History", "LogitBias", "LogitsProcessor", "RepetitionPenalty"]


class History:
    """每一行说过什么，按词元记账：查一个词元说过没有、说过几次，都不必翻看全文。

    形状：in_prompt (B, V) 布尔，counts (B, V)；每步只改 B 个格子
    提示与生成的分开记：重复惩罚两样都看，另两种只看后者；提示里的次数没有谁用，所以只记有无
    滑动窗口忘掉的前文，这里仍然记得：惩罚针对整篇文本，与模型此刻看得见多少无关
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        generated: Sequence[Sequence[int]] | None = None,
        *,
        vocab_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (len(prompts), vocab_size)
        self.in_prompt = torch.zeros(shape, dtype=torch.bool, device=device)  # (B, V)
        self.counts = torch.zeros(shape, device=device)  # (B, V)
        for row, ids in enumerate(prompts):
            self.in_prompt[row, list(ids)] = True
        # 同一个词元可能出现多次：bincount 会累加，直接按下标赋值则只算一次
        for row, ids in enumerate(generated or ()):
            self.counts[row] = torch.bincount(torch.tensor(list(ids)).long(), minlength=vocab_size)

    def record(self, tokens: Tensor) -> None:
        """每行刚生成了一个词元：tokens (B,)。"""
        # 每行恰好一个，下标不会重复，可以放心地就地相加；
        # 若一行里有两个相同的下标，就地相加只会加一次
        self.counts[torch.arange(len(tokens), device=tokens.device), tokens] += 1

    def ahead(self, tokens: Sequence[int]) -> History:
        """往前看：只有一行时，一个一个地假定写了 tokens，得到 k + 1 行账本；原来的不动。

        第 i 行是「前 i 个都写了」：投机解码的每个位置，惩罚看到的正是写到那里时的账
        """
        found = copy(self)
        steps = torch.tensor(tokens, device=self.counts.device)[:, None]  # (k, 1)
        added = self.counts.new_zeros(len(tokens) + 1, self.counts.shape[1])  # (k + 1, V)
        added[1:].scatter_(1, steps, 1.0)
        found.counts = self.counts + added.cumsum(dim=0)
        found.in_prompt = self.in_prompt.expand_as(found.counts)
        return found

    def keep(self, rows: Tensor) -> None:
        """第 i 行变成原来的第 rows[i] 行：有的行写完了，束搜索里有的行要复制。"""
        self.in_prompt, self.counts = self.in_prompt[rows], self.counts[rows]


class LogitsProcessor(Protocol):
    """改分数的一步：收 (B, V) 的 float32 分数，还一份同样形状的；不就地修改。

    −∞ 表示「不许选」，以后的步骤必须保持它是 −∞；NaN 也要原样留着，好在最后报错
    """

    def __call__(self, logits: Tensor, history: History | None = None) -> Tensor:
        """logits (B, V) → (B, V)；不看历史的策略不理会 history。"""


def require(history: History | None, name: str) -> History:
    """看历史的惩罚没有历史可看，多半是调用者忘了传，而不是「还没说过话」。"""
    if history is None:
        raise ValueError(f"{name} needs the history of each row; pass History(prompts, …)")
    return history


class LogitBias:
    """人为加分或减分；−∞ 是禁用。

    公式：z_v ← z_v + b_v
    错误：编号不在词表里、b 是 NaN 或 +∞ → ValueError，写明编号与上限
    """

    def __init__(self, bias: Mapping[int, float]) -> None:
        # 每步都用同样的两个张量，开头造好
        self.ids = torch.tensor(list(bias), dtype=torch.long)  # (n,)
        self.values = torch.tensor(list(bias.values()), dtype=torch.float32)  # (n,)
        self.lowest, self.highest = min(bias, default=0), max(bias, default=0)

    def __call__(self, logits: Tensor, history: History | None = None) -> Tensor:
        """分数 (B, V) → (B, V)，每行加同样的偏置。"""
        vocab_size = logits.shape[-1]
        if self.lowest < 0 or self.highest >= vocab_size:
            outside = self.lowest if self.lowest < 0 else self.highest
            raise ValueError(
                f"logit_bias names token id {outside}, but ids must be >= 0 and < {vocab_size}"
            )
        values = self.values.to(logits).expand(len(logits), -1)  # (B, n)
        return logits.index_add(-1, self.ids.to(logits.device), values)


class RepetitionPenalty:
    """说过的（提示里的也算）降一档；θ = 1 不变，θ < 1 反过来鼓励重复。

    公式：z > 0 时 z/θ，否则 z·θ；两边都是往下降
    形状：θ 是一个数，或每行一个 (B, 1)（由 SamplingParams 查过）
    错误：θ ≤ 0 或不是有限数 → ValueError
    """

    def __init__(self, penalty: float | Tensor) -> None:
        if not isinstance(penalty, Tensor):
            penalty = check_float("repetition_penalty", penalty, exclusive_minimum=0.0)
        self.penalty = penalty

    def __call__(self, logits: Tensor, history: History | None = None) -> Tensor:
        """只改说过的词元；说过一次与说过十次一样。

        恰好为 0 的分数乘除都不变：这是公式的一个死角，实际的分数几乎不会恰好是 0
        """
        history = require(history, "repetition_penalty")
        # 两种写法都算出来再挑：比逐个判断快，(B, V) 的运算对 GPU 不算什么
        seen = history.in_prompt | (history.counts > 0)  # (B, V)
        lowered = torch.where(logits > 0, logits / self.penalty, logits * self.penalty)
        return torch.where(seen, lowered, logits)


class FrequencyPenalty:
    """出现惩罚与次数惩罚：只看生成的部分，提示里的不算。

    公式：z_v ← z_v − α_p·[c_v > 0] − α_f·c_v；α 可以为负，那就是鼓励
    形状：α 是一个数，或每行一个 (B, 1)（由 SamplingParams 查过）
    错误：α 不是有限数 → ValueError
    """

    def __init__(self, presence: float | Tensor = 0.0, frequency: float | Tensor = 0.0) -> None:
        if not isinstance(presence, Tensor):
            presence = check_float("presence_penalty", presence)
        if not isinstance(frequency, Tensor):
            frequency = check_float("frequency_penalty", frequency)
        self.presence, self.frequency = presence, frequency

    def __call__(self, logits: Tensor, history: History | None = None) -> Tensor:
        """每出现一次都要付一份 α_f，第一次另付 α_p。"""
        counts = require(history, "presence_penalty and frequency_penalty").counts  # (B, V)
        return logits - self.presence * (counts > 0) - self.frequency * counts


def demo() -> None:
    """五个词、一段历史：三种惩罚各改了谁；一个会自激的小模型怎样被救出循环。"""
    words = ["白", "日", "依", "山", "尽"]
    logits = torch.tensor([[2.0, 1.5, -0.5, 1.0, -1.0]])
    history = History([[0, 1]], [[0, 0, 2]], vocab_size=5)
    print("1. 提示「白日」，已生成「白白依」；重复惩罚 1.2，出现与次数惩罚 0.5：")
    print(f"   {'':10}" + "".join(f"{word:>6}" for word in words))
    cases: list[tuple[str, LogitsProcessor | None]] = [
        ("原来的分数", None),
        ("重复惩罚　", RepetitionPenalty(1.2)),
        ("出现惩罚　", FrequencyPenalty(presence=0.5)),
        ("次数惩罚　", FrequencyPenalty(frequency=0.5)),
        ("禁用「山」", LogitBias({3: -torch.inf})),
    ]
    table = []
    for name, penalty in cases:
        values = logits if penalty is None else penalty(logits, history)
        table.append(values[0].tolist())
        print(f"   {name}" + "".join(f"{value:7.2f}" for value in table[-1]))
    _, repetition, presence, frequency, _ = table
    # 「依」的分数是负的：乘以 1.2 才会更低；若也除以 1.2，反而升高
    assert repetition[2] < -0.5 < -0.5 / 1.2
    # 「日」只在提示里，后两种惩罚不理它
    assert presence[1] == frequency[1] == 1.5
    # 「白」说了两次，「依」一次：次数惩罚罚得不一样重
    assert frequency[0] == 2.0 - 2 * 0.5
    assert frequency[2] == -0.5 - 1 * 0.5

    print("\n2. 一个每说一次就更想说的小模型，贪心地写 20 个词：")
    remedies: list[tuple[str, LogitsProcessor | None]] = [
        ("不惩罚　　　　", None),
        ("重复惩罚 1.2　", RepetitionPenalty(1.2)),
        ("次数惩罚 0.2　", FrequencyPenalty(frequency=0.2)),
    ]
    for name, penalty in remedies:
        said = loop(penalty)
        print(f"   {name}" + "".join(words[token] for token in said))
        # 最后十个词里有几种：不惩罚与重复惩罚都陷在一个词里
        assert len(set(said[10:])) == (5 if isinstance(penalty, FrequencyPenalty) else 1)
    print("   重复惩罚不看次数，只能推迟循环；次数惩罚越罚越重，才总能跳出来")


def loop(penalty: LogitsProcessor | None) -> list[int]:
    """每个词的分数 = 原来的分数 + 0.05 × 刚才说过它几次，模仿模型的正反馈。"""
    logits = torch.tensor([[1.0, 0.95, 0.9, 0.85, 0.8]])
    history, said = History([[]], vocab_size=5), []
    for _ in range(20):
        scores = logits + 0.05 * history.counts
        if penalty is not None:
            scores = penalty(scores, history)
        token = scores.argmax(dim=-1)  # (1,)
        history.record(token)
        said.append(int(token))
    return said


if __name__ == "__main__":
    run_demo(demo)
