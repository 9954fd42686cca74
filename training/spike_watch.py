r"""损失突然跳高（loss spike），怎样当场看出来、查得到是哪几段文字，而不被一个 NaN 弄瞎？

跳高多半有一个病根：一段坏数据（几万个相同的字符、乱码），或学习率刚好踩空。NaN 有 train_step.py
拦着；这里管「还是有限数，却大得离谱」的。离谱要与平常比，平常 = 最近 n 个被接受的步：

$$\text{limit} = \operatorname{med}(x) + z\cdot\max\!\big(1.4826\cdot\operatorname{MAD}(x),\
  0.05\,|\operatorname{med}(x)|\big), \qquad
  \operatorname{MAD}(x) = \operatorname{med}\,|x - \operatorname{med}(x)|$$

    梯度的长度
      │                       ×  ← 超过 limit：一次跳高
      │- - - - - - - - - - - - - - - - - - -  limit
      │  . '. .' . '. ' .' . ' . .'.  '. '    中位数 ± MAD
      └──────────────────────────────▶ 步     │← 窗口：只收被接受的步 →│

为什么是中位数与 MAD，不是平均与标准差：平均只要收进一个 10³⁰，以后什么都不算大了；中位数要坏掉
一半的样本才会被带走。1.4826 使 MAD 在正态分布下等于标准差，z 才有「几个标准差」的意思。
为什么有 0.05：损失很稳时 MAD 近于 0，千分之一的抖动也会成了「十个标准差」。
为什么慢慢变的不报：匀速上升时，最新的值离中位数半个窗口，MAD 是四分之一个窗口，
    二者之比总是 2 / 1.4826 = 1.35，与升得多快无关；z 取得比它大得多，只有「突然」才报。
为什么 NaN 进不来：只收有限数；跳过的步（NaN，或 skip 时的跳高）没有更新权重，也不算「平常」。

看出来之后（TrainConfig.spike_action）：
    off    不看
    log    说一句、记一行，照常更新。默认：不改变权重，只多几微秒；梯度裁剪已经限住了这一步的长度
    skip   这一步不更新，像 NaN 那样跳过；连着 max_skipped_steps 步就停。大的梯度也可能是真的
           有用（罕见而正确的文字），跳过是个判断，所以要人明说

窗口随存档走（state_dict）：续训之后，哪一步报、哪一步跳过，与没停过的逐步相同。

查是哪段文字：警告与 metrics.jsonl 里有窗口编号（window ids），三行就能原样取回：

    from training.data_check import show_windows
    shard = TokenShard("data/…/train")        # 训练用的那个分片
    print(show_windows(shard, [81920, 4096], tokenizer, block_size=256, model=model))

论文：跳高时退回、跳过那几批 — Chowdhery et al., *PaLM*, arXiv:2204.02311 §5.1；按梯度的长度跳过 —
      OLMo 2, arXiv:2501.00656 §3；MAD — Hampel, *The Influence Curve*, JASA 1974。

改哪里：多大算跳高 → TrainConfig.spike_factor；换一种「平常」（例如滑动平均）→ RobustWindow；
        多看一个数 → SpikeWatch.update。
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from foundation.demonstration import run_demo

__all__ = ["SPIKE_ACTIONS", "RobustWindow", "Spike", "SpikeWatch"]

SPIKE_ACTIONS = ("off", "log", "skip")
NORMAL = 1.4826  # 正态分布下，MAD 乘它就是标准差
FLOOR = 0.05  # 尺度至少是中位数的这么多：太稳时，抖一抖不算跳


@dataclass(frozen=True)
class Spike:
    """一次跳高：什么、多大、平常多大、多大算高；四个数都有限，写得进 JSON。"""

    what: str  # loss 或 gradient norm
    value: float  # 这一步的
    median: float  # 平常的
    limit: float  # 超过它才算

    def __str__(self) -> str:
        """说给人听的一句。"""
        return (
            f"the {self.what} {self.value:.4g} is above {self.limit:.4g} (median {self.median:.4g})"
        )

    def to_dict(self) -> dict[str, Any]:
        """记进 metrics.jsonl 的样子。"""
        return asdict(self)


class RobustWindow:
    """最近 size 个有限数；问它「多大算离谱」。

    约定：没有攒满就不下结论（limit 为 None）：几个数的中位数说明不了平常
    """

    def __init__(self, size: int, factor: float) -> None:
        self.size = size  # n：看最近几步
        self.factor = factor  # z：高出几个「标准差」才算
        self._values: deque[float] = deque(maxlen=size)  # 满了，最旧的自己出去

    def add(self, value: float) -> None:
        """收一个数；NaN 与无穷大不收：排序遇上 NaN，中位数就没有意义了。"""
        if math.isfinite(value):
            self._values.append(value)

    def median_and_limit(self) -> tuple[float, float] | None:
        """平常多大、多大算高；还没攒满则 None。

        公式：med + z·max(1.4826·MAD, 0.05·|med|)
        代价：每步排序 n 个数，几十微秒；比起一步的几毫秒不算什么
        """
        if len(self._values) < self.size:
            return None
        median = _median(self._values)
        # 尺度也用中位数：用标准差，一个离谱的数就把尺子撑大了
        spread = NORMAL * _median(abs(value - median) for value in self._values)
        return median, median + self.factor * max(spread, FLOOR * abs(median))

    @property
    def values(self) -> list[float]:
        """现在收着的，从旧到新；存档用。"""
        return list(self._values)

    def load(self, values: Sequence[float]) -> None:
        """放回存下的；窗口改小了（allow_changes），只留最近的。"""
        self._values = deque((float(value) for value in values), maxlen=self.size)


def _median(values: Iterable[float]) -> float:
    """中位数；偶数个取中间两个的平均。"""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


class SpikeWatch:
    """看两个数：这一步的损失与梯度的长度（裁剪之前）；各有各的窗口。

    约定：只由走过的步决定，不看时间、不抽随机数；多进程时给它全体合起来的数，各进程的结论就相同
    """

    def __init__(self, action: str = "log", factor: float = 10.0, window: int = 64) -> None:
        self.action = action
        # 名字同时是警告里的叫法与存档里的键
        self.windows = {
            "loss": RobustWindow(window, factor),
            "gradient norm": RobustWindow(window, factor),
        }

    @property
    def skips(self) -> bool:
        """看到跳高就不更新？"""
        return self.action == "skip"

    def update(self, loss: float, norm: float) -> tuple[Spike, ...]:
        """看一步，返回跳高的；这一步若会被接受，就收进窗口。

        约定：只给它有限的步；NaN 的步由 train_step.py 跳过，不来问
        约定：log 时跳高的步也更新了权重，所以也收：水平真的变了，半个窗口之后就习惯了；
              skip 时不收：没有走的步，不是平常
        """
        if self.action == "off":
            return ()
        found = []
        values = {"loss": loss, "gradient norm": norm}
        for what, value in values.items():
            known = self.windows[what].median_and_limit()
            # 只看高的：损失忽然变低不是毛病
            if known is not None and value > known[1]:
                found.append(Spike(what, value, *known))
        # 没有走的步不收；否则连着跳几次，窗口就以为高的才是平常
        if not (found and self.skips):
            for what, value in values.items():
                self.windows[what].add(value)
        return tuple(found)

    def state_dict(self) -> dict[str, list[float]]:
        """随存档存的：JSON 里的浮点数原样读回，一个比特也不差。"""
        return {what: window.values for what, window in self.windows.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """放回；旧的存档里没有的，从空的窗口开始。"""
        for what, window in self.windows.items():
            window.load(state.get(what, ()))


def demo() -> None:
    """平常的抖动不报、慢慢涨不报、真的跳高报；NaN 弄不瞎它；平均与标准差会被弄瞎。"""

    def noise(step: int) -> float:
        return 0.1 * math.sin(12.9898 * step)  # 不用随机数，也像噪声

    watch = SpikeWatch()  # 默认的单子：64 步、10 倍
    spikes = {}  # 第几步 → 报了什么
    for step in range(400):
        # 损失慢慢降，梯度在 1 上下抖
        loss, norm = 3.0 - step / 400 + noise(step), 1.0 + noise(step + 7)
        if step == 300:
            norm = 9.0  # 一批坏数据
        if found := watch.update(loss, norm):
            spikes[step] = found
    print("① 400 步里只有第 300 步报：")
    print(f"   {spikes[300][0]}")
    assert list(spikes) == [300]

    print("② 慢慢涨不报，突然涨才报；两次都从 1 涨到 3")
    for what, curve in (
        ("200 步里匀速", lambda s: 1 + 2 * min(1.0, s / 200)),
        ("第 200 步突然", lambda s: 1.0 if s < 200 else 3.0),
    ):
        watch = SpikeWatch()
        told = [s for s in range(300) if watch.update(1.0, curve(s) + noise(s) / 5)]
        print(f"   {what}：报了 {len(told)} 步" + (f"，从第 {told[0]} 步起" if told else ""))
        assert bool(told) == (what == "第 200 步突然")
    # log 时窗口会习惯新的水平，不会一直报下去
    assert len(told) <= 33

    print("③ 窗口里混进 NaN、无穷大与一个 10³⁰，再来一个 9")
    window = RobustWindow(64, 10.0)
    numbers = [1.0 + noise(step) for step in range(64)] + [math.nan, math.inf, 1e30]
    for number in numbers:
        window.add(number)
    known = window.median_and_limit()
    assert known is not None
    # 平均也不收 NaN，公平地比：弄瞎它的是那个有限的 10³⁰
    finite = [number for number in numbers if math.isfinite(number)]
    mean = sum(finite) / len(finite)
    deviation = math.sqrt(sum((number - mean) ** 2 for number in finite) / len(finite))
    print(f"   中位数的门槛 {known[1]:.2f}；平均 + 10 个标准差的门槛 {mean + 10 * deviation:.0e}")
    # 9 是平常的九倍：中位数看得见，平均看不见
    assert known[1] < 9 < mean + 10 * deviation


if __name__ == "__main__":
    run_demo(demo)
