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

看分数时，先看几条写出来的：
    总是 0                     多半是停止串没写到，答案后面跟了一串别的；或空格、格式不对
    规整前后差得多             写对了，只是带了标点、大小写；要不要算对，由你的用途定
    时对时错，换个种子就变     不该发生：贪心没有种子；查查是不是误用了采样
    选择题会、填空不会         知道，但写不出；小模型多半如此

常见疑问：
    英文的 a、the 要去掉吗？   SQuAD 去掉；这里不去：中文没有，代码里的 a 是变量名
    数字呢，7 与 7.0？         不同：要按数值比，就在 answers 里两种都列上
    答案有几种说法？           都列在 answers 里，对上任何一个就算对
    写得很长的答案呢？         逐字相同太苛刻；那要别的量法（BLEU、让模型来判），这里没有
    为什么整批一起写？         快；与一条一条写的内容相同，见 generator.py

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

    stop 缺省是换行：答案一行写完；要写几行的，自己给
    错误：prompt 是空的、没有答案、有空的停止串 → ValueError
    """

    prompt: str
    answers: tuple[str, ...]
    stop: tuple[str, ...] = ("\n",)

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("the prompt is empty: the model needs something to continue")
        # 没有答案的题，谁也答不对
        if not self.answers:
            raise ValueError("a question needs at least 1 accepted answer, got 0")
        # 空的停止串处处都有，一个字也写不出来
        if "" in self.stop:
            raise ValueError("a stop text is empty: it would end every answer at once")


# 几道题 → 写出来的几段文字；判分的一方不知道是谁写的
AnswerWriter: TypeAlias = Callable[[Sequence[ShortAnswer]], list[str]]


def normalize(text: str) -> str:
    """与内容无关的都抹去：全角、大小写、空白、首尾的标点。

    公式：N(N(x)) = N(x)，抹过的再抹一次不变；否则同一个答案会有两种「规整之后」
    >>> normalize("　Ｐａｒｉｓ。"), normalize("7.0")
    ('paris', '7.0')
    """
    # NFKC：全角 → 半角，连字拆开；casefold 比 lower 彻底：ß → ss；换过大小写，有的又能合并
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    # split() 认得一切 Unicode 空白，全角空格也在内
    plain = " ".join(plain.split())

    def decorates(character: str) -> bool:
        # P 是标点，夹在标点之间的空白一起收：「“ 是 ”」、「是: [」
        # 负号不算：「-7」与「7」不是同一个答案
        return character == " " or (
            character != "-" and unicodedata.category(character).startswith("P")
        )

    # 从两头往里收，中间的标点（3.14、don't）不动
    start, end = 0, len(plain)
    # 左边
    while start < end and decorates(plain[start]):
        start += 1
    # 右边
    while end > start and decorates(plain[end - 1]):
        end -= 1
    return plain[start:end]


def measure_exact_match(
    questions: Sequence[ShortAnswer], write: AnswerWriter
) -> dict[str, Estimate]:
    """规整之后、规整之前各对了几成。

    公式：EM = 对上的题数 / 题数；raw 只去掉首尾的空白
    错误：一道题也没有 → ValueError
    """

    def key(text: str) -> str:
        # 只有标点的，规整之后什么也不剩：「)」与「]」、与空的，就都「对上」了，所以照原样比
        return normalize(text) or text.strip()

    # 一次交上全部的题：怎样分批由写的一方定
    written = write(questions)
    # 一题一段，次序相同
    pairs = list(zip(questions, written, strict=True))
    return {
        "exact_match": estimate(
            key(text) in {key(answer) for answer in question.answers} for question, text in pairs
        ),
        "exact_match_raw": estimate(
            text.strip() in {answer.strip() for answer in question.answers}
            for question, text in pairs
        ),
    }


def write_answers(
    model: GPT, tokenizer: Tokenizer, *, max_new_tokens: int = 32, batch_size: int = 16
) -> AnswerWriter:
    """用一个模型来写：贪心，成批；返回交给 measure_exact_match 的函数。

    约定：第 i 段文字答第 i 道题，与怎样分批无关；停止串本身不在文字里
    """
    check_int("batch_size", batch_size, 1)
    # 它自己没有状态，几批共用一个
    writer = TextGenerator(model, tokenizer)

    def write(questions: Sequence[ShortAnswer]) -> list[str]:
        texts: dict[int, str] = {}
        # 一批共用一套参数，所以先按停止串分开；每类里再按批的大小切
        kinds: dict[tuple[str, ...], list[int]] = {}
        for index, question in enumerate(questions):
            kinds.setdefault(question.stop, []).append(index)
        # 同一类里一批一批地写
        for stop, indices in kinds.items():
            # 温度 0：每步都选第一名，没有随机
            params = SamplingParams(temperature=0.0, max_new_tokens=max_new_tokens, stop=stop)
            for first in range(0, len(indices), batch_size):
                batch = indices[first : first + batch_size]
                # 编号而不是文字：太长的已经砍好了
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

    公式：留下最后 C − m 个，C 是上下文，m 是至多写几个；写满了也不会超出
    错误：要写的比上下文还长 → ValueError，给出两个数
    """
    # 上下文里，题目与答案要一起放得下
    limit = model.config.max_seq_len
    check_int("max_new_tokens", max_new_tokens, 1, limit - 1)
    # 别家的分词器可能规定开头有 <s>；砍的时候它也先走，与别的评测程序相同
    return tokenizer.encode(prompt, add_special=True)[-(limit - max_new_tokens) :]


def demo() -> None:
    """规整前后；总写对的、总写错的、写在句子里的各得几分；让背熟诗的模型填空。"""
    from inference.poet import learn_poems

    print("① 规整：左边写成右边")
    # 全角、大小写与多余的空白、引号里的负数、小数、只有标点的
    for text in ("　Ｐａｒｉｓ。", "  The  Answer!", "“-7”", "7.0", "……"):
        print(f"   {text!r:20} → {normalize(text)!r}")
    # 负号是内容，引号不是
    assert normalize("“-7”") == "-7" != normalize("7")
    assert normalize("……") == ""

    # 八道题：a + a
    questions = [ShortAnswer(f"{a} + {a} =", (str(2 * a),)) for a in range(1, 9)]
    print("② 同一份考卷，三个「考生」")
    # 一个全对，一个每句都多说了话，一个只会一个数
    for name, write in (
        ("写对的      ", lambda qs: [f" {q.answers[0]}." for q in qs]),
        ("多写了话的  ", lambda qs: [f"it is {q.answers[0]}" for q in qs]),
        ("一律写 8 的 ", lambda qs: [" 8" for _ in qs]),
    ):
        # 三个考生，同一把尺子
        found = measure_exact_match(questions, write)
        print(f"   {name} {found['exact_match']}　（不规整 {found['exact_match_raw']}）")
    # 八道题里恰有一道的答案是 8
    assert found["exact_match"].value == 1 / 8

    print("③ 背熟了三首诗的小模型，写到句号为止")
    # 一两秒练成，见 poet.py
    model, tokenizer, _ = learn_poems()
    # 第三道的「标准答案」故意给错，看它扣不扣分
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
    # 三道对两道：错的那道错在标准答案
    assert abs(score.value - 2 / 3) < 1e-9


if __name__ == "__main__":
    run_demo(demo)
