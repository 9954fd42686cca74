"""两个结果差多少：数按相对误差，别的要一模一样；形状不同就是无穷远。"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from course.running import Outcome

__all__ = ["distance", "first_difference", "is_other_kind", "kind_of", "value_distance"]


def distance(left: Sequence[Outcome], right: Sequence[Outcome], enough: float = math.inf) -> float:
    """The largest relative difference over all cases and results; errors are equal or infinite.

    Beyond `enough` the first difference found will do: most answers differ in the first case.
    """
    if len(left) != len(right):
        return math.inf
    largest = 0.0
    for one, other in zip(left, right, strict=True):
        largest = max(largest, outcome_distance(one, other, enough))
        if largest > enough:
            break
    return largest


def outcome_distance(left: Outcome, right: Outcome, enough: float) -> float:
    """The largest relative difference of one case."""
    if left.error or right.error:
        return 0.0 if left.error == right.error else math.inf
    if left.values.keys() != right.values.keys() or left.changed != right.changed:
        return math.inf
    largest = 0.0
    for name, value in left.values.items():
        largest = max(largest, value_distance(value, right.values[name]))
        if largest > enough:
            break
    return largest


def value_distance(left: Any, right: Any) -> float:
    """The relative difference of two results: max|a − b| / max(|a|, |b|)."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return tensor_distance(left, right)
    if isinstance(left, bool) or isinstance(right, bool):
        return 0.0 if left is right else math.inf
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return number_distance(left, right)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        if len(left) != len(right):
            return math.inf
        return max((value_distance(a, b) for a, b in zip(left, right, strict=True)), default=0.0)
    if isinstance(left, dict) and isinstance(right, dict):
        if left.keys() != right.keys():
            return math.inf
        return max((value_distance(left[key], right[key]) for key in left), default=0.0)
    return 0.0 if type(left) is type(right) and left == right else math.inf


def number_distance(left: float, right: float) -> float:
    """The same for two numbers; long lists of them need no tensors."""
    try:
        left, right = float(left), float(right)
    except OverflowError:  # an integer beyond every float
        return 0.0 if left == right else math.inf
    if math.isfinite(left) and math.isfinite(right):
        size = max(abs(left), abs(right))
        return abs(left - right) / size if size else 0.0
    return 0.0 if left == right or (math.isnan(left) and math.isnan(right)) else math.inf


def tensor_distance(left: Tensor, right: Tensor) -> float:
    """Largest difference by largest size; NaN and ∞ must be at the same places."""
    if left.shape != right.shape or kind_of(left) != kind_of(right):
        return math.inf
    if not left.numel():
        return 0.0
    if left.dtype == torch.bool:
        return 0.0 if torch.equal(left, right) else math.inf
    left, right = left.to(torch.float64), right.to(torch.float64)
    gap = float((left - right).abs().max())
    if not math.isfinite(gap):  # seldom, so that the usual case takes one pass
        odd = ~(left.isfinite() & right.isfinite())
        if not bool(((left == right) | (left.isnan() & right.isnan()))[odd].all()):
            return math.inf
        left, right = left[~odd], right[~odd]
        if not left.numel():
            return 0.0
        gap = float((left - right).abs().max())
    size = max(float(left.abs().max()), float(right.abs().max()))
    return gap / size if size else 0.0


def kind_of(tensor: Tensor) -> str:
    """Truth values, or numbers: 1 for True is another thing than a truth value."""
    return "bool" if tensor.dtype == torch.bool else "number"


def first_difference(
    yours: Sequence[Outcome], expected: Sequence[Outcome], tolerance: float
) -> tuple[int, str, str, Any, Any] | None:
    """Where results part first: (case, name, place, yours, expected), in the order they arise."""
    for case, (mine, right) in enumerate(zip(yours, expected, strict=True)):
        if mine.error or right.error:
            continue
        for name, value in right.values.items():
            if name not in mine.values:
                return case, name, "", None, value
            if value_distance(mine.values[name], value) > tolerance:
                if is_other_kind(mine.values[name], value):
                    return case, name, "", mine.values[name], value
                place, a, b = first_place(mine.values[name], value, tolerance)
                return case, f"{name}", place, a, b
    return None


def is_other_kind(yours: Any, right: Any) -> bool:
    """Another kind of thing, or another shape, rather than another number."""
    if isinstance(yours, Tensor) and isinstance(right, Tensor):
        return yours.shape != right.shape or kind_of(yours) != kind_of(right)
    numbers = (int, float)
    if isinstance(yours, numbers) and isinstance(right, numbers):
        return isinstance(yours, bool) != isinstance(right, bool)
    return type(yours) is not type(right)


def first_place(yours: Any, right: Any, tolerance: float) -> tuple[str, Any, Any]:
    """The first element that differs: ("[0, 2]", 0.5, 0.37)."""
    if isinstance(yours, Tensor) and isinstance(right, Tensor) and yours.shape == right.shape:
        if yours.ndim == 0:
            return "", yours.item(), right.item()
        if yours.dtype == torch.bool or right.dtype == torch.bool:
            apart = yours.bool() != right.bool()
        else:
            size = max(float(right.nan_to_num().abs().max()), 1e-30)
            gap = (yours.double() - right.double()).abs()
            same = (yours == right) | (yours.isnan() & right.isnan())
            apart = ~same & ~(gap <= tolerance * size)
        places = apart.nonzero()
        if len(places):
            place = tuple(places[0].tolist())
            return str(list(place)), yours[place].item(), right[place].item()
    if isinstance(yours, (list, tuple)) and isinstance(right, (list, tuple)):
        for index, (a, b) in enumerate(zip(yours, right, strict=False)):
            if value_distance(a, b) > tolerance:
                inner, x, y = first_place(a, b, tolerance)
                return f"[{index}]{inner}", x, y
    return "", yours, right
