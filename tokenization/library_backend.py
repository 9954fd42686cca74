r"""快的那一份：把 `bpe.py` 写出来的算法交给 `tokenizers` 库，结果怎样保证一模一样？

库用 Rust 写成、多线程，快几倍到几十倍；它由几个可更换的部件串成，每个部件对应课文的一步：

    文本 ──▶ pre_tokenizer ──▶ model ──▶ 编号 ──▶ decoder ──▶ 文本
             Split(SPLIT_PATTERN)   BPE           ByteLevel
             ByteLevel              (合并表)      (符号 → 字节 → UTF-8)

    课文（bpe.py）                          库里的部件
    split_text：正则切片                    pre_tokenizers.Split(..., "isolated")
    to_byte_ids：字节 → 编号                pre_tokenizers.ByteLevel，字节写成可见符号
    BASE_BYTES：单字节先入表                trainers.BpeTrainer(initial_alphabet=…)
    learn_merges：并列时编号小者优先        trainers.BpeTrainer（库也如此约定）
    encode_piece：按先后重放合并            models.BPE

切片规则也可以换成别家的（`split_rules.py`）；课文只写了自己的那一条。

字符级分词器是同一条流水线去掉字节层与全部合并：$\text{merges} = \varnothing$，
每个字符自成一个词元，所以不必另写一种格式。

部件有几处默认行为会悄悄改变结果，这里一一关掉：句首自动补空格（add_prefix_space）、
自带的第二次切片（use_regex）、按长度截断与补齐（truncation, padding）、进度条。

文献：https://huggingface.co/docs/tokenizers（部件的含义）。
改哪里：想先统一全角半角再编码，给 library.normalizer 一个部件，但此后解码不再等于原文；
        想学更短的词元，给 BpeTrainer 加 max_token_length，课文里的 PairTable 也要跟着改。
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from foundation.checks import check_choice
from tokenization.input_checks import check_special_tokens, check_vocab_size, checked_texts
from tokenization.split_rules import LONGEST_LEARNED, OWN, SPLITS, SplitRule
from tokenization.text_pieces import byte_symbols

__all__ = ["build_characters", "open_library", "split_parts", "train_byte_level_bpe"]


def build_characters(texts: Iterable[str], special_tokens: Sequence[str]) -> str:
    """收集文本里的字符，写成 tokenizer.json 的内容。

    编号：特殊词元在前，字符按码位排在后；与文本的先后无关，所以可以重现
    错误：一个字符也没有时抛 ValueError，空词表什么也编码不了
    """
    names = check_special_tokens(special_tokens)
    alphabet: set[str] = set()
    for text in checked_texts(texts):
        alphabet.update(text)
    if not alphabet:
        raise ValueError("texts hold no character: there is nothing to build a vocabulary from")
    vocabulary = {token: index for index, token in enumerate([*names, *sorted(alphabet)])}
    # 没有切片部件：整段文本是一片，而没有合并时，片的长短不影响速度
    library = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    library.decoder = decoders.Fuse()  # 首尾相接；不设的话，库会在词元之间加空格
    library.add_special_tokens(names)
    return str(library.to_str(pretty=True))


def split_parts(rule: SplitRule, longest: int | None = None) -> Any:
    """一条切片规则 → 库的部件；longest：更长的片在这里截断（只在学的时候用）。

    各步依次做：后一步在前一步切出的片里再切
    """
    parts: list[Any] = []
    for step in rule.steps:
        # isolated：匹配到的各自成片，没匹配到的也保留，一个字符都不丢
        if step["type"] == "Split":
            pattern = tokenizers.Regex(step["pattern"]["Regex"])
            parts.append(pre_tokenizers.Split(pattern, "isolated"))
        # 数字一位一片
        elif step["type"] == "Digits":
            parts.append(pre_tokenizers.Digits(individual_digits=step["individual_digits"]))
        # 最后一步总是它：字节写成可见符号；GPT-2 的切法就在它里面
        else:
            use_regex = step["use_regex"]
            parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex))
    if longest is not None:
        # 排在最后：这时一个字节一个符号，截在半个汉字处也无妨，只是少数几次
        pattern = tokenizers.Regex(rf"[\s\S]{{1,{longest}}}")
        parts.append(pre_tokenizers.Split(pattern, "isolated"))
    return pre_tokenizers.Sequence(parts)


def train_byte_level_bpe(
    texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str], split: str = OWN
) -> str:
    """训练字节级 BPE，写成 tokenizer.json 的内容；split 是切片规则的名字，见 split_rules.py。

    结果只取决于语料与参数：库并行地数次数，但挑选合并时比较的是次数与编号，与线程无关
    """
    names = check_special_tokens(special_tokens)
    check_vocab_size(vocab_size, len(names))
    rule = SPLITS[check_choice("split", split, SPLITS)]
    library = tokenizers.Tokenizer(models.BPE())
    # ① 切片，再把每片的字节换成可见符号；次序不能反，规则认的是原来的字符
    #    自己的规则每片有上限；别家的没有，学的时候另外截短
    library.pre_tokenizer = split_parts(rule, None if split == OWN else LONGEST_LEARNED)
    library.decoder = decoders.ByteLevel()
    # ② 256 个字节无条件入表：语料里没有的字节，将来也编码得了
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=names,
        initial_alphabet=byte_symbols(),
        show_progress=False,
    )
    # ③ 边读边学：库一次只取一小批文本，语料不必全在内存里
    library.train_from_iterator(checked_texts(texts), trainer)
    # ④ 写进文件的是规则本身；截短只是为了学得快
    library.pre_tokenizer = split_parts(rule)
    library.model.ignore_merges = rule.ignore_merges
    return str(library.to_str(pretty=True))


def open_library(json_text: str, where: str, *, special_as_text: bool) -> Any:
    """由 tokenizer.json 的内容造出库对象。

    special_as_text：把特殊词元的名字当普通文字编码。它是对象上的开关，所以两种用法各造
    一个对象；同一个对象来回拨，多线程下一个线程会用到另一个线程的设置
    错误：库拒绝的内容，改说成 ValueError，带上文件名
    """
    try:
        library = tokenizers.Tokenizer.from_str(json_text)
    except Exception as error:  # 库对一切问题都抛裸的 Exception
        raise ValueError(f"{where}: the tokenizers library refuses it: {error}") from None
    library.encode_special_tokens = special_as_text
    # 别人的文件里常留着截断的设置：不去掉，长文本会被悄悄截短，解码就少了后半段
    library.no_truncation()
    library.no_padding()
    return library


def _keep_forks_serial() -> None:
    """用过多线程的进程再 fork，子进程里那些线程已不存在，等它们就会永远卡住。

    所以声明「子进程里单线程」，父进程照旧。这句话要赶在 fork 之前说：旧版的库在 fork 的
    一瞬间查看它，没有就往屏幕上打印一段警告
    """
    name = "TOKENIZERS_PARALLELISM"
    ours: list[str] = []  # 非空：此变量是我们设的，父进程要恢复原样

    def before() -> None:
        if name not in os.environ:
            os.environ[name] = "false"
            ours.append(name)

    def after_in_parent() -> None:
        while ours:
            os.environ.pop(ours.pop(), None)

    def after_in_child() -> None:
        # 用户即使设成了 true，在子进程里也只会卡住
        os.environ[name] = "false"
        ours.clear()

    os.register_at_fork(
        before=before, after_in_parent=after_in_parent, after_in_child=after_in_child
    )


if hasattr(os, "register_at_fork"):  # Windows 没有 fork，也就没有这个问题
    _keep_forks_serial()
