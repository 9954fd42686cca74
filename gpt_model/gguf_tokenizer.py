r"""分词器怎样写进 GGUF？——词元表、合并表都照抄，最要紧的一样却只能写一个名字：切片规则。

GGUF 里分词器是几个键，与权重在同一个文件里：

    tokenizer.ggml.model         "gpt2"：字节级 BPE            "none"：没有分词器，只认编号
    tokenizer.ggml.pre           切片规则的名字，例如 "qwen2"
    tokenizer.ggml.tokens        编号 → 词元；长度就是词表的行数，一个不能缺
    tokenizer.ggml.token_type    1 普通  3 控制（特殊词元）  4 用户定义  5 不用的
    tokenizer.ggml.merges        "l o"、"lo w"……次序就是优先级
    tokenizer.ggml.eos_token_id  写到哪个编号就停；对话模型的是「这一轮说完了」
    tokenizer.chat_template      对话怎样排成一段文本，Jinja 写的；基座模型没有

为什么切片规则只是一个名字：BPE 先用正则把文本切成小片，再在片内合并。正则没有写进文件，而是
编译在 llama.cpp 里，文件只说用第几号。于是只有它认得的规则才能导出：

    文本 ──切片（按 pre 的名字，写死在 llama.cpp 里）──▶ 小片 ──合并（照文件）──▶ 编号

规则不同而名字照填，不会报错，编号却不同：模型训练时见的是一种切法，用时见的是另一种。
学分词器时可以就选它认得的规则（`tokenization/split_rules.py`），导出便一个字不差。
本书自己的规则（`text_pieces.py` 的 SPLIT_PATTERN）不在它认得的之列，所以默认拒绝；
写明 pretokenizer="llama-bpe"（最像的一种），就是同意它近似地切：解码仍是逐字节准确的，
切法在缩进、数字、长串标点处不同，英文约一成词元、代码约两成与训练时不同。

字符级分词器没有片也没有合并：把每个字符都标成「用户定义」，llama.cpp 会先把它们从文本里逐个认出来，
正好一个字符一个编号。词表里没有的字符，它悄悄丢掉，或当成 é 一类的字母（我们的 Tokenizer 则报错）。

两个默认值是陷阱：不写 eos，它就当 11 号词元是结尾；合并表一条也没有，它拒绝载入。前者我们拒绝，
后者写一条永远用不上的。

常见疑问：
    为什么特殊词元是「控制」？ llama.cpp 只在调用者要求时才从文字里认它们，与我们的 encode 相同；
        「用户定义」的（added_tokens 里不特殊的）则总是认，也与我们相同。
    add_bos_token 从哪来？ tokenizer.json 的 post_processor：Llama 3 规定每段开头加一个。
        我们的 encode 从不自动加，llama.cpp 会加，所以如实写进去。
    对话模型有两个结尾怎么办？ 设置里的 eos_token（例如 <|im_end|>）写作 eos，因为模板要用它的
        文字；「文章结束」写作 eot，llama.cpp 遇到哪一个都停，与我们的 stop_ids 相同。
    词表比分词器大？ 多出来的行也要有名字，写 [PADn]，种类 5。
    怎么知道名字没有填错？ 不靠人填：拿 tokenizer.json 里的规则与表里的逐字比，一样才写那个名字；
        改了一个字的正则就不是它，宁可拒绝。
    SentencePiece 的（Llama 2、Mistral、Gemma）呢？ 它们在 GGUF 里是另一个 model（"llama"），要写
        每个词元的分数；目前没有写，所以拒绝，可以不带分词器导出，由本书的 Tokenizer 编号。
    合并表很大，会不会慢？ 几十万条只是几兆字节的文字，载入时读一遍。
    解码会不会也不同？ 不会：词元的字节都照抄了，编号对应的文字总是同一段；
        不同的只是同一段文字被切成哪些编号，而模型训练时见惯的是另一种切法。

出处：llama.cpp 的 llama-vocab.cpp；https://github.com/ggml-org/ggml 的 docs/gguf.md。
改哪里：多认一种切片规则 → tokenization/split_rules.py 的 SPLITS 加一项。
"""

from __future__ import annotations

import json
from typing import Any

from foundation.checks import check_choice
from foundation.demonstration import run_demo
from tokenization.split_rules import OWN, SPLITS
from tokenization.tokenizer import Tokenizer
from tokenization.tokenizer_file import Specification, added_tokens, merge_pairs

__all__ = ["KNOWN_SPLITS", "NO_TOKENIZER", "split_name", "tokenizer_metadata"]

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # token_type 的取值
NO_TOKENIZER = {"tokenizer.ggml.model": "none"}  # 只认编号；词表的大小在 架构.vocab_size
# 合并表不许为空；字节写成的符号里没有汉字，所以这一条永远用不上
IDLE_MERGE = "一 一"


def tokenizer_metadata(
    tokenizer: Tokenizer, vocab_size: int, pretokenizer: str | None = None
) -> dict[str, Any]:
    """一个 Tokenizer 的全部 tokenizer.ggml.* 键；vocab_size 是模型词表的行数。

    参数：pretokenizer 指定切片规则的名字，用于 llama.cpp 不认得的规则：编号只是近似
    错误：规则不认得、有改写文本的步骤、没有「文章结束」、词元带有它没有的属性 → ValueError
    """
    # 拼错的名字，llama.cpp 要到载入时才说，这里就拦住
    if pretokenizer is not None:
        check_choice("pretokenizer", pretokenizer, KNOWN_SPLITS)
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, "
            f"but the model's vocab_size is {vocab_size}"
        )
    specification = json.loads(tokenizer.to_json())
    refuse_what_llama_lacks(specification, tokenizer.kind)
    # 原文件的内容，已由 Tokenizer 检查过：编号不重、合并不缺
    # ① 词元与种类：先全部当作空缺，再填上有的
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [UNUSED] * vocab_size
    plain = NORMAL if tokenizer.kind == "bpe" else USER_DEFINED
    for token, i in specification["model"]["vocab"].items():
        tokens[i], types[i] = token, plain
    for entry in added_tokens(specification):  # 特殊词元往往也在 vocab 里，以这里为准
        tokens[entry["id"]] = entry["content"]
        types[entry["id"]] = CONTROL if entry.get("special") else USER_DEFINED
    # 重名会让 llama.cpp 当场中止，而不是报错；
    # 空缺的填了 [PADn]，万一真有词元叫这个名字，就会重
    if len(set(tokens)) < vocab_size:
        raise ValueError("the vocabulary has a token named like a filler, [PADn]; rename it")
    # ② 合并与切片
    #    次序不能动：排在前面的先合并
    #    字节的可见符号里没有空格，所以用空格隔开两半不会有歧义
    merges = [" ".join(pair) for pair in merge_pairs(specification)]
    #    字符级没有片可切，写哪个名字都一样
    name = "gpt-2" if tokenizer.kind == "characters" else pretokenizer or split_name(specification)
    # ③ 开头与结尾的编号，与对话模板
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges or [IDLE_MERGE],
        "tokenizer.ggml.add_space_prefix": False,
        **ends_metadata(specification, tokenizer),
        **chat_metadata(tokenizer),
    }


def ends_metadata(specification: Specification, tokenizer: Tokenizer) -> dict[str, Any]:
    """哪个编号是开头、哪个是结尾，要不要自动加。

    依次找：post_processor 加的、设置（tokenizer_config.json）写明的、「文章结束」
    错误：没有结尾 → ValueError；不写的话，它的默认值会把一个普通词元当成结尾
    """
    # 设置里写的是词元的文字，先换成编号；没有写明的就不在 named 里
    added = {entry["content"]: entry["id"] for entry in added_tokens(specification)}
    ids = {**specification["model"]["vocab"], **added}
    named = {name: ids.get(token) for name, token in tokenizer.settings.tokens.items()}
    # ① 结尾：0 也是编号，所以不能写 or
    end = tokenizer.end_id if named.get("eos_token") is None else named["eos_token"]
    if end is None:
        raise ValueError(
            "the tokenizer has no end-of-text token, and llama.cpp would take token 11 for it; "
            "export without the tokenizer, or add one such as '<|endoftext|>'"
        )
    #    自动加在末尾的只能是它
    first, last = template_ends(specification, end)
    # ② 开头：一个都没有时，照 GPT-2 的惯例与「文章结束」共用，只是不自动加
    starts = (first, named.get("bos_token"), tokenizer.end_id, end)
    values = {
        "bos_token_id": next(i for i in starts if i is not None),
        "eos_token_id": end,
        "add_bos_token": first is not None,
        "add_eos_token": last is not None,
    }
    # ③ 两个结尾：另一个写作 eot，遇到它也停
    if tokenizer.end_id not in (None, end):
        values["eot_token_id"] = tokenizer.end_id
    return {f"tokenizer.ggml.{name}": value for name, value in values.items()}


def chat_metadata(tokenizer: Tokenizer) -> dict[str, Any]:
    """对话模板：照抄，不运行；别的用途的（tool_use）各有一个键。

    键名：tokenizer.chat_template，tokenizer.chat_template.tool_use；
         有后一种时，还要一个 tokenizer.chat_templates 列出名字
    """
    # 没有模板的（基座模型）什么键也不写
    values: dict[str, Any] = {}
    others = [name for name in tokenizer.settings.templates if name != "default"]
    for name, template in tokenizer.settings.templates.items():
        # 「default」是平时用的那一个，键里不带名字
        key = "tokenizer.chat_template" + ("" if name == "default" else f".{name}")
        values[key] = template
    return {**values, "tokenizer.chat_templates": others} if others else values


def refuse_what_llama_lacks(specification: Specification, kind: str) -> None:
    """文件里有、而 llama.cpp 没有的东西：装不下就说，不要悄悄丢掉。

    次序：先种类，后面几条是对这两种说的
    例外：NFC（把 e + ´ 写成 é）只影响分开写的重音，所有 Qwen 的 GGUF 都不做，这里也不拦
    """
    # ① 别的种类（例如 SentencePiece 一类）有另一套规则，不能照字节级的写
    if kind not in ("bpe", "characters"):
        raise ValueError(
            f"tokenizers of kind {kind!r} cannot be exported to GGUF yet, only 'bpe' (byte-level) "
            "and 'characters'; export without the tokenizer"
        )
    # ② 切片之前改写文本的步骤
    normalizer = specification.get("normalizer")
    if normalizer is not None and normalizer.get("type") != "NFC":
        raise ValueError(
            f"GGUF cannot express the tokenizer's normalizer {normalizer.get('type')!r}; "
            "only none or NFC can be exported"
        )
    # ③ 认词元时吞掉左右空格之类的特例
    for entry in added_tokens(specification):
        for flag in ("lstrip", "rstrip", "single_word"):
            if entry.get(flag):
                raise ValueError(
                    f"GGUF cannot express {flag}=true of the token {entry['content']!r}"
                )
    #    特殊词元几乎都没有这些，除了 RoBERTa 一类的 <mask>


def split_name(specification: Specification) -> str:
    """这份 tokenizer.json 的切片规则，llama.cpp 叫什么。

    错误：不认得，或 ignore_merges 与那个名字规定的不同 → ValueError，列出认得的
    """
    # 比较的是规则本身，而不是模型的名字：改了一个字的正则就不是它
    # 先摊平：Sequence 套 Sequence 也是同样的几步
    steps = split_steps(specification.get("pre_tokenizer"))
    ignores = bool(specification["model"].get("ignore_merges"))
    for name, known in KNOWN_SPLITS.items():
        if steps == known:
            # 开关不同，整片恰是词元时两边就不同：编号不全错，最难发现
            wanted = SPLITS[name].ignore_merges
            if ignores != wanted:
                raise ValueError(
                    f"llama.cpp's pre-tokenizer {name!r} has ignore_merges={wanted}, "
                    f"the tokenizer {ignores}"
                )
            return name
    # 说清两条出路：近似，或不带分词器
    raise ValueError(
        "llama.cpp does not know this tokenizer's way of splitting text (its pre_tokenizer); it "
        f"knows {', '.join(KNOWN_SPLITS)}. Name one of them as pretokenizer to split nearly "
        "alike (some token ids will differ from training; llama-bpe is the nearest to this "
        "project's own), or export without the tokenizer; for a new model, learn a tokenizer with "
        "one of them: fromzero train --tokenizer bpe:llama-bpe"
    )


def split_steps(pre_tokenizer: Any) -> list[tuple[Any, ...]]:
    """把 pre_tokenizer 摊平成几步，每步只留影响切法的设置。

    >>> split_steps({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True})
    [('ByteLevel', False, True)]
    """
    if not isinstance(pre_tokenizer, dict):  # 没有切片：null
        return []
    kind = pre_tokenizer.get("type")
    if kind == "Sequence":
        parts = pre_tokenizer.get("pretokenizers") or []
        return [step for part in parts for step in split_steps(part)]
    if kind == "ByteLevel":  # 旧文件不写 use_regex，那时总是用
        prefix, regex = pre_tokenizer.get("add_prefix_space"), pre_tokenizer.get("use_regex", True)
        return [(kind, prefix, regex)]
    # 按正则切开；Isolated 是「匹配到的自成一片」
    if kind == "Split":
        pattern = (pre_tokenizer.get("pattern") or {}).get("Regex")
        return [(kind, pattern, pre_tokenizer.get("behavior"), pre_tokenizer.get("invert"))]
    if kind == "Digits":
        return [(kind, pre_tokenizer.get("individual_digits"))]
    return [(kind,)]  # 别的种类都不在表里，自然对不上


# 名字 → 摊平的各步；规则本身在 split_rules.py，学分词器时也用它
# 自己的规则（own）不在其中：llama.cpp 没有它，写哪个名字都是假的
# 表里每一种都由 tests/parity 让 llama.cpp 逐字核对过编号
KNOWN_SPLITS = {
    name: split_steps({"type": "Sequence", "pretokenizers": rule.steps})
    for name, rule in SPLITS.items()
    if name != OWN
}


def template_ends(specification: Specification, end: int) -> tuple[int | None, int | None]:
    """文件规定的开头与结尾词元（Llama 3 每段开头加一个）；没有就是 None。

    我们的 encode 从不自动加，由调用者决定；llama.cpp 照文件加，所以要如实写进去
    错误：一头要加好几个，末尾加的不是「文章结束」，或不是 TemplateProcessing → ValueError
    """
    processor = specification.get("post_processor") or {}
    parts = processor.get("processors") if processor.get("type") == "Sequence" else [processor]
    # ByteLevel 只管偏移量，不加词元
    parts = [part for part in parts or [] if part.get("type") not in (None, "ByteLevel")]
    if not parts:  # GPT-2、Qwen、本书的都是这样
        return None, None
    # 别的种类（例如 RoBERTa 的）加的是成对的记号，GGUF 写不下
    kinds = [part.get("type") for part in parts]
    if kinds != ["TemplateProcessing"]:
        raise ValueError(f"GGUF cannot express the tokenizer's post_processor {kinds}")
    # single 是一段文字的模板，pair 是两段的，用不着
    # 形如 [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]
    template = parts[0]["single"]
    where = next(i for i, piece in enumerate(template) if "Sequence" in piece)
    # 词元的编号在另一张表里；一个名字可以对应几个编号
    ids = {name: token["ids"] for name, token in parts[0]["special_tokens"].items()}
    before, after = (
        [i for piece in side for i in ids[piece["SpecialToken"]["id"]]]
        for side in (template[:where], template[where + 1 :])
    )
    if len(before) > 1 or after not in ([], [end]):
        raise ValueError(
            "GGUF can add one token before a text and the end-of-text token after it; "
            f"the tokenizer's post_processor adds {before} before and {after} after"
        )
    return (before[0] if before else None), (end if after else None)


def demo() -> None:
    """两种分词器写进去的键；本书的切法要明说才导出。"""
    text = ["举头望明月，低头思故乡。low low lower"] * 2
    bpe, characters = Tokenizer.train_bpe(text, 270), Tokenizer.characters(text)
    # 本书的切法，llama.cpp 没有
    try:
        tokenizer_metadata(bpe, 270)
        raise AssertionError("an unknown split rule was accepted")
    except ValueError as error:
        print("① 默认拒绝：", error)
    # 解码不受影响，每个词元的字节都照抄了。
    # 模型的词表常常向上取整到 64 的倍数，多出来的行也要有名字
    # 名字是给 llama.cpp 的承诺：它就照这个切
    values = tokenizer_metadata(bpe, 272, pretokenizer="llama-bpe")
    print("② 同意近似：")
    for key, value in values.items():
        shown = f"{value[:2]} … {value[-2:]}" if isinstance(value, list) else value
        print(f"   {key:<34}{shown}")
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == 272
    assert tokens[-1] == "[PAD271]"
    assert (types[0], types[1], types[-1]) == (CONTROL, NORMAL, UNUSED)

    # 除了特殊词元，全是「用户定义」：llama.cpp 先从文本里逐个认出它们，
    # 剩下认不出的才交给 BPE，而那里一条合并也用不上
    values = tokenizer_metadata(characters, characters.vocab_size)
    print(
        "③ 字符级：", values["tokenizer.ggml.tokens"][:4], values["tokenizer.ggml.token_type"][:4]
    )
    assert values["tokenizer.ggml.merges"] == [IDLE_MERGE]


if __name__ == "__main__":
    run_demo(demo)
