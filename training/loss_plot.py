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

形状：一条曲线是一串 (步数, 值)，训练的一步一点，验证的一次评估一点；疏密不同也能画在一起，
因为横轴是步数，不是「第几个点」。

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

PLOT_FILE = "loss.png"  # 与 metrics.jsonl 并排放在训练目录里


@dataclass
class Curves:
    """四条曲线的点：(步数, 值)。

    约定：按步数从小到大；各条长短不必相同，空的就不画
    """

    # 可变的默认值必须用 default_factory，否则所有实例共用同一个列表
    train: list[tuple[int, float]] = field(default_factory=list)  # 每步一点
    val: list[tuple[int, float]] = field(default_factory=list)  # 每次评估一点
    learning_rate: list[tuple[int, float]] = field(default_factory=list)  # 每步一点
    grad_norm: list[tuple[int, float]] = field(default_factory=list)  # 裁剪之前的长度

    @classmethod
    def from_metrics(cls, records: Sequence[dict[str, Any]]) -> Curves:
        """从 metrics.jsonl 的各行来；跳过的步、警告，没有数可画。

        类型：每行是一个字典，各行的键不同；NaN 已写成 null，读回来是 None，不是数，自然略过
        """
        # (曲线名, 记录里的键)：损失换了名字，另两条同名
        curves, names = cls(), (("train", "loss"), ("val", "val_loss"))
        same = (("learning_rate", "learning_rate"), ("grad_norm", "grad_norm"))
        for record in records:
            for curve, key in names + same:
                # 一行里只有几个键：评估的行没有训练损失，反过来也一样
                if isinstance(record.get(key), (int, float)):
                    getattr(curves, curve).append((record["step"], float(record[key])))
        return curves

    def add(self, curve: str, step: int, value: float) -> None:
        """添一个点；NaN 画不出来。

        约定：跳过的步也会交来 NaN，丢掉它，曲线在那里直接连过去
        """
        if math.isfinite(value):
            getattr(self, curve).append((step, value))


def draw_curves(curves: Curves, path: Path, *, grad_clip: float | None = None) -> None:
    """画成一张图；先写在旁边再改名，正看着图的人不会看到半张。

    约定：path 的后缀决定格式；grad_clip 给了就画一条虚线，超过它的步被裁剪过
    错误：后缀画不了 → ValueError；写不进去 → OSError，旧图原样留着
    """
    figure, axes = new_figure(3, 1, size=(8.0, 8.0))  # 宽、高，英寸
    loss_axis, rate_axis, norm_axis = axes  # 从上到下三栏
    # ① 损失：原始的淡，平滑的深，验证的带点
    #    同一种颜色，看得出是同一份数；图例里只列平滑的，原始的一看便知
    if curves.train:
        steps, values = zip(*curves.train, strict=True)  # 一串点 → 横坐标、纵坐标
        loss_axis.plot(steps, values, color="C0", alpha=0.25, linewidth=0.8)
        loss_axis.plot(steps, smooth(values), color="C0", label="train (smoothed)")
    if curves.val:
        steps, values = zip(*curves.val, strict=True)
        loss_axis.plot(steps, values, color="C1", marker="o", markersize=3, label="validation")
        # 标出最低的一点：「最好的存档」就是那一步的
        best = min(curves.val, key=lambda point: point[1])
        loss_axis.annotate(
            f"best {best[1]:.3f}",
            best,  # 指着这一点
            textcoords="offset points",  # 下面的偏移以印刷的点为单位，与坐标轴的刻度无关
            xytext=(0, 8),  # 写在点的上方，免得压住曲线
            ha="center",
            fontsize=8,
        )
    loss_axis.set_ylabel("loss")
    if curves.train or curves.val:
        loss_axis.legend()  # 一条带名字的线也没有时，图例会抱怨
    # ② 学习率单独一栏：它与损失差几个数量级，挤在一起就成了一条贴地的线
    if curves.learning_rate:
        rate_axis.plot(*zip(*curves.learning_rate, strict=True), color="C2")
    rate_axis.set_ylabel("learning rate")
    # ③ 梯度长度跨几个数量级，用对数轴；全是 0 时对数轴画不出
    if curves.grad_norm:
        norm_axis.plot(*zip(*curves.grad_norm, strict=True), color="C3", linewidth=0.8)
        if any(value > 0 for _, value in curves.grad_norm):
            norm_axis.set_yscale("log")
        if grad_clip is not None:
            # 裁剪线：曲线常年在它之上，等于步步都裁，学习率就不再说了算
            norm_axis.axhline(grad_clip, color="0.5", linestyle=":", label=f"clip {grad_clip:g}")
            norm_axis.legend()
    norm_axis.set(ylabel="gradient norm", xlabel="step")
    for axis in axes:
        axis.grid(alpha=0.3)
    # ④ 共用横轴：上面损失一跳，竖着往下看，就知道那时的学习率与梯度
    rate_axis.sharex(loss_axis)
    norm_axis.sharex(loss_axis)
    # ⑤ 临时名带随机的几位：两个进程同时画也不会互相踩；后缀不变，格式才认得出
    temporary = path.with_name(f"{path.stem}.tmp-{secrets.token_hex(4)}{path.suffix}")
    try:
        save_figure(figure, temporary)
        os.replace(temporary, path)  # 改名一步到位：看到的不是旧图就是新图
    finally:
        temporary.unlink(missing_ok=True)  # 画成了它已不在；没画成，不留垃圾


def smooth(values: Sequence[float]) -> list[float]:
    """逐点的平滑值；曲线很短时少平滑些，不然看不出它在动。

    公式：a_t = β·a_{t−1} + (1−β)·L_t，再做偏差修正；见 progress.py
    形状：一串数 → 同样长的一串数；第 t 个只看前 t 个，后来的点不会改动已画的线
    """
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
        # 还不知道训练目录在哪里，None 留到 on_start 再定
        self.path = None if path is None else Path(path)
        self.min_seconds, self.curves = min_seconds, Curves()  # 秒；还没有点
        self._drawn = 0.0  # 上次画的时刻；开始训练时才有意义

    def on_start(self, trainer: Trainer) -> None:
        """定下画在哪里；续训时先读回以前的点。

        错误：没有给 path，Trainer 也没有 run_dir → ValueError：图没有地方放
        """
        if self.path is None:
            if trainer.run_dir is None:
                raise ValueError("PlotHook needs a path, or a Trainer with a run_dir")
            self.path = trainer.run_dir / PLOT_FILE
        self._drawn = time.monotonic()  # 刚开始没什么可画的，等够了时间再画
        done, previous = trainer.state.step, None  # 存档是第几步的；从头练是 0
        if trainer.run_dir is not None:
            previous = trainer.run_dir / METRICS_FILE
        if done and previous is not None and previous.is_file():
            # 存档之后的那几步会重走一遍：留着旧点，线就会折回来
            records = [r for r in read_metrics(previous) if r["step"] <= done]
            self.curves = Curves.from_metrics(records)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """只记数，不画：画图比走一步慢得多，步步都画，训练就成了画图。"""
        # 报告里已是普通的数，不是张量：留着也不占显存
        self.curves.add("train", report.step, report.loss)
        self.curves.add("learning_rate", report.step, report.learning_rate)
        self.curves.add("grad_norm", report.step, report.grad_norm)

    def on_evaluate(self, trainer: Trainer, report: EvaluationReport) -> None:
        """记下验证损失；离上次够久就画一张。

        约定：隔多久按墙上的钟，不按步数；评估很勤的小模型也不会被画图拖慢
        """
        self.curves.add("val", report.step, report.loss)
        # 单调时钟（monotonic）：有人改了系统时间，间隔也不会变成负的
        if time.monotonic() - self._drawn >= self.min_seconds:
            self._draw(trainer)

    def on_end(self, trainer: Trainer, result: TrainResult | None) -> None:
        """结束时画一张完整的；出了错也画，好看看是怎么坏的。

        约定：result 是 None 表示训练出了错，异常还在往外抛
        """
        # 已经出了错的，画不成（例如磁盘满）就算了，不要盖住原来的错
        with contextlib.suppress(*(() if result is not None else (OSError,))):
            self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        """有点才画；一步没走就停下的训练，不留一张空图。"""
        if self.path is None or not (self.curves.train or self.curves.val):
            return
        # 整张重画：点都在内存里，不必在旧图上接着描
        draw_curves(self.curves, self.path, grad_clip=trainer.config.grad_clip)
        self._drawn = time.monotonic()  # 画完才计时：画得慢，也不会接连地画


def example_curves() -> Curves:
    """一次像样的训练的曲线（不是真练出来的），给演示与 --plot 用。

    公式：损失 = 下限 + 指数下降 + 抖动；验证另加一段后来才有的回升（过拟合）
    """
    from training.schedule import learning_rate

    curves = Curves()
    for step in range(1, 601):
        # ① 看着随机、其实每次都一样的抖动：取大数的小数部分，再移到 0 的两边
        noise = math.sin(step * 12.9898) * 43758.5453
        noise -= math.floor(noise) + 0.5  # [−0.5, 0.5)
        # ② 真实的训练也是这样：先快后慢，渐渐贴近一个下限
        fall = 1.6 + 3.0 * math.exp(-step / 90)
        curves.add("train", step, fall + 0.25 * noise)
        rate = learning_rate(
            step - 1,  # 更新从 0 数起，报告里的步数从 1 数起
            kind="cosine",
            max_lr=3e-3,
            min_lr=3e-4,
            warmup_steps=60,
            total_steps=600,
            decay_steps=0,  # 只有 wsd 用得着
        )
        curves.add("learning_rate", step, rate)
        # ③ 梯度的抖动是成倍的，所以乘 e 的次方：在对数轴上才上下一样高
        curves.add("grad_norm", step, (0.4 + 2.5 * math.exp(-step / 40)) * math.exp(noise))
        if step % 50 == 0:
            # ④ 练到后来开始背训练集：验证越走越高，训练却看不出来
            overfit = 0.25 * max(0.0, (step - 350) / 250) ** 2
            curves.add("val", step, fall + 0.12 + overfit)
    return curves


def plot(path: Path) -> None:
    """画出示例的曲线；裁剪线取 1，开头的梯度超过它，后来不再碰到。"""
    draw_curves(example_curves(), path, grad_clip=1.0)


def demo() -> None:
    """读一读示例的曲线：平滑去掉多少抖动，验证在哪里见底。"""
    import tempfile

    curves = example_curves()
    raw = [value for _, value in curves.train]  # 每步的损失，很抖
    soft = smooth(raw)  # 图上的深色线

    def roughness(values: Sequence[float]) -> float:
        # 抖不抖，看相邻两点差多少；趋势本身每步只动一点，不影响比较
        gaps = [abs(b - a) for a, b in zip(values[:-1], values[1:], strict=True)]
        return sum(gaps) / len(gaps)

    print(f"① {len(raw)} 步的训练损失，相邻两步平均差多少")
    print(f"   原始 {roughness(raw):.3f}，平滑 {roughness(soft):.3f}")
    assert roughness(soft) < 0.25 * roughness(raw)

    # 只看训练损失，看不出第几步该停：它一直在降
    best = min(curves.val, key=lambda point: point[1])
    print("② 验证损失先降后升：再练就是背书")
    for step, value in curves.val[::2]:
        print(f"   第 {step:3d} 步 {value:.3f}")
    print(f"   最低在第 {best[0]} 步；那一个存档就是「最好的」")
    assert 50 < best[0] < 600

    with tempfile.TemporaryDirectory() as name:
        path = Path(name, PLOT_FILE)
        plot(path)
        # 文件头是 PNG 的记号，临时文件也收拾干净了
        print(f"③ 画成图：{path.stat().st_size:,} 字节；想看，加 --plot FILE")
        assert path.read_bytes().startswith(b"\x89PNG")
        assert [file.name for file in Path(name).iterdir()] == [PLOT_FILE]


if __name__ == "__main__":
    run_demo(demo, plot)
