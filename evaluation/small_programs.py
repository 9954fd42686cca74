"""十道最小的编程题，各带一份标准答案：测试拿它核对题目本身没有出错。"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["PROGRAMS", "SmallProgram"]


class SmallProgram(NamedTuple):
    """A problem for pass@k and one body that solves it."""

    prompt: str
    tests: str
    solution: str


PROGRAMS = (
    SmallProgram(
        'def add(a, b):\n    """Return the sum of a and b."""\n',
        "assert add(2, 3) == 5\nassert add(-1, 1) == 0",
        "    return a + b",
    ),
    SmallProgram(
        'def square(x):\n    """Return x times x."""\n',
        "assert square(7) == 49\nassert square(-2) == 4",
        "    return x * x",
    ),
    SmallProgram(
        'def is_even(n):\n    """Return True if n is even."""\n',
        "assert is_even(4) is True\nassert is_even(7) is False",
        "    return n % 2 == 0",
    ),
    SmallProgram(
        'def first(items):\n    """Return the first of the items."""\n',
        "assert first([3, 1, 2]) == 3\nassert first('xyz') == 'x'",
        "    return items[0]",
    ),
    SmallProgram(
        'def last(items):\n    """Return the last of the items."""\n',
        "assert last([3, 1, 2]) == 2\nassert last('xyz') == 'z'",
        "    return items[-1]",
    ),
    SmallProgram(
        'def count(items):\n    """Return how many items there are."""\n',
        "assert count([]) == 0\nassert count([4, 4, 4]) == 3",
        "    return len(items)",
    ),
    SmallProgram(
        'def largest(items):\n    """Return the largest of the items."""\n',
        "assert largest([3, 9, 2]) == 9\nassert largest([-5, -7]) == -5",
        "    return max(items)",
    ),
    SmallProgram(
        'def backwards(text):\n    """Return the text from its end to its start."""\n',
        "assert backwards('abc') == 'cba'\nassert backwards('') == ''",
        "    return text[::-1]",
    ),
    SmallProgram(
        'def absolute(x):\n    """Return the distance of x from zero."""\n',
        "assert absolute(-3) == 3\nassert absolute(4) == 4",
        "    return x if x >= 0 else -x",
    ),
    SmallProgram(
        'def factorial(n):\n    """Return 1 * 2 * ... * n."""\n',
        "assert factorial(5) == 120\nassert factorial(0) == 1",
        "    result = 1\n    for i in range(2, n + 1):\n        result *= i\n    return result",
    ),
)
