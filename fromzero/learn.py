"""`fromzero learn`：十周课程。守着你的练习，一存盘就查；错了告诉你错在哪里。"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from course.checking import Checked
    from course.child_process import Runner
    from course.exercise import Exercise
    from course.workspace import Workspace

__all__ = ["Options", "run"]

Action = Literal[
    "watch", "list", "open", "next", "check", "lesson", "hint", "why", "reset", "solution",
    "report", "notebook", "build", "dev-check",
]  # fmt: skip


@dataclass
class Options:
    """The ten-week course: write every part yourself; a checker that says what went wrong.

    It never jumps ahead by itself. Your files and your progress are in my_llm/; what you write
    there is yours and is never overwritten.

    Examples:
        fromzero learn                      watch the current exercise, check on every save
        fromzero learn list                 all exercises, and how far you are
        fromzero learn next                 open the next exercise
        fromzero learn open attention.03    open a certain one
        fromzero learn check                check once; also with an ID, also --json
        fromzero learn lesson               read the lesson again
        fromzero learn hint                 one hint for every attempt that differs
        fromzero learn why                  why it matters in a real training
        fromzero learn reset                begin again; what you had is kept beside it
        fromzero learn solution             after passing, or with --give-up
        fromzero learn report               progress with evidence, as Markdown and HTML
        fromzero learn notebook             the lessons as Jupyter notebooks
        fromzero learn build                your own functions become a GPT that trains and talks
        fromzero learn dev-check            the course checks itself: mutation testing
    """

    action: Annotated[Action, tyro.conf.Positional] = "watch"
    """what to do"""
    ids: tyro.conf.Positional[tuple[str, ...]] = ()
    """which exercise, by its ID (attention.03); without: the current one"""
    dir: Path = Path("my_llm")
    """the folder with your exercises and your progress"""
    lang: Literal["zh", "en"] | None = None
    """the language of lessons and messages, remembered; without any said, Chinese"""
    json: bool = False
    """print the result of a check as JSON"""
    give_up: bool = False
    """show the solution without having passed; a variant of the exercise returns later"""
    out: Path | None = None
    """where report and notebooks go; without it, the folder of your exercises"""


def run(options: Options) -> int:
    """Do what was asked; 1 when a check did not pass."""
    from course.workspace import Workspace

    if options.action == "dev-check":
        return dev_check(options)
    workspace = Workspace(options.dir, options.lang)
    if len(options.ids) > 1:
        raise ValueError(f"one exercise at a time, not {', '.join(options.ids)}")
    return ACTIONS[options.action](options, workspace)


def chosen(options: Options, workspace: Workspace) -> Exercise:
    """The exercise that was named, or the current one."""
    from course.exercise import find

    return find(options.ids[0]) if options.ids else workspace.current


def list_all(options: Options, workspace: Workspace) -> int:
    """Every exercise with a mark: solved, given up, tried, untouched."""
    from course.report import overview_lines

    print("\n".join(overview_lines(workspace)))
    return 0


def open_one(options: Options, workspace: Workspace) -> int:
    """Open the named exercise and show its lesson."""
    return opened(chosen(options, workspace), workspace)


def open_next(options: Options, workspace: Workspace) -> int:
    """Open the first exercise that is not solved."""
    if options.ids:
        raise ValueError(f"next takes no ID; to open one: fromzero learn open {options.ids[0]}")
    following = workspace.next()
    if following is None:
        print(SAYS[workspace.language]["finished"])
        return 0
    return opened(following, workspace)


def opened(exercise: Exercise, workspace: Workspace) -> int:
    """Copy the starter where there is none, show the lesson and what to do."""
    path = workspace.open(exercise)
    show_lesson(exercise, workspace)
    print(SAYS[workspace.language]["opened"].format(path=path))
    return 0


def show_lesson(exercise: Exercise, workspace: Workspace) -> None:
    """The lesson as it is written."""
    from course.lessons import lesson

    text = lesson(exercise, workspace.language)
    print_markdown(f"# {exercise.id}  {text.title}\n\n{text.body}\n")


def print_markdown(text: str) -> None:
    """Laid out where a person reads it; as it is where a program does."""
    if not sys.stdout.isatty():
        print(text)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(text, code_theme="ansi_dark"))
    print()


def read_lesson(options: Options, workspace: Workspace) -> int:
    """Print a lesson."""
    show_lesson(chosen(options, workspace), workspace)
    return 0


def check(options: Options, workspace: Workspace) -> int:
    """Check once."""
    from course.child_process import Runner

    exercise = chosen(options, workspace)
    if not options.ids and not workspace.path(exercise).exists():
        workspace.open(exercise)
    source = workspace.source(exercise)
    with Runner() as runner:
        checked = judge(exercise, source, workspace, runner)
    if options.json:
        print(json.dumps(checked.diagnosis.to_json(), ensure_ascii=False))
    else:
        print_result(exercise, checked, workspace)
    return 0 if checked.diagnosis.passed else 1


def judge(exercise: Exercise, source: str, workspace: Workspace, runner: Runner) -> Checked:
    """Check a text and note the attempt."""
    from course.checking import check_source

    checked = check_source(exercise, source, runner)
    workspace.attempted(exercise, source, checked.diagnosis)
    return checked


def print_result(exercise: Exercise, checked: Checked, workspace: Workspace) -> None:
    """The message, and what comes next."""
    from course.messages import diagnosis_lines

    print("\n".join(diagnosis_lines(exercise, checked, workspace.language)))
    if checked.diagnosis.passed:
        print(SAYS[workspace.language]["next"])


def hint(options: Options, workspace: Workspace) -> int:
    """The next hint that an attempt has earned."""
    from course.lessons import N_HINTS, lesson

    exercise = chosen(options, workspace)
    before = workspace.record(exercise)["hints"]
    number = workspace.hint(exercise)
    text = lesson(exercise, workspace.language).hints[number - 1]
    print_markdown(f"{exercise.id}  {number}/{N_HINTS}\n\n{text}\n")
    if number == before < N_HINTS:
        print(SAYS[workspace.language]["same_hint"])
    return 0


def why(options: Options, workspace: Workspace) -> int:
    """Why it matters."""
    from course.lessons import lesson

    exercise = chosen(options, workspace)
    text = lesson(exercise, workspace.language)
    print_markdown(f"{exercise.id}  {text.title}\n\n{text.why}\n")
    return 0


def reset(options: Options, workspace: Workspace) -> int:
    """Begin again; nothing is lost."""
    path, kept = workspace.reset(chosen(options, workspace))
    says = SAYS[workspace.language]
    print(says["reset"].format(path=path))
    if kept is not None:
        print(says["kept"].format(path=kept))
    return 0


def solution(options: Options, workspace: Workspace) -> int:
    """The solution, once it can no longer spoil anything."""
    from course.exercise import solution_source

    exercise = chosen(options, workspace)
    passed = workspace.record(exercise)["passed"]
    if not passed and not options.give_up:
        raise ValueError(
            f"{exercise.id} is not solved yet; a hint: `fromzero learn hint`, or --give-up "
            "(a variant of it returns later)"
        )
    if not passed:
        workspace.give_up(exercise)
    print(solution_source(exercise, workspace.language))
    return 0


def report(options: Options, workspace: Workspace) -> int:
    """Write the report as Markdown and HTML."""
    from course.report import write_report

    for path in write_report(workspace, options.out or workspace.folder):
        print(path)
    return 0


def notebook(options: Options, workspace: Workspace) -> int:
    """Write the lessons as notebooks."""
    from course.notebook import write_notebooks

    folder = options.out or workspace.folder / "notebooks"
    paths = write_notebooks(folder, workspace.language)
    print(SAYS[workspace.language]["notebooks"].format(count=len(paths), folder=folder))
    return 0


def build(options: Options, workspace: Workspace) -> int:
    """Put the learner's functions together, train, and let the model talk."""
    from course.assembly import build_and_train

    return build_and_train(workspace.folder, workspace.language)


def dev_check(options: Options) -> int:
    """Mutation testing of the course itself."""
    from course.dev_check import check_course

    figures = check_course(options.ids, progress=lambda line: print(line, flush=True))
    for complaint in figures.complaints:
        print(complaint, file=sys.stderr)
    print("\n".join(figures.lines()))
    return 1 if figures.complaints else 0


def watch(options: Options, workspace: Workspace) -> int:
    """Check on every save, until Ctrl-C."""
    from course.child_process import Runner
    from course.watching import Keys, watch_file

    says = SAYS[workspace.language]
    opened(chosen(options, workspace), workspace)
    print(says["watching"])
    keys = Keys()
    over: list[bool] = []

    def checked(path: Path) -> None:
        exercise = workspace.current
        try:
            source = workspace.source(exercise)
        except ValueError as error:  # not UTF-8, or moved away: say so and go on watching
            print(f"✗ {error}", flush=True)
            return
        print()
        print_result(exercise, judge(exercise, source, workspace, runner), workspace)
        sys.stdout.flush()

    def typed() -> bool:
        word = keys.typed()
        if word is None:
            return False
        if word in ("q", "quit"):
            over.append(True)
            return False
        return do_typed(word, options, workspace)

    with Runner() as runner:
        watch_file(
            lambda: workspace.path(workspace.current),
            checked,
            typed,
            runner,
            until=lambda: bool(over),
        )
    return 0


def do_typed(word: str, options: Options, workspace: Workspace) -> bool:
    """Handle a key of the watch; True when another file is to be checked."""
    here = Options(dir=options.dir)
    actions = {"h": hint, "w": why, "l": list_all, "t": read_lesson}
    try:
        if word in ("n", "next"):
            open_next(here, workspace)
            return True
        if word in actions:
            actions[word](here, workspace)
        else:
            print(SAYS[workspace.language]["keys"])
    except ValueError as error:
        print(error)
    return False


SAYS = {
    "zh": {
        "opened": "写在这里：{path}\n查一次：fromzero learn check；守着它：fromzero learn",
        "next": "  下一题：fromzero learn next（守着时按 n 再回车）",
        "watching": "守着这份文件，一存盘就查。h 提示，w 为什么，t 课文，l 进度，n 下一题，q 结束",
        "keys": "h 提示，w 为什么，t 课文，l 进度，n 下一题，q 结束",
        "same_hint": "改一改，再查一次，才有下一个提示",
        "reset": "已重新开始：{path}",
        "kept": "原来写的留在：{path}",
        "finished": "全部做完了。看报告：fromzero learn report；拼成模型：fromzero learn build",
        "notebooks": "{count} 份笔记本写在 {folder}",
    },
    "en": {
        "opened": "Write here: {path}\nCheck once: fromzero learn check; watch it: fromzero learn",
        "next": "  next: fromzero learn next (while watching: n, then Enter)",
        "watching": "Watching this file, checking on every save. h hint, w why, t lesson, l list, "
        "n next, q quit.",
        "keys": "h hint, w why, t lesson, l list, n next, q quit",
        "same_hint": "the next hint comes after another attempt that differs",
        "reset": "begun again: {path}",
        "kept": "what you had is kept in {path}",
        "finished": "All done. The report: fromzero learn report; your model: fromzero learn build",
        "notebooks": "{count} notebooks written to {folder}",
    },
}

ACTIONS = {
    "watch": watch,
    "list": list_all,
    "open": open_one,
    "next": open_next,
    "check": check,
    "lesson": read_lesson,
    "hint": hint,
    "why": why,
    "reset": reset,
    "solution": solution,
    "report": report,
    "notebook": notebook,
    "build": build,
}
