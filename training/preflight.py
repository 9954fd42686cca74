r"""哪些错不必等练了一小时才发现？——起飞前的检查（preflight）：第 0 步之前就能看出来的，都在这里看。

训练的许多错要到很后面才露面：分词器比词表大，要到第一次存档才报；磁盘不够，要到存第三个时才满；
批的大小与配置上写的不同，根本不会报，只是记录下来的数字全是假的。

    检查                         不检查会怎样
    批的行数 = 配置上写的        存下的配置是假的，别人照着练，练出来的不一样
    分词器 ≤ 词表                第一次存档时才失败
    磁盘装得下几个存档           练到一半写满；警告，不拒绝：也许别处马上会腾出来

一个存档有多大：权重一份，AdamW 的 m、v 各一份。删旧的在新的存好之后，所以最多同时有
「留下的 + 最好的 + 正在写的」这么多个：

$$\text{disk} \approx (\text{keep\_last} + 2) \times
  (\text{state} + 2 \times \text{trainable}) \times 4\ \text{bytes}$$

改哪里：添一项检查 → check_before_training；内存够不够 → memory_advice.py（要看模型的形状）。
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from training.named_state import trainable_state

if TYPE_CHECKING:
    from training.trainer import Trainer

__all__ = ["check_before_training"]


def check_before_training(trainer: Trainer) -> None:
    """数据、分词器、模型、磁盘凑在一起合不合。

    错误：批的行数与配置不符、分词器比词表大 → ValueError，两个数都写出来
    警告：磁盘剩下的可能不够
    """
    # 由便宜到贵：前两项只比两个数，第三项要问磁盘
    # ① 批的大小：配置里写了才比；没有 inputs 的批（别的任务）不好说有几行，跳过
    wanted = trainer.config.batch_size
    inputs = getattr(trainer.batches(0), "inputs", None) if wanted is not None else None
    if inputs is not None and len(inputs) != wanted:
        raise ValueError(
            f"config.batch_size is {wanted}, but batches(0) has {len(inputs)} rows; "
            "give both the same number (or leave config.batch_size out)"
        )
    # ② 词表：多出来的编号会越过词向量的表
    room = getattr(getattr(trainer.model, "config", None), "vocab_size", None)
    if trainer.tokenizer is not None and room is not None:
        if trainer.tokenizer.vocab_size > room:
            raise ValueError(
                f"the tokenizer has {trainer.tokenizer.vocab_size} tokens, "
                f"but the model's vocab_size is {room}"
            )
    # ③ 磁盘：只提醒，不拒绝
    _warn_if_disk_is_short(trainer)


def _warn_if_disk_is_short(trainer: Trainer) -> None:
    """估计存档一共要多少字节，与磁盘剩下的比。

    公式：(keep_last + 2) × (要存的权重 + m 与 v)；只训练一部分时（LoRA），两样都只算那部分
    """
    if trainer.run_dir is None:
        return  # 不存档，就不占磁盘
    state = sum(t.numel() * t.element_size() for t in trainable_state(trainer.model).values())
    # m、v 与参数同形，按 float32 估；冻结的参数没有
    moments = 2 * 4 * sum(p.numel() for p in trainer.take_step.parameters)
    needed = (trainer.config.keep_last + 2) * (state + moments)
    free = shutil.disk_usage(trainer.run_dir).free  # 字节
    if free < needed:
        trainer.warn(
            f"{trainer.run_dir} has {free / 1e9:.2f} GB free, but up to {needed / 1e9:.2f} GB of "
            f"checkpoints may be there at a time (keep_last {trainer.config.keep_last}); free some "
            "space, or lower keep_last (at least 2)"
        )
