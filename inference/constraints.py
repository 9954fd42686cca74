r"""怎样让模型只写得出合格的文本？——不求它，也不改它：每一步把会写坏的词元划掉，再照常抽。

把「合格的文本」写成一台自动机，分数就这样改，v 是词元，q 是写到此刻的状态：

$$z_v \leftarrow \begin{cases} z_v & v \in \text{允许}(q, r) \\ -\infty & \text{否则} \end{cases}
\qquad\Rightarrow\qquad p'_v = \frac{p_v}{\sum_{u \in \text{允许}} p_u}$$

    规则 ──regex_syntax.py──▶ 树 ──automaton.py──▶ 状态表 ┐
         ──json_schema.py──▶                              ├─ token_guide.py ─▶ 每个状态一张名单
    分词器 ───────────────────────────────────▶ 字典树    ┘                     │
    分数 (B, V) ──────────────────────────────────────────── restrict ◀─────────┘
                                                                 └▶ 惩罚、温度、top-k … 照旧

划掉的是 −∞，后面的步骤都不会把它变回来；所以任何温度、任何策略、束搜索，写出来的都合格。

三种规则：
  · choices(["是", "否"])    几个现成的答案里选一个
  · regex(r"\d{4}-\d{2}")    整段匹配正则表达式
  · json_schema({...})       合乎 schema 的 JSON

写不完怎么办？不会有写了一半的：还能写 r 个词元，名单上就只有 r 个之内收得了尾的（见
token_guide.py）。连最短的也写不下，就在跑模型之前报错，说出最短要几个。停下的原因：
    "end"       合格，模型自己写了「结束」
    "complete"  合格，而且再写什么都不合格
    "length"、"context"   写满了（或余下的地方不够再收一次尾），也合格，内容可能比它想写的短

它保证的是格式，不是内容：模型不懂的，逼它写成 JSON 还是不懂。而且逐步划掉再归一，抽到的并不是
「模型的分布限制在合格文本上」的那个分布：前面一步看不见后面还剩多少概率（见下面的演示）。

常见的坑：
  · 训练时答案前面有个空格（"答： 是"），规则里就要写上那个空格，否则每一步都在逼它写生僻的切法
  · 提示里先说清要什么格式：让模型自己就想这样写，划掉的才少
  · 停止串与规则一起用没有意义：它会把合格的文本截断，所以报错

与「重试到合格为止」比，各有所长：重试抽到的正是「限制在合格文本上」的分布，可是合格的概率若是
一亿分之一，就等不到；划掉每步只多一次查表，永远一遍就成。

常见疑问：
    会变慢吗？          第一次走到一个状态时要算名单，以后每步只是划一遍；见 benchmarks/RESULTS.md
    对数概率是谁的？    仍是模型自己的，没有划掉任何词元：看得出它有多不情愿
    为什么不用重复惩罚？ 可以同用；但 JSON 里的引号本来就要重复，罚它只会让内容变怪
    能约束其中一段吗？  把其余的写成任意：".*答案：(是|否)"，注意 . 不含换行

论文：Willard 与 Louf 2023 (arXiv:2307.09702)；Park 等 2024 (arXiv:2405.21047) 分布的偏差。

改哪里：加一种规则 → 写一个「… → 树」的函数，在 Constraint 里加一个构造办法；
       名单怎样用到分数上 → restrict；何时算写完 → continuation.py。
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from foundation.demonstration import run_demo
from inference.automaton import FAR, ByteAutomaton, Either, Node, literal
from inference.json_schema import parse_schema
from inference.regex_syntax import parse_regex
from inference.token_guide import TokenGuide, TokenTrie

if TYPE_CHECKING:
    from inference.sampling import SamplingParams
    from tokenization.tokenizer import Tokenizer

__all__ = ["Constraint", "Constraints", "check_room", "guide_for", "per_prompt", "restrict"]


class Constraint:
    """一条规则；由 choices、regex 或 json_schema 得到，此后不再改变，可以用许多次。

    用法：TextGenerator.generate(提示, 参数, constraint=规则)
    与分词器、与模型都无关；建的时候就编好状态表，写错的规则当场报错
    """

    def __init__(self, node: Node, where: str) -> None:
        # 出错时怎样称呼它；太长的规则只留开头
        self.where = where if len(where) <= 80 else where[:77] + "…"
        self.automaton = ByteAutomaton(node, self.where)

    def __repr__(self) -> str:
        return f"Constraint({self.where}, {len(self.automaton.table) - 1} states)"

    @classmethod
    def choices(cls, texts: Sequence[str]) -> Constraint:
        """几个答案里选一个；一个是另一个的开头也行，写「结束」的就是短的。"""
        # 最容易写错的三种，各有各的说法。
        # 一个 str 也能逐字符遍历，choices("yes") 会变成 y、e、s 三选一
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
            raise ValueError(f"choices must be a list of at least 1 text, got {texts!r}")
        for index, text in enumerate(texts):
            if not isinstance(text, str) or not text:
                raise ValueError(
                    f"choices[{index}] must be a text of at least 1 character, got {text!r}"
                )
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise ValueError(f"choices[{index}] holds half a character (a surrogate): {text!r}")
        return cls(Either(tuple(map(literal, texts))), f"choices {list(texts)!r}")

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        r"""整段匹配这个正则表达式；认得哪些写法，见 regex_syntax.py。

        例：Constraint.regex(r"\d{4}-\d{2}-\d{2}")，日期的样子
        """
        return cls(parse_regex(pattern), f"regex {pattern!r}")

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any]) -> Constraint:
        """合乎这份 schema 的 JSON；认得哪些关键字，见 json_schema.py。

        schema 是读好的字典；pydantic 的模型用 model_json_schema() 得到它
        """
        return cls(parse_schema(schema), "the json schema")


# 一条给所有的提示，或者每条提示一条（None 是不限）
Constraints: TypeAlias = "Constraint | Sequence[Constraint | None] | None"

# 字典树与规则无关，一个分词器造一次；分词器不在了，它也不留
_TRIES: WeakKeyDictionary[Tokenizer, dict[frozenset[int], TokenTrie]] = WeakKeyDictionary()


def per_prompt(constraint: Constraints, n_prompts: int) -> list[Constraint | None]:
    """展开成每条提示一条。

    形状：P 条提示 → P 条规则
    错误：不是规则、条数与提示不等 → ValueError，两个数都说
    """
    # ① 一条给所有的，或者都不限
    if constraint is None or isinstance(constraint, Constraint):
        return [constraint] * n_prompts
    # ② 直接给了正则表达式的文字：分不清是规则还是答案，所以不猜
    if isinstance(constraint, str) or not isinstance(constraint, Sequence):
        raise ValueError(
            f"constraint must be a Constraint, such as Constraint.regex(…), got {constraint!r}"
        )
    # ③ 逐条；少一条就不知道哪条提示没有规则
    for one in constraint:
        if not (one is None or isinstance(one, Constraint)):
            raise ValueError(f"each constraint must be a Constraint or None, got {one!r}")
    if len(constraint) != n_prompts:
        raise ValueError(
            f"a list of constraints needs one for each prompt: {n_prompts} prompts, "
            f"got {len(constraint)} constraints"
        )
    return list(constraint)


def guide_for(constraint: Constraint, tokenizer: Tokenizer, params: SamplingParams) -> TokenGuide:
    """这条规则配这个分词器的名单；用户禁用的词元（偏置 −∞）也不算在内。

    禁用的也要算进去：否则会走进「只剩禁用的那个可写」的死路
    错误：与停止串同用 → ValueError
    """
    if params.stop:
        raise ValueError(
            f"stop={params.stop!r} would cut the text that {constraint.where} asks for; "
            "drop one of them"
        )
    # 偏置只是很低（如 −100）的不算禁用：地方不够时，它仍可以用来收尾
    banned = frozenset(i for i, bias in (params.logit_bias or {}).items() if bias == -math.inf)
    # 同样的禁用，同一棵字典树；分词器不在了，树跟着消失
    tries = _TRIES.setdefault(tokenizer, {})
    if banned not in tries:
        tries[banned] = TokenTrie(tokenizer, banned)
    return _guide(constraint.automaton, tries[banned])


@lru_cache(maxsize=8)
def _guide(automaton: ByteAutomaton, trie: TokenTrie) -> TokenGuide:
    """同一条规则反复用时，名单接着用。"""
    return TokenGuide(automaton, trie)


def check_room(guide: TokenGuide, room: int, name: str) -> None:
    """写得下吗？写不下就在跑模型之前说。

    错误：room 个词元不够写最短的，或这个词表拼不出 → ValueError；name 是那条提示的称呼
    """
    # 多半写得下：便宜的尺子量一下就过
    if guide.fits(room):
        return
    # 写不下才算准的：说得出最短要几个
    shortest = guide.shortest(guide.start)
    where = guide.automaton.where
    # 怎样也写不到：字符级的词表里没有这些字，或者要用的词元被禁用了
    if shortest == FAR:
        raise ValueError(f"the tokens of this model cannot spell any text that matches {where}")
    raise ValueError(
        f"{name} leaves room for {room} new tokens, but the shortest text that matches {where} "
        f"needs {shortest}; raise max_new_tokens or shorten the prompt"
    )


def restrict(logits: Tensor, allowed: Sequence[Tensor | None]) -> Tensor:
    """划掉不许的；None 是这一行不限。

    形状：logits (B, V)，allowed B 个 (V,) 布尔 → (B, V)
    """
    # 多半整批都没有规则：什么也不做
    if all(one is None for one in allowed):
        return logits
    # 没有规则的行：全部放行
    anything = torch.ones(logits.shape[-1], dtype=torch.bool)
    # 名单在 CPU 上，一个词元一个字节；整批一次搬到分数所在的地方
    rows = torch.stack([anything if one is None else one for one in allowed])  # (B, V)
    return logits.where(rows.to(logits.device), -math.inf)


def demo() -> None:
    """「小诗人」被逼着选、被逼着守格律；地方不够时收尾；抽到的是什么分布。"""
    # 生成器认得的是 inference.constraints 里的那个类；直接运行时，本文件叫 __main__
    from inference.constraints import Constraint
    from inference.generator import SamplingParams, TextGenerator
    from inference.poet import learn_poems

    model, tokenizer, _ = learn_poems()
    writer = TextGenerator(model, tokenizer)
    # 「举头望」之后它背过的正是「明月」；「床前」之后三个都不对，只好选最不离谱的
    print("1. 三选一，贪心：")
    answers = ["白日", "明月", "黄河"]
    for prompt in ("床前", "举头望"):
        params = SamplingParams(temperature=0)
        (found,) = writer.generate([prompt], params, constraint=Constraint.choices(answers))
        print(f"   {prompt}│{found.text}（{found.finish_reason}）")
        assert found.text in answers
    assert found.text == "明月"

    # 温度 3 几乎是乱写：字不成句，格式却一点不差
    print("2. 五个字一句，温度 3 也守规矩：")
    rule = Constraint.regex("[^，。\\n]{5}，[^，。\\n]{5}。")
    for seed in range(3):
        params = SamplingParams(temperature=3.0, seed=seed)
        (found,) = writer.generate(["春"], params, constraint=rule)
        print(f"   {found.text}（{found.finish_reason}）")
        assert [len(half) for half in found.text.split("，")] == [5, 6]

    # 地方越小，越早收尾；只有一个位置时，只好写「月」
    print("3. 「…月」要以月字收尾，只许写 n 个字：")
    rule = Constraint.regex("[^月\\n]*月")
    for n in (1, 3, 6):
        params = SamplingParams(max_new_tokens=n, seed=1, temperature=2.0)
        (found,) = writer.generate(["白"], params, constraint=rule)
        print(f"   n = {n}　{found.text}（{found.finish_reason}）")
        assert found.text.endswith("月")
        assert len(found.text) <= n
    # 写不下的，与这个词表拼不出的：在跑模型之前就说
    for pattern in ("[^月]{9}月", "moon"):
        try:
            writer.generate(["白"], params, constraint=Constraint.regex(pattern))
            raise AssertionError("a rule that cannot be kept was accepted")
        except ValueError as error:
            print(f"   {error}")
    not_the_same_distribution()


def not_the_same_distribution() -> None:
    """逐步划掉，不等于从合格的里面抽：第一步看不见后面。

    两个字的语言：p(a) = 0.9，a 之后 b 的概率只有 0.01；p(c) = 0.1，c 之后必是 b
    """
    allowed = {"ab": 0.9 * 0.01, "cb": 0.1 * 1.0}
    total = sum(allowed.values())
    # 「合格的里面各占几成」要看整句的概率：ab 只有 0.009。
    # 第一步 a 与 c 都许，照原样抽；第二步只许 b，归一之后必是 b
    stepwise = {"ab": 0.9, "cb": 0.1}
    print("4. 规则 [ac]b：逐步划掉抽到的，与「合格文本里各占几成」：")
    for text, p in allowed.items():
        print(f"   {text}　{stepwise[text]:.2f}　{p / total:.2f}")
    assert stepwise["ab"] > 0.5 > allowed["ab"] / total


if __name__ == "__main__":
    run_demo(demo)
