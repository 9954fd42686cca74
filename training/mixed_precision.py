r"""一半的位数，怎样不把模型练坏？——bf16 直接能用；fp16 要先把损失放大。

矩阵乘法占了训练的绝大部分时间，用 16 位的数算，同样的硬件快一倍以上，激活也只占一半内存。
但权重、梯度、优化器的状态仍是 fp32：一次更新常常只有权重的万分之一，16 位装不下这么小的差。
autocast 按算子决定：矩阵乘法用 16 位，softmax、归一化、损失用 32 位。

    位数          符号 │ 指数 │ 尾数       最小的正规数      最大的数      三位有效数字够吗
    fp32             1 │   8  │ 23         10⁻³⁸             10³⁸          够
    bf16             1 │   8  │  7         10⁻³⁸             10³⁸          两三位，范围与 fp32 相同
    fp16             1 │   5  │ 10         6×10⁻⁵            65504         三位，范围小

fp16 的毛病在范围：训练后期的梯度大多小于 6×10⁻⁸，存进 fp16 就成了 0（underflow，下溢），
模型便停在那里。办法是损失放大（loss scaling）：求导是线性的，损失乘 S，每个梯度也都乘 S，
在 fp16 里就落在装得下的地方；到了 fp32 的梯度里，再除回去。

$$\nabla_\theta (S\cdot L) = S\cdot\nabla_\theta L$$

S 取多大？取到快要溢出为止，动态地调：
    梯度里出现了无穷大    这一步不更新，S 减半
    连着很多步都没有      S 加倍，再往上试

    损失 ×S → 反向（fp16）→ 梯度 ×S（fp32）→ 有无穷大？ ─有→ 跳过，S ÷ 2
                                                        └无→ ÷S，裁剪，更新；久无事则 S × 2

常见疑问：
    选哪种？        GPU 支持 bf16 就用 bf16，不必放大；只有旧的 GPU 才用 fp16。
    CPU 上呢？      有 bf16 指令（AVX512-BF16、AMX）就用；没有的 CPU 是模拟的，比 fp32 慢得多。
    为什么不用 torch 的 GradScaler？ 它做的是同样的事；写出来不过几行，状态只有两个数，
                    随检查点存成 JSON，而且与 NaN 的检查、裁剪共用一次「梯度有多长」。

论文：Micikevicius et al., *Mixed Precision Training*, arXiv:1710.03740；
      bf16 — Kalamkar et al., arXiv:1905.12322。

改哪里：选精度的规则 → foundation/devices.py 的 resolve_precision；放大的起点与快慢 → LossScaler。
"""

from __future__ import annotations

import math

import torch

from foundation.demonstration import run_demo

__all__ = ["LossScaler"]


class LossScaler:
    """动态的损失放大；不是 fp16 时什么也不做，倍数恒为 1。

    状态：scale 是现在的倍数，good_steps 是连着多少步没有溢出
    """

    def __init__(
        self, enabled: bool, *, scale: float = 2.0**16, growth_interval: int = 2000
    ) -> None:
        self.enabled = enabled
        # 2 的幂：乘、除都只动指数，不产生舍入
        self.scale = scale if enabled else 1.0
        self.growth_interval = growth_interval
        self.good_steps = 0

    def weight(self, n_tokens: int) -> float:
        """一个微批次的损失之和要乘多少再反向。

        损失是 n_tokens 道题之和，比平均大 n 倍；先约掉最接近 n 的 2 的幂，S 的起点才与 n 无关
        """
        if not self.enabled:
            return 1.0
        return self.scale / 2.0 ** round(math.log2(max(1, n_tokens)))

    def update(self, overflowed: bool) -> None:
        """每步之后调一次：溢出就减半，久无事就加倍。"""
        if not self.enabled:
            return
        if overflowed:
            self.scale, self.good_steps = self.scale / 2, 0
            return
        self.good_steps += 1
        if self.good_steps >= self.growth_interval:
            self.scale, self.good_steps = self.scale * 2, 0

    @property
    def exhausted(self) -> bool:
        """倍数已经降到 1 以下还在溢出：那就不是倍数的错，是损失本身坏了。"""
        return not self.enabled or self.scale < 1.0

    def state_dict(self) -> dict[str, float]:
        """随检查点存的两个数；不存，续训后的头几步就会多跳或少跳几步。"""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """放回存下的两个数；没有启用时不理会。"""
        if self.enabled:
            self.scale, self.good_steps = float(state["scale"]), int(state["good_steps"])


def demo() -> None:
    """三种数各能装下什么；很小的梯度怎样丢、怎样救；倍数怎样自己找到位置。"""
    print("① 同一个数存进三种格式")
    for value in (1e-8, 0.1, 1.001, 70000.0):
        row = [
            torch.tensor(value).to(t).item() for t in (torch.float32, torch.bfloat16, torch.float16)
        ]
        print(f"   {value:<8g} fp32 {row[0]:<12.7g} bf16 {row[1]:<12.7g} fp16 {row[2]:.7g}")
    half = torch.float16
    assert torch.tensor(1e-8).to(half) == 0  # 下溢
    assert torch.tensor(70000.0).to(half).isinf()  # 上溢
    assert torch.tensor(1.001).to(torch.bfloat16) == 1.0  # bf16 的尾数短

    print("② 梯度 1e-8：直接存成 fp16 就没了；先乘 2¹⁶ 再存，除回去还在")
    scaler = LossScaler(enabled=True)
    saved = (torch.tensor(1e-8) * scaler.scale).to(half).float() / scaler.scale
    print(f"   直接存 {torch.tensor(1e-8).to(half).item()}，放大再存 {saved.item():.3e}")
    assert abs(saved.item() / 1e-8 - 1) < 1e-3

    print("③ 倍数自己找位置：假设梯度最大是 3，fp16 装得下 65504")
    scaler, history = LossScaler(enabled=True, growth_interval=5), []
    for _ in range(24):
        overflowed = 3.0 * scaler.scale > 65504
        history.append(f"{int(math.log2(scaler.scale))}{'!' if overflowed else ''}")
        scaler.update(overflowed)
    print("   log₂S 逐步：" + " ".join(history) + "   （! = 溢出，这一步跳过）")
    # 停在装得下的最大的 2 的幂附近，偶尔往上试一次
    assert 2.0**13 <= scaler.scale <= 2.0**15

    print("④ 不是 fp16 时不放大，题数多少也不要紧")
    assert LossScaler(enabled=False).weight(4096) == 1.0
    # 4096 道题之和 × 2¹⁶/4096 与平均 × 2¹⁶ 一样大
    assert LossScaler(enabled=True).weight(4096) * 4096 == 2.0**16
    print(f"   fp32/bf16 的倍数 1.0；fp16、4096 道题的倍数 {LossScaler(enabled=True).weight(4096)}")


if __name__ == "__main__":
    run_demo(demo)
