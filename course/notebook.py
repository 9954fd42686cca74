"""在笔记本里上课：`check("attention.03", attention)`；课文也导出成 .ipynb。"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from course.checking import check_source
from course.child_process import Runner
from course.exercise import Exercise, all_exercises, find, starter_source
from course.lessons import N_HINTS, lesson
from course.messages import diagnosis_lines

__all__ = ["check", "gathered_source", "write_notebooks"]


def check(name: str, *functions: Callable[..., Any], lang: str = "zh", **values: Any) -> bool:
    """Check what is defined in a notebook: functions, or for predictions `name=value`.

    Prints the diagnosis; True when it passed. The functions' text, with what it uses, runs in a
    process of its own, as a file would.
    """
    exercise = find(name)
    source = gathered_source(exercise, functions, values)
    with Runner() as runner:
        checked = check_source(exercise, source, runner)
    print("\n".join(diagnosis_lines(exercise, checked, lang)))
    return checked.diagnosis.passed


def gathered_source(
    exercise: Exercise, functions: tuple[Callable[..., Any], ...], values: dict[str, Any]
) -> str:
    """A file's text made from functions and values of a running session."""
    parts: dict[str, str] = {}
    for name, value in values.items():
        if not isinstance(value, (bool, int, float, str, type(None))):
            raise ValueError(f"{name} must be a number or a text, got {type(value).__name__}")
        parts[name] = f"{name} = {value!r}"
    for function in functions:
        gather(function, parts)
    if len(functions) == 1 and len(exercise.names) == 1:
        own = functions[0].__name__
        if own != exercise.names[0]:  # whatever it is called
            parts[exercise.names[0]] = f"{exercise.names[0]} = {own}"
    return "from __future__ import annotations\n\n" + "\n\n".join(parts.values()) + "\n"


def gather(thing: Any, parts: dict[str, str]) -> None:
    """Add a function's or class's text, after the text of what it uses."""
    name = thing.__name__
    if name in parts:
        return
    try:
        source = inspect.cleandoc("\n" + inspect.getsource(thing))
    except (OSError, TypeError):
        raise ValueError(
            f"the text of {name} cannot be found; define it with def, in a cell of its own"
        ) from None
    parts[name] = ""  # it may call itself
    for used, value in used_globals(thing).items():
        if isinstance(value, types.ModuleType):
            parts.setdefault(used, f"import {value.__name__} as {used}")
        elif isinstance(value, (types.FunctionType, type)) and value.__module__ == thing.__module__:
            gather(value, parts)
        elif isinstance(value, (bool, int, float, str)):
            parts.setdefault(used, f"{used} = {value!r}")
        elif getattr(value, "__module__", None) and hasattr(value, "__name__"):
            parts.setdefault(used, f"from {value.__module__} import {value.__name__} as {used}")
    del parts[name]
    parts[name] = source  # after what it uses


def used_globals(thing: Any) -> dict[str, Any]:
    """The global names that a function's code, or a class's methods, use."""
    functions = [thing] if isinstance(thing, types.FunctionType) else []
    if isinstance(thing, type):
        functions = [f for f in vars(thing).values() if isinstance(f, types.FunctionType)]
    found: dict[str, Any] = {}
    for function in functions:
        codes = [function.__code__]
        while codes:
            code = codes.pop()
            codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
            for name in code.co_names:
                if name in function.__globals__:
                    found[name] = function.__globals__[name]
    return found


def write_notebooks(folder: Path, language: str) -> list[Path]:
    """Every lesson as a Jupyter notebook: the text, a cell to write in, a cell to check."""
    import jupytext

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for exercise in all_exercises().values():
        path = folder / exercise.file_name.replace(".py", ".ipynb")
        if path.exists():  # never over what a learner has written
            continue
        book = jupytext.reads(notebook_text(exercise, language), fmt="py:percent")
        jupytext.write(book, path, fmt="ipynb")
        written.append(path)
    return written


def notebook_text(exercise: Exercise, language: str) -> str:
    """One lesson in the percent format."""
    text = lesson(exercise, language)
    cells = [f"# {text.title}\n\n{text.body}"]
    hints = [
        f"<details><summary>hint {number}</summary>\n\n{hint}\n\n</details>"
        for number, hint in zip(range(1, N_HINTS + 1), text.hints, strict=True)
    ]
    names = ", ".join(exercise.names)
    if exercise.kind == "predict":
        names = ", ".join(f"{name}={name}" for name in exercise.names)
    ask = f'from course import check\n\ncheck("{exercise.id}", {names}, lang="{language}")'
    markdown = [
        "\n".join(f"# {line}".rstrip() for line in c.splitlines()) for c in (*cells, *hints)
    ]
    head, *rest = (f"# %% [markdown]\n{m}" for m in markdown)
    code = f"# %%\n{starter_source(exercise, language)}"
    return "\n\n".join([head, code, f"# %%\n{ask}", *rest]) + "\n"
