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

编码时自上而下：先认出 added_tokens，其余文字改写、切片，再由 model 合并成编号；
解码时只用 vocab 的反查与 decoder。两种分词器共用这一种格式，区别只在有没有字节这一层：

    种类          vocab 的键          merges     解码
    characters    字符本身            空         首尾相接
    bpe           字节的可见符号串    学到的     每个符号 → 1 字节，再按 UTF-8 解码

文件坏了，库多半不吭声：重号的词元悄悄消失，没有词元的字节悄悄丢掉。等模型训完才看出文字不对，
已经太晚，所以读入时逐条检查这些约束：

    1. 词元 → 编号是一一对应，编号是非负整数     $\mathrm{id}(a) = \mathrm{id}(b) \iff a = b$
    2. 每条合并 (a, b)：a、b 与拼成的 ab 都在词表里
    3. 没有一条合并拼得出特殊词元（special token），否则用户文字可以冒充它
    4. 字节级：文本里可能出现的每个字节都有词元

文献：https://huggingface.co/docs/tokenizers（格式）。
改哪里：想支持 SentencePiece 一类的文件，先在 kind_of 里认出它，
        再在 token_table 里说明它的词元是哪些字节。
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from foundation.demonstration import run_demo
from tokenization.input_checks import END_OF_TEXT
from tokenization.text_pieces import byte_symbols

__all__ = ["fingerprint_of", "kind_of", "parse_specification", "special_ids", "token_table"]

Specification = dict[str, Any]

# 合法的 UTF-8 里不会出现的字节：C0、C1 只用于超长编码，F5 以上超出最后一个码位 U+10FFFF。
# 有的词表没有它们，不算缺陷
NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}

# 这些设置会让「合并表 + 字节」不足以决定编号：词首词尾的记号，以及随机丢弃合并（dropout，
# 训练时故意换几种切法，让模型见得多些；同一段文本每次的编号都不同，这里不能要）
UNSUPPORTED = ("continuing_subword_prefix", "end_of_word_suffix", "dropout")


def parse_specification(text: str, where: str) -> Specification:
    """解析并检查一份 tokenizer.json，返回它的内容。

    where 是报错时说的文件名；每一种损坏都是 ValueError，写明文件、词元与编号

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
    # 先认种类：不支持的文件，后面几条检查对它没有意义；
    # 再查编号、查合并：后一条检查可以放心使用前一条已保证的东西
    kind = kind_of(specification, where)
    _check_ids(specification, where)
    _check_merges(specification, where)
    if kind == "bpe":
        _check_bytes(specification, where)
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
        keys = [key for key, _ in pairs]
        repeated = next(key for key in result if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} appears twice in one object")
    return result


def kind_of(specification: Specification, where: str = "tokenizer.json") -> str:
    """认出种类："bpe"（字节级）或 "characters"。

    看的是解码方式，而不是模型的名字：GPT-2、Llama 3、Qwen 都是字节级 BPE，一视同仁；
    「直接相接而又没有合并」则是字符级
    错误：别的种类明说不支持；勉强读入，解码出来的空格与字节会是错的

    >>> kind_of({"decoder": {"type": "ByteLevel"}, "model": {"type": "BPE", "vocab": {}}})
    'bpe'
    >>> kind_of({"decoder": {"type": "Metaspace"}, "model": {"type": "Unigram", "vocab": []}})
    Traceback (most recent call last):
    ValueError: tokenizer.json: unsupported tokenizer (model 'Unigram', decoder ['Metaspace']); ...
    """
    model = specification["model"]
    steps = _decoder_steps(specification.get("decoder"))
    for name in UNSUPPORTED:
        if model.get(name):
            raise ValueError(f"{where}: model.{name} = {model[name]!r} is not supported")
    # 很旧的文件不写 type，那时只有 BPE 这一种
    if model.get("type", "BPE") == "BPE" and isinstance(model.get("vocab"), dict):
        if "ByteLevel" in steps:
            return "bpe"
        if steps == ["Fuse"] and not model.get("merges"):
            return "characters"
    raise ValueError(
        f"{where}: unsupported tokenizer (model {model.get('type')!r}, decoder {steps}); "
        "supported: byte-level BPE, as in GPT-2, Llama 3 and Qwen, and the character tokenizers "
        "saved by this project"
    )


def _decoder_steps(decoder: Any) -> list[str]:
    """列出解码的步骤；Sequence 里套着几步，就列出几步。

    >>> _decoder_steps({"type": "Sequence", "decoders": [{"type": "ByteLevel"}, {"type": "Fuse"}]})
    ['ByteLevel', 'Fuse']
    """
    if not isinstance(decoder, dict):
        return []
    parts = decoder.get("decoders")
    if decoder.get("type") == "Sequence" and isinstance(parts, list):
        return [step for part in parts for step in _decoder_steps(part)]
    return [str(decoder.get("type"))]


def added_tokens(specification: Specification, where: str = "tokenizer.json") -> list[Any]:
    """取出 added_tokens：在切片之前就整个认出来的词元，特殊词元都在其中。

    它们不参加合并，所以名字里可以有任何字符；不特殊的那些，用户写出来也会认成一个词元
    """
    entries = specification.get("added_tokens") or []
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise ValueError(f"{where}: added_tokens must be a list of tokens, found {entry!r}")
    return list(entries)


def special_ids(specification: Specification) -> dict[str, int]:
    """特殊词元的名字 → 编号。

    >>> special_ids({"added_tokens": [{"content": "<|end|>", "id": 7, "special": True}]})
    {'<|end|>': 7}
    """
    return {
        entry["content"]: entry["id"]
        for entry in added_tokens(specification)
        if entry.get("special")
    }


def merge_pairs(specification: Specification) -> list[Any]:
    """取出合并表；旧文件写成 "l o"，新文件写成 ["l", "o"]，这里统一成一对。

    >>> merge_pairs({"model": {"merges": ["l o", ["lo", "w"]]}})
    [['l', 'o'], ['lo', 'w']]
    """
    merges = specification["model"].get("merges") or []
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]


def _check_ids(specification: Specification, where: str) -> None:
    """约束 1。重号时库只留下一个词元，另一个从此编不出来，也没有任何提示。

    >>> _check_ids({"model": {"vocab": {"a": 0, "b": 0}}}, "my.json")
    Traceback (most recent call last):
    ValueError: my.json: duplicate id 0, shared by 'a' and 'b'
    >>> _check_ids({"model": {"vocab": {"a": -1}}}, "my.json")
    Traceback (most recent call last):
    ValueError: my.json: the id of token 'a' must be an integer in [0, 2**32), got -1
    """
    entries = [*specification["model"]["vocab"].items()]
    entries += [(entry["content"], entry.get("id")) for entry in added_tokens(specification, where)]
    # 两个方向各记一张表：一张查「一号两词」，一张查「一词两号」
    owner: dict[int, str] = {}
    id_of: dict[str, int] = {}
    for token, token_id in entries:
        # type 而不是 isinstance：JSON 的 true 在 Python 里也是整数 1；库用 32 位存编号
        if type(token_id) is not int or not 0 <= token_id < 2**32:
            raise ValueError(
                f"{where}: the id of token {token!r} must be an integer in [0, 2**32), "
                f"got {token_id!r}"
            )
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

    约束 2 不成立，说明词表与合并表不是同一次训练的：例如手工删过词表

    约束 3 举例：若特殊词元名叫 "lo"，而语料里学到了 l + o，那么用户打出 "low"，
    第一个编号就成了特殊词元；"<|endoftext|>" 不会如此，因为切片规则把它切成了三片

    >>> _check_merges({"model": {"vocab": {"l": 0, "o": 1}, "merges": [["l", "o"]]}}, "my.json")
    Traceback (most recent call last):
    ValueError: my.json: merge 0 ('l' + 'o') names 'lo', which is not among the 2 tokens of ...
    """
    vocabulary = specification["model"]["vocab"]
    special = special_ids(specification)
    # rank 是这条合并在表里的位置，报错时说出它，好在几万行里找到
    for rank, pair in enumerate(merge_pairs(specification)):
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


def _check_bytes(specification: Specification, where: str) -> None:
    """约束 4。没有词元的字节，库编码时直接跳过，解码出来就少了一截。

    用 BpeTrainer 训练而没有给 initial_alphabet，就会得到这样的文件：语料里恰好没有的
    字节都缺着，要等到有人输入了生僻字才出错
    """
    vocabulary = specification["model"]["vocab"]
    missing = [
        f"0x{byte:02X}"
        for byte, symbol in enumerate(byte_symbols())
        if symbol not in vocabulary and byte not in NEVER_IN_UTF8
    ]
    if missing:
        raise ValueError(
            f"{where}: {len(missing)} of 256 bytes have no token ({', '.join(missing[:4])}"
            f"{', …' if len(missing) > 4 else ''}); text with these bytes would be lost"
        )


def token_table(specification: Specification) -> dict[int, bytes]:
    """每个编号代表哪些字节；编号可以有空缺，别人的词表偶有预留。

    公式：bpe 的普通词元逐符号换回字节；其余（字符、特殊词元、加入的词元）就是名字的 UTF-8

    所以普通词元 é 是一个字节 e9，特殊词元 "<é>" 却是 UTF-8 的四个字节：

    >>> entry = {"content": "<é>", "id": 1, "special": True}
    >>> model = {"type": "BPE", "vocab": {"é": 0}}
    >>> parts = {"decoder": {"type": "ByteLevel"}, "model": model, "added_tokens": [entry]}
    >>> {token_id: data.hex(" ") for token_id, data in token_table(parts).items()}
    {0: 'e9', 1: '3c c3 a9 3e'}
    """
    byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    is_bpe = kind_of(specification) == "bpe"
    table: dict[int, bytes] = {}
    for token, token_id in specification["model"]["vocab"].items():
        if is_bpe and all(symbol in byte_of for symbol in token):
            table[token_id] = bytes(byte_of[symbol] for symbol in token)
        else:
            table[token_id] = token.encode("utf-8")
    # 特殊词元往往也列在 vocab 里，同一个编号；它的名字不是符号串，以这里写的为准
    for entry in added_tokens(specification):
        table[entry["id"]] = entry["content"].encode("utf-8")
    return table


def fingerprint_of(specification: Specification) -> str:
    """一句话说明「是不是同一个分词器」：凡影响编号的内容，取 SHA-256。

    数据文件里记着它：编号是旧分词器写的，换了分词器再读就全是乱码，而程序不会自己发现，
    损失只是莫名其妙地高。
    解码方式、截断设置等不影响编号，不算在内；合并的两种写法算同一种：

    >>> old, new = ({"model": {"vocab": {}, "merges": [m]}} for m in ("l o", ["l", "o"]))
    >>> fingerprint_of(old) == fingerprint_of(new)
    True
    >>> fingerprint_of(old) == fingerprint_of({"model": {"vocab": {}, "merges": []}})
    False
    """
    model = specification["model"]
    content = {
        "vocab": model["vocab"],
        "merges": merge_pairs(specification),
        "ignore_merges": bool(model.get("ignore_merges")),
        "added_tokens": [
            [entry["content"], entry["id"], bool(entry.get("special"))]
            for entry in added_tokens(specification)
        ],
        "normalizer": specification.get("normalizer"),
        "pre_tokenizer": specification.get("pre_tokenizer"),
    }
    # 键排序、不留空格：同样的内容只有一种写法（canonical JSON）
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", errors="surrogatepass")).hexdigest()


def demo() -> None:
    """看一份真的 tokenizer.json，再故意弄坏它，看检查说什么。"""
    from tokenization.tokenizer import Tokenizer

    text = Tokenizer.train_bpe(["低头思故乡 低头 low low lower"], 265).to_json()
    good = parse_specification(text, "tokenizer.json")
    table = token_table(good)
    vocabulary = good["model"]["vocab"]
    print("1. 文件里的合并，与它们代表的字节")
    for left, right in merge_pairs(good):
        data = table[vocabulary[left + right]]
        print(f"   {vocabulary[left + right]}：{left} + {right} = 字节 {data.hex(' ')}")
        assert data == table[vocabulary[left]] + table[vocabulary[right]]

    print("2. 弄坏它，每一种都要被发现")
    # 每种损坏都只在原文上改一两处，余下的仍是一份像样的 JSON
    damages = {
        "两个词元同号": text.replace('"a": 65', '"a": 66'),
        "词元写了两次": text.replace('"b": 66', '"a": 66'),
        "合并用到没有的词元": text.replace('"merges": [', '"merges": [["l", "中"],'),
        "特殊词元拼得出来": text.replace('"id": 0', '"id": 257').replace(END_OF_TEXT, "lo", 1),
        "文件不完整": text[: len(text) // 2],
    }
    for name, broken in damages.items():
        try:
            parse_specification(broken, "tokenizer.json")
        except ValueError as error:
            print(f"   {name}：{error}")
        else:
            raise AssertionError(f"{name}: not noticed")

    # 只对调 a 与 b 的编号，其余照旧
    swapped = text.replace('"a": 65', '"a": 66').replace('"b": 66', '"b": 65')
    other = fingerprint_of(parse_specification(swapped, "tokenizer.json"))
    print(f"3. 指纹：{fingerprint_of(good)[:16]}…；对调 a、b 的编号后：{other[:16]}…")
    assert other != fingerprint_of(good)


if __name__ == "__main__":
    run_demo(demo)
