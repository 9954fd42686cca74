r"""边生成边显示：一个汉字被拆在几个词元里时，屏幕上怎样才不出现 �？

字节级 BPE 的一个词元是一串字节，不一定是整数个字符：可以是半个汉字，也可以横跨两个汉字。
逐个词元单独解码，半个汉字就成了 �。解法是只放行完整的字符，不完整的尾巴留到下一次：

    词元    │  e6         9c 88      e4 ba      ae 21
    扣住    │  e6         空         e4 ba      空
    放行    │  ""         "月"       ""         "亮!"

UTF-8 让这件事很容易：首字节的高位已说明这个字符共有几个字节，

    0xxxxxxx → 1    110xxxxx → 2    1110xxxx → 3    11110xxx → 4    10xxxxxx → 后续字节

所以至多扣住 3 个字节；一旦看到不可能合法的字节，立刻换成 �，不会一直等下去。
因此有 $\sum_t \mathrm{push}(i_t) + \mathrm{flush}() = \mathrm{decode}(i_1, …, i_T)$，求和指拼接。

文献：RFC 3629（UTF-8）；Unicode 标准第 3 章「最大前缀」规则：一次解码与分段解码
      在同样的位置放 �，所以上式对非法的字节串也成立。
SentencePiece 一类还有一件事：编码时在开头补了一个空格，显示时要去掉，而「开头」只有一处：

    词元    │  ▁the    ▁moon                接着前文写的    ▁the    ▁moon
    放行    │  "the"   " moon"              （continued）   " the"  " moon"

改哪里：想让非法字节显示成 `\xe6` 而不是 �，把 errors="replace" 换成 "backslashreplace"。
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable

from foundation.demonstration import run_demo
from tokenization.sentence_pieces import Opening

__all__ = ["StreamDecoder"]


class StreamDecoder:
    """一次吃一个编号，吐出已经完整的字符。

    token_bytes：编号 → 字节，通常是 Tokenizer.token_bytes；错误的编号由它拒绝，此处状态不变
    skip_ids：不显示的编号，例如「文章结束」
    opening：SentencePiece 一类的开头要去掉补的空格，见 `sentence_pieces.py`；
             接着前文写的时候是 None：开头的空格是它自己的

    >>> stream = StreamDecoder({0: b"\\xe6", 1: b"\\x9c\\x88", 2: b"!"}.__getitem__)
    >>> [stream.push(token_id) for token_id in (0, 1, 2, 0)], stream.flush()
    (['', '月', '!', ''], '�')
    """

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        skip_ids: Iterable[int] = (),
        opening: Opening | None = None,
    ) -> None:
        self.token_bytes = token_bytes
        self.skip_ids = frozenset(skip_ids)
        self.opening = opening or Opening({}, False)
        # 还没有看到任何词元；还没有放行任何字
        self.at_start = self.nothing_shown = True
        # 标准库的增量解码器做的正是上表：扣住未完的尾巴，其余放行
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """吃进一个编号，返回由此变完整的文字（可能是空串）。"""
        # 先查编号：错误的编号在这里被拒绝，状态不变
        data = self.token_bytes(token_id)
        if int(token_id) in self.skip_ids:
            return ""
        # 藏起来的不算第一个：decode 也是先藏起来，再看谁在最前面
        if self.at_start:
            data = self.opening.first.get(int(token_id), data)
        self.at_start = False
        return self._show(self.decoder.decode(data))

    def flush(self) -> str:
        """文本到此为止：扣住的半个字符不会再完整，以 � 交出；之后可以开始下一段。"""
        text = self._show(self.decoder.decode(b"", final=True))
        self.at_start = self.nothing_shown = True
        return text

    def _show(self, text: str) -> str:
        """去掉全文开头的一个空格；空串不算开头，要等到真有字的那一段。"""
        # 第一个词元可以是半个汉字，那时还没有开头可言
        if self.opening.strip and self.nothing_shown and text:
            self.nothing_shown = False
            return text.removeprefix(" ")
        return text


def demo() -> None:
    """把一句话逐个编号送出，看哪几次扣住、哪几次放行。

    最后一步少给一个编号，看扣住的半个字怎样交出来
    """
    from tokenization.tokenizer import Tokenizer

    # 只学一点点：汉字大多还是散开的字节
    tokenizer = Tokenizer.train_bpe(["明月明月，举头望明月"], 262)
    text = "明月亮🌕"
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    print(f"{text} → {len(ids)} 个编号\n   编号  字节         单独解码  放行")
    shown = []
    for token_id in ids:
        data = tokenizer.token_bytes(token_id)
        shown.append(stream.push(token_id))
        alone = data.decode("utf-8", errors="replace")
        print(f"   {token_id:4d}  {data.hex(' '):11}  {alone:8}  {shown[-1]!r}")
    shown.append(stream.flush())
    # 单独解码满是 �，放行的文字里一个也没有，拼起来就是原文
    assert "�" in "".join(tokenizer.decode([i]) for i in ids)
    assert "".join(shown) == text
    print(f"拼起来：{''.join(shown)}，没有 �")

    # 模型生成到一半停下：最后半个字只在 flush 时交出
    stream = tokenizer.stream()
    cut = [stream.push(i) for i in ids[:-1]] + [stream.flush()]
    print(f"少给最后一个编号：放行 {''.join(cut[:-1])!r}，flush 得 {cut[-1]!r}")
    assert "�" not in "".join(cut[:-1])
    assert cut[-1] == "�"
    assert "".join(cut) == tokenizer.decode(ids[:-1])


if __name__ == "__main__":
    run_demo(demo)
