r"""让模型写程序，给它 k 次机会，至少一次写对的概率是多少？——pass@k 与它的无偏估计。

写程序不必与标准答案逐字相同，跑得过测试就是对。每题写 n 份，数出 c 份对的，再估 pass@k：

$$\widehat{\text{pass@}k} = 1 - \frac{\binom{n-c}{k}}{\binom{n}{k}}
  = 1 - \prod_{i=n-c+1}^{n}\left(1 - \frac{k}{i}\right)$$

读法：从 n 份里不放回地抽 k 份，一份对的也没抽到的概率是 C(n−c, k) / C(n, k)；1 减去它。

    n = 5 份，c = 2 份对（●），k = 2
    ● ● ○ ○ ○      抽 2 份共 10 种；全是 ○ 的有 3 种      pass@2 = 1 − 3/10 = 0.7

为什么不直接写 k 份、看有没有一份对？那也无偏，但 k 份只得一个 0 或 1，晃得厉害；
n 份能当许多个 k 份用。
为什么不用 1 − (1 − c/n)ᵏ？c/n 当真值代进去，凸函数的平均不等于平均的函数，它总是偏低：

    真值 p = 0.2，k = 5     1 − (1−p)⁵ = 0.672
    n = 5 份时的平均        无偏：0.672      代入：低了几个百分点（见演示）

写 n 份要抽样（温度大于 0）：贪心的 n 份都一样，pass@5 就等于 pass@1。

k 取多少：
    pass@1      交上去就算数的场合；也等于「随手写一份，对的概率」
    pass@10     人会挑一挑、试一试的场合
    pass@100    有自动测试筛选的场合：写得多不要紧，有一份对就行
n 至少取 k，取几倍更稳；n = k 时公式退化成「这 k 份里有没有对的」。

常见疑问：
    pass@k 一定随 k 变大？      对，多抽只会更可能抽到；k = n 时只要 c > 0 就是 1
    温度该取多少？              k 大时取高些（0.8），份与份才不同；pass@1 取低些（0.2）更好
    测试写得不够怎么办？        错的也会通过；分数就偏高。多写几个边角的例子
    n 份里有一样的要去掉吗？    不去：重复正是概率大的表现；只是不必重复运行
    标准误按题算还是按份算？    按题：同一题的几份不独立，见 standard_error.py

论文：HumanEval (Chen et al. 2021), arXiv:2107.03374, §2.1。
改哪里：怎样运行、限多少 → `code_runner.py`；怎样写 → `write_programs` 的 SamplingParams。
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from evaluation.code_runner import Outcome, run_program
from evaluation.exact_match import prompt_ids
from evaluation.standard_error import Estimate, estimate
from foundation.checks import check_int
from foundation.demonstration import run_demo
from gpt_model.model import GPT
from inference.generator import TextGenerator
from inference.sampling import SamplingParams
from tokenization.tokenizer import Tokenizer

__all__ = ["Problem", "ProgramWriter", "measure_pass_at_k", "pass_at_k", "write_programs"]

# 函数体到此为止：下一个顶格的定义、注释、打印，都不是它的一部分
CODE_STOPS = ("\ndef ", "\nclass ", "\n#", "\nif ", "\nprint", "\nassert ", "\n```")


@dataclass(frozen=True)
class Problem:
    """一道编程题：程序 = prompt + 模型写的 + 换行 + tests；测试里用 assert。

    stop 缺省是「下一个顶格的东西」：函数写完了，后面再写的就不是它的了
    错误：prompt 或 tests 是空的、有空的停止串 → ValueError
    """

    prompt: str
    tests: str
    stop: tuple[str, ...] = CODE_STOPS

    def __post_init__(self) -> None:
        for name in ("prompt", "tests"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is empty: a problem needs a prompt and tests")
        if "" in self.stop:
            raise ValueError("a stop text is empty: it would end every program at once")

    def program(self, completion: str) -> str:
        """拼成能运行的一份；写出来的末尾没有换行，测试也不会接在它后面。"""
        return f"{self.prompt}{completion}\n{self.tests}\n"


# 一道题 → 写出来的 n 份；第几道题也告诉它，好让每题的种子不同
ProgramWriter: TypeAlias = Callable[[Problem, int], Sequence[str]]


def pass_at_k(n: int, c: int, k: int) -> float:
    """n 份里 c 份对，抽 k 份至少一份对的概率。

    公式：1 − C(n−c, k) / C(n, k)；错的不足 k 份时 C(n−c, k) = 0，必有一份对
    错误：c 不在 [0, n]、k 不在 [1, n] → ValueError

    >>> pass_at_k(5, 2, 2)
    0.7
    """
    # 写成 check_int，错了说得出是哪一个
    check_int("n", n, 1)
    check_int("c", c, 0, n)
    check_int("k", k, 1, n)
    # 整数的组合数没有舍入；n 上千也只是几个大整数
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def measure_pass_at_k(
    problems: Sequence[Problem],
    write: ProgramWriter,
    ks: Sequence[int] = (1,),
    *,
    run: Callable[[str], Outcome] = run_program,
) -> dict[str, Estimate]:
    """每个 k 的 pass@k，对各题平均；标准误按题算。

    形状：题数个 (n, c)，每个 k 一个平均；各题的 n 可以不同
    安全：run 缺省是有限制的子进程，但不是沙箱，见 code_runner.py
    错误：一道题也没有、某题写的份数比最大的 k 少 → ValueError
    """
    # 每题一对 (写了几份, 对了几份)
    counts = []
    for index, problem in enumerate(problems):
        # 题目、写的、测试，拼成一个文件
        programs = [problem.program(text) for text in write(problem, index)]
        # 相同的只跑一次：温度低时，几份常常一字不差
        # 集合去重，每个不同的程序运行一次
        passed = {program: run(program).passed for program in set(programs)}
        # 对的份数按写了几份算，重复的也算
        counts.append((len(programs), sum(passed[program] for program in programs)))
    # 同一批程序，几个 k 都从它们算：不必为每个 k 重写
    return {f"pass@{k}": estimate(pass_at_k(n, c, k) for n, c in counts) for k in ks}


def write_programs(
    model: GPT,
    tokenizer: Tokenizer,
    n: int,
    *,
    temperature: float = 0.8,
    max_new_tokens: int = 128,
    seed: int = 0,
) -> ProgramWriter:
    """用一个模型来写，每题 n 份；同样的种子写出同样的程序。

    n 份作为一批一起写；第 i 题用种子 seed + i，免得每题抽到同样的随机数
    错误：n > 1 而温度是 0：n 份会一字不差 → ValueError
    """
    check_int("samples", n, 1)
    # 贪心没有随机：写几份都是同一份
    if n > 1 and temperature == 0:
        raise ValueError(
            f"temperature 0 writes the same program {n} times; use a temperature above 0, "
            "or 1 sample"
        )
    # 温度大于 0：照概率抽
    writer = TextGenerator(model, tokenizer)

    def write(problem: Problem, index: int) -> list[str]:
        params = SamplingParams(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            num_return=n,
            stop=problem.stop,
            seed=seed + index,
        )
        # 题目太长就从左边砍，留出写的地方
        ids = prompt_ids(model, tokenizer, problem.prompt, max_new_tokens)
        # 只要文字；停在停止串之前
        return [found.text for found in writer.generate([ids], params)]

    return write


def demo() -> None:
    """数一遍所有抽法，与公式相同；无偏的不偏，代入的偏；真的跑几个程序。"""
    from itertools import combinations

    print("① n = 5、c = 2：数一遍所有抽法")
    # 五份里两份对
    right = [True, True, False, False, False]
    for k in (1, 2, 3, 4):
        # 不放回：组合，不是排列
        draws = list(combinations(right, k))
        # 至少一份对的抽法占几成
        share = sum(any(draw) for draw in draws) / len(draws)
        print(f"   k = {k}：{len(draws):2} 种抽法，{share:.3f}；公式 {pass_at_k(5, 2, k):.3f}")
        assert math.isclose(share, pass_at_k(5, 2, k))

    print("② 真值 p = 0.2、k = 5，每题写 5 份，两万题的平均")
    truth, n, k = 0.2, 5, 5
    # 两万道题，每题五份，份份独立
    counts = (torch.rand(20_000, n) < truth).sum(-1).tolist()
    # 两种算法，同一批数
    unbiased = sum(pass_at_k(n, c, k) for c in counts) / len(counts)
    # 把 c/n 当成真值代进去
    plugged = sum(1 - (1 - c / n) ** k for c in counts) / len(counts)
    # 独立地写 k 份，至少一份对
    exact = 1 - (1 - truth) ** k
    print(f"   真值 {exact:.3f}　无偏 {unbiased:.3f}　代入 {plugged:.3f}")
    assert abs(unbiased - exact) < 0.015
    # 低了不止三个百分点，不是碰巧
    assert plugged < exact - 0.03

    print("③ 两道题、各三份，真的运行")
    problems = [
        Problem("def double(x):\n", "assert double(4) == 8"),
        # 第二道的测试只有一句
        Problem("def last(items):\n", "assert last([1, 2, 3]) == 3"),
    ]
    # 第一题两对一错，第二题全错：取错位置、越界、没写完
    bodies = [
        ["    return 2 * x", "    return x * x", "    return x + x"],
        ["    return items[0]", "    return items[3]", "    return items["],
    ]
    # 六个程序，真的各起一个进程去跑
    for name, found in measure_pass_at_k(problems, lambda _, index: bodies[index], (1, 3)).items():
        print(f"   {name}：{found.value:.3f}")
    # 第一题三份对两份，第二题全错：pass@1 = (2/3 + 0) / 2，pass@3 = (1 + 0) / 2
    assert found.value == 0.5


if __name__ == "__main__":
    run_demo(demo)
