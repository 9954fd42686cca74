"""诊断怎样说给学习者听：先是你自己的数，再问一句，再给名字、后果、去哪里看；两种语言。"""

from __future__ import annotations

from course.catalogue import Mistake, all_mistakes
from course.checking import Checked
from course.diagnosis import Diagnosis
from course.exercise import Exercise
from course.lessons import lesson

__all__ = ["TEXT", "diagnosis_lines", "result_line"]

PRINTED_LINES = 6  # of what the answer printed

TEXT = {
    "zh": {
        "passed": "通过",
        "accepted": "通过，写法等价",
        "line": "第 {line} 行",
        "question": "想一想",
        "name": "诊断",
        "or": "或",
        "unclear": "从结果上分不清是哪一个",
        "many": "不止一处错；先改这一处",
        "many_unnamed": "不止一处错：两个错误叠在一起才会得到这些数",
        "effect": "后果",
        "link": "去看",
        "printed": "你的代码打印了",
        "todo": "把标出的地方写完，再查一次",
        "difference": "第一个不同的数在这里；它之前的都对",
    },
    "en": {
        "passed": "passed",
        "accepted": "passed, an equivalent way",
        "line": "line {line}",
        "question": "Think",
        "name": "Diagnosis",
        "or": "or",
        "unclear": "the results cannot tell which",
        "many": "more than one mistake; mend this one first",
        "many_unnamed": "more than one mistake: these numbers come from two at once",
        "effect": "Effect",
        "link": "See",
        "printed": "Your code printed",
        "todo": "write the missing part, then check again",
        "difference": "this is the first number that differs; what comes before it is right",
    },
}


def result_line(exercise: Exercise, found: Diagnosis, language: str) -> str:
    """One line: the mark, the exercise, its title."""
    mark = "✓" if found.passed else "·" if found.stage == "todo" else "✗"
    return f"{mark} {exercise.id}  {lesson(exercise, language).title}"


def diagnosis_lines(exercise: Exercise, checked: Checked, language: str) -> list[str]:
    """The whole message; one mistake at a time."""
    found, text = checked.diagnosis, TEXT[language]
    lines = [result_line(exercise, found, language)]
    if found.passed:
        remark = text[found.stage]
        for mistake in mistakes_of(found):
            remark += f"：{mistake.words[language].name}"
        return [*lines, f"  {remark}"]
    where = f"{text['line'].format(line=found.line)}：" if found.line else ""
    lines.append(f"  {where}{found.evidence.get(language, '')}")
    if found.stage == "todo":
        lines.append(f"  {text['todo']}")
    elif found.stage == "difference":
        lines.append(f"  {text['difference']}")
    elif found.stage in ("mistake", "pair"):
        lines += named_lines(found, language)
    if checked.printed and not found.passed:
        shown = checked.printed.splitlines()[-PRINTED_LINES:]
        lines += [f"  {text['printed']}", *(f"    {line[:200]}" for line in shown)]
    return lines


def named_lines(found: Diagnosis, language: str) -> list[str]:
    """The question, then the name, the effect, the place."""
    text, mistakes = TEXT[language], mistakes_of(found)
    if not mistakes:
        return [f"  {text['many_unnamed']}"]
    first = mistakes[0]
    words = first.words[language]
    lines = [f"  {text['question']}：{words.question}"]
    if found.stage == "pair":
        lines.append(f"  {text['many']}")
    names = [f"{m.id} {m.words[language].name}" for m in mistakes]
    if found.stage == "pair":
        names = names[:1]
    joined = f" {text['or']} ".join(names)
    lines.append(f"  {text['name']}：{joined}")
    if len(names) > 1:
        lines.append(f"  {text['unclear']}")
    lines.append(f"  {text['effect']}：{words.effect}")
    lines.append(f"  {text['link']}：{first.link}")
    return lines if language == "zh" else [line.replace("：", ": ") for line in lines]


def mistakes_of(found: Diagnosis) -> list[Mistake]:
    """The mistakes a diagnosis names."""
    return [all_mistakes()[name] for name in found.mistakes]
