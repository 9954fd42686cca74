"""学习路线上打勾的地方，各凭哪些练习作证；`report` 只勾有证据的。"""

from __future__ import annotations

from dataclasses import dataclass

from course.exercise import Exercise, all_exercises

__all__ = ["CHECKPOINTS", "Checkpoint", "evidence_for"]


@dataclass(frozen=True)
class Checkpoint:
    """A box of the learning path."""

    key: str
    weeks: str
    zh: str
    en: str


CHECKPOINTS = (
    Checkpoint(
        "week1-attention", "1–2", "能手写 Attention 的前向传播，说得出 Q、K、V 与因果掩码",
        "wrote the forward pass of attention by hand: Q, K, V and the causal mask",
    ),
    Checkpoint(
        "week2-block", "1–2", "能写出归一化、前馈、位置，拼成一个 Pre-LN 的块",
        "wrote norms, feed-forward and positions, and joined them into a Pre-LN block",
    ),
    Checkpoint(
        "week3-gpt", "3–4", "能说出 GPT 的每一个零件，手算它的参数量",
        "knows every part of a GPT and can count its parameters",
    ),
    Checkpoint(
        "week4-loss", "3–4", "能写出错开一位的损失，知道瞎猜时它是多少",
        "wrote the shifted loss and knows its value for a blind guess",
    ),
    Checkpoint(
        "week5-sampling", "5", "实现了各种生成策略，知道各留下谁",
        "implemented the sampling strategies and knows whom each keeps",
    ),
    Checkpoint(
        "week5-cache", "5", "实现了 KV 缓存，结果一个数也不差",
        "implemented a KV cache whose results do not change",
    ),
    Checkpoint(
        "week6-tokenizer", "6–8", "从字节写出 BPE 分词器", "wrote a BPE tokenizer from bytes"
    ),
    Checkpoint(
        "week6-data", "6–8", "能把文本变成一批训练样本，不漏、不泄、不学补齐",
        "turned text into batches: nothing dropped, leaked, or learned from pads",
    ),
    Checkpoint(
        "week7-optimizer", "6–8", "理解训练技巧：预热与余弦、累积、裁剪、混合精度、AdamW",
        "understands warm-up and cosine, accumulation, clipping, mixed precision, AdamW",
    ),
    Checkpoint(
        "week8-training", "6–8", "写出了训练循环，训练了一个小模型，断了能接上",
        "wrote the training loop, trained a small model, resumes exactly",
    ),
    Checkpoint("week9-lora", "9–10", "实现了 LoRA", "implemented LoRA"),
    Checkpoint(
        "week10-quantization", "9–10", "实现了 INT8 与 INT4 量化",
        "implemented INT8 and INT4 quantization",
    ),
)  # fmt: skip


def evidence_for(checkpoint: Checkpoint) -> list[Exercise]:
    """The exercises that are evidence for a checkpoint."""
    return [e for e in all_exercises().values() if checkpoint.key in e.checkpoint]
