r"""模型每一步读什么：怎样把一长串词元（token）切成批次（batch），既不漏、又随时可重现？

语言模型的每个位置都在做同一道题：看前文，猜下一个词元。所以「答案」不必标注，
把同一段词元错开一位就是（next-token prediction）：

    词元     t₀ t₁ t₂ t₃ t₄           一个窗口取 T+1 个词元（此处 T = 4）
    inputs   t₀ t₁ t₂ t₃              模型看到的
    targets     t₁ t₂ t₃ t₄           模型要猜的；T 个位置 = T 道题

公式：n 个词元共有 n−1 道题 (t_p → t_{p+1})。第 e 轮（epoch）抽一个偏移 δ_e ∈ [0, T)，排 W 个窗口：

$$W = \lceil (n-1)/T \rceil + 1, \qquad s_i = \mathrm{clip}(\delta_e - T + iT,\ 0,\ n-T-1)$$

    n = 11, T = 4, δ = 1     位置  0 1 2 3 4 5 6 7 8 9 10
    s₀ = clip(−3) = 0              ■ ■ ■ ■ ▫                  ■ 输入   ▫ 最后一个目标
    s₁ = 1                           ■ ■ ■ ■ ▫                两端被 clip 推回来的窗口会重叠，
    s₂ = 5                                   ■ ■ ■ ■ ▫        但没有一道题被漏掉
    s₃ = clip(9) = 6                           ■ ■ ■ ■ ▫

为什么一道不漏：相邻起点相距至多 T，而每个窗口恰好盖住 T 道题，中间便没有缝；
s₀ 被推到 0，最后一个起点不小于 n−1−T，也就被推到 n−T−1，两端都够得着。
为什么 W 固定：δ 怎样变，每轮都是 W 个窗口，于是「第 k 个窗口在第几轮」只是一次除法。
为什么要 δ：没有它，窗口边界永远落在同样的地方，边界后的词元永远没有前文可看。

顺序：第 e 轮按 (seed, e) 打乱 W 个窗口，各轮首尾相接成一条无穷的「全局窗口序列」：

    轮      │──────── 第 0 轮 ────────│──────── 第 1 轮 ────────│─ …
    窗口号   0   1   2   3   4   5   6   7   8   9  10  11  12  13   …     （W = 7）
    批次号  │── 第 0 批 ──│── 第 1 批 ──│── 第 2 批 ──│── 第 3 批 ─…        （B = 3，可以跨轮）

第 b 批就是第 b·B … b·B+B−1 个窗口，是 (seed, b) 的纯函数（pure function）。由此：
    断点续训   不必重放，也不必保存迭代器的状态，跳到第 b 批即可
    多张显卡   各取全局序列的一段，卡数怎样变，样本与单卡相同
    梯度累积   微批次（micro-batch）号 = 步 × 累积次数 + 第几个，同样是跳着取

常见疑问：
    为什么不用 torch 的 DataLoader？  它为「慢」的数据（图片解码）准备了多进程；这里一批只是一次
                                      内存索引，而多进程反而使「从第 b 批继续」变得困难。
    为什么不是每步随机抽起点？       那样一轮里有一大截题一次也抽不到（演示⑥量给你看）。
    验证集也打乱吗？                 不。sequential_batches 按顺序、不重叠，每道题恰好一次。

试一试：
    在 _epoch_starts 里令 shift = 0：覆盖仍然完整，但每一轮切出的窗口完全相同；
    把 W 的 +1 去掉：承诺一的断言会失败，少一个窗口就有题被漏掉；
    令 batch_size=1：批次号就是窗口号，最容易看清顺序。

论文：打乱后逐一取用，收敛快于有放回抽样 — Bottou, *Curiously Fast Convergence of Some SGD
      Algorithms*, 2009；每步数据可重现 — Biderman et al., *Pythia*, arXiv:2304.01373。

改哪里：换切法（例如每个文档单独成窗）→ TokenBatches._epoch_starts；换打乱方式 → _shuffled；
        一批里装什么 → batch.py；语料从哪里来 → corpus.py；怎样存 → shards.py；
        几份语料按比例混 → mixture.py；
        换任务 → 另写一个「批次号 → Batch」的可调用对象，训练循环不用改。
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from foundation.checks import check_int
from foundation.demonstration import run_demo
from tokenization.tokenizer import Tokenizer
from training.batch import IGNORE_INDEX, Batch, Tokens, TokenSource, WindowReader
from training.prepare import prepare_data

__all__ = [
    "IGNORE_INDEX",
    "Batch",
    "TokenBatches",
    "TokenSource",
    "prepare_data",
    "sequential_batches",
]


class TokenBatches:
    """批次号 → Batch，(seed, 批次号) 的纯函数；每一轮覆盖每一个词元。

    公式：第 b 批 = 全局窗口序列的第 b·B … b·B+B−1 个窗口，可以跨轮
    形状：inputs、targets (B, T)；with_document_ids=True 时还有 document_ids (B, T)
    类型：int64；tokens 可以是 TokenShard、数组、张量或列表
    参数：batch_size 是 B，block_size 是 T（不超过模型的 max_seq_len）；seed 决定全部顺序；
          document_starts 只在 tokens 不是分片、又要文档号时才需要给
    错误：词元少于 T+1 个时抛 ValueError，并给出两个数；批次号为负时也抛
    """

    def __init__(
        self,
        tokens: Tokens,
        batch_size: int,
        block_size: int,
        *,
        seed: int,
        with_document_ids: bool = False,
        document_starts: np.ndarray | Sequence[int] | None = None,
    ) -> None:
        # 「一批多少行、一行多长」都可以改动而不影响别的：总题数 = B·T
        self.batch_size = check_int("batch_size", batch_size, 1)
        self.block_size = check_int("block_size", block_size, 1)
        self.seed = check_int("seed", seed, 0)
        self._reader = WindowReader(
            tokens, with_document_ids=with_document_ids, document_starts=document_starts
        )
        self.n_tokens = self._reader.n_tokens
        # 不补齐短语料：补出来的题没有内容，而用户多半是指错了文件。
        if self.n_tokens < self.block_size + 1:
            raise ValueError(
                f"the corpus has {self.n_tokens} tokens, but one block needs block_size + 1 = "
                f"{self.block_size + 1}; give more text or a smaller block_size"
            )
        self.n_windows = -(-(self.n_tokens - 1) // self.block_size) + 1  # 向上取整 + 1
        # 只记最近一轮的顺序；用一个元组整体替换，后台预取线程读到的总是成对的值。
        self._recent: tuple[int, np.ndarray] | None = None

    def __call__(self, index: int) -> Batch:
        """取第 index 批；与之前取过哪些批无关。

        第 0、1、2… 批依次取就是训练；取 step × 累积次数 + a 就是梯度累积的第 a 个微批次。
        """
        first = check_int("index", index, 0) * self.batch_size
        return self.windows(np.arange(first, first + self.batch_size, dtype=np.int64))  # (B,)

    def windows(self, numbers: np.ndarray) -> Batch:
        """取任意几个全局窗口号的窗口，一个一行；几份语料混着学时用它（mixture.py）。"""
        return self._reader.read(self.window_starts(numbers), self.block_size)

    @property
    def batches_per_epoch(self) -> float:
        """一轮合多少批；不必是整数，因为批次可以跨轮。"""
        return self.n_windows / self.batch_size

    @property
    def fingerprint(self) -> str | None:
        """语料内容的 SHA-256：续训时核对语料没有换过，连还没读到的地方也算；不知道就是 None。

        一批的内容只担保那几个窗口，它担保全部（见 run_description.py）
        """
        return self._reader.fingerprint

    def window_starts(self, numbers: np.ndarray) -> np.ndarray:
        """全局窗口号 → 窗口起点；将来的多卡各取一段窗口号，调用的也是它。

        公式：轮 e = ⌊号 / W⌋，轮内第 (号 mod W) 个
        形状：(N,) → (N,)
        """
        epochs, places = np.divmod(numbers, self.n_windows)
        starts: np.ndarray = np.empty_like(numbers)
        # 多数批次只涉及一轮；语料很短而批次很大时，一批可以跨许多轮。
        for epoch in np.unique(epochs):
            chosen = epochs == epoch  # (N,)
            starts[chosen] = self._epoch_starts(int(epoch))[places[chosen]]  # (W,) → 选中的几个
        return starts

    def _epoch_starts(self, epoch: int) -> np.ndarray:
        """一轮的全部窗口起点，已打乱：(W,)。

        代价：每轮排序一次，O(W log W) 时间、8W 字节；跳到任何一轮都只付这一次。
        """
        recent = self._recent
        if recent is not None and recent[0] == epoch:
            return recent[1]
        # ① 同一个位流先给出排列，再给出这一轮的偏移
        order, draw = _shuffled(self.n_windows, self.seed, epoch)  # (W,)
        shift = draw % self.block_size
        # ② 规则的网格，再把伸出两端的窗口推回来
        grid: np.ndarray = shift - self.block_size + order * self.block_size  # (W,)
        starts: np.ndarray = np.clip(grid, 0, self.n_tokens - self.block_size - 1)  # (W,)
        self._recent = (epoch, starts)
        return starts


def sequential_batches(
    tokens: Tokens,
    batch_size: int,
    block_size: int,
    *,
    with_document_ids: bool = False,
    document_starts: np.ndarray | Sequence[int] | None = None,
) -> Iterator[Batch]:
    """按原顺序把整个分片切成互不重叠的块，供评估：每道题恰好出现一次。

    形状：(B, T)；最后一批可以少几行，最后一行不满 T 时 inputs 补 0、targets 补 −100
    错误：少于 2 个词元（一道题也没有）时抛 ValueError；比一块短的分片是可以的
    """
    check_int("batch_size", batch_size, 1)
    check_int("block_size", block_size, 1)
    reader = WindowReader(
        tokens, with_document_ids=with_document_ids, document_starts=document_starts
    )
    if reader.n_tokens < 2:
        raise ValueError(
            f"evaluation needs at least 2 tokens (one input, one target), got {reader.n_tokens}"
        )

    # 检查在调用时做完；生成器的函数体要到第一次取值才会执行，错误会冒在别处。
    def batches() -> Iterator[Batch]:
        # 到 n−1 为止：最后一个词元没有下一个，不能作输入
        starts: np.ndarray = np.arange(0, reader.n_tokens - 1, block_size, dtype=np.int64)
        for first in range(0, len(starts), batch_size):
            yield reader.read(starts[first : first + batch_size], block_size)

    return batches()


def _shuffled(n: int, seed: int, epoch: int) -> tuple[np.ndarray, int]:
    """返回 0…n−1 的一个排列和一个额外的随机数，只取决于 (seed, epoch)。

    给每个窗口发一个 64 位随机数，再按它排序。为什么不用 Generator.permutation：
    numpy 只保证 PCG64 的位流（bit stream）永不改变，不保证 permutation 的算法不变；
    自己排序，换了 numpy 版本也能接着同样的顺序训练。
    SeedSequence 把 (seed, epoch) 搅匀，所以相邻的种子、相邻的轮次不会给出相似的顺序。
    """
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
    # 两个 64 位数相同的机会可以忽略；万一相同，稳定排序也使结果确定。
    return np.argsort(bits.random_raw(n), kind="stable"), int(bits.random_raw())


def demo() -> None:
    """从一句话走到一批张量，再把训练循环所依赖的三个承诺逐一验证。

    前半用二十来个字，每一步都能用眼睛核对；后半换成真的语料，用断言核对。
    """
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "诗.txt")
        path.write_text("白日依山尽，黄河入海流。欲穷千里目，更上一层楼。", encoding="utf-8")
        _from_text_to_batch(path, Path(name, "小"))
        _promises(Path(name, "大"))


def _from_text_to_batch(path: Path, folder: Path) -> None:
    """文本 → 编号 → 分片 → 窗口 → 批次 → 题；每一步都印出来。"""
    text = path.read_text(encoding="utf-8")
    print(f"① 文本（{len(text)} 个字）\n   {text}")
    # 一个文件只有一篇文档，没法按文档划分，于是切尾：末尾的 val_fraction 归验证集
    train, val = prepare_data(path, "characters", folder, val_fraction=0.5)
    with train, val:
        tokenizer = Tokenizer.load(folder)
        print(f"② 编号：一字一号，词表 {tokenizer.vocab_size}；前一半训练，后一半验证")
        print(f"   训练 {train.tokens.tolist()}")
        print(f"   验证 {val.tokens.tolist()}（最后的 {tokenizer.end_id} 是 <|endoftext|>）")

        # 两轮的起点不同：偏移 δ 换了，顺序也换了；小语料上两端的重叠很显眼，大语料上可以忽略
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
        # 因果掩码（causal mask）使四个位置各看各的前文，所以一次前向就答完四道题
        print("⑤ 第一行就是 4 道题：看前文，猜下一个字")
        for place in range(4):
            seen, wanted = batch.inputs[0, : place + 1].tolist(), batch.targets[0, place].item()
            print(f"   {tokenizer.decode(seen):　<4} → {tokenizer.decode([int(wanted)])}")


def _promises(folder: Path) -> None:
    """在真的语料上验证三个承诺：每轮不漏、纯函数、评估不重不漏。

    训练循环的断点续训、梯度累积、多卡，都只靠这三条；哪一条破了，这里就会报错。
    """
    train, val = prepare_data("python-docs", "characters", folder)
    with train, val:
        batches = TokenBatches(train, 32, 128, seed=7)
        print(f"⑥ 换成 python-docs：{len(train):,} 个词元，一轮 {batches.batches_per_epoch:.1f} 批")

        # 承诺一：覆盖。与「每步随机抽起点」对照：抽同样多的窗口，许多题一次也没问到
        numbers: np.ndarray = np.arange(batches.n_windows)
        asked = _times_asked(batches.window_starts(numbers), 128, len(train))
        random_starts = np.random.default_rng(0).integers(0, len(train) - 128, len(numbers))
        missed = float((_times_asked(random_starts, 128, len(train)) == 0).mean())
        print(f"   承诺一：每轮问遍全部 {len(asked):,} 道题，多问的占 {(asked > 1).mean():.3%}")
        print(f"           若随机抽起点，一轮漏掉 {missed:.1%}（1/e = {np.exp(-1):.1%}）")
        assert asked.min() == 1
        assert abs(missed - np.exp(-1)) < 0.03

        # 承诺二：纯函数。两个各自新建的对象，不曾取过前面的批次，取到的却一样
        far = 1_000_000
        first, again = batches(far), TokenBatches(train, 32, 128, seed=7)(far)
        other = TokenBatches(train, 32, 128, seed=8)(far)
        print(f"   承诺二：第 {far:,} 批直接取，与从头走到那里相同；换一个 seed 就不同")
        assert torch.equal(first.inputs, again.inputs)
        assert not torch.equal(first.inputs, other.inputs)

        # 承诺三：评估不重不漏。把所有目标接起来，盖住补齐的，就是原来的词元流
        whole = torch.cat([b.targets.flatten() for b in sequential_batches(val, 32, 128)])
        counted = whole[whole != IGNORE_INDEX]
        padding = len(whole) - len(counted)
        print(f"   承诺三：评估时 {len(val) - 1:,} 道题恰好各一次，补齐的 {padding} 个不算")
        assert torch.equal(counted, torch.from_numpy(val.tokens[1:].astype(np.int64)))


def _times_asked(starts: np.ndarray, block_size: int, n_tokens: int) -> np.ndarray:
    """每道题被问几次：(n−1,)。窗口在起点处 +1、终点处 −1，累加起来就是覆盖次数。"""
    edges: np.ndarray = np.zeros(n_tokens, dtype=np.int64)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + block_size, -1)
    asked: np.ndarray = np.cumsum(edges)[:-1]
    return asked


if __name__ == "__main__":
    run_demo(demo)
