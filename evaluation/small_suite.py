r"""怎样给一个只有一百万参数的模型出题？——题要小，而且不看题的人恰好得瞎猜的分。

公开的考卷（MMLU、HellaSwag）对小模型太难：练几分钟还是 25 %，看不出进步。这里的四样都很小，
按可能性选（见 multiple_choice.py），不必会答题：

    cloze        没读过的 Python 手册与源码里，空格后面是哪个词        语感
    brackets     x = (a, [b   →  ]) 还是 )] 还是 }] …                  结构
    copying      name, size, path, name, size, path, …  →  name       往回看
    arithmetic   17 + 8 =     →  25 还是 26 …                          大多数小模型都不会

怎样才公平：模型天生偏爱常见的、短的词元。若答案恰好比干扰项常见，没学过的模型也会「考得好」。
所以四道题一组，共用同样四个选项，每个选项恰好当一次答案，位置也轮一遍：

    题         选项（轮着排）            答案
    x = ([a    ])  )]  ))  ]]            ])      ─┐  不看题、只看选项的，
    x = [(a    )]  ))  ]]  ])            )]       ├─ 无论偏爱哪一个、哪个位置，
    x = ((a    ))  ]]  ])  )]            ))       │  四题里恰好对一题：25 %
    x = [[a    ]]  ])  )]  ))            ]]      ─┘

$$\sum_{q\,\in\,\text{组}} \mathbb 1[\hat a(q) = a_q] = 1 \quad \text{若 } \hat a \text{ 不看题}$$

于是多出来的每一分，都是看了题才得的。

看分数时：
    cloze 先动            语感最先有：练几分钟的小模型就明显高过瞎猜
    brackets 随后         要记住开了哪几个，还要倒着关
    copying 先低于瞎猜    小模型偏爱刚出现过的词，而答案是离得最远的那个；
                          学会「找上次出现的地方，抄它后面那个」（induction head）才会升
    arithmetic 不动       两位数相加；自带的语料里没有几道算术题
量过的数在 docs/evaluation.md。标准误约 2 个百分点，差不了几个点的，不要当真。

常见疑问：
    为什么不直接看验证损失？  也要看；但损失说不出学会了哪一样，降 0.1 是多是少也难说
    为什么四个选项？          两个太容易蒙对，多了要更多的算力；四个一组，正好轮一遍
    换一个种子算新题吗？      算；反复看着同一份题调参数，就是在背题，最后换个种子再考
    大模型能用吗？            能，但多半满分附近，分不出高下；用 task_files.py 里自己的题

题从哪里来：后三样由种子生成，哪里都一样；cloze 取自带语料里留出（held-out）的文档
（规则与 `fromzero train` 的缺省相同，见 document_split.py），随 Python 的版本略有不同，
所以报告里记着版本。拿别的比例或别的语料练的模型，也许见过其中的文章。

论文：完形填空式的考法 — LAMBADA (Paperno et al. 2016), arXiv:1606.06031。
改哪里：添一样题 → 写一个 (题数, 随机源) → [Question] 的函数，登记在 `SUITE` 里；
        用自己的文本出 cloze → `cloze_questions` 收任何文本。
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import product

from evaluation.multiple_choice import Question, chance_level
from foundation.checks import check_choice, check_int
from foundation.demonstration import run_demo
from training.corpus import load_corpus
from training.document_split import text_hash

__all__ = ["SUITE", "cloze_questions", "in_groups", "suite_questions"]

N_QUESTIONS = 400  # 标准误约 2 个百分点，小模型几秒答完
GROUP = 4  # 四道题一组，四个选项
HELD_OUT = 0.1  # fromzero train 缺省留出的比例
WINDOW = 160  # cloze 的题目有几个字符
PAIRS = {"(": ")", "[": "]", "{": "}"}
NAMES = (
    *("name", "value", "path", "line", "data", "node", "type", "size", "text", "file", "code"),
    *("list", "index", "result", "key", "item", "start", "length", "module", "object", "string"),
)


def suite_questions(name: str, n: int = N_QUESTIONS, seed: int = 0) -> list[Question]:
    """一样题，n 道（取整到四的倍数）；同样的 (name, n, seed) 得同样的题。

    错误：name 不在 SUITE 里、n < 4 → ValueError
    """
    check_choice("task", name, SUITE)
    check_int("n", n, GROUP)
    # 用字符串作种子：每样题各有自己的随机源，改一样不影响别的
    return SUITE[name](n - n % GROUP, random.Random(f"{name}/{seed}"))


def in_groups(items: Iterable[tuple[str, str]], rng: random.Random) -> Iterator[Question]:
    """(题目, 答案) 每四个一组，出成选择题；凑不满一组的留下不用。

    约定：一组里答案各不相同；每个选项当一次答案，答案在四个位置上各出现一次
    """
    waiting: list[list[tuple[str, str]]] = []  # 还没满的组
    for item in items:
        # ① 放进第一个还没有这个答案的组
        group = next((g for g in waiting if all(item[1] != a for _, a in g)), None)
        if group is None:
            waiting.append(group := [])
        group.append(item)
        if len(group) < GROUP:
            continue
        # 满了就出题，不再往里放
        waiting.remove(group)
        # ② 满了：选项围成一圈，每道题转到让答案落在自己那个位置
        # 四个答案，就是四个选项
        circle = [answer for _, answer in group]
        rng.shuffle(circle)
        places = rng.sample(range(GROUP), GROUP)
        for (prompt, answer), place in zip(group, places, strict=True):
            turn = circle.index(answer) - place
            choices = tuple(circle[(turn + i) % GROUP] for i in range(GROUP))
            yield Question(prompt, choices, place)


def cloze_questions(
    texts: Iterable[str], n: int, rng: random.Random, *, seen: str = ""
) -> list[Question]:
    """每篇文本里挑几个词挖掉；一组里的词一样长，所以按字节除不除都一样。

    去污染：题目连同答案，一字不差地在 seen（练过的文本）里出现过的，整组不要
    错误：文本不够出 n 道题 → ValueError，给出两个数
    """
    # ① 候选：前面至少有半个窗口的话，是小写的词，不是行首
    found: list[tuple[str, str]] = []
    for text in texts:
        # 候选的位置：空格后面三到九个小写字母，恰好是一个词
        spots = [m for m in re.finditer(r"(?<=[a-z,:=]) [a-z]{3,9}\b", text) if m.start() > WINDOW]
        # 一篇至多十二个：长文章不会占去大半
        for spot in rng.sample(spots, min(12, len(spots))):
            window = text[spot.start() - WINDOW : spot.start()]
            # 从一个词的开头开始，别把前一个词切成半个
            found.append((window.split(" ", 1)[-1], spot[0]))
    # ② 同样长的词分在一起，再四个一组
    # 打乱：一组四道题来自不同的文章
    rng.shuffle(found)
    by_length: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for item in found:
        by_length[len(item[1])].append(item)
    questions = [q for length in sorted(by_length) for q in in_groups(by_length[length], rng)]
    # ③ 整组整组地抽，否则公平就破了
    groups = [questions[i : i + GROUP] for i in range(0, len(questions), GROUP)]
    chosen: list[Question] = []
    for group in rng.sample(groups, len(groups)):
        if len(chosen) == n:
            break
        if not any(
            question.prompt + question.choices[question.answer] in seen for question in group
        ):
            chosen += group
    if len(chosen) < n:
        raise ValueError(f"the texts give {len(chosen)} cloze questions, {n} are wanted")
    return chosen


def cloze(n: int, rng: random.Random) -> list[Question]:
    """自带语料里，fromzero train 缺省归验证集的那些文档，挖词。

    手册与源码里有不少重复的段落：留出的文章里，也有练过的文章里的话，所以还要去污染
    """
    kept: list[str] = []
    seen: list[str] = []
    for document in load_corpus("python-docs+python-code"):
        held_out = text_hash(document.text.encode("utf-8")) < HELD_OUT * 2**64
        (kept if held_out else seen).append(document.text)
    return cloze_questions(kept, n, rng, seen="\n".join(seen))


def brackets(n: int, rng: random.Random) -> list[Question]:
    """两层或三层括号，该按什么次序关上；一组里层数相同。

    约定：选项一样长，都是右括号；单看选项，哪个都像
    """

    def items(depth: int) -> Iterator[tuple[str, str]]:
        while True:
            # 每轮把所有的开法打乱走一遍，组就很快凑满
            # 两层 9 种，三层 27 种
            openings = list(product(PAIRS, repeat=depth))
            for opening in rng.sample(openings, len(openings)):
                names = rng.sample(NAMES, depth + 1)
                # 每个开括号后面跟一个名字，看起来像一行代码
                inside = ", ".join(f"{b}{name}" for b, name in zip(opening, names[1:], strict=True))
                yield f"    {names[0]} = {inside}", "".join(PAIRS[b] for b in opening[::-1])

    # 一半两层，一半三层；都取整到四的倍数
    half = n // 2 // GROUP * GROUP
    shares = {2: half, 3: n - half}
    return [q for depth, k in shares.items() for q in take(in_groups(items(depth), rng), k)]


def copying(n: int, rng: random.Random) -> list[Question]:
    """四个词轮了三遍，下一个还是第一个；每个词出现的次数相同，光数个数答不出来。

    约定：整三遍，所以「出现得多」「离得近」都帮不上忙，只能去看上次它后面是谁
    """

    def items() -> Iterator[tuple[str, str]]:
        while True:
            # 四个不同的名字；都是常见的词，不考生词
            names = rng.sample(NAMES, GROUP)
            # 四种转法正好一组：同样的四个词，各当一次答案
            for turn in range(GROUP):
                turned = names[turn:] + names[:turn]
                yield ", ".join(turned * 3) + ",", f" {turned[0]}"

    return take(in_groups(items(), rng), n)


def arithmetic(n: int, rng: random.Random) -> list[Question]:
    """两个数相加；一组里的和是相邻的四个数，估个大概没有用。

    约定：和是两位数，答案不会是题目的最后一个词元（等号）
    """

    def items() -> Iterator[tuple[str, str]]:
        while True:
            # 四个相邻的两位数，各当一次和
            low = rng.randrange(10, 96)
            for total in range(low, low + GROUP):
                # 随机拆成两个数
                left = rng.randrange(1, total)
                yield f"{left} + {total - left} =", f" {total}"

    return take(in_groups(items(), rng), n)


def take(questions: Iterator[Question], n: int) -> list[Question]:
    """前 n 道；题目要多少有多少，所以总能取够。"""
    return [question for question, _ in zip(questions, range(n), strict=False)]


# 名字 → 怎样出题；命令行的 --task 与报告都用这些名字
SUITE: dict[str, Callable[[int, random.Random], list[Question]]] = {
    "cloze": cloze,
    "brackets": brackets,
    "copying": copying,
    "arithmetic": arithmetic,
}


def demo() -> None:
    """每样看一道；不看题的恰好 25 %；同样的种子得同样的题。"""
    for name in SUITE:
        questions = suite_questions(name)
        first = questions[0]
        print(f"{name}：{len(questions)} 道")
        print(f"   …{first.prompt[-60:]!r}")
        shown = "  ".join(repr(c) for c in first.choices)
        print(f"   {shown}　答案 {first.choices[first.answer]!r}")
        assert questions == suite_questions(name)
        assert chance_level(questions) == 1 / GROUP
        # 两个不看题的：总选第一个位置的；给每个选项一个与题无关的分数的
        blind = sum(question.answer == 0 for question in questions)
        taste = random.Random(7)
        # 给每个选项一个固定的、与题无关的分数
        liking: dict[str, float] = defaultdict(taste.random)
        fixed = sum(
            max(question.choices, key=lambda choice: liking[choice])
            == question.choices[question.answer]
            for question in questions
        )
        print(
            f"   总选第一个：{blind} 道；只凭偏爱：{fixed} 道；四分之一是 {len(questions) // 4} 道"
        )
        assert blind == fixed == len(questions) // GROUP


if __name__ == "__main__":
    run_demo(demo)
