r"""怎样考一个不会答题的模型？——不让它写答案，看它觉得哪个选项最可能。

小模型看不懂「请选 A、B、C、D」，但每个选项接在题目后面有多可能，它总算得出来。
最可能的就是它的回答：

$$\hat a = \arg\max_i\ \frac{\ln p(c_i \mid x)}{n_i},\qquad
  n_i = 1\ \text{(raw)},\ \ \text{字节数},\ \ \text{词元数}$$

为什么要除：ln p 是几个负数相加，选项越长加得越多，长的总是吃亏。三种都报，因为没有一种总是对的：

    题目  中国的首都是        ln p     字节   ÷ 字节
    选项  北京               −2.1      6     −0.35
          上海               −4.0      6     −0.67
          京                 −1.9      3     −0.63       raw 选它：只因为它短
          哈尔滨             −6.0      9     −0.67

    raw        选项一样长时用它，最干净
    per byte   选项长短不一时用它；与分词器无关，两个模型可以比
    per token  也常见，但换个分词器分数就变

瞎猜能得多少（chance）：每题 1 / 选项数，再平均。几个选项打平时，猜中其中之一的机会也按份算，
所以一个什么都不知道、给所有选项同样分数的模型，恰好得到瞎猜的分数，而不是「总选第一个」的分数。

题目与选项接缝处的词元：分词器可能把题目的尾巴与选项的开头合成一个词元。所以先把整句编码，
各选项与题目共有的开头算前文，其余算续写——续写里可能带着题目的最后几个字，每个选项都带，仍然公平：

    题目 "x = f("   选项 "a)"  "b)"          整句  x ␣= ␣f (a )      「(a」是一个词元
    共有的开头 → 前文：x ␣= ␣f              续写：「(a )」与「(b )」

论文：GPT-3 (Brown et al. 2020), arXiv:2005.14165, §2.4；HellaSwag (Zellers et al. 2019)。
改哪里：换一种除法 → `NORMS` 里添一行；题目从哪里来 → `task_files.py`、`small_suite.py`。
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from evaluation.likelihood import Likelihood, TokenPair, score_tokens
from evaluation.standard_error import Estimate, estimate
from foundation.checks import check_int
from foundation.demonstration import run_demo
from gpt_model.config import preset
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer

__all__ = [
    "NORMS",
    "ChoiceScores",
    "Question",
    "chance_level",
    "choice_tokens",
    "measure_choices",
    "score_choices",
]


@dataclass(frozen=True)
class Question:
    """一道选择题：选项直接接在 prompt 后面，要空格就自己写上。

    错误：选项少于 2 个、有空的、有重复的，answer 不是选项的编号 → ValueError
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        if len(self.choices) < 2:
            raise ValueError(f"a question needs at least 2 choices, got {len(self.choices)}")
        if "" in self.choices:
            raise ValueError(f"choice {self.choices.index('')} is empty")
        if len(set(self.choices)) < len(self.choices):
            raise ValueError(f"the choices must differ, got {list(self.choices)!r}")
        check_int("answer", self.answer, 0, len(self.choices) - 1)


# 每道题每个选项的似然；量的一方不知道它从哪里来，测试可以给一个总答对的
ChoiceScores: TypeAlias = Callable[[Sequence[Question]], list[list[Likelihood]]]

# 名字 → 除以什么。第一个是主要的那个
NORMS: dict[str, Callable[[str, Likelihood], float]] = {
    "accuracy": lambda choice, score: 1.0,
    "accuracy_per_byte": lambda choice, score: len(choice.encode("utf-8")),
    "accuracy_per_token": lambda choice, score: max(1, score.n_tokens),
}


def measure_choices(questions: Sequence[Question], score: ChoiceScores) -> dict[str, Estimate]:
    """三种除法各得多少分；每个都带标准误。

    错误：一道题也没有 → ValueError
    """
    scores = score(questions)
    return {
        name: estimate(
            credit(
                [s.log_likelihood / norm(c, s) for c, s in zip(q.choices, row, strict=True)],
                q.answer,
            )
            for q, row in zip(questions, scores, strict=True)
        )
        for name, norm in NORMS.items()
    }


def credit(values: Sequence[float], answer: int) -> float:
    """一道题得几分：答案独占第一得 1；与别的并列第一，按份算；否则 0。

    为什么不「并列就选第一个」：答案若常在前面，瞎猜的模型就白得了分
    """
    best = max(values)
    return 1.0 / values.count(best) if values[answer] == best else 0.0


def chance_level(questions: Sequence[Question]) -> float:
    """瞎猜的分数：每题 1 / 选项数 的平均。"""
    return estimate(1 / len(question.choices) for question in questions).value


def score_choices(model: GPT, tokenizer: Tokenizer, *, batch_size: int = 16) -> ChoiceScores:
    """用一个模型来答题：返回交给 measure_choices 的函数。"""

    def score(questions: Sequence[Question]) -> list[list[Likelihood]]:
        pairs: list[TokenPair] = []
        for question in questions:
            pairs += choice_tokens(tokenizer, question)
        # 所有题的所有选项一起排队：批能装满，不会一题一批
        waiting = iter(score_tokens(model, pairs, batch_size=batch_size))
        return [[next(waiting) for _ in question.choices] for question in questions]

    return score


def choice_tokens(tokenizer: Tokenizer, question: Question) -> list[TokenPair]:
    """一道题 → 每个选项的 (前文, 续写)；各选项的前文相同。

    前文是空的（题目是空的，或第一个词元就不同）时，用「文章结束」作前文：文章都从它后面开始
    错误：前文是空的，分词器又没有「文章结束」→ ValueError
    """
    whole = tokenizer.encode_batch([question.prompt + choice for choice in question.choices])
    shared = common_length([*whole, tokenizer.encode(question.prompt)])
    # 整句总比题目长，所以与题目共有的之后，每个选项至少还有一个词元来打分
    context = whole[0][:shared]
    if not context:
        if tokenizer.end_id is None:
            raise ValueError(
                f"the choices {list(question.choices)!r} have no text before them, and this "
                "tokenizer has no end token to begin from; give the question a prompt"
            )
        context = [tokenizer.end_id]
    return [(context, ids[shared:]) for ids in whole]


def common_length(rows: Sequence[Sequence[int]]) -> int:
    """几串编号开头有几个相同。"""
    length = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length


def demo() -> None:
    """接缝处的词元；一个只会背一句的模型；什么都不知道的模型恰好得瞎猜的分。"""
    text = "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"
    tokenizer = Tokenizer.characters([text + "北京上海"])
    question = Question("白日依山", ("尽", "流", "楼", "目"), 0)
    print("① 一道题的四行：前文相同，续写不同")
    for choice, (context, continuation) in zip(
        question.choices, choice_tokens(tokenizer, question), strict=True
    ):
        print(f"   {choice}：前文 {context}，续写 {list(continuation)}")

    # 出题：诗里每个字，让它从四个字里选。选项轮着当答案，不看题目的人得不到好处
    letters = "尽流目楼"
    questions = [
        Question(text[: text.index(letter)], tuple(letters), place)
        for place, letter in enumerate(letters)
    ] * 25
    print(f"② {len(questions)} 道题，瞎猜得 {chance_level(questions):.2f}")
    config = preset("gpt-micro", vocab_size=tokenizer.vocab_size, max_seq_len=32)
    model = GPT(config.replace(n_layers=1, dim=32, n_heads=2))
    torch.nn.init.zeros_(model.lm_head.weight)
    blank = measure_choices(questions, score_choices(model, tokenizer))
    print(f"   什么都不知道（每个词元同样可能）：{blank['accuracy']}")
    assert blank["accuracy"].value == chance_level(questions)

    print("③ 教它背这首诗，再考")
    ids = torch.tensor([tokenizer.encode(text)])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        loss = model(ids[:, :-1], ids[:, 1:]).loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, found in measure_choices(questions, score_choices(model, tokenizer)).items():
        print(f"   {name:20}{found}")
        assert found.value == 1.0

    print("④ 长短不一的选项：raw 偏爱短的")
    short = Question("白日", ("依", "依山尽，黄河入海流。"), 1)
    (scores,) = score_choices(model, tokenizer)([short])
    values = {c: round(s.log_likelihood, 3) for c, s in zip(short.choices, scores, strict=True)}
    raw = measure_choices([short], lambda _: [scores])
    print(f"   {values}：raw 得 {raw['accuracy'].value:.0f} 分")
    assert raw["accuracy"].value == 0  # 续得对，只因为长就输了


if __name__ == "__main__":
    run_demo(demo)
