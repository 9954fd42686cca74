r"""Python 里的模型，C++ 怎样看得见？——只递指针，不抄一个数。

一个张量在内存里就是一段连续的数，加上「从哪里开始、多少行、多少列、什么类型」。把这几样按两边说好的
次序排成一个结构（struct），C++ 就能直接读 torch 的内存：

    Python: Matrix(kind=2, rows=768, …, data=0x7f…)     ┐ 同一段内存，
    C++:    struct Matrix { Kind kind; int64_t rows; … } ┘ 同样的次序与宽度

字段全是 8 字节宽的整数、指针与 double，所以第 i 个字段总在

$$\text{偏移}_i = 8\,i$$

没有为了对齐而留的空，两边的编译器不会各有各的想法。与 kernels/interface.h 逐行对应：
改了一边，另一边也要改；测试按大小核对。

为什么不用 pybind11 或 PyTorch 的扩展？那要编译它们的头文件（半分钟），还认两家的版本；
我们要传的只是地址和大小，ctypes 是标准库，够了。一次调用约一微秒，一步只有两次。

指针不算引用：Python 不知道 C++ 还在用那个张量，可能当场回收。所以谁造结构，谁就得留着那些张量。

最容易错的三处，错了都不报错，读到的是别处的内存：
    次序不一致      加字段时只改了一边
    张量不连续      转置、切片之后，「第 i 行在哪里」就不是乘一下行宽了；所以递之前先 contiguous
    张量被回收      x.float().data_ptr() 取到地址时，那个临时的张量已经没有人留着了

改哪里：多传一样东西 → 两边的结构各加一个字段，kernel_plan.py 里填上。
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_double, c_float, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foundation.compiled_code import load_code
from foundation.demonstration import run_demo

__all__ = ["ACTIVATION_CODES", "KINDS", "NORM_CODES", "BlockStruct", "MatrixStruct"]
__all__ += ["ModelStruct", "NormStruct", "StepStruct", "code_shape", "fits", "load_kernels"]

# 与 interface.h 里的 enum 一一对应
KINDS = {torch.float32: 1, torch.bfloat16: 2, torch.int8: 3, torch.uint8: 4}
NORM_CODES = {"layernorm": 1, "rmsnorm": 2}
ACTIVATION_CODES = {"relu": 0, "relu2": 1, "silu": 2, "gelu_tanh": 3, "gelu": 4}


def fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    """几个同类型的字段，名字用空格隔开。"""
    return [(name, kind) for name in names.split()]


class MatrixStruct(Structure):
    """一个线性层：权重在哪里、几行几列、怎样存的；全是 0 表示没有这一层。"""

    _fields_ = [
        *fields(c_int64, "kind rows columns block"),  # block：几个权重共用一个刻度
        *fields(c_void_p, "data scale zero bias"),  # zero：零点，多半没有
    ]


class NormStruct(Structure):
    """一个归一化；kind 为 0 就是什么也不做。"""

    _fields_ = [*fields(c_int64, "kind"), *fields(c_double, "epsilon")]
    _fields_ += fields(c_void_p, "weight bias")


class BlockStruct(Structure):
    """一个 Transformer 块：四个归一化（后两个给 qk_norm），七个矩阵。

    不门控的没有 gate，没有 qk_norm 的没有后两个：对应的全是 0
    """

    _fields_ = [
        *fields(NormStruct, "attention_norm ffn_norm query_norm key_norm"),
        *fields(MatrixStruct, "query key value output gate up down"),
    ]


class ModelStruct(Structure):
    """整个模型：准备好之后就不变。

    embedding.kind 为 0：查表由 Python 做；head.kind 为 0：打分由 Python 做
    """

    _fields_ = [
        # 大小：D、H、G、d、F、V
        *fields(c_int64, "dim n_heads n_kv_heads head_dim ffn_dim vocab_size"),
        *fields(c_int64, "window post_norm activation"),
        *fields(c_double, "softcap"),  # 0：不限幅
        *fields(MatrixStruct, "embedding"),
        # 学出来的或正弦的位置表，与 RoPE 的两张表；没有就是空指针
        *fields(c_void_p, "position_table"),
        *fields(c_int64, "n_positions"),
        *fields(c_void_p, "cos signed_sin"),
        *fields(c_int64, "n_angles"),
        *fields(NormStruct, "final_norm"),
        *fields(MatrixStruct, "head"),
        *fields(POINTER(BlockStruct), "blocks"),
    ]


class StepStruct(Structure):
    """一次前向：每一步都不同的那些。

    x 是残差流 (B·T, D)，进出都在这里，所以几段可以接着跑，中间换 PyTorch 算几块也行
    """

    _fields_ = [
        # 几行文本、每行几个新词元、缓存里已有几个
        *fields(c_int64, "n_sequences n_new start"),
        # 跑哪几块；开头要不要查表，末尾给几个位置打分，用几个线程
        *fields(c_int64, "first_block last_block embed score n_threads"),
        *fields(c_void_p, "ids positions"),
        *fields(c_int64, "position_stride"),  # 0：各行的位置相同
        *fields(c_void_p, "real"),  # 左填充的掩码
        *fields(c_int64, "real_stride"),
        *fields(c_void_p, "x logits"),  # 残差流与分数
        # 各层的缓存：同样的类型、同样的容量，每层一个指针
        *fields(c_int64, "cache_kind capacity"),
        *fields(c_void_p, "keys values"),
    ]


def load_kernels(flags: tuple[str, ...] | None = None) -> ctypes.CDLL:
    """编译好的 kernels/forward.cpp：第一次要编译几秒，以后从缓存里取。

    flags：代替「这个处理器的全部指令」；测试用它编译普通的与 AVX2 的写法
    错误：没有编译器、编译失败、用户说不要 → CodeUnavailable，写明原因
    """
    library = load_code(Path(__file__).resolve().parent / "kernels" / "forward.cpp", flags)
    # 看一遍输入；跑一段；一条指令算几个数、几个编码。指针就是结构的地址
    for function in (library.inspect, library.forward):
        function.argtypes, function.restype = (c_void_p, c_void_p), ctypes.c_int
    for number in (library.vector_width, library.code_depth, library.has_bfloat16):
        number.restype = ctypes.c_int
    # 把一段内存读一遍：测速要用的上限
    library.read_all.argtypes, library.read_all.restype = (c_void_p, c_int64, c_int64), c_float
    return library


def code_shape(kernels: ctypes.CDLL) -> tuple[int, int]:
    """整数的权重怎样并排：几行一片，一步取每行的几个编码（kernels/integers.h）。"""
    return kernels.vector_width(), kernels.code_depth()


def fits(tensor: Tensor, dtype: torch.dtype, shapes: list[tuple[int, ...]]) -> bool:
    """类型对、在 CPU 上、形状是其中之一、最后一维挨着：地址可以递给 C++。

    C++ 只有地址，看不见形状；这里放过一个不对的，它就读到别处去了
    """
    good = tensor.dtype == dtype and tensor.device.type == "cpu" and tensor.shape in shapes
    return good and tensor.stride(-1) == 1


def demo() -> None:
    """借一段内存来读；再看结构有多大，字段在哪里。"""
    # ① 指针：在 ctypes 这一边改一个数，torch 那一边就变了
    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    matrix = MatrixStruct(KINDS[weight.dtype], *weight.shape, 0, weight.data_ptr())
    borrowed = ctypes.cast(matrix.data, POINTER(ctypes.c_float))
    print(f"① 借来读：{[borrowed[i] for i in range(6)]}")
    borrowed[4] = 50.0
    print(f"   在指针这一边改一个数，张量变成 {weight.tolist()}")
    assert weight[1, 1] == 50.0
    # ② 结构的大小：每个字段 8 字节，没有空隙
    for struct in (MatrixStruct, NormStruct, BlockStruct, ModelStruct, StepStruct):
        print(
            f"② {struct.__name__:<13}{ctypes.sizeof(struct):4} 字节，{len(struct._fields_)} 个字段"
        )
        assert ctypes.sizeof(struct) % 8 == 0
    assert ctypes.sizeof(BlockStruct) == 4 * 32 + 7 * 64
    # ③ 偏移：第 i 个字段在 8i
    where = [getattr(MatrixStruct, name).offset for name, *_ in MatrixStruct._fields_]
    print(f"③ MatrixStruct 的字段依次在 {where}")
    assert where == [8 * i for i in range(8)]


if __name__ == "__main__":
    run_demo(demo)
