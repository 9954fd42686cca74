r"""猜得值不值？——边写边量，不值就不猜；所以猜错得再多，也不会比不猜慢多少。

猜 k 个，对的概率各是 α，一次前向平均定下的词元数是一个等比数列的和：

$$E(k) = 1 + \alpha + \dots + \alpha^k = \frac{1 - \alpha^{k+1}}{1 - \alpha},
\qquad \text{速度} = \frac{E(k)}{c + k\,e}$$

c 是不猜时一步的秒数，e 是多猜一个添的秒数（打草稿的一步，加上大模型多看一列）。三个数都是
量出来的：每台机器、每个模型、每段文本都不同，没有一张表能事先写好。

    量到的 α、c、e ──▶ 哪个 k 最快？──▶ k > 0：猜 k 个
                                    └▶ k = 0：不猜，偶尔试一次，看情形变了没有
                                              试的钱从「余额」里出，花完就不试

余额（budget）是这里的保证。记下「猜」一共亏了几秒（赚的不抵，免得前面赚的让后面乱花），亏损
超过总时间的几分之一就一律不猜；时间过去，额度才慢慢恢复。于是无论猜得多糟，

$$\text{总时间} \le \text{不猜的时间} \times \frac{1}{1 - \text{ALLOWED}} + \text{一次猜的时间}$$

时间用中位数，不用平均：偶尔卡一下（别的程序、垃圾回收）不该改变主意。

常见疑问：
    开头为什么先不猜？    不知道不猜要多久，就说不出猜得值不值；先量两步
    会不会每次都不一样？  猜几个会随机器的忙闲而变，写出的文本不会：见 speculative.py
    α 怎么随文本走？      旧的观察每次打折，十来次之后就淡了：写到重复的地方自然多猜

论文：Leviathan 等 2023 (arXiv:2211.17192) 3.2–3.4 节的 E(k) 与最佳的 k。

改哪里：允许亏多少 → ALLOWED；至多猜几个 → MOST；忘得多快 → FADE。
"""

from __future__ import annotations

from collections import deque
from statistics import median

from foundation.demonstration import run_demo

__all__ = ["MOST", "Pace"]

MOST = 8  # 一次至多猜几个
ALLOWED = 0.05  # 猜错至多白花总时间的几分之一
PROBING = 0.02  # 明知不值、只为看看情形变了没有的，至多花几分之一
FADE = 0.9  # 旧的对错每次打几折
REMEMBERED = 9  # 秒数取最近几次的中位数
FRESH = 32  # 连猜这么多次之后，插一步不猜的，重新量一量
GAIN = 1.02  # 快得不明显就不猜：多占内存，没有意思


class Pace:
    """决定这一步猜几个；每步之后把秒数与对错告诉它。

    用法：size → 写一步 → after(猜了几个, 对了几个, 秒)，反复地
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._plain: deque[float] = deque(maxlen=REMEMBERED)  # 不猜的一步
        self._extra: deque[float] = deque(maxlen=REMEMBERED)  # 多猜一个添多少
        # 对与错各先记一次：头一次猜错，不该就断定永远猜错
        self._hits, self._misses = 1.0, 1.0
        self._since_plain = 0  # 连猜了几次
        self.seconds = 0.0  # 一共写了多久
        self.n_plain, self.plain_total = 0, 0.0  # 其中不猜的：几步，几秒；报告用
        self.lost = 0.0  # 其中猜错白花的；赚的不抵

    @property
    def rate(self) -> float:
        """猜对一个的概率 α。"""
        return self._hits / (self._hits + self._misses)

    @property
    def plain_seconds(self) -> float | None:
        """不猜时一步几秒，全部不猜的步的平均；还没量过就是 None。

        报告快几倍时，总时间里有机器忙的时候；拿最近几步的中位数去比，忙闲一变就成了笑话
        """
        return self.plain_total / self.n_plain if self.n_plain else None

    def expected(self, k: int) -> float:
        """猜 k 个，平均定下几个：E(k)，在 1 与 k + 1 之间。"""
        return sum(self.rate**i for i in range(k + 1))

    def size(self, most: int) -> int:
        """这一步猜几个；most 是此刻放得下的。"""
        most = min(most, self.most)
        # ① 先量两步不猜的；连猜太久，也回头量一步
        if most < 1 or len(self._plain) < 2 or self._since_plain >= FRESH:
            return 0
        # ② 亏得多了：等额度恢复
        room = ALLOWED * self.seconds - self.lost
        if room <= 0:
            return 0
        # ③ 还不知道多猜一个要添多少：小小地试一次
        if not self._extra:
            return min(most, 2)
        # ④ 哪个 k 最快
        plain, extra = median(self._plain), max(median(self._extra), 0.0)
        speeds = [self.expected(k) / (plain + k * extra) for k in range(most + 1)]
        best = max(range(most + 1), key=lambda k: speeds[k])
        if speeds[best] > GAIN * speeds[0]:
            return best
        # ⑤ 不值得：隔一阵试一个，看情形变了没有；试的钱另有更紧的额度
        return 1 if room > extra and self.lost <= PROBING * self.seconds else 0

    def after(self, guessed: int, right: int, seconds: float) -> None:
        """写完一步：猜了几个（0 是没猜），对了几个，这一步用了几秒。"""
        self.seconds += seconds
        if not guessed:
            self._plain.append(seconds)
            self.n_plain, self.plain_total = self.n_plain + 1, self.plain_total + seconds
            self._since_plain = 0
            return
        self._since_plain += 1
        # 头一个猜错之后的都不算看过：它们本来就接在错的后面
        self._hits = FADE * self._hits + right
        self._misses = FADE * self._misses + (right < guessed)
        plain = median(self._plain) if self._plain else seconds
        self._extra.append((seconds - plain) / guessed)
        # 定下 right + 1 个，不猜要用 (right + 1)·c 秒；赚了就当没亏
        self.lost = max(0.0, self.lost + seconds - (right + 1) * plain)


def simulate(alpha: float, extra: float, n_tokens: int = 400) -> tuple[float, int]:
    """演示：不猜一步 1 秒，多猜一个添 extra 秒，每个都以 alpha 的概率猜对（按比例轮着来）。

    返回（比不猜快几倍，一共猜了几个）
    """
    pace, written, guessed, credit = Pace(), 0, 0, 0.0
    while written < n_tokens:
        k, right = pace.size(n_tokens - written - 1), 0
        # 不抽签，攒够一个算对一个：结果每次都一样
        for _ in range(k):
            credit += alpha
            if credit < 1:
                break
            credit -= 1
            right += 1
        pace.after(k, right, 1.0 + k * extra)
        guessed += k
        written += right + 1
    return n_tokens / pace.seconds, guessed


def demo() -> None:
    """猜得准与不准、草稿便宜与贵：它各猜多少，快多少；最坏也不到慢一成。"""
    print("写 400 个词元；α 猜对的概率，e 多猜一个的代价（不猜的一步是 1）")
    print("    α      e     比不猜快   一共猜了")
    for alpha in (0.0, 0.3, 0.6, 0.9):
        for extra in (0.05, 0.3, 1.0):
            speed, guessed = simulate(alpha, extra)
            print(f"  {alpha:4.1f}   {extra:4.2f}   {speed:6.2f} 倍   {guessed:5} 个")
            assert speed > 0.9  # 无论多糟
    # 几乎总对、几乎不要钱：猜满 8 个，一次定下九个，上限是 9 倍
    best, _ = simulate(1.0, 0.0)
    print(f"  全对而且白给：{best:.2f} 倍；总不对：{simulate(0.0, 3.0)[0]:.3f} 倍")
    assert best > 6


if __name__ == "__main__":
    run_demo(demo)
