r"""考了 100 题，对了 31 题——真比瞎猜的 25 % 强吗？标准误（standard error）告诉你该不该信。

分数是题目的平均，题目是抽来的：换一批同样难的题，分数就会不同。标准误估计它会晃多少：

$$\mathrm{SE} = \sqrt{\frac{1}{n(n-1)}\sum_i (x_i - \bar x)^2},\qquad
  \text{对错题：}\ \mathrm{SE} = \sqrt{\frac{\bar x(1-\bar x)}{n-1}}$$

    题数 n       100      400     1600            n 变 4 倍，SE 才减半
    SE（p=¼）   4.4 %    2.2 %    1.1 %
                                                  真值约有 95 % 落在 x̄ ± 1.96·SE 里
    瞎猜 25 % ┼──────┤ 33.5 %                      100 题对 31 题：31 % ± 8.5 %，25 % 还在里面
         22.5 % ├──────●──────┤ 39.5 %

所以 100 题对 31 题，还不能说比瞎猜强；400 题对 124 题（同样 31 %），就可以了。
比较两个模型时同理：差别若不到两个标准误之和，先别急着说谁好；多考些题，或换几个种子。

为什么除以 n − 1：平均数是从同一批数算出来的，离它们自己的平均总比离真值近一点，n − 1 补回来。

常见疑问：
    全对（或全错）时标准误是 0，就一点不会错吗？  不是，只是这批题没有分出高下；题要再多、再难
    同一题答很多次，能减小它吗？                  不能，题目才是抽来的；每题先平均，再按题算
    两个模型考同一份卷子，怎样比？                逐题相减再求标准误，比各算各的灵敏得多
    平均分以外的呢（困惑度）？                    它也晃，只是按文档算；这里不管

论文：Miller, *Adding Error Bars to Evals*, arXiv:2411.00640。
改哪里：题目成组（同一篇文章出几题）时，组内不独立，要先按组平均再交给 `estimate`。
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from foundation.demonstration import run_demo

__all__ = ["Estimate", "estimate"]


@dataclass(frozen=True)
class Estimate:
    """一个平均数，和它会晃多少。

    value  平均
    error  标准误；只有一个数时无从知道，是 None
    n      多少个数的平均
    """

    value: float
    error: float | None
    n: int

    def __str__(self) -> str:
        tail = "" if self.error is None else f" ± {100 * self.error:.1f}"
        return f"{100 * self.value:.1f}{tail} %"


def estimate(values: Iterable[float]) -> Estimate:
    """平均与标准误；每个数是一道题的得分，多半是 0 或 1。

    错误：一个数也没有 → ValueError
    """
    scores = list(values)
    if not scores:
        raise ValueError("there is nothing to average: 0 scores")
    n = len(scores)
    # fsum 不积累舍入：一百万个 0.1 加起来正好是十万
    mean = math.fsum(scores) / n
    if n == 1:
        return Estimate(mean, None, 1)
    squares = math.fsum((score - mean) ** 2 for score in scores)
    # n − 1 给方差，再除以 n 给平均数的方差
    return Estimate(mean, math.sqrt(squares / (n - 1) / n), n)


def demo() -> None:
    """公式对不对？把同一场考试考几千遍，数一数真值落在 ±1.96·SE 里的有几成。"""
    # ① 对错题，一般的公式与 p(1−p) 的公式是同一个
    scores = [1.0] * 31 + [0.0] * 69
    found = estimate(scores)
    by_share = math.sqrt(0.31 * 0.69 / 99)
    print(f"① 100 题对 31 题：{found}；按 p(1−p) 算的标准误 {100 * by_share:.1f} %")
    assert found.error is not None
    assert math.isclose(found.error, by_share)

    # ② 题数变 4 倍，标准误减半：想看清一半大的差别，要四倍的题
    print("② 瞎猜（p = 1/4）时，题数与标准误")
    for n in (100, 400, 1600):
        right = n // 4
        error = estimate([1.0] * right + [0.0] * (n - right)).error
        assert error is not None
        print(f"   {n:5} 题：± {100 * error:.2f} %")

    # ③ 真值已知（0.31），考 4000 遍：区间该有 95 % 左右盖住它
    exams = (torch.rand(4000, 100) < 0.31).double()  # (遍, 题)
    covered = 0
    for exam in exams.tolist():
        result = estimate(exam)
        assert result.error is not None
        # 盖住一次算一次
        covered += abs(result.value - 0.31) <= 1.96 * result.error
    share = covered / len(exams)
    print(f"③ 考 4000 遍，±1.96·SE 盖住真值的有 {100 * share:.1f} %")
    assert 0.92 < share < 0.97

    # ④ 题数够多，31 % 与瞎猜才分得开
    for n in (100, 400):
        right = 31 * n // 100
        result = estimate([1.0] * right + [0.0] * (n - right))
        assert result.error is not None
        clear = result.value - 1.96 * result.error > 0.25
        print(f"④ {n} 题对 {right} 题：{result}，{'比' if clear else '还不能说比'} 25 % 强")
        assert clear == (n == 400)


if __name__ == "__main__":
    run_demo(demo)
