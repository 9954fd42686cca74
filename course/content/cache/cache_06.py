from collections.abc import Callable
from typing import Any


def answer_all(
    model: Callable[[list[int], list[int], Any], tuple[int, Any]],
    prompts: list[list[int]],
    n_new: int,
) -> list[list[int]]:
    """
    zh: 逐条回答提示，每条写 n_new 个词元，用缓存。这份代码有一处错，找出来改好
    en: Answer prompt after prompt with a cache, n_new tokens each. One fault is in here

    model(ids, positions, cache) → (next token, cache with ids appended); an empty cache is None
    """
    answers = []
    # >>>
    for prompt in prompts:
        cache, seen = None, 0
        new, written = list(prompt), []
        for _ in range(n_new):
            positions = list(range(seen, seen + len(new)))
            token, cache = model(new, positions, cache)
            seen += len(new)
            written.append(token)
            new = [token]
        answers.append(written)
    # <<<
    return answers
