from typing import Any


def set_learning_rate(groups: list[dict[str, Any]], rate: float) -> None:
    """
    zh: 把这一步的学习率写进优化器的每一组（就地改 group["lr"]）；某组有 "scale" 的，再乘上它。
    zh: 每一步都会调用一次。这份代码有一处错，找出来改好
    en: Write this step's rate into every group of an optimizer (group["lr"], in place); a group
    en: with a "scale" gets the rate times it. Called at every step. One fault is in here
    """
    # >>>
    for group in groups:
        group["lr"] = rate * group.get("scale", 1.0)
    # <<<
