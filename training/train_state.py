r"""训练「走到哪里了」由哪几个数说清？——除了权重、优化器与随机数，循环自己记得的全在这里。

这些数随存档写进 trainer.json，续训时原样放回。漏一个都接不上，只是有的漏了立刻看得出，
有的要过很久：

    漏了                        续训之后
    step                        学习率、数据从头来：立刻看得出
    best_loss                   下一次评估总被当成「最好」，真正最好的那个存档被删掉
    evaluations_without_gain    提前停（early stop）永远等不到，或早停了几次
    skipped_in_a_row            每次续训都能再多容忍几步 NaN
    last_evaluated              断在评估之前的那一步，评估少做一次

$$\text{tokens/s} = \frac{\text{train\_tokens}}{\text{train\_seconds}}$$

两种时间分开记：train_seconds 只算训练的步，用来说机器多快；total_seconds 是人等了多久，
含评估、存档、画图。只记后一种，评估得越勤，机器看起来就越慢。

改哪里：循环要多记一个数 → 加一个有默认值的字段即可，存与读都不用改；
        旧的存档里没有它，读到的就是默认值。
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from training.hook_base import EvaluationReport, StepReport

__all__ = ["TrainState"]


@dataclass
class TrainState:
    """可变的计数；只有训练循环改它，钩子只读。"""

    step: int = 0  # 走完了几步，跳过的也算
    tokens_seen: int = 0  # 看过几个词元
    loss: float | None = None  # 最后一步的训练损失
    val_loss: float | None = None  # 最后一次评估
    best_loss: float | None = None  # 最好的一次评估
    best_step: int | None = None
    last_evaluated: int = -1  # 在第几步评估过；−1 = 还没有
    evaluations_without_gain: int = 0  # 连着几次没有进步
    skipped_steps: int = 0  # 一共跳过几步
    skipped_in_a_row: int = 0  # 连着跳过几步
    spike_steps: int = 0  # 一共跳高几步，跳过与没跳过的都算
    last_spike: int = -1  # 最近一次跳高是第几步；连着的只说第一步
    train_seconds: float = 0.0  # 训练的步用了多久
    total_seconds: float = 0.0  # 以前各次 fit() 一共用了多久

    def after_step(self, report: StepReport, *, counts_as_fault: bool) -> None:
        """记下一步。fp16 的溢出是常事，不算连着出错，只算跳过。"""
        self.step = report.step
        self.tokens_seen += report.n_tokens
        self.train_seconds += report.seconds
        # NaN 不能写进 JSON，也没有意义
        self.loss = report.loss if math.isfinite(report.loss) else None
        self.skipped_steps += report.skipped
        if not report.skipped:
            self.skipped_in_a_row = 0
        elif counts_as_fault or report.spikes:
            self.skipped_in_a_row += 1
        self.spike_steps += bool(report.spikes)

    def is_better(self, loss: float) -> bool:
        """这次评估比以前的都好吗？NaN 与谁比都是假。

        第 0 步不参加比赛：还没练的模型没有什么可存的
        """
        return (
            self.step > 0
            and math.isfinite(loss)
            and (self.best_loss is None or loss < self.best_loss)
        )

    def after_evaluation(self, report: EvaluationReport) -> None:
        """记下一次评估。"""
        self.last_evaluated = report.step
        self.val_loss = report.loss if math.isfinite(report.loss) else None
        if report.improved:
            self.best_loss, self.best_step = report.loss, report.step
            self.evaluations_without_gain = 0
        elif report.step > 0:
            self.evaluations_without_gain += 1
            # 一样好：算不上进步，但「最好的」取较晚的，与 checkpoint_list.py 的规则一致
            if report.loss == self.best_loss:
                self.best_step = report.step

    @property
    def tokens_per_second(self) -> float:
        """训练得多快；一步也没走时是 0。"""
        return self.tokens_seen / self.train_seconds if self.train_seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """变成 JSON 写得下的字典。"""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainState:
        """从存档里的字典放回；字典里别的东西（描述、放大的倍数）不理会。"""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})
