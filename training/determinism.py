r"""同样的种子、同样的数据，为什么两次训练还可能差末几位？——加法的次序；确定模式把它定死。

浮点加法不满足结合律，换个次序，末位就不同：

$$(a + b) + c \;\ne\; a + (b + c), \qquad
  (10^{8} - 10^{8}) + 1 = 1,\quad 10^{8} + (-10^{8} + 1) = 0 \ \text{（fp32）}$$

次序由谁定？

    哪里                       次序会变吗                      确定模式做什么
    CPU，线程数固定            不变：每段归谁是算好的          换掉少数按到达先后相加的算子
    CPU，换了线程数            变：分段不同                    管不了：存档记着线程数，不同就警告
    GPU 的 scatter / index_add 变：谁先到谁先加（atomicAdd）   换成排好序再加的实现，或报错
    cuBLAS                     变：多个流共用一块工作区        给它固定的工作区
    cuDNN                      变：试跑几种算法，挑当时最快的  不试，用确定的那种

    with deterministic_mode(True):       进来：记下原来的开关，换上确定的
        训练                             里面：没有确定实现的算子会报错，不会悄悄放过
                                         出来：原来的开关一个个放回

要它做什么：查错时「再来一遍还是这样」；核对两台同样的机器。不开它，这里的训练在 CPU 上也逐比特
可重现（测试守着），在 GPU 上则只差末几位。它的代价用 benchmarks/deterministic_cost.py 量。

工作区要在 cuBLAS 第一次用之前说（CUBLAS_WORKSPACE_CONFIG 是环境变量，那时才读），所以先进来，
再碰 GPU；来晚了，torch 会在第一个矩阵乘法上报错，并说明怎么办。

参考：PyTorch 文档 *Reproducibility*；cuBLAS 手册 *Results Reproducibility*；
      浮点数 — Goldberg, *What Every Computer Scientist Should Know*, 1991。

改哪里：多管一个开关 → deterministic_mode 里成对地换上与放回；训练里打开它 →
        TrainConfig(deterministic=True)，命令行 --deterministic。
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from foundation.demonstration import run_demo

__all__ = ["deterministic_mode"]

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACE_SIZE = ":4096:8"  # 八块，每块 4096 KiB：手册给的两种确定的设置之一，另一种慢些


@contextmanager
def deterministic_mode(enabled: bool) -> Iterator[None]:
    """里面只用确定的算子；enabled=False 什么也不做，别人设好的也不动。

    约定：出来时（包括出错）全局的开关都放回原样；可以套着用
    错误：里面用到没有确定实现的算子 → torch 的 RuntimeError，写明是哪个算子
    """
    if not enabled:
        yield  # 原样进，原样出
        return
    # ① 记下原来的：开关是全进程的，不能改了不还
    before = torch.are_deterministic_algorithms_enabled()
    # 有人可能只要警告：这也是状态，一起记
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn
    deterministic, benchmark = cudnn.deterministic, cudnn.benchmark
    workspace = os.environ.get(WORKSPACE)
    try:
        # ② 用户自己设过工作区的，听用户的
        if workspace is None:
            os.environ[WORKSPACE] = WORKSPACE_SIZE
        torch.use_deterministic_algorithms(True, warn_only=False)  # 不许只警告
        cudnn.deterministic, cudnn.benchmark = True, False  # 不试跑，不挑
        yield
    finally:
        # ③ 一个个放回
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        cudnn.deterministic, cudnn.benchmark = deterministic, benchmark
        if workspace is None:
            os.environ.pop(WORKSPACE, None)  # 原来没有的，也不留下


def demo() -> None:
    """次序改变末位；进去出来，开关各是什么；里面算两遍逐比特相同。"""
    print("① fp32 的加法换个次序")
    # fp32 只有七位有效数字：1 加到一亿上，加了等于没加
    numbers = torch.tensor([1e8, -1e8, 1.0])
    left = (numbers[0] + numbers[1]) + numbers[2]
    right = numbers[0] + (numbers[1] + numbers[2])
    print(f"   (1e8 − 1e8) + 1 = {left.item():.0f}，1e8 + (−1e8 + 1) = {right.item():.0f}")
    assert (left.item(), right.item()) == (1.0, 0.0)

    print("② 开关：进去之前、里面、出来之后")
    # 三个时刻各看一眼
    seen = [torch.are_deterministic_algorithms_enabled()]
    with deterministic_mode(True):
        seen.append(torch.are_deterministic_algorithms_enabled())
        inside = os.environ[WORKSPACE]
        # ③ 词向量的梯度：同一行被加许多次，正是次序会变的那种算子
        runs = [_embedding_gradient() for _ in range(2)]
    seen.append(torch.are_deterministic_algorithms_enabled())
    print(f"   {seen}；里面的 {WORKSPACE} 是 {inside}")
    assert seen == [False, True, False]
    print(f"③ 里面的词向量梯度算两遍，逐比特相同：{torch.equal(*runs)}")
    assert torch.equal(*runs)

    print("④ 里面出了错也会放回")
    try:
        # 就像训练到一半抛了异常
        with deterministic_mode(True):
            raise KeyError("as if training failed")
    except KeyError:
        print(f"   现在是 {torch.are_deterministic_algorithms_enabled()}")
    assert not torch.are_deterministic_algorithms_enabled()


def _embedding_gradient() -> torch.Tensor:
    """一千个词元只有七种：每一行的梯度由一百多个数加成。"""
    torch.manual_seed(0)  # 两遍用同样的数，差别就只能来自加法的次序
    table = torch.nn.Embedding(7, 16)
    places = torch.randint(7, (1000,))  # (N,)
    torch.autograd.backward((table(places) * torch.randn(1000, 16)).sum())
    assert table.weight.grad is not None
    return table.weight.grad


if __name__ == "__main__":
    run_demo(demo)
