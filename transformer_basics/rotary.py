r"""怎样让注意力只看「相距多远」，而不看「在第几个」？——旋转位置编码（RoPE）。

把 q、k 的每对分量看作平面上的一个向量，在位置 t 处转过角度 t·ω_i。两个向量各自转过之后，
内积只剩下角度之差：

$$\langle R_m q,\; R_n k\rangle = \langle R_{m-n}\,q,\; k\rangle ,\qquad \omega_i = \theta^{-2i/d}$$

    x (B, H, T, d) = [ a (前 d/2 维) | b (后 d/2 维) ]        第 i 对是 (a_i, b_i)

         b ↑   ↗ 转过 t·ω_i
           │ ／                       a' = a·cos − b·sin
           └────► a                   b' = b·cos + a·sin

对半拆分（half-split）的约定与 Llama、Qwen、Mistral 的权重一致，所以导入时只需改名。

上下文比训练时更长怎么办：慢的分量在训练中没有转满一圈，更大的角度它从没见过。四种改法：
  linear  所有频率除以 s（位置插值，position interpolation）
  ntk     换一个更大的 θ：最慢的分量正好慢 s 倍，最快的几乎不动
  yarn    按转过的圈数分段：快的不动、慢的除以 s、中间过渡，并略微放大 q·k
  llama3  同样按波长分段（Llama 3.1 的取法）

论文：Su 等 2021《RoFormer》(arXiv:2104.09864)；Chen 等 2023 位置插值 (arXiv:2306.15595)；
     Peng 等 2023《YaRN》(arXiv:2309.00071)；Llama 3 (arXiv:2407.21783)

改哪里：
  · 想换长文本方案——RopeScaling 加一个 kind，在 SCALINGS 里登记它的频率公式。
  · 想改基频——theta；theta 越大，慢的分量越慢，能分辨的距离越远。
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.checks import check_choice, check_float, check_int, unknown_key_message
from foundation.demonstration import run_demo

__all__ = [
    "SCALINGS",
    "RopeScaling",
    "RotaryEmbedding",
    "rope_frequencies",
    "rotate",
    "rotate_half",
]


@dataclass(frozen=True)
class RopeScaling:
    """长上下文的改法与它的参数。

    factor 是要把上下文拉长的倍数 s；original_max_seq_len 是训练时的长度 L（yarn、llama3 必需）
    错误：kind 不认识、factor < 1、缺 L、界限颠倒时抛 ValueError
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
        """逐个检查，并把两对界限的次序也查一遍。"""
        check_choice("rope_scaling kind", self.kind, SCALINGS)
        check_float("rope_scaling factor", self.factor, 1.0)
        if self.original_max_seq_len is not None:
            check_int("rope_scaling original_max_seq_len", self.original_max_seq_len, 1)
        elif self.kind in ("yarn", "llama3"):
            raise ValueError(
                f"rope_scaling kind {self.kind!r} needs original_max_seq_len, the context length"
                " of the training run; got None"
            )
        if self.attention_factor is not None:
            check_float(
                "rope_scaling attention_factor", self.attention_factor, exclusive_minimum=0.0
            )
        for small, large in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            low = check_float(f"rope_scaling {small}", getattr(self, small), exclusive_minimum=0.0)
            check_float(f"rope_scaling {large}", getattr(self, large), exclusive_minimum=low)

    def to_dict(self) -> dict[str, Any]:
        """变成可以写进 JSON 的字典。"""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RopeScaling:
        """从字典读回；多出的键、缺少的键都抛 ValueError。"""
        names = [field.name for field in fields(cls)]
        for key in values:
            if key not in names:
                raise ValueError(unknown_key_message(str(key), names, "rope_scaling"))
        for key in ("kind", "factor"):
            if key not in values:
                raise ValueError(f"rope_scaling needs the key {key!r}; got {sorted(values)}")
        return cls(**values)


def plain_frequencies(head_dim: int, theta: float) -> Tensor:
    """没有改动的频率：ω_i = θ^(−2i/d)，形状 (d/2,)，float64。"""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim
    return torch.exp(-math.log(theta) * exponents)


def linear_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """位置插值：ω'_i = ω_i / s，等于把位置 t 压缩成 t/s。"""
    return plain_frequencies(head_dim, theta) / scaling.factor


def ntk_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """NTK 式换底：θ' = θ·s^(d/(d−2))，于是最后一个频率恰好除以 s，第一个不变。"""
    exponent = head_dim / max(head_dim - 2, 1)
    return plain_frequencies(head_dim, theta * scaling.factor**exponent)


def yarn_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """YaRN：训练中转了 β_fast 圈以上的分量不动，不到 β_slow 圈的除以 s，中间线性过渡。"""
    assert scaling.original_max_seq_len is not None
    plain = plain_frequencies(head_dim, theta)
    length = scaling.original_max_seq_len

    def pair_with_turns(turns: float) -> float:
        # 由 L·ω_i = 2π·turns 解出 i（不取整）
        return head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_with_turns(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_with_turns(scaling.beta_slow)), head_dim - 1)
    pairs = torch.arange(head_dim // 2, dtype=torch.float64, device="cpu")
    ramp = ((pairs - low) / max(high - low, 0.001)).clamp(0.0, 1.0)  # 0 = 不动，1 = 除以 s
    return plain * (1.0 - ramp) + plain / scaling.factor * ramp


def llama3_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """Llama 3.1：在训练长度里转的圈数 r = L·ω/2π；r 大不动，r 小除以 s，中间按 r 线性过渡。"""
    assert scaling.original_max_seq_len is not None
    plain = plain_frequencies(head_dim, theta)
    turns = scaling.original_max_seq_len * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)  # 1 = 不动，0 = 除以 s
    return plain * keep + plain / scaling.factor * (1.0 - keep)


SCALINGS: dict[str, Callable[[int, float, RopeScaling], Tensor]] = {
    "linear": linear_frequencies,
    "ntk": ntk_frequencies,
    "yarn": yarn_frequencies,
    "llama3": llama3_frequencies,
}


def rope_frequencies(
    head_dim: int, theta: float = 10000.0, scaling: RopeScaling | None = None
) -> tuple[Tensor, float]:
    """返回每对分量的频率 (d/2,) float64，以及乘在 cos、sin 上的系数。

    系数只有 yarn 用：默认 0.1·ln(s) + 1，让拉长之后的注意力不至于太平
    """
    if scaling is None:
        return plain_frequencies(head_dim, theta), 1.0
    attention_factor = scaling.attention_factor
    if attention_factor is None:
        attention_factor = 0.1 * math.log(scaling.factor) + 1.0 if scaling.kind == "yarn" else 1.0
    return SCALINGS[scaling.kind](head_dim, theta, scaling), attention_factor


def rotate_half(x: Tensor) -> Tensor:
    """把 [a | b] 变成 [−b | a]：每一对都转过 90°。"""
    first, second = x.chunk(2, dim=-1)  # (…, d/2) ×2
    return torch.cat((-second, first), dim=-1)  # (…, d)


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """转动 x：写法与 x·cos + rotate_half(x)·sin 相等，但少三次内存往返。

    形状：x (B, H, T, d)，cos、signed_sin (T, d) 或 (B, 1, T, d) → (B, H, T, d)
    类型：在 float32 中转动，再变回 x 的 dtype
    """
    # 负号预先写进表里：signed_sin = [−sin | sin]，于是对调两半（roll）就够了
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    half = x.shape[-1] // 2
    rotated = torch.addcmul(wide * cos, wide.roll(half, -1), signed_sin)
    return rotated.to(x.dtype)


class RotaryEmbedding(nn.Module):
    """旋转位置编码，各层共用一个。

    公式：a' = a·cos(tω) − b·sin(tω)，b' = b·cos(tω) + a·sin(tω)
    形状：x (B, H, T, d) → (B, H, T, d)；positions (T,) 或 (B, T)
    类型：表永远是 float32，不随 model.half() 变粗；输出与 x 同 dtype
    错误：head_dim 为奇数、位置为负时抛 ValueError
    """

    def __init__(
        self,
        head_dim: int,
        *,
        theta: float = 10000.0,
        max_seq_len: int = 2048,
        scaling: RopeScaling | None = None,
    ) -> None:
        super().__init__()
        self.head_dim = check_int("head_dim", head_dim, 2)
        if head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, got {head_dim}")
        self.theta = check_float("rope_theta", theta, exclusive_minimum=1.0)
        self.max_seq_len = check_int("max_seq_len", max_seq_len, 1)
        self.scaling = scaling
        # 表是普通属性而不是 buffer：第一次用到时才在 x 的设备上算出来，
        # 因此 meta 设备、to_empty、half() 都弄不坏它
        self._cos: Tensor | None = None
        self._signed_sin: Tensor | None = None

    def tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """返回至少 length 行的 cos 与 [−sin | sin] 表，各 (L, d)；不够长就重算。"""
        cos, signed_sin = self._cos, self._signed_sin
        if cos is None or signed_sin is None or len(cos) < length or cos.device != device:
            # ① 角度在 float64 里算：位置到十万时，float32 的角度误差已有千分之几弧度
            length = max(length, self.max_seq_len, 0 if cos is None else len(cos))
            frequencies, factor = rope_frequencies(self.head_dim, self.theta, self.scaling)
            positions = torch.arange(length, dtype=torch.float64, device="cpu")
            angles = torch.outer(positions, frequencies)  # (L, d/2)
            # ② 前后两半用同一组角度；sin 的前半带负号
            cosine, sine = angles.cos() * factor, angles.sin() * factor
            cos = torch.cat((cosine, cosine), dim=-1).float().to(device)  # (L, d)
            signed_sin = torch.cat((-sine, sine), dim=-1).float().to(device)  # (L, d)
            self._cos, self._signed_sin = cos, signed_sin
        return cos, signed_sin

    def cos_sin(
        self, n_positions: int, offset: int, positions: Tensor | None, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """取出这些位置的 cos 与 [−sin | sin]，已整理成能与 (B, H, T, d) 相乘的形状。

        positions 为 None 时取 offset … offset+T−1，只切一段视图
        """
        if positions is None:
            end = offset + n_positions
            cos, signed_sin = self.tables(end, device)
            return cos[offset:end], signed_sin[offset:end]  # (T, d)
        cos, signed_sin = self.tables(1, device)
        try:
            cos, signed_sin = F.embedding(positions, cos), F.embedding(positions, signed_sin)
        except IndexError:  # 表不够长，或者位置为负：前者加长，后者报错
            lowest, highest = int(positions.min()), int(positions.max())
            if lowest < 0:
                raise ValueError(
                    f"rotary positions must be >= 0, got {lowest}; clamp the positions of padding"
                ) from None
            cos, signed_sin = self.tables(highest + 1, device)
            cos, signed_sin = F.embedding(positions, cos), F.embedding(positions, signed_sin)
        if positions.ndim == 2:
            return cos.unsqueeze(1), signed_sin.unsqueeze(1)  # (B, 1, T, d)
        return cos, signed_sin  # (T, d)

    def forward(self, x: Tensor, positions: Tensor | None = None, *, offset: int = 0) -> Tensor:
        """转动 x；positions 为 None 时从 offset 数起。"""
        cos, signed_sin = self.cos_sin(x.shape[-2], offset, positions, x.device)
        return rotate(x, cos, signed_sin)

    def extra_repr(self) -> str:
        """让 print(model) 说出大小。"""
        return f"{self.head_dim}, theta={self.theta:g}, scaling={self.scaling}"


def demo() -> None:
    """演示（稍后补全）。"""


if __name__ == "__main__":
    run_demo(demo)
