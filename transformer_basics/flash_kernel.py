r"""分块注意力的三个核，怎样装进 PyTorch？——挑块、铺程序、接上自动求导。

核做什么在 flash_programs.py；这一页是它与 PyTorch 之间的薄薄一层，接口与 flash_attention.py 相同：

    kernel_attention(Q, K, V)
        │ ① 挑块：flash_budget.py 按 SRAM 算出 (B_Q, B_K)，前向、反向各一组
        │ ② 前向  B·H·⌈T/B_Q⌉ 个程序 ──► O、L         存下 Q、K、V、O、L，没有 T×T
        │ ③ 反向  D = rowsum(dO ⊙ O)
        │          B·H·⌈T/B_Q⌉ 个程序 ──► dQ
        └──        B·G·⌈S/B_K⌉ 个程序 ──► dK、dV      G 个键值头：同组的查询头在程序里加完

程序的个数就是并行的宽度：一张卡有一百多个处理器，B·H·⌈T/B_Q⌉ 小于它就有处理器闲着。
第一版的论文只按 B·H 铺开，第二版才也按查询块铺——长文本、小批量时，处理器全靠它才不闲着。

$$\text{误差：}\quad |\hat O - O| \lesssim 2\epsilon\,\max|V|,\qquad
  \epsilon = 2^{-24}\ (\text{float32}),\ 2^{-8}\ (\text{bf16})$$

softmax 与三个累加器总是 float32；16 位的输入，P 要先变回 16 位才能用张量核去乘，
这一次舍入就是与 flash_attention.py（一路 float32）唯一的差别，也是各家核共同的做法。

谁来用：CausalSelfAttention(implementation="flash") 在 CUDA 上、装了 Triton 时走核
（kernel_or_tiles），其余情形照旧走 Python 的分块。默认的 "fast" 不变：PyTorch 自带的核会随卡挑选。

第一次叫它要等一会儿：Triton 把核编译成机器码，存在磁盘上，下次直接取。头宽、块、因果与否是
常数，换一个就另编译一份；T、S 与窗口是普通的整数，换了不必重来（只分「是不是 16 的倍数」）。

怎样知道真的走了核：
  · 层用 "flash"，张量在 CUDA 上，没有掩码、没有随机失活，也不在 torch.compile 里；
  · 每头不超过 WIDEST_HEAD 维，q 与 k 同类型；混合精度下 q/k 归一化若给出 float32，v 仍可以是 bf16；
  · 直接叫 kernel_attention：走不了核时它报错，说出缺什么，而不悄悄换路。

没有卡怎样核对：Triton 有解释器，用 numpy 逐句执行同一份核，慢，却能与公式比到末位；
它要在导入 Triton 之前设 TRITON_INTERPRET=1，所以演示与测试都另起一个进程。
解释器查不出的（编译不过、片上装不下、寄存器溢出），测试用编译器查：编译不需要卡。
真卡上的快慢与数值，只有带 gpu 记号的测试看得见。

论文：Dao 等 2022 (arXiv:2205.14135)；Dao 2023，按查询块铺开 (arXiv:2307.08691)

改哪里：核里的算法 → flash_programs.py；块的大小 → flash_budget.py；
       几个线程束、几级流水 → launch 的 num_warps、num_stages；
       让默认的 "fast" 也走核 → fast_attention.py，先量过再换。
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from foundation.demonstration import run_demo
from transformer_basics.attention_tiles import Rules, rules_for
from transformer_basics.flash_attention import flash_attention
from transformer_basics.flash_budget import padded, tile_sizes
from transformer_basics.flash_programs import (
    forward_kernel,
    key_value_gradient_kernel,
    query_gradient_kernel,
    triton,
)

__all__ = ["kernel_attention", "kernel_is_available", "kernel_or_tiles"]

# 直接执行时本页叫 __main__，子进程要用它的真名
PAGE = "transformer_basics.flash_kernel"
WIDEST_HEAD = 128  # 再宽，一块 q 加上 a 就放不进寄存器了
# float64 只有对答案时才用；要它，走 flash_attention
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def interpreting() -> bool:
    """Triton 的解释器开着吗：它在导入时就定下了，之后再设没有用。

    约定：看核本身变成了什么，而不看环境变量，后者可能在导入之后才改
    """
    return triton is not None and not isinstance(forward_kernel, triton.JITFunction)


def interpreter_works() -> bool:
    """这里的解释器能不能用：Triton 3.7 之前的，在 NumPy 2.4 起不会读循环的上下界。

    只关乎解释器；在卡上跑的是编译出来的机器码，用不着 NumPy
    """
    if triton is None:
        return False
    newer = [int(part) for part in triton.__version__.split(".")[:2]] >= [3, 7]
    return newer or [int(part) for part in np.__version__.split(".")[:2]] < [2, 4]


def kernel_is_available() -> bool:
    """这台机器能不能跑核：有 Triton，并且有够新的 CUDA 卡，或者开着解释器。

    约定：只看机器；某次输入合不合，见 kernel_fits
    """
    if triton is None or interpreting():
        return triton is not None
    # 8.0 起才有 bf16 的张量核与异步的搬运；更旧的卡这里不照管
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def kernel_fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """核认得的输入：16 位或 float32，每头不超过 WIDEST_HEAD 维，q 与 k 同类型。

    解释器用 numpy，它没有 bf16，tl.dot 会把位串当整数去乘，不报错：所以在那里不收
    """
    widest = max(query.shape[-1], value.shape[-1])
    dtypes = [x for x in DTYPES if not (interpreting() and x is torch.bfloat16)]
    known = query.dtype in dtypes and value.dtype in dtypes
    return known and query.dtype == key.dtype and widest <= WIDEST_HEAD


class Shape(NamedTuple):
    """铺程序要知道的几个大小；规则里已有 T 与 S。

    d 与 e 在核里是常数：每换一个头宽，就另编译一份
    """

    batch: int  # B
    heads: int  # H
    groups: int  # G
    head: int  # d
    wide: int  # e


def launch(
    kernel: Any, n_starts: int, tensors: list[Any], rules: Rules, scale: float, shape: Shape
) -> None:
    """把一个核铺到卡上：n_starts 个程序，同时跑多少个由卡定。

    线程束取 8：编译器报告，取 4 时 128 行的块会把寄存器溢到显存里
    """
    # 没有窗口就是一个够不着的窗口：核里少一条分支，也少编译一份
    window = rules.window or rules.n_queries + rules.n_keys
    # Triton 只往「当前」的卡上派活；张量在别的卡上时要先换过去
    with torch.cuda.device_of(tensors[0]):
        kernel[(n_starts,)](
            *tensors, shape.heads, shape.groups, rules.n_queries, rules.n_keys, window, scale,
            CAUSAL=rules.causal, D=shape.head, E=shape.wide, D_PAD=padded(shape.head),
            E_PAD=padded(shape.wide), BQ=rules.query_tile, BK=rules.key_tile,
            num_warps=8, num_stages=2, enable_fp_fusion=True,
        )  # fmt: skip


def blocks(length: int, tile: int) -> int:
    """几块才盖得住：⌈length / tile⌉。

    Python 的整除向下取整，负数的整除再取负，就是向上取整
    """
    return -(-length // tile)


class _FlashKernel(torch.autograd.Function):
    """与 flash_attention.py 的 _FlashAttention 存同样的东西，只把循环换成核。

    ways 是前向与反向各一份规则：只有块的大小不同
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        documents: Tensor | None,
        ways: tuple[Rules, Rules],
        scale: float,
    ) -> Tensor:
        # ① 核按 (行, d) 紧挨着读；拆头时转置出来的视图在这里抄成紧的
        query, key, value = (x.contiguous() for x in (query, key, value))
        batch, heads, n_queries, head = query.shape
        ctx.shape = shape = Shape(batch, heads, key.shape[1], head, value.shape[-1])
        ctx.rules, ctx.scale = ways[1], scale
        # ② 每块查询一个程序；O 与 L 由程序写满，不必先清零
        output = value.new_empty(batch, heads, n_queries, shape.wide)  # (B, H, T, e)
        logsumexp = query.new_empty(batch, heads, n_queries, dtype=torch.float32)  # L
        #    程序排成一维：第二、三维最多 65535 个，B·H 大时就不够了
        starts = batch * heads * blocks(n_queries, ways[0].query_tile)
        tensors = [query, key, value, documents, output, logsumexp]
        launch(forward_kernel, starts, tensors, ways[0], scale, shape)
        # ③ 存下的只随 T 线性增长：与 flash_attention.py 的 ④ 一样；
        #    反向的块比前向小，因为 dK、dV 两个累加器也要寄存器
        ctx.save_for_backward(query, key, value, documents, output, logsumexp)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Any:
        query, key, value, documents, output, logsumexp = ctx.saved_tensors
        rules, shape = ctx.rules, ctx.shape
        # output.sum() 的梯度是一个数广播出来的，步长为 0：也要抄紧
        slope = slope.contiguous()  # (B, H, T, e)
        # ④ D = rowsum(dO ⊙ O)：每行一个数，PyTorch 一句就够；16 位的先变宽再乘
        inner = (slope.float() * output.float()).sum(-1)  # (B, H, T)
        #    它读两遍、写一行，是搬运而不是乘法，写成核也快不了多少
        given = [query, key, value, documents, slope, logsumexp, inner]
        grads = [torch.empty_like(x) for x in (query, key, value)]  # 程序会写满，不必清零
        # ⑤ 一块查询一个程序，一块键一个程序：各写各的，不抢
        by_query = shape.batch * shape.heads * blocks(rules.n_queries, rules.query_tile)  # dQ
        by_key = shape.batch * shape.groups * blocks(rules.n_keys, rules.key_tile)  # dK、dV
        more = rules, ctx.scale, shape
        launch(query_gradient_kernel, by_query, [*given, grads[0]], *more)
        launch(key_value_gradient_kernel, by_key, [*given, *grads[1:]], *more)
        # 文档编号、规则与比例没有梯度
        return (*grads, None, None, None)


def kernel_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    document_ids: Tensor | None = None,
    query_tile: int | None = None,
    key_tile: int | None = None,
) -> Tensor:
    """与 flash_attention 同一个签名、同一个结果；块的大小默认按 SRAM 算。

    公式：O = softmax(QKᵀ·scale + M)·V，scale 默认 1/√d；M 由因果、窗口、文档三条规则合成
    形状：Q (B, H, T, d)、K (B, G, S, d)、V (B, G, S, e) → O (B, H, T, e)；document_ids (B, S)
    约定：右下角对齐；一个键也看不见的行输出 0、梯度 0；梯度每次都一字不差地相同
    类型：float32、bfloat16、float16；softmax 与累加在 float32，P 以 V 的类型去乘
    错误：这里跑不了核、输入太宽或类型不认得、块不是 ≥ 16 的 2 的幂 → ValueError
    """
    # 先说机器，再说输入：在没有卡的机器上，换什么输入都没有用
    if not (kernel_is_available() and (query.is_cuda or interpreting())):
        raise ValueError(
            f"the kernel needs Triton (found: {triton is not None}) and a CUDA device of capability"
            f" 8.0, or TRITON_INTERPRET=1 set before the import; got tensors on {query.device};"
            " flash_attention runs everywhere"
        )
    if not kernel_fits(query, key, value):
        raise ValueError(
            f"the kernel takes {DTYPES} (no bfloat16 in the interpreter), query and key alike, and"
            f" head sizes up to {WIDEST_HEAD}; got {query.dtype}, {key.dtype}, {value.dtype} and"
            f" {query.shape[-1]}, {value.shape[-1]}"
        )
    # 前向与反向各挑各的块；手里指定了的，两边都听它
    # 核里 Q、K、V 一起住在片上，按最宽的那个算账
    itemsize = max(query.element_size(), value.element_size())
    ways = []
    for backward in (False, True):
        best = tile_sizes(query.shape[-1], value.shape[-1], itemsize, backward)
        # 只来几个查询时（逐个词元地生成）不必补到 128 行
        rows = min(best[0], padded(query.shape[-2])) if query_tile is None else query_tile
        columns = best[1] if key_tile is None else key_tile
        ways.append(rules_for(query, key, value, causal, window, document_ids, rows, columns))
        if (rows, columns) != (padded(rows), padded(columns)):
            raise ValueError(f"tiles must be powers of two from 16 up, got {rows}, {columns}")
    # 文档编号由核按 (句, 位置) 去读，也要紧挨着
    documents = None if document_ids is None else document_ids.contiguous()
    # 补到 2 的幂的 d 只在片上；比例用的是真的 d
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    output: Tensor = _FlashKernel.apply(query, key, value, documents, tuple(ways), scale)
    return output


def kernel_or_tiles(
    query: Tensor, key: Tensor, value: Tensor, *, window: int | None = None
) -> Tensor:
    """implementation="flash" 在卡上走的路：能用核就用核，不能就用 Python 的分块。

    形状：与 flash_attention 相同；结果也相同，差在舍入
    约定：不合的输入（float64、太宽的头、没有 Triton）不报错，只是慢
    """
    # 直接叫 kernel_attention 会报错；这里是层在用，宁可慢也要有结果
    usable = query.is_cuda and kernel_is_available() and kernel_fits(query, key, value)
    # 编译中的图还没有验证过这几个核，照旧走分块
    if usable and not torch.compiler.is_compiling():
        return kernel_attention(query, key, value, window=window)
    return flash_attention(query, key, value, window=window)


def compare_with_formula() -> None:
    """在解释器里跑核，与公式比输出和三个梯度；由 demo 在子进程里叫起。

    21、37 与 24 都不是块的整数倍：补出来的行、列、键，三处都用上了
    """
    from transformer_basics.attention import scaled_dot_product_attention
    from transformer_basics.heads import repeat_heads
    from transformer_basics.masks import attention_mask

    torch.manual_seed(0)
    query = torch.randn(1, 4, 21, 24, requires_grad=True)  # (B, H, T, d)
    key, value = (torch.randn(1, 2, 37, 24, requires_grad=True) for _ in range(2))
    inputs = query, key, value
    # 三种看法各比一遍；掩码由 masks.py 画，与核里现算的是两份代码
    for name, causal, window in (
        ("全看", False, None),
        ("因果", True, None),
        ("窗口 18", True, 18),
    ):
        mask = attention_mask(21, 37, window=window) if causal else None
        kernel = kernel_attention(*inputs, causal=causal, window=window, query_tile=16, key_tile=16)
        # 参照的公式要把同组的键值头抄成 H 份；核不抄，靠序号去找
        copies = repeat_heads(key, 4), repeat_heads(value, 4)
        written = scaled_dot_product_attention(query, *copies, mask)[0]
        # 同一个随机的 dO，两边各求一遍导
        slope = torch.randn_like(kernel)
        mine, right = ((y, *torch.autograd.grad(y, inputs, slope)) for y in (kernel, written))
        gaps = [float((a - b).detach().abs().max()) for a, b in zip(mine, right, strict=True)]
        line = "  ".join(f"{letter} {gap:.0e}" for letter, gap in zip("OQKV", gaps, strict=True))
        print(f"   {name}：与公式相差 {line}")
        assert max(gaps) < 5e-6  # 只差加法的次序


def demo() -> None:
    """数一数程序，查一查谁能跑；有 Triton 就在解释器里真跑一遍。

    程序数由形状算出，与机器无关；解释器要在导入 Triton 之前打开，所以另起一个进程
    """
    tile = tile_sizes(64, 64, 2)[0]
    print(f"① 1 句、8 个头、d = 64、16 位，B_Q = {tile}：只按 B·H 铺，与也按查询块铺，各几个程序")
    for length in (100, 1000, 8000):
        # T 短时两种一样多：那时并行的宽度只能来自句数与头数
        print(f"   T = {length:4d}  8 → {8 * blocks(length, tile)}")
    assert 8 * blocks(8000, tile) > 132 > 8  # 一张 H100 有 132 个处理器
    # 能不能跑只看这台机器，所以印出来，不断言
    print(f"② 这里能跑核吗：{kernel_is_available()}", end="，")
    print(f"Triton {'没有' if triton is None else triton.__version__}，CUDA {torch.version.cuda}")
    if not interpreter_works():
        # Triton 只有 Linux 的轮子；有的旧版解释器与新的 NumPy 不合
        print("③ 这里没有能用的 Triton 解释器；同样的算法用 PyTorch 写的，见 flash_attention.py")
        return
    # 子进程的输出照样印在这里；它断言失败，这里也跟着失败
    print("③ 在解释器里跑三个核（4 个查询头共用 2 个键值头，T = 21、S = 37、d = 24）")
    root = str(Path(__file__).resolve().parents[1])
    extra = {"TRITON_INTERPRET": "1", "PYTHONPATH": root, "PYTHONUTF8": "1"}
    child = subprocess.run(
        [sys.executable, "-c", f"from {PAGE} import compare_with_formula as go; go()"],
        env={**os.environ, **extra},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert child.returncode == 0, child.stderr
    print(child.stdout, end="")


if __name__ == "__main__":
    run_demo(demo)
