"""用你自己的数说话：从答案的结果里找出最能说明问题的那一个。

A mistake names its evidence in the catalogue, `evidence = "row_sum weights"`: a function of this
file and the result it looks at; several with `;` between them, the first that sees something
speaks. Each returns the same sentence in both languages, or None where there is nothing to see;
then the first differing number is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import Any, TypeGuard

import torch
from torch import Tensor

from course.comparison import first_difference, is_other_kind, kind_of
from course.running import Outcome

__all__ = ["EVIDENCE", "Sentence", "evidence_of", "show_number", "what_differs"]

Sentence = dict[str, str]


def show_number(value: Any) -> str:
    """A value as a person would write it: four digits, whole numbers in full, short lists."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        whole = value.is_integer() and 1e4 <= abs(value) < 1e15
        return f"{value:,.0f}" if whole else f"{value:.4g}"
    if isinstance(value, Tensor):
        shape = "×".join(map(str, value.shape))
        return f"tensor({shape})" if value.ndim else show_number(value.item())
    if isinstance(value, (list, tuple)):
        shown = ", ".join(show_number(part) for part in value[:8])
        return f"[{shown}{', …' if len(value) > 8 else ''}]"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def show_two(first: Any, second: Any) -> tuple[str, str]:
    """Two values that differ, with as many digits as it takes to see it."""
    shown = show_number(first), show_number(second)
    if shown[0] == shown[1] and isinstance(first, float) and isinstance(second, float):
        for digits in range(5, 13):
            shown = f"{first:.{digits}g}", f"{second:.{digits}g}"
            if shown[0] != shown[1]:
                break
    return shown


def numbers(outcomes: Sequence[Outcome], name: str) -> list[Tensor]:
    """The named result of every case, where it is a tensor of numbers."""
    found = [outcome.values.get(name) for outcome in outcomes]
    return [value.double() for value in found if isinstance(value, Tensor)]


def row_sum(yours: Sequence[Outcome], right: Sequence[Outcome], name: str) -> Sentence | None:
    """The first row whose sum is not the expected one."""
    for mine, good in zip(numbers(yours, name), numbers(right, name), strict=False):
        if mine.shape != good.shape or not mine.ndim:
            continue
        sums, expected = mine.sum(-1), good.sum(-1)
        wrong = ((sums - expected).abs() > 1e-4).nonzero()
        if len(wrong):
            place = tuple(wrong[0].tolist())
            row = place[-1] if place else 0
            a, b = show_number(float(sums[place])), show_number(float(expected[place]))
            return {
                "zh": f"{name} 第 {row} 行的和 = {a}，应为 {b}",
                "en": f"row {row} of {name} sums to {a}, not {b}",
            }
    return None


def column_sum(yours: Sequence[Outcome], right: Sequence[Outcome], name: str) -> Sentence | None:
    """Columns that sum to one where rows should."""
    for mine in numbers(yours, name):
        if mine.ndim >= 2 and bool(((mine.sum(-2) - 1).abs() < 1e-6).all()):
            first = mine.sum(-1).flatten()[0]
            value = show_number(float(first))
            return {
                "zh": f"{name} 每一列的和都是 1，而第 0 行的和 = {value}",
                "en": f"every column of {name} sums to 1, but row 0 sums to {value}",
            }
    return None


def future(yours: Sequence[Outcome], right: Sequence[Outcome], name: str) -> Sentence | None:
    """A weight on the future: above the diagonal of a (…, T, S) matrix, S − T keys being past."""
    for mine in numbers(yours, name):
        if mine.ndim < 2:
            continue
        past = mine.shape[-1] - mine.shape[-2]
        above = torch.ones(mine.shape[-2:]).triu(past + 1).bool()
        leaks = (above & (mine.abs() > 1e-9)).nonzero()
        if len(leaks):
            place = tuple(leaks[0].tolist())
            value = show_number(float(mine[place]))
            query, key = place[-2], place[-1]
            return {
                "zh": f"{name}[{query}, {key}] = {value}：第 {query} 个查询看到了它之后的键 {key}",
                "en": f"{name}[{query}, {key}] = {value}: query {query} sees key {key}, its future",
            }
    return None


def spread(yours: Sequence[Outcome], right: Sequence[Outcome], name: str) -> Sentence | None:
    """Mean and variance of the first row, yours and expected."""
    for mine, good in zip(numbers(yours, name), numbers(right, name), strict=False):
        if mine.shape == good.shape and mine.ndim and mine.shape[-1] > 1:
            a, b = mine.reshape(-1, mine.shape[-1])[0], good.reshape(-1, good.shape[-1])[0]
            mean, variance, m, v = (
                show_number(round(float(x), 9)) for row in (a, b)
                for x in (row.mean(), row.var(correction=0))
            )  # fmt: skip
            return {
                "zh": f"{name} 第 0 行：均值 {mean}、方差 {variance}，应为 {m}、{v}",
                "en": f"row 0 of {name}: mean {mean}, variance {variance}; expected {m}, {v}",
            }
    return None


def size(yours: Sequence[Outcome], right: Sequence[Outcome], name: str) -> Sentence | None:
    """The largest absolute value, yours and expected."""
    for mine, good in zip(numbers(yours, name), numbers(right, name), strict=False):
        if mine.numel() and good.numel():
            a, b = (show_number(float(x.abs().max())) for x in (mine, good))
            if a != b:
                return {
                    "zh": f"{name} 里绝对值最大的数是 {a}，应为 {b}",
                    "en": f"the largest number of {name} is {a} in size, not {b}",
                }
    return None


def count(yours: Sequence[Outcome], right: Sequence[Outcome], name: str) -> Sentence | None:
    """How many entries are there: not zero, not −∞."""
    for mine, good in zip(numbers(yours, name), numbers(right, name), strict=False):
        a, b = (int(((x != 0) & x.isfinite()).sum()) for x in (mine, good))
        if a != b:
            return {
                "zh": f"{name} 里留下 {a} 个，应为 {b} 个",
                "en": f"{a} entries of {name} are left, not {b}",
            }
    return None


def total(yours: Sequence[Outcome], right: Sequence[Outcome], name: str) -> Sentence | None:
    """The sum of all entries, yours and expected."""
    for mine, good in zip(numbers(yours, name), numbers(right, name), strict=False):
        a, b = show_number(float(mine.sum())), show_number(float(good.sum()))
        if a != b:
            return {
                "zh": f"{name} 加起来 = {a}，应为 {b}",
                "en": f"{name} sums to {a}, not {b}",
            }
    return None


def ratio(yours: Sequence[Outcome], right: Sequence[Outcome], name: str) -> Sentence | None:
    """Yours is everywhere the same multiple of the expected."""
    for mine, good in zip(numbers(yours, name), numbers(right, name), strict=False):
        if mine.shape != good.shape or not bool((good.abs() > 1e-9).any()):
            continue
        there = good.abs() > 1e-9
        factors = mine[there] / good[there]
        if float((factors - factors[0]).abs().max()) < 1e-6 * float(factors[0].abs()):
            factor = show_number(float(factors[0]))
            return {
                "zh": f"{name} 处处是应有的 {factor} 倍",
                "en": f"{name} is everywhere {factor} times what it should be",
            }
    return None


def has_length(value: Any) -> TypeGuard[Sized]:
    """Is it something with entries? A tensor of no dimension has none."""
    return isinstance(value, (list, str)) or (isinstance(value, Tensor) and value.ndim > 0)


def length(yours: Sequence[Outcome], right: Sequence[Outcome], name: str) -> Sentence | None:
    """How long a result is, yours and expected."""
    for mine, good in zip(yours, right, strict=True):
        a, b = mine.values.get(name), good.values.get(name)
        if type(a) is type(b) and has_length(a) and has_length(b) and len(a) != len(b):
            return {
                "zh": f"{name} 有 {len(a)} 项，应为 {len(b)} 项",
                "en": f"{name} has {len(a)} entries, not {len(b)}",
            }
    return None


def misplaced(yours: Sequence[Outcome], right: Sequence[Outcome], name: str) -> Sentence | None:
    """The right numbers in another order: one of yours, and where it belongs."""
    for mine, good in zip(numbers(yours, name), numbers(right, name), strict=False):
        if mine.shape != good.shape or not torch.equal(
            mine.flatten().sort().values, good.flatten().sort().values
        ):
            continue
        wrong = (mine != good).nonzero()
        if len(wrong):
            place = tuple(wrong[0].tolist())
            belongs = (good == mine[place]).nonzero()[0].tolist()
            value, here = show_number(float(mine[place])), list(place)
            return {
                "zh": f"数都在，位置不对：{name}{here} = {value}，它该在 {belongs}",
                "en": f"right numbers, wrong places: {name}{here} = {value} belongs at {belongs}",
            }
    return None


def leak(yours: Sequence[Outcome], right: Sequence[Outcome], names: str) -> Sentence | None:
    """Two results (…, T, D) of texts that differ in their last token only: what changed before."""
    first, _, second = names.partition(" ")
    for one, other in zip(numbers(yours, first), numbers(yours, second), strict=False):
        if one.shape != other.shape or one.ndim < 2:
            continue
        gap = ((one - other).abs()[..., :-1, :] > 1e-9).nonzero()
        if len(gap):
            place = tuple(gap[0].tolist())
            a, b = show_number(float(one[place])), show_number(float(other[place]))
            here = list(place)
            return {
                "zh": f"只改最后一个词元，{first}{here} 也从 {a} 变成 {b}：它看到了未来",
                "en": f"only the last token changed, yet {first}{here} went from {a} to {b}: "
                "it sees the future",
            }
    return None


def row_shift(yours: Sequence[Outcome], right: Sequence[Outcome], name: str) -> Sentence | None:
    """Rows (…, T, D) that are the expected ones of a place before or behind."""
    for mine, good in zip(numbers(yours, name), numbers(right, name), strict=False):
        if mine.shape != good.shape or mine.ndim < 2 or mine.shape[-2] < 3:
            continue
        for shift in (1, -1):
            a, b = (mine, good) if shift > 0 else (good, mine)
            if torch.allclose(a[..., :-1, :], b[..., 1:, :], rtol=1e-6, atol=1e-9):
                row = 0 if shift > 0 else 1
                return {
                    "zh": f"错开了一行：{name} 第 {row} 行是应有的第 {row + shift} 行",
                    "en": f"one row off: row {row} of {name} is what row {row + shift} should be",
                }
    return None


def unequal(yours: Sequence[Outcome], right: Sequence[Outcome], names: str) -> Sentence | None:
    """Two results that ought to be equal: the first place where yours are not."""
    first, _, second = names.partition(" ")
    for one, other in zip(numbers(yours, first), numbers(yours, second), strict=False):
        if one.shape != other.shape:
            continue
        gap = ((one - other).abs() > 1e-9).nonzero()
        if len(gap):
            place = tuple(gap[0].tolist())
            a, b = show_number(float(one[place])), show_number(float(other[place]))
            here = list(place) if place else ""
            return {
                "zh": f"{first}{here} = {a}，{second}{here} = {b}：这两个数应当相等",
                "en": f"{first}{here} = {a} but {second}{here} = {b}: they should be equal",
            }
    return None


def equal_rows(yours: Sequence[Outcome], right: Sequence[Outcome], name: str) -> Sentence | None:
    """Two neighbouring rows that are alike where the expected ones are not."""
    for mine, good in zip(numbers(yours, name), numbers(right, name), strict=False):
        if mine.shape != good.shape or mine.ndim < 2 or mine.shape[-2] < 2:
            continue
        alike = [(x[..., 1:, :] == x[..., :-1, :]).all(dim=-1) for x in (mine, good)]
        places = (alike[0] & ~alike[1]).nonzero()
        if len(places):
            row = int(places[0, -1])
            return {
                "zh": f"{name} 第 {row} 行与第 {row + 1} 行一模一样，不该一样",
                "en": f"rows {row} and {row + 1} of {name} are the same and should not be",
            }
    return None


def row_norm(yours: Sequence[Outcome], right: Sequence[Outcome], name: str) -> Sentence | None:
    """The first row whose Euclidean length is not the expected one."""
    for mine, good in zip(numbers(yours, name), numbers(right, name), strict=False):
        if mine.shape != good.shape or not mine.ndim:
            continue
        lengths, expected = mine.norm(dim=-1), good.norm(dim=-1)
        wrong = ((lengths - expected).abs() > 1e-4).nonzero()
        if len(wrong):
            place = tuple(wrong[0].tolist())
            a, b = show_two(float(lengths[place]), float(expected[place]))
            here = list(place) if place else ""
            return {
                "zh": f"向量 {name}{here} 的长度 = {a}，应为 {b}",
                "en": f"the vector {name}{here} has length {a}, not {b}",
            }
    return None


def value(yours: Sequence[Outcome], right: Sequence[Outcome], name: str) -> Sentence | None:
    """One named result, where it says more than those before it."""
    mine, good = (
        [Outcome({name: outcome.values[name]}) for outcome in side if name in outcome.values]
        for side in (yours, right)
    )
    if len(mine) != len(good) or first_difference(mine, good, 1e-4) is None:
        return None
    return what_differs(mine, good, 1e-4)


def changed(yours: Sequence[Outcome], right: Sequence[Outcome], name: str) -> Sentence | None:
    """An input that is no longer what the caller passed in."""
    if any(name in mine.changed for mine in yours):
        return {
            "zh": f"输入 {name} 被就地改了：调用者手里的那一份也变了",
            "en": f"the input {name} was changed in place: the caller's copy changed too",
        }
    return None


def common(yours: Sequence[Outcome], right: Sequence[Outcome], names: str) -> Sentence | None:
    """Two lists that should have nothing in common: a text that is in both."""
    first, _, second = names.partition(" ")
    for mine in yours:
        a, b = mine.values.get(first), mine.values.get(second)
        if isinstance(a, list) and isinstance(b, list):
            there = {text.strip() for text in b if isinstance(text, str)}
            for text in a:
                if isinstance(text, str) and text.strip() in there:
                    item = show_number(text)
                    return {
                        "zh": f"{item} 既在 {first} 里，也在 {second} 里",
                        "en": f"{item} is in {first} and in {second} too",
                    }
    return None


EVIDENCE: dict[str, Callable[..., Sentence | None]] = {
    f.__name__: f
    for f in (
        row_sum, column_sum, future, spread, size, count, total, ratio, length,
        misplaced, leak, row_shift, equal_rows, row_norm, unequal, value, common, changed,
    )
}  # fmt: skip


def evidence_of(
    wanted: str, yours: Sequence[Outcome], right: Sequence[Outcome], tolerance: float
) -> Sentence:
    """The sentence a mistake asks for, or the first number that differs."""
    for each in filter(None, (part.strip() for part in wanted.split(";"))):
        function, _, name = each.partition(" ")
        found = EVIDENCE[function](yours, right, name)
        if found is not None:
            return found
    return what_differs(yours, right, tolerance)


def what_differs(yours: Sequence[Outcome], right: Sequence[Outcome], tolerance: float) -> Sentence:
    """The first intermediate value that diverges, with both numbers."""
    for mine in yours:
        if mine.error:
            return {"zh": f"运行出错：{mine.error}", "en": f"it fails: {mine.error}"}
    found = first_difference(yours, right, tolerance)
    if found is None:
        return {"zh": "结果不同", "en": "the results differ"}
    _, name, place, a, b = found
    if is_other_kind(a, b) and not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        kinds = type(a).__name__, type(b).__name__
        return {
            "zh": f"{name}{place} 是 {kinds[0]}（{show_number(a)}），应为 {kinds[1]}",
            "en": f"{name}{place} is of type {kinds[0]} ({show_number(a)}), not {kinds[1]}",
        }
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape:
        kinds = kind_of(a), kind_of(b)
        words = {"bool": "布尔值", "number": "数"}
        return {
            "zh": f"{name} 里是{words[kinds[0]]}，应为{words[kinds[1]]}（{b.dtype}）",
            "en": f"{name} holds {kinds[0]}s, not {kinds[1]}s ({b.dtype})",
        }
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        shapes = str(tuple(a.shape)), str(tuple(b.shape))
        return {
            "zh": f"{name} 的形状是 {shapes[0]}，应为 {shapes[1]}",
            "en": f"{name} has shape {shapes[0]}, not {shapes[1]}",
        }
    number, good = show_two(a, b)
    return {
        "zh": f"{name}{place} = {number}，应为 {good}",
        "en": f"{name}{place} = {number}, expected {good}",
    }
