r"""一步（step）里究竟发生了什么？——这是训练的心脏，单独成一课。

A 是 grad_accumulation，S、n 是一个微批次的损失之和与题数：

    ┌ 第 sA 个微批次   ─ 前向 ─ S₀, n₀ ─ 反向：梯度 += ∇S₀ ┐
    ├ 第 sA+1 个       ─ 前向 ─ S₁, n₁ ─ 反向：梯度 += ∇S₁ ├─▶ 有 NaN？──是─▶ 跳过，权重不动
    └ …                                                    ┘      │否
                                                                  ▼
                    梯度 ÷ Σn ─▶ 长度超过 c 就裁 ─▶ AdamW 走一步（学习率只看步数）

$$\theta \leftarrow \text{AdamW}\Big(\theta,\ \min\big(1, \tfrac{c}{\lVert g\rVert}\big)\,g\Big),
  \qquad g = \frac{\sum_a \nabla S_a}{\sum_a n_a}$$

第几个微批次只看步数：第 s 步用第 sA … sA+A−1 个。续训时直接接上，不必把走过的再走一遍。

每步只等设备一次：各个损失与梯度的长度攒在一起，一次取回（fetch）。GPU 是「发令就走」的：
CPU 发出一串算子，自己先往前跑；每取一个数（.item()），CPU 就得停下来等 GPU 把手头的活干完。

NaN 怎么办（NaN guard）：一个坏批次、一次溢出，就能让一个梯度变成 NaN；它一旦进了 Adam 的 m，
以后每一步都是 NaN，再好的数据也洗不掉。所以先看后走：

    损失或梯度的长度不是有限数 ─▶ 这一步不更新：权重、m、v 一个比特也不动，只是步数往前走
                               ─▶ 报出是哪几个窗口，凭它回到原文去看

fp16 下溢出是常事（倍数太大），不算出错，把倍数减半再来；见 mixed_precision.py。

常见疑问：
    为什么跳过的步也算一步？ 学习率与数据的次序只看步数；不算，续训时就要另记一本账。
    为什么梯度留到下一步才清？ 钩子想看每一层的梯度；清成 None 而不是 0，省一趟写内存。

论文：Micikevicius et al., arXiv:1710.03740（跳过溢出的步）；坏批次与跳高的损失 — Chowdhery et al.,
      *PaLM*, arXiv:2204.02311 §5.1。

改哪里：一步里的先后 → TrainStep.__call__；什么算坏 → find_problem；怎样合成大批 → accumulation.py。
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from foundation.demonstration import run_demo
from foundation.devices import autocast_context
from training.accumulation import (
    LossFunction,
    clip_factor,
    gradient_norm,
    gradients_of,
    scale_gradients,
)
from training.distributed import ALONE, Processes
from training.hook_base import StepReport
from training.mixed_precision import LossScaler
from training.optimizer import build_optimizer, set_learning_rate
from training.sharding import synchronized
from training.spike_watch import SpikeWatch
from training.train_config import TrainConfig

__all__ = ["TrainStep", "count_tokens", "fetch"]


@dataclass
class Pieces:
    """一步里各个微批次的账：损失之和与题数还在设备上，没有取回。"""

    losses: list[Tensor] = field(default_factory=list)  # Sₐ，每个是标量
    counts: list[Tensor | int] = field(default_factory=list)  # nₐ
    windows: list[tuple[int, ...]] = field(default_factory=list)  # 出错时说得出是哪几段
    n_tokens: int = 0  # 看过几个词元；题数另计
    weight: float = 0.0  # 反向之前，损失乘了多少；只有 fp16 不是 1


class TrainStep:
    """走一步：step ↦ StepReport；优化器与损失放大器归它管。

    参数：device 与 precision 已经定好（不再是 "auto"），模型已经在 device 上
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[int], Any],
        loss_fn: LossFunction,
        config: TrainConfig,
        *,
        device: torch.device,
        precision: str,
        processes: Processes = ALONE,
    ) -> None:
        processes.check_divides(config.grad_accumulation)  # 每个进程要有同样多的微批次
        self.processes = processes
        # 模型是什么、数据从哪里来，这里都不问：只要 loss_fn 接得住
        self.model, self.batches, self.loss_fn = model, batches, loss_fn
        self.config, self.device, self.precision = config, device, precision
        # 冻结的参数没有梯度，也就没有状态：LoRA 的优化器只有适配器那么大
        self.optimizer = build_optimizer(
            model,
            name=config.optimizer,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=config.betas,
            eps=config.eps,
            muon_learning_rate=config.muon_learning_rate,
            muon_momentum=config.muon_momentum,
        )
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        # 只有 fp16 用得着；别的精度下它的倍数恒为 1
        self.scaler = LossScaler(precision == "fp16")
        # 有限却大得离谱的：看得出、说得清，要不要跳过由配置定
        self.spikes = SpikeWatch(config.spike_action, config.spike_factor, config.spike_window)

    def __call__(self, step: int) -> StepReport:
        """走第 step 步（从 0 数起）；出现 NaN 就跳过，权重与优化器一概不动。

        公式：g = Σ∇Sₐ / Σnₐ；θ ← AdamW(θ, min(1, c/‖g‖)·g)
        类型：报告里都是 Python 的数，不是张量；grad_norm 是裁剪之前的
        约定：步数、学习率、取哪几批，都只由 step 决定，与走到这里的路无关
        约定：梯度留到下一次调用才清，钩子看到的是已除、已裁的
        """
        began = time.perf_counter()  # 秒；含取数据
        # ① 学习率只看步数；上一步的梯度留到现在才清，钩子才看得到
        rate = self.config.learning_rate_at(step)  # η(s)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        # ② 前向、反向；梯度一路累加
        pieces = self._accumulate(step)
        # ③ 全部取回，只等设备这一次
        gradients = gradients_of(self.parameters)  # 没用到的参数没有
        local = fetch(pieces.losses, pieces.counts, gradient_norm(gradients))
        sums, counts, raw_norm, n_tokens = share_account(self.processes, *local, pieces.n_tokens)
        total = sum(counts)  # Σnₐ，当分母
        problem = find_problem(sums, total, raw_norm)
        # 一道题也没有时，平均无从谈起
        # 几个进程的梯度，合的时候平均了：乘回 W，也就是少除 W
        divisor = total * pieces.weight / self.processes.size or math.nan
        norm = raw_norm / divisor  # ‖g‖，平均损失的
        loss = math.fsum(sums) / total if total else math.nan
        self.scaler.update(overflowed=bool(problem))  # 溢出就减半，久不溢出就试着加倍
        # ④ 坏的一步到此为止；跳高的一步，说好了跳过才跳过
        spikes = () if problem else self.spikes.update(loss, norm)
        if spikes and self.spikes.skips:
            problem = "; ".join(map(str, spikes))
        if not problem:
            # 先除以总题数，再裁剪；两个因子合成一次乘法，每个梯度只搬一趟
            scale_gradients(gradients, clip_factor(norm, self.config.grad_clip) / divisor)
            self.optimizer.step()
        return StepReport(
            step=step + 1,  # 走完了几步
            loss=loss,
            learning_rate=rate,  # 这一步用的
            grad_norm=norm,  # 裁剪之前
            n_tokens=n_tokens,
            seconds=time.perf_counter() - began,
            problem=problem,
            window_ids=self._bad_windows(sums, pieces) if problem or spikes else (),
            spikes=spikes,
        )

    def _accumulate(self, step: int) -> Pieces:
        """逐个微批次前向、反向。

        过拟合一批（overfit one batch）时永远是第 0 … A−1 个
        约定：backward 之后计算图就放掉，同一时刻只有一个微批次的激活在内存里

        为什么反向不攒到最后：把 A 个损失加起来再反向，A 份激活都要留着，省内存就落空了
        """
        n_pieces, pieces = self.config.grad_accumulation, Pieces()
        first = 0 if self.config.overfit_one_batch else step * n_pieces
        mine = self.processes.share_of(first, n_pieces)  # 一个进程时就是全部
        for index in mine:
            batch = self.batches(index).to(self.device)  # 编号的纯函数
            size = count_tokens(batch)
            # 一步之内用同一个倍数，梯度才能相加
            pieces.weight = pieces.weight or self._weight(size)
            # 几个进程：只有最后一个微批次才通信，前面的在本地加
            with synchronized(self.model, now=index == mine[-1]):
                # 反向不放进 autocast：它自己会沿用前向时的类型
                with autocast_context(self.precision, self.device):
                    loss, n_targets = self.loss_fn(self.model, batch)  # 和，不是平均
                torch.autograd.backward(loss if pieces.weight == 1.0 else loss * pieces.weight)
            # detach：留着计算图，整步的激活就都放不掉
            pieces.losses.append(loss.detach())
            pieces.counts.append(n_targets)  # 张量的也不取
            pieces.windows.append(tuple(getattr(batch, "window_ids", ())))
            pieces.n_tokens += size  # 有没有题都算
        return pieces

    def _weight(self, size: int) -> float:
        """fp16 的倍数；批的大小不一时各进程会选出不同的，梯度就加不起来，所以听 rank 0 的。"""
        weight = self.scaler.weight(size)
        return float(self.processes.broadcast(weight)) if self.scaler.enabled else weight

    def _bad_windows(self, sums: Sequence[float], pieces: Pieces) -> tuple[int, ...]:
        """出问题的窗口；微批次散在各进程里，合起来、排回原来的次序再看。"""
        windows = pieces.windows  # 一个进程时，这就是全部
        if self.processes.size > 1:
            found = self.processes.gather([[int(n) for n in ids] for ids in windows])
            # 第 a 个微批次在 rank a mod W 那里，是它的第 a // W 个
            windows = [tuple(ids) for together in zip(*found, strict=True) for ids in together]
        return bad_windows(sums, windows)


def share_account(
    processes: Processes, sums: list[float], counts: list[float], norm: float, n_tokens: int
) -> tuple[list[float], list[float], float, int]:
    """几个进程的账合成一份：(全体的损失之和, 全体的题数, 梯度的长度, 几个词元)。

    形状：各进程 A/W 项 → 人人同样的 A 项，次序与一个进程时相同
    约定：一步只合这一次；损失是不是 NaN、跳不跳过，人人看的是同一份，所以一起走、一起停
    """
    if processes.size == 1:
        return sums, counts, norm, n_tokens
    # 各填自己的格子，别人的格子填 0，加起来就齐了：NaN 加 0 还是 NaN
    n, rank, size = len(sums) * processes.size, processes.rank, processes.size
    vector = [0.0] * (2 * n)
    vector[rank:n:size], vector[n + rank :: size] = sums, counts
    # 长度人人都算出来了，只取 rank 0 的：不同的机器末位也许不同
    # 题数也在里面：除的是全体的 Σn，不是自己那几批的
    *whole, norm, n_tokens_all = processes.sum(
        [*vector, norm if processes.is_main else 0.0, float(n_tokens)]
    )
    return whole[:n], whole[n:], norm, int(n_tokens_all)


def count_tokens(batch: Any) -> int:
    """一批有几个词元：有 inputs 的看它的形状；没有的（别的任务）看最大的那个张量。

    约定：只看形状，不碰内容，所以不必等设备
    """
    inputs = getattr(batch, "inputs", batch)
    if isinstance(inputs, Tensor):
        return inputs.numel()  # B·T，填充的也算
    sizes = [value.numel() for value in vars(batch).values() if isinstance(value, Tensor)]
    return max(sizes, default=0)  # 偏好对等任务：取最长的


def fetch(
    losses: Sequence[Tensor], counts: Sequence[Tensor | int], norm: Tensor | None
) -> tuple[list[float], list[float], float]:
    """把设备上的标量一次取回：(各个损失之和, 各个题数, 梯度的长度)。

    形状：损失、题数、长度都是标量，拼成一个向量再取
    类型：先转 float32 再拼；取回后是 Python 的浮点数
    题数多半是 CPU 上数好的整数，不必取；是张量的，就与损失一起取
    """
    if not losses:
        return [], [], 0.0
    # 拼成一个张量再取：一次等待，而不是逐个等
    device = losses[0].device
    on_device = [count for count in counts if isinstance(count, Tensor)]
    scalars = [*losses, *on_device] + ([] if norm is None else [norm])
    packed = torch.stack([value.detach().to(device, torch.float32) for value in scalars])
    values = packed.tolist()  # 等设备，只这一次
    numbers = iter(values[len(losses) :])  # 题数排在损失之后
    whole = [next(numbers) if isinstance(count, Tensor) else float(count) for count in counts]
    return values[: len(losses)], whole, values[-1] if norm is not None else 0.0


def find_problem(sums: Sequence[float], total: float, norm: float) -> str:
    """这一步能不能走；能走返回空字符串，不能走返回原因。

    约定：先看损失再看梯度：损失坏了，梯度多半也坏，说前者更接近病根
    """
    for value in sums:
        if not math.isfinite(value):
            return f"the loss is {value}"  # nan、inf 或 -inf，照实写
    if total <= 0:
        return "the batch has no targets: every position is masked"
    # 损失有限而梯度不是：多半是某处的除以 0 或溢出，只在反向时露面
    return "" if math.isfinite(norm) else f"the gradient norm is {norm}"


def bad_windows(sums: Sequence[float], windows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """出问题的是哪些窗口：损失坏了的那几个微批次；都没坏（坏在梯度），就是全部。"""
    bad = [ids for value, ids in zip(sums, windows, strict=True) if not math.isfinite(value)]
    return tuple(number for ids in (bad or windows) for number in ids)


def demo() -> None:
    """用一个极小的「看一个词，猜下一个」的模型走几步：累积等于大批，坏批次不留痕迹。"""
    ids = torch.arange(64) % 7  # 0…6 循环：下一个词完全可以猜到

    def batches(rows: int, poison: int | None = None) -> Callable[[int], Tensor]:
        """每批 rows 个相邻的位置；poison 号是坏的，用负数表示。"""
        return lambda i: torch.arange(i * rows, (i + 1) * rows) * (-1 if i == poison else 1)

    def loss_fn(model: nn.Module, places: Tensor) -> tuple[Tensor, int]:
        safe = places.abs()  # 坏批次也要取得到编号
        logits = model(ids[safe % 63])
        loss = nn.functional.cross_entropy(logits, ids[safe % 63 + 1], reduction="sum")
        return loss * (math.nan if bool((places < 0).any()) else 1.0), len(places)  # 负数就是毒药

    def run(n_steps: int, data: Callable[[int], Tensor], **settings: Any) -> tuple[nn.Module, Any]:
        torch.manual_seed(0)  # 每次从同样的权重出发
        model = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 7))
        config = TrainConfig(steps=100, learning_rate=0.05, schedule="constant", **settings)
        cpu = torch.device("cpu")
        take = TrainStep(model, data, loss_fn, config, device=cpu, precision="fp32")
        return model, [take(step) for step in range(n_steps)]

    print("① 走几步看看：损失从 ln 7 = 1.946 附近往下走")
    _, reports = run(60, batches(16))
    for report in (reports[0], reports[20], reports[59]):
        print(f"   第 {report.step:2d} 步  损失 {report.loss:.3f}  梯度长 {report.grad_norm:.3f}")
    assert reports[-1].loss < 0.2 < 1.5 < reports[0].loss

    print("② 4 个微批次 × 4 道题，与 1 批 × 16 道题，各走 10 步")
    large, _ = run(10, batches(16))
    small, _ = run(10, batches(4), grad_accumulation=4)  # 同样的 16 道题
    gap = max(
        float((a - b).detach().abs().max())
        for a, b in zip(large.parameters(), small.parameters(), strict=True)
    )
    print(f"   权重最多相差 {gap:.0e}，只是加法的次序不同")
    assert gap < 1e-6  # 不是近似的做法，只有舍入

    print("③ 第 5 批是坏的（损失 NaN）：跳过，不留痕迹")
    before, _ = run(5, batches(16))
    after, reports = run(6, batches(16, poison=5))
    same = all(map(torch.equal, before.parameters(), after.parameters()))
    print(f"   第 {reports[5].step} 步：{reports[5].problem}；权重与走 5 步的逐比特相同：{same}")
    assert same  # 权重一个比特也没动
    assert reports[5].skipped


if __name__ == "__main__":
    run_demo(demo)
