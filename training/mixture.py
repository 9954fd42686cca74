r"""几份语料按比例混着学（mixture）：怎样既随时准确，又能从任何一步接着走？

书 70%、代码 30%：每一步都从各份里取，取多少由权重定。权重按词元算，而每个窗口（window）一样长，
所以只要定下「第 g 个窗口归哪一份」。随机抽？那样要存随机数的状态，份额也总在晃。这里用算的：

$$n_k(g) = \left\lfloor r_k(g)\, \frac{w_k}{w_k + \cdots + w_K} \right\rfloor, \qquad
  r_k(g) = g - \sum_{j<k} n_j(g)$$

r_k(g) 是前几份拿走之后还剩的个数，最后一份拿剩下的全部。

n_k(g) 是前 g 个窗口里归第 k 份的个数。g 加一，恰好有一份加一，那一份就得到第 g 个窗口，
而且是它自己的第 n_k(g) 个——于是「取哪一份的第几个」是 g 的纯函数，跳到哪一步都是一次除法：

    w = (0.7, 0.3)，全局窗口号 g   0  1  2  3  4  5  6  7  8  9 │ 10 …
    归书，是书的第几个                0  1     2  3     4  5  6 │
    归代码，是代码的第几个         0        1        2          │     十个里恰好七个、三个

误差有界：不论走到哪一步，|n_k(g) − g·w_k| < K，实际的份额以 K/g 的速度趋于权重；
而随机抽的误差约为 √g，走一百万步还差上千个窗口。

各份自己的次序仍由 TokenBatches 定（每轮打乱、一道题不漏），小的一份会多走几轮：

    第 g 个窗口 ──哪一份、第几个──▶ 那一份的 TokenBatches ──▶ 窗口 ──按原位放回──▶ Batch (B, T)

权重先化成整数（百万分之一为单位）：浮点的乘法在 g 很大时会差一，那时一个窗口会归两份或不归任何份。

为什么每一步恰有一份加一：n_1 每步加零或一（w_1 < 1）；没加时，r_2 加一，于是 n_2 加零或一；
一路推下去，最后一份接住剩下的那个一。它们的和总是 g，所以不多不少，恰好一份。

    量            TokenBatches（一份）      MixedBatches（几份）
    第 b 批       第 bB … bB+B−1 个窗口     同样；每个窗口先问「归谁」
    跳到第 b 批   一次除法                  K 次除法
    要存的状态    没有                      没有
    一轮          W 个窗口                  各份各有各的轮

常见疑问：
    一批之内是混的吗？      是：相邻的窗口轮流归各份，B 足够大时每批都接近权重。
    小的一份会被读几遍？    读了 g 个窗口时是 g·w_k·T ÷ 词元数遍；passes 告诉你。
    小的一份多读几遍会怎样？  头几遍还有用，再多就开始背；看 passes，别超过四遍左右。
    三份以上也行吗？        行：公式逐份地分，份数不限；每加一份，误差的上界加一。
    权重要不要加起来是 1？  不必，只看比例。
    为什么不直接把文件接起来？  那样份额由文件的大小定；书少而要紧时，就轮不到它。
    验证集怎么混？          不混：各份的验证集各量各的，合起来的损失会随权重变，不好比。
    权重中途能改吗？        能，但那是另一次训练；续训时会发现不同，并拒绝。

论文：怎样定权重 — Xie et al., *DoReMi*, arXiv:2305.10429；按份额的确定取法与误差 —
      Bresenham, *Algorithm for computer control of a digital plotter*, 1965。

试一试：把 counts_before 换成「每个窗口抽一次随机数」，看演示③的误差与④的断言。

改哪里：权重随步数变 → counts_before（必须仍是纯函数，且每个 g 恰有一份加一）。
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from foundation.checks import check_float, check_int
from foundation.demonstration import run_demo
from training.batch import Batch
from training.dataset import TokenBatches

__all__ = ["MixedBatches", "counts_before", "parse_weights", "whole_weights"]

# 权重的单位是百万分之一：够细，又使 g·w 在 int64 里放得下（g 可到 9·10¹²）。
UNITS = 1_000_000
# 语料的写法里，权重写在它后面：a.txt@0.7。
WEIGHT_MARK = "@"


def parse_weights(spec: str) -> list[tuple[str, float]] | None:
    """ "a.txt@0.7+b.jsonl@0.3" → [("a.txt", 0.7), ("b.jsonl", 0.3)]；没有写权重就是 None。

    错误：有的写了有的没写；权重不是正数；只有一份 → ValueError
    名字里本来就可以有 @：@ 后面不是数，或整个是一条存在的路径，就不算权重。

    >>> parse_weights("book.txt@7+hf:a/b:c:train@3")
    [('book.txt', 7.0), ('hf:a/b:c:train', 3.0)]
    >>> parse_weights("me@home.txt+b.txt") is None
    True
    """
    if os.path.exists(spec):
        return None
    # ① 逐份拆开；没有一份写了权重，就不是混合
    found = [_split_weight(part.strip()) for part in spec.split("+")]
    if all(weight is None for _, weight in found):
        return None
    # 让用户改一处写法，好过替他猜一个份额
    # ② 写就都写：没写的算多少，猜不得
    for name, weight in found:
        if weight is None:
            raise ValueError(
                f"give every source of {spec!r} a weight, such as {name}{WEIGHT_MARK}0.5, or none"
            )
        check_float(f"the weight of {name!r}", weight, exclusive_minimum=0.0)
    if len(found) == 1:
        raise ValueError(f"{spec!r} has a weight but only one source; join several with +")
    return [(name, float(weight)) for name, weight in found if weight is not None]


def _split_weight(part: str) -> tuple[str, float | None]:
    """一份的名字与权重。"""
    name, mark, number = part.rpartition(WEIGHT_MARK)
    if not mark or not name or os.path.exists(part):
        return part, None
    # @ 后面不是数：多半是邮箱、用户名，就当作名字的一部分
    try:
        return name, float(number)
    except ValueError:
        return part, None


def whole_weights(weights: Sequence[float]) -> list[int]:
    """权重 → 整数，和恰为 UNITS：先都舍去小数，余下的给舍去最多的几份。

    >>> whole_weights([1, 1, 1])
    [333334, 333333, 333333]
    """
    # 只看比例：7 与 3、0.7 与 0.3、70 与 30 是一回事
    total = sum(weights)
    shares = [weight / total * UNITS for weight in weights]
    units = [int(share) for share in shares]
    # 最大余数法：与议席的分配相同；次序相同的在前，所以结果确定
    order = sorted(range(len(shares)), key=lambda k: units[k] - shares[k])
    for k in order[: UNITS - sum(units)]:
        units[k] += 1
    # 一份也分不到的权重，等于没有这份语料，而用户以为有
    if min(units) == 0:
        raise ValueError(
            f"the weights {list(weights)} differ too much: the smallest is below one in {UNITS:,}"
        )
    return units


def counts_before(numbers: np.ndarray, units: Sequence[int]) -> np.ndarray:
    """前 g 个窗口里，归每一份的各有几个。

    公式：见文件开头；逐份从「还没分出去的」里取它的份额，向下取整，最后一份拿剩下的
    形状：numbers (N,) → (K, N)，每列之和等于 g

    >>> counts_before(np.arange(11), [700_000, 300_000])[0].tolist()
    [0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 7]
    """
    # 全用整数：浮点的 0.3·g 在 g 很大时差一，那时一个窗口会归两份
    left: np.ndarray = numbers.astype(np.int64)
    weight_left = sum(units)
    counts = []  # 一份一行
    # 最后一份不必除：拿剩下的，和才恰好是 g
    for unit in units[:-1]:
        taken: np.ndarray = left * unit // weight_left
        counts.append(taken)
        left, weight_left = left - taken, weight_left - unit
    counted: np.ndarray = np.stack([*counts, left])
    return counted


class MixedBatches:
    """批次号 → Batch，每批的行按权重来自几份语料；与 TokenBatches 用法相同。

    公式：全局窗口 g 归 n_k 增加的那一份，是它的第 n_k(g) 个窗口
    形状：inputs、targets (B, T)；window_ids 是「各份首尾相接」时的位置，用 locate 换回来
    错误：份数不足两份、批的大小不一致、权重不是正数 → ValueError
    """

    def __init__(self, sources: Sequence[TokenBatches], weights: Sequence[float]) -> None:
        # ① 凑在一起合不合：行数、行长都要相同，才拼得成一批
        if len(sources) < 2 or len(sources) != len(weights):
            raise ValueError(
                f"a mixture needs two sources or more, each with a weight; got {len(sources)} "
                f"sources and {len(weights)} weights"
            )
        shapes = {(source.batch_size, source.block_size) for source in sources}
        if len(shapes) > 1:
            raise ValueError(
                f"the sources of a mixture must have the same batch_size and block_size, "
                f"got {sorted(shapes)}"
            )
        for weight in weights:
            check_float("weight", weight, exclusive_minimum=0.0)
        self.sources = list(sources)
        self.units = whole_weights(weights)
        ((self.batch_size, self.block_size),) = shapes
        # ② 各份首尾相接时，每份从哪里开始：窗口的编号要说得出是哪一份的
        lengths = [source.n_tokens for source in sources]
        self._offsets = np.cumsum([0, *lengths])
        # 走完一遍「最先读完的那一份」要多少词元：估计步数时，把它当作语料的大小
        self.n_tokens = int(
            min(n * UNITS / unit for n, unit in zip(lengths, self.units, strict=True))
        )

    def __call__(self, index: int) -> Batch:
        """取第 index 批；与之前取过哪些批无关。"""
        first = check_int("index", index, 0) * self.batch_size
        owners, places = self.owners(np.arange(first, first + self.batch_size, dtype=np.int64))
        # 同一份的几行一次取齐，比一行一行取快
        # 各份取各的几行，再按原来的行号放回
        rows: list[np.ndarray] = []
        pieces: list[Batch] = []
        for k, source in enumerate(self.sources):
            mine = np.flatnonzero(owners == k)
            if len(mine):
                rows.append(mine)
                pieces.append(source.windows(places[mine]))
        # rows 接起来是「第几行从哪里来」，argsort 是它的逆：第 i 行现在在哪里
        back = torch.from_numpy(np.argsort(np.concatenate(rows)))  # (B,)
        window_ids = np.concatenate(
            [
                np.array(piece.window_ids) + self._offsets[owners[mine[0]]]
                for piece, mine in zip(pieces, rows, strict=True)
            ]
        )
        ids = [piece.document_ids for piece in pieces]
        return Batch(
            _joined([piece.inputs for piece in pieces], back),
            _joined([piece.targets for piece in pieces], back),
            # 文档号只在一行之内比较，各份各编各的也不会混
            _joined([each for each in ids if each is not None], back) if None not in ids else None,
            tuple(window_ids[back.numpy()].tolist()),
        )

    def owners(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """全局窗口号 → 归哪一份、是它的第几个：(N,) → (N,)、(N,)。"""
        # 归谁，就是看谁在 g → g+1 时加了一；加之前的个数，就是它自己的第几个
        before = counts_before(numbers, self.units)  # (K, N)
        after = counts_before(numbers + 1, self.units)
        owners = np.argmax(after - before, axis=0)  # 恰有一份加一
        return owners, np.take_along_axis(before, owners[None], axis=0)[0]

    def locate(self, window_id: int) -> tuple[int, int]:
        """batch.window_ids 里的编号 → (第几份, 在那一份里的位置)。"""
        # 与文档号的找法一样：不大于它的最后一个起点
        k = int(np.searchsorted(self._offsets, window_id, side="right")) - 1
        return k, window_id - int(self._offsets[k])

    def passes(self, n_batches: int) -> list[float]:
        """走完 n_batches 批时，各份各被读了几遍。"""
        # 每份的一遍是它的 n_windows 个窗口
        counts = counts_before(np.array([n_batches * self.batch_size]), self.units)[:, 0]
        return [
            float(count) / source.n_windows
            for count, source in zip(counts, self.sources, strict=True)
        ]

    @property
    def fingerprint(self) -> str | None:
        """各份的指纹与权重合成一个；有一份不知道，就是 None。续训时由它认出换了语料或权重。"""
        found = [source.fingerprint for source in self.sources]
        return None if None in found else sha256(f"{found} {self.units}".encode()).hexdigest()


def _joined(tensors: list[Tensor], order: Tensor) -> Tensor:
    """首尾相接，再按 order 排：(B, T)。

    order[i] 是「第 i 行现在排在接起来的第几个」
    """
    return torch.cat(tensors)[order]


def demo() -> None:
    """两份语料七三开：看归属、份额的误差、跳着取与顺着取相同。"""
    # 两份假语料：书长、代码短，所以代码会多读几遍
    book: np.ndarray = np.arange(0, 500) % 50
    code: np.ndarray = np.arange(0, 90) % 50 + 50  # 编号 50 以上的都是代码，一眼看得出
    sources = [TokenBatches(tokens, 10, 8, seed=1) for tokens in (book, code)]
    mixed = MixedBatches(sources, [0.7, 0.3])
    owners, places = mixed.owners(np.arange(10))
    # owners 与 places 都是窗口号的纯函数，与取过什么无关
    print("① 前十个窗口归谁（0 书，1 代码），各是自己的第几个")
    print(f"   归属 {owners.tolist()}\n   号   {places.tolist()}")
    assert owners.tolist().count(0) == 7

    batch = mixed(3)
    from_code = (batch.inputs >= 50).all(dim=1)
    print(f"② 第 3 批：{len(batch.inputs)} 行里 {int(from_code.sum())} 行是代码")
    assert int(from_code.sum()) == 3
    # 窗口的编号换回来，说的是同一份
    assert [mixed.locate(i)[0] == 1 for i in batch.window_ids] == from_code.tolist()

    print("③ 份额的误差：算的，与随机抽的")
    for g in (100, 10_000, 1_000_000):
        # 二项分布的标准差是 √(g·w·(1−w))，随 g 的平方根增长
        exact = abs(int(counts_before(np.array([g]), mixed.units)[1, 0]) - 0.3 * g)
        drawn = abs(int(np.random.default_rng(0).binomial(g, 0.3)) - 0.3 * g)
        print(f"   {g:>9,} 个窗口：差 {exact:.1f} 个；随机抽差 {drawn:.0f} 个")
        assert exact < 2

    # 另一个对象从没取过别的批，权重的写法也不同
    again = MixedBatches([TokenBatches(tokens, 10, 8, seed=1) for tokens in (book, code)], [7, 3])
    # 没有从头走过去：这正是断点续训要的
    far = 123_456
    print(f"④ 直接取第 {far:,} 批，与另一个新建的相同（权重写成 7 与 3 也一样）")
    assert torch.equal(mixed(far).inputs, again(far).inputs)
    print(
        f"⑤ 走完 100 批：书读了 {mixed.passes(100)[0]:.1f} 遍，代码 {mixed.passes(100)[1]:.1f} 遍"
    )
    assert mixed.passes(100)[1] > mixed.passes(100)[0]


if __name__ == "__main__":
    run_demo(demo)
