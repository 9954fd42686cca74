r"""tokenizer.json 里写着什么？读到一份别人给的文件，怎样知道它没有坏？

文件用 Hugging Face `tokenizers` 的格式：一份 JSON，任何用这个库的程序都能读。

    {
      "added_tokens":  [{"id": 0, "content": "<|endoftext|>", "special": true, …}],
      "normalizer":    改写原文的规则（我们不用：改写之后就还原不了）
      "pre_tokenizer": 切片规则；字节级的还要把字节换成可见符号
      "decoder":       "ByteLevel" = 符号换回字节；"Fuse" = 直接首尾相接
      "model":         {"type": "BPE",
                        "vocab":  {"Ġlow": 262, …},        词元 → 编号
                        "merges": [["l", "o"], …]}         次序就是优先级
    }

两种分词器共用这一种格式，区别只在有没有字节这一层：

    种类        vocab 的键            merges     解码
    characters  字符本身              空         首尾相接
    bpe         字节的可见符号串      学到的     每个符号 → 1 字节，再按 UTF-8 解码

BPE 文件自带约束，破坏任何一条，编码就会悄悄出错，所以读入时逐条检查：
编号与词元一一对应；每条合并 (a, b) 的 a、b 与 ab 都在词表里；256 个字节有词元可用；
没有一条合并能拼出特殊词元（special token），否则用户文字可以冒充它。

文献：https://huggingface.co/docs/tokenizers（格式）；SentencePiece 等其他格式不在此列。
改哪里：想支持更多种类的文件，先改 kind_of，再改 token_table 里「词元是哪些字节」的规则。
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from foundation.demonstration import run_demo
from tokenization.input_checks import END_OF_TEXT
from tokenization.text_pieces import byte_symbols

__all__ = ["fingerprint_of", "parse_specification", "token_table"]

Specification = dict[str, Any]

# 合法的 UTF-8 文本里不会出现的字节：C0、C1 只能开头超长编码，F5 以上超出 U+10FFFF
NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}


def parse_specification(text: str, where: str) -> Specification:
    """解析并检查一份 tokenizer.json，返回它的内容。

    错误：每一种损坏都是 ValueError，写明文件、词元与编号
    """
    try:
        specification = json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {error}") from None
    if not isinstance(specification, dict) or not isinstance(specification.get("model"), dict):
        raise ValueError(f"{where} is not a tokenizer: it needs an object with a 'model' object")
    kind = kind_of(specification, where)
    owner = _check_ids(specification, where)
    _check_merges(specification, where)
    if kind == "bpe":
        _check_bytes(owner.values(), where)
    return specification


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON 允许重复的键，后者悄悄盖掉前者；词表里出现这种事，必是文件坏了。"""
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {repeated!r} appears twice in one object")
    return result


def kind_of(specification: Specification, where: str = "tokenizer.json") -> str:
    """判断种类："bpe"（字节级）或 "characters"；别的种类明说不支持，而不是勉强读入。"""
    model = specification["model"]
    steps = _steps(specification.get("decoder"), "decoders")
    if model.get("type", "BPE") == "BPE" and isinstance(model.get("vocab"), dict):
        # 词首、词尾标记与随机丢弃（dropout）都会让「合并表 + 字节」不足以说明编码结果
        extras = ("continuing_subword_prefix", "end_of_word_suffix", "dropout")
        used = [name for name in extras if model.get(name)]
        if used:
            raise ValueError(f"{where}: model.{used[0]} = {model[used[0]]!r} is not supported")
        if "ByteLevel" in steps:
            return "bpe"
        if steps == ["Fuse"] and not model.get("merges"):
            return "characters"
    raise ValueError(
        f"{where}: unsupported tokenizer (model {model.get('type')!r}, decoder {steps}); supported: "
        "byte-level BPE (as in GPT-2, Llama 3, Qwen) and the character tokenizers saved here"
    )


def _steps(component: Any, plural: str) -> list[str]:
    """列出一个组件的类型；Sequence 里套着几步就列出几步。"""
    if not isinstance(component, dict):
        return []
    if component.get("type") == "Sequence":
        return [name for part in component.get(plural, []) for name in _steps(part, plural)]
    return [str(component.get("type"))]


def _check_ids(specification: Specification, where: str) -> dict[int, str]:
    """编号必须是非负整数，且与词元一一对应；返回 编号 → 词元。"""
    added = specification.get("added_tokens") or []
    entries = [*specification["model"]["vocab"].items()]
    entries += [(entry["content"], entry["id"]) for entry in added]
    owner: dict[int, str] = {}
    id_of: dict[str, int] = {}
    for token, token_id in entries:
        if type(token_id) is not int or token_id < 0:
            raise ValueError(
                f"{where}: token {token!r} has the id {token_id!r}, not an integer >= 0"
            )
        # 同一个词元既在 vocab 又在 added_tokens 里是常事，编号一致即可
        if owner.setdefault(token_id, token) != token:
            raise ValueError(
                f"{where}: duplicate id {token_id}, shared by {owner[token_id]!r} and {token!r}"
            )
        if id_of.setdefault(token, token_id) != token_id:
            raise ValueError(f"{where}: token {token!r} has two ids, {id_of[token]} and {token_id}")
    if not owner:
        raise ValueError(f"{where}: the vocabulary is empty")
    return owner


def merge_pairs(specification: Specification) -> list[tuple[str, str]]:
    """取出合并表；旧文件写成 "l o"，新文件写成 ["l", "o"]，这里统一成一对。"""
    return [
        tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge)
        for merge in specification["model"].get("merges") or []
    ]


def _check_merges(specification: Specification, where: str) -> None:
    """每条合并的两半与结果都要有编号，而且结果不能是特殊词元。"""
    vocabulary = specification["model"]["vocab"]
    special = special_ids(specification)
    for rank, pair in enumerate(merge_pairs(specification)):
        if len(pair) != 2:
            raise ValueError(f"{where}: merge {rank} is {pair!r}, not a pair of tokens")
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
                f"{left + right!r} out of ordinary text; "
                f"rename it to something text never merges into, like {END_OF_TEXT!r}"
            )


def _check_bytes(tokens: Iterable[str], where: str) -> None:
    """缺了某个字节的词元，库会把这个字节悄悄丢掉，解码就少了一截。"""
    present = set(tokens)
    missing = [
        f"0x{byte:02X}"
        for byte, symbol in enumerate(byte_symbols())
        if symbol not in present and byte not in NEVER_IN_UTF8
    ]
    if missing:
        raise ValueError(
            f"{where}: no token for {len(missing)} of 256 bytes ({', '.join(missing[:8])}…); "
            "text with these bytes would be lost"
        )


def special_ids(specification: Specification) -> dict[str, int]:
    """特殊词元的名字 → 编号。"""
    added = specification.get("added_tokens") or []
    return {entry["content"]: entry["id"] for entry in added if entry.get("special")}


def token_table(specification: Specification) -> dict[int, bytes]:
    """每个编号代表哪些字节；编号可以有空缺（别人的词表偶有预留）。

    公式：bpe 的普通词元逐符号换回字节；其余（字符、特殊词元、加入的词元）就是名字的 UTF-8
    """
    byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    is_bpe = kind_of(specification) == "bpe"
    table: dict[int, bytes] = {}
    for token, token_id in specification["model"]["vocab"].items():
        if is_bpe and all(symbol in byte_of for symbol in token):
            table[token_id] = bytes(byte_of[symbol] for symbol in token)
        else:
            table[token_id] = token.encode("utf-8")
    for entry in specification.get("added_tokens") or []:
        table[entry["id"]] = entry["content"].encode("utf-8")
    return table


def fingerprint_of(specification: Specification) -> str:
    """一句话说明「是不是同一个分词器」：凡影响编号的内容，取 SHA-256。

    只取词表、合并、加入的词元与切片规则，所以换一版库重新保存，指纹不变；
    而词表里任何一个编号变了，指纹必变，用旧编号写成的数据就不会被误读
    """
    content = {
        "vocab": specification["model"]["vocab"],
        "merges": merge_pairs(specification),
        "added_tokens": [
            [entry["content"], entry["id"], bool(entry.get("special"))]
            for entry in specification.get("added_tokens") or []
        ],
        "normalizer": specification.get("normalizer"),
        "pre_tokenizer": specification.get("pre_tokenizer"),
    }
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def demo() -> None:
    """看一份真的 tokenizer.json，再故意弄坏它，看检查说什么。"""
    from tokenization.tokenizer import Tokenizer

    tokenizer = Tokenizer.train_bpe(["低头思故乡 低头 low low lower"], 265)
    specification = json.loads(tokenizer.to_json())
    model = specification["model"]
    print("1. 文件里的合并与编号：")
    table = token_table(specification)
    for left, right in merge_pairs(specification):
        token_id = model["vocab"][left + right]
        print(f"   {token_id}: {left} + {right}\t= 字节 {table[token_id].hex(' ')}")
        assert table[token_id] == table[model["vocab"][left]] + table[model["vocab"][right]]

    print("2. 弄坏它：")
    damages = {
        "两个词元同号": lambda broken: broken["model"]["vocab"].update({"a": 5}),
        "合并指向不存在的词元": lambda broken: broken["model"]["merges"].append(["l", "中"]),
        "少了字节 0x41": lambda broken: broken["model"]["vocab"].pop("A"),
        "合并能拼出特殊词元": lambda broken: broken["added_tokens"].append(
            {"id": model["vocab"]["lo"], "content": "lo", "special": True}
        ),
    }
    for name, damage in damages.items():
        broken = json.loads(tokenizer.to_json())
        damage(broken)
        try:
            parse_specification(json.dumps(broken), "tokenizer.json")
        except ValueError as error:
            print(f"   {name}：{error}")
        else:
            raise AssertionError(f"{name} was not noticed")

    print("3. 指纹：", tokenizer.fingerprint[:16], "…")
    swapped = json.loads(tokenizer.to_json())
    vocabulary = swapped["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    print("   只对调 a 与 b 的编号：", fingerprint_of(swapped)[:16], "…")
    assert fingerprint_of(specification) == tokenizer.fingerprint != fingerprint_of(swapped)


if __name__ == "__main__":
    run_demo(demo)
