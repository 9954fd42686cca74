r"""一份 tokenizer.json 里写着什么？每个编号代表哪些字节？

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
解码时只用 vocab 的反查与 decoder。几种分词器共用这一种格式，区别在有没有字节这一层：

    种类            vocab 的键          merges          解码
    characters      字符本身            空              首尾相接
    bpe             字节的可见符号串    学到的          每个符号 → 1 字节，再按 UTF-8 解码
    sentencepiece   ▁ 代表空格的字符串  学到的，或没有  ▁ → 空格，<0xE9> → 字节，开头去掉空格

第三种的 model 可以是 BPE（Llama 2、Mistral），也可以是 Unigram（T5、XLM-R）；后者的 vocab 是一列
[词元, 对数概率]，位置就是编号。规则见 `sentence_pieces.py`。

合并表与字节的关系只有一条：$\mathrm{bytes}(ab) = \mathrm{bytes}(a) \Vert \mathrm{bytes}(b)$，
‖ 是首尾相接；所以知道 256 个单字节，就知道全部词元。

文献：https://huggingface.co/docs/tokenizers（格式）。
改哪里：想支持 WordPiece 一类的文件，先在 kind_of 里认出它，
        再在 token_table 里说明它的词元是哪些字节。
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from foundation.demonstration import run_demo
from tokenization.sentence_pieces import Decoding, Opening, decoding_of, piece_bytes
from tokenization.text_pieces import byte_symbols

__all__ = [
    "Specification",
    "added_tokens",
    "decoding_rule",
    "fingerprint_of",
    "kind_of",
    "merge_pairs",
    "opening_of",
    "special_ids",
    "token_names",
    "token_table",
    "vocabulary_of",
]

Specification = dict[str, Any]

# 这些设置会让「合并表 + 字节」不足以决定编号：词首词尾的记号，以及随机丢弃合并（dropout，
# 训练时故意换几种切法，让模型见得多些；同一段文本每次的编号都不同，这里不能要）
UNSUPPORTED = ("continuing_subword_prefix", "end_of_word_suffix", "dropout")


def kind_of(specification: Specification, where: str = "tokenizer.json") -> str:
    """认出种类："bpe"（字节级）、"sentencepiece" 或 "characters"。

    看的是解码方式，而不是模型的名字：GPT-2、Llama 3、Qwen 都是字节级 BPE，一视同仁；
    「直接相接而又没有合并」则是字符级
    错误：别的种类明说不支持；勉强读入，解码出来的空格与字节会是错的

    >>> kind_of({"decoder": {"type": "ByteLevel"}, "model": {"type": "BPE", "vocab": {}}})
    'bpe'
    >>> kind_of({"decoder": {"type": "Metaspace"}, "model": {"type": "Unigram", "vocab": []}})
    'sentencepiece'
    >>> kind_of({"decoder": {"type": "WordPiece"}, "model": {"type": "WordPiece", "vocab": {}}})
    Traceback (most recent call last):
    ValueError: tokenizer.json: unsupported tokenizer (model 'WordPiece', decoder [...]); ...
    """
    model = specification["model"]
    steps = [str(step.get("type")) for step in _decoder_steps(specification.get("decoder"))]
    for name in UNSUPPORTED:
        if model.get(name):
            raise ValueError(f"{where}: model.{name} = {model[name]!r} is not supported")
    # 很旧的文件不写 type，那时只有 BPE 这一种
    is_bpe = model.get("type", "BPE") == "BPE" and isinstance(model.get("vocab"), dict)
    # 词表的样子也要对：Unigram 是一列，BPE 是一张表
    is_unigram = model.get("type") == "Unigram" and isinstance(model.get("vocab"), list)
    if is_bpe and "ByteLevel" in steps:
        return "bpe"
    if is_bpe and steps == ["Fuse"] and not model.get("merges"):
        return "characters"
    if (is_bpe or is_unigram) and decoding_rule(specification) is not None:
        return "sentencepiece"
    raise ValueError(
        f"{where}: unsupported tokenizer (model {model.get('type')!r}, decoder {steps}); "
        "supported: byte-level BPE, as in GPT-2, Llama 3 and Qwen; BPE and Unigram of "
        "SentencePiece, as in Llama 2, Mistral and T5; the character tokenizers of this project"
    )


def _decoder_steps(decoder: Any) -> list[dict[str, Any]]:
    """列出解码的步骤；Sequence 里套着几步，就列出几步。

    每一步是一个部件：type 是它的名字，别的键是它的设置

    >>> _decoder_steps({"type": "Sequence", "decoders": [{"type": "ByteLevel"}, {"type": "Fuse"}]})
    [{'type': 'ByteLevel'}, {'type': 'Fuse'}]
    """
    if not isinstance(decoder, dict):
        return []
    parts = decoder.get("decoders")
    if decoder.get("type") == "Sequence" and isinstance(parts, list):
        return [step for part in parts for step in _decoder_steps(part)]
    return [decoder]


def decoding_rule(specification: Specification) -> Decoding | None:
    """SentencePiece 一类的解码规则；别的种类是 None。

    字节级与字符级的没有规则可言：前者查符号表，后者首尾相接
    """
    return decoding_of(_decoder_steps(specification.get("decoder")))


def vocabulary_of(specification: Specification, where: str = "tokenizer.json") -> dict[str, int]:
    """词元 → 编号。Unigram 的词表是一列 [词元, 对数概率]，位置就是编号。

    错误：一项不是 [词元, 有限的数]，或同一个词元列了两次 → ValueError

    >>> vocabulary_of({"model": {"vocab": [["<unk>", 0.0], ["▁the", -2.5]]}})
    {'<unk>': 0, '▁the': 1}
    """
    vocab = specification["model"]["vocab"]
    if isinstance(vocab, dict):
        return vocab
    table: dict[str, int] = {}
    for index, entry in enumerate(vocab):
        # JSON 的数可以是整数；true 不是数，NaN 与无穷大排不了高低
        good = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
        if not good or type(entry[1]) not in (int, float) or not math.isfinite(entry[1]):
            raise ValueError(
                f"{where}: entry {index} of the vocabulary must be a token and its "
                f"log-probability, got {entry!r}"
            )
        if table.setdefault(entry[0], index) != index:
            first = table[entry[0]]
            raise ValueError(f"{where}: token {entry[0]!r} has two ids, {first} and {index}")
    return table


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


def merge_pairs(specification: Specification, where: str = "tokenizer.json") -> list[Any]:
    """取出合并表；旧文件写成 "l o"，新文件写成 ["l", "o"]，这里统一成一对。

    >>> merge_pairs({"model": {"merges": ["l o", ["lo", "w"]]}})
    [['l', 'o'], ['lo', 'w']]
    """
    merges = specification["model"].get("merges") or []
    if not isinstance(merges, list):
        raise ValueError(f"{where}: model.merges must be a list, got {merges!r}")
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]


def token_table(specification: Specification) -> dict[int, bytes]:
    """每个编号代表哪些字节；编号可以有空缺，别人的词表偶有预留。

    公式：bpe 的普通词元逐符号换回字节；sentencepiece 见 piece_bytes；
          其余（字符、特殊词元、加入的词元）就是名字的 UTF-8

    所以普通词元 é 是一个字节 e9，特殊词元 "<é>" 却是 UTF-8 的四个字节：

    >>> entry = {"content": "<é>", "id": 1, "special": True}
    >>> model = {"type": "BPE", "vocab": {"é": 0}}
    >>> parts = {"decoder": {"type": "ByteLevel"}, "model": model, "added_tokens": [entry]}
    >>> {token_id: data.hex(" ") for token_id, data in token_table(parts).items()}
    {0: 'e9', 1: '3c c3 a9 3e'}
    """
    byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    kind = kind_of(specification)
    is_bpe, rule = kind == "bpe", decoding_rule(specification)
    if kind == "sentencepiece" and rule is not None:
        return {i: piece_bytes(name, rule) for i, name in token_names(specification).items()}
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


def token_names(specification: Specification) -> dict[int, str]:
    """每个编号在文件里的写法；加入的词元以 added_tokens 里写的为准。"""
    names = {token_id: token for token, token_id in vocabulary_of(specification).items()}
    return names | {entry["id"]: entry["content"] for entry in added_tokens(specification)}


def opening_of(specification: Specification) -> Opening:
    """全文开头的特别之处；只有 sentencepiece 有，别的种类什么也不特别。

    >>> metaspace = {"type": "Metaspace", "prepend_scheme": "always"}
    >>> model = {"type": "Unigram", "vocab": [["▁the", -1.0], ["s", -2.0]]}
    >>> opening_of({"decoder": metaspace, "model": model})
    Opening(first={0: b'the'}, strip=False)
    """
    rule = decoding_rule(specification)
    if kind_of(specification) != "sentencepiece" or rule is None:
        return Opening({}, False)
    first = {
        i: piece_bytes(name, rule, first=True)
        for i, name in token_names(specification).items()
        # 没有 ▁ 的词元，放在哪里都一样
        if rule.first == "drop" and rule.symbol in name
    }
    return Opening(first, rule.first == "strip")


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
            # 吃掉左右空格之类的开关，写明了才算：没有的文件，指纹与从前一样
            + [flag for flag in ("lstrip", "rstrip", "single_word") if entry.get(flag)]
            for entry in added_tokens(specification)
        ],
        "normalizer": specification.get("normalizer"),
        "pre_tokenizer": specification.get("pre_tokenizer"),
    }
    # 别的种类的编号还取决于这几样
    if decoding_rule(specification) is not None:
        names = ("type", "unk_id", "unk_token", "fuse_unk", "byte_fallback")
        content["model"] = [model.get(name) for name in names]
    # 键排序、不留空格：同样的内容只有一种写法（canonical JSON）
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", errors="surrogatepass")).hexdigest()


def demo() -> None:
    """看一份真的 tokenizer.json：每条合并是哪些字节，指纹认不认得出改动。"""
    from tokenization.tokenizer import Tokenizer

    text = Tokenizer.train_bpe(["低头思故乡 低头 low low lower"], 265).to_json()
    specification = json.loads(text)
    table = token_table(specification)
    vocabulary = specification["model"]["vocab"]
    print(f"1. 种类 {kind_of(specification)}，{len(table)} 个词元；文件里的合并与它们代表的字节")
    for left, right in merge_pairs(specification):
        data = table[vocabulary[left + right]]
        shown = data.decode("utf-8", errors="replace").replace(" ", "␣")
        print(f"   {vocabulary[left + right]}：{left} + {right} = 字节 {data.hex(' ')} = {shown}")
        # 一条合并，就是两段字节首尾相接
        assert data == table[vocabulary[left]] + table[vocabulary[right]]

    # 只对调 a 与 b 的编号，其余照旧
    swapped = json.loads(text)
    swapped["model"]["vocab"].update({"a": vocabulary["b"], "b": vocabulary["a"]})
    ours, other = fingerprint_of(specification), fingerprint_of(swapped)
    print(f"2. 指纹：{ours[:16]}…；对调 a、b 的编号之后：{other[:16]}…")
    assert ours != other

    # 只改不影响编号的部分：换一种截断设置
    cut = {**specification, "truncation": {"max_length": 8}}
    print(f"   只改截断设置：{fingerprint_of(cut)[:16]}…，还是同一个")
    assert fingerprint_of(cut) == ours


if __name__ == "__main__":
    run_demo(demo)
