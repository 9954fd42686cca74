import math


def initial_std(name: str, n_layers: int, base_std: float) -> float:
    """
    zh: 一个权重初始化的标准差：写回残差流的 w_o、w_down 除以 √(2L)，其余都是 base_std
    en: The standard deviation a weight starts with: w_o and w_down, which write to the residual
    en: stream, are divided by √(2L); all others have base_std

    zh: 名字像 "token_table"、"3.w_q"、"3.w_o"、"3.w_down"：点号前面是第几层；L = n_layers
    en: names look like "token_table", "3.w_q", "3.w_o", "3.w_down": the layer before the dot
    """
    # >>>
    if name.endswith((".w_o", ".w_down")):
        return base_std / math.sqrt(2 * n_layers)
    return base_std
    # <<< raise NotImplementedError
