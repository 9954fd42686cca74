r"""让模型自己写出答案，怎样判对错？——规整之后逐字相同（exact match）。

$$\mathrm{EM} = \frac{1}{n}\sum_i \mathbb 1\bigl[\,\exists\, a \in A_i:\
  \mathrm{norm}(\hat y_i) = \mathrm{norm}(a)\,\bigr]$$

选择题把答案摆在模型面前，这里要它自己写，难得多：不知道写几个字、写到哪里停。所以题目里通常先摆
几个例子（few-shot），让它看出格式：

    prompt   "2 + 3 = 5⏎4 + 4 = 8⏎1 + 6 ="  ──贪心地写──▶  " 7⏎5 + 2 = 7⏎…"
    stop     "⏎"                                         取到第一个换行：" 7"
    norm     去掉首尾空白与标点、全角变半角、不分大小写         "7"
    answers  ["7", "seven"]                              对上一个就算对

规整只抹去与内容无关的：`Ｐａｒｉｓ。` 与 ` paris` 是同一个答案，`7.0` 与 `7` 不是。
规整得太多，错的会变成对的；所以不规整（只去首尾空白）的分数也报，两个差得多，就看看模型写了什么。

常见的错法：
    在句子里找答案     答「不是巴黎」也含有「巴黎」；要找，就先规定写成什么格式
    采样来写           每次不同；考试用贪心（temperature = 0），同样的模型得同样的分
    提示太长           从左边砍，最近的例子与题目留着；砍右边就把题目砍掉了

论文：SQuAD (Rajpurkar et al. 2016), arXiv:1606.05250。
改哪里：规整的规则 → `normalize`；怎样写 → `write_answers` 里的 SamplingParams。
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from evaluation.standard_error import Estimate, estimate
from foundation.checks import check_int
from foundation.demonstration import run_demo
from gpt_model.model import GPT
from inference.generator import TextGenerator
from inference.sampling import SamplingParams
from tokenization.tokenizer import Tokenizer

__all__ = [
    "AnswerWriter",
    "ShortAnswer",
    "measure_exact_match",
    "normalize",
    "prompt_ids",
    "write_answers",
]


@dataclass(frozen=True)
class ShortAnswer:
    """一道要写出答案的题；answers 里对上任何一个就算对，写到 stop 里任何一个就停。

    错误：prompt 是空的、没有答案、有空的停止串 → ValueError
    """

    prompt: str
    answers: tuple[str, ...]
    stop: tuple[str, ...] = ("\n",)

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("the prompt is empty: the model needs something to continue")
        if not self.answers:
            raise ValueError("a question needs at least 1 accepted answer, got 0")
        if "" in self.stop:
            raise ValueError("a stop text is empty: it would end every answer at once")


# 几道题 → 写出来的几段文字；判分的一方不知道是谁写的
AnswerWriter: TypeAlias = Callable[[Sequence[ShortAnswer]], list[str]]


def normalize(text: str) -> str:
    """与内容无关的都抹去：全角、大小写、空白、首尾的标点。

    >>> normalize("　Ｐａｒｉｓ。"), normalize("7.0")
    ('paris', '7.0')
    """
    # NFKC：全角 → 半角，连字拆开；casefold 比 lower 彻底：ß → ss
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())

    def decorates(character: str) -> bool:
        # P 是标点。负号不算：「-7」与「7」不是同一个答案
        return character != "-" and unicodedata.category(character).startswith("P")

    start, end = 0, len(plain)
    while start < end and decorates(plain[start]):
        start += 1
    while end > start and decorates(plain[end - 1]):
        end -= 1
    return plain[start:end].strip()


def measure_exact_match(
    questions: Sequence[ShortAnswer], write: AnswerWriter
) -> dict[str, Estimate]:
    """规整之后、规整之前各对了几成。

    错误：一道题也没有 → ValueError
    """
    written = write(questions)
    pairs = list(zip(questions, written, strict=True))
    return {
        "exact_match": estimate(
            normalize(text) in {normalize(answer) for answer in question.answers}
            for question, text in pairs
        ),
        "exact_match_raw": estimate(
            text.strip() in {answer.strip() for answer in question.answers}
            for question, text in pairs
        ),
    }


def write_answers(
    model: GPT, tokenizer: Tokenizer, *, max_new_tokens: int = 32, batch_size: int = 16
) -> AnswerWriter:
    """用一个模型来写：贪心，成批；返回交给 measure_exact_match 的函数。"""
    check_int("batch_size", batch_size, 1)
    writer = TextGenerator(model, tokenizer)

    def write(questions: Sequence[ShortAnswer]) -> list[str]:
        texts: dict[int, str] = {}
        # 一批共用一套参数，所以先按停止串分开；每类里再按批的大小切
        kinds: dict[tuple[str, ...], list[int]] = {}
        for index, question in enumerate(questions):
            kinds.setdefault(question.stop, []).append(index)
        for stop, indices in kinds.items():
            params = SamplingParams(temperature=0.0, max_new_tokens=max_new_tokens, stop=stop)
            for first in range(0, len(indices), batch_size):
                batch = indices[first : first + batch_size]
                prompts = [
                    prompt_ids(model, tokenizer, questions[index].prompt, max_new_tokens)
                    for index in batch
                ]
                for index, found in zip(batch, writer.generate(prompts, params), strict=True):
                    texts[index] = found.text
        return [texts[index] for index in range(len(questions))]

    return write


def prompt_ids(model: GPT, tokenizer: Tokenizer, prompt: str, max_new_tokens: int) -> list[int]:
    """题目的编号；太长就从左边砍，给要写的留出地方。

    错误：要写的比上下文还长 → ValueError，给出两个数
    """
    limit = model.config.max_seq_len
    check_int("max_new_tokens", max_new_tokens, 1, limit - 1)
    return tokenizer.encode(prompt)[-(limit - max_new_tokens) :]


def demo() -> None:
    """规整前后；总写对的、总写错的、写在句子里的各得几分；让背熟诗的模型填空。"""
    from inference.poet import learn_poems

    print("① 规整：左边写成右边")
    for text in ("　Ｐａｒｉｓ。", "  The  Answer!", "“-7”", "7.0", "……"):
        print(f"   {text!r:20} → {normalize(text)!r}")
    assert normalize("“-7”") == "-7" != normalize("7")
    assert normalize("……") == ""

    questions = [ShortAnswer(f"{a} + {a} =", (str(2 * a),)) for a in range(1, 9)]
    print("② 同一份考卷，三个「考生」")
    for name, write in (
        ("写对的      ", lambda qs: [f" {q.answers[0]}." for q in qs]),
        ("多写了话的  ", lambda qs: [f"it is {q.answers[0]}" for q in qs]),
        ("一律写 8 的 ", lambda qs: [" 8" for _ in qs]),
    ):
        found = measure_exact_match(questions, write)
        print(f"   {name} {found['exact_match']}　（不规整 {found['exact_match_raw']}）")
    # 八道题里恰有一道的答案是 8
    assert found["exact_match"].value == 1 / 8

    print("③ 背熟了三首诗的小模型，写到句号为止")
    model, tokenizer, _ = learn_poems()
    poems = [
        ShortAnswer("床前明月光，", ("疑是地上霜",), ("。",)),
        ShortAnswer("春眠不觉", ("晓，处处闻啼鸟",), ("。",)),
        ShortAnswer("白日依山尽，", ("长河落日圆",), ("。",)),  # 标准答案给错了
    ]
    write = write_answers(model, tokenizer, max_new_tokens=12)
    for question, text in zip(poems, write(poems), strict=True):
        print(f"   {question.prompt} → {text}　（答案 {question.answers[0]}）")
    score = measure_exact_match(poems, write)["exact_match"]
    print(f"   得分 {score}")
    assert abs(score.value - 2 / 3) < 1e-9


if __name__ == "__main__":
    run_demo(demo)
