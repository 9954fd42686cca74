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

曲线怎样看：
    训练降、验证升            背书了：加数据、加 dropout，或早些停
    两条都不降                学习率太小，或数据有毛病；先看 debugging.md
    梯度时常冲高              学习率偏大；冲高的那几步，metrics.jsonl 里有窗口的编号
    词元每秒忽高忽低          机器在忙别的，或数据读得慢；与损失无关
    续训处有一道坎            优化器的状态没有放回；本项目的续训逐比特相同，不该有

常见疑问：
    为什么不直接用某一家？      换一家就要改循环；而且不该为了看曲线，逼人注册账号
    几家一起用行吗？            行：--track tensorboard,wandb；它们互不知道
    样例的文字也记吗？          不记，它们在屏幕上；要记，就在这里多加一个方法

    记录会不会改变训练？        不会：只读报告里的数，不碰权重，也不抽随机数；演示里比给你看
    几个进程一起练，记几份？    一份：只有 rank 0 有钩子
    它与 metrics.jsonl 重复吗？ 重复，所以它坏了也不要紧；那一份才是底账，续训与画图都靠它
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
    """记录实验的工具；三个方法按次序调用，start 恰好一次。

    用 Protocol 而不是基类：有这三个方法的就是，不必继承谁；别处写好的也能直接拿来用
    约定：哪个方法出了错就照常抛异常，由 TrackingHook 决定停下还是撇下它
    """

    name: str

    def start(self, config: Mapping[str, Any], directory: Path, done: int) -> None:
        """开张；done 是已经走完的步数，0 是从头练。

        config 可以有里层的字典，值都能写成 JSON；directory 是训练目录，已经建好
        """

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """记几个数；名字里的斜线是分组，浏览器里同组的图放在一起。

        同一步可以来几次（训练的、评估的各一次）；步数只增不减
        """

    def finish(self, ok: bool) -> None:
        """收摊：攒着没写的写出去，关好文件。"""


class TrackingHook(Hook):
    """把每一步、每次评估的数交给几个工具。

    参数：config 是要一起记下的设置，缺省为 TrainConfig 的各项；directory 缺省为训练目录
    约定：各家互不影响：一家半路坏了，别家照记
    错误：没有目录可放、开张不成 → ValueError；记到一半出错只警告，不中止训练
    """

    def __init__(
        self,
        trackers: Sequence[Tracker],
        *,
        config: Mapping[str, Any] | None = None,
        directory: Path | str | None = None,
    ) -> None:
        # 列表抄一份：调用者之后改自己的列表，与这里无关
        self.trackers = list(trackers)
        self.config = config
        self.directory = None if directory is None else Path(directory)
        # 出错的从这里拿掉，但仍在 trackers 里：同一个钩子下次再用，从头来过
        self._open: list[Tracker] = []  # 开了张、还没出过错的

    def on_start(self, trainer: Trainer) -> None:
        """逐个开张；有一个开不成就停下，已经开了的由 on_end 收。

        错误：没有目录；开不成（没登录、连不上）→ ValueError，说是哪一家、为什么
        """
        directory = self.directory or trainer.run_dir
        if directory is None:
            raise ValueError("TrackingHook needs a directory, or a Trainer with a run_dir")
        # ① 设置：命令行给的是全部选项；直接用库的，就记 TrainConfig
        config = self.config
        if config is None:
            config = dataclasses.asdict(trainer.config)
        # ② 逐个开张。账号没登录、服务器连不上，都在这里冒出来：第 0 步之前
        for tracker in self.trackers:
            try:
                tracker.start(config, directory, trainer.state.step)
            except Exception as error:  # 各家各有各的异常类
                # 错误的话可能有好几行；命令行只说一行
                reason = " ".join(str(error).split()) or type(error).__name__
                raise ValueError(
                    f"{tracker.name} could not start: {reason}; set it up, or leave it out of "
                    "--track"
                ) from error
            self._open.append(tracker)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """一步四个数，都是 Python 的数；跳过的步没有可画的损失。"""
        # NaN 画出来是断线或一根通天的柱子，两样都没有用；坏的步在 metrics.jsonl 里
        if not report.skipped:
            self._log(
                trainer,
                report.step,
                {
                    "train/loss": report.loss,
                    "train/learning_rate": report.learning_rate,
                    "train/grad_norm": report.grad_norm,
                    # seconds 不含评估与存档，与屏幕上的速度同一个口径
                    "train/tokens_per_second": report.n_tokens / max(report.seconds, 1e-9),
                },
            )

    def on_evaluate(self, trainer: Trainer, report: EvaluationReport) -> None:
        """评估的两个数；不知道每个词元合几个字节，就只有一个。"""
        # 与训练的损失分在两组：两条线的步数疏密不同
        metrics = {"validation/loss": report.loss}
        # 每字节比特与分词器无关：换了分词器的两次训练，比这一条
        if report.bits_per_byte is not None:
            # 名字与 metrics.jsonl 里的相近，两边好对照
            metrics["validation/bits_per_byte"] = report.bits_per_byte
        self._log(trainer, report.step, metrics)

    def on_end(self, trainer: Trainer, result: TrainResult | None) -> None:
        """逐个收摊；一个收不好，不妨碍别的，也不盖住训练自己的错。

        result 是 None 就是中途出错：网页上把这一次标成失败，免得与练完的混在一起
        """
        # 后开的先收；拿出来再收，就不会收两次
        while self._open:
            tracker = self._open.pop()
            try:
                tracker.finish(result is not None)
            except Exception as error:
                trainer.warn(f"{tracker.name} could not finish: {error}")

    def _log(self, trainer: Trainer, step: int, metrics: Mapping[str, float]) -> None:
        """交给每一个；出错的撇下，只说一次。"""
        # 一边走一边删，所以走的是抄下来的一份
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
        # 每次调用一个元组：先是方法名，后面是参数
        self.calls: list[tuple[Any, ...]] = []
        self.fail_at = fail_at  # 假装到这一步时断网

    def start(self, config: Mapping[str, Any], directory: Path, done: int) -> None:
        """记下开张。"""
        self.calls.append(("start", done))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """记下几个数。"""
        # 真的网络错误也是 OSError 的子类；哪种都一样处理
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

    # 屏幕上没有进度条，警告就要有人听，否则会变成 Python 的警告
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

    # 两个记录的、一个听警告的，一起挂上
    good, broken, listen = ListTracker(), ListTracker(fail_at=4), Listen()
    with tempfile.TemporaryDirectory() as name:
        watched = train(listen, TrackingHook([good, broken], directory=name))
    # 开张、六步、收摊，一次不多，一次不少
    print("① 好的一个记下的：")
    for call in good.calls:
        shown = f"损失 {call[2]['train/loss']:.3f}" if call[0] == "log" else call[1]
        print(f"   {call[0]:7}{call[1] if call[0] == 'log' else ''} {shown}")
    assert [call[0] for call in good.calls] == ["start", *["log"] * 6, "finish"]
    # 第 4 步断网：前三步记下了，之后再没有找过它
    print(f"② 断网的一个记到第 {broken.calls[-1][1]} 步；警告：{listen.heard[0][:60]}…")
    assert len(listen.heard) == 1
    assert [call[0] for call in broken.calls] == ["start", *["log"] * 3]
    # 钩子最要紧的约定：看的人不改变被看的
    same = torch.equal(next(watched.parameters()), next(train().parameters()))
    print(f"③ 没有记录再练一遍，权重逐比特相同：{same}")
    assert same
    # auto 看这台机器装了什么；没装不算错，因为谁也没有明说要它
    print(f"④ 认得的名字：{', '.join(TRACKERS)}；这台机器上 auto 是 ", end="")
    print(", ".join(tracker.name for tracker in make_trackers("auto")) or "没有")
    assert make_trackers("none") == []


if __name__ == "__main__":
    run_demo(demo)
