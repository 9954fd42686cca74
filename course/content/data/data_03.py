def split(documents: list[str], n_val: int) -> tuple[list[str], list[str]]:
    """
    zh: 整篇整篇地分成训练与验证。去掉首尾空白之后相同的算同一篇，只留最先出现的那一份
    zh: 留下的按原来的先后，最后 n_val 篇归验证，其余归训练
    en: Split whole documents into training and validation. Those equal but for white space at their
    en: ends are one, and only the first of them stays; of what stays, in order, the last n_val
    en: documents are for validation, the others for training

    → (train, val)
    """
    # >>>
    kept, seen = [], set()
    for document in documents:
        key = document.strip()
        if key not in seen:
            seen.add(key)
            kept.append(document)
    n_train = len(kept) - n_val
    return kept[:n_train], kept[n_train:]
    # <<< raise NotImplementedError
