r"""有了梯度，每个参数该往哪里走、走多远？——AdamW：按自己的历史走，并且每步都缩一点点。

SGD 让所有参数用同一个步长，而 GPT 里各处梯度的大小差几个数量级：常用词的词向量天天有梯度，
生僻词几百步才有一次。Adam 给每个参数一把自己的尺子：用梯度除以它自己惯常的大小。

公式：g 是梯度，m、v 是一阶矩与二阶矩（moments），η 是学习率，λ 是权重衰减：

$$m \leftarrow \beta_1 m + (1-\beta_1)g, \qquad v \leftarrow \beta_2 v + (1-\beta_2)g^2$$
$$\theta \leftarrow (1-\eta\lambda)\,\theta \;-\; \eta\,
  \frac{m/(1-\beta_1^t)}{\sqrt{v/(1-\beta_2^t)}+\varepsilon}$$

    梯度 g ──┬─▶ m  最近的方向（平滑掉批次间的噪声）──┐
             │                                        ├─▶ m/√v ≈ ±1 ──× η──▶ 一步
             └─▶ v  最近的大小（每个参数自己的尺子）──┘
    权重 θ ──────▶ 每步先缩到 (1 − ηλ) 倍：与梯度无关，所以叫「解耦」的衰减（W）

三处常被写错：
    偏差修正    m、v 从 0 起步，头几步偏小；除以 (1 − βᵗ) 补回来，否则第一步只有该走的三成
    衰减        加在损失里（L2）会被 √v 除掉，梯度大的参数反而衰减得少；AdamW 直接缩权重
    衰减谁      只衰减矩阵。偏置、归一化的增益是一维的，只管平移与缩放，往 0 拉没有道理

只给要训练的参数（requires_grad）留 m、v：LoRA 冻结了底座，状态就只有适配器那一点。

三种实现，结果只差舍入，差的是来回搬了几趟内存：
    逐个（for-loop）   每个参数十来个小算子，GPU 上全在等启动
    成组（foreach）    同类的算子一次发一串，中间结果仍要写回内存
    融合（fused）      一个参数一趟：读 θ、g、m、v，算完写回。CPU 上也有，快几倍

论文：Adam — Kingma & Ba, arXiv:1412.6980；AdamW — Loshchilov & Hutter, arXiv:1711.05101；
      损失突然跳高与 β₂ — Wortsman et al., arXiv:2304.13013。

改哪里：换优化器（Lion、SGD）→ 写一个 (组, 设置) → Optimizer 的函数，登记到 OPTIMIZERS；
        Muon（矩阵另走一条路）→ muon.py；
        哪些参数衰减 → decay_groups；某一组的学习率是别组的几倍 → 组里的 lr_scale。
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from foundation.checks import check_choice, check_float
from foundation.demonstration import run_demo
from training.muon import Muon

__all__ = [
    "OPTIMIZERS",
    "OptimizerSettings",
    "adamw_written_out",
    "build_optimizer",
    "decay_groups",
    "set_learning_rate",
]

# 有融合实现的设备；在 CPU 上，它与成组的实现相比快几倍（演示④量给你看）
FUSED_DEVICES = ("cpu", "cuda", "mps")
OUTPUT_HEAD = "lm_head"  # 输出词表的名字；它的行是词，不归 Muon

Group = dict[str, Any]  # torch 的参数组：{"params": […], "weight_decay": …}


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """优化器的几个数；学习率每一步另给，这里的只是初值。"""

    learning_rate: float  # η；每步由 set_learning_rate 改写
    betas: tuple[float, float] = (0.9, 0.95)  # β₁、β₂：越近 1，记得越久
    eps: float = 1e-8  # ε：免得除以 0
    fused: bool | None = None  # None = 设备支持就用
    muon_learning_rate: float | None = None  # Muon 的那些矩阵的 η；None = 与别的相同
    muon_momentum: float = 0.95  # Muon 的动量 μ


def decay_groups(model: nn.Module, weight_decay: float) -> list[Group]:
    """把要训练的参数分成三组：块里的矩阵、别的矩阵（词向量等），都衰减；其余不衰减。

    判据是维数：矩阵与词向量是二维（卷积更高），偏置与归一化的增益是一维
    AdamW 对前两组一视同仁；Muon 只管第一组，认的是组里的 hidden（见 muon.py）
    共用的矩阵（词向量与 lm_head）只出现一次：named_parameters 已经去重
    错误：没有一个参数要训练 → ValueError
    """
    # ① 冻结的不进来：没有梯度，留着 m、v 只是占内存
    trainable = [p for _, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("the model has no trainable parameter: every requires_grad is False")
    # ② 按维数分，不按名字分：换个模型、改个名字都不会分错
    inner = hidden_matrices(model)
    hidden = [p for p in trainable if id(p) in inner]
    tables = [p for p in trainable if p.ndim >= 2 and id(p) not in inner]  # 词向量、输出词表
    vectors = [p for p in trainable if p.ndim < 2]  # 偏置、增益
    groups: list[Group] = [
        {"params": hidden, "weight_decay": weight_decay, "hidden": True},
        {"params": tables, "weight_decay": weight_decay, "hidden": False},
        {"params": vectors, "weight_decay": 0.0, "hidden": False},
    ]
    # 空的组会使存取时的编号对不上别的模型，去掉
    return [group for group in groups if group["params"]]


def hidden_matrices(model: nn.Module) -> set[int]:
    """「把一个向量变成另一个向量」的矩阵，以 id 表示：线性层的权重，除去输出词表。

    输出词表（lm_head）每行属于一个词，与词向量是一类；与词向量共用时，它也不是
    约定：冻结的也数在内；要不要训练由调用者另看
    """
    linear: set[int] = set()
    other: set[int] = set()
    for name, module in model.named_modules():
        # 词向量、LoRA 的 A 与 B 等都不是 nn.Linear，自然落在另一边
        inner = isinstance(module, nn.Linear) and name.rpartition(".")[2] != OUTPUT_HEAD
        for parameter in module.parameters(recurse=False):
            (linear if inner and parameter.ndim == 2 else other).add(id(parameter))
    return linear - other  # 两处都有的（共用），以另一处为准


def make_adamw(groups: list[Group], settings: OptimizerSettings) -> Optimizer:
    """torch 的 AdamW；能融合就融合。

    形状：m、v 各与参数同形，所以状态是参数的两倍大
    融合要求参数都是浮点、都在支持的设备上，否则退回成组的实现
    约定：fused 明说了就照办，设备不支持时由 torch 报错
    """
    fused = settings.fused  # None、真、假
    if fused is None:
        parameters = [p for group in groups for p in group["params"]]  # 有一个不行，就都不用
        fused = all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters)
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,  # 只是初值
        betas=settings.betas,
        eps=settings.eps,
        fused=fused,
    )


def make_muon(groups: list[Group], settings: OptimizerSettings) -> Optimizer:
    """Muon 管 hidden 的组，AdamW 管其余的；两边的学习率按同一条曲线起落。

    公式：η_Muon(s) = lr_scale · η(s)，lr_scale = muon_learning_rate / learning_rate
    """
    rate = settings.muon_learning_rate
    if rate is not None:
        check_float("muon_learning_rate", rate, exclusive_minimum=0)
        for group in groups:
            # 词向量与一维的参数不动：它们仍按 learning_rate
            if group.get("hidden"):
                group["lr_scale"] = rate / settings.learning_rate
    optimizer = Muon(
        groups,
        make_adamw=lambda rest: make_adamw(rest, settings),  # 与单用 AdamW 时同一个函数
        learning_rate=settings.learning_rate,
        momentum=settings.muon_momentum,
    )
    set_learning_rate(optimizer, settings.learning_rate)  # 让 lr_scale 从一开始就算数
    return optimizer


# 名字 → 怎样建；别的优化器也从这里进来
OPTIMIZERS: dict[str, Callable[[list[Group], OptimizerSettings], Optimizer]] = {
    "adamw": make_adamw,
    "muon": make_muon,
}


def build_optimizer(
    model: nn.Module,
    *,
    name: str = "adamw",
    learning_rate: float = 3e-4,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    fused: bool | None = None,
    muon_learning_rate: float | None = None,
    muon_momentum: float = 0.95,
) -> Optimizer:
    """给模型里要训练的参数建优化器；先把模型搬到设备上再建。

    约定：优化器认的是参数这个对象；建好之后再换掉参数，它还在更新旧的
    错误：名字不认识、数值不合理、没有可训练的参数 → ValueError
    """
    # 先查再建：学习率为 0 也照样能跑，只是什么也学不到，越早说越好
    check_choice("optimizer", name, OPTIMIZERS)
    check_float("learning_rate", learning_rate, exclusive_minimum=0)
    check_float("weight_decay", weight_decay, 0)
    # 只有 Muon 看最后两个；别的优化器不理会它们
    settings = OptimizerSettings(
        learning_rate=learning_rate,
        betas=betas,
        eps=eps,
        fused=fused,
        muon_learning_rate=muon_learning_rate,
        muon_momentum=muon_momentum,
    )
    return OPTIMIZERS[name](decay_groups(model, weight_decay), settings)


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    """把所有组的学习率设为 value；某组另有 lr_scale 的，乘上它。

    公式：η_组 = value · lr_scale
    学习率是步数的纯函数（schedule.py），每步直接写进去，不用有状态的 scheduler
    """
    for group in optimizer.param_groups:
        group["lr"] = value * group.get("lr_scale", 1.0)  # 没有 lr_scale 就是 1


@torch.no_grad()
def adamw_written_out(
    parameter: Tensor,
    gradient: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
    step: int,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
) -> None:
    """AdamW 的一步，照公式写；就地更新参数与两个矩，step 从 1 数起。

    公式：m ← β₁m + (1−β₁)g；v ← β₂v + (1−β₂)g²
          θ ← (1−ηλ)θ − η·m̂/(√v̂ + ε)，m̂ = m/(1−β₁ᵗ)，v̂ = v/(1−β₂ᵗ)
    形状：参数、梯度、两个矩都一样

    它是库实现的对照：测试让两者走同样的许多步，再比较
    """
    beta1, beta2 = betas  # 方向的与大小的，各记多久
    # ① 两个滑动平均：方向与大小
    first_moment.mul_(beta1).add_(gradient, alpha=1 - beta1)
    second_moment.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    # ② 偏差修正：t = 1 时 m = (1−β₁)g，除以 (1−β₁) 正好还原成 g
    direction = first_moment / (1 - beta1**step)  # m̂
    scale = (second_moment / (1 - beta2**step)).sqrt()  # √v̂
    # ③ 先缩权重（与梯度无关），再走一步；ε 加在根号外面
    parameter.mul_(1 - learning_rate * weight_decay)
    parameter.sub_(learning_rate * direction / (scale + eps))


def demo() -> None:
    """第一步走多远、写出来的与库相同、谁被衰减、三种实现的快慢。"""
    _show_first_step()
    _show_equality()
    _show_groups()
    _show_speed()


def _show_first_step() -> None:
    """梯度差一百万倍的两个参数，第一步走得一样远。"""
    print("① 每个参数一把尺子：梯度差 10⁶ 倍，第一步都是 η = 0.01")
    weight = nn.Parameter(torch.tensor([1.0, 1.0]))
    weight.grad = torch.tensor([1e-3, 1e3])  # 差一百万倍
    torch.optim.AdamW([weight], lr=0.01, weight_decay=0.0).step()
    moved = (1.0 - weight.detach()).tolist()  # 两个都从 1 出发
    print(f"   梯度 [0.001, 1000] → 走了 [{moved[0]:.4f}, {moved[1]:.4f}]；SGD 会走 [1e-05, 10]")
    assert all(abs(distance - 0.01) < 1e-5 for distance in moved)  # 都是 η


def _show_equality() -> None:
    """照公式写的与库的，走一百步仍然相同。"""
    library = nn.Parameter(torch.randn(20, 10))
    # 同一个起点；两个矩从 0 开始，与库一样
    mine, m, v = library.detach().clone(), torch.zeros(20, 10), torch.zeros(20, 10)
    optimizer = torch.optim.AdamW([library], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(1, 101):
        gradient = torch.randn(20, 10)  # 每步都不同，矩才有得平均
        library.grad = gradient
        optimizer.step()
        adamw_written_out(mine, gradient, m, v, step, learning_rate=1e-2, weight_decay=0.1)
    gap = (library.detach() - mine).abs().max().item()
    print(f"② 写出来的公式与库走 100 步，最大相差 {gap:.0e}（权重在 ±3 之间）")
    assert gap < 1e-5  # 只差舍入


def _show_groups() -> None:
    """一个小网络里谁衰减、谁不衰减；冻结的不进优化器。"""
    model = nn.Sequential(nn.Embedding(65, 16), nn.LayerNorm(16), nn.Linear(16, 65))
    model[0].weight.requires_grad_(False)  # 就像 LoRA 冻结底座
    optimizer = build_optimizer(model, weight_decay=0.1)
    chosen = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    print("③ 谁衰减：矩阵；一维的不衰减；冻结的连状态都没有")
    for name, parameter in model.named_parameters():
        decay = chosen.get(id(parameter))  # None：不在优化器里
        print(f"   {name:<9} {str(tuple(parameter.shape)):<9} {'冻结' if decay is None else decay}")
    assert [chosen.get(id(p)) for p in model.parameters()] == [None, 0.0, 0.0, 0.1, 0.0]


def _show_speed() -> None:
    """一百万个参数的一步，三种实现各要多久。

    时间随机器而变，所以只印不断言；但三者走出的权重必须相同
    """
    import time

    start = [torch.randn(256, 256) for _ in range(16)]
    kinds: dict[str, dict[str, Any]] = {
        "逐个 for-loop": {"foreach": False},
        "成组 foreach": {"foreach": True},
        "融合 fused": {"fused": True},
    }
    print("④ 一百万个参数，一步要多久")
    results: list[Iterable[Tensor]] = []
    for name, choice in kinds.items():
        weights = [nn.Parameter(w.clone()) for w in start]  # 各从同一处出发
        optimizer = torch.optim.AdamW(weights, lr=1e-3, **choice)
        durations = []  # 秒
        for step in range(6):
            for weight in weights:
                weight.grad = weight.detach() * (0.1 + 0.01 * step)
            began = time.perf_counter()  # 只量更新，不量造梯度
            optimizer.step()
            durations.append(time.perf_counter() - began)
        results.append([w.detach() for w in weights])
        # 第一步要分配两个矩，不算
        print(f"   {name:<14} {1e3 * min(durations[1:]):6.2f} 毫秒")
    for other in results[1:]:
        for expected, found in zip(results[0], other, strict=True):
            assert torch.allclose(expected, found, atol=1e-6)
    print("   三者走出的权重相同（差别 < 1e-6）")


if __name__ == "__main__":
    run_demo(demo)
