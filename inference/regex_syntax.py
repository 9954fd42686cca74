r"""正则表达式（regular expression）怎样读成一棵树？——一个递归下降的小解析器，写法与 re 相同。

    [+-]?\d{1,3}   ──▶   Chain ┬ Repeat(0,1) ── 字符 + 或 -
                               └ Repeat(1,3) ── 字符 0 到 9

语法只有三层，每层一个函数；结合得越紧，层次越深：

$$\begin{aligned}
\text{选择} &\to \text{串} \mid \text{串} \mid \dots
    & \text{串} &\to \text{项}\ \text{项} \dots
    & \text{项} &\to \text{原子}\ [\,*\ +\ ?\ \{m,n\}\,]
\end{aligned}$$

认得的：文字、. 、[…]、[^…]、\d \w \s \D \W \S、\n \t \r \f \v、\xHH \uHHHH、
       (…)、(?:…)、(?P<名>…)、|、* + ? {m} {m,} {,n} {m,n}。
       * 之后的 ?（不贪心）也认：整段匹配时，贪心与否，合格的文本是同一批。

不认的，一律报错并说出名字，绝不当成别的意思：前瞻与后顾、反向引用、\b、\p{…}、占有量词、
内嵌开关。前三样里，反向引用根本不是有限自动机做得到的；前瞻做得到（两台机器同时走），
但状态会相乘，这里没有做。

常见疑问：
    为什么写得比 .* 严一些好？  .* 什么都许，模型不肯停就一直写；给它一个上限，如 .{1,200}
    为什么没有「最短匹配」？    那是在长文本里找一段时才有的问题；这里是写，写到哪算哪
    状态太多怎么办？            多半是 {m,n} 太大，或者一段任意文字后面接着固定长度的尾巴

约定，与 re.fullmatch(…, flags=re.ASCII) 相同：
  · 永远整段匹配，所以开头的 ^ 与末尾的 $ 可写可不写；写在别处的报错
  · . 不含换行；\d \w \s 只认 ASCII（JSON Schema 的 pattern 也是如此）
  · 不在意大小写没有开关，写成 [Aa]

递归下降（recursive descent）怎样读：手指指着一个位置，每个函数吃掉自己认得的那一截，
返回一棵子树，手指停在下一截的开头。以 ab|c 为例：

    choice ── chain ── item a, item b      手指到了 |，chain 认不得，交还
           └─ 吃掉 | ── chain ── item c    到了末尾，交还；choice 得到 Either(ab, c)

例子，照着写多半就够用：

    整数            -?\d+                    日期      \d{4}-\d{2}-\d{2}
    是或否          是|否                     选项      [A-D]
    不超过二十字    [^\n]{1,20}               列表      (- [^\n]+\n){3,5}
    汉字            [\u4e00-\u9fff]+          小数      \d+(\.\d{1,2})?
    引号里的话      「[^「」]*」              先想后答  [^\n]{0,200}\n答案：[A-D]

常见的错法，这里都有测试：
    * 只管前面的整串      ab* 成了 (ab)*；量词只管前面一个原子，所以它在 item 里
    [^…] 忘了非 ASCII     否定是对全部字符取补，不是对 256 个字节
    {2 当成量词           re 把它当普通字符；照样办，否则同一条规则两处意思不同
    不认识的转义当字母    \b 悄悄成了 b，规则就变了意思；所以报错

同一个解析器有两处要用，差别只在「一个字符写成哪些字节」与「整段匹配还是其中一段」：
JSON 字符串里的引号要写成 \"，而且 JSON Schema 的 pattern 是「其中有一段匹配」，见 json_schema.py。

文献：Thompson 1968；Cox 2007《Regular Expression Matching Can Be Simple And Fast》。

改哪里：加一种原子 → Reader.atom；加一类字符 → character_sets.py 的 CLASSES。
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NoReturn

from foundation.demonstration import run_demo
from inference import character_sets as sets
from inference.automaton import ByteAutomaton, Chain, Either, Node, Repeat
from inference.character_sets import Ranges

__all__ = ["parse_regex"]

HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
NOT_NEWLINE = sets.complement(sets.single("\n"))
DEEPEST = 50  # 括号套括号；再深，人也读不懂
MOST_REPEATS = 10_000
# 认得出、但不支持的：各有各的说法
UNSUPPORTED_GROUPS = {
    **{"=": "lookahead (?=", "!": "lookahead (?!", "<": "lookbehind (?<", ">": "atomic group (?>"},
    **{"P=": "named back-reference (?P=", "#": "comment (?#", "(": "conditional (?("},
}


def parse_regex(
    pattern: str,
    *,
    write: Callable[[Ranges], Node] = sets.characters,
    search: bool = False,
    name: str = "regex",
) -> Node:
    """正则表达式 → 树；write 说一组字符怎样写成字节，search 是「其中有一段匹配就行」。

    错误：写错的、不支持的 → ValueError，写明第几个位置、是什么
    """
    if not isinstance(pattern, str):
        raise ValueError(f"{name} must be a text, got {pattern!r} ({type(pattern).__name__})")
    # 语法只有一份；谁来用、怎样落笔，由参数决定
    reader = Reader(pattern, write, search, name)
    tree = reader.choice(0)
    # 最外层只会停在多余的右括号上
    if reader.at < len(pattern):
        # 里层的右括号由 atom 吃掉，轮不到这里
        reader.fail("unbalanced ')'; write \\) for the character")
    return tree


class Reader:
    """手指指着 at，一个字符一个字符地往右读。

    write、search 的意思见 parse_regex；name 是错误信息里的称呼
    """

    def __init__(
        self, pattern: str, write: Callable[[Ranges], Node], search: bool, name: str
    ) -> None:
        # 四样都不变，变的只有手指
        self.text, self.write, self.search, self.name = pattern, write, search, name
        self.at = 0

    # NoReturn：类型检查由此知道，叫过它之后的代码走不到
    def fail(self, problem: str, at: int | None = None) -> NoReturn:
        """位置从 0 数起，与 Python 的下标相同。"""
        position = self.at if at is None else at
        raise ValueError(f"{self.name} {self.text!r}, position {position}: {problem}") from None

    def peek(self, text: str) -> bool:
        """接下来是不是 text；手指不动。"""
        return self.text.startswith(text, self.at)

    def take(self, text: str) -> bool:
        """是 text 就越过它，返回越过了没有。"""
        if found := self.peek(text):
            self.at += len(text)
        return found

    # ── 三层语法 ────────────────────────────────────────────────────────

    def choice(self, depth: int) -> Node:
        """串 | 串 | …；depth 是外面有几层括号。

        它是最浅的一层：整个规则是它，每对括号里面也是它
        """
        # 每层括号要占 Python 的几层调用；先说清楚，好过 RecursionError
        if depth > DEEPEST:
            self.fail(f"more than {DEEPEST} groups inside each other")
        # 至少有一串，可以是空的：(|a) 就是可有可无的 a
        branches = [self.chain(depth)]
        while self.take("|"):
            # 每一串都在同一层里；谁先谁后不影响合格与否
            branches.append(self.chain(depth))
        # 只有一串就不必包一层
        return branches[0] if len(branches) == 1 else Either(tuple(branches))

    def chain(self, depth: int) -> Node:
        """项 项 …，到 | 、右括号或末尾为止。

        search 的垫子加在最外层的每一串上：a|^b 只有第一串前面可以有别的
        """
        parts: list[Node] = []
        # 「其中有一段」就是前后各垫上任意多个字符；^ 与 $ 去掉各自那一边的垫子
        padding = Repeat(self.write(sets.ANY), 0, None)
        padded = self.search and depth == 0
        at_start = depth == 0 and self.take("^")
        # 垫子里什么字符都有，包括换行
        if padded and not at_start:
            parts.append(padding)
        # 遇到 | 或右括号就交还给 choice，由它决定怎么办
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            # $ 也要看在哪里；它不是字符，不交给 atom
            if self.peek("$"):
                # 末尾的 $：整段匹配时本来如此；「其中有一段」时，后面就不垫了
                self.at += 1
                if depth or not (self.at == len(self.text) or self.peek("|")):
                    self.fail("$ is supported at the end of the whole only", self.at - 1)
                return Chain(tuple(parts))
            parts.append(self.item(depth))
        if padded:
            parts.append(padding)
        return Chain(tuple(parts))

    def item(self, depth: int) -> Node:
        """一个原子，后面可以跟一个量词。

        例：b{2,3} 读成 Repeat(b, 2, 3)
        """
        begin = self.at
        part = self.atom(depth)
        bounds = self.quantifier()
        if bounds is None:
            return part
        low, high = bounds
        # 太大的次数先拦下：{1000000} 要搭一百万遍，等它报错要很久
        if max(low, high or 0) > MOST_REPEATS:
            self.fail(f"a repetition count must be <= {MOST_REPEATS}", begin)
        if high is not None and low > high:
            self.fail(f"the repetition {{{low},{high}}} has its bounds in the wrong order", begin)
        self.take("?")  # 不贪心：合格的文本不变
        # 占有量词吃进去就不吐出来：a*+a 一个也匹配不了，意思不同，不能当没看见
        if self.peek("+"):
            self.fail("possessive quantifiers are not supported")
        if self.quantifier() is not None:
            self.fail("two quantifiers in a row; put the first in (?:…)", begin)
        # 同一个 part 重复多遍，搭机器时再展开
        return Repeat(part, low, high)

    def quantifier(self) -> tuple[int, int | None] | None:
        """(最少, 最多)；没有量词就是 None。

        例：a+ 在读完 a 之后来问，得到 (1, None)
        """
        # 三个常用的，各是 {0,}、{1,}、{0,1} 的简写
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.take(sign):
                return bounds
        # 与 re 相同：不像量词的 { 就是普通字符
        # 三种写法：{m}、{m,}、{,n} 与 {m,n}；缺的下限是 0，缺的上限是没有上限
        found = re.compile(r"\{(?:(\d+)|(\d*),(\d*))\}", re.ASCII).match(self.text, self.at)
        if not found:
            return None
        self.at = found.end()
        # {m} 是上下限相同
        if found[1]:
            return int(found[1]), int(found[1])
        return int(found[2] or 0), int(found[3]) if found[3] else None

    # ── 原子 ────────────────────────────────────────────────────────────

    def atom(self, depth: int) -> Node:
        """括号、方括号、点、转义，或者一个普通字符；读到它就返回，量词由 item 管。"""
        begin, sign = self.at, self.text[self.at]
        # ① 括号：里面是一整个「选择」，层次回到最浅
        if sign == "(":
            self.group_head()
            # 深一层：^ 与 $ 在括号里就不是「整段的两头」了
            inside = self.choice(depth + 1)
            # choice 停下的地方不是右括号，就只能是末尾
            if not self.take(")"):
                self.fail("this ( is never closed", begin)
            return inside
        # ② 量词前面没有东西；锚写在中间
        if sign in "*+?":
            self.fail(f"nothing to repeat before {sign}; write \\{sign} for the character")
        if sign == "^":
            self.fail("^ is supported at the beginning of the whole only")
        # ③ 一组字符；写成字节的办法由 write 决定
        if sign == "[":
            return self.write(self.char_class())
        # ④ 点、转义、普通字符：都是一组字符，只差怎样得到这一组
        self.at += 1
        if sign == ".":
            return self.write(NOT_NEWLINE)
        return self.write(self.escape() if sign == "\\" else self.checked(sign, begin))

    def group_head(self) -> None:
        """越过左括号与它的开头；名字与编号都用不上，因为没有反向引用。

        不支持的开头，错误指着左括号
        """
        begin = self.at
        self.at += 1
        # 分组只为了量词与 |，不为取出里面的文字。
        # 普通的括号与 (?:，对我们没有差别
        if not self.take("?") or self.take(":"):
            return
        # 名字的写法与 Python 的变量名相同
        named = re.compile(r"P<[^\W\d]\w*>").match(self.text, self.at)
        if named:
            self.at = named.end()
            return
        # 认得出的，说出它叫什么；(?i) 一类的开关走最后一句
        for start, what in UNSUPPORTED_GROUPS.items():
            if self.peek(start):
                self.fail(f"{what} is not supported", begin)
        # 剩下的都当作开关：(?i)、(?m:…)
        self.fail("inline flags (?…) are not supported; write both cases, such as [Aa]", begin)

    def escape(self) -> Ranges:
        r"""反斜杠之后：一类字符，或者一个字符。

        例：\d 是一段，\u6625 是「春」，\. 是点；方括号里外都用它
        """
        # 错误指着反斜杠，而不是它后面的字母
        begin = self.at - 1
        if self.at == len(self.text):
            self.fail("a backslash at the very end; write \\\\ for the character", begin)
        letter = self.text[self.at]
        self.at += 1
        # ① 一类字符，或者打不出来的一个（\n、\t…）
        if letter in sets.CLASSES:
            return sets.CLASSES[letter]
        # ② 用十六进制写的码位；位数是固定的，多一位少一位都不是它
        if letter in HEX_DIGITS:
            n = HEX_DIGITS[letter]
            digits = self.text[self.at : self.at + n]
            if not re.fullmatch(f"[0-9a-fA-F]{{{n}}}", digits):
                self.fail(f"\\{letter} needs {n} hexadecimal digits, got {digits!r}", begin)
            # 位数够，码位还可能太大：\U 最多写到 0010FFFF
            self.at += n
            if int(digits, 16) > sets.LAST_CHARACTER:
                self.fail(f"there is no character U+{digits}", begin)
            return self.checked(chr(int(digits, 16)), begin)
        # ③ 字母与数字的转义各有含义（\b、\1、\p…）：不认识的不能当成字母本身
        if letter.isascii() and letter.isalnum():
            self.fail(f"\\{letter} is not supported", begin)
        return self.checked(letter, begin)

    def checked(self, letter: str, at: int) -> Ranges:
        """一个字符；半个字符（代理码位）写不成 UTF-8。

        它多半来自 JSON 里的 \\ud83c：Python 会原样读进来
        """
        if "\ud800" <= letter <= "\udfff":
            self.fail(f"U+{ord(letter):04X} is a surrogate, half a character", at)
        return sets.single(letter)

    def char_class(self) -> Ranges:
        """[…] 里的全部字符；返回排好序、互不重叠的范围。

        例：[^a-y] 是 a 之前的与 y 之后的两段，包括全部汉字
        """
        # 指着左方括号；没有右方括号时，错误要说它在哪里
        begin = self.at
        self.at += 1
        # [^…] 的 ^ 只在开头有意义，别处是普通字符
        negated, found = self.take("^"), list[tuple[int, int]]()
        first = True
        # 紧跟在开头的 ] 是普通字符，与 re 相同
        while first or not self.peek("]"):
            if self.at >= len(self.text):
                # 指着左方括号，而不是末尾：漏掉的多半在它附近
                self.fail("this [ is never closed", begin)
            # 先当它是一个字符；后面跟着 - 才知道是一段
            first, start = False, self.at
            low = self.class_member()
            # 末尾的 - 是普通字符；a-z 的两端各须是一个字符
            is_range = self.peek("-") and not self.text.startswith("-]", self.at)
            # 方括号没有关上时，- 后面什么也没有：留给下一圈去报错
            if is_range and self.at + 1 < len(self.text):
                self.at += 1
                # \d-z 不知是什么意思，z-a 是空的：都是手误
                high = self.class_member()
                both = all(len(part) == 1 and part[0][0] == part[0][1] for part in (low, high))
                if not both or low[0][0] > high[0][0]:
                    self.fail(f"bad range {self.text[start : self.at]}", start)
                # 一段就是从前一个字符到后一个，两端都算
                low = [(low[0][0], high[0][0])]
            # 先攒着，重叠也不要紧，最后一起整理
            found.extend(low)
        self.at += 1
        # 取两次补集：顺便排好序、合并重叠的，以后的路才互不相干
        ranges = sets.complement(found) if negated else sets.complement(sets.complement(found))
        # 代理区写不成 UTF-8；去掉它之后还得剩下什么
        if not ranges or all(0xD800 <= low and high <= 0xDFFF for low, high in ranges):
            self.fail("this character class holds no character", begin)
        return ranges

    def class_member(self) -> Ranges:
        """方括号里的一个字符或一类；. * + 之类在这里都是普通字符。"""
        letter = self.text[self.at]
        self.at += 1
        return self.escape() if letter == "\\" else self.checked(letter, self.at - 1)


def demo() -> None:
    """几条规则各认得什么，与 Python 的 re 逐一对照；不支持的各怎么说。"""
    # 每条规则配几段文字，有合格的，也有差一点的
    cases = {
        r"[+-]?\d{1,3}(\.\d+)?": ["-12.5", "1234", "7.", "+0"],
        r"(春|夏|秋|冬)天+": ["春天", "秋天天", "天", "春夏天"],
        r"[^a-y]{2}|": ["zz", "", "az", "🌕z"],
        r"\w+@\w+(?:\.[a-z]{2,})+": ["me@example.org", "me@example", "a@b.cd.ef"],
    }
    for number, (pattern, texts) in enumerate(cases.items(), 1):
        # 解析、搭机器；每段文字都与 re 的答案对照
        machine = ByteAutomaton(parse_regex(pattern), pattern)
        shown = []
        for text in texts:
            mine = machine.matches(text.encode())
            assert mine == bool(re.fullmatch(pattern, text, re.ASCII))
            shown.append(f"{text or '（空）'} {'✓' if mine else '✗'}")
        print(f"{number}. {pattern}　{len(machine.table) - 1} 个状态：{'　'.join(shown)}")
    # 各自的说法里都有位置与名字，照着改就行。
    # 位置从 0 数起；前三个是不支持的，后四个是写错的
    print("不支持的，写错的：")
    for pattern in (r"(a)\1", "a(?=b)", r"\bword", "a**", "[z-a]", "(a", "a{3,2}"):
        try:
            parse_regex(pattern)
            raise AssertionError(f"{pattern} was accepted")
        except ValueError as error:
            print(f"   {error}")


if __name__ == "__main__":
    run_demo(demo)
