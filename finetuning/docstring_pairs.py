r"""从哪里找一份不用下载、又有标准答案的微调数据？——Python 标准库里函数的说明。

每个 Python 都带着几百个模块，几千个函数写着说明 (docstring)。把说明从源代码里挖掉，
就是一道题：读函数，用一句话说它做什么；挖掉的第一行，就是答案。

    def clamp(x, low, high):                       prompt  def clamp(x, low, high):
        \"\"\"Return x limited to [low, high].\"\"\"      ──→          return max(low, min(x, high))
        return max(low, min(x, high))                      # Summary:
                                                   answer  Return x limited to [low, high].

划分训练与留出 (held-out) 以模块为单位，用的是预训练语料（training/document_split.py）的同一条规则：

$$\text{held out} \iff \mathrm{SHA256}(\text{module text})_{0..63} < f \cdot 2^{64}$$

这样留出的函数，在预训练时也属于验证集：模型从没见过它们的说明，留出损失才是真的「没见过」。
若按函数随机划分，同一个类的兄弟方法会分在两边，说明几乎一样，量到的就是背诵。

数据里的三个陷阱，这里都绕开了：
    答案写在题目里    注释把说明又抄了一遍的函数不要，否则学会的是「抄注释」
    考题就是习题      标准库里有整段复制的函数；训练里出现过的，从留出里去掉
    题目残缺          def 与说明写在同一行、或只有说明没有代码的，挖完剩不下什么，不要

论文：Husain et al. 2019, CodeSearchNet（用函数与它的说明做数据）
改哪里：题目怎样写，改 `PROMPT`；挑哪些函数，改 `pair_of` 里的几个条件；
        换成自己的任务，写一个返回 Pair 列表的函数就够了，或者准备一个 jsonl，见 conversations.py。
"""

from __future__ import annotations

import ast
import textwrap
import warnings
from collections.abc import Iterator
from itertools import islice
from typing import TypeAlias

from finetuning.conversations import Pair
from foundation.checks import check_float, check_int
from foundation.demonstration import run_demo
from training.corpus import load_corpus
from training.document_split import text_hash

__all__ = ["PROMPT", "docstring_pairs", "pairs_in"]

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef

# 以换行结尾：答案另起一行，分词时不会与提问粘在一起
PROMPT = "{code}\n# Summary:\n"
# 太短的说明（"See above."）没有内容，太长的多半不止一句
ANSWER_LENGTHS = range(10, 81)


def docstring_pairs(
    *, max_lines: int = 20, held_out_fraction: float = 0.1
) -> tuple[list[Pair], list[Pair]]:
    """标准库里的全部题目：(训练, 留出)，顺序固定，每台同版本的 Python 都一样。

    每题是一个 Pair：prompt 以 PROMPT 的写法结尾，answer 是说明的第一行，不含换行。
    held_out_fraction：留出多少；与 prepare_data 的 val_fraction 取同一个值，才与预训练对得上
    max_lines：挖掉说明之后，函数至多多少行；小模型的上下文短，长函数放不下
    错误：标准库只有 .pyc 没有源代码时，load_corpus 抛 ValueError
    """
    check_int("max_lines", max_lines, 2)
    check_float("held_out_fraction", held_out_fraction, 0.0, 1.0)
    # 语料按名字排好序，所以题目的顺序也是确定的
    training: list[Pair] = []
    held_out: list[Pair] = []
    for document in load_corpus("python-code"):
        # 判断放在解析之前，每个模块只解析一次。
        # 按文本划分：同样的文本永远在同一侧
        chosen = text_hash(document.text.encode()) < int(held_out_fraction * 2**64)
        (held_out if chosen else training).extend(pairs_in(document.text, max_lines))
    # 按模块划分还不够：
    # 有的函数在几个模块里一字不差：两边都有的不能留作考题
    # Pair 是冻结的，可以直接放进集合里比
    seen = set(training)
    return unique(training), [pair for pair in unique(held_out) if pair not in seen]


def pairs_in(source: str, max_lines: int = 20) -> Iterator[Pair]:
    """一个模块里的题目，按在文件里出现的先后；语法不通的模块没有题目。

    source 是整个模块的源代码。只解析成语法树，从不执行它
    """
    with warnings.catch_warnings():
        # 老代码里的 "\d" 这类写法，新版 Python 会警告；与我们无关
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            return
    # 题目用原文拼，不用语法树还原：注释在语法树里已经没有了
    lines = source.split("\n")
    for function in functions_in(tree):
        pair = pair_of(function, lines, max_lines)
        if pair is not None:
            yield pair


def functions_in(node: ast.AST) -> Iterator[Function]:
    """一棵语法树里的全部函数，方法与嵌套的也算，按出现的先后。

    只往语句里走：函数不会藏在表达式里，而 ast.walk 连每个名字与常数都要看一遍，慢好几倍。
    """
    for block in ("body", "handlers", "orelse", "finalbody"):
        # 多数节点没有这几块；没有的当作空的
        for child in getattr(node, block, []):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield child
            yield from functions_in(child)


def pair_of(function: Function, lines: list[str], max_lines: int) -> Pair | None:
    """一个函数 → 一道题；不合适的返回 None。

    不要的：没有说明；说明太短、太长、有看不见的字符；挖不干净；挖完太长；答案泄露在代码里
    """
    docstring = ast.get_docstring(function)
    if docstring is None or len(function.body) < 2:
        return None
    # PEP 257：第一行是一句话的概要，空一行之后才是细节
    answer = docstring.strip().split("\n")[0].strip()
    if len(answer) not in ANSWER_LENGTHS or not answer.isprintable():
        return None
    # 说明所占的行。与 def 同一行的、或后面还跟着语句的，挖了就不完整，不要
    # body[0] 就是说明那一句：get_docstring 不为 None 保证了它
    first, last = function.body[0].lineno, function.body[0].end_lineno
    # 类型上行号可以没有（手工造的语法树），解析得来的都有
    assert last is not None and function.end_lineno is not None  # noqa: PT018 - 解析得来的都有
    if first == function.lineno or function.body[1].lineno <= last:
        return None
    # 保留原文而不用 ast.unparse：注释与排版也是读懂代码的线索
    # 行号从 1 数起；def 之前的装饰器不取，它说的是怎样登记，不是做什么
    kept = lines[function.lineno - 1 : first - 1] + lines[last : function.end_lineno]
    if len(kept) > max_lines:
        return None
    # 方法在类里缩进着，去掉共同的缩进，看起来与普通函数一样
    code = textwrap.dedent("\n".join(kept)).strip()
    # 说明里的话若在注释里又写了一遍，就是把答案写在题目上
    return None if answer in code else Pair(PROMPT.format(code=code), answer)


def unique(pairs: list[Pair]) -> list[Pair]:
    """去掉重复的，保持先后：字典记得键加进来的顺序。"""
    return list(dict.fromkeys(pairs))


def demo() -> None:
    """挖一个小模块看看，再数一数标准库里有多少题。"""
    # 一个有说明，一个没有：只出一道题
    source = textwrap.dedent('''
        def clamp(x, low, high):
            """Return x limited to [low, high]."""
            return max(low, min(x, high))

        def undocumented(x):
            return x
    ''')
    print("一、一个小模块 → 题目")
    (pair,) = pairs_in(source)
    print(textwrap.indent(f"{pair.prompt}{pair.answer}", "  │ "))
    # 答案若还在提问里，学会的就是抄
    assert pair.answer not in pair.prompt

    # 整个标准库要解析几百个模块，这里只看开头的几十个；docstring_pairs() 给出全部
    print("\n二、标准库开头的 80 个模块")
    documents = list(islice(load_corpus("python-code"), 80))
    found = unique([pair for document in documents for pair in pairs_in(document.text)])
    letters = sum(len(pair.prompt) for pair in found) // len(found)
    answer = sum(len(pair.answer) for pair in found) // len(found)
    print(f"  {len(found):,} 题，提问平均 {letters} 个字符，答案平均 {answer} 个")
    assert len(found) > 100
    assert all(pair.answer not in pair.prompt for pair in found)
    print("  没有一题的答案写在题目里")

    # 挑一道长短适中的给人看
    print("\n三、其中一道")
    sample = min(found, key=lambda pair: abs(len(pair.prompt) - 160))
    print(textwrap.indent(f"{sample.prompt}{sample.answer}", "  │ "))


if __name__ == "__main__":
    run_demo(demo)
