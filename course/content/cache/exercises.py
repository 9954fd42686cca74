"""KV 缓存：接上、位置、带缓存的注意力、换一条提示；六道。"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from course.exercise import Exercise

# batch, heads, tokens of a chunk, key width, value width: all different, and chunks alike, so that
# joining along a wrong axis raises no error
SIZES = ((2, 3, 1, 5, 6), (3, 4, 2, 6, 5), (2, 5, 3, 4, 7))


def chunks(random_: random.Random, case: int) -> dict[str, Any]:
    """Three chunks of keys and values, of equal size."""
    batch, heads, tokens, width, wide = SIZES[case]
    return {
        "chunks": [
            (torch.randn(batch, heads, tokens, width), torch.randn(batch, heads, tokens, wide))
            for _ in range(3)
        ]
    }


def some_cache(length: int, case: int) -> dict[str, Tensor]:
    """A cache of so many tokens; {} for none."""
    batch, heads, _, width, wide = SIZES[case]
    if not length:
        return {}
    return {
        "k": torch.randn(batch, heads, length, width),
        "v": torch.randn(batch, heads, length, wide),
    }


def cached_and_new(random_: random.Random, case: int) -> dict[str, Any]:
    """A step after a prompt, a chunk after a cache, and the first chunk of all."""
    return {"cache": some_cache((8, 9, 0)[case], case), "n_new": (1, 3, 4)[case]}


def a_text_in_chunks(random_: random.Random, case: int) -> dict[str, Any]:
    """Queries, keys and values of one text, and how many tokens arrive at a time."""
    batch, heads, _, width, wide = SIZES[case]
    counts = ((4, 1, 1), (3, 2, 1), (2, 1, 3))[case]
    made = []
    for tokens in counts:
        q, k = torch.randn(2, batch, heads, tokens, width)
        made.append((q, k, torch.randn(batch, heads, tokens, wide)))
    return {"chunks": made}


def two_prompts(random_: random.Random, case: int) -> dict[str, Any]:
    """Texts that part and meet again; the new one begins the old one; nothing in common."""
    old = random_.sample(range(10, 60), 8)
    new = (
        [*old[:3], 61, old[4], old[5], 62],
        old[:5],
        [63, *old[1:4], 64],
        [*old, 65, 66],
    )[case]
    return {"cache": some_cache(len(old), case % 3), "old_ids": old, "new_ids": new}


def toy_model(ids: list[int], positions: list[int], cache: Any) -> tuple[int, Any]:
    """A model whose answer depends on every cached token and on where each one stands."""
    if len(ids) != len(positions):
        raise ValueError(f"{len(ids)} ids, but {len(positions)} positions")
    cached = (*(cache or ()), *zip(map(int, ids), map(int, positions), strict=True))
    return random.Random(str(cached)).randrange(10, 97), cached


def prompts(random_: random.Random, case: int) -> dict[str, Any]:
    """Two or three prompts of different lengths."""
    lengths = ((3, 4), (2, 5, 3), (5, 2))[case]
    return {
        "model": toy_model,
        "prompts": [[random_.randrange(10, 97) for _ in range(n)] for n in lengths],
        "n_new": (3, 4, 5)[case],
    }


def nothing(random_: random.Random, case: int) -> dict[str, Any]:
    """No inputs: the file holds answers."""
    return {}


def appended(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The cache after each chunk; an answer may change its own cache."""
    cache: dict[str, Tensor] = {}
    found: dict[str, Any] = {}
    for number, (k, v) in enumerate(inputs["chunks"], 1):
        cache = answer.append(cache, k.clone(), v.clone())
        found |= {f"keys_{number}": cache["k"], f"values_{number}": cache["v"]}
    return found


def positions(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The positions as a tensor, whatever they came in."""
    return {"positions": torch.as_tensor(answer.new_positions(**inputs))}


def attended(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The outputs of each chunk, and how many tokens are cached after it."""
    cache: dict[str, Tensor] = {}
    found: dict[str, Any] = {}
    for number, (q, k, v) in enumerate(inputs["chunks"], 1):
        output, cache = answer.cached_attention(q.clone(), k.clone(), v.clone(), cache)
        found |= {f"output_{number}": output, f"cached_{number}": cache["k"].shape[2]}
    return found


def reused(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """What is left of the cache, and what is to be fed; {} is a cache of no tokens."""
    whole = inputs["cache"]
    cache, to_feed = answer.reuse(dict(whole), list(inputs["old_ids"]), list(inputs["new_ids"]))
    cache = cache or {name: kept[:, :, :0] for name, kept in whole.items()}
    return {
        "to_feed": [int(token) for token in to_feed],
        "cached": cache["k"].shape[2],
        "keys": cache["k"],
        "values": cache["v"],
    }


EXERCISES = (
    Exercise("cache.01", 5, ("append",), chunks, run=appended),
    Exercise("cache.02", 5, ("new_positions",), cached_and_new, run=positions),
    Exercise(
        "cache.03", 5, ("cached_attention",), a_text_in_chunks, run=attended,
        forbidden=("scaled_dot_product_attention",), checkpoint=("week5-cache",),
    ),
    Exercise("cache.04", 5, ("reuse",), two_prompts, run=reused, cases=4),
    Exercise(
        "cache.05", 5,
        ("cache_bytes", "read_without", "read_with", "first_position", "cached_at_end"),
        nothing, kind="predict", cases=1,
    ),
    Exercise(
        "cache.06", 5, ("answer_all",), prompts, kind="repair", outputs=("answers",),
        starts_with="CACHE-20", checkpoint=("week5-cache",),
    ),
)  # fmt: skip
