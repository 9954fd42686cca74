"""十周课程：自己写出每一个零件，错了会告诉你错在哪里。

In a notebook: `from course import check; check("attention.03", my_function)`.
"""

from __future__ import annotations

from typing import Any

__all__ = ["check"]


def check(name: str, *functions: Any, lang: str = "zh", **values: Any) -> bool:
    """Check functions (or predictions, `name=value`) against an exercise; prints the diagnosis."""
    from course.notebook import check as run_check

    return run_check(name, *functions, lang=lang, **values)
