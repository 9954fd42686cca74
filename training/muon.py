r"""一个权重矩阵的更新，为什么不该只把每个数各自缩放？——Muon：先把动量「摆正」，再走一步。

AdamW 把矩阵当成一袋互不相干的数。可是矩阵是一个整体：y = Wx，它的梯度几乎总是「又扁又长」，
少数几个方向的奇异值（singular value）比其余的大几十倍。照着它走，每一步都只改那几个方向，
别的方向虽然也有用，却几乎学不到。Muon 让所有方向走得一样远：把动量 G 换成离它最近的正交矩阵。

$$G = U\,\mathrm{diag}(\sigma)\,V^\top \;\longmapsto\; UV^\top
  \qquad\text{（方向全留着，长短全抹平）}$$

    梯度 g ─▶ M ← μM + (1−μ)g ─▶ G = (1−μ)g + μM ─▶ 摆正 ─▶ O ≈ UVᵀ ─▶ W ← (1−ηλ)W − η·s·O
              动量（momentum）    再往前看一步            （奇异值都在 1 附近）
                                  （Nesterov）

怎样摆正而不做奇异值分解（SVD）？牛顿—舒尔茨迭代（Newton–Schulz）：反复代入一个奇次多项式，

$$X \leftarrow aX + b\,(XX^\top)X + c\,(XX^\top)^2X$$

X 的奇异向量不变，每个奇异值各自按 p(σ) = aσ + bσ³ + cσ⁵ 变。只有矩阵乘法，bf16 也够用，
因为要的只是「差不多一样长」。系数 (3.4445, −4.7750, 2.0315) 是调出来的：在 0 处斜率最陡，
小的奇异值几步就涨上来；代价是不收敛到 1，而是在 0.68 到 1.14 之间晃（演示①画给你看），不碍事。

步子 s 该多长？ 摆正之后，(m, n) 矩阵每个数的均方根是 √(min/(mn)) = 1/√max(m, n)，越大的矩阵越小。
取 s = 0.2·√max(m, n)，均方根就总是 0.2，与 AdamW 的更新差不多大：于是两边可以共用一个学习率，
换了宽度也不必重调（Moonlight 的做法；原版取 √max(1, m/n)，每种宽度都要重调）。

谁用 Muon？ 块里的矩阵（把一个向量变成另一个向量的）。词向量与输出词表的每一行属于一个词，
行与行本不该一起摆正；偏置、增益是一维的。这些都仍用 AdamW。

为什么快？ 演示③：同样的步数，同一个小网络，Muon 的损失更低。每步多算的：每个矩阵每次迭代三次乘法，
约 5·(4m²n + 2m³) 次运算（m ≤ n）；前向反向是 6mn·词元数。批有上千个词元时，多出的是零头。
同形状的矩阵叠在一起算，一次迭代只发一串算子。

什么时候没有用？ 批太小、模型太小时，摆正的时间就不是零头了；只有向量要训练时，它就是 AdamW。

论文：Jordan et al., *Muon: An optimizer for hidden layers in neural networks*, 2024（博客文章，
      kellerjordan.github.io/posts/muon）；步长与衰减 — Liu et al., *Muon is Scalable for LLM
      Training*（Moonlight）, arXiv:2502.16982；为什么是谱范数 — Bernstein & Newhouse,
      arXiv:2409.20325。

改哪里：迭代的系数与次数 → COEFFICIENTS、ITERATIONS；步子 → update_scale；
        哪些矩阵归它 → optimizer.py 的 decay_groups；换一种摆正的办法 → orthogonalize。
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from foundation.checks import check_float
from foundation.demonstration import run_demo

__all__ = ["Muon", "muon_written_out", "orthogonalize", "update_scale"]

# 五次多项式的三个系数：a 决定小奇异值涨得多快，b、c 把涨过头的压回来
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5  # 五次之后，比最大的小一千倍以内的奇异值都已到 1 附近


def orthogonalize(matrices: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """把每个矩阵换成（差不多）离它最近的正交矩阵：奇异向量不变，奇异值都到 1 附近。

    公式：X₀ = G/‖G‖；X ← aX + (bA + cA²)X，A = XXᵀ
    形状：(…, m, n) → (…, m, n)，前面的维各算各的，互不相干
    类型：在 bf16 里迭代（误差比多项式自己的晃动还小），返回与输入同 dtype；float64 仍用 float64
    约定：全零的矩阵得到全零
    """
    a, b, c = COEFFICIENTS
    # float64 是给核对用的；其余一律 bf16，乘法快几倍
    x = matrices if matrices.dtype == torch.float64 else matrices.bfloat16()
    x = x.reshape(-1, *matrices.shape[-2:])  # (N, m, n)：前面的维合成一叠
    # ① 躺下来：XXᵀ 是 m×m 的，m 是短的那一边，省许多乘法
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x  # (…, m, n)，m ≤ n
    # ② 奇异值先压到 1 以内：‖X‖_F ≥ 最大的奇异值。多项式在外面会发散
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # 加一点点，免得 0 除以 0
    # ③ 每次迭代三个乘法；σ 各自变成 aσ + bσ³ + cσ⁵
    #    baddbmm(M, P, Q) = βM + αPQ：数乘与相加搭在乘法里，不再各搬一趟内存
    for _ in range(iterations):
        gram = x @ x.mT  # A (N, m, m)
        inner = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # bA + cA²
        x = torch.baddbmm(x, inner, x, beta=a)  # aX + (bA + cA²)X  (N, m, n)
    straight: Tensor = x.mT if tall else x
    return straight.reshape(matrices.shape).to(matrices.dtype)


def update_scale(shape: Sequence[int]) -> float:
    """摆正之后再乘多少，使更新的均方根与 AdamW 的相当。

    公式：s = 0.2·√max(m, n)；摆正的矩阵均方根是 1/√max(m, n)，乘完就是 0.2
    """
    return 0.2 * math.sqrt(max(shape))


class Muon(Optimizer):
    """一个优化器管两种参数：hidden 的组用 Muon，其余的组交给 AdamW。

    形状：hidden 的组里都是矩阵 (m, n)，每个的状态只有一份动量，比 AdamW 省一半
    约定：状态都是张量，「参数名/状态名」照存照取（见 checkpoint.py），续训逐比特相同
    约定：每组自己的学习率由 set_learning_rate 每步写进 lr；Muon 的组另有 lr_scale
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        make_adamw: Callable[[list[dict[str, Any]]], Optimizer],
        learning_rate: float,
        momentum: float = 0.95,
    ) -> None:
        check_float("muon_momentum", momentum, 0, exclusive_maximum=1)
        # hidden 由 optimizer.py 的 decay_groups 写进组里；这里不认名字，只认它
        hidden = [group for group in groups if group.get("hidden")]
        rest = [group for group in groups if not group.get("hidden")]
        for group in hidden:
            group.setdefault("momentum", momentum)
        # 其余的组照常建一个 AdamW；它的组里已填好 betas、eps 等，我们原样收下，两边是同一些字典
        self._adamw = make_adamw(rest) if rest else None
        adamw_groups = [] if self._adamw is None else self._adamw.param_groups
        super().__init__([*hidden, *adamw_groups], {"lr": learning_rate, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """走一步：矩阵摆正再走，其余照 AdamW。"""
        for group in self.param_groups:
            if group.get("hidden"):
                self._step_matrices(group)
        if self._adamw is not None:
            # 每步重新接上：续训时 load_state_dict 会把组与状态都换成新的
            self._adamw.param_groups = [g for g in self.param_groups if not g.get("hidden")]
            self._adamw.state = self.state
            self._adamw.step()

    def _step_matrices(self, group: dict[str, Any]) -> None:
        """一组矩阵的一步。

        公式：M ← μM + (1−μ)g；G = (1−μ)g + μM；W ← (1−ηλ)W − η·s·摆正(G)
        """
        weights = [p for p in group["params"] if p.grad is not None]
        if not weights:
            return  # 这一步谁也没用到
        gradients = [p.grad for p in weights]
        # ① 动量，与「再往前看一步」的方向；成组的算子，一次发一串
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        #    就地更新的是状态里的那一份，所以不必再写回去
        momenta = [self.state[weight]["momentum"] for weight in weights]
        share = 1 - group["momentum"]  # 新梯度占几成
        torch._foreach_lerp_(momenta, gradients, share)
        directions = torch._foreach_lerp(momenta, gradients, share)
        # ② 先缩权重，与梯度无关（解耦的衰减）
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        # ③ 同形状的叠在一起摆正；高的躺下来，与同样大小的扁的算一组
        stacks: dict[tuple[Any, ...], list[int]] = {}
        for index, d in enumerate(directions):
            stacks.setdefault((min(d.shape), max(d.shape), d.dtype, d.device), []).append(index)
        #    四层的小模型：16 个 (D, D) 一叠，8 个 (D, 4D) 一叠，共两串算子而不是 24 串
        for (_, longest, *_), members in stacks.items():
            flat = [_lie_down(directions[i]) for i in members]
            straight = orthogonalize(torch.stack(flat)).unbind()  # (n, m, n) → n 个 (m, n)
            turned = [
                o.mT if _is_tall(weights[i]) else o for i, o in zip(members, straight, strict=True)
            ]
            # ④ 走：η·s；同一叠里长边相同，s 也就相同
            torch._foreach_add_(
                [weights[i] for i in members],
                turned,
                alpha=-group["lr"] * update_scale((longest,)),
            )


def _is_tall(matrix: Tensor) -> bool:
    """行比列多：前馈的第一个矩阵 (4D, D) 就是。"""
    return matrix.shape[0] > matrix.shape[1]


def _lie_down(matrix: Tensor) -> Tensor:
    """把高的转过来：UVᵀ 的转置还是正交的，所以先转再摆正、摆正再转，结果相同。"""
    return matrix.mT if _is_tall(matrix) else matrix


@torch.no_grad()
def muon_written_out(
    weight: Tensor,
    gradient: Tensor,
    momentum_buffer: Tensor,
    *,
    learning_rate: float,
    weight_decay: float,
    momentum: float = 0.95,
) -> None:
    """Muon 的一步，一个矩阵，照公式写；就地更新权重与动量。

    公式：见本课开头
    形状：三个都是 (m, n)

    它是上面成组、叠起来、bf16 的那一版的对照：给 float64 的张量，迭代也在 float64 里
    """
    # ① 动量是梯度的滑动平均；再往前看一步，等于把新梯度多算一份
    momentum_buffer.mul_(momentum).add_(gradient, alpha=1 - momentum)
    direction = (1 - momentum) * gradient + momentum * momentum_buffer
    # ② 先缩，再走
    weight.mul_(1 - learning_rate * weight_decay)
    weight.sub_(learning_rate * update_scale(weight.shape) * orthogonalize(direction))


def demo() -> None:
    """奇异值怎样被抹平、摆正与 SVD 差多少、同样的步数谁学得快。"""
    _show_singular_values()
    _show_every_direction_moves()
    _show_learning()


def _show_singular_values() -> None:
    """一个奇异值差一百倍的矩阵，迭代 0…5 次，看它的奇异值。"""
    left, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(12, 8, dtype=torch.float64))
    sizes = torch.logspace(0, -2, 8, dtype=torch.float64)  # 1 到 0.01
    matrix = left @ sizes.diag() @ right.mT  # (8, 12)
    print("① 奇异值从 1 到 0.01 的矩阵，迭代几次之后的奇异值")
    for iterations in range(ITERATIONS + 1):
        found = torch.linalg.svdvals(orthogonalize(matrix, iterations))
        print(f"   {iterations} 次  " + "  ".join(f"{value:.2f}" for value in found.tolist()))
    assert 0.65 < float(found.min()) <= float(found.max()) < 1.2  # 都到 1 附近
    exact = left @ right.mT  # UVᵀ，奇异值分解给出的答案
    cosine = torch.cosine_similarity(orthogonalize(matrix).flatten(), exact.flatten(), dim=0)
    print(f"   与 UVᵀ 的夹角余弦 {float(cosine):.3f}；bf16 里算的差别更小：", end="")
    gap = (orthogonalize(matrix.float()).double() - orthogonalize(matrix)).abs().max()
    print(f"最大相差 {float(gap):.3f}")
    assert cosine > 0.97
    assert gap < 0.05


def _show_every_direction_moves() -> None:
    """梯度只有一个方向特别大：照梯度走，别的方向几乎不动；摆正之后，一样远。"""
    # 对角线上就是奇异值，一眼看得出
    gradient = torch.diag(torch.tensor([1.0, 0.1, 0.01, 0.01]))
    print("② 一步之内，各个方向走多远（以最远的为 1）")
    for name, update in (("照梯度", gradient), ("摆正之后", orthogonalize(gradient))):
        sizes = torch.linalg.svdvals(update)
        print(
            f"   {name:　<4} " + "  ".join(f"{value:.2f}" for value in (sizes / sizes[0]).tolist())
        )
    assert float(sizes.min() / sizes.max()) > 0.5


def _show_learning() -> None:
    """三层隐藏的网络学一个随机的教师，步数相同，各取试过的学习率里最好的。"""
    from training.optimizer import build_optimizer, set_learning_rate  # 它要登记本课，所以用时才取

    def network() -> nn.Sequential:
        sizes = ((32, 64), (64, 64), (64, 64), (64, 16))
        layers = [layer for size in sizes for layer in (nn.Linear(*size), nn.ReLU())]
        return nn.Sequential(*layers[:-1])  # 最后一层之后不拐弯

    inputs, teacher = torch.randn(512, 32), network()
    with torch.no_grad():
        for parameter in teacher.parameters():
            # 教师拐的弯大一些，才难学；偏置不动
            parameter.mul_(2.0 if parameter.ndim == 2 else 1.0)
        answers = teacher(inputs)
        answers = (answers - answers.mean(dim=0)) / answers.std()
    print("③ 同样的 150 步，最后的损失（瞎猜是 1；各自最好的学习率）")
    best = {}  # 优化器 → 最低的损失
    for name in ("adamw", "muon"):
        # 学习率各自试过再比：只用一个，比的就是运气
        results = {}
        for rate in (0.01, 0.03, 0.1):
            torch.manual_seed(1)  # 同一个起点
            student = network()
            optimizer = build_optimizer(student, name=name, learning_rate=rate, weight_decay=0.0)
            for step in range(150):
                set_learning_rate(optimizer, rate * (1 - step / 150))  # 直线降到 0
                loss = (student(inputs) - answers).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            results[loss.item()] = rate
        best[name] = min(results)
        print(f"   {name:<6} 学习率 {results[best[name]]:<5}  损失 {best[name]:.4f}")
    assert best["muon"] < 0.5 * best["adamw"]


if __name__ == "__main__":
    run_demo(demo)
