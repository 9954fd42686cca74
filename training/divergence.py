r"""出了 NaN 该忍几步、什么时候该停？——偶尔一步是坏批次，连着几步就是训练本身坏了。

一步里的判断在 train_step.py：损失或梯度不是有限数，就不更新。这里管它之后的事：

    跳过 1 步           说出来：第几步、什么毛病、哪几个窗口；接着练
    跳过，又好了        计数归零：坏的是那一批数据
    连着跳过 K 步       停：权重还是好的，数据却没有一批能用，多半是权重已走到损失的悬崖上

$$\text{stop} \iff \text{skipped in a row} \ge K, \qquad K = \text{max\_skipped\_steps}$$

不停会怎样：机器空转一夜，步数照走，学习率照降，权重一动不动，早上看到的是「训练完成」。

停下时存不存？不存。权重虽然是好的，可是从这里接着走，下一批还是 NaN；
要退到更早的存档，换小一点的学习率，或把那几个窗口挑出来看看。

窗口编号（window ids）是每行第一个词元在分片中的位置，凭它可以原样取回那一段：
data_check.py 的 show_windows(shard, 编号, tokenizer) 印出来看。

有限却大得离谱的步（spike）也在这里说；怎样看出来，见 spike_watch.py。

论文：损失跳高时退回、跳过那几批 — Chowdhery et al., *PaLM*, arXiv:2204.02311 §5.1；
      OPT 的训练日志 — Zhang et al., arXiv:2205.01068 §2.5。

改哪里：忍几步 → TrainConfig.max_skipped_steps；什么算坏 → train_step.py 的 find_problem；
        什么算跳高 → spike_watch.py。
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.checkpoint_list import list_checkpoints
from training.hook_base import StepReport

if TYPE_CHECKING:
    from training.trainer import Trainer

__all__ = ["TrainingDivergedError", "react_to_skipped_step", "react_to_spike"]

SHOWN = 8  # 一句话里至多列出几个窗口


class TrainingDivergedError(ValueError):
    """连着太多步出现 NaN 或无穷大，或连着跳高：再走下去也不会好。"""


def describe_windows(report: StepReport) -> str:
    """是哪几个窗口；太多了只列开头几个，全部的在 metrics.jsonl 里。"""
    where = f"windows {', '.join(map(str, report.window_ids[:SHOWN])) or 'unknown'}"
    more = f" … {len(report.window_ids)} in all" if len(report.window_ids) > SHOWN else ""
    return where + more


def react_to_spike(trainer: Trainer, report: StepReport) -> None:
    """损失或梯度跳高了：说出多大、平常多大、是哪几个窗口。

    约定：没有跳过的才在这里说，跳过的由 react_to_skipped_step 说；
          连着跳高的只说第一步：水平真的变了的话，会连着几十步，全部的在 metrics.jsonl 里
    """
    if not report.spikes:
        return
    first = trainer.state.last_spike != report.step - 1
    trainer.state.last_spike = report.step  # 随存档走，续训之后说的话也相同
    if first and not report.skipped:
        trainer.warn(
            f"step {report.step}: {'; '.join(map(str, report.spikes))}; "
            f"{describe_windows(report)}. Look at them with show_windows; "
            "spike_action 'skip' would leave such a step out"
        )


def react_to_skipped_step(trainer: Trainer, report: StepReport) -> None:
    """这一步若跳过了，说出来；连着太多步就停。

    错误：连着 max_skipped_steps 步 → TrainingDivergedError，写明怎么办、最后一个好存档在哪里
    """
    in_a_row, limit = trainer.state.skipped_in_a_row, trainer.config.max_skipped_steps
    # fp16 正在找合适的倍数时，跳过是常事，不计数，也不必说
    if not report.skipped or not in_a_row:
        return
    where = describe_windows(report)
    trainer.warn(
        f"step {report.step} skipped, weights untouched: {report.problem}; {where} "
        f"({in_a_row} in a row, at most {limit})"
    )
    if in_a_row < limit:
        return
    # 退到哪里去：说得出目录，人才好接着办
    found = [] if trainer.run_dir is None else list_checkpoints(trainer.run_dir)
    saved = f"the last good checkpoint is {found[-1].directory}" if found else "nothing was saved"
    what = "were left out as spikes" if report.spikes else "gave NaN or infinite values"
    raise TrainingDivergedError(
        f"stopped at step {report.step}: {in_a_row} steps in a row {what} "
        f"(max_skipped_steps {limit}), the last: {report.problem}; {where}. Lower learning_rate "
        f"{trainer.config.learning_rate:g}, lengthen warmup_steps {trainer.config.warmup}, or look "
        f"at these windows; {saved}"
    )
