r"""一张图里看什么？——训练、验证、学习率、梯度长度，横轴都是步数，上下对齐。

    ┌──────────────────────────┐
    │ loss   训练（细、平滑）   │   训练还降、验证回升：在背书，该停了
    │        验证（点、粗）     │   两条都平了：学习率太小，或模型太小
    ├──────────────────────────┤
    │ learning rate            │   损失在学习率降下来之后才掉：正常
    ├──────────────────────────┤
    │ gradient norm（对数轴）   │   突然跳高：这一批不对劲；一直贴着裁剪线：学习率可能太大
    └──────────────────────────┘

训练损失用对数般的眼光看：一开始掉得快，后面慢，都在同一张图上。原始的很抖，画成淡色，
平滑过的画成深色；平滑的公式见 progress.py。

图从哪里来：钩子把每一步的数字记在内存里；续训时先从 metrics.jsonl 读回以前的，曲线才接得上。
画一次要几百毫秒，所以只在评估之后画，而且离上次太近就不画；结束时一定画。

改哪里：多画一栏 → draw_curves；隔多久画一次 → PlotHook(min_seconds=…)。
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.demonstration import new_figure, run_demo, save_figure
from training.hook_base import EvaluationReport, Hook, StepReport, TrainResult
from training.metrics import METRICS_FILE, read_metrics
from training.progress import Smoothed

if TYPE_CHECKING:
    from training.trainer import Trainer

__all__ = ["Curves", "PlotHook", "draw_curves"]

PLOT_FILE = "loss.png"


@dataclass
class Curves:
    """四条曲线的点：(步数, 值)。"""

    train: list[tuple[int, float]] = field(default_factory=list)
    val: list[tuple[int, float]] = field(default_factory=list)
    learning_rate: list[tuple[int, float]] = field(default_factory=list)
    grad_norm: list[tuple[int, float]] = field(default_factory=list)

    @classmethod
    def from_metrics(cls, records: Sequence[dict[str, Any]]) -> Curves:
        """从 metrics.jsonl 的各行来；跳过的步、警告，没有数可画。"""
        curves, names = cls(), (("train", "loss"), ("val", "val_loss"))
        same = (("learning_rate", "learning_rate"), ("grad_norm", "grad_norm"))
        for record in records:
            for curve, key in names + same:
                if isinstance(record.get(key), (int, float)):
                    getattr(curves, curve).append((record["step"], float(record[key])))
        return curves

    def add(self, curve: str, step: int, value: float) -> None:
        """添一个点；NaN 画不出来。"""
        if math.isfinite(value):
            getattr(self, curve).append((step, value))


def draw_curves(curves: Curves, path: Path, *, grad_clip: float | None = None) -> None:
    """画成一张图；先写在旁边再改名，正看着图的人不会看到半张。"""
    figure, axes = new_figure(3, 1, size=(8.0, 8.0))
    loss_axis, rate_axis, norm_axis = axes
    # ① 损失：原始的淡，平滑的深，验证的带点
    if curves.train:
        steps, values = zip(*curves.train, strict=True)
        loss_axis.plot(steps, values, color="C0", alpha=0.25, linewidth=0.8)
        loss_axis.plot(steps, smooth(values), color="C0", label="train (smoothed)")
    if curves.val:
        steps, values = zip(*curves.val, strict=True)
        loss_axis.plot(steps, values, color="C1", marker="o", markersize=3, label="validation")
        best = min(curves.val, key=lambda point: point[1])
        loss_axis.annotate(
            f"best {best[1]:.3f}",
            best,
            textcoords="offset points",
            xytext=(0, 8),
            ha="center",
            fontsize=8,
        )
    loss_axis.set_ylabel("loss")
    if curves.train or curves.val:
        loss_axis.legend()
    # ② 学习率
    if curves.learning_rate:
        rate_axis.plot(*zip(*curves.learning_rate, strict=True), color="C2")
    rate_axis.set_ylabel("learning rate")
    # ③ 梯度长度跨几个数量级，用对数轴；全是 0 时对数轴画不出
    if curves.grad_norm:
        norm_axis.plot(*zip(*curves.grad_norm, strict=True), color="C3", linewidth=0.8)
        if any(value > 0 for _, value in curves.grad_norm):
            norm_axis.set_yscale("log")
        if grad_clip is not None:
            norm_axis.axhline(grad_clip, color="0.5", linestyle=":", label=f"clip {grad_clip:g}")
            norm_axis.legend()
    norm_axis.set(ylabel="gradient norm", xlabel="step")
    for axis in axes:
        axis.grid(alpha=0.3)
    rate_axis.sharex(loss_axis)
    norm_axis.sharex(loss_axis)
    temporary = path.with_name(f"{path.stem}.tmp-{secrets.token_hex(4)}{path.suffix}")
    try:
        save_figure(figure, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def smooth(values: Sequence[float]) -> list[float]:
    """逐点的平滑值；曲线很短时少平滑些，不然看不出它在动。"""
    average, result = Smoothed(0.9 if len(values) > 200 else 0.7), []
    for value in values:
        average.add(value)
        result.append(average.value)
    return result


class PlotHook(Hook):
    """把曲线画进 loss.png：评估之后画，结束时一定画。

    参数：path 默认是训练目录里的 loss.png；min_seconds 是两次之间至少隔多久
    """

    def __init__(self, path: Path | str | None = None, *, min_seconds: float = 20.0) -> None:
        self.path = None if path is None else Path(path)
        self.min_seconds, self.curves = min_seconds, Curves()
        self._drawn = 0.0

    def on_start(self, trainer: Trainer) -> None:
        """定下画在哪里；续训时先读回以前的点。"""
        if self.path is None:
            if trainer.run_dir is None:
                raise ValueError("PlotHook needs a path, or a Trainer with a run_dir")
            self.path = trainer.run_dir / PLOT_FILE
        self._drawn = time.monotonic()  # 刚开始没什么可画的，等够了时间再画
        done, previous = trainer.state.step, None
        if trainer.run_dir is not None:
            previous = trainer.run_dir / METRICS_FILE
        if done and previous is not None and previous.is_file():
            records = [r for r in read_metrics(previous) if r["step"] <= done]
            self.curves = Curves.from_metrics(records)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """只记数，不画。"""
        self.curves.add("train", report.step, report.loss)
        self.curves.add("learning_rate", report.step, report.learning_rate)
        self.curves.add("grad_norm", report.step, report.grad_norm)

    def on_evaluate(self, trainer: Trainer, report: EvaluationReport) -> None:
        """记下验证损失；离上次够久就画一张。"""
        self.curves.add("val", report.step, report.loss)
        if time.monotonic() - self._drawn >= self.min_seconds:
            self._draw(trainer)

    def on_end(self, trainer: Trainer, result: TrainResult | None) -> None:
        """结束时画一张完整的；出了错也画，好看看是怎么坏的。"""
        # 已经出了错的，画不成（例如磁盘满）就算了，不要盖住原来的错
        with contextlib.suppress(*(() if result is not None else (OSError,))):
            self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        if self.path is None or not (self.curves.train or self.curves.val):
            return
        draw_curves(self.curves, self.path, grad_clip=trainer.config.grad_clip)
        self._drawn = time.monotonic()


def example_curves() -> Curves:
    """一次像样的训练的曲线（不是真练出来的），给演示与 --plot 用。"""
    from training.schedule import learning_rate

    curves = Curves()
    for step in range(1, 601):
        noise = math.sin(step * 12.9898) * 43758.5453
        noise -= math.floor(noise) + 0.5
        fall = 1.6 + 3.0 * math.exp(-step / 90)
        curves.add("train", step, fall + 0.25 * noise)
        rate = learning_rate(
            step - 1,
            kind="cosine",
            max_lr=3e-3,
            min_lr=3e-4,
            warmup_steps=60,
            total_steps=600,
            decay_steps=0,
        )
        curves.add("learning_rate", step, rate)
        curves.add("grad_norm", step, (0.4 + 2.5 * math.exp(-step / 40)) * math.exp(noise))
        if step % 50 == 0:
            overfit = 0.25 * max(0.0, (step - 350) / 250) ** 2
            curves.add("val", step, fall + 0.12 + overfit)
    return curves


def plot(path: Path) -> None:
    """画出示例的曲线。"""
    draw_curves(example_curves(), path, grad_clip=1.0)


def demo() -> None:
    """读一读示例的曲线：平滑去掉多少抖动，验证在哪里见底。"""
    import tempfile

    curves = example_curves()
    raw = [value for _, value in curves.train]
    soft = smooth(raw)

    def roughness(values: Sequence[float]) -> float:
        gaps = [abs(b - a) for a, b in zip(values[:-1], values[1:], strict=True)]
        return sum(gaps) / len(gaps)

    print(f"① {len(raw)} 步的训练损失，相邻两步平均差多少")
    print(f"   原始 {roughness(raw):.3f}，平滑 {roughness(soft):.3f}")
    assert roughness(soft) < 0.25 * roughness(raw)

    best = min(curves.val, key=lambda point: point[1])
    print("② 验证损失先降后升：再练就是背书")
    for step, value in curves.val[::2]:
        print(f"   第 {step:3d} 步 {value:.3f}")
    print(f"   最低在第 {best[0]} 步；那一个存档就是「最好的」")
    assert 50 < best[0] < 600

    with tempfile.TemporaryDirectory() as name:
        path = Path(name, PLOT_FILE)
        plot(path)
        print(f"③ 画成图：{path.stat().st_size:,} 字节；想看，加 --plot FILE")
        assert path.read_bytes().startswith(b"\x89PNG")
        assert [file.name for file in Path(name).iterdir()] == [PLOT_FILE]


if __name__ == "__main__":
    run_demo(demo, plot)
