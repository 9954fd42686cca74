r"""对话存在文件里：json 与 jsonl 怎样逐条地读，出错时怎样说得出是第几行？

两种文件，装的是一样的东西：

    data.jsonl   一行一个 JSON 对象            data.json    一个大列表
    ───────────────────────────────            ─────────────────────────────────
    {"prompt": "2+2=", "response": "4"}        [
    {"prompt": "3+3=", "response": "6"}          {"prompt": "2+2=", "response": "4"},
                                                 {"prompt": "3+3=", "response": "6"}
                                               ]

一行一个的好处：坏了一行，别的行还认得出；可以边读边接着写；命令行里数行数就是数条数。
大列表要整个读完才知道对不对：json.loads 只说「第 1234567 个字符有错」，而人要的是第几行。
所以列表也逐个地读：raw_decode 从给定的位置读一个值，返回它在哪里结束，

$$\text{行号} = 1 + \#\{\,\text{起点之前的换行}\,\}$$

数过的不再数，整个文件只数一遍，大文件也是线性的时间。

凭内容认，不凭后缀：叫 .json 而其实一行一个的文件很常见。只有 .jsonl 一定是一行一个。

报错里总有三样：哪个文件、第几行（从 1 数起，与编辑器里看到的一样）、怎么不对。
坏了一行就停：跳过它，用户会以为每一行都用上了。

常见疑问：
    文件有几吉字节呢？  对话微调用不着那么多：一万段好的，胜过一百万段杂的（LIMA, 2023）。
                        要预训练那样大的语料，走 training/prepare.py，边读边写。

论文：JSON — RFC 8259；一行一个 — jsonlines.org
改哪里：换一种文件（例如 csv），照 `records` 写一个「逐条给出（在哪里, 值）」的函数；
        一条里面怎样认，见 conversations.py。
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finetuning.conversations import EXAMPLE, Conversation, Pair, conversation_of, text_of
from foundation.demonstration import run_demo
from foundation.files import read_text

__all__ = ["read_conversations", "read_pairs"]

JSON_SPACES = " \t\r\n"  # JSON 里的空白只有这四种


def read_conversations(path: Path | str) -> list[Conversation]:
    """读 json（一个列表）或 jsonl（一行一个），四种写法都认，混着也行。

    先后与文件里的相同；重复的也都留着，去不去重由调用者定

    错误：不是 JSON、认不出写法、缺键、角色不对、内容不是字符串、问了没有答、一条也没有
          → ValueError，写明文件、第几行、有哪些键
    """
    path = Path(path)
    found = [conversation_of(value, where) for where, value in records(path)]
    # 空文件不是「零条数据」，是拿错了文件
    # 例子写在报错里：最常见的问题是不知道该写成什么样
    if not found:
        raise ValueError(f"{path} holds no conversations; write one per line, such as {EXAMPLE}")
    return found


def read_pairs(
    path: Path | str, *, prompt_key: str = "prompt", answer_key: str = "answer"
) -> list[Pair]:
    """自己起的键名：每条取其中两个键；空行跳过，多余的键不管。

    与上一个函数的分别：那里凭键认写法，这里的键由用户明说，不再猜

    例：{"prompt": "法国的首都是", "answer": "巴黎"}
    错误：不是 JSON、缺键、不是字符串、为空、一对也没有 → ValueError，写明文件与第几行
    """
    path = Path(path)
    # 两个键都要在：text_of 说得出缺的是哪一个、最像的是哪一个
    pairs = [
        Pair(text_of(value, prompt_key, where), text_of(value, answer_key, where))
        for where, value in records(path)
    ]
    if not pairs:
        raise ValueError(
            f"{path} holds no pairs; write one JSON object per line, "
            f'for example {{"{prompt_key}": "2+2=", "{answer_key}": "4"}}'
        )
    return pairs


def records(path: Path) -> Iterator[tuple[str, Any]]:
    """逐条给出（在哪里, 值）；行号从 1 数起，与编辑器里看到的一样。

    不是 .jsonl、又以 [ 开头的，是一个大列表；其余一行一个，空行跳过
    """
    # 不是 UTF-8 的在这里就停，报出是第几个字节
    text = read_text(path)
    if path.suffix != ".jsonl" and text.lstrip().startswith("["):
        yield from items_of(text, path)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        # 末尾的换行会多出一个空行；中间空几行也无妨
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        # 一行坏了就停：跳过它，用户会以为每一行都用上了
        yield where, parsed(json.loads, where, line)


def parsed(parse: Callable[..., Any], where: str, *arguments: Any, text: str = "") -> Any:
    """解析一个 JSON 值，失败了说出是哪一行。

    除了写错，还有套得太深的（一万层括号）、数字太长的：库抛的错各不相同，都换成同一句话
    text：不为空时，解析的是整个文件的一部分，错处的行号要另说：一条可以占好多行
    """
    try:
        return parse(*arguments)
    except json.JSONDecodeError as error:
        # 列号从 1 数起，逐行的文件里它就是这一行的第几个字符
        line = f"line {error.lineno}, " if text else ""
        place = f"{error.msg}, {line}column {error.colno}"
    except RecursionError:
        place = "it is nested too deeply"
    except ValueError as error:
        place = str(error)
    # 把一个对象排成好几行，第一行就只剩一个括号；这样的文件太常见，值得一句提示
    alone = arguments[0].strip() in ("{", "[") and not text
    hint = "; one JSON object per line, or a list [ … ] of them in a .json file" if alone else ""
    raise ValueError(f"{where} is not valid JSON: {place}{hint}")


def items_of(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """一个大列表，逐个取出，同 records。

    错误：值写错、两个值之间没有逗号、列表没有结尾、结尾之后还有东西 → ValueError
    """
    decoder, number, line = json.JSONDecoder(), 0, 1
    counted = 0  # 到这里为止的换行都数过了
    start = skip_spaces(text, text.index("[") + 1)
    while text[start : start + 1] not in ("]", ""):
        # ① 这一个在第几行
        line, counted = line + text.count("\n", counted, start), start
        number += 1
        where = f"item {number} (line {line}) of {path}"
        # ② 读一个，看它在哪里结束
        value, end = parsed(decoder.raw_decode, where, text, start, text=text)
        yield where, value
        # ③ 两个值之间必须有逗号，最后一个之后是 ]
        start = skip_spaces(text, end)
        if text[start : start + 1] == ",":
            start = skip_spaces(text, start + 1)
        elif text[start : start + 1] != "]":
            raise ValueError(f"{where} is followed by neither a comma nor the end of the list")
    # 文件被截断、或列表之后还有东西：都说明这不是用户以为的那个文件
    if text[start : start + 1] != "]" or text[start + 1 :].strip():
        raise ValueError(f"{path}: the list is cut off, or something follows it")


def skip_spaces(text: str, start: int) -> int:
    """从 start 起第一个不是空白的位置；到头了就是末尾。

    raw_decode 不肯跳过开头的空白，所以自己来
    """
    while start < len(text) and text[start] in JSON_SPACES:
        start += 1
    return start


def demo() -> None:
    """同样的两条，两种文件；再看三种坏文件，各指到哪一行。

    文件都写在一个用完即删的文件夹里
    """
    good = ['{"prompt": "2+2=", "response": "4"}', '{"instruction": "3+3=", "output": "6"}']

    with tempfile.TemporaryDirectory() as folder:

        def write(name: str, text: str) -> Path:
            """写一个文件，返回它的路径。"""
            path = Path(folder, name)
            path.write_text(text, encoding="utf-8")
            return path

        # 列表里的换行是为了好读，读的人不依赖它
        print("一、一行一个，与一个大列表，读出来相同")
        lines = read_conversations(write("a.jsonl", "\n".join(good)))
        listed = read_conversations(write("a.json", "[\n" + ",\n".join(good) + "\n]"))
        for one in lines:
            print("  " + " → ".join(message.content for message in one.messages))
        assert lines == listed
        # 叫 .json 而其实一行一个的，也认得
        assert read_conversations(write("b.json", "\n".join(good))) == lines

        # 第三条坏了：前面有两条好的，行号才看得出对不对
        print("二、坏在第三条：两种文件都指得出行")
        for name, text in (
            ("bad.jsonl", "\n".join([*good, '{"prompt": ,}'])),
            ("bad.json", "[\n" + ",\n".join([*good, '{"promt": "x"}']) + "\n]"),
            ("cut.json", "[\n" + ",\n".join(good)),  # 下载到一半
        ):
            try:
                read_conversations(write(name, text))
                raise AssertionError(f"{name} must be refused")
            except ValueError as error:
                # 临时文件夹的名字每次不同，换成省略号
                message = str(error).replace(folder, "…").split(";")[0]
                print(f"  {message}")
                # 列表从第二行开始，所以第三条在第四行
                assert name != "bad.jsonl" or "line 3" in message
                assert name != "bad.json" or "item 3 (line 4)" in message


if __name__ == "__main__":
    run_demo(demo)
