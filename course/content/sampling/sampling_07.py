from collections.abc import Callable

from torch import Tensor


def generate(
    next_logits: Callable[[list[int]], Tensor],
    ids: list[int],
    n_new: int,
    choose: Callable[[Tensor], int],
    context: int,
) -> list[int]:
    """
    zh: 接着 ids 再写 n_new 个词元，提示与新写的一起交回；ids 本身不变
    zh: 模型一次至多看 context 个词元：写长了就只给它最近的
    en: Write n_new more tokens after `ids`; return the prompt and the new ones, leave `ids` alone.
    en: The model sees at most `context` tokens: of a longer text, the latest ones

    next_logits(window) → (V,); choose(logits) → int
    """
    # >>>
    result = list(ids)
    for _ in range(n_new):
        window = result[-context:]
        result.append(choose(next_logits(window)))
    return result
    # <<< raise NotImplementedError
