r"""学习率该怎样随步数变化？——先热身，再快走，最后慢下来。

一步走多远由学习率 η（learning rate）决定。开头权重是随机的，Adam 的二阶矩还没攒够，
估计很吵，大步会把模型踢到坏地方，所以从小走到大（warmup，预热）；末尾损失在谷底附近来回弹，
步子越小弹得越浅，所以要降下来（decay，衰减）。中间能走多大走多大，训练时间主要花在这里。

公式：N 是总步数，w 是预热步数，s = 0 … N−1 是「第几次更新」，从 0 数起：

$$\eta(s) = \eta_{\max}\,\frac{s+1}{w+1}, \qquad s < w \quad\text{(三种都一样)}$$
$$\text{cosine:}\quad \eta(s) = \eta_{\min} + \tfrac12(\eta_{\max}-\eta_{\min})
  \left(1+\cos\frac{\pi(s-w)}{N-1-w}\right), \qquad s \ge w$$
$$\text{WSD:}\quad \eta(s) = \eta_{\max}\ (s < N-d), \qquad
  \eta_{\max} - (\eta_{\max}-\eta_{\min})\,\frac{s-(N-d)+1}{d}\ (s \ge N-d)$$

    cosine（余弦）          WSD（warmup-stable-decay）   constant（常数）
    η│  ╭─╮                 η│  ╭─────────╮              η│  ╭───────────
     │ ╱   ╲                 │ ╱           ╲              │ ╱
     │╱     ╲___             │╱             ╲             │╱
     └──────────── s         └──────────────── s          └────────────── s
      w       N               w         N−d  N             w

两端都对准了，不差一步：
    s = 0      是 η_max/(w+1) 而不是 0：第一次更新也要有用，否则白算一批
    s = w      预热恰好结束，正好是 η_max，与后半段接上，没有断口
    s = N−1    最后一次更新用的恰好是 η_min；差一步就永远走不到（测试盯着这三处）

常见疑问：
    选哪一种？        总步数说得准，用 cosine；想随时停、随时接着练，用 WSD：平台期的检查点
                      哪一个都能拿来再接一段衰减；constant 用来调试，少一个变量。
    η_max 取多少？    模型越小可以越大：几百万参数的 1e-3 左右，GPT-2 大小的 3e-4 到 6e-4。
    η_min 为何不取 0？ 取 0 的最后几步不动，白算；取 η_max 的十分之一是常用的折中。
    预热多少步？      几十到几百步，总步数的百分之几；批越大、学习率越高，越需要它。

论文：余弦 — Loshchilov & Hutter, *SGDR*, arXiv:1608.03983；预热 — Vaswani et al.,
      arXiv:1706.03762 §5.3；WSD — Hu et al., *MiniCPM*, arXiv:2404.06395；
      为什么末尾降下来损失就掉 — Wen et al., *river valley*, arXiv:2410.05192。

改哪里：加一种形状 → 仿照 cosine_share 写一个函数，登记到 SCHEDULES；
        每组参数用不同的倍数 → optimizer.py 的 lr_scale；选哪种、多少步 → train_config.py。
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from foundation.checks import check_choice, check_float, check_int
from foundation.demonstration import new_figure, run_demo, save_figure

__all__ = ["SCHEDULES", "learning_rate"]


def cosine_share(step: int, warmup_steps: int, total_steps: int, decay_steps: int) -> float:
    """余弦：开头与末尾都平缓，中间降得最快。

    公式：½(1 + cos πp)，p = (s−w)/(N−1−w)：预热后的第一次更新是 0，最后一次是 1
    """
    span = max(1, total_steps - 1 - warmup_steps)  # 只有一步可衰减时，免得除以 0
    progress = min(1.0, (step - warmup_steps) / span)
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def wsd_share(step: int, warmup_steps: int, total_steps: int, decay_steps: int) -> float:
    """平台之后直线下降。

    公式：1 − p，p = (s − (N−d) + 1)/d；平台段里 p 不大于 0，截到 0；最后一次更新 p = 1
    """
    progress = (step - (total_steps - decay_steps) + 1) / max(1, decay_steps)
    return 1.0 - min(1.0, max(0.0, progress))


def constant_share(step: int, warmup_steps: int, total_steps: int, decay_steps: int) -> float:
    """一直走最大的步子；做试验时少一个变量。"""
    return 1.0


# 名字 → 预热之后的形状：返回 η 在 η_min 与 η_max 之间占几成，1 是最大，0 是最小
SCHEDULES: dict[str, Callable[[int, int, int, int], float]] = {
    "cosine": cosine_share,
    "wsd": wsd_share,
    "constant": constant_share,
}


def learning_rate(
    step: int,
    *,
    kind: str,
    max_lr: float,
    min_lr: float,
    warmup_steps: int,
    total_steps: int,
    decay_steps: int,
) -> float:
    """第 step 次更新（从 0 数起）该用的学习率；只看 step，不记任何历史。

    公式：见本文件开头；step ≥ total_steps 时停在最后一步的值上
    参数：decay_steps 只有 "wsd" 用；constant 也有预热，没有衰减
    错误：不认识的 kind，min_lr > max_lr，预热加衰减超出总步数 → ValueError

    为什么写成纯函数而不用 torch 的 LRScheduler：续训时没有状态要存、要对齐，
    任何一步的学习率都能直接算出来，也就能直接画出来、直接测。
    """
    _check_schedule(step, kind, max_lr, min_lr, warmup_steps, total_steps, decay_steps)
    # 预热：各种形状共用。分母是 w+1，所以 s = w 时正好是 1，与下一段相接
    if step < warmup_steps:
        return max_lr * (step + 1) / (warmup_steps + 1)
    share = SCHEDULES[kind](step, warmup_steps, total_steps, decay_steps)
    # 写成加权平均：share 是 0 或 1 时恰好等于端点，不留舍入误差
    return min_lr * (1.0 - share) + max_lr * share


def _check_schedule(
    step: int,
    kind: str,
    max_lr: float,
    min_lr: float,
    warmup_steps: int,
    total_steps: int,
    decay_steps: int,
) -> None:
    """参数各自合理，而且凑在一起放得进总步数。

    几次比较而已，每步都查也不费时间；好处是画图、脚本里直接调用时也不会得到一条怪曲线。
    """
    check_int("step", step, 0)
    check_choice("schedule", kind, SCHEDULES)
    check_float("max_lr", max_lr, exclusive_minimum=0)
    # 末尾比开头还大就不是衰减了，多半是两个数写反了
    check_float("min_lr", min_lr, 0, max_lr)
    check_int("total_steps", total_steps, 1)
    # 预热占满全部步数，就从来没有真正用过 max_lr
    check_int("warmup_steps", warmup_steps, 0, total_steps - 1)
    if kind == "wsd":
        # 三段首尾相接，谁也不许压着谁
        check_int("decay_steps", decay_steps, 0, total_steps)
        if warmup_steps + decay_steps > total_steps:
            raise ValueError(
                f"warmup_steps {warmup_steps} + decay_steps {decay_steps} exceed "
                f"total_steps {total_steps}; shorten one of them"
            )


def demo() -> None:
    """二十步的三条曲线，画成字符；再验证两端与接缝。"""
    values = {"max_lr": 1e-3, "min_lr": 1e-4, "warmup_steps": 4, "total_steps": 20}
    # 曲线就是把 0 … N−1 代进同一个函数：不必真的训练
    curves = {
        kind: [learning_rate(s, kind=kind, decay_steps=6, **values) for s in range(20)]  # type: ignore[arg-type]
        for kind in SCHEDULES
    }
    print("① 二十步，预热 4 步，η_max = 1e-3，η_min = 1e-4；一格 = 5e-5")
    print("     s   " + "".join(f"{kind:<22}" for kind in curves))
    # 挑有变化的几步来印，一眼看出形状
    for step in (0, 1, 2, 3, 4, 8, 12, 14, 16, 18, 19):
        bars = ("█" * round(curve[step] / 5e-5) for curve in curves.values())
        print(f"    {step:2d}   " + "".join(f"{bar:<22}" for bar in bars).rstrip())

    print("② 接缝与两端：不差一步")
    for kind, curve in curves.items():
        # 第一次更新不是 0；预热之后正好到顶
        assert curve[0] == 1e-3 / 5
        assert curve[4] == 1e-3
        # 预热是直线：相邻两步的差相同
        steps = [after - before for before, after in zip(curve[:4], curve[1:5], strict=True)]
        assert max(steps) - min(steps) < 1e-12
        # 预热之后只降不升，也没有断口
        falls = [before - after for before, after in zip(curve[4:-1], curve[5:], strict=True)]
        assert min(falls) >= 0
        end = 1e-3 if kind == "constant" else 1e-4
        assert abs(curve[-1] - end) < 1e-12
        print(
            f"   {kind:<8} 第一次更新 {curve[0]:.0e}，预热后 {curve[4]:.0e}，最后 {curve[-1]:.0e}"
        )

    # 学习率之和大致是权重能走的总路程
    print("③ 一共走了多远：∑η（面积），以常数为 1")
    area = {kind: sum(curve) / sum(curves["constant"]) for kind, curve in curves.items()}
    print("   " + "，".join(f"{kind} {value:.2f}" for kind, value in area.items()))
    # WSD 的平台使它走得比余弦远：这是它同样步数下不吃亏的原因之一
    assert area["cosine"] < area["wsd"] < area["constant"] == 1.0

    # 不拦住，得到的是一条没人要的曲线，训练照样跑完
    print("④ 写反的、放不下的，当场拒绝")
    for wrong in ({"min_lr": 2e-3}, {"warmup_steps": 18, "kind": "wsd"}, {"kind": "cosin"}):
        try:
            learning_rate(0, **{"kind": "cosine", "decay_steps": 6, **values, **wrong})  # type: ignore[arg-type]
        except ValueError as error:
            print(f"   {error}")
        else:
            raise AssertionError(f"{wrong} must be refused")


def plot(path: Path) -> None:
    """三条曲线画在一起；图上的字用英文，许多机器没有中文字体。"""
    figure, axes = new_figure(size=(7.5, 4.0))  # 英寸
    values = {"max_lr": 1e-3, "min_lr": 1e-4, "warmup_steps": 100, "total_steps": 1000}
    for kind in SCHEDULES:
        curve = [learning_rate(s, kind=kind, decay_steps=200, **values) for s in range(1000)]  # type: ignore[arg-type]
        axes.plot(curve, label=kind, linewidth=2)
    axes.set(xlabel="step", ylabel="learning rate", title="Learning-rate schedules")
    # 三段的分界：预热结束、WSD 开始衰减
    for place, name in ((100, "warmup ends"), (800, "WSD decays")):
        axes.axvline(place, color="0.7", linestyle=":")
        axes.text(place + 8, 3e-5, name, color="0.4")
    axes.set_ylim(0, 1.08e-3)
    axes.grid(alpha=0.3)
    # 三条在预热段重合，之后才分开
    axes.legend()
    save_figure(figure, path)


if __name__ == "__main__":
    run_demo(demo, plot)
