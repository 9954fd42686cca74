r"""读到一份别人给的 tokenizer.json，怎样知道它没有坏？

文件坏了，库多半不吭声：重号的词元悄悄消失，没有词元的字节悄悄丢掉。等模型训完才看出文字不对，
已经太晚，所以读入时逐条检查这些约束：

    1. 词元与编号一一对应，编号是非负整数     $\mathrm{id}(a) = \mathrm{id}(b) \iff a = b$
    2. 每条合并 (a, b)：a、b 与拼成的 ab 都在词表里
    3. 没有一条合并拼得出特殊词元（special token），否则用户文字可以冒充它
    4. 字节级：文本里可能出现的每个字节都有词元
    5. 库读入之后使用的编号，与文件里写的相同

      文件 ──▶ JSON ──▶ 认种类 ──▶ 1 编号 ──▶ 2、3 合并 ──▶ 4 字节 ──▶ 库 ──▶ 5
               └──────────┴───────────┴────────────┴──────────┴──────────┴──▶ ValueError

每一条都有真实的来历：手工删过词表的文件破坏 2，忘了 initial_alphabet 的训练破坏 4，
跳着排号的特殊词元破坏 5。报错写明文件、词元、编号与位置，好在几万行里找到它。

文献：https://huggingface.co/docs/tokenizers（格式）；RFC 3629（哪些字节不会出现）。
改哪里：多一条约束，就在 parse_specification 里多调用一个检查；文件的含义 → `tokenizer_file.py`。
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from foundation.demonstration import run_demo
from tokenization.input_checks import END_OF_TEXT
from tokenization.text_pieces import byte_symbols
from tokenization.tokenizer_file import (
    Specification,
    added_tokens,
    decoding_rule,
    kind_of,
    merge_pairs,
    special_ids,
    vocabulary_of,
)

__all__ = ["check_same_ids", "parse_specification"]

# 合法的 UTF-8 里不会出现的字节：C0、C1 只用于超长编码，F5 以上超出最后一个码位 U+10FFFF。
# 有的词表没有它们，不算缺陷
NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}


def parse_specification(text: str, where: str) -> Specification:
    """解析并检查一份 tokenizer.json，返回它的内容。

    where 是报错时说的文件名；每一种损坏都是 ValueError，写明文件、词元与编号。
    只查得出「不合约束」，查不出「合约束但被改过」：后者比较指纹

    >>> parse_specification("[]", "my.json")
    Traceback (most recent call last):
    ValueError: my.json is not a tokenizer: it needs an object with a 'model' object
    """
    try:
        specification = json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{where} is not valid JSON: {error.msg} at {place}") from None
    except (ValueError, RecursionError) as error:  # 键重复；方括号套了几万层
        raise ValueError(f"{where}: {error}") from None
    if not isinstance(specification, dict) or not isinstance(specification.get("model"), dict):
        raise ValueError(f"{where} is not a tokenizer: it needs an object with a 'model' object")
    # 种类决定后面查什么：字节级要有 256 个字节，SentencePiece 一类要有退路；
    # 先认种类：不支持的文件，后面几条检查对它没有意义；
    # 再查编号、查合并：后一条检查可以放心使用前一条已保证的东西
    kind = kind_of(specification, where)
    _check_ids(specification, where)
    _check_merges(specification, where)
    if kind == "bpe":
        _check_bytes(specification, byte_symbols(), where)
    elif kind == "sentencepiece":
        _check_fallback(specification, where)
    return specification


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON 允许同一个键写两次，后者悄悄盖掉前者；词表里出现这种事，必是文件坏了。

    >>> json.loads('{"a": 1, "a": 2}')
    {'a': 2}
    >>> json.loads('{"a": 1, "a": 2}', object_pairs_hook=_without_repeats)
    Traceback (most recent call last):
    ValueError: the key 'a' appears twice in one object
    """
    result = dict(pairs)
    if len(result) < len(pairs):
        # 只在出错时才数：Counter 数一遍就够，词表再大也不慢
        repeated, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {repeated!r} appears twice in one object")
    return result


def _entries(specification: Specification, where: str) -> list[tuple[str, Any]]:
    """列出全部 (词元, 编号)：先是 model 的，后是加入的；同一个词元可以两处都有。

    Unigram 的词表是一列，列两次同一个词元在这里就会发现

    >>> added = [{"content": "<|end|>", "id": 1}]
    >>> _entries({"model": {"vocab": {"a": 0}}, "added_tokens": added}, "my.json")
    [('a', 0), ('<|end|>', 1)]
    """
    added = added_tokens(specification, where)
    pairs = [(entry["content"], entry.get("id")) for entry in added]
    return [*vocabulary_of(specification, where).items(), *pairs]


def _check_ids(specification: Specification, where: str) -> None:
    """约束 1。重号时库只留下一个词元，另一个从此编不出来，也没有任何提示。

    >>> _check_ids({"model": {"vocab": {"a": 0, "b": 0}}}, "my.json")
    Traceback (most recent call last):
    ValueError: my.json: duplicate id 0, shared by 'a' and 'b'
    >>> _check_ids({"model": {"vocab": {"a": -1}}}, "my.json")
    Traceback (most recent call last):
    ValueError: my.json: the id of token 'a' must be an integer in [0, 2**32), got -1
    """
    # 两个方向各记一张表：一张查「一号两词」，一张查「一词两号」
    # （JSON 的键不会重复，_without_repeats 已查过；重复只会来自 vocab 与 added_tokens 之间）
    owner: dict[int, str] = {}
    id_of: dict[str, int] = {}
    for token, token_id in _entries(specification, where):
        # type 而不是 isinstance：JSON 的 true 在 Python 里也是整数 1；库用 32 位存编号
        if type(token_id) is not int or not 0 <= token_id < 2**32:
            raise ValueError(
                f"{where}: the id of token {token!r} must be an integer in [0, 2**32), "
                f"got {token_id!r}"
            )
        # setdefault：没有主人就记下，有了就取出原来的主人来比
        if owner.setdefault(token_id, token) != token:
            raise ValueError(
                f"{where}: duplicate id {token_id}, shared by {owner[token_id]!r} and {token!r}"
            )
        # 同一个词元既在 vocab 又在 added_tokens 里是常事，编号一致即可
        if id_of.setdefault(token, token_id) != token_id:
            raise ValueError(f"{where}: token {token!r} has two ids, {id_of[token]} and {token_id}")
    if not owner:
        raise ValueError(f"{where}: the vocabulary is empty")


def _check_merges(specification: Specification, where: str) -> None:
    """约束 2 与 3。两半可以是单字节，也可以是先前合并的结果。

    约束 2 不成立，说明词表与合并表不是同一次训练的：例如手工删过词表。库也会
    拒绝这样的文件，却不说是第几条、两半各是谁

    约束 3 举例：若特殊词元名叫 "lo"，而语料里学到了 l + o，那么用户打出 "low"，
    第一个编号就成了特殊词元；"<|endoftext|>" 不会如此，因为切片规则把它切成了三片

    >>> _check_merges({"model": {"vocab": {"l": 0, "o": 1}, "merges": [["l", "o"]]}}, "my.json")
    Traceback (most recent call last):
    ValueError: my.json: merge 0 ('l' + 'o') names 'lo', which is not among the 2 tokens of ...
    """
    vocabulary = vocabulary_of(specification, where)
    special = special_ids(specification)
    # rank 是这条合并在表里的位置，报错时说出它，好在几万行里找到
    for rank, pair in enumerate(merge_pairs(specification, where)):
        if not isinstance(pair, list) or list(map(type, pair)) != [str, str]:
            raise ValueError(f"{where}: merge {rank} must be a pair of tokens, got {pair!r}")
        left, right = pair
        for token in (left, right, left + right):
            if token not in vocabulary:
                raise ValueError(
                    f"{where}: merge {rank} ({left!r} + {right!r}) names {token!r}, "
                    f"which is not among the {len(vocabulary)} tokens of the vocabulary"
                )
        if left + right in special:
            raise ValueError(
                f"{where}: merge {rank} ({left!r} + {right!r}) makes the special token "
                f"{left + right!r} out of ordinary text; give it a name that the split "
                "pattern cuts apart, like '<|name|>'"
            )


def _check_bytes(specification: Specification, names: list[str], where: str) -> None:
    """约束 4。没有词元的字节，库编码时直接跳过，解码出来就少了一截。

    用 BpeTrainer 训练而没有给 initial_alphabet，就会得到这样的文件：语料里恰好没有的
    字节都缺着，要等到有人输入了生僻字才出错。names 是 256 个字节在这份词表里的写法

    >>> parts = {"model": {"vocab": {symbol: i for i, symbol in enumerate(byte_symbols()[1:])}}}
    >>> _check_bytes(parts, byte_symbols(), "my.json")
    Traceback (most recent call last):
    ValueError: my.json: 1 of 256 bytes have no token (0x00); text with these bytes would be lost
    """
    vocabulary = vocabulary_of(specification, where)
    missing = [
        f"0x{byte:02X}"
        for byte, symbol in enumerate(names)
        if symbol not in vocabulary and byte not in NEVER_IN_UTF8
    ]
    if missing:
        raise ValueError(
            f"{where}: {len(missing)} of 256 bytes have no token ({', '.join(missing[:4])}"
            f"{', …' if len(missing) > 4 else ''}); text with these bytes would be lost"
        )


def _check_fallback(specification: Specification, where: str) -> None:
    """约束 4，SentencePiece 一类：词表里没有的字符，要么退回字节，要么成为 <unk>。

    两样都没有时，库对 BPE 悄悄丢字，对 Unigram 到编码时才报错；
    退得回去却拼不回来（解码里没有 ByteFallback），"龘" 解码出来就成了 "<0xE9><0xBE><0x98>"

    >>> parts = {"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": None}}
    >>> _check_fallback(parts, "my.json")
    Traceback (most recent call last):
    ValueError: my.json has neither byte_fallback nor an unknown token: text with other ...
    """
    model, vocabulary = specification["model"], vocabulary_of(specification, where)
    if model.get("byte_fallback"):
        rule = decoding_rule(specification)
        if rule is not None and not rule.has_bytes:
            raise ValueError(f"{where} falls back to bytes, but its decoder has no ByteFallback")
        return _check_bytes(specification, [f"<0x{byte:02X}>" for byte in range(256)], where)
    # BPE 写名字，Unigram 写编号；
    # 类型也要查：true 在 Python 里是整数 1
    name, unknown = model.get("unk_token"), model.get("unk_id")
    if name not in vocabulary and not (type(unknown) is int and 0 <= unknown < len(vocabulary)):
        raise ValueError(
            f"{where} has neither byte_fallback nor an unknown token: text with other "
            "characters would be lost"
        )
    return None


def check_same_ids(specification: Specification, loaded: dict[str, int], where: str) -> None:
    """约束 5。文件里写的编号，与库读入之后真正使用的（loaded），必须相同。

    库给 added_tokens 里的新词元从 model 的词元数往后接着排号，不看文件里的 id。
    跳着写的编号因此变了样；我们按文件解码，库按自己的编码，同一个词元就成了两个编号

    >>> check_same_ids({"model": {"vocab": {"a": 0, "b": 9}}}, {"a": 0, "b": 1}, "my.json")
    Traceback (most recent call last):
    ValueError: my.json: token 'b' has the id 9, but the tokenizers library would use 1
    """
    for token, token_id in _entries(specification, where):
        if loaded.get(token) != token_id:
            raise ValueError(
                f"{where}: token {token!r} has the id {token_id}, but the tokenizers library "
                f"would use {loaded.get(token)}"
            )


def demo() -> None:
    """把一份好文件弄坏几处，看检查说什么。"""
    from tokenization.tokenizer import Tokenizer

    text = Tokenizer.train_bpe(["低头思故乡 低头 low low lower"], 265).to_json()
    good = parse_specification(text, "tokenizer.json")
    print(f"好文件：{len(good['model']['vocab'])} 个词元，{len(merge_pairs(good))} 条合并，通过")

    # 每种损坏都只在原文上改一两处，余下的仍是一份像样的 JSON
    damages = {
        "两个词元同号": text.replace('"a": 65', '"a": 66'),
        "词元写了两次": text.replace('"b": 66', '"a": 66'),
        "合并用到没有的词元": text.replace('"merges": [', '"merges": [["l", "中"],'),
        "特殊词元拼得出来": text.replace('"id": 0', '"id": 257').replace(END_OF_TEXT, "lo", 1),
        "少了一个字节": text.replace('"A": 33,', ""),
        "文件不完整": text[: len(text) // 2],
    }
    for name, broken in damages.items():
        assert broken != text
        try:
            parse_specification(broken, "tokenizer.json")
        except ValueError as error:
            print(f"   {name}：{error}")
        else:
            raise AssertionError(f"{name}: not noticed")


if __name__ == "__main__":
    run_demo(demo)
