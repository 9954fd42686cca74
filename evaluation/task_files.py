r"""自己的考题怎样写成文件？——一行一道题的 JSON（JSON Lines），三种题，看字段就认得。

    选择题   {"prompt": "The sky is", "choices": [" blue", " loud"], "answer": 0}
    填空题   {"prompt": "2 + 3 =", "answer": ["5", "five"], "stop": ["\n"]}
    编程题   {"prompt": "def double(x):\n", "tests": "assert double(4) == 8"}

    字段      哪种题          写什么
    prompt    都要            题目；模型接着它写，要空格、要换行都自己写上
    choices   选择            选项，直接接在 prompt 后面
    answer    选择、填空      选择：第几个（从 0 数）或选项本身；填空：一个答案，或几个都算对的
    tests     编程            接在写出来的函数后面运行，用 assert
    stop      填空、编程      写到其中任何一个就停；不写就用缺省的
    id        都可以有        给人看的，不参与计分

一个文件里只放一种题：混在一起，平均分就说不清是什么的平均。写错了，说出第几行、哪个字段。

    tasks.jsonl ──read_task──▶ Task(name, items) ──run_tasks.py──▶ 分数
    "cloze"、"programs"… ─────▶ 自带的（见 BUILT_IN）

论文：三种考法各见 multiple_choice.py、exact_match.py、pass_at_k.py。
改哪里：添一种题 → `KINDS` 里添一行，`run_tasks.py` 里说怎样量；添一份自带的 → `BUILT_IN`。
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from evaluation.exact_match import ShortAnswer
from evaluation.multiple_choice import Question
from evaluation.pass_at_k import CODE_STOPS, Problem
from evaluation.small_programs import PROGRAMS
from evaluation.small_suite import SUITE, suite_questions
from foundation.checks import nearest, unknown_key_message
from foundation.files import read_text

__all__ = ["BUILT_IN", "Item", "Task", "load_tasks", "read_task"]

Item: TypeAlias = "Question | ShortAnswer | Problem"


@dataclass(frozen=True)
class Task:
    """一份考卷：名字与题，至少一道，都是同一种。"""

    name: str
    items: tuple[Item, ...]

    @property
    def kind(self) -> str:
        """choice、answer 或 program。"""
        names = {Question: "choice", ShortAnswer: "answer", Problem: "program"}
        return names[type(self.items[0])]


def written_sums() -> list[ShortAnswer]:
    """加法，要自己写出来；题目里先摆三个例子，让模型看出格式。"""
    shown = "2 + 3 = 5\n4 + 4 = 8\n1 + 6 = 7\n"
    return [
        ShortAnswer(f"{shown}{left} + {right} =", (str(left + right),))
        for left in range(1, 10)
        for right in range(1, 10)
    ]


# 名字 → 出题；与文件走同一条路
BUILT_IN: dict[str, Callable[[], Sequence[Item]]] = {
    **{name: lambda name=name: suite_questions(name) for name in SUITE},  # type: ignore[misc]
    "sums": written_sums,
    "programs": lambda: [Problem(p.prompt, p.tests) for p in PROGRAMS],
}
# 一个名字代表四样：小模型的考卷
GROUPS = {"suite": tuple(SUITE)}


def load_tasks(specs: Sequence[str], limit: int | None = None) -> list[Task]:
    """几个名字或文件 → 几份考卷；limit 只取每份的前几道（选择题的公平以四道为一组）。

    错误：名字不认识又不是文件、文件有毛病、同一份给了两次 → ValueError
    """
    names: list[str] = []
    for spec in specs:
        names += GROUPS.get(spec, (spec,))
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the task {name!r} is given twice")
    tasks = [load_task(name) for name in names]
    return tasks if limit is None else [Task(t.name, t.items[:limit]) for t in tasks]


def load_task(name: str) -> Task:
    """自带的按名字，其余当作文件。"""
    if name in BUILT_IN:
        return Task(name, tuple(BUILT_IN[name]()))
    if not Path(name).exists():
        known = [*GROUPS, *BUILT_IN]
        guess = nearest(name, known)
        hint = f"; did you mean {guess!r}?" if guess else ""
        raise ValueError(
            f"no such task: {name!r} is neither a name ({', '.join(known)}) nor a jsonl file{hint}"
        )
    return read_task(Path(name))


def read_task(path: Path) -> Task:
    """一个 jsonl 文件 → 一份考卷，名字是文件名。

    错误：空文件、坏的 JSON、缺字段、多字段、混了两种题 → ValueError，写明文件与行号
    """
    items: list[Item] = []
    # 只按换行切：JSON 的字符串里可以有别的分行符，splitlines 会把一行切成两行
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            item = make_item(json.loads(line), where)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
        if items and type(item) is not type(items[0]):
            kinds = " and ".join(Task("", (i,)).kind for i in (items[0], item))
            raise ValueError(f"{where}: a task holds one kind of item, this one mixes {kinds}")
        items.append(item)
    if not items:
        raise ValueError(f"{path} holds no item; write one JSON object a line")
    return Task(path.stem, tuple(items))


def make_item(record: Any, where: str) -> Item:
    """一行的内容 → 一道题；哪种题看它有 choices、tests 还是都没有。"""
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(record).__name__}")
    kind = "choices" if "choices" in record else "tests" if "tests" in record else "answer"
    needed, optional, build = KINDS[kind]
    for name in record:
        if name not in (*needed, *optional, "id"):
            raise ValueError(unknown_key_message(name, (*needed, *optional, "id"), where))
    for name in needed:
        if name not in record:
            wanted = "choices, answer or tests" if kind == "answer" == name else name
            raise ValueError(f"{where}: {wanted} is missing")
    try:
        return build(record)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def make_question(record: dict[str, Any]) -> Question:
    """选择题；answer 可以是第几个，也可以是选项本身。"""
    choices = texts(record, "choices")
    answer = record["answer"]
    if isinstance(answer, str):
        if answer not in choices:
            raise ValueError(f"answer {answer!r} is none of the choices {list(choices)!r}")
        answer = choices.index(answer)
    return Question(text(record, "prompt"), choices, answer)


def make_answer(record: dict[str, Any]) -> ShortAnswer:
    """填空题；一个答案不必写成列表。"""
    answer = record["answer"]
    answers = (answer,) if isinstance(answer, str) else texts(record, "answer")
    stop = texts(record, "stop") if "stop" in record else ("\n",)
    return ShortAnswer(text(record, "prompt"), answers, stop)


def make_problem(record: dict[str, Any]) -> Problem:
    """编程题。"""
    stop = texts(record, "stop") if "stop" in record else CODE_STOPS
    return Problem(text(record, "prompt"), text(record, "tests"), stop)


def text(record: dict[str, Any], name: str) -> str:
    """一个必须是文字的字段。"""
    value = record[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, got {value!r} ({type(value).__name__})")
    return value


def texts(record: dict[str, Any], name: str) -> tuple[str, ...]:
    """一个必须是一列文字的字段。"""
    value = record[name]
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{name} must be a list of texts, got {value!r}")
    return tuple(value)


# 凭哪个字段认出来 → (必须有的, 可以有的, 怎样造)
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...], Callable[[dict[str, Any]], Item]]] = {
    "choices": (("prompt", "choices", "answer"), (), make_question),
    "answer": (("prompt", "answer"), ("stop",), make_answer),
    "tests": (("prompt", "tests"), ("stop",), make_problem),
}
