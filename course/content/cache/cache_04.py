from torch import Tensor


def reuse(
    cache: dict[str, Tensor], old_ids: list[int], new_ids: list[int]
) -> tuple[dict[str, Tensor], list[int]]:
    """
    zh: 换了一条提示：缓存里是 old_ids 的键值。与 new_ids 开头相同的那一段留下，其余退掉；
    zh: 交回截短的缓存与还要喂的词元——至少一个，否则没有分数可取
    en: Another prompt arrives while the cache holds old_ids. Keep what both have in common at the
    en: beginning, drop the rest; return the cropped cache and the ids still to feed: at least one,
    en: or there are no scores to take

    cache["k"], cache["v"] (B, H, len(old_ids), …) → the first n of them, new_ids[n:]
    """
    # >>>
    n = 0
    while n < min(len(old_ids), len(new_ids) - 1) and old_ids[n] == new_ids[n]:
        n += 1
    keys = cache["k"][:, :, :n]
    values = cache["v"][:, :, :n]
    return {"k": keys, "v": values}, new_ids[n:]
    # <<< raise NotImplementedError
