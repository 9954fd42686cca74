r"""现成的钩子（hook）有哪些？——进度条、日志、画图、写样例、看梯度、实验记录，要哪个给哪个。

    Trainer(…, hooks=[ProgressHook(), MetricsHook(), PlotHook(), SampleHook(write)])
    Trainer(…, hooks=standard_hooks())          最常用的几个，一次给齐

    钩子               看什么                                          在哪个文件
    ProgressHook       屏幕：损失、速度、还要多久                      progress.py
    MetricsHook        metrics.jsonl：每一步的数字                     metrics.py
    PlotHook           loss.png：训练、验证、学习率、梯度              loss_plot.py
    DiagnosticsHook    不对劲就说：内存、开头的损失、一直不降          diagnostics.py
    SampleHook         隔一阵子让模型写一段                            这里
    GradientNormHook   隔一阵子看一眼各层的梯度                        这里
    TrackingHook       浏览器里的曲线：TensorBoard、wandb 等           tracking.py

次序有讲究：先给的先被喊。MetricsHook 放在 ProgressHook 之后，屏幕先动；两者互不依赖。

写样例的钩子收一个函数 (模型) → 文字，而不是一个生成器：训练这一层不认识推理（inference），
否则「训练要用推理、推理要用训练」就绕成了圈。写样例会抽随机数，所以放在 kept_random_state() 里：
写不写样例，练出来的权重都一样。

    训练循环 ── on_step ─────▶ 每一个钩子，按给的次序
             ◀─ message ────── 写样例、看梯度的：「有一段话」
             ── on_message ──▶ ProgressHook：打在屏幕上

「话从哪里来」与「话打在哪里」也分开：SampleHook 不打印，只交给 trainer.message；
换成网页或日志文件，改听话的那个钩子就够了。

论文：回调 — Howard & Gugger, *fastai: A Layered API*, arXiv:2002.04688。

改哪里：自己写一个 → 继承 hook_base.py 的 Hook，只写要听的方法。
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from foundation.checks import check_int
from foundation.demonstration import run_demo
from training.diagnostics import DiagnosticsHook, gradient_table
from training.hook_base import EvaluationReport, Hook, StepReport, TrainResult
from training.loss_plot import PlotHook
from training.metrics import MetricsHook
from training.progress import ProgressHook
from training.random_state import kept_random_state
from training.tracking import TrackingHook

if TYPE_CHECKING:
    from training.trainer import Trainer

__all__ = [
    "DiagnosticsHook",
    "EvaluationReport",
    "GradientNormHook",
    "Hook",
    "MetricsHook",
    "PlotHook",
    "ProgressHook",
    "SampleHook",
    "StepReport",
    "TrackingHook",
    "TrainResult",
    "standard_hooks",
]


def standard_hooks(*, saved: bool = True) -> list[Hook]:
    """最常用的几个；saved=False 时不写文件（没有训练目录时用）。

    约定：每次都建新的。钩子记着这次训练的数，两个 Trainer 共用一个就会混在一起
    """
    # 屏幕在先：别的钩子若出了错，至少看得到走到了哪一步
    hooks: list[Hook] = [ProgressHook(), DiagnosticsHook()]
    return [*hooks, MetricsHook(), PlotHook()] if saved else hooks


class SampleHook(Hook):
    """隔一阵子让模型写一段，看看它学会了什么；损失降了多少，不如读一段来得直接。

    参数：write 是 (模型) → 文字；every 隔多少步写一次，None = 每次评估之后
    约定：write 里怎样抽随机数都不影响训练；抛出的异常会中止训练
    错误：every 不是正整数 → ValueError
    """

    needs_whole_model = True

    def __init__(self, write: Callable[[Any], str], every: int | None = None) -> None:
        self.write = write  # 怎样生成由它定，这里不知道有分词器
        self.every = None if every is None else check_int("every", every, 1)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """到了步数就写；没有验证集、从不评估的训练，也能看到样例。"""
        # report.step 从 1 数起，所以第一次是走完 every 步之后
        if self.every is not None and report.step % self.every == 0:
            self._sample(trainer, report.step)

    def on_evaluate(self, trainer: Trainer, report: EvaluationReport) -> None:
        """没有说隔多少步，就跟着评估写：损失与样例一起看，最好对照。"""
        if self.every is None:
            self._sample(trainer, report.step)

    def _sample(self, trainer: Trainer, step: int) -> None:
        """写一段，把模型与随机数都放回原样：看一眼，不该改变训练。"""
        was_training = trainer.model.training
        trainer.model.eval()  # 写的时候不用 dropout
        try:
            # 不建计算图：只写不学，图只会白占内存
            with torch.no_grad(), kept_random_state():
                text = self.write(trainer.model)
        finally:
            # 写到一半出错也要放回，否则以后的训练悄悄没了 dropout
            trainer.model.train(was_training)
        # 上下各一道线：样例自己会换行，要看得出在哪里结束
        trainer.message(f"--- sample at step {step} ---\n{text}\n---")


class GradientNormHook(Hook):
    """隔一阵子打一张表：各层的梯度有多长；哪一层是 0、哪一层特别长，一眼看出。

    公式：‖g‖ = √Σg²，按层合起来；看到的是裁剪之后的，各层的比例与裁剪之前相同
    """

    needs_whole_model = True

    def __init__(self, every: int = 100) -> None:
        self.every = check_int("every", every, 1)  # 步；算一遍要等设备，不宜太勤

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """梯度还在：下一步开始时才清。"""
        # 坏的一步最值得看：看坏在哪一层
        if report.step % self.every == 0 or report.skipped:
            # 表由 diagnostics.py 画：在别处（测试、笔记本）也能单独调用
            table = gradient_table(trainer.model)
            trainer.message(f"gradient norms at step {report.step} (after clipping)\n{table}")


def demo() -> None:
    """三个钩子各说各的：样例、梯度、自己写的一个；有没有它们，权重都一样。"""
    from training.train_config import TrainConfig
    from training.trainer import Trainer

    def loss_fn(model: nn.Module, places: torch.Tensor) -> tuple[torch.Tensor, int]:
        """学数数：看到 n，猜 n + 1，数到头从 0 再来。"""
        logits = model(places % 5)  # (N, 5)
        loss = nn.functional.cross_entropy(logits, (places + 1) % 5, reduction="sum")
        return loss, len(places)  # 损失之和与题数，合批的事由训练循环做

    def write(model: nn.Module) -> str:
        """从 0 开始数，每次按模型的概率抽下一个。"""
        numbers = [0]
        for _ in range(9):
            # 真的抽，而不是取最大的：这样才试得出随机数有没有放回
            chances = model(torch.tensor([numbers[-1]]))[0].softmax(-1)
            numbers.append(int(torch.multinomial(chances, 1)))
        return " ".join(map(str, numbers))

    class Shout(Hook):
        """自己写的钩子：收下样例，损失低于一半时喊一声。"""

        def __init__(self) -> None:
            self.heard: list[str] = []  # 喊过的、听见的

        def on_step(self, trainer: Trainer, report: StepReport) -> None:
            # 只喊一次：低过之后，步步都低
            if report.loss < 0.5 and not any("below" in text for text in self.heard):
                self.heard.append(f"step {report.step}: below 0.5")

        def on_message(self, trainer: Trainer, text: str) -> None:
            # 没有 ProgressHook 时，别的钩子说的话由它收下
            self.heard.append(text)

    def run(hooks: list[Hook]) -> nn.Module:
        """同一个开头练一遍；两次之间只差有没有钩子。"""
        torch.manual_seed(0)
        # 有 dropout 才看得出：写样例若多抽了随机数，后面的每一步都会不同
        model = nn.Sequential(nn.Embedding(5, 8), nn.Dropout(0.2), nn.Linear(8, 5))
        batches = lambda i: torch.arange(i * 8, i * 8 + 8)  # noqa: E731 - 一句话的数据
        config = TrainConfig(steps=40, learning_rate=0.05, schedule="constant", device="cpu")
        Trainer(model, batches, loss_fn, config, hooks).fit()
        return model

    # Shout 自己说的、另两个托 trainer.message 说的，都收在 shout.heard 里
    shout = Shout()
    # 一个跟着步数写，一个只在最后看：各有各的节拍，循环不管
    watched = run([shout, SampleHook(write, every=20), GradientNormHook(every=40)])
    print("钩子听见的：")
    # 听见的次序就是训练里发生的次序
    for text in shout.heard:
        print("\n".join(f"   {line}" for line in text.splitlines()))
    assert "0 1 2 3 4 0 1 2 3 4" in shout.heard[-2]  # 练到第 40 步，数得对了

    # 看的人不该改变被看的：这是钩子最要紧的约定
    alone = run([])
    same = all(map(torch.equal, watched.parameters(), alone.parameters()))
    print(f"没有钩子再练一遍，权重逐比特相同：{same}（写样例抽的随机数，没有动 dropout）")
    assert same


if __name__ == "__main__":
    run_demo(demo)
