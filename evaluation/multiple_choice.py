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

看分数时：
    比瞎猜低很多               多半是错位：答案的编号从 1 数起了，或选项的空格写在了题目末尾
    raw 与 per byte 差得多     选项长短悬殊，先看 per byte
    三种都在瞎猜附近           题太难，或模型太小；先用 small_suite.py 的题看它会不会走路
    比瞎猜高，但在误差之内     题太少，别下结论；见 standard_error.py

常见疑问：
    为什么不让它写「A」？      小模型没学过答题的格式，考的就成了格式；大模型两种都行
    选项前的空格放在哪里？     放在选项开头（" blue"）：分词器把空格与词合成一个词元
    题目里要不要摆几个例子？   能摆就摆（few-shot）；例子写在 prompt 里
    为什么不除以别的？         还有除以「没有题目时的概率」的做法，去掉常见词的便宜；可加进 NORMS
    打平怎么会发生？           没学过的、坏了的、量化太狠的模型；正常的模型几乎不会

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

    answer 是第几个选项，从 0 数起
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

    形状：n 道题，每题 mᵢ 个选项；第 i 道题的似然是长 mᵢ 的一列
    错误：一道题也没有 → ValueError
    """
    # 形状：题数 × 选项数
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

    公式：credit = 1[v_a = max v] / |{i : v_i = max v}|；对所有可能的答案加起来恰好是 1
    为什么不「并列就选第一个」：答案若常在前面，瞎猜的模型就白得了分
    """
    # 浮点数恰好相等才算打平：差一点点也是模型的主意
    best = max(values)
    return 1.0 / values.count(best) if values[answer] == best else 0.0


def chance_level(questions: Sequence[Question]) -> float:
    """瞎猜的分数：每题 1 / 选项数 的平均；选项数不同的题混在一起，就按各自的算。"""
    return estimate(1 / len(question.choices) for question in questions).value


def score_choices(model: GPT, tokenizer: Tokenizer, *, batch_size: int = 16) -> ChoiceScores:
    """用一个模型来答题：返回交给 measure_choices 的函数。

    量与答分开：测试可以换上总答对的、总答错的、不看题的，核对量得对不对
    """

    def score(questions: Sequence[Question]) -> list[list[Likelihood]]:
        # 几千道题摊平成一长列，每个选项一行
        pairs: list[TokenPair] = []
        for question in questions:
            pairs += choice_tokens(tokenizer, question)
        # 所有题的所有选项一起排队：批能装满，不会一题一批
        # 按原来的次序回来，再一题一题地分
        waiting = iter(score_tokens(model, pairs, batch_size=batch_size))
        return [[next(waiting) for _ in question.choices] for question in questions]

    return score


def choice_tokens(tokenizer: Tokenizer, question: Question) -> list[TokenPair]:
    """一道题 → 每个选项的 (前文, 续写)；各选项的前文相同。

    公式：前文 = 各整句与题目的公共开头；ln p(整句) − ln p(前文) 才是要比的
    换成各切各的，前文就不同：一个选项多背了一个词元的分数，不公平
    前文是空的（题目是空的，或第一个词元就不同）时，用「文章结束」作前文：文章都从它后面开始
    错误：前文是空的，分词器又没有「文章结束」→ ValueError
    """
    # ① 每个选项都与题目连起来编码：训练时的文本就是这样切的
    whole = tokenizer.encode_batch([question.prompt + choice for choice in question.choices])
    # ② 共有的开头；题目自己也算在内，免得几个选项碰巧同样开头，把它们也当成了前文
    shared = common_length([*whole, tokenizer.encode(question.prompt)])
    # 整句总比题目长，所以与题目共有的之后，每个选项至少还有一个词元来打分
    # 别家的分词器规定了开头（<s>）的，照加；我们自己的没有
    context = [*tokenizer.start_ids, *whole[0][:shared]]
    if not context:
        if tokenizer.end_id is None:
            raise ValueError(
                f"the choices {list(question.choices)!r} have no text before them, and this "
                "tokenizer has no end token to begin from; give the question a prompt"
            )
        # ③ 从头写起：训练时每篇都接在它后面
        context = [tokenizer.end_id]
    # 每个选项一对；前文是同一个列表，不会被改动
    return [(context, ids[shared:]) for ids in whole]


def common_length(rows: Sequence[Sequence[int]]) -> int:
    """几串编号开头有几个相同；最短的一串用完就停。"""
    length = 0
    # 一列一列地看，直到有不同的
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
    # 四个字各在诗里出现一次，没有歧义
    letters = "尽流目楼"
    questions = [
        Question(text[: text.index(letter)], tuple(letters), place)
        for place, letter in enumerate(letters)
    ] * 25
    # 一百道：四道题重复二十五遍
    print(f"② {len(questions)} 道题，瞎猜得 {chance_level(questions):.2f}")
    # 一层就够背一首诗
    config = preset("gpt-micro", vocab_size=tokenizer.vocab_size, max_seq_len=32)
    # 宽三十二，一层
    model = GPT(config.replace(n_layers=1, dim=32, n_heads=2))
    torch.nn.init.zeros_(model.lm_head.weight)
    # lm_head 全是零：每个词元一样可能，四个选项打平
    blank = measure_choices(questions, score_choices(model, tokenizer))
    print(f"   什么都不知道（每个词元同样可能）：{blank['accuracy']}")
    assert blank["accuracy"].value == chance_level(questions)

    # 现在它认得上文了
    print("③ 教它背这首诗，再考")
    # 一行就是整首诗
    ids = torch.tensor([tokenizer.encode(text)])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    # 六十遍：损失降到几乎为零
    for _ in range(60):
        loss = model(ids[:, :-1], ids[:, 1:]).loss
        assert loss is not None
        # 清掉上一遍的梯度
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, found in measure_choices(questions, score_choices(model, tokenizer)).items():
        print(f"   {name:20}{found}")
        assert found.value == 1.0

    print("④ 长短不一的选项：raw 偏爱短的")
    # 后一个才是原诗，可它长，多乘了几个小于 1 的数
    short = Question("白日", ("依", "依山尽，黄河入海流。"), 1)
    (scores,) = score_choices(model, tokenizer)([short])
    # ln p 接近 0：它背得很熟，可短的更接近
    values = {c: round(s.log_likelihood, 3) for c, s in zip(short.choices, scores, strict=True)}
    raw = measure_choices([short], lambda _: [scores])
    print(f"   {values}：raw 得 {raw['accuracy'].value:.0f} 分")
    assert raw["accuracy"].value == 0  # 续得对，只因为长就输了


if __name__ == "__main__":
    run_demo(demo)
