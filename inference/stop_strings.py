r"""停止串被切在几个词元里时，怎样既不漏掉、又不提前显示出一半？

要在 "\n用户：" 之前停下，词元却不会恰好切在那里：

    词元        好 的      \n       用       户：你
    屏幕        好 的      （扣住） （扣住） 停！          "\n用户：" 一个字也没显示

两难：见到 "\n" 就显示，可能把停止串的开头漏给了用户；一直不显示，又不像流式了。
答案是只扣住**可能成为停止串**的那一小段：已写文本的后缀中，等于某个停止串前缀的最长的一段。

怎样一个字符一个字符地知道这个长度，而不每次重头比？这是 Knuth–Morris–Pratt 的失配表：
对停止串 s 与已经配上的长度 k，

$$\mathrm{fail}(k) = \max\{\, j < k : s_{0..j} = s_{k-j..k} \,\}$$

下一个字符配不上 s_k 时，不必从头来，退到 fail(k) 再试：那一段我们已经见过了。

    s    = a a b            读到 a a a：配上 2 个之后失配
    fail = 0 0 1 0                     退到 1，再配上一个 → 仍是 2，扣住最后两个 a

每个字符平均只做常数步，与停止串多长、文本多重复无关。

「最早」指**最先写完**的那个；同时写完的，取开始得最早（最长）的。这样规定，结果就与文本被
切成怎样的小段无关：逐字符喂与一口气喂，停在同一处。

常见的错法：
    只看最新的一个词元里有没有停止串   停止串横跨两个词元时永远找不到
    每步在全文里重新找一遍             写 n 个词元要看 n²/2 个字符，而且先已显示了一半
    找到停止串的编号序列就停           同样的文字可以有许多种切法，编号对不上

论文：Knuth, Morris & Pratt 1977《Fast Pattern Matching in Strings》。

改哪里：想让停止串本身留在文本里 → StopMatcher.push 里的切口；
       想同时找成百上千个串 → 换成 Aho–Corasick，它就是把许多失配表并成一棵树。
"""

from __future__ import annotations

from collections.abc import Sequence

from foundation.demonstration import run_demo

__all__ = ["StopMatcher"]


def failure_table(text: str) -> list[int]:
    """fail[k]：前 k 个字符的真后缀中，同时又是前缀的最长的有多长；k 从 0 到 len(text)。

    >>> failure_table("aab")
    [0, 0, 1, 0]
    """
    fail, k = [0, 0], 0
    for character in text[1:]:
        # 用已经算好的表自己配自己：失配就退，直到配上或退到头
        while k and text[k] != character:
            k = fail[k]
        k += text[k] == character
        fail.append(k)
    return fail


class StopMatcher:
    """一段一段地吃文本，吐出可以放心显示的部分；遇到停止串就停在它之前。

    >>> matcher = StopMatcher(["END"])
    >>> [matcher.push(piece) for piece in ("good E", "N", "ough EN", "D!")], matcher.found
    (['good ', '', 'ENough ', ''], 'END')
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.fails = [failure_table(stop) for stop in self.stops]
        self.matched = [0] * len(self.stops)  # 每个停止串已经配上几个字符
        self.held = ""  # 扣住的文本：可能是某个停止串的开头
        self.found: str | None = None  # 停在了哪一个

    def push(self, text: str) -> str:
        """吃进一段，返回现在可以显示的；找到之后再吃进的一概不要。"""
        if self.found is not None:
            return ""
        # 最常见的情形：没有停止串，什么都不必扣
        if not self.stops:
            return text
        # 扣住的那几个字符已经配过了，从新来的开始往下配
        seen = self.held + text
        for end in range(len(self.held), len(seen)):
            self.found = self.advance(seen[end])
            if self.found is not None:
                self.held = ""
                return seen[: end + 1 - len(self.found)]
        # 没找到：几个停止串各有一个半截，最长的那个扣住，其余放行
        # （短的半截必是长的半截的后缀，扣住长的就都扣住了）
        safe = len(seen) - max(self.matched)
        self.held = seen[safe:]
        return seen[:safe]

    def advance(self, character: str) -> str | None:
        """每个停止串各走一步；返回恰好在此写完的那个，并列取最长的。

        matched[i] 只会加一或顺着 fail 往回退；加了多少次才能退多少次，所以平均是常数步
        """
        complete = None
        for index, stop in enumerate(self.stops):
            k = self.matched[index]
            while k and stop[k] != character:
                k = self.fails[index][k]
            k += stop[k] == character
            self.matched[index] = k
            if k == len(stop) and (complete is None or k > len(complete)):
                complete = stop
        return complete

    def flush(self) -> str:
        """文本到此为止：扣住的半截不会再变成停止串，交出来。"""
        held, self.held = self.held, ""
        return held


def demo() -> None:
    """一个字一个字地写，看哪几次扣住；再看失配表怎样救回半截。"""
    print('1. 停止串 "\\n用户："，逐字喂：')
    matcher = StopMatcher(["\n用户："])
    for character in "好的。\n用\n用户：你":
        shown = matcher.push(character)
        note = f"停在 {matcher.found!r} 之前" if matcher.found else f"扣住 {matcher.held!r}"
        print(f"   写 {character!r:5} → 显示 {shown!r:7} {note}")
        if matcher.found:
            break
    assert matcher.found

    print("\n2. 失配表：停止串 aab，文本 aaaab")
    print(f"   fail = {failure_table('aab')}")
    matcher = StopMatcher(["aab"])
    shown = "".join(matcher.push(character) for character in "aaaab")
    print(f"   显示 {shown!r}：头两个 a 不属于停止串，失配一次放行一个")
    assert shown == "aa"

    # 逐字与整段：任何切法都停在同一处
    text, stops = "xabcabdabc", ["abd", "bdab", "c"]
    whole = StopMatcher(stops)
    expected = whole.push(text)
    for cut in range(len(text) + 1):
        parts = StopMatcher(stops)
        assert parts.push(text[:cut]) + parts.push(text[cut:]) == expected
    print(f"\n3. {stops} 里最先写完的是 {whole.found!r}，显示 {expected!r}：怎样切段都一样")


if __name__ == "__main__":
    run_demo(demo)
