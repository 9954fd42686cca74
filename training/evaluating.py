r"""练到现在怎么样了？——途中量一次、判一次，练完再下一个结论。

量（held_out.py）只管把一个数量准；这里管量出来之后的事：它是不是最好的，该不该说，该记到哪里。

    留出集 ── measure ──▶ EvaluationReport ── judge ──▶ 计数：最好的、连着几次没有进步
                │                               ├─────▶ 不是有限数？说出来
          半路有人请停 ─▶ None，当没量过         └─────▶ 钩子：日志、画图

    全部计数 ── conclude ──▶ TrainResult：fit() 交给调用者的那一份

判的规则只有一条：比以前的都小才算进步；连着没有进步的次数到了 patience，训练就提前停。
第 0 步不参加比赛：没练过的模型没有什么可存的。

$$\text{improved}(s) \iff L_{\text{val}}(s) < \min_{0 < s' < s} L_{\text{val}}(s')$$

为什么量与判分开：trainer.evaluate() 只量不判——随时想看一眼都可以，看多少次也不会改动
「最好的」，不会让提前停来得更早。只有训练循环自己到了时候的那一次才判。

论文：提前停该等多久 — Prechelt, *Early Stopping — But When?*, 1998。

改哪里：怎样算更好 → train_state.py 的 is_better；怎样量 → held_out.py；
        何时评估、等几次 → trainer.py 与 TrainConfig；结论里多一项 → TrainResult 与 conclude。
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from foundation.demonstration import run_demo
from training.held_out import held_out_loss
from training.hook_base import EvaluationReport, TrainResult, bits_per_byte

if TYPE_CHECKING:
    from training.trainer import Trainer

__all__ = ["conclude", "judge", "measure"]


def measure(trainer: Trainer, should_stop: Callable[[], bool]) -> EvaluationReport | None:
    """在留出的数据上量一次；半路 should_stop() 为真就放弃，返回 None。

    约定：只看不动：权重、计数、训练的随机数都不变
    类型：报告里都是 Python 的数；没有 bytes_per_token，bits_per_byte 就是 None
    错误：没有给 val_batches，或里面一道题也没有 → ValueError
    """
    if trainer.val_batches is None:
        raise ValueError("there is nothing to evaluate on: give the Trainer val_batches")
    began = time.perf_counter()  # 秒
    # 每次都重新要一遍：生成器走完就空了，而每次评估要量同样的题
    found = held_out_loss(
        trainer.model,
        trainer.loss_fn,
        trainer.val_batches(),
        device=trainer.device,
        precision=trainer.precision,  # 与训练同样的精度
        limit=trainer.config.eval_batches,  # 至多几批；None 就走完
        should_stop=should_stop,
    )
    if found is None:
        return None  # 半份数据的平均不可比
    # 人人量了同样的题；听 rank 0 的，末位不同也不会有人提前停、有人接着走
    loss, n_targets = trainer.processes.broadcast([found.loss, found.n_targets])
    return EvaluationReport(
        step=trainer.state.step,  # 走完了几步
        loss=loss,  # 每道题的平均
        bits_per_byte=bits_per_byte(loss, trainer.bytes_per_token),
        n_targets=n_targets,  # 题数：这个数字有多可信
        seconds=time.perf_counter() - began,  # 与训练的步分开计，见 train_state.py
        improved=trainer.state.is_better(loss),  # 与以前的比，还没有记下
    )


def judge(trainer: Trainer, report: EvaluationReport) -> None:
    """记下这一次评估的好坏，再告诉钩子。

    约定：先记再说：钩子看到的 trainer.state 已经包括这一次
    """
    trainer.state.after_evaluation(report)  # best_loss、best_step、连着几次没有进步
    # 只说，不停：训练的损失也许还好，坏的可能只是留出集里的一段
    if not math.isfinite(report.loss):
        trainer.warn(f"the validation loss at step {report.step} is {report.loss}")
    trainer.tell("on_evaluate", report)


def conclude(
    trainer: Trainer,
    *,
    seconds: float,  # 这次 fit() 用了多久
    total_seconds: float,  # 含续训之前的
    interrupted: bool,  # 有人请停
    stopped_early: bool,  # 许久没有进步
) -> TrainResult:
    """把全部计数收成一份不再变的结论；两种时间与怎样结束的，只有循环知道，由它给。

    约定：只读；计数含续训之前的，唯独 seconds 只算这一次
    """
    state = trainer.state
    # 没有评估过，就没有每字节比特，而不是 0
    bits = (
        None if state.val_loss is None else bits_per_byte(state.val_loss, trainer.bytes_per_token)
    )
    return TrainResult(
        step=state.step,
        loss=state.loss,  # 最后一步的；不是有限数就是 None
        val_loss=state.val_loss,
        best_loss=state.best_loss,
        best_step=state.best_step,
        bits_per_byte=bits,
        tokens_seen=state.tokens_seen,
        tokens_per_second=state.tokens_per_second,  # 不含评估与存档
        seconds=seconds,
        total_seconds=total_seconds,
        skipped_steps=state.skipped_steps,  # 不为 0 就值得回头看看
        interrupted=interrupted,
        stopped_early=stopped_early,
        directory=trainer.run_dir,  # 没有存档就是 None
    )


def demo() -> None:
    """只看不判，看几次都不改计数；判了才算；题太少就背书，验证损失回升，提前停。"""
    import torch
    from torch import Tensor, nn

    from training.train_config import TrainConfig
    from training.trainer import Trainer

    torch.manual_seed(0)  # 答案与起点都固定
    # 目标是随机的：没有规律可学，能降的只有训练损失，留出的那一份只会越来越差
    ids, targets = torch.arange(40), torch.randint(5, (80,))

    def loss_fn(model: nn.Module, places: Tensor) -> tuple[Tensor, int]:
        logits = model(ids[places % 40])  # (n, 5)
        loss = nn.functional.cross_entropy(logits, targets[places], reduction="sum")
        return loss, len(places)

    trainer = Trainer(
        nn.Embedding(40, 5),  # 每个输入自己一行：纯粹的死记硬背
        lambda index: torch.arange(40),  # 训练总是前四十道题
        loss_fn,
        TrainConfig(steps=60, learning_rate=0.1, eval_every=5, patience=3, device="cpu"),
        val_batches=lambda: [torch.arange(40, 80)],  # 同样的输入，另一套答案
    )

    print("① 只看不判：看两次，计数不变")
    first, second = trainer.evaluate(), trainer.evaluate()
    print(f"   两次都是 {first.loss:.4f}；最好的：{trainer.state.best_loss}")
    assert first.loss == second.loss  # 评估不受随机数影响
    assert trainer.state.best_loss is None  # 看一眼不算数

    print("② 练：训练损失降，验证损失升，连着 3 次没有进步就停")
    result = trainer.fit()
    assert result.loss is not None
    assert result.val_loss is not None
    assert result.best_loss is not None
    print(f"   停在第 {result.step} 步（说好 60 步），提前停：{result.stopped_early}")
    print(f"   训练损失 {result.loss:.3f}；验证损失 {result.val_loss:.3f}")
    print(f"   最好的是第 {result.best_step} 步的 {result.best_loss:.3f}")
    assert result.stopped_early  # 而不是走够了
    assert result.best_loss < result.val_loss  # 多练的那些步是白练的
    assert result.loss < result.val_loss  # 背下来了，没有学会


if __name__ == "__main__":
    run_demo(demo)
