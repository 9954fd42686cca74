r"""断了的训练怎样接上？——存什么、读什么、什么时候拒绝接，成对地写在一处。

checkpoint.py 只管「一个目录里的文件」；这里管「一个 Trainer 的全部」，存与读面对面地放着：

    save_run(trainer)                          restore_run(trainer)
    ─────────────────                          ────────────────────
    权重、m、v、随机数   ──▶ step-000200/ ──▶  核对每个文件；坏了就退回前一个，并说出来
    步数、最好的损失、计数                      描述不同就拒绝，列出每一项的新旧值
    损失放大的倍数、平常的损失与梯度            放回权重、m、v、随机数、步数、倍数
    描述：配置、模型、数据、环境                机器不同只警告

验收只有一条：停过的与没停过的，逐比特相同。

$$\theta^{\text{interrupted}}_{S} = \theta^{\text{uninterrupted}}_{S}, \qquad
  \text{同样} \ m_S, v_S, \text{每一步的损失}$$

为什么描述在放回之前比对：放回去才发现不是同一次训练，模型已经改了。

为什么数据不必存「读到哪里了」：第 s 步用哪几批是 s 的纯函数，知道步数就够了；
但要核对 batches 还是原来那个，所以存下刚用过的那一批的指纹，续训时重取、重算、对照。

论文：可重现地续训 — Biderman et al., *Pythia*, arXiv:2304.01373。

改哪里：多存一样东西 → 这里两个函数成对地改；什么算「同一次训练」→ run_description.py。
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.files import read_json
from training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from training.checkpoint_list import TRAINER_FILE
from training.distributed import refuse_differences
from training.named_state import plain_model
from training.run_description import compare_runs, describe_run
from training.train_state import TrainState

if TYPE_CHECKING:
    from training.trainer import Trainer

__all__ = ["check_agreement", "restore_run", "save_run"]


def save_run(trainer: Trainer, total_seconds: float) -> Path:
    """把现在的一切存成一个存档，返回它的目录；钩子可以往里添文件。

    错误：权重坏了 → ValueError；存不下 → OSError；已有的存档都不受影响
    约定：total_seconds 由循环给：它含评估与存档，只有循环知道从何时算起
    """
    assert trainer.run_dir is not None
    state, step = trainer.state, trainer.take_step
    progress = {
        **state.to_dict(),  # 步数、最好的损失、各种计数
        "total_seconds": total_seconds,  # 秒，含续训之前的
        "scaler": step.scaler.state_dict(),  # fp16 的放大倍数，也是状态
        "spike_windows": step.spikes.state_dict(),  # 「平常」多大；不存，续训之后就另有一套
        "description": _describe(trainer),  # 续训时逐项比对的就是它
        # 整张配置单只供人看：比对用的是描述里影响权重的那些
        "settings": trainer.config.to_dict(),
    }
    return save_checkpoint(
        trainer.run_dir,
        state.step,
        trainer.model,
        step.optimizer,
        progress,
        tokenizer=trainer.tokenizer,  # 有了它，存档可以直接拿来生成
        # 验证损失只属于量过的那一步：上一次量的，不能算在这一步头上
        val_loss=state.val_loss if state.last_evaluated == state.step else None,
        keep_last=trainer.config.keep_last,
        write_more=lambda temporary: trainer.tell("write_files", temporary),  # 清单写在它们之后
        processes=trainer.processes,
        # 一个进程时没有什么可切的
        sharded=trainer.config.sharded_checkpoints and trainer.processes.size > 1,
    )


def restore_run(trainer: Trainer, *, allow_changes: bool) -> None:
    """从最新的好存档放回一切；与现在的描述不同就拒绝，除非明说允许。

    错误：存档全坏了、不是同一次训练、放不进这个模型 → ValueError；此时什么也没有动
    约定：allow_changes 时差别照样说出来，只是不拦
    """
    assert trainer.run_dir is not None
    # ① 找：坏的跳过，跳过了哪个要说
    checkpoint = latest_checkpoint(trainer.run_dir, trainer.warn)
    assert checkpoint is not None, "RunDirectory refuses to resume without checkpoints"
    saved: dict[str, Any] = read_json(checkpoint.directory / TRAINER_FILE)
    # ② 比：取指纹要知道走到了第几步，所以先看步数
    state = TrainState.from_dict(saved)  # 还没有交给 trainer
    now = _describe(trainer, state.step)
    refused, warned = compare_runs(saved["description"], now)
    if refused and not allow_changes:
        raise ValueError(
            f"cannot resume {checkpoint.directory}: this run differs from the saved one. "
            f"{'; '.join(refused)}. Give the old values, or say allow_changes to go on with the "
            "new ones (the result will not equal an uninterrupted run)"
        )
    for note in [*refused, *warned]:
        trainer.warn(f"resumed with a difference: {note}")
    # ③ 放回
    # 权重与随机数若放不进去会抛错，所以计数最后才换：不留半新半旧的 Trainer
    load_checkpoint(
        checkpoint.directory, trainer.model, trainer.take_step.optimizer, trainer.processes
    )
    trainer.take_step.scaler.load_state_dict(saved["scaler"])
    trainer.take_step.spikes.load_state_dict(saved.get("spike_windows", {}))  # 旧的存档里没有
    trainer.state = state  # 从这一步接着走


def check_agreement(trainer: Trainer, **how: bool) -> None:
    """几个进程要做的是不是同一件事：配置、模型、数据、分词器、怎样开始，逐项比对。

    错误：差一项 → 人人抛同一个 ValueError，写明键与两个值；一步也没有走
    约定：设备不比：各用各的卡；环境也不比，末几位的差别由 share_account 挡住
    """
    if trainer.processes.size == 1:
        return
    description = _describe(trainer, 1)  # 第一步用的数据，不管要从哪里接着走
    del description["environment"]
    # 比全部字段，不只影响权重的：隔多少步评估不同，也会互相等下去
    description["config"] = {**trainer.config.to_dict(), "device": trainer.device.type}
    refuse_differences(trainer.processes, {**description, "start": dict(how)})


def _describe(trainer: Trainer, step: int | None = None) -> dict[str, Any]:
    """这次训练的描述；取指纹用的，是走完第 step 步时刚用过的最后一批。

    公式：编号 = step·A − 1，A 是 grad_accumulation；第 s 步用的是第 sA … sA+A−1 批
    """
    steps = trainer.state.step if step is None else step
    if trainer.config.overfit_one_batch:
        steps = 1  # 只有那一批
    return describe_run(
        trainer.config,
        plain_model(trainer.model),  # 编译与否不算差别
        trainer.device,
        trainer.precision,
        tokenizer=trainer.tokenizer,
        batches=trainer.batches,
        batch_index=steps * trainer.config.grad_accumulation - 1,
        n_processes=trainer.processes.size,
    )
