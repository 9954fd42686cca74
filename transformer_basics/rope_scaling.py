r"""训练时只见过 L 个词元，怎样读更长的文章？——旋转位置的频率与五种拉长法。

RoPE 的第 i 对分量每走一步转 ω_i 弧度（见 rotary.py）：

$$\omega_i = \theta^{-2i/d}, \qquad \text{波长 } \lambda_i = 2\pi/\omega_i, \qquad
  \text{训练中转过的圈数 } r_i = L/\lambda_i$$

    i = 0        ∿∿∿∿∿∿∿∿∿∿∿∿∿∿∿∿∿∿∿∿∿∿   快：转很多圈，各种角度都见过，管近处的次序
    i 居中       ∿    ∿    ∿    ∿    ∿
    i = d/2−1    ⌒─────────────────────►  慢：不到一圈，更大的角度从没见过，管远处
                 0                    L

再往后走，慢的分量就转到了没见过的角度，注意力随之失灵。五种改法，都只改频率表 (d/2,)：

  linear  ω' = ω/s：全部压慢 s 倍（位置插值）；近处的次序也跟着变模糊
  ntk     换更大的 θ' = θ·s^{d/(d−2)}：最慢的恰好慢 s 倍，最快的不动，中间渐变
  dynamic 还是 ntk，只是倍数跟着要读的长度 C 走：s' = max(1, s·C/L − (s − 1))；C ≤ L 时一点不动
  yarn    按圈数分段：r ≥ β_fast 不动，r ≤ β_slow 除以 s，中间按序号线性过渡；
          并把 cos、sin 乘上 0.1·ln s + 1，让变长之后的注意力不至于太平
  llama3  也按圈数分段，中间按圈数 r 线性过渡（Llama 3.1 的取法）

读法：先看 r_i。r 大的分量在训练里转过许多圈，任何角度都见过，不用管它；r < 1 的分量只见过
一小段弧，拉长 s 倍就要压慢 s 倍，才留在见过的弧里；夹在中间的，各家取法不同。

拉长之后，最好再用长文章训练一小段；不训练直接用，ntk 与 yarn 通常比 linear 稳，因为它们
没有动管近处次序的快分量。

dynamic 的 C 何时定？别处有的实现每来一个词元就按当时的长度换一次 θ'，而缓存里的键早已按旧的
角度转好：新旧角度混在一起，有缓存与没有缓存、成批与单独，写出的就不一样了。这里在读之前定好：
C 是模型的 max_seq_len（要读多长就把它设成多长，见 gpt_model/longer_context.py），读的途中不变。
恰好读满 C 时，与「每次重算」的那种写法逐数相同。

论文：Chen 等 2023 位置插值 (arXiv:2306.15595)；Peng 等 2023《YaRN》(arXiv:2309.00071)；
     Llama 3 (arXiv:2407.21783)

改哪里：
  · 想加一种拉长法——写一个 (head_dim, theta, scaling) → (d/2,) 的函数，登记到 SCALINGS。
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foundation.checks import check_choice, check_float, check_int, unknown_key_message
from foundation.demonstration import new_figure, run_demo, save_figure

__all__ = ["SCALINGS", "RopeScaling", "rope_frequencies"]


# 这几种不知道训练时的长度就没法算
NEEDS_LENGTH = ("dynamic", "yarn", "llama3")


@dataclass(frozen=True)
class RopeScaling:
    """用哪一种拉长法，拉长多少。

    factor                 要拉长的倍数 s ≥ 1；dynamic 的 s 只决定倍数随长度涨得多快，多半是 1
    original_max_seq_len   训练时的长度 L；dynamic 与按圈数分段的 yarn、llama3 必须知道它
    low / high_freq_factor llama3 的两个界限：圈数少于前者除以 s，多于后者不动
    beta_slow / beta_fast  yarn 的两个界限，含义同上
    attention_factor       cos、sin 的系数；None 即用各方法自己的取法
    错误：名字不认识、s < 1、缺 L、两个界限颠倒时抛 ValueError
    """

    kind: str
    factor: float
    original_max_seq_len: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        """构造时逐个检查。

        这些数常常抄自别人的 config.json；抄错了模型照样能跑，只是变笨，所以不能放过
        """
        check_choice("rope_scaling kind", self.kind, SCALINGS)
        check_float("rope_scaling factor", self.factor, 1.0)
        if self.original_max_seq_len is not None:
            check_int("rope_scaling original_max_seq_len", self.original_max_seq_len, 1)
        elif self.kind in NEEDS_LENGTH:
            raise ValueError(
                f"rope_scaling kind {self.kind!r} needs original_max_seq_len, the context length"
                " the model was trained with; got None"
            )
        if self.attention_factor is not None:
            name = "rope_scaling attention_factor"
            check_float(name, self.attention_factor, exclusive_minimum=0.0)
        # 界限相等会除以零，颠倒会把快慢弄反
        for small, large in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            low = check_float(f"rope_scaling {small}", getattr(self, small), exclusive_minimum=0.0)
            check_float(f"rope_scaling {large}", getattr(self, large), exclusive_minimum=low)

    def fixed(self, length: int | None) -> RopeScaling:
        """要读 length 个时实际用的：dynamic 换成定好倍数的 ntk，别的原样；None 即训练时的长度。"""
        if self.kind != "dynamic":
            return self
        assert self.original_max_seq_len is not None
        # C ≤ L 时是 1：训练过的长度之内，一点也不动
        #   s 大于 1 时，超过之后涨得更快
        stretch = max(1.0, (length or 0) / self.original_max_seq_len)
        return replace(self, kind="ntk", factor=self.factor * stretch - (self.factor - 1.0))

    def to_dict(self) -> dict[str, Any]:
        """变成可以写进 config.json 的字典；None 也写出来，读的人才知道有这一项。"""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RopeScaling:
        """从字典读回；多出的键（拼错的名字）、缺少的键都抛 ValueError。"""
        # 别人的 config.json 用别的键名（rope_type …），翻译在 gpt_model/huggingface_config.py
        names = [field.name for field in fields(cls)]
        for key in values:
            if key not in names:
                raise ValueError(unknown_key_message(str(key), names, "rope_scaling"))
        for key in ("kind", "factor"):
            if key not in values:
                raise ValueError(f"rope_scaling needs the key {key!r}, got only {sorted(values)}")
        return cls(**values)


def plain_frequencies(head_dim: int, theta: float) -> Tensor:
    """不拉长：ω_i = θ^(−2i/d)，形状 (d/2,)。

    在 CPU 上用 float64 算：GPU 上各家的 pow 略有出入，同一个模型换台机器就不全等
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim
    return torch.exp(-math.log(theta) * exponents)  # (d/2,)


def linear_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """位置插值：ω' = ω/s，等于把位置 t 看成 t/s。

    最简单，也最粗：相邻两个词元的角度差也缩小了 s 倍，近处的次序要重新学着分辨
    """
    return plain_frequencies(head_dim, theta) / scaling.factor


def ntk_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """换底：θ' = θ·s^(d/(d−2))。

    指数由「最后一个频率恰好除以 s」解出：θ'^(−(d−2)/d) = θ^(−(d−2)/d)/s；d = 2 时只有一个频率
    """
    exponent = head_dim / max(head_dim - 2, 1)
    return plain_frequencies(head_dim, theta * scaling.factor**exponent)


def yarn_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """YaRN：转过 β_fast 圈的不动，不到 β_slow 圈的除以 s，中间按序号过渡。

    公式：ω' = (1 − γ)·ω + γ·ω/s，γ 是序号的斜坡，从 0 到 1
    """
    assert scaling.original_max_seq_len is not None
    length = scaling.original_max_seq_len

    def pair_that_turns(turns: float) -> float:
        # 由 L·ω_i = 2π·turns 解出序号 i（不一定是整数）：
        # 两边取对数，i = d·ln(L/(2π·turns)) / (2·ln θ)
        return head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    # ① 两个界限换算成序号，向外取整
    low = max(math.floor(pair_that_turns(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(scaling.beta_slow)), head_dim - 1)
    # ② 一道斜坡：0 = 不动，1 = 除以 s；两个界限落在同一处时，坡变成台阶
    pairs = torch.arange(head_dim // 2, dtype=torch.float64, device="cpu")
    ramp = ((pairs - low) / (high - low if high != low else 0.001)).clamp(0.0, 1.0)
    # ③ 按坡度混合两种频率
    plain = plain_frequencies(head_dim, theta)
    return plain * (1.0 - ramp) + plain / scaling.factor * ramp


def llama3_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """Llama 3.1：r 大的不动，r 小的除以 s，中间按 r 过渡。

    公式：r = L·ω/2π，ω' = κ·ω + (1 − κ)·ω/s，κ = clamp((r − low)/(high − low), 0, 1)
    与 YaRN 只差两处：斜坡画在圈数上而不是序号上；cos、sin 不乘系数
    """
    assert scaling.original_max_seq_len is not None
    plain = plain_frequencies(head_dim, theta)
    turns = scaling.original_max_seq_len * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)  # 1 = 不动，0 = 除以 s
    return plain * keep + plain / scaling.factor * (1.0 - keep)


# RopeScaling 的 kind 按名字在这里找；加一种方法，就是加一个函数、加一行
SCALINGS: dict[str, Callable[[int, float, RopeScaling], Tensor]] = {
    "linear": linear_frequencies,
    "ntk": ntk_frequencies,
    "dynamic": ntk_frequencies,  # 倍数定好之后（fixed）就是它
    "yarn": yarn_frequencies,
    "llama3": llama3_frequencies,
}


def rope_frequencies(
    head_dim: int,
    theta: float = 10000.0,
    scaling: RopeScaling | None = None,
    length: int | None = None,
) -> tuple[Tensor, float]:
    """每对分量的频率，与乘在 cos、sin 上的系数；length 是要读多长，只有 dynamic 看它。

    形状：→ (d/2,) float64，和一个数
    系数：拉长之后可看的键变多，softmax 会变平；
          只有 yarn 默认不是 1；cos、sin 各乘 m，则 q·k 乘 m²，等于把 softmax 的温度调低
    """
    if scaling is None:
        return plain_frequencies(head_dim, theta), 1.0
    scaling = scaling.fixed(length)
    factor = scaling.attention_factor
    if factor is None:
        factor = 0.1 * math.log(scaling.factor) + 1.0 if scaling.kind == "yarn" else 1.0
    return SCALINGS[scaling.kind](head_dim, theta, scaling), factor


def examples(factor: float, length: int) -> dict[str, RopeScaling | None]:
    """同样的倍数与训练长度，每种方法一份；演示与图共用。

    none 是不拉长，放在最前面当作对照
    """
    plain: dict[str, RopeScaling | None] = {"none": None}
    # 同样的 s 与 L，好并排比
    # dynamic 与 ntk 是同一条曲线，只是倍数由长度定，另看
    kinds = [kind for kind in SCALINGS if kind != "dynamic"]
    return plain | {kind: RopeScaling(kind, factor, length) for kind in kinds}


def demo() -> None:
    """每头 16 维、训练长度 512、拉长 4 倍：八个频率各被压慢多少；dynamic 随长度怎样变。

    竖着看：转过许多圈的几对（左边）只有 linear 去动；不到一圈的（右边）人人都压慢 4 倍，
    ntk 例外，它一路渐变，要到最后一对才压够
    """
    head_dim, length, factor = 16, 512, 4.0
    # 圈数是一切的依据：它说明训练时每个分量见过多少种角度
    plain, _ = rope_frequencies(head_dim)
    turns = length * plain / (2 * math.pi)
    print("① 第 i 对    " + "".join(f"{i:8d}" for i in range(head_dim // 2)))
    print("   训练中几圈" + "".join(f"{value:8.2f}" for value in turns.tolist()))

    # 快的分量管近处的次序：压慢了，相邻两个词就分不清，所以后三种都不动它
    # 慢几倍 = 原来的频率 / 拉长后的频率
    slowed = {}
    for kind, scaling in examples(factor, length).items():
        frequencies, attention = rope_frequencies(head_dim, scaling=scaling)
        slowed[kind] = plain / frequencies
        cells = "".join(f"{value:8.2f}" for value in slowed[kind].tolist())
        print(f"② {kind:7s}慢几倍{cells}   cos、sin 乘 {attention:.3f}")
    assert bool((slowed["linear"] == factor).all())
    for kind in ("ntk", "yarn", "llama3"):
        # 最快的一对不动，最慢的一对恰好慢 s 倍：拉长后走 s·L 步，转的角度与原来走 L 步相同
        assert abs(float(slowed[kind][0]) - 1.0) < 1e-9
        assert abs(float(slowed[kind][-1]) - factor) < 1e-9
        assert bool((slowed[kind].diff() >= -1e-9).all())

    # dynamic：长度没超过训练时的，一点不动；读满 4 倍长，就是 4 倍的 ntk
    dynamic = RopeScaling("dynamic", 1.0, length)
    # 每行的倍数只由要读的长度定
    for reading in (256, 512, 1024, 2048):
        frequencies, _ = rope_frequencies(head_dim, scaling=dynamic, length=reading)
        cells = "".join(f"{value:8.2f}" for value in (plain / frequencies).tolist())
        print(f"③ dynamic 读 {reading:4d}{cells}")
    assert torch.allclose(plain / frequencies, slowed["ntk"])

    # 拼错的名字、漏掉的长度，当场就说：
    # 猜一个最像的名字给你看，但绝不替你猜着用
    for wrong in ({"kind": "yarm", "factor": 4.0}, {"kind": "yarn", "factor": 4.0}):
        try:
            RopeScaling.from_dict(wrong)
        except ValueError as error:
            print(f"④ {wrong} → {error}")


def plot(path: Path) -> None:
    """横轴是第几对分量，纵轴是被压慢的倍数：各种方法的全部差别就在这条曲线上。

    θ、训练长度与倍数取 Llama 3.1 的量级，所以 llama3 的那条就是它真正在用的
    """
    head_dim, length, factor = 128, 8192, 8.0
    plain, _ = rope_frequencies(head_dim, 500000.0)
    figure, axis = new_figure(size=(7.5, 4.5))
    for kind, scaling in examples(factor, length).items():
        frequencies, _ = rope_frequencies(head_dim, 500000.0, scaling)
        axis.plot(plain / frequencies, label=kind)
    title = f"RoPE scaling, factor {factor:g}, trained on {length} tokens"
    axis.set(title=title, xlabel="pair i (fast to slow)", ylabel="slowed down by")
    axis.legend()
    save_figure(figure, path)


if __name__ == "__main__":
    run_demo(demo, plot)
