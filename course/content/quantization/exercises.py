"""量化：INT8、零点、INT4 打包、分组、整数的线性层；七道。"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from course.exercise import Exercise

SIZES = ((4, 7), (5, 6), (6, 6))  # rows, columns; the last is square: nothing complains there


def matrix(case: int) -> Tensor:
    """Weights whose rows are of very different sizes, most extremes negative; a row of zeros."""
    rows, columns = SIZES[case]
    w = torch.randn(rows, columns) * 4.0 ** torch.arange(rows)[:, None]
    extreme = 1.3 * w.abs().amax(dim=1)
    w[:, 1] = -extreme
    w[:, 2] = 0.75 * extreme
    w[1] = -w[1]
    w[3] = 0.0
    return w


def codes_like(rows: int, columns: int, low: int, high: int, kind: torch.dtype) -> Tensor:
    """Random whole numbers that use the whole range."""
    codes = torch.randint(low, high + 1, (rows, columns))
    codes[:, 0], codes[:, 1] = low, high
    return codes.to(kind)


def plain_scale(scale: Any, w: Tensor) -> Any:
    """A row or group of zeros may have any scale: it is shown as 0."""
    if not isinstance(scale, Tensor) or scale.shape != w.shape[:-1]:
        return scale
    return torch.where((w == 0).all(-1) & scale.isfinite(), 0.0, scale.double())


def int8(random_: random.Random, case: int) -> dict[str, Any]:
    """Weights to quantize, and other codes and scales to restore."""
    rows, columns = SIZES[case]
    codes = codes_like(rows, columns, -127, 127, torch.int8)
    return {"w": matrix(case), "codes": codes, "steps": torch.rand(rows) + 0.1}


def run_int8(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """Quantize; restore one's own codes, and given ones."""
    q, scale = answer.absmax_int8(inputs["w"])
    return {
        "scale": plain_scale(scale, inputs["w"]),
        "q": q,
        "bytes_each": q.element_size(),
        "restored": answer.dequantize(q, scale),
        "restored_given": answer.dequantize(inputs["codes"], inputs["steps"]),
    }


def uint8(random_: random.Random, case: int) -> dict[str, Any]:
    """Rows on both sides of zero, wholly above it and wholly below it.

    Row 1 is made so that its zero point is 100.7 steps, which cutting off gets wrong.
    """
    rows, columns = SIZES[case]
    w = torch.randn(rows, columns) * 3.0 ** torch.arange(rows)[:, None]
    w[0] = w[0].abs() + 2.0
    w[2] = -w[2].abs() - 5.0
    step = random_.uniform(0.05, 0.09)
    w[1] = (80 * step) * torch.rand(columns)
    w[1, 0], w[1, 1] = -100.7 * step, 154.3 * step
    return {
        "w": w,
        "codes": codes_like(rows, columns, 0, 255, torch.uint8),
        "steps": torch.rand(rows) + 0.1,
        "zeros": torch.randint(60, 200, (rows,)).to(torch.uint8),
    }


def run_uint8(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The scale and zero point, the codes, and given codes restored."""
    q, scale, zero = answer.zero_point_uint8(inputs["w"])
    return {
        "scale": scale,
        "zero": zero,
        "q": q,
        "bytes_each": q.element_size(),
        "restored": answer.dequantize_uint8(q, scale, zero),
        "restored_given": answer.dequantize_uint8(
            inputs["codes"], inputs["steps"], inputs["zeros"]
        ),
    }


def int4(random_: random.Random, case: int) -> dict[str, Any]:
    """Codes −8 … 7 to pack, and bytes to unpack."""
    rows, columns = ((3, 8), (2, 6), (5, 10))[case]
    return {
        "q": codes_like(rows, columns, -8, 7, torch.int8),
        "packed": codes_like(rows, columns // 2, 0, 255, torch.uint8),
    }


def run_int4(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The bytes, there and back, and given bytes unpacked."""
    packed = answer.pack_int4(inputs["q"])
    return {
        "packed": packed,
        "bytes_each": packed.element_size(),
        "there_and_back": answer.unpack_int4(packed),
        "unpacked_given": answer.unpack_int4(inputs["packed"]),
    }


def grouped(random_: random.Random, case: int) -> dict[str, Any]:
    """Groups of very different sizes; in each the far end is nearly as large; one is all zero."""
    rows, n_groups, group = ((3, 2, 4), (2, 3, 5), (4, 2, 6))[case]
    w = torch.randn(rows, n_groups, group) * 5.0 ** torch.arange(n_groups)[:, None]
    extreme = 1.2 * w.abs().amax(dim=-1) * (1 - 2 * torch.randint(2, (rows, n_groups)))
    extreme[0, 0], extreme[0, 1] = extreme[0, 0].abs(), -extreme[0, 1].abs()
    w[..., 1], w[..., 3] = extreme, -0.97 * extreme
    w[1, 0] = 0.0
    return {"w": w.reshape(rows, -1), "group": group}


def run_grouped(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """A scale for each group, and the codes."""
    w, group = inputs["w"], inputs["group"]
    q, scale = answer.group_quantize(w, group)
    groups = w.reshape(len(w), -1, group)
    return {"scale": plain_scale(scale, groups), "q": q, "bytes_each": q.element_size()}


def linear(random_: random.Random, case: int) -> dict[str, Any]:
    """x (B, K), codes (N, K), a scale for each row of them, and sometimes a bias; once B = N."""
    batch, rows, columns = ((2, 4, 7), (3, 5, 6), (4, 4, 3))[case]
    return {
        "x": 3 * torch.randn(batch, columns),
        "q": codes_like(rows, columns, -127, 127, torch.int8),
        "scale": torch.rand(rows) + 0.1,
        "bias": None if case == 1 else 50 * torch.randn(rows),
    }


def whole_numbers(random_: random.Random, case: int) -> dict[str, Any]:
    """The same without a bias; every row of x has a size of its own."""
    made = linear(random_, case)
    made.pop("bias")
    x = made["x"] * 7.0 ** torch.arange(len(made["x"]))[:, None]
    return {**made, "x": x}


def nothing(random_: random.Random, case: int) -> dict[str, Any]:
    """No inputs: the file holds answers."""
    return {}


MARK = ("week10-quantization",)

EXERCISES = (
    Exercise(
        "quantization.01", 10, ("absmax_int8", "dequantize"), int8, run_int8, checkpoint=MARK,
        forbidden=("quantize_per_channel", "quantize_per_tensor"),
    ),
    Exercise(
        "quantization.02", 10, ("zero_point_uint8", "dequantize_uint8"), uint8, run_uint8,
        forbidden=("quantize_per_channel", "quantize_per_tensor"),
    ),
    Exercise(
        "quantization.03", 10, ("pack_int4", "unpack_int4"), int4, run_int4, checkpoint=MARK,
    ),
    Exercise(
        "quantization.04", 10, ("group_quantize",), grouped, run_grouped, checkpoint=MARK,
    ),
    Exercise(
        "quantization.05", 10, ("quantized_linear",), linear, outputs=("output",),
        checkpoint=MARK,
    ),
    Exercise(
        "quantization.06", 10,
        ("fp16_gb", "int8_gb", "int4_bits", "int4_gb", "worst_error"),
        nothing, kind="predict", cases=1,
    ),
    Exercise(
        "quantization.07", 10, ("int8_product",), whole_numbers, kind="repair",
        outputs=("output",), starts_with="QUANT-49",
    ),
)  # fmt: skip
