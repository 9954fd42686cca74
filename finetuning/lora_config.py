r"""LoRA 的选择：给哪些线性层加、每层加多粗、缩放多少。

公式：缩放 $s = \alpha / r$；rsLoRA 为 $s = \alpha / \sqrt{r}$

一个模型的每个子模块都有一个用点号连接的全名。下面三种写法都能挑中它们：

    写法                       规则                         挑中的例子
    ─────────────────────────  ───────────────────────────  ─────────────────────────────
    "q_proj"                   后缀 (suffix)，以点号为界     blocks.0.attention.q_proj …
    "blocks.1.*"               通配 (glob)：含 * ? [         第 1 块里的每个线性层
    "re:blocks\.[01]\..*"      正则 (regex)，匹配整个名字    前两块里的每个线性层

r 与 α 怎么选（都是起点，不是规矩）：
    r        小模型、小改动 4～8；要学新知识、数据多，16～64。r 是容量，见 lora.py 的演示
    alpha    常取 r 的一到两倍。定下之后再试别的 r，学习率不必重调，这正是除以 r 的用意
    target   先只加 q、v；不够再加前馈层。参数相同时，多几层、每层细一点，多半更好
    学习率   比全量微调大，一般从 1e-3 起；B 从零开始，走得动才学得到

论文：Hu et al. 2021, LoRA, §7.1：参数预算固定时，q、v 都加一点，胜过只给 q 加很多；
      Kalajdzievski 2023, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA
改哪里：想多一种挑法，改 `matches`；加一个选项，在 `LoRAConfig` 里添字段，
        再到 lora.py 用它、到 adapter_files.py 存它。
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from foundation.checks import check_bool, check_float, check_int, nearest
from foundation.demonstration import run_demo

__all__ = ["LoRAConfig", "first_pattern", "match_names", "matches"]

REGEX_MARK = "re:"


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """一个适配器 (adapter) 的全部选择。

    r              秩 (rank)：两条矩阵的细边
    alpha          缩放的分子；固定它再改 r，改动的大小大致不变，不必重调学习率
    dropout        只丢低秩那一路的输入
    target         挑哪些线性层，写法见本文件开头
    use_rslora     缩放用 α/√r
    use_dora       另学每个输出的长度
    rank_pattern   {正则: r}，给个别层另设；alpha_pattern 同理

    例：LoRAConfig(r=8, target=("q_proj", "up_proj"), rank_pattern={"up_proj": 32})
        注意力用 8，前馈层宽四倍，给它 32
    错误：类型、范围不对一律 ValueError，说出字段、给的值与允许的范围
    """

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target: tuple[str, ...] = ("q_proj", "v_proj")
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # r 大于矩阵的边长不算错：只是白费参数，容量不会超过满秩
        check_int("r", self.r, 1)
        check_float("alpha", self.alpha, exclusive_minimum=0.0)
        check_float("dropout", self.dropout, 0.0, exclusive_maximum=1.0)
        check_bool("use_rslora", self.use_rslora)
        check_bool("use_dora", self.use_dora)
        # 键是正则，值是数，两样都要查：写错的正则在这里说，比匹配到一半才说清楚
        for pattern, rank in self.rank_pattern.items():
            check_regex("rank_pattern", pattern)
            check_int(f"rank_pattern[{pattern!r}]", rank, 1)
        for pattern, alpha in self.alpha_pattern.items():
            check_regex("alpha_pattern", pattern)
            check_float(f"alpha_pattern[{pattern!r}]", alpha, exclusive_minimum=0.0)
        # 单个字符串也收下：不然它会被拆成一个个字母去匹配，是 Python 里最常见的误会之一
        target = (self.target,) if isinstance(self.target, str) else tuple(self.target)
        if not target or not all(isinstance(name, str) and name for name in target):
            raise ValueError(f"target must name at least one Linear layer, got {self.target!r}")
        for pattern in target:
            if pattern.startswith(REGEX_MARK):
                check_regex("target", pattern[len(REGEX_MARK) :])
        # 冻结的 dataclass 只有这一条路可以把字段换成规范的样子
        object.__setattr__(self, "target", target)

    def rank_of(self, name: str) -> int:
        """名为 `name` 的层的 r：先看 rank_pattern，没有就用 r。

        name 是层的全名，例如 blocks.0.attention.q_proj
        """
        pattern = first_pattern(self.rank_pattern, name)
        return self.r if pattern is None else self.rank_pattern[pattern]

    def alpha_of(self, name: str) -> float:
        """名为 `name` 的层的 α：先看 alpha_pattern，没有就用 alpha。

        只另设 r 而不另设 α，缩放也会跟着变，因为 α/r 里的 r 变了
        """
        pattern = first_pattern(self.alpha_pattern, name)
        return self.alpha if pattern is None else self.alpha_pattern[pattern]

    def scaling_of(self, name: str) -> float:
        r"""这一层的缩放 $\alpha / r$，rsLoRA 则是 $\alpha / \sqrt{r}$。

        AB 的每个数是 r 项之和。各项方向不一时，和按 √r 增长，除以 r 就多压了 √r 倍，
        r 越大学得越慢；除以 √r 才让改动的大小与 r 无关。
        """
        # 两个数都按层取：另设了 r 的层，缩放也用它自己的 r
        rank = self.rank_of(name)
        return self.alpha_of(name) / (math.sqrt(rank) if self.use_rslora else rank)


def check_regex(where: str, pattern: str) -> None:
    """正则写错了要在建配置时就说，而不是等到匹配第一层时。

    错误：ValueError，写明是哪个字段、哪一条、错在哪里
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{where}: {pattern!r} is not a regular expression: {error}") from None


def matches(pattern: str, name: str) -> bool:
    """全名 `name` 是否被这一条写法挑中。

    三种写法从形式上就分得开，不必猜：以 re: 开头的是正则，含 * ? [ 的是通配，其余是后缀。
    """
    if pattern.startswith(REGEX_MARK):
        # fullmatch 而不是 match：只匹配开头的话，"re:blocks.1" 会连 blocks.10 一起挑中
        return re.fullmatch(pattern[len(REGEX_MARK) :], name) is not None
    if any(mark in pattern for mark in "*?["):
        # 不分大小写的 fnmatch 在 Windows 上会换一种行为，所以用 fnmatchcase
        return fnmatchcase(name, pattern)
    # 以点号为界："proj" 不该挑中 "q_proj"，否则手一滑就给所有层都加上了
    return name == pattern or name.endswith("." + pattern)


def match_names(patterns: Sequence[str], names: Iterable[str]) -> list[str]:
    """按模型里的顺序，返回被挑中的全名。

    错误：任何一条写法什么也没挑中 → ValueError，列出候选与最接近的一个。
          不能只要求「合起来挑中了」：三条里拼错一条，训练照常进行，只是悄悄少了一批层。
    """
    # 候选可能是个只能走一遍的迭代器，而下面每条写法都要走一遍
    names = list(names)
    for pattern in patterns:
        if not any(matches(pattern, name) for name in names):
            raise ValueError(nothing_matched(pattern, names))
    return [name for name in names if any(matches(pattern, name) for pattern in patterns)]


def nothing_matched(pattern: str, names: Sequence[str]) -> str:
    """写出「什么也没挑中」的错误：最接近的名字，和去重后的候选。

    一条好的报错回答三个问题：给了什么、可以给什么、多半想给什么
    """
    if not names:
        return f"target {pattern!r} matches nothing: this model has no Linear layer inside"
    # 名字的最后一节就是「哪一种层」：q_proj、up_proj……
    # 几十层里同名的线性层只列一次，读的人要的是「有哪几种」
    kinds = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))
    # 用户多半写的是短名；短名里没有相近的，再到全名里找
    guess = nearest(pattern, kinds) or nearest(pattern, names)
    hint = f"did you mean {guess!r}? " if guess else ""
    return (
        f"target {pattern!r} matches no Linear layer of this model; "
        f"{hint}candidates: {', '.join(kinds)} (a full name looks like {names[0]!r})"
    )


def first_pattern(patterns: Iterable[str], name: str) -> str | None:
    """给个别层另设 r 或 α 时用：第一条匹配 `name` 的写法，没有则 None。

    规则与 PEFT 的 `rank_pattern`、`alpha_pattern` 完全一样（正则，从任意点号处起，到末尾止），
    这样同一份 adapter_config.json 在两边落到同样的层上。
    """
    for pattern in patterns:
        if re.match(rf"(.*\.)?({pattern})$", name):
            return pattern
    return None


def demo() -> None:
    """在一个两层小模型的名字表上，看三种写法各挑中什么、拼错时说什么。

    最后看缩放怎样随 r 变：左边越来越小，右边慢得多。
    """
    # 与 GPT 里的名字相同，只是少了几种
    names = [
        f"blocks.{index}.{layer}"
        for index in range(2)
        for layer in ("attention.q_proj", "attention.v_proj", "feed_forward.up_proj")
    ]
    print("一、三种写法")
    for pattern, expected in (
        ("q_proj", 2),
        ("attention.v_proj", 2),
        ("blocks.1.*", 3),
        (r"re:blocks\.0\.attention\.[qv]_proj", 2),
    ):
        chosen = match_names([pattern], names)
        assert len(chosen) == expected
        print(f"  {pattern:36} → {', '.join(chosen)}")
    # 半个名字谁也不是
    assert not any(matches("proj", name) for name in names)

    print("\n二、拼错一个字母：不是「零层被选中、训练照常」，而是")
    try:
        match_names(["v_proj", "q_porj"], names)
        raise AssertionError("a typo must be refused")
    except ValueError as error:
        print(f"  ValueError: {error}")

    # 其余不变，只改 r，看缩放
    print("\n三、缩放随 r 的变化（α = 16）")
    print(f"  {'r':>4} {'α/r':>8} {'α/√r':>8}")
    for rank in (1, 4, 16, 64):
        plain = LoRAConfig(r=rank).scaling_of("q_proj")
        stable = LoRAConfig(r=rank, use_rslora=True).scaling_of("q_proj")
        print(f"  {rank:4} {plain:8.2f} {stable:8.2f}")
        # 两者之比正是 √r：r 越大，α/r 压得越狠
        assert math.isclose(stable, plain * math.sqrt(rank))


if __name__ == "__main__":
    run_demo(demo)
