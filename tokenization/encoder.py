r"""同一段文本，为什么有好几种编法？每一种都只造一个库对象，各管各的开关。

    文中的 <|endoftext|>      算文字（用户写的）          算特殊词元（程序拼的模板）
    开头                      补一个空格                  不补：接着前文（continued）
    两头                      什么也不加                  照文件加上 <s> 之类（add_special）

前两项是库对象上的开关。来回拨它，多线程时一个线程会用到另一个线程的设置，所以各造一个对象，
造好之后不再改：

    plain     特殊词元的名字算文字；绝大多数时候用它，所以一开始就造。有的模型直接在词表里找，
              名字一样就选中了，所以给特殊词元换一个谁也猜不到的化名
    special   名字算特殊词元；用到时再造
    两个 continued 版：同上，只是把「开头补空格」的部件去掉

接着前文的一段，遇到特殊词元之后又是新的一段。有的分词器每一段的开头都补空格（Llama 2），于是

$$\mathrm{ids} = \underbrace{E_{\text{不补}}(x_{<k})}_{\text{接着前文的}} \Vert
\underbrace{E_{\text{补}}(x_{\ge k})}_{\text{从第一个特殊词元 } k \text{ 起}}$$

    " answer</s><s>[INST] hi"
    └ 不补 ┘└──── 照常 ────┘

常见疑问：
    造一个库对象要多久？      词表五万，约半秒；十五万，一秒多。所以用到时才造，造好就留着。
    encode_batch 为什么快？   库把许多段分给所有的核；我们只交出一列文本，拿回一列编号。
    语料很大时呢？            编号保证相同的，换一个更快的库：见 `fast_encoder.py`。
    fork 之后呢？             见 `library_backend.py`。
    两头的 <s> 为什么不总加？  训练时文章之间放什么由我们定；只有续写别人的模型时才照它的规矩加。

文献：https://huggingface.co/docs/tokenizers（encode_special_tokens、post_processor）。
改哪里：换一个库来编码 → Encoder.encode，别处都不必知道。
"""

from __future__ import annotations

import json
import re
import secrets
from functools import cached_property
from typing import Any, NamedTuple

from foundation.demonstration import run_demo
from tokenization.fast_encoder import FastEncoder
from tokenization.library_backend import open_library
from tokenization.sentence_pieces import without_prefix
from tokenization.tokenizer_file import (
    Specification,
    added_tokens,
    special_ids,
    vocabulary_of,
)

__all__ = ["WORTH_IT", "Encoder"]

# 编码过这么多字符，才值得花零点几秒核对词表、造快路
WORTH_IT = 1 << 21


class Continuing(NamedTuple):
    """接着前文编码用的：两个不补空格的库对象，与「从哪里起又算开头」。

    restart 找的是加入的词元的名字；特殊词元的名字算文字时，它们不在内
    prepend_scheme 为 first 的，全文只有一个开头，restart 是空的
    """

    plain: Any
    special: Any
    restart: dict[bool, re.Pattern[str]]  # 键是 allow_special；空的：再也不算开头


class Encoder:
    """文本 → 编号，各种编法；参数已由 Tokenizer 查过。

    造好之后不再改变，所以可以同时给许多线程用；没有状态，同样的文本总得同样的编号

    >>> from tokenization.tokenizer import Tokenizer
    >>> tokenizer = Tokenizer.characters(["ab"])
    >>> encoder = Encoder(parse(tokenizer.to_json()), tokenizer.to_json(), "here")
    >>> encoder.encode(["ab", "b"])
    [[1, 2], [2]]
    """

    def __init__(self, specification: Specification, json_text: str, where: str) -> None:
        self.specification, self.json_text, self.where = specification, json_text, where
        self.aliases = aliases_of(specification)
        self.plain = self._open_plain(specification)
        self.seen = 0  # 编码过多少字符；多线程时数不准也无妨

    def _open_plain(self, specification: Specification) -> Any:
        # 原来那份不必重写：几兆字节的 JSON，省一遍是一遍
        text = self.json_text if specification is self.specification else None
        # 有化名的，先换名字再写
        if self.aliases:
            text = json.dumps(renamed(specification, self.aliases))
        text = text or json.dumps(specification, ensure_ascii=False)
        return open_library(text, self.where, special_as_text=True)

    def vocabulary(self) -> dict[str, int]:
        """库真正使用的词表，加入的词元也在内；化名换回本名。

        与文件里写的逐个比较，就知道库有没有另排编号
        """
        # 化名只在库里，出了这个门就用本名
        names = {alias: name for name, alias in self.aliases.items()}
        found = self.plain.get_vocab(with_added_tokens=True)
        return {names.get(token, token): token_id for token, token_id in found.items()}

    @cached_property
    def special(self) -> Any:
        """特殊词元的名字算特殊词元的那一个。"""
        return open_library(self.json_text, self.where, special_as_text=False)

    @cached_property
    def continuing(self) -> Continuing | None:
        """接着前文用的；本来就不补空格的分词器是 None，照常编码就对。

        字节级的多半是 None：它们把空格当成后面那个词的一部分，开头什么也不补
        """
        found = without_prefix(self.specification)
        if found is None:
            return None
        changed, every_segment = found
        # 改过的设置重新写成 JSON，由库照常读入
        plain = self._open_plain(changed)
        text = json.dumps(changed, ensure_ascii=False)
        special = open_library(text, self.where, special_as_text=False)
        # 加入的词元（特殊的、不特殊的）都把文本切成段；长的名字优先，与库相同
        added = added_tokens(self.specification)
        # 特殊词元的名字算文字时，它们不切；这一点最容易漏
        restart = {}
        for allow_special in (False, True):
            names = [e["content"] for e in added if allow_special or not e.get("special")]
            pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
            # (?!) 永远不匹配：没有名字，就没有「又算开头」的地方
            restart[allow_special] = re.compile(pattern or "(?!)")
        return Continuing(plain, special, restart if every_segment else {})

    def encode(
        self, texts: list[str], allow_special: bool = False, add_special: bool = False
    ) -> list[list[int]]:
        """许多段一起编码，由库分给所有的核。

        add_special：照文件里的 post_processor，在两头加上 <s> 之类
        """
        # 语料分词走的就是这一条：没有特殊词元，两头什么也不加
        if not allow_special and not add_special:
            self.seen += sum(map(len, texts))
            if self.seen >= WORTH_IT and self.fast is not None:
                return self._encode_fast(texts, self.fast)
        library = self.special if allow_special else self.plain
        # fast：不记每个词元在原文中的位置，快一截
        batch = library.encode_batch_fast(texts, add_special_tokens=add_special)
        return [encoding.ids for encoding in batch]

    def _encode_fast(self, texts: list[str], fast: FastEncoder) -> list[list[int]]:
        found = fast.encode(texts)
        # 快路只说「不放心」，不说为什么；反正慢路什么都编得了。
        # 不放心的（None）一起交给原来的库，再各归各位
        rest = [index for index, ids in enumerate(found) if ids is None]
        slow = self.plain.encode_batch_fast([texts[i] for i in rest], add_special_tokens=False)
        # strict：两列一样长，少一个就是我们的错
        for index, encoding in zip(rest, slow, strict=True):
            found[index] = encoding.ids
        return [ids for ids in found if ids is not None]

    @cached_property
    def fast(self) -> FastEncoder | None:
        """快路；没有装 tiktoken、或者保证不了相同时是 None。

        编号与慢路逐个相同，所以用不用它，结果与指纹都不变
        """
        return FastEncoder.build(self.specification)

    def encode_continued(self, text: str, allow_special: bool = False) -> list[int]:
        """一段接着前文的文字：开头不补空格，第一个加入的词元之后照常。"""
        if self.continuing is None:
            return self.encode([text], allow_special)[0]
        # ① 到第一个加入的词元为止，是接着前文的
        plain, special, restart = self.continuing
        match = restart[allow_special].search(text) if restart else None
        place = match.start() if match else len(text)
        # 两个都不补空格，只差一个开关
        library = special if allow_special else plain
        # 名字算不算特殊词元，与照常编码时一样
        head: list[int] = library.encode(text[:place], add_special_tokens=False).ids
        #    （restart 是空的：全文只有一个开头，后面也都不补）
        # ② 从它起，又是新的一段，照常编码
        return [*head, *self.encode([text[place:]], allow_special)[0]]


def aliases_of(specification: Specification) -> dict[str, str]:
    """哪些特殊词元会被普通文字拼出来，各给一个谁也猜不到的化名；多半一个也没有。

    BPE 只会合并出合并表里有的，`file_checks.py` 已查过。Unigram 却直接在词表里找，特殊词元也
    在词表里，而且得分最高：用户打出 "</s>"，它就选中了。ignore_merges 也直接查词表
    """
    model = specification["model"]
    if model.get("type") != "Unigram" and not model.get("ignore_merges"):
        return {}
    known = vocabulary_of(specification)
    # 128 位的随机数：写不出来，也就拼不出来；编号照旧
    return {n: secrets.token_hex(16) for n in special_ids(specification) if n in known}


def renamed(specification: Specification, aliases: dict[str, str]) -> Specification:
    """把词表与 added_tokens 里的名字换成化名；别的照旧。

    >>> parts = {"model": {"vocab": [["</s>", 0.0], ["a", -1.0]]}, "added_tokens": []}
    >>> renamed(parts, {"</s>": "?"})["model"]["vocab"]
    [['?', 0.0], ['a', -1.0]]
    """
    # 原来的那份不能动：
    # 只抄要改的几层，词表别的部分与原来的共用
    changed = {**specification, "model": {**specification["model"]}}
    # 表与列两种写法，见 vocabulary_of
    vocab = changed["model"]["vocab"]
    if isinstance(vocab, dict):
        changed["model"]["vocab"] = {aliases.get(name, name): i for name, i in vocab.items()}
    else:
        changed["model"]["vocab"] = [[aliases.get(name, name), score] for name, score in vocab]
    # 两处要一起换：名字对不上，库会给 added_tokens 另排一个编号
    changed["added_tokens"] = [
        {**entry, "content": aliases.get(entry["content"], entry["content"])}
        for entry in added_tokens(specification)
    ]
    return changed


def parse(json_text: str) -> Specification:
    """示例用：由内容得到 Specification。

    正式的读法带检查，见 `file_checks.py`
    """
    specification: Specification = json.loads(json_text)
    return specification


def demo() -> None:
    """像 Llama 2 那样开头补空格的分词器：几种编法各得到什么。"""
    import tokenizers
    from tokenizers import decoders, models, normalizers, trainers

    # 特殊词元三个：<unk> 给没见过的字符，<s> 与 </s> 给两头；
    # 没有切片部件：整段文本一片，空格先换成 ▁
    library = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=40, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    library.train_from_iterator(["the moon the sea"] * 4, trainer)
    text = library.to_str()
    encoder = Encoder(parse(text), text, "the demonstration")

    def names(ids: list[int]) -> list[str]:
        # 看得见 ▁，比解码出来的文字清楚
        return [str(library.id_to_token(i)) for i in ids]

    print("1. 同一段 'the moon'，是开头，还是接着前文：")
    begin, after = encoder.encode(["the moon"])[0], encoder.encode_continued("the moon")
    print(f"   开头      {names(begin)}")
    print(f"   接着前文  {names(after)}")
    # 差的就是开头那个 ▁
    assert "".join(names(begin)) == "▁" + "".join(names(after))

    # 对话就是这样一段一段拼起来的；
    # 多一个 ▁，模型就会看到一个从没见过的双空格
    print("2. 两段分开编码再接起来，与整段相同的，只有「接着前文」那一种：")
    whole = encoder.encode(["the moon the sea"])[0]
    joined = begin + encoder.encode_continued(" the sea")
    wrong = begin + encoder.encode([" the sea"])[0]
    for title, ids in (("整段", whole), ("接着", joined), ("不管", wrong)):
        shown = "".join(names(ids))
        print(f"   {title}  {len(ids)} 个编号，拼起来 {shown}")
    assert "".join(names(whole)) == "".join(names(joined)) != "".join(names(wrong))

    # 规矩由文件定：prepend_scheme 为 first 的，这里就不补
    print("3. 特殊词元之后又是新的一段，开头又补：")
    ids = encoder.encode_continued("moon</s>the", allow_special=True)
    print(f"   {names(ids)}")
    assert "".join(names(ids)) == "moon</s>▁the"
    # 名字算文字时，它并不切断
    assert "▁the" not in "".join(names(encoder.encode_continued("moon</s>the")))


if __name__ == "__main__":
    run_demo(demo)
