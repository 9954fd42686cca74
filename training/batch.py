r"""训练循环每一步拿到的是什么？——一批（batch）「看前文、猜下一个」的题，和取出它们的办法。

一维的词元流里，从起点 s 取 T+1 个相邻的词元，错开一位，就是 T 道题：

$$\text{inputs}_i = t_{s+i}, \qquad \text{targets}_i = t_{s+i+1}, \qquad 0 \le i < T$$

    词元流    …  t₇  t₈  t₉  t₁₀  t₁₁  …          起点 s = 7，T = 4
    inputs       t₇  t₈  t₉  t₁₀
    targets          t₈  t₉  t₁₀  t₁₁

B 个起点一次取齐，得到两个 (B, T) 的张量；一次索引取完，没有 Python 循环。

    starts (B,) + arange(T+1) ──广播（broadcasting）──▶ positions (B, T+1)
                                                          │ 一次高级索引（fancy indexing）
    memmap uint16 (n,) ───────────────────────────────────▶ ids (B, T+1) ──▶ int64

四样附带的信息：
    document_ids   每个位置属于第几篇文档。给了它，注意力就不跨文档（模型的 document_ids 参数）；
                   比较的只是「相等与否」，所以用全局的文档序号即可，不必从 0 数起
    positions      每个位置是它那一段的第几个；一行里打包了几段时才要，每段从 0 数起
    window_ids     每行第一个词元在分片中的位置。损失突然成了 NaN 时，凭它回到原文去看
    −100           目标等于它的位置不算题：补齐的空位、提问的部分、填充，都用它盖住

常见疑问：
    为什么是 int64？  磁盘上一个词元只占两到四个字节，但交叉熵的目标必须是 int64；
                      所以只转换取出的这一批，不转换整个语料。
    文档之间那道题呢？  分隔符 <|endoftext|> 之后猜下一篇的第一个词元：这教会模型「另起一篇」，
                        所以保留，不盖住。

论文：下一个词元预测 — Radford et al., *Improving Language Understanding by Generative
      Pre-Training*, 2018；文档间不互看 — *Llama 3*, arXiv:2407.21783 §3.2。

改哪里：一批里还要带别的东西（例如权重）→ Batch 添一个字段，在 to 里一起搬；
        起点怎么选 → dataset.py；只在答案上算损失 → 另建 Batch，把别处的目标设成 IGNORE_INDEX。
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from foundation.demonstration import run_demo

__all__ = ["IGNORE_INDEX", "Batch", "TokenSource", "Tokens", "WindowReader"]

# 目标等于它的位置不计入损失；与 F.cross_entropy 的 ignore_index 默认值一致。
IGNORE_INDEX = -100


@runtime_checkable
class TokenSource(Protocol):
    """能供应词元的东西：一般是 TokenShard，测试里可以是任何有这三样的对象。

    用协议（Protocol）而不用继承：取批次的代码不必认识文件，分片也不必认识批次。
    """

    @property
    def tokens(self) -> np.ndarray:
        """一维整数数组，常是内存映射（memory map）：用到哪一页才读哪一页。"""

    @property
    def document_starts(self) -> np.ndarray:
        """每个文档第一个词元的位置，升序，第一个是 0。"""

    def check_intact(self) -> None:
        """底下的文件变短时抛 ValueError；不查就去读，操作系统会直接杀死进程。"""


# 凡是要词元的地方都接受这几种；数组与列表适合试验，TokenSource 适合真训练。
Tokens: TypeAlias = "TokenSource | np.ndarray | Tensor | Sequence[int]"


@dataclass(frozen=True, eq=False)
class Batch:
    """一批样本；建好就不再改，可以放心地交给后台线程或钩子（hook）。

    形状：inputs、targets、document_ids、positions 都是 (B, T)；window_ids 多半长 B
    类型：int64
    """

    inputs: Tensor
    targets: Tensor
    document_ids: Tensor | None = None
    window_ids: tuple[int, ...] = ()
    positions: Tensor | None = None  # None：每行从 0 数起

    @cached_property
    def n_targets(self) -> int:
        """计入损失的位置数。

        各批可能不同（补齐、只算答案）。梯度累积时要用「损失之和 ÷ 总题数」，
        若把各批的平均再平均，题少的批次里每道题就会占更大的分量。
        """
        return int((self.targets != IGNORE_INDEX).sum())

    def to(self, device: torch.device | str) -> Batch:
        """把张量搬到 device；已在那里的不复制。"""
        device = torch.device(device)
        document_ids = None if self.document_ids is None else _move(self.document_ids, device)
        positions = None if self.positions is None else _move(self.positions, device)
        # 没有的还是没有：模型据此走最快的路
        moved = Batch(
            _move(self.inputs, device),
            _move(self.targets, device),
            document_ids,
            self.window_ids,
            positions,
        )
        # 数过一次的题数也带过去
        # 趁数据还在 CPU 上数好：到 GPU 上再数，CPU 就得停下来等它把手头的活干完。
        vars(moved)["n_targets"] = self.n_targets
        return moved


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    """搬一个张量。

    锁页内存（pinned memory）不会被操作系统换出，GPU 才能自己来取，与 CPU 的计算重叠；
    普通内存的搬运则必须等它完成。
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class WindowReader:
    """从一维词元里按起点取窗口；训练与评估两种切法共用它。

    错误：不是一维整数、document_starts 不合理时抛 ValueError
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        with_document_ids: bool = False,
        document_starts: np.ndarray | Sequence[int] | None = None,
    ) -> None:
        # 协议的 isinstance 要逐个查成员，不便宜；问一次，记住答案。
        self._source = tokens if isinstance(tokens, TokenSource) else None
        self._plain: np.ndarray = np.empty(0) if self._source is not None else np.asarray(tokens)
        # 分片知道自己内容的 SHA-256；裸数组不知道
        self.fingerprint: str | None = getattr(tokens, "fingerprint", None)
        array = self._array()
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(
                "tokens must be a one-dimensional array of integers, "
                f"got shape {array.shape}, dtype {array.dtype}"
            )
        self.n_tokens = len(array)
        # 没有文档号时注意力可以跨文档：简单，也是 GPT-2 的做法。
        self._document_starts = None
        if with_document_ids:
            # 分片自己知道文档从哪里开始；明说了则以明说的为准。
            if document_starts is None and self._source is not None:
                document_starts = self._source.document_starts
            self._document_starts = _checked_starts(document_starts, self.n_tokens)

    def read(self, starts: np.ndarray, block_size: int) -> Batch:
        """起点 (B,) → Batch (B, T)。越过末尾的位置补 0，且不计入损失。"""
        # ① 广播出每个位置；越界的先夹回来，免得索引出错
        positions = starts[:, None] + np.arange(block_size + 1)  # (B, T+1)
        inside = np.minimum(positions, self.n_tokens - 1)  # (B, T+1)
        ids = torch.from_numpy(self._array()[inside].astype(np.int64))  # (B, T+1)
        # ② 错开一位；必须各存一份：只有一行时 contiguous 不复制，盖住目标会连输入一起改掉
        inputs = ids[:, :-1].clone(memory_format=torch.contiguous_format)  # (B, T)
        targets = ids[:, 1:].clone(memory_format=torch.contiguous_format)  # (B, T)
        # ③ 只有评估的最后一行会越过末尾；因果注意力看不到右边，补什么都不影响前面
        if positions[-1, -1] >= self.n_tokens:
            beyond = torch.from_numpy(positions[:, 1:] >= self.n_tokens)  # (B, T)
            inputs[beyond] = 0
            targets[beyond] = IGNORE_INDEX
        # ④ 文档号：不大于该位置的最后一个文档起点
        document_ids = None
        if self._document_starts is not None:
            right = np.searchsorted(self._document_starts, inside[:, :-1], side="right")
            document_ids = torch.from_numpy(right.astype(np.int64) - 1)  # (B, T)
        return Batch(inputs, targets, document_ids, tuple(starts.tolist()))

    def _array(self) -> np.ndarray:
        """现取现用，不留住分片的数组：留住了，shard.close() 就放不开文件。"""
        if self._source is None:
            return self._plain
        self._source.check_intact()
        return self._source.tokens


def _checked_starts(starts: np.ndarray | Sequence[int] | None, n_tokens: int) -> np.ndarray:
    """文档起点必须从 0 严格上升：searchsorted 在乱序的数组上会给出错误的文档号而不报错。"""
    if starts is None:
        raise ValueError("with_document_ids=True needs document_starts; plain tokens have none")
    array: np.ndarray = np.asarray(starts)
    rising = array.ndim == 1 and len(array) > 0 and bool(np.all(np.diff(array) > 0))
    if not rising or array[0] != 0 or array[-1] >= n_tokens:
        raise ValueError(
            f"document_starts must rise strictly from 0 and stay below {n_tokens} tokens, "
            f"got {array[:5].tolist()}… ending at {array[-1:].tolist()}"
        )
    return array


def demo() -> None:
    """十二个词元、三篇文档，取两个窗口看看。

    第一个窗口跨过一个文档边界，看 document_ids 在哪里变；第二个越过末尾，看补齐与盖住。
    """
    tokens = np.array([11, 12, 13, 0, 21, 22, 23, 24, 0, 31, 32, 0], dtype=np.uint16)
    starts = [0, 4, 9]
    print(f"词元流（0 是文档分隔符）{tokens.tolist()}，文档起点 {starts}")
    reader = WindowReader(tokens, with_document_ids=True, document_starts=starts)
    batch = reader.read(np.array([1, 8]), 5)
    assert batch.document_ids is not None
    print("起点 1 与 8，T = 5；第二个窗口越过末尾，补 0 并盖住：")
    print(f"  inputs       {batch.inputs.tolist()}")
    print(f"  targets      {batch.targets.tolist()}")
    print(f"  document_ids {batch.document_ids.tolist()}")
    print(f"  window_ids   {batch.window_ids}")
    print(f"  计入损失的题数 {batch.n_targets}（2 × 5 − 盖住的 2）")
    # 承诺：错开一位；补齐的位置不算题；文档号与分隔符的位置一致
    assert batch.targets[0, :-1].tolist() == batch.inputs[0, 1:].tolist()
    assert batch.n_targets == 8
    assert batch.document_ids.tolist() == [[0, 0, 0, 1, 1], [1, 2, 2, 2, 2]]


if __name__ == "__main__":
    run_demo(demo)
