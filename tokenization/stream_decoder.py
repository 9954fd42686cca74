r"""边生成边显示：一个汉字被拆在几个词元里时，屏幕上怎样才不出现 �？

字节级 BPE 的一个词元是一串**字节**，不一定是整数个字符。逐个词元单独解码，半个汉字就成了 �。
解法是只放行完整的字符，把不完整的尾巴留到下一次：

    词元      │  b"\xe6"   b"\x9c\x88"   b"\xe4\xba"   b"\xae!"
    缓冲区    │  e6        空            e4 ba         空
    放行      │  ""        "月"          ""            "亮!"

UTF-8 让这件事很容易：首字节的高位已说明这个字符共有几个字节，

    0xxxxxxx → 1    110xxxxx → 2    1110xxxx → 3    11110xxx → 4    10xxxxxx → 后续字节

所以最多只需扣住 3 个字节；一旦看到不可能合法的字节，立刻换成 �，不会一直等下去。

文献：RFC 3629（UTF-8）；「最大前缀」替换规则见 Unicode 标准第 3 章，一次解码与分段解码因此结果相同。
改哪里：想让非法字节显示成 `\xe6` 而不是 �，把 `errors="replace"` 换成 "backslashreplace"。
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection

__all__ = ["StreamDecoder"]


class StreamDecoder:
    """一次吃一个编号，吐出已经完整的字符。

    保证：把每次 push 的返回值与最后的 flush 连起来，恰好等于对全部编号一次性解码的结果
    """

    def __init__(self, token_bytes: Callable[[int], bytes], skip_ids: Collection[int] = ()) -> None:
        self.token_bytes = token_bytes
        self.skip_ids = frozenset(skip_ids)
        # 标准库的增量解码器做的正是上表：扣住未完的尾巴，其余放行
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """吃进一个编号，返回由此变完整的文字（可能是空串）。"""
        if token_id in self.skip_ids:
            return ""
        return self.decoder.decode(self.token_bytes(token_id))

    def flush(self) -> str:
        """文本到此为止：扣住的半个字符不会再完整，以 � 交出；之后可以开始下一段。"""
        rest = self.decoder.decode(b"", final=True)
        self.decoder.reset()
        return rest
