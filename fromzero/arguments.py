"""命令行的词 → 带类型的选项（dataclass）；写错了，一行说清。

tyro does the work; its boxed errors become one line, as everywhere else in this project.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import re
import typing
from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar

from foundation.checks import nearest

__all__ = ["given_names", "parse_options"]

T = TypeVar("T")


def parse_options(
    options_type: type[T], arguments: Sequence[str], *, program: str, defaults: T | None = None
) -> T | None:
    """Build the options from the words of a command line; None when help was asked for.

    What is not given comes from `defaults`. Raises ValueError that names the option and what was
    given.
    """
    import tyro

    check_names(options_type, arguments, program)
    if defaults is None:
        check_required(options_type, arguments, program)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            # `Any`: to mypy, a TypeVar is not a TypeForm
            parse: Any = tyro.cli
            given: dict[str, Any] = {} if defaults is None else {"default": defaults}
            return parse(  # type: ignore[no-any-return]
                options_type,
                **given,
                args=list(arguments),
                prog=program,
                description=inspect.getdoc(options_type),
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff),
            )
    except SystemExit as stop:
        if not stop.code:
            return None
        raise ValueError(f"{readable(complaint.getvalue())}; see {program} --help") from None


def given_names(arguments: Sequence[str]) -> set[str]:
    """Which options are on a command line, by the names of their fields; whatever their values."""
    words = (word for word in arguments if word.startswith("--"))
    return {word[2:].split("=", 1)[0].replace("-", "_") for word in words}


def check_names(options_type: type, arguments: Sequence[str], program: str) -> None:
    """Refuse an option that does not exist, with the nearest one that does."""
    known = option_names(options_type)
    for word in arguments:
        if not word.startswith("--") or word == "--":
            continue
        name = word[2:].split("=", 1)[0].replace("_", "-")
        if name not in known:
            guess = nearest(name, known)
            hint = f"did you mean --{guess}? " if guess else ""
            raise ValueError(f"unknown option {word!r}; {hint}see {program} --help")


def check_required(options_type: type, arguments: Sequence[str], program: str) -> None:
    """Name the first option that must be given and is not."""
    given = {word.split("=", 1)[0].replace("_", "-") for word in arguments}
    if given & {"-h", "--help"}:
        return
    for field in dataclasses.fields(options_type):
        optional = field.default is not dataclasses.MISSING
        name = f"--{field.name.replace('_', '-')}"
        if is_positional(options_type, field.name):
            # with other words before it, tyro sees what is missing
            if not optional and not arguments:
                raise ValueError(f"{field.name.upper()} must be given; see {program} --help")
        elif not optional and name not in given:
            raise ValueError(f"{name} must be given; see {program} --help")


@cache
def hints_of(options_type: type) -> dict[str, Any]:
    """The fields' types with what tyro wants to know of them; asked for at each of the fields."""
    return typing.get_type_hints(options_type, include_extras=True)


def is_positional(options_type: type, name: str) -> bool:
    """Is the field declared as `tyro.conf.Positional[…]`: a word without `--name` before it?"""
    import tyro

    hint = hints_of(options_type)[name]
    return tyro.conf.Positional in getattr(hint, "__metadata__", ())


def aliases(options_type: type, name: str) -> Sequence[str]:
    """Other spellings of an option: those of `tyro.conf.arg(aliases=…)`."""
    hint = hints_of(options_type)[name]
    return [
        alias
        for extra in getattr(hint, "__metadata__", ())
        for alias in getattr(extra, "aliases", None) or ()
    ]


def option_names(options_type: type) -> list[str]:
    """Every name that may follow `--`, nested dataclasses included."""
    names = ["help", "tyro-print-completion", "tyro-write-completion"]
    hints = typing.get_type_hints(options_type)
    for field in dataclasses.fields(options_type):
        if is_positional(options_type, field.name):
            continue
        if dataclasses.is_dataclass(hints[field.name]):
            names += option_names(hints[field.name])
            continue
        name = field.name.replace("_", "-")
        names.append(name)
        names += [alias.lstrip("-") for alias in aliases(options_type, field.name)]
        if hints[field.name] is bool:
            names.append(f"no-{name}")
    return names


def readable(box: str) -> str:
    """Turn tyro's boxed message into one sentence."""
    lines: list[str] = []
    for raw in box.splitlines():
        line = raw.strip()
        if line[:1] in "╭╰┌└+":  # the frame's top and bottom
            continue
        line = line.strip("│| ").strip()
        if set(line) <= set("─-"):  # the rule below which tyro repeats the help
            if lines:
                break
            continue
        lines.append(line)
    text = " ".join(lines) or "the options could not be understood"
    text = text.split(" Got errors:")[0]
    text = re.sub(
        r"no type matching (\S+) could be instantiated from (\[.*?\])\.?", _expected, text
    )
    return text.rstrip(".")


def _expected(match: re.Match[str]) -> str:
    return f"expected {match[1].replace('{None}|', '')}, got {match[2][1:-1]}"
