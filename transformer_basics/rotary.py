r"""怎样让注意力只看「相距多远」，而不看「在第几个」？——旋转位置编码（RoPE）。

把 q、k 的每对分量看作平面上的一个向量，在位置 t 处转过角度 t·ω_i。各自转过之后，内积里只剩
角度之差，也就是距离：

$$\langle R_m q,\; R_n k\rangle = \langle R_{m-n}\,q,\; k\rangle ,\qquad \omega_i = \theta^{-2i/d}$$

    x (B, H, T, d) = [ a：前 d/2 维 | b：后 d/2 维 ]      第 i 对是 (a_i, b_i)

         b ↑    ↗ 转过 t·ω_i
           │  ／                        a' = a·cos − b·sin
           │／  ← 原来的 (a, b)          b' = b·cos + a·sin
           └─────► a                    长度不变，只变方向

与加在词嵌入上的位置（embeddings.py）相比：值 v 不带位置，内容与位置不混在一个向量里；
平移整句话，打分不变；没有参数，也没有写死的长度上限。

为什么要快慢不同的许多对：只有一个频率，转满一圈就分不清「相距 0」与「相距一圈」；
快的一对分得清相邻的词元，慢的一对分得清段落，合起来像钟面上的秒针、分针、时针。

两种配对的约定：这里用对半拆分（half-split，第 i 维配第 i + d/2 维），与 Llama、Qwen、Mistral
发布的权重一致，导入只需改名；原论文用相邻配对（第 2i 维配第 2i + 1 维）。
混用不会报错，只会全错。

论文：Su 等 2021《RoFormer》(arXiv:2104.09864)

改哪里：
  · 想读更长的文章——scaling，五种拉长法在 rope_scaling.py。
  · 想改基频——theta；theta 越大，慢的分量越慢，能分辨的距离越远。
  · 想只转一部分维（partial rotary）——RotaryEmbedding.forward 里切开 x，只转前一段。
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.checks import check_float, check_int
from foundation.demonstration import new_figure, run_demo, save_figure
from transformer_basics import written_backward
from transformer_basics.rope_scaling import SCALINGS, RopeScaling, rope_frequencies
from transformer_basics.written_backward import backward_is_written

__all__ = ["RotaryEmbedding", "rotate", "rotate_half"]
__all__ += ["SCALINGS", "RopeScaling", "rope_frequencies"]


def rotate_half(x: Tensor) -> Tensor:
    """把 [a | b] 变成 [−b | a]：每一对都逆时针转 90°。

    公式：旋转任意角 = cos·x + sin·rotate_half(x)；本书只在演示与测试里用它作标准答案
    """
    first, second = x.chunk(2, dim=-1)  # (…, d/2) ×2
    return torch.cat((-second, first), dim=-1)  # (…, d)


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """转动 x；与 x·cos + rotate_half(x)·sin 逐数相等，但少读写几遍内存。

    形状：x (B, H, T, d)；cos、signed_sin (T, d) 或 (B, 1, T, d) → (B, H, T, d)
    类型：半精度的 x 先变成 float32 再转，转完变回来
    """
    if backward_is_written(x):  # CPU 上训练：反向就是转回去，见 written_backward.py
        return written_backward.rotate(x, cos, signed_sin)
    # 负号已写进表里：signed_sin = [−sin | sin]，于是不必取负再拼接，对调两半（roll）就够
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    swapped = wide.roll(x.shape[-1] // 2, dims=-1)  # [b | a]
    return torch.addcmul(wide * cos, swapped, signed_sin).to(x.dtype)


class RotaryEmbedding(nn.Module):
    """旋转位置编码；没有参数，各层共用一个。

    公式：a' = a·cos(tω) − b·sin(tω)，b' = b·cos(tω) + a·sin(tω)
    形状：x (B, H, T, d) → (B, H, T, d)；positions (T,) 或 (B, T) 整数
    类型：表永远是 float32，不随 model.half() 变粗；输出与 x 同 dtype
    错误：d 为奇数、位置为负时抛 ValueError

    max_seq_len 决定表一开始有多长（走到更远处，表自己会加长），与 dynamic 拉长几倍。
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
        # 频率只由 θ、d 与拉长法决定，随时可以重算，所以不必当作状态保存。
        # 表是普通属性而不是 buffer，第一次用到时才在 x 的设备上算：
        # 在 meta 设备上搭骨架、to_empty、载入权重、变成半精度，都弄不坏它，也不会存进文件
        self._cos: Tensor | None = None
        self._signed_sin: Tensor | None = None

    def tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """至少 length 行的 cos 与 [−sin | sin]，各 (L, d)；已有且够长就直接给。"""
        cos, signed_sin = self._cos, self._signed_sin
        if cos is None or signed_sin is None or len(cos) < length or cos.device != device:
            cos, signed_sin = self._build(max(length, self.max_seq_len), device)
            self._cos, self._signed_sin = cos, signed_sin
        return cos, signed_sin

    def _frequencies(self) -> tuple[Tensor, float]:
        """频率与系数；dynamic 的倍数由 max_seq_len 定，表加长了也不变。"""
        return rope_frequencies(self.head_dim, self.theta, self.scaling, self.max_seq_len)

    @torch.inference_mode(False)
    def _build(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """算出两张表。

        必须退出推理模式：训练前若先生成了一段样文，表就在推理模式里诞生，
        这样的张量不许参加求导，接下来的训练会当场报错
        """
        # ① 角度用 float64：位置到十万时，float32 的角度误差已有千分之几弧度
        frequencies, factor = self._frequencies()
        positions = torch.arange(length, dtype=torch.float64, device="cpu")
        angles = torch.outer(positions, frequencies)  # (L, d/2)
        # ② 一对分量用同一个角度，所以前后两半相同；sin 的前一半带上负号
        cos, sin = angles.cos() * factor, angles.sin() * factor
        table = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)  # (L, d) ×2
        return table[0].float().to(device), table[1].float().to(device)

    def cos_sin(
        self, n_positions: int, offset: int, positions: Tensor | None, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """取出这些位置的 cos 与 [−sin | sin]，排成能与 (B, H, T, d) 相乘的形状。

        positions 为 None 时取 offset … offset + T − 1；q 与 k 共用这一份，不必取两次
        """
        # ① 连续的位置只是一段视图，长度是 Python 整数，不必问 GPU
        if positions is None:
            end = offset + n_positions
            cos, signed_sin = self.tables(end, device)
            return cos[offset:end], signed_sin[offset:end]  # (T, d)
        # ② 任意的位置要查表；先查了再说，越界才回头看，平时一次检查也不花
        cos, signed_sin = self.tables(1, device)
        try:
            cos, signed_sin = F.embedding(positions, cos), F.embedding(positions, signed_sin)
        except IndexError:
            cos, signed_sin = self.tables(1 + largest_position(positions), device)
            cos, signed_sin = F.embedding(positions, cos), F.embedding(positions, signed_sin)
        if positions.ndim == 2:
            return cos.unsqueeze(1), signed_sin.unsqueeze(1)  # (B, 1, T, d)
        return cos, signed_sin  # (T, d)

    def forward(self, x: Tensor, positions: Tensor | None = None, *, offset: int = 0) -> Tensor:
        """转动 x；不给 positions 就从 offset 数起。"""
        cos, signed_sin = self.cos_sin(x.shape[-2], offset, positions, x.device)
        return rotate(x, cos, signed_sin)

    def turn_back(self, x: Tensor, steps: int) -> Tensor:
        """把已经转好的 x 从位置 t 挪到 t − steps：旋转可以叠加，不必知道 t。

        公式：R_{t−s} = R_{−s}·R_t；yarn 乘在表里的系数，转第一次时已经乘过，这里除掉
        """
        cos, signed_sin = self.cos_sin(1, steps, None, x.device)  # (1, d)
        _, factor = self._frequencies()
        return rotate(x, cos / factor, -signed_sin / factor)

    def extra_repr(self) -> str:
        """让 print(model) 说出设置。"""
        return f"{self.head_dim}, theta={self.theta:g}, scaling={self.scaling}"


def largest_position(positions: Tensor) -> int:
    """表要加长到哪里。

    位置为负，多半是左填充的句子用 cumsum − 1 数位置、却忘了截到 0；加长表也没用，所以报错
    """
    if int(positions.min()) < 0:
        raise ValueError(
            f"positions must be >= 0, got {int(positions.min())}; clamp those of the padding to 0"
        )
    return int(positions.max())


def turning_by_hand() -> None:
    """二维只有一对分量；不论 θ 是多少，ω₀ 总是 1，所以位置 t 就转 t 弧度。

    从 (1, 0) 出发，转过 t 弧度，就落在 (cos t, sin t)
    """
    rotary = RotaryEmbedding(2)
    x = torch.tensor([1.0, 0.0]).expand(1, 1, 4, 2)
    turned = rotary(x)[0, 0]
    print("① 向量 (1, 0) 放在位置 0…3，各转 0…3 弧度：")
    print("   " + "  ".join(f"({a:+.3f}, {b:+.3f})" for a, b in turned.tolist()))
    angles = torch.arange(4.0)
    assert torch.allclose(turned, torch.stack((angles.cos(), angles.sin()), dim=-1), atol=1e-6)


def only_the_distance_counts() -> None:
    """同一个 q 与同一个 k，放到不同的地方打分。

    这是 RoPE 的全部承诺：打分是距离的函数，与绝对位置无关
    """
    rotary = RotaryEmbedding(64)
    query, key = torch.randn(1, 1, 1, 64), torch.randn(1, 1, 1, 64)

    def score(m: int, n: int) -> float:
        left = rotary(query, torch.tensor([m]))
        right = rotary(key, torch.tensor([n]))
        return float((left * right).sum())

    print("② 打分只看距离：")
    for distance in (0, 2, 50):
        scores = [score(start + distance, start) for start in (0, 7, 1000)]
        cells = "  ".join(f"{value:.4f}" for value in scores)
        print(f"   相距 {distance:2d}，k 在 0、7、1000 处：{cells}")
        assert max(scores) - min(scores) < 1e-3
    # 长度不变：旋转不会让某个位置的词元嗓门变大
    assert abs(float(rotary(query, torch.tensor([1000])).norm() - query.norm())) < 1e-4


def decay(distances: Tensor, head_dim: int = 128, theta: float = 10000.0) -> Tensor:
    """q = k = (1, …, 1) 时，打分（除以 d）随距离 t 的变化。

    公式：(2/d)·Σ_i cos(t·ω_i)，许多快慢不同的余弦的平均
    """
    frequencies, _ = rope_frequencies(head_dim, theta)
    return torch.outer(distances.double(), frequencies).cos().mean(dim=-1)


def demo() -> None:
    """手算一次旋转，看打分只认距离，再看越远越弱；最后核对省内存的写法。"""
    turning_by_hand()
    only_the_distance_counts()

    # 这不是人为加上去的惩罚，是余弦自己的性质：
    # 快慢不同的余弦加在一起，只有距离为 0 时步调一致，离得越远越互相抵消
    distances = torch.tensor([0, 1, 4, 16, 64, 256, 1024])
    strength = decay(distances)
    print("③ q = k 全为 1，打分随距离减弱（以距离 0 为 1）：")
    print("   距离 " + "".join(f"{d:8d}" for d in distances.tolist()))
    print("   打分 " + "".join(f"{s:8.3f}" for s in strength.tolist()))
    assert abs(float(strength[0]) - 1.0) < 1e-9
    assert float(strength[-1]) < 0.3 * float(strength[1])

    # 随便取角度，检验的是写法本身；表里的 sin 前一半带负号
    # 省内存的写法与公式的写法，一个数也不差
    x, angles = torch.randn(2, 4, 8, 64), torch.outer(torch.arange(8.0), torch.rand(32))
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)  # (8, 64)
    sign = torch.ones(64)
    sign[:32] = -1.0
    error = float((rotate(x, cos, sin * sign) - (x * cos + rotate_half(x) * sin)).abs().max())
    print(f"④ 对调两半的写法与 rotate_half 的写法最多差 {error:.1e}")
    assert error < 1e-6


def plot(path: Path) -> None:
    """左边是打分随距离的衰减，换三个 θ；右边是快慢不同的分量各自的 cos。

    右图里深蓝的一大片，是这段长度之内几乎没有转动的慢分量，留给更长的文章
    """
    figure, (left, right) = new_figure(1, 2, size=(11.0, 4.2))
    distances = torch.arange(0, 2049)
    for theta in (1e3, 1e4, 5e5):
        left.plot(distances, decay(distances, theta=theta), label=f"theta {theta:g}")
    # θ 越大，慢的分量越多，远处的打分留得越高
    left.set(title="score of q = k = 1 over distance", xlabel="distance", ylabel="score / d")
    # 横着看一行是一个位置的「指纹」，竖着看一列是一个分量的快慢
    frequencies, _ = rope_frequencies(64)
    image = right.imshow(
        torch.outer(torch.arange(128).double(), frequencies).cos(), aspect="auto", cmap="RdBu"
    )
    right.set(title="cos(t ω_i)", xlabel="pair i (fast to slow)", ylabel="position t")
    figure.colorbar(image, ax=right)
    left.legend()
    save_figure(figure, path)


if __name__ == "__main__":
    run_demo(demo, plot)
