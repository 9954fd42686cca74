r"""训练时想看点什么、多做点什么，怎样不改训练循环？——循环在固定的时刻喊一声，谁想听谁来听。

进度条、日志、画图、写样例，每个人要的不一样。若都写进循环，循环就成了一团 if；若各抄一份循环，
就有了许多份错。所以循环只认识一个接口：钩子（hook），在下面几个时刻逐个调用。

    fit()
     │ on_start ─────────────────────────────────────────── 开始（或续训）时
     ├─▶ 一步 ── on_step(StepReport) ─────────────────────── 每一步之后，跳过的步也有
     │      └─ 到时候 ── on_evaluate(EvaluationReport) ───── 每次评估之后
     │      └─ 到时候 ── write_files(目录) ── on_save(目录) ─ 存档之前与之后
     │   随时：on_warning(一句话)、on_message(一段话) ─────── 该让人看见的话
     └ on_end(TrainResult 或 None) ───────────────────────── 结束时；出了错也会调用，给 None

报告里都是普通的数（float、int），不是张量：钩子拿去怎么用，都不会拖慢设备，也碰不到计算图。

$$\text{tokens/s} = \frac{\text{n\_tokens}}{\text{seconds}}, \qquad
  \text{bits per byte} = \frac{\text{loss}}{\ln 2}\cdot\frac{1}{\text{bytes per token}}$$

seconds 只算训练那一步，不含评估与存档：否则评估得越勤，机器看起来越慢。

写一个钩子：继承 Hook，只写要听的那几个方法，交给 Trainer(hooks=[…])。例如损失低于 2 就喊一声：

    class Cheer(Hook):
        def on_step(self, trainer, report):
            if report.loss < 2.0:
                trainer.message(f"step {report.step}: below 2!")

约定：钩子只看，不改权重；要抽随机数，放在 kept_random_state() 里；抛出的异常会中止训练。

论文：回调的写法 — Howard & Gugger, *fastai: A Layered API*, arXiv:2002.04688。

改哪里：现成的钩子 → hooks.py、progress.py、loss_plot.py、diagnostics.py；
        添一个时刻 → 这里加一个空方法，trainer.py 里在那个时刻调用。
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.spike_watch import Spike

if TYPE_CHECKING:
    from training.trainer import Trainer

__all__ = ["EvaluationReport", "Hook", "HookList", "StepReport", "TrainResult", "bits_per_byte"]


@dataclass(frozen=True)
class StepReport:
    """一步的结果；step 是已经走完的步数，从 1 数起。"""

    step: int
    loss: float  # 这一步（更新之前）每道题的平均损失
    learning_rate: float
    grad_norm: float  # 裁剪之前，平均损失的梯度有多长
    n_tokens: int
    seconds: float  # 只算这一步，不含评估与存档
    problem: str = ""  # 非空 = 这一步跳过了，这是原因
    window_ids: tuple[int, ...] = ()  # 跳过或跳高时：那些窗口的编号，可以回到原文去看
    spikes: tuple[Spike, ...] = ()  # 损失或梯度跳高了；没有跳过的，这一步照常更新了

    @property
    def skipped(self) -> bool:
        """这一步没有更新权重。"""
        return bool(self.problem)


@dataclass(frozen=True)
class EvaluationReport:
    """一次评估的结果。"""

    step: int
    loss: float  # 留出的数据上，每道题的平均损失
    bits_per_byte: float | None  # 与分词器无关的损失；不知道每词元几字节就没有
    n_targets: int
    seconds: float
    improved: bool = False  # 比以前的都好

    @property
    def perplexity(self) -> float:
        """困惑度：相当于每次在几个词元里乱猜；损失太大时不算，免得溢出。"""
        return math.exp(self.loss) if self.loss < 700 else math.inf


@dataclass(frozen=True)
class TrainResult:
    """fit() 的结论。"""

    step: int
    loss: float | None  # 最后一步的训练损失
    val_loss: float | None  # 最后一次评估
    best_loss: float | None  # 最好的一次评估
    best_step: int | None
    bits_per_byte: float | None  # 与 val_loss 是同一次
    tokens_seen: int  # 含续训之前的
    tokens_per_second: float  # 只算训练那几步的时间
    seconds: float  # 这次 fit() 一共用了多久
    total_seconds: float  # 含续训之前的
    skipped_steps: int
    interrupted: bool  # 被 Ctrl-C 请停的
    stopped_early: bool  # 许久没有进步，提前停的
    directory: Path | None  # 训练目录


class Hook:
    """什么也不做的钩子；继承它，只写要听的方法。

    silent 为真的钩子听了警告，人却看不见（例如只写文件）；全是这样的，警告还要另走一路
    """

    silent = False
    # 要拿整个模型来算的；FSDP 把模型切开后，rank 0 独自算不了，见 HookList
    needs_whole_model = False

    def on_start(self, trainer: Trainer) -> None:
        """训练开始：模型、优化器已就位，续训的也已经放回。"""

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """走完一步；梯度还在（已除、已裁），可以看，下一步开始时才清掉。"""

    def on_evaluate(self, trainer: Trainer, report: EvaluationReport) -> None:
        """评估完一次。"""

    def write_files(self, trainer: Trainer, directory: Path) -> None:
        """存档快写完了：往里面再添几个文件，清单会一并记下。"""

    def on_save(self, trainer: Trainer, directory: Path) -> None:
        """存档存好、核对过了。"""

    def on_warning(self, trainer: Trainer, message: str) -> None:
        """有什么不对劲；没有一个钩子听，就走 Python 的 warnings。"""

    def on_message(self, trainer: Trainer, text: str) -> None:
        """一段给人看的话，例如写出来的样例。"""

    def on_end(self, trainer: Trainer, result: TrainResult | None) -> None:
        """结束；中途出错时 result 是 None，也要在这里关好文件。"""


class HookList:
    """几个钩子，在每个时刻逐个调用；训练循环只认识它。"""

    def __init__(self, trainer: Trainer, hooks: Sequence[Hook], *, split: bool = False) -> None:
        # 切成几片的模型（split），要人人一起算；只有 rank 0 有钩子，它独自算就会永远等下去
        left_out = [hook for hook in hooks if split and hook.needs_whole_model]
        self.trainer, self.hooks = trainer, [hook for hook in hooks if hook not in left_out]
        # 开始之前（例如放回存档时）的警告先攒着：那时还没有人在听
        self._early: list[str] | None = [
            f"{type(hook).__name__} needs the whole model, which parallel 'fsdp' splits among the "
            "processes; it is left out"
            for hook in left_out
        ]

    def tell(self, event: str, *facts: Any) -> None:
        """在名为 event 的时刻，按给的次序逐个调用。"""
        for hook in self.hooks:
            getattr(hook, event)(self.trainer, *facts)

    def start(self) -> None:
        """逐个开始；攒下的警告这时才说。"""
        self.tell("on_start")
        early, self._early = self._early or [], None
        for message in early:
            self.warn(message)

    def warn(self, message: str) -> None:
        """告诉每个钩子；若没有一个会让人看见，就走 Python 的 warnings：不许没人听见。"""
        if self._early is not None:
            self._early.append(message)
            return
        self.tell("on_warning", message)
        listening = [hook for hook in self.hooks if type(hook).on_warning is not Hook.on_warning]
        if all(hook.silent for hook in listening):
            warnings.warn(message, stacklevel=3)


def bits_per_byte(loss: float, bytes_per_token: float | None) -> float | None:
    """每词元的损失（自然对数）→ 每字节几个比特；换了分词器也能比较。

    公式：loss / ln 2 / 每词元的字节数
    为什么：词元越长，每个就越难猜、损失越高，可它也代表了更多的字节；按字节算才公平
    """
    return None if bytes_per_token is None else loss / math.log(2) / bytes_per_token
