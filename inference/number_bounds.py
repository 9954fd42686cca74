r"""「不小于 18、不大于 120」怎样让机器看得懂？——数的大小，也能从左到右一位一位地比出来。

机器只会一个字节一个字节地走，不会算数。可是**位数相同**的两个数，从最高位比起就知道谁大：

$$x_1x_2\dots x_n \ge l_1l_2\dots l_n \iff
  \exists\, k:\ x_1\dots x_{k-1} = l_1\dots l_{k-1},\ x_k > l_k \quad\text{或者全部相等}$$

所以每写一位，只要记住一件事：到此刻为止，与下限一直相等吗？与上限一直相等吗？

    27 到 58      ┌ 2 ── 7…9     贴着下限：第二位不能比 7 小
               ▶ ─┼ 3、4 ── 0…9   已经离开两边：后面随便写
                  └ 5 ── 0…8     贴着上限：第二位不能比 8 大

「贴着谁」至多四种，状态数于是不超过位数的常数倍；把 27 到 58 一个个列出来也行，一到十亿就不行了。

其余的都化成这一种：

  · 位数不同     没有多余的零时，位数多的大；每种位数各搭一条，27 到 3000 是三条
  · 负数         −x 在 −8 与 −3 之间，就是 x 在 3 与 8 之间，前面加一个减号
  · 不许相等     能写的数之间有空隙，x > 3 就是 x ≥ 下一个能写的数
  · 小数         3.14 看成 314，小数点另外放；早早停笔，等于后面都写零

要与读它的程序算得一样：读的人多半用 float64。十五位以内不同的小数，读成 float64 仍然不同
（IEEE 754），十六位就不一定：0.1 与 0.1 加上一点点读成同一个数，「大于 0.1」就成了空话。
所以有上下限的数总共至多十五位，不写指数。没有上下限的照旧，见 json_text.py。

上下限自己是多少？{"minimum": 0.1} 里的 0.1 读进来是 float64，并不正好是十分之一。我们取它
最短的写法（Python 的 repr），也就是用户写下的那个；比较全部用分数，没有一步舍入。

常见疑问：
    -0 算吗？        下限是负数、又够得着零时，-0 与 0 都许写；下限是 0 时，减号根本写不出来
    1.0 算整数吗？   规范说算，我们不写：type 是 integer 的从来没有小数点
    为什么没有 multipleOf？   3 的倍数要记住余数，7.5 的倍数更麻烦；用得少，所以报错

常见的错法：
    只比第一位            27 到 58 不是 [2-5][0-9]，那样 20 与 59 都合格
    忘了停笔就是补零      1.5 到 2 之间，写到 1 不能停；2 可以停，2.0 也行，2.01 不行
    从 float 直接取分数   0.1 成了 0.1000000000000000055…，用户写的 0.1 反而不合格

规范：JSON Schema 2020-12 validation, 6.2.2–6.2.5。

改哪里：位数 → json_text.py 的 DIGITS；想写指数 → rest 里加一条路，先想清楚大小怎样比。
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from foundation.demonstration import run_demo
from inference.automaton import ByteAutomaton, Chain, Either, Node, Span, literal
from inference.json_text import DIGITS, SCALARS

__all__ = ["LIMITS", "number_of"]

LIMITS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
MINUS, POINT, NOTHING = literal("-"), literal("."), Chain(())


def number_of(kind: str, limits: Mapping[str, Any]) -> Node:
    """integer 或 number，守住 LIMITS 里写了的几条；一条也没有，就是平常的样子。

    错误：上下限不是有限的数、两者之间没有写得出的数 → ValueError
    """
    given = {name: exact(name, limits[name]) for name in LIMITS if name in limits}
    if not given:
        return SCALARS[kind]
    # 同一边两条都写了，两条都要守
    above = [(given[name], name == LIMITS[1]) for name in LIMITS[:2] if name in given]
    below = [(given[name], name == LIMITS[3]) for name in LIMITS[2:] if name in given]
    # 先正后负，各是几条路；几种位数互不相干
    ways: list[Node] = []
    # 正的与零：下限是负数也不要紧，magnitude 从零数起
    ways += magnitude(kind, above, below)
    # 负的：两边对调，各换一个符号；下限不是负的，就连减号也不许写
    if all(low < 0 for low, _ in above):
        flipped = ([(-x, strict) for x, strict in side] for side in (below, above))
        ways += [Chain((MINUS, way)) for way in magnitude(kind, *flipped)]
    if not ways:
        asked = " and ".join(f"{name} {limits[name]!r}" for name in given)
        raise ValueError(f"no {kind} of at most {DIGITS} digits has {asked}")
    return Either(tuple(ways))


def exact(name: str, value: Any) -> Fraction:
    """上下限的准确值：用户写的是多少，就是多少。

    >>> exact("minimum", 0.1)
    Fraction(1, 10)
    """
    # 旧版规范的 {"exclusiveMinimum": true} 是另一个意思，不能当成 1
    if isinstance(value, int) and not isinstance(value, bool):
        return Fraction(value)
    if not isinstance(value, float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    # float 走最短的写法，不走它的二进制
    return Fraction(repr(value))


Side = list[tuple[Fraction, bool]]  # （限，不许相等吗）


def magnitude(kind: str, above: Side, below: Side) -> list[Node]:
    """没有符号的数，每种整数位数一条路；没有合格的就没有那条路。

    公式：整数部分 n 位，小数至多 DIGITS − n 位；乘 10 的那么多次方，就成了整数
    """
    ways = []
    for n in range(1, DIGITS + 1):
        decimals = DIGITS - n if kind == "number" else 0
        unit = 10**decimals
        # ① 这种位数自己的两头；一位数从 0 起，别的不以 0 开头
        low, high = (0 if n == 1 else 10 ** (n - 1) * unit), 10**n * unit - 1
        # ② 限之内的第一个与最后一个：正好落在限上而又不许相等的，再挪一格
        for x, strict in above:
            low = max(low, math.floor(x * unit) + 1 if strict else math.ceil(x * unit))
        for x, strict in below:
            high = min(high, math.ceil(x * unit) - 1 if strict else math.floor(x * unit))
        # ③ 补零到一样长，才好一位一位地比
        if low <= high:
            width = n + decimals
            ways.append(rest(f"{low:0{width}}", f"{high:0{width}}", n))
    return ways


# 同样的后半截是同一个结点，搭机器时只搭一遍；记不下的重造一个，只是多占几个零件
@lru_cache(maxsize=4096)
def rest(low: str, high: str, whole: int) -> Node:
    """余下的各位，在 low 与 high 之间（一样长）。

    whole 是小数点前还有几位；0 是正好写到小数点，−1 是已经在小数里
    """
    digits = Either(
        tuple(
            Chain((Span(ord(first), ord(last)), rest(lower, upper, max(whole - 1, -1))))
            for first, last, lower, upper in next_digit(low, high)
        )
    )
    # 整数部分没有写完，不能停
    if whole > 0:
        return digits
    # 停笔等于补零：补零之后不能小于下限。至于上限，写过的都没有超过它，补零也不会
    more = Chain((POINT, digits)) if whole == 0 else digits
    return more if low.strip("0") else Either((more, NOTHING))


def next_digit(low: str, high: str) -> Iterator[tuple[str, str, str, str]]:
    """下一位从哪到哪，写了之后余下的上下限：一直相等、只贴下限、两边都不贴、只贴上限。

    >>> list(next_digit("27", "58"))
    [('2', '2', '7', '9'), ('3', '4', '0', '9'), ('5', '5', '0', '8')]
    """
    # 写完了：没有下一位，空的「任选」就是走不通
    if not low:
        return
    # 离开一边之后，那一边就只剩最宽的：全是 0，或者全是 9
    lowest, highest = "0" * (len(low) - 1), "9" * (len(low) - 1)
    if low[0] == high[0]:
        yield low[0], low[0], low[1:], high[1:]
        return
    yield low[0], low[0], low[1:], highest
    # 中间的：上下限都管不着了
    if ord(high[0]) - ord(low[0]) > 1:
        yield chr(ord(low[0]) + 1), chr(ord(high[0]) - 1), lowest, highest
    yield high[0], high[0], lowest, high[1:]


def demo() -> None:
    """每个整数都试一遍；限越大，状态数怎样长；小数在限的两侧；写不出的。"""
    # ① 与比大小的答案逐个对照
    machine = ByteAutomaton(number_of("integer", {"minimum": -8, "maximum": 120}), "bounds")
    found = [n for n in range(-2000, 2001) if machine.matches(str(n).encode())]
    print(f"1. −8 到 120：−2000 到 2000 里认得 {len(found)} 个，{found[0]} 到 {found[-1]}")
    assert found == list(range(-8, 121))
    # ② 个数翻着万倍长，状态数只按位数长
    limits: dict[str, Any]
    for power in (2, 6, 14):
        # 位数不同的几种各有一条路，贴着上下限的各一串
        limits = {"minimum": 27, "exclusiveMaximum": 58 * 10**power}
        machine = ByteAutomaton(number_of("integer", limits), "bounds")
        n_states = len(machine.table) - 1
        print(f"2. 27 到 58·10^{power}（不含）：{n_states} 个状态")
        assert n_states < 6 * (power + 2)
    # ③ 小数：限的两侧各差一点；停笔就是补零
    limits = {"minimum": 1.5, "exclusiveMaximum": 2}
    machine = ByteAutomaton(number_of("number", limits), "bounds")
    print(f"3. 1.5 到 2（不含）：{len(machine.table) - 1} 个状态")
    for text in ("1.5", "1.50", "1.49999", "1.99999999999999", "2", "2.0", "1", "01.6"):
        print(f"   {'✓' if machine.matches(text.encode()) else '✗'} {text}")
        good = not text.startswith("01") and 1.5 <= float(text) < 2
        assert machine.matches(text.encode()) == good
    # ④ 写不出的：自相矛盾的、比十五位还大的、旧版规范的写法
    print("4. 写不出的：")
    for limits in (
        {"minimum": 3, "maximum": 2},
        {"minimum": 10**DIGITS},
        {"exclusiveMinimum": True},
    ):
        try:
            number_of("integer", limits)
            raise AssertionError(f"{limits} was accepted")
        except ValueError as error:
            print(f"   {error}")


if __name__ == "__main__":
    run_demo(demo)
