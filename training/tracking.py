r"""许多次训练，怎样放在一起比？——把曲线交给记录实验的工具：TensorBoard、wandb、SwanLab、MLflow。

metrics.jsonl 与 loss.png 记的是一次训练；要比十次，就要一个能并排看的地方。这样的工具很多，做的
事却一样，所以训练循环只认识一个接口，三个方法：

    start(config, directory, done)   开张：这次训练的设置、目录；done > 0 是续训
    log(step, metrics)               第几步、几个数
    finish(ok)                       收摊；ok 为假，是中途出了错

    训练循环 ──on_step──▶ TrackingHook ──log──▶ TensorBoardTracker ──▶ runs/a/tensorboard/
                              │        ──log──▶ WandbTracker       ──▶ 网页（或离线的文件夹）
                              └─ 谁出了错，说一声，撇下它；训练照走

训练到一半，网断了、磁盘满了：记录失败不该赔上几小时的训练。于是 log 出错时说一句警告，从此不再
用它；开张时出错则立刻停下——那时还什么都没练，正好改。

$$\text{每步的开销} \approx \text{几个数} \times \text{几十微秒}\ (\text{TensorBoard 攒着慢慢写})$$

常见疑问：
    为什么不直接用某一家？      换一家就要改循环；而且不该为了看曲线，逼人注册账号
    几家一起用行吗？            行：--track tensorboard,wandb；它们互不知道
    样例的文字也记吗？          不记，它们在屏幕上；要记，就在这里多加一个方法

    自己写一个呢？              照 ListTracker，三个方法；直接交给 TrackingHook，不必登记

论文：实验记录为什么要紧 — Sculley et al., *Hidden Technical Debt in ML Systems*, 2015。
改哪里：四家现成的 → trackers.py；多记一个数 → `TrackingHook.on_step`。
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from foundation.demonstration import run_demo
from training.hook_base import EvaluationReport, Hook, StepReport, TrainResult
from training.trackers import TRACKERS, make_trackers

if TYPE_CHECKING:
    from training.trainer import Trainer

__all__ = ["TRACKERS", "Tracker", "TrackingHook", "make_trackers"]


class Tracker(Protocol):
    """记录实验的工具；三个方法按次序调用，start 恰好一次。"""

    name: str

    def start(self, config: Mapping[str, Any], directory: Path, done: int) -> None:
        """开张；done 是已经走完的步数，0 是从头练。"""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """记几个数；名字里的斜线是分组。"""

    def finish(self, ok: bool) -> None:
        """收摊；没有 start 成功过也可以调用。"""


class TrackingHook(Hook):
    """把每一步、每次评估的数交给几个工具。

    参数：config 是要一起记下的设置，缺省为 TrainConfig 的各项；directory 缺省为训练目录
    错误：没有目录可放、开张不成 → ValueError；记到一半出错只警告，不中止训练
    """

    def __init__(
        self,
        trackers: Sequence[Tracker],
        *,
        config: Mapping[str, Any] | None = None,
        directory: Path | str | None = None,
    ) -> None:
        self.trackers = list(trackers)
        self.config = config
        self.directory = None if directory is None else Path(directory)
        self._open: list[Tracker] = []  # 开了张、还没出过错的

    def on_start(self, trainer: Trainer) -> None:
        """逐个开张；有一个开不成就停下，已经开了的由 on_end 收。"""
        directory = self.directory or trainer.run_dir
        if directory is None:
            raise ValueError("TrackingHook needs a directory, or a Trainer with a run_dir")
        config = self.config
        if config is None:
            config = dataclasses.asdict(trainer.config)
        for tracker in self.trackers:
            try:
                tracker.start(config, directory, trainer.state.step)
            except Exception as error:  # 各家各有各的异常类
                reason = " ".join(str(error).split()) or type(error).__name__
                raise ValueError(
                    f"{tracker.name} could not start: {reason}; set it up, or leave it out of "
                    "--track"
                ) from error
            self._open.append(tracker)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """一步几个数；跳过的步没有可画的损失。"""
        if not report.skipped:
            self._log(
                trainer,
                report.step,
                {
                    "train/loss": report.loss,
                    "train/learning_rate": report.learning_rate,
                    "train/grad_norm": report.grad_norm,
                    "train/tokens_per_second": report.n_tokens / max(report.seconds, 1e-9),
                },
            )

    def on_evaluate(self, trainer: Trainer, report: EvaluationReport) -> None:
        """评估的两个数；不知道每个词元合几个字节，就只有一个。"""
        metrics = {"validation/loss": report.loss}
        # 每字节比特与分词器无关：换了分词器的两次训练，比这一条
        if report.bits_per_byte is not None:
            metrics["validation/bits_per_byte"] = report.bits_per_byte
        self._log(trainer, report.step, metrics)

    def on_end(self, trainer: Trainer, result: TrainResult | None) -> None:
        """逐个收摊；一个收不好，不妨碍别的，也不盖住训练自己的错。"""
        while self._open:
            tracker = self._open.pop()
            try:
                tracker.finish(result is not None)
            except Exception as error:
                trainer.warn(f"{tracker.name} could not finish: {error}")

    def _log(self, trainer: Trainer, step: int, metrics: Mapping[str, float]) -> None:
        """交给每一个；出错的撇下，只说一次。"""
        for tracker in list(self._open):
            try:
                tracker.log(step, metrics)
            except Exception as error:
                self._open.remove(tracker)
                trainer.warn(
                    f"tracking with {tracker.name} stopped at step {step}: {error}; "
                    "training goes on, and metrics.jsonl has every number"
                )


class ListTracker:
    """记在列表里：演示与测试用，也是最短的例子。"""

    name = "list"

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fail_at = fail_at  # 假装到这一步时断网

    def start(self, config: Mapping[str, Any], directory: Path, done: int) -> None:
        """记下开张。"""
        self.calls.append(("start", done))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """记下几个数。"""
        if step == self.fail_at:
            raise ConnectionError("the network is gone")
        self.calls.append(("log", step, dict(metrics)))

    def finish(self, ok: bool) -> None:
        """记下收摊。"""
        self.calls.append(("finish", ok))


def demo() -> None:
    """一个好的、一个半路断网的：好的记全了，断网的只警告；有没有记录，权重都一样。"""
    import torch
    from torch import nn

    from training.train_config import TrainConfig
    from training.trainer import Trainer

    class Listen(Hook):
        """把警告收起来。"""

        def __init__(self) -> None:
            self.heard: list[str] = []

        def on_warning(self, trainer: Trainer, message: str) -> None:
            """听一句。"""
            self.heard.append(message)

    def loss_fn(model: nn.Module, places: torch.Tensor) -> tuple[torch.Tensor, int]:
        logits = model(places % 5)  # (N, 5)
        return nn.functional.cross_entropy(logits, (places + 1) % 5, reduction="sum"), len(places)

    def train(*hooks: Hook) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Embedding(5, 5)
        batches = lambda i: torch.arange(i * 8, i * 8 + 8)  # noqa: E731 - 一句话的数据
        config = TrainConfig(steps=6, learning_rate=0.05, schedule="constant", device="cpu")
        Trainer(model, batches, loss_fn, config, hooks).fit()
        return model

    good, broken, listen = ListTracker(), ListTracker(fail_at=4), Listen()
    with tempfile.TemporaryDirectory() as name:
        watched = train(listen, TrackingHook([good, broken], directory=name))
    print("① 好的一个记下的：")
    for call in good.calls:
        shown = f"损失 {call[2]['train/loss']:.3f}" if call[0] == "log" else call[1]
        print(f"   {call[0]:7}{call[1] if call[0] == 'log' else ''} {shown}")
    assert [call[0] for call in good.calls] == ["start", *["log"] * 6, "finish"]
    print(f"② 断网的一个记到第 {broken.calls[-1][1]} 步；警告：{listen.heard[0][:60]}…")
    assert len(listen.heard) == 1
    assert [call[0] for call in broken.calls] == ["start", *["log"] * 3]
    same = torch.equal(next(watched.parameters()), next(train().parameters()))
    print(f"③ 没有记录再练一遍，权重逐比特相同：{same}")
    assert same
    print(f"④ 认得的名字：{', '.join(TRACKERS)}；这台机器上 auto 是 ", end="")
    print(", ".join(tracker.name for tracker in make_trackers("auto")) or "没有")
    assert make_trackers("none") == []


if __name__ == "__main__":
    run_demo(demo)
