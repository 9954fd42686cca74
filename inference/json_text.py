r"""JSON 的每一种值，写成文本是什么样？——对象、数组、字符串、数，各是一棵小树。

    对象  { "a" : 值 , "b" : 值 }        可有可无的属性，连同它的逗号一起可有可无
    数组  [ 值 , 值 , … ]                第一个前面没有逗号
    串    " 字符或转义 … "               引号、反斜杠、换行要写成两个字符
    数    -? 整数 小数? 指数?

难的只有逗号：它只出现在两个之间。五个属性都可有可无时，谁打头不一定，

$$\text{对象} = \{\ p_i\ (, p_{i+1})^{?}\ (, p_{i+2})^{?} \cdots\ \}
  \quad i = 1, \dots, k, \qquad k = \text{第一个必须有的}$$

也就是先选谁打头，后面的每个各带自己的逗号。它们的后半截相同，搭机器时只搭一遍
（automaton.py 从右往左搭），所以状态数是 n 的一次式，不是二次。

写法比 JSON 许可的少，故意的：合格的写法越多，没学好的模型越容易在里面打转：

  · 冒号与逗号之后至多一个空格，别处没有空白：否则它可以一直写空格，写满为止
  · 整数至多 15 位（10¹⁵ < 2⁵³，float64 存得准），小数至多 15 位，指数至多两位：
    读回来不会溢出成无穷大
  · 不用 \uXXXX：别的字符可以直接写。也就写不出 U+0001 这样的控制字符

常见的错法：
    末尾多一个逗号        JavaScript 许，JSON 不许
    整数以 0 开头         007 不是 JSON；0 与 -0 是
    字符串里直接换行      必须写成 \n 两个字符，否则读的程序会报错

常见疑问：
    为什么不把空白全禁了？  模型学过的 JSON 多半有空格；一个也不许，每一步都在逼它写少见的切法
    为什么不许缩进换行？    缩进的深浅要记住层数，状态会成倍地多；读的程序也不在乎
    数有上下限呢？          一位一位地比，见 number_bounds.py
    大数怎么办？            写成字符串：{"type": "string", "pattern": "^[0-9]+$"}

规范：RFC 8259。

改哪里：空格的多少 → GAP；数的位数 → DIGITS；转义 → ESCAPES。
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from foundation.demonstration import run_demo
from inference.automaton import ByteAutomaton, Chain, Either, Node, Repeat, Span, literal
from inference.character_sets import ANY, Ranges, characters, difference, single
from inference.regex_syntax import parse_regex

__all__ = [
    "DIGITS",
    "SCALARS",
    "array_of",
    "as_written",
    "is_kind",
    "object_of",
    "string_of",
    "write_characters",
]

GAP = Repeat(literal(" "), 0, 1)  # 至多一个空格
COMMA, COLON = Chain((literal(","), GAP)), Chain((literal(":"), GAP))
DIGITS = 15
WHOLE = rf"-?(?:0|[1-9]\d{{0,{DIGITS - 1}}})"
INTEGER = parse_regex(WHOLE)
NUMBER = parse_regex(rf"{WHOLE}(?:\.\d{{1,{DIGITS}}})?(?:[eE][+-]?\d{{1,2}})?")
# 没有内部结构的几种类型
SCALARS: dict[str, Node] = {
    "integer": INTEGER,
    "number": NUMBER,
    "boolean": Either((literal("true"), literal("false"))),
    "null": literal("null"),
}
# 必须写成反斜杠加一个字母的
ESCAPES = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
# 不能照抄的：上面几个，以及全部控制字符
UNPRINTED = [(0x00, 0x1F), *(span for letter in ESCAPES for span in single(letter))]
QUOTE = Span(0x22, 0x22)


def write_characters(ranges: Ranges) -> Node:
    r"""一组字符写在 JSON 字符串里：多半照抄，几个要转义。

    例：[a"\n] 写成 a、\"（两个字符）、\n（两个字符）三者之一
    """
    # 只列出这组字符里真有的
    escaped = [
        literal("\\" + short)
        for letter, short in ESCAPES.items()
        if any(low <= ord(letter) <= high for low, high in ranges)
    ]
    return Either((characters(difference(ranges, UNPRINTED)), *escaped))


# 全部字符只造一个结点：搭的时候按身份认，处处共用
ANY_CHARACTER = write_characters(ANY)


def string_of(low: int = 0, high: int | None = None, inside: Node | None = None) -> Node:
    """加上引号；inside 是里面的规则，没给就是 low 到 high 个任意字符。

    长度数的是读回来之后的字符，转义算一个
    """
    return Chain((QUOTE, inside or Repeat(ANY_CHARACTER, low, high), QUOTE))


def array_of(item: Node, low: int, high: int | None) -> Node:
    """low 到 high 个 item；high 为 None 就没有上限。

    公式：[] | [ item (, item){low−1, high−1} ]
    """
    if high == 0:
        return literal("[]")
    # 第一个单独写，其余的各带一个逗号，所以次数都少一
    rest = Repeat(Chain((COMMA, item)), max(low - 1, 0), None if high is None else high - 1)
    some = Chain((literal("["), item, rest, literal("]")))
    # 一个也不要的时候，连逗号带 item 都没有，是另一条路
    return some if low else Either((some, literal("[]")))


def object_of(properties: Sequence[tuple[str, Node, bool]]) -> Node:
    """按给的次序写；每项是（名字，值，是不是必须有）。"""
    pairs = [Chain((as_written(name), COLON, value)) for name, value, _ in properties]
    # 名字照抄，里面的引号与汉字由 as_written 处理
    # ① 已经有人打头之后：每个各带逗号，可有可无的整段可以没有
    later: list[Node] = []
    for pair, (_, _, is_required) in zip(pairs, properties, strict=True):
        part = Chain((COMMA, pair))
        later.append(part if is_required else Repeat(part, 0, 1))
    # ② 谁打头？第一个必须有的，或者它之前的任何一个
    ways: list[Node] = []
    for index, (_, _, is_required) in enumerate(properties):
        # 后面的每一个都还有机会
        ways.append(Chain((pairs[index], *later[index + 1 :])))
        if is_required:
            break
    #    它之后的不能打头：那样它就没有地方写了
    # ③ 循环没有中断，就是没有必须有的：一个也不写也行
    else:
        ways.append(Chain(()))
    return Chain((literal("{"), Either(tuple(ways)), literal("}")))


def as_written(value: Any) -> Node:
    """一个现成的值，照抄。

    错误：写不成 JSON 的（NaN、半个字符、别的 Python 对象）→ ValueError
    """
    try:
        # 汉字直接写，不写成 \u：与字符串里的写法一致，也短得多
        return literal(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{value!r} cannot be written as JSON ({error})") from None


# JSON 的类型在 Python 里是什么；整数也是数
PYTHON: dict[str, tuple[type, ...]] = {
    **{"object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,)},
    **{"null": (type(None),), "integer": (int,), "number": (int, float)},
}


def is_kind(value: Any, kind: str) -> bool:
    """value 是不是 JSON 的这种类型。

    >>> is_kind(1, "number"), is_kind(True, "integer"), is_kind("1", "integer")
    (True, False, False)
    """
    # True 在 Python 里也是整数 1，在 JSON 里不是
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, PYTHON[kind])


def demo() -> None:
    """每种值几个例子，与 json.loads 对照；属性越多，状态数怎样长。"""
    cases: dict[str, tuple[Node, list[str]]] = {
        "整数": (INTEGER, ["0", "-7", "007", "1.0", "123456789012345", "1234567890123456"]),
        "数　": (NUMBER, ["3.14", ".5", "2e10", "1e999", "-0.0E-3"]),
        "串　": (string_of(1, 3), ['"春眠"', '"\\n\\""', '"\n"', '""', '"abcd"', '"a\\"']),
        "数组": (array_of(INTEGER, 0, 2), ["[]", "[1]", "[1, 2]", "[1,]", "[1,2,3]", "[ 1]"]),
    }
    for name, (node, texts) in cases.items():
        machine = ByteAutomaton(node, name)
        found = {text: machine.matches(text.encode()) for text in texts}
        print(
            f"{name}　" + "　".join(f"{text!r} {'✓' if ok else '✗'}" for text, ok in found.items())
        )
        # 反过来不必：能读回来的 1234567890123456，我们不写。
        # 认得的，一定读得回来
        for text, ok in found.items():
            # （json.loads 是标准库的读法，与我们的写法无关）
            assert not ok or json.loads(text) is not None
        assert 0 < sum(found.values()) < len(texts)
    # 组合数翻着倍长，状态数只按比例长：后半截是共用的
    for n in (5, 10, 20):
        # 两个字母的名字，都可有可无：2ⁿ 种组合
        names = [f"p{chr(97 + index)}" for index in range(n)]
        node = object_of([(name, SCALARS["null"], False) for name in names])
        machine = ByteAutomaton(node, "object")
        print(f"{n:2} 个可有可无的属性：{2**n:9,} 种组合，{len(machine.table) - 1} 个状态")
        # 最容易错的三种：
        # 一个也不写、只写最后一个、全写
        for chosen in ([], names[-1:], names):
            text = json.dumps(dict.fromkeys(chosen))
            assert machine.matches(text.encode())
        assert not machine.matches(b'{"pa": null,}')
        assert len(machine.table) < 20 * n


if __name__ == "__main__":
    run_demo(demo)
