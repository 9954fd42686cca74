r"""算力有限，模型该多大、数据该多少？练完的损失大约是几？——缩放定律（scaling law）。

把许多大小不一的训练画在一起，损失落在一张很平滑的曲面上：N 是参数个数，D 是词元数，

$$L(N, D) = E + \frac{A}{N^{\alpha}} + \frac{B}{D^{\beta}}$$

    E      数据本身的不确定：再大的模型、再多的数据也到不了更低
    A/N^α  模型太小的代价：只加数据，这一项不动
    B/D^β  数据太少的代价：只加参数，这一项不动

训练的计算量 C ≈ 6·N·D（gpt_model/sizes.py）。C 定了，N 大 D 就小，两项此消彼长：

    L │╲                      ╱    在 C = 6ND 上求导，令它为 0：
      │ ╲                   ╱      αA/N^α = βB/D^β（两项的边际收益相等），于是
      │   ╲__           __╱
      │      ╲___•___╱             N* = G·(C/6)^{β/(α+β)}     G = (αA / βB)^{1/(α+β)}
      └──────────┴───────── N      D* = (C/6)^{α/(α+β)} / G
       数据多      N*   模型大

怎样从几次训练求出五个常数？对数空间里的 Huber 损失（偶尔一次练坏了，不会把曲面拉歪）：

$$\min_{E,A,B,\alpha,\beta}\ \sum_i
  \mathrm{Huber}_\delta\bigl(\log \hat L(N_i, D_i) - \log L_i\bigr)$$

它不是凸的，从一个起点出发可能停在半路。但 α、β 一旦给定，余下三个是**线性**最小二乘：
所以先在 α × β 的格子上解线性方程，挑最好的几个作起点，再用 L-BFGS 一起磨细。

能信几分？下面两组常数是在**他们的**语料、分词器、架构与学习率上拟合的，单位是 nats/词元。
换了词表，一个词元装的字节就不同，损失的数不能直接比；能借用的是形状与量级。
要准，就用自己的小模型拟合一条自己的（benchmarks/scaling_laws.py）。

论文：Chinchilla — Hoffmann et al. 2022, arXiv:2203.15556（方法三）；重新拟合 —
      Besiroglu et al. 2024, arXiv:2404.10102：原文的拟合没有收敛，常数又只给了两三位；
      更早的 Kaplan et al. 2020, arXiv:2001.08361 没有随长度调学习率，把 N 估得太重。

改哪里：换一组常数 → LAWS；对离群的更宽容 → HUBER_DELTA；
        别的形状（例如数据重复几遍，arXiv:2305.16264）→ ScalingLaw.loss。
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from foundation.checks import check_float
from foundation.demonstration import run_demo

__all__ = ["CHINCHILLA", "LAWS", "REPLICATION", "ScalingLaw", "fit_scaling_law"]

FLOPS_PER_PARAMETER = 6  # 每个参数对每个词元：前向 2 次，反向 4 次
HUBER_DELTA = 1e-3  # 对数空间里差千分之一以内算平方，以外算绝对值；论文用的数
N_STARTS = 4  # 从格子上最好的几个点出发
SMALLEST_FIT = 5  # 五个未知数，至少五个点


@dataclass(frozen=True)
class ScalingLaw:
    """一张损失曲面的五个常数；E、A、B 的单位与损失相同（nats/词元）。"""

    E: float  # 不可约的损失
    A: float  # 模型大小的系数
    alpha: float  # 模型每大一倍，A 那一项乘 2^−α
    B: float  # 数据多少的系数
    beta: float

    def __post_init__(self) -> None:
        """错误：E 为负，或其余不是正数 → ValueError，写明是哪个、是几。"""
        for name, value in asdict(self).items():
            # E = 0 是允许的：数据完全可预测
            lowest = {"minimum": 0.0} if name == "E" else {"exclusive_minimum": 0.0}
            check_float(name, value, **lowest)

    def loss(self, n: float, d: float) -> float:
        """N 个参数练 D 个词元，大约到多少。

        公式：E + A/N^α + B/D^β
        """
        check_float("n", n, exclusive_minimum=0)
        check_float("d", d, exclusive_minimum=0)
        return self.E + self.A * math.pow(n, -self.alpha) + self.B * math.pow(d, -self.beta)

    def optimal(self, compute: float) -> tuple[float, float]:
        """这么多次浮点运算，最好的 (N*, D*)。

        公式：N* = G·(C/6)^{β/(α+β)}，D* = (C/6)/N*，G = (αA/βB)^{1/(α+β)}
        """
        check_float("compute", compute, exclusive_minimum=0)
        product = compute / FLOPS_PER_PARAMETER  # N·D
        total = self.alpha + self.beta
        balance = (self.alpha * self.A / (self.beta * self.B)) ** (1 / total)  # G
        n = balance * product ** (self.beta / total)
        return n, product / n  # 相乘恰好是 C/6，不受舍入影响


# 原文方法三，常数是论文里舍入过的：由它算出的 D*/N* 明显大于论文主张的 20
CHINCHILLA = ScalingLaw(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28)
# 从原文的图里读出数据重新拟合：与论文另外两种方法的 20 对上了
REPLICATION = ScalingLaw(E=1.8172, A=482.01, alpha=0.3478, B=2085.43, beta=0.3658)
LAWS = {"chinchilla": CHINCHILLA, "replication": REPLICATION}


def fit_scaling_law(points: Sequence[tuple[float, float, float]]) -> ScalingLaw:
    """由若干次训练 (N, D, 损失) 求五个常数。

    公式：对数空间的 Huber 损失，见本课开头；确定性的，不用随机数
    错误：点少于五个，或 N、D 不足三种 → ValueError：一项有系数、指数两个未知数，E 又是公共的，
         两种大小的差只给得出一个方程
    """
    check_points(points)
    table = torch.tensor([tuple(map(float, point)) for point in points], dtype=torch.float64)
    n, d, loss = table.log().unbind(1)  # 各 (P,)，都取对数
    # ① 以几何平均为单位：A/N^α 变成 a·(N/N₀)^{−α}，系数与指数就不再互相牵扯
    n_center, d_center = n.mean(), d.mean()
    n, d = n - n_center, d - d_center
    # ② 几个起点各自磨细，取最低的
    refined = [refine(start, n, d, loss) for start in starting_points(n, d, loss.exp())]
    best = min(refined, key=lambda theta: float(objective(theta, n, d, loss)))
    e, a, b, alpha, beta = best.exp().tolist()
    # ③ 换回原来的单位：A = a·N₀^α
    return ScalingLaw(
        E=e,
        A=a * math.exp(alpha * float(n_center)),
        alpha=alpha,
        B=b * math.exp(beta * float(d_center)),
        beta=beta,
    )


def check_points(points: Sequence[tuple[float, float, float]]) -> None:
    """够不够、对不对：求不出来的，要先说为什么，而不是给五个没有意义的数。"""
    if len(points) < SMALLEST_FIT:
        raise ValueError(f"a fit needs at least {SMALLEST_FIT} points, got {len(points)}")
    for point in points:
        for name, value in zip(("n", "d", "loss"), point, strict=True):
            check_float(name, value, exclusive_minimum=0)
    for column, name in enumerate(("model sizes n", "numbers of tokens d")):
        kinds = {point[column] for point in points}
        if len(kinds) < 3:
            raise ValueError(f"a fit needs at least 3 different {name}, got {len(kinds)}")


def predicted_log_loss(theta: Tensor, n: Tensor, d: Tensor) -> Tensor:
    """log L̂：三项在对数里相加，用 logsumexp 就不会溢出。

    形状：theta (5,) = log(E, a, b, α, β)，取对数所以一律是正的；n、d (P,) → (P,)
    """
    e, a, b = theta[:3]
    alpha, beta = theta[3:].exp()
    # log(exp e + exp(a − α·log N) + exp(b − β·log D))
    terms = torch.stack([e.expand_as(n), a - alpha * n, b - beta * d])  # (3, P)
    return terms.logsumexp(0)


def objective(theta: Tensor, n: Tensor, d: Tensor, loss: Tensor) -> Tensor:
    """要最小化的数：Huber(log L̂ − log L) 之和，除以 δ² 使它的大小与 1 相当。"""
    error = predicted_log_loss(theta, n, d)
    total = torch.nn.functional.huber_loss(error, loss, reduction="sum", delta=HUBER_DELTA)
    return total / HUBER_DELTA**2


def starting_points(n: Tensor, d: Tensor, loss: Tensor) -> list[Tensor]:
    """α × β 的格子上，每一格解一次线性最小二乘，留下最好的几个。

    公式：L ≈ [1, N^−α, D^−β]·(E, a, b)；解出负的就夹到很小的正数
    """
    exponents = torch.linspace(0.1, 1.0, 10, dtype=torch.float64).tolist()
    found = []
    for alpha in exponents:
        for beta in exponents:
            features = torch.stack([torch.ones_like(n), (-alpha * n).exp(), (-beta * d).exp()], 1)
            solution = torch.linalg.lstsq(features, loss[:, None]).solution[:, 0]  # (3,)
            solution = solution.clamp_min(1e-3 * float(loss.min()))
            # 夹过之后再量：负的系数拟合得再好也不算
            error = float((features @ solution - loss).square().sum())
            theta = [*solution.tolist(), alpha, beta]
            found.append((error, torch.tensor(theta, dtype=torch.float64).log()))
    found.sort(key=lambda pair: pair[0])
    return [theta for _, theta in found[:N_STARTS]]


def refine(start: Tensor, n: Tensor, d: Tensor, loss: Tensor) -> Tensor:
    """L-BFGS：用最近几步的梯度之差估计曲率，五个未知数几十步就到底。"""
    theta = start.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=500,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",  # 没有它，Huber 的折角处会来回跳
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective(theta, n, d, loss)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return theta.detach()


def demo() -> None:
    """Chinchilla 的算力怎样分最好；再从二十几次带噪声的「训练」里把常数找回来。"""
    # ① 同一份算力，两组常数各主张怎样分
    compute = 6 * 70e9 * 1.4e12  # Chinchilla 本身：70B 参数，1.4T 词元
    print("① Chinchilla 用掉 5.9e23 次运算（70B 参数、1.4T 词元），怎样分最好？")
    for name, law in LAWS.items():
        n, d = law.optimal(compute)
        spent, best = law.loss(70e9, 1.4e12), law.loss(n, d)
        print(f"   {name:<12} N* {n / 1e9:5.1f}B  D* {d / 1e12:4.2f}T  D*/N* {d / n:5.1f}", end="")
        print(f"   损失 {spent:.3f} → {best:.3f}")
        assert best <= spent  # 最优的不会比任何一种差
    n, d = REPLICATION.optimal(compute)
    assert 15 < d / n < 30  # 重新拟合的一组与「每个参数二十个词元」对得上

    # ② 偏离最优一倍，损失只差一点；所以宁可小一点、多练一会儿，用的时候便宜
    print("② 同样的算力，模型取 N* 的几倍（replication）：")
    for times in (0.25, 0.5, 1, 2, 4):
        extra = REPLICATION.loss(n * times, d / times) - REPLICATION.loss(n, d)
        print(f"   {times:>4}×  损失 +{extra:.4f}")
        # 差一倍只差千分之几，差三倍也才百分之一
        assert 0 <= extra < (0.003 if 0.5 <= times <= 2 else 0.02) * REPLICATION.loss(n, d)

    # ③ 造一批已知答案的点，加千分之二的噪声，再混进一次练坏了的
    generator = torch.Generator().manual_seed(0)
    points = []
    for n_points in (1e7, 3e7, 1e8, 3e8, 1e9):
        for d_points in (3e8, 1e9, 3e9, 1e10, 3e10):
            noise = math.exp(0.002 * float(torch.randn((), generator=generator)))
            points.append((n_points, d_points, CHINCHILLA.loss(n_points, d_points) * noise))
    points[7] = (*points[7][:2], points[7][2] * 1.2)  # 高出两成
    fitted = fit_scaling_law(points)
    print("③ 二十五个点（一个高出两成）拟合出来的，与真的相比：")
    for name, value in asdict(fitted).items():
        print(f"   {name:<6}{value:9.3f}  真 {getattr(CHINCHILLA, name):9.3f}")
    # 单个常数互相牵扯，会差几个百分点；曲面本身准得多，外推一个数量级也还行
    error = fitted.loss(1e10, 3e11) / CHINCHILLA.loss(1e10, 3e11) - 1
    print(f"   外推到 10B 参数、300B 词元：差 {error:+.1%}")
    assert abs(error) < 0.03


if __name__ == "__main__":
    run_demo(demo)
