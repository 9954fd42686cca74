r"""什么样的开头接得下去？——提示变成编号，并在跑模型之前查出一切能查的错误。

    "床前明月光，"  ──encode──▶  [5, 13, 23, …]      n 个词元

$$1 \le n \le C, \qquad 0 \le \text{编号} < V_{\text{分词器}} \le V_{\text{模型}}$$

  · n = 0   模型是「看着前文猜下一个」，没有前文就没有可看的。想让它从头写一篇，
            给它一个「文章结束」：训练时，新文章总是跟在它后面
  · n > C   上下文放不下。悄悄砍掉开头，用户会以为模型读过全文，却答非所问；
            所以要他明说（sliding=True 只留末尾，或自己缩短）
  · V       模型的词表可以比分词器大：凑成 64 的倍数时矩阵乘得快，多出来的行没有对应的文字，
            从来没有训练过，不能选。反过来，分词器更大，就一定是配错了

提示最常见的毛病不是报错，而是写得不好：

  · 末尾多一个空格。字节级 BPE 的英文词元多带着前面的空格（" cat"）；空格被提示用掉，
    模型就得写一个不带空格的 "cat"，训练时很少见过。演示里看得到编号的差别
  · 模板对不上。微调时用的是「问：…\n答：」，生成时少一个换行，模型就认不出这是问题
  · 把特殊词元的名字当文字写进提示。它们只会被当成普通的字；要用真的，得由程序自己拼编号

末尾空格有个通用的治法，叫 token healing：退回最后一个词元，再只许模型选以它开头的词元。
这里没有做：它会改动用户写的提示，而在交互里，把空格删掉就好。

常见疑问：
    提示里的字会原样出现在结果里吗？  不会。结果只有新写的部分，要接起来请自己接
    提示越长越慢吗？                  第一步是：要把它读一遍。以后每步只读一个新词元
    为什么中文提示的词元比字还多？    词表是从英文语料学的，汉字大多散成三个字节；
                                      用自己的语料训练分词器，一个词元能装好几个字

改哪里：放不下时换一种取舍（例如掐掉中间）→ checked_ids；拼对话模板 → 在这里之前，由调用者做。
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from foundation.checks import check_int
from foundation.demonstration import run_demo

if TYPE_CHECKING:
    from tokenization.tokenizer import Tokenizer

__all__ = ["Prompt", "check_sizes", "encode_prompts", "unused_ids"]

# 文本，或已经编好的号：后者给自己拼模板、要用特殊词元的程序。
# 一条编号形式的提示也要放进列表里：generate([[5, 13, 23]])，否则分不清是一条还是三条
Prompt: TypeAlias = "str | Sequence[int]"


def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, context: int | None, *, sliding: bool
) -> list[list[int]]:
    """每条提示的编号；全部查过之后才返回，所以不会写到一半才发现第三条有毛病。

    形状：B 条提示 → B 个列表，长短不一；左填充成方是 decoder.py 的事
    错误：空的、放不下的、编号越界的、字符表里没有的字 → ValueError；多条时说明是第几条
    """
    alone = len(prompts) == 1
    return [
        # 只有一条时说「第 0 条」反而让人糊涂
        checked_ids(
            prompt, "the prompt" if alone else f"prompt {index}", tokenizer, context, sliding
        )
        for index, prompt in enumerate(prompts)
    ]


def checked_ids(
    prompt: Prompt, name: str, tokenizer: Tokenizer, context: int | None, sliding: bool
) -> list[int]:
    """一条提示的编号；name 是错误信息里对它的称呼。

    字符级分词器没见过的字，由 encode 自己报错，说出是哪个字、在第几个位置
    """
    # ① 最容易写错的：一串编号忘了再套一层列表，看起来就像许多条提示
    if isinstance(prompt, int):
        raise ValueError(f"{name} is the number {prompt}; for one prompt of ids write [[…]]")
    # 别人的模型可能要求开头有 <s>，照它的规矩加；我们自己的什么也不加
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt, add_special=True) if prompt else []
    # 已是编号的，原样用：特殊词元由程序自己拼好了
    else:
        ids = list(prompt)
    # ② 空的：说清怎样才能从头写一篇。没有「文章结束」的分词器，就没有这个办法
    if not ids:
        begin = f", or pass the ids [{tokenizer.end_id}] to begin a new document"
        raise ValueError(
            f"{name} is empty (0 tokens): the model needs at least 1 token to continue from; "
            f"write at least one character{'' if tokenizer.end_id is None else begin}"
        )
    # ③ 编号从 0 数起，所以最大的是 V − 1；自己拼的编号未必在词表里；文本编出来的一定在，不必逐个查
    for token in () if isinstance(prompt, str) else ids:
        check_int(f"each token id in {name}", token, 0, tokenizer.vocab_size - 1)
    # ④ 放不下：两个数都说出来；context 为 None 就是没有上限（滑动的缓存）
    if context is not None and len(ids) > context and not sliding:
        raise ValueError(
            f"{name} has {len(ids)} tokens, but the model's context (max_seq_len) is {context}; "
            "shorten it, use sliding=True (--sliding) to keep only its end, or cache='sliding' "
            "(--cache sliding) to read it all"
        )
    return ids


def check_sizes(tokenizer: Tokenizer, vocab_size: int) -> None:
    """分词器与模型的词表对得上吗？模型的可以大，不能小。

    只比大小，认不出「大小相同、内容不同」：那要比 fingerprint，由训练时的数据检查负责
    错误：分词器更大 → ValueError，两个数都说
    """
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model's vocab_size is "
            f"{vocab_size}; load the tokenizer that was saved with this model"
        )


def unused_ids(tokenizer: Tokenizer) -> list[int]:
    """别人的词表偶有空缺：编号在范围之内，却没有对应的文字，不能让模型选它。"""

    # token_bytes 是唯一知道答案的地方；问一遍整个词表不过几十毫秒，只在开始时问
    def is_used(token: int) -> bool:
        try:
            tokenizer.token_bytes(token)
        except ValueError:
            return False
        return True

    # 没有空缺（多半如此）就得到空表，生成时便省去一步
    return [token for token in range(tokenizer.vocab_size) if not is_used(token)]


def demo() -> None:
    """好提示与坏提示：编号、错误信息，以及末尾那个多余的空格。"""
    from tokenization.tokenizer import Tokenizer

    tokenizer = Tokenizer.train_bpe(["the cat sat on the mat, the cat sat"] * 2, 275)
    print("1. 末尾的空格：同样的话，模型看到的不是同样的词元")
    for prompt in ("the cat", "the ", "the"):
        (ids,) = encode_prompts([prompt], tokenizer, 8, sliding=False)
        print(f"   {prompt!r:10} → " + " ".join(repr(tokenizer.decode([i])) for i in ids))
    # "the cat" 里的空格属于 " cat"；"the " 的空格却独自成了一个词元，
    # 于是「the 加空格」不再是「the cat」的开头，模型得从没见过的地方接着写
    assert tokenizer.encode("the cat")[: len(tokenizer.encode("the "))] != tokenizer.encode("the ")

    print("2. 接不下去的提示，各说各的原因：")
    bad: list[list[Prompt]] = [[""], ["cat", "on the mat the mat"], [[1, 999]], [7, 8]]  # type: ignore[list-item]
    for prompts in bad:
        try:
            encode_prompts(prompts, tokenizer, 4, sliding=False)
        except ValueError as error:
            print(f"   {error}")
        else:
            raise AssertionError(f"{prompts} was accepted")


if __name__ == "__main__":
    run_demo(demo)
