"""参数检查：每条错误都说清给了什么、允许什么、该怎么改。

Every message has one shape: «name must be …, got value», so that a user of the library, of the
command line and of a JSON file reads the same sentence.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Collection, Iterable
from typing import Any

__all__ = [
    "check_bool",
    "check_choice",
    "check_float",
    "check_int",
    "nearest",
    "unknown_key_message",
]


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed word most like `word`, or None when nothing is close."""
    by_fold = {candidate.casefold(): candidate for candidate in allowed}
    matches = difflib.get_close_matches(word.casefold(), list(by_fold), n=1, cutoff=0.6)
    return by_fold[matches[0]] if matches else None


def unknown_key_message(key: str, allowed: Collection[str], where: str) -> str:
    """Compose the error for a key that nobody knows: the nearest match and the whole list."""
    guess = nearest(key, allowed)
    hint = f"; did you mean {guess!r}?" if guess else ";"
    return f"unknown key {key!r} in {where}{hint} allowed: {', '.join(sorted(allowed))}"


def check_int(name: str, value: Any, minimum: int | None = None, maximum: int | None = None) -> int:
    """Return `value` as an int within [minimum, maximum]; refuse bool, float and str."""
    wanted = "an integer" + _range_text(minimum, maximum)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError(f"{name} must be {wanted}, got {value!r} ({type(value).__name__})")
    number = int(value)
    if (minimum is not None and number < minimum) or (maximum is not None and number > maximum):
        raise ValueError(f"{name} must be {wanted}, got {number}")
    return number


def check_float(
    name: str,
    value: Any,
    minimum: float | None = None,
    maximum: float | None = None,
    *,
    exclusive_minimum: float | None = None,
    exclusive_maximum: float | None = None,
) -> float:
    """Return `value` as a finite float within the limits; refuse bool, NaN and infinities."""
    wanted = "a finite number" + _range_text(minimum, maximum, exclusive_minimum, exclusive_maximum)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name} must be {wanted}, got {value!r} ({type(value).__name__})")
    number = float(value)
    outside = (
        not math.isfinite(number)
        or (minimum is not None and number < minimum)
        or (maximum is not None and number > maximum)
        or (exclusive_minimum is not None and number <= exclusive_minimum)
        or (exclusive_maximum is not None and number >= exclusive_maximum)
    )
    if outside:
        raise ValueError(f"{name} must be {wanted}, got {number}")
    return number


def check_bool(name: str, value: Any) -> bool:
    """Return `value` if it is True or False; refuse 0, 1 and "true"."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r} ({type(value).__name__})")
    return value


def check_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`; the error lists them and the nearest."""
    allowed = list(choices)
    if isinstance(value, str) and value in allowed:
        return value
    guess = nearest(value, allowed) if isinstance(value, str) else None
    hint = f"; did you mean {guess!r}?" if guess else ""
    raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}{hint}")


def _range_text(
    minimum: float | None,
    maximum: float | None,
    exclusive_minimum: float | None = None,
    exclusive_maximum: float | None = None,
) -> str:
    parts = []
    if minimum is not None:
        parts.append(f">= {minimum}")
    if exclusive_minimum is not None:
        parts.append(f"> {exclusive_minimum}")
    if maximum is not None:
        parts.append(f"<= {maximum}")
    if exclusive_maximum is not None:
        parts.append(f"< {exclusive_maximum}")
    return " " + " and ".join(parts) if parts else ""
