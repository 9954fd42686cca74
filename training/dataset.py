r"""模型每一步读什么：怎样把一长串词元（token）切成批次（batch），既不漏、又随时可重现？

语言模型的每个位置都在做同一道题：看前文，猜下一个词元。所以「答案」不必标注，
把同一段词元错开一位就是（next-token prediction）：

    词元   t₀ t₁ t₂ t₃ t₄            一个窗口取 T+1 个词元（此处 T = 4）
    inputs  t₀ t₁ t₂ t₃               模型看到的
    targets    t₁ t₂ t₃ t₄            模型要猜的；T 个位置 = T 道题

公式：n 个词元共有 n−1 道题 (t_p → t_{p+1})。第 e 轮（epoch）抽一个偏移 δ_e ∈ [0, T)，排 W 个窗口：

$$W = \lceil (n-1)/T \rceil + 1, \qquad s_i = \mathrm{clip}(\delta_e - T + iT,\ 0,\ n-T-1)$$

    n = 11, T = 4, δ = 1     位置  0 1 2 3 4 5 6 7 8 9 10
    s₀ = clip(−3) = 0              ■ ■ ■ ■ ▫                  ■ 输入   ▫ 最后一个目标
    s₁ = 1                           ■ ■ ■ ■ ▫                两端被 clip 推回来的窗口会重叠，
    s₂ = 5                                   ■ ■ ■ ■ ▫        但没有一道题被漏掉
    s₃ = clip(9) = 6                           ■ ■ ■ ■ ▫

相邻起点相距至多 T，首尾又被 clip 到两端，所以每一轮都覆盖全部 n−1 道题；δ_e 每轮不同，
窗口边界也就每轮不同，没有哪个词元总是「没有前文」。

顺序：第 e 轮按 (seed, e) 打乱 W 个窗口，各轮首尾相接成一条无穷的「全局窗口序列」；
第 b 批就是其中第 b·B … b·B+B−1 个。因此批次是 (seed, b) 的纯函数（pure function）：
断点续训不必重放，跳到第 b 批即可；多张卡各取全局序列的一段，样本与单卡相同。

论文：Shuffling matters — Bottou, *Curiously Fast Convergence of Some SGD Algorithms*, 2009；
      每 (seed, step) 可重现的数据顺序 — Pythia, arXiv:2304.01373。

改哪里：换切法（例如每个文档单独成窗）→ TokenBatches._epoch_starts；换打乱方式 → _shuffled；
        换数据来源 → training/corpus.py；换存储格式 → training/shards.py；
        换任务（只在答案上算损失）→ 另写一个「批次号 → Batch」的可调用对象，训练循环不用改。
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from foundation.checks import check_int
from foundation.demonstration import run_demo
from tokenization.tokenizer import Tokenizer
from training.prepare import prepare_data

__all__ = [
    "IGNORE_INDEX",
    "Batch",
    "TokenBatches",
    "TokenSource",
    "prepare_data",
    "sequential_batches",
]

# 目标等于它的位置不计入损失；与 F.cross_entropy 的默认值一致。
IGNORE_INDEX = -100


@runtime_checkable
class TokenSource(Protocol):
    """能供应词元的东西：一般是 TokenShard，测试里可以是任何有这三样的对象。"""

    @property
    def tokens(self) -> np.ndarray:
        """一维整数数组，常是内存映射（memory map）：用到哪一页才读哪一页。"""

    @property
    def document_starts(self) -> np.ndarray:
        """每个文档第一个词元的位置，升序，第一个是 0。"""

    def check_intact(self) -> None:
        """底下的文件变短时抛 ValueError；不查就去读，操作系统会直接杀死进程。"""


@dataclass(frozen=True, eq=False)
class Batch:
    """一批样本。

    形状：inputs、targets、document_ids 都是 (B, T)
    类型：int64；window_ids 是每行第一个词元在分片中的位置，出了坏批次可据此回看原文
    """

    inputs: Tensor
    targets: Tensor
    document_ids: Tensor | None = None
    window_ids: tuple[int, ...] = ()

    @cached_property
    def n_targets(self) -> int:
        """计入损失的位置数。各批可能不同（补齐、只算答案），梯度累积要按它加权。"""
        return int((self.targets != IGNORE_INDEX).sum())

    def to(self, device: torch.device | str) -> Batch:
        """把张量搬到 device；已在那里时不复制。"""
        device = torch.device(device)

        def move(tensor: Tensor) -> Tensor:
            # 锁页内存（pinned memory）不会被换出，GPU 才能一边算一边自己来取。
            if device.type == "cuda" and tensor.device.type == "cpu":
                return tensor.pin_memory().to(device, non_blocking=True)
            return tensor.to(device)

        document_ids = None if self.document_ids is None else move(self.document_ids)
        moved = Batch(move(self.inputs), move(self.targets), document_ids, self.window_ids)
        # 趁数据还在 CPU 上数好：在 GPU 上数会让 CPU 停下来等它。
        vars(moved)["n_targets"] = self.n_targets
        return moved


class TokenBatches:
    """批次号 → Batch，(seed, 批次号) 的纯函数；每一轮覆盖每一个词元。

    公式：第 b 批 = 全局窗口序列的第 b·B … b·B+B−1 个窗口，可以跨轮
    形状：inputs、targets (B, T)；类型：int64
    错误：词元少于 T+1 个时抛 ValueError，并给出两个数
    """

    def __init__(
        self,
        tokens: TokenSource | np.ndarray | Tensor | Sequence[int],
        batch_size: int,
        block_size: int,
        *,
        seed: int,
        with_document_ids: bool = False,
        document_starts: np.ndarray | Sequence[int] | None = None,
    ) -> None:
        self.batch_size = check_int("batch_size", batch_size, 1)
        self.block_size = check_int("block_size", block_size, 1)
        self.seed = check_int("seed", seed, 0)
        self._gather = _Gather(tokens, with_document_ids, document_starts)
        self.n_tokens = self._gather.n_tokens
        if self.n_tokens < self.block_size + 1:
            raise ValueError(
                f"the corpus has {self.n_tokens} tokens, but one block needs block_size + 1 = "
                f"{self.block_size + 1}; give more text or a smaller block_size"
            )
        self.n_windows = -(-(self.n_tokens - 1) // self.block_size) + 1
        # 只记最近一轮的顺序；用一个元组整体替换，后台预取线程读到的总是成对的值。
        self._recent: tuple[int, np.ndarray] | None = None

    def __call__(self, index: int) -> Batch:
        """取第 index 批；与之前取过哪些批无关。"""
        first = check_int("index", index, 0) * self.batch_size
        numbers: np.ndarray = np.arange(first, first + self.batch_size, dtype=np.int64)
        return self._gather.windows(self.window_starts(numbers), self.block_size)

    @property
    def batches_per_epoch(self) -> float:
        """一轮合多少批；不必是整数，因为批次可以跨轮。"""
        return self.n_windows / self.batch_size

    def window_starts(self, numbers: np.ndarray) -> np.ndarray:
        """全局窗口号 → 窗口起点。世界大小（world size）怎样变，同一个号都指同一个窗口。

        形状：(N,) → (N,)
        """
        epochs, places = np.divmod(numbers, self.n_windows)
        starts: np.ndarray = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            starts[chosen] = self._epoch_starts(int(epoch))[places[chosen]]
        return starts

    def _epoch_starts(self, epoch: int) -> np.ndarray:
        recent = self._recent
        if recent is not None and recent[0] == epoch:
            return recent[1]
        order, draw = _shuffled(self.n_windows, self.seed, epoch)
        shift = draw % self.block_size
        grid: np.ndarray = shift - self.block_size + order * self.block_size  # (W,)
        starts: np.ndarray = np.clip(grid, 0, self.n_tokens - self.block_size - 1)
        self._recent = (epoch, starts)
        return starts


def sequential_batches(
    tokens: TokenSource | np.ndarray | Tensor | Sequence[int],
    batch_size: int,
    block_size: int,
    *,
    with_document_ids: bool = False,
    document_starts: np.ndarray | Sequence[int] | None = None,
) -> Iterator[Batch]:
    """按原顺序把整个分片切成互不重叠的块，供评估：每道题恰好出现一次。

    形状：(B, T)；最后一批可以少几行，最后一行不满 T 时 inputs 补 0、targets 补 −100
    错误：少于 2 个词元（一道题也没有）时抛 ValueError
    """
    check_int("batch_size", batch_size, 1)
    check_int("block_size", block_size, 1)
    gather = _Gather(tokens, with_document_ids, document_starts)
    if gather.n_tokens < 2:
        raise ValueError(
            f"evaluation needs at least 2 tokens (one input, one target), got {gather.n_tokens}"
        )

    # 检查在调用时做完；生成器的函数体要到第一次取值才会执行。
    def batches() -> Iterator[Batch]:
        starts: np.ndarray = np.arange(0, gather.n_tokens - 1, block_size, dtype=np.int64)
        for first in range(0, len(starts), batch_size):
            yield gather.windows(starts[first : first + batch_size], block_size)

    return batches()


class _Gather:
    """从一维词元里取窗口；两种切法共用。"""

    def __init__(
        self,
        tokens: TokenSource | np.ndarray | Tensor | Sequence[int],
        with_document_ids: bool,
        document_starts: np.ndarray | Sequence[int] | None,
    ) -> None:
        if isinstance(tokens, TokenSource):
            self._source: TokenSource | None = tokens
            array = tokens.tokens
            if document_starts is None:
                document_starts = tokens.document_starts
        else:
            self._source = None
            array = self._array = np.asarray(tokens)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(
                "tokens must be a one-dimensional array of integers, "
                f"got shape {array.shape}, dtype {array.dtype}"
            )
        self.n_tokens = len(array)
        self._document_starts = None
        if with_document_ids:
            self._document_starts = _checked_starts(document_starts, self.n_tokens)

    def windows(self, starts: np.ndarray, block_size: int) -> Batch:
        """起点 (B,) → Batch。越过末尾的位置补齐，且不计入损失。"""
        # 不在此对象里留住分片的数组：留住了，shard.close() 就放不开文件
        array = self._array if self._source is None else _intact(self._source)
        # ① 一次高级索引（fancy indexing）取出所有行，省去 Python 循环
        positions = starts[:, None] + np.arange(block_size + 1)  # (B, T+1)
        inside = np.minimum(positions, self.n_tokens - 1)
        ids = torch.from_numpy(array[inside].astype(np.int64))  # (B, T+1)
        # ② 错开一位：同一段词元既是题目又是答案
        inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()  # (B, T)
        # ③ 只有评估的最后一行会越过末尾
        if positions[-1, -1] >= self.n_tokens:
            beyond = torch.from_numpy(positions[:, 1:] >= self.n_tokens)
            inputs[beyond] = 0
            targets[beyond] = IGNORE_INDEX
        # ④ 文档号：不大于该位置的最后一个文档起点
        document_ids = None
        if self._document_starts is not None:
            found = np.searchsorted(self._document_starts, inside[:, :-1], side="right") - 1
            document_ids = torch.from_numpy(found.astype(np.int64))  # (B, T)
        return Batch(inputs, targets, document_ids, tuple(starts.tolist()))


def _intact(source: TokenSource) -> np.ndarray:
    source.check_intact()
    return source.tokens


def _shuffled(n: int, seed: int, epoch: int) -> tuple[np.ndarray, int]:
    """返回 0…n−1 的一个排列和一个额外的随机数，只取决于 (seed, epoch)。

    给每个窗口发一个 64 位随机数再排序。numpy 只保证位流（bit stream）永不改变，
    不保证 Generator.permutation 的算法不变；自己排序，换 numpy 版本也能续训。
    """
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
    return np.argsort(bits.random_raw(n), kind="stable"), int(bits.random_raw())


def _checked_starts(starts: np.ndarray | Sequence[int] | None, n_tokens: int) -> np.ndarray:
    if starts is None:
        raise ValueError("with_document_ids=True needs document_starts; plain tokens have none")
    array: np.ndarray = np.asarray(starts)
    sound = (
        array.ndim == 1 and len(array) > 0 and array[0] == 0 and bool(np.all(np.diff(array) > 0))
    )
    if not sound or array[-1] >= n_tokens:
        raise ValueError(
            f"document_starts must rise strictly from 0 and stay below {n_tokens} tokens, "
            f"got {array[:5].tolist()}… ending at {array[-1:].tolist()}"
        )
    return array


def demo() -> None:
    """从一句话走到一批张量，再把训练循环所依赖的三个承诺逐一验证。"""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "诗.txt")
        path.write_text("白日依山尽，黄河入海流。欲穷千里目，更上一层楼。", encoding="utf-8")
        _from_text_to_batch(path, Path(name, "小"))
        _promises(Path(name, "大"))


def _from_text_to_batch(path: Path, folder: Path) -> None:
    text = path.read_text(encoding="utf-8")
    print(f"① 文本（{len(text)} 个字）\n   {text}")
    train, val = prepare_data(path, "characters", folder, val_fraction=0.5)
    with train, val:
        tokenizer = Tokenizer.load(folder)
        print(f"② 编号：一字一号，词表 {tokenizer.vocab_size}；前一半训练，后一半验证")
        print(f"   训练 {train.tokens.tolist()}")
        print(f"   验证 {val.tokens.tolist()}（最后的 {tokenizer.end_id} 是 <|endoftext|>）")

        batches = TokenBatches(train, batch_size=2, block_size=4, seed=0)
        print(f"③ 窗口：{len(train)} 个词元，T = 4，每轮 {batches.n_windows} 个窗口，每轮重新打乱")
        for epoch in range(2):
            numbers: np.ndarray = np.arange(batches.n_windows) + epoch * batches.n_windows
            print(f"   第 {epoch} 轮的起点 {batches.window_starts(numbers).tolist()}")

        batch = batches(0)
        print(f"④ 第 0 批 {tuple(batch.inputs.shape)}：inputs 与 targets 错开一位")
        for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
            print(f"   inputs  {tokenizer.decode(inputs)}    {inputs}")
            print(f"   targets   {tokenizer.decode(targets)}  {targets}")
            assert inputs[1:] == targets[:-1]
        print("⑤ 第一行就是 4 道题：看前文，猜下一个字")
        for place in range(4):
            seen, wanted = batch.inputs[0, : place + 1].tolist(), batch.targets[0, place].item()
            print(f"   {tokenizer.decode(seen):　<4} → {tokenizer.decode([int(wanted)])}")


def _promises(folder: Path) -> None:
    train, val = prepare_data("python-docs", "characters", folder)
    with train, val:
        batches = TokenBatches(train, 32, 128, seed=7)
        print(f"⑥ 换成 python-docs：{len(train):,} 个词元，一轮 {batches.batches_per_epoch:.1f} 批")

        asked: np.ndarray = np.zeros(len(train) - 1, dtype=np.int64)
        for start in batches.window_starts(np.arange(batches.n_windows)).tolist():
            asked[start : start + 128] += 1
        twice = (asked > 1).sum() / len(asked)
        print(f"   承诺一：每轮问遍全部 {len(asked):,} 道题；两端重叠而多问的占 {twice:.3%}")
        assert asked.min() == 1

        far = 1_000_000
        first, again = batches(far), TokenBatches(train, 32, 128, seed=7)(far)
        other = TokenBatches(train, 32, 128, seed=8)(far)
        print(f"   承诺二：第 {far:,} 批直接取，与从头走到那里相同；换一个 seed 就不同")
        assert torch.equal(first.inputs, again.inputs)
        assert not torch.equal(first.inputs, other.inputs)

        whole = torch.cat([b.targets.flatten() for b in sequential_batches(val, 32, 128)])
        counted = whole[whole != IGNORE_INDEX]
        padding = len(whole) - len(counted)
        print(f"   承诺三：评估时 {len(val) - 1:,} 道题恰好各一次，补齐的 {padding} 个不算")
        assert torch.equal(counted, torch.from_numpy(val.tokens[1:].astype(np.int64)))


if __name__ == "__main__":
    run_demo(demo)
