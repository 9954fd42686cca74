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
shard.tokens[编号 : 编号 + block_size]，再 tokenizer.decode 出来看。

论文：损失跳高时退回、跳过那几批 — Chowdhery et al., *PaLM*, arXiv:2204.02311 §5.1；
      OPT 的训练日志 — Zhang et al., arXiv:2205.01068 §2.5。

改哪里：忍几步 → TrainConfig.max_skipped_steps；什么算坏 → train_step.py 的 find_problem。
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.checkpoint_list import list_checkpoints
from training.hook_base import StepReport

if TYPE_CHECKING:
    from training.trainer import Trainer

__all__ = ["TrainingDivergedError", "react_to_skipped_step"]

SHOWN = 8  # 一句话里至多列出几个窗口


class TrainingDivergedError(ValueError):
    """连着太多步出现 NaN 或无穷大：再走下去也不会好。"""


def react_to_skipped_step(trainer: Trainer, report: StepReport) -> None:
    """这一步若跳过了，说出来；连着太多步就停。

    错误：连着 max_skipped_steps 步 → TrainingDivergedError，写明怎么办、最后一个好存档在哪里
    """
    in_a_row, limit = trainer.state.skipped_in_a_row, trainer.config.max_skipped_steps
    # fp16 正在找合适的倍数时，跳过是常事，不计数，也不必说
    if not report.skipped or not in_a_row:
        return
    where = f"windows {', '.join(map(str, report.window_ids[:SHOWN])) or 'unknown'}"
    if len(report.window_ids) > SHOWN:
        where += f" … {len(report.window_ids)} in all"
    trainer.warn(
        f"step {report.step} skipped, weights untouched: {report.problem}; {where} "
        f"({in_a_row} in a row, at most {limit})"
    )
    if in_a_row < limit:
        return
    # 退到哪里去：说得出目录，人才好接着办
    found = [] if trainer.run_dir is None else list_checkpoints(trainer.run_dir)
    saved = f"the last good checkpoint is {found[-1].directory}" if found else "nothing was saved"
    raise TrainingDivergedError(
        f"stopped at step {report.step}: {in_a_row} steps in a row gave NaN or infinite values "
        f"(max_skipped_steps {limit}), the last: {report.problem}; {where}. Lower learning_rate "
        f"{trainer.config.learning_rate:g}, lengthen warmup_steps {trainer.config.warmup}, or look "
        f"at these windows; {saved}"
    )
