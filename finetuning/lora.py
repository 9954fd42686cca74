r"""LoRA：不动原来的大矩阵，只训练旁边两条细长的矩阵，能教会模型新东西吗？

公式：$y = xW + \frac{\alpha}{r}\, x A B + b$，
      $A \in \mathbb{R}^{d_{in} \times r}$，$B \in \mathbb{R}^{r \times d_{out}}$，$r \ll d$

        x (…, d_in)
        ├──────── W，冻结 (frozen) ─────────────────┐
        │                                           + ──→ y (…, d_out)
        └─ dropout ─→ A ─→ (…, r) ─→ B ─→ × α/r ────┘
                      随机          开始时全为零

为什么够用：微调带来的改变 ΔW 往往「内在秩」很低 (low intrinsic rank)，AB 就装得下它；
    而梯度、优化器状态、要保存的文件，都只和 r 成正比。
为什么没有代价：AB 与 W 同形，训练完可以并进 W 里 (merge)，推理时看不出用过 LoRA。
为什么不直接训练小一点的矩阵：W 已经会的都留着，AB 只装「还差的那一点」。

一个数一个数地看（d_in = 3，d_out = 2，r = 1，α = 2，x = [1, 2, 3]）：
    A = [1, 0, 1]ᵀ，xA = 1·1 + 2·0 + 3·1 = 4          三个数压成一个
    B = [0.5, −1]， (xA)B = [2, −4]                    一个数展开成两个
    × α/r = 2，加到 xW 上的改动是 [4, −8]              两条矩阵共 5 个数，W 有 6 个
    d 越大差得越多：两条是 2·d·r，一整个是 d²

两个变体，都只是 LoRAConfig 里的一个开关：
    rsLoRA  缩放用 α/√r，r 大时不至于学不动
    DoRA    把权重拆成「长度」与「方向」，方向由 LoRA 改，长度另学一个向量 m，每个输出一个数
            $W' = m \odot (W + \Delta W) \,/\, \lVert W + \Delta W \rVert$
            全量微调时长度与方向常常反着变，LoRA 只会让两者一起变；拆开就自由了

论文：Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models；
      Kalajdzievski 2023, rsLoRA；Liu et al. 2024, DoRA: Weight-Decomposed Low-Rank Adaptation
改哪里：换初始化，改 `LowRankAdapter.__init__`；换公式，改 `LoRALinear.forward` 与
        `effective_weight`（两处说的必须是同一件事，演示会比）；
        挑哪些层、缩放多少，见 lora_config.py；装、换、并、拆，见 adapters.py；
        存盘与 PEFT 互通，见 adapter_files.py；用它微调一个模型，见 examples/finetune_with_lora.py。
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetuning.adapters import (
    AdaptedLinear,
    BaseLinear,
    adapted_layers,
    adapter_names,
    adapters_disabled,
    candidate_layers,
    check_adapter_name,
    count_trainable,
    merge_in_place,
    merge_lora,
    refuse_shared,
    replace_module,
    set_adapter,
    unmerge_lora,
)
from finetuning.fused_lora import Part, lora_products, usable
from finetuning.lora_config import LoRAConfig, first_pattern, match_names
from foundation.demonstration import run_demo
from transformer_basics.speed_ups import SPEED_UPS

__all__ = [
    "LoRAConfig",
    "LoRALinear",
    "LowRankAdapter",
    "adapter_names",
    "adapters_disabled",
    "apply_lora",
    "count_trainable",
    "lora_parameters",
    "merge_in_place",
    "merge_lora",
    "set_adapter",
    "unmerge_lora",
]


class LowRankAdapter(nn.Module):
    """一层上的一个适配器：A、B，DoRA 时还有长度 m。

    公式：(α/r)·dropout(x)·A·B，按行向量写，与论文正文的 BAx 是同一件事的转置
    形状：A (d_in, r)，B (r, d_out)，magnitude (d_out,) 或 None；x (…, d_in) → (…, d_out)
    类型：参数是 float32（底座是 float64 时为 float64），与底座的精度无关
    """

    def __init__(self, base: BaseLinear, name: str, config: LoRAConfig) -> None:
        super().__init__()
        weight, rank = base.weight, config.rank_of(name)
        # 半精度的底座也配 float32 的适配器：一步的改动常小于 bf16 的一格，加上去等于没加
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        # 两样都随层而异（rank_pattern、alpha_pattern），所以传的是层的全名。
        # 存盘时要写下全部选择，所以每个适配器都记着自己的配置
        self.config = config
        self.scaling = config.scaling_of(name)
        self.dropout = nn.Dropout(config.dropout)
        self.A = nn.Parameter(weight.new_empty(base.in_features, rank, dtype=dtype))
        self.B = nn.Parameter(weight.new_zeros(rank, base.out_features, dtype=dtype))
        # A 随机、B 为零：AB = 0，开始时模型一个数都不变；而 ∂L/∂B 里有 A，不为零，第一步就学得动。
        # 若两者都为零，两边的梯度也都为零，永远停在原地；
        # 若两者都随机，第一步之前模型就已经被打乱了。
        # 界 1/√d_in 就是 nn.Linear 自己的初始化（Kaiming 均匀分布，a = √5）。
        bound = 1.0 / math.sqrt(base.in_features)
        nn.init.uniform_(self.A, -bound, bound)
        # DoRA 只比 LoRA 多 d_out 个数；
        # m 从原来的长度起步，于是 m / ‖W‖ = 1，DoRA 在开始时也一个数都不变
        norm = torch.linalg.norm(weight.detach().to(dtype), dim=1) if config.use_dora else None
        self.magnitude = None if norm is None else nn.Parameter(norm)

    def forward(self, x: Tensor) -> Tensor:
        """低秩那一路。先乘 A 再乘 B：每个词元 2·d·r 次乘法，先算 AB 则要 d²。"""
        hidden: Tensor = self.dropout(x).to(self.A.dtype) @ self.A  # (…, r)
        # 缩放乘在最细的地方
        return (hidden * self.scaling) @ self.B  # (…, d_out)

    def delta_weight(self) -> Tensor:
        """ΔW = (α/r)·(AB)ᵀ，转置成 nn.Linear 存权重的样子 (d_out, d_in)。

        只在合并与 DoRA 求长度时用；平常的前向不造这个大矩阵。
        """
        return (self.A @ self.B).T * self.scaling


class LoRALinear(AdaptedLinear):
    """一个冻结的 nn.Linear，加上若干个有名字的低秩适配器。

    公式：y = xW + b + (α/r)·xAB；DoRA：y = s∘(xW + (α/r)·xAB) + b，s = m / ‖W + ΔW‖
    形状：x (…, d_in) → (…, d_out)
    类型：输出与底座的输出同 dtype

    训练时不把 AB 加进 W 再做一次矩阵乘：那样每一步都要造一个 d² 的 W + ΔW 并保存它的梯度，
    省下的内存又还回去了。分两路算，要存的激活只多了细细的 (…, r)。
    """

    def low_rank(self) -> LowRankAdapter:
        """起作用的适配器。

        没有适配器时 forward 早已走了底座的路，到不了这里；真到了，是我们自己的错，所以用断言。
        """
        assert isinstance(self.current, LowRankAdapter)
        return self.current

    def forward(self, x: Tensor) -> Tensor:
        """按公式前向；适配器关掉、这层没有、或已合并时，走底座的路。"""
        plain = self.unchanged(x)
        if plain is not None:
            return plain
        adapter = self.low_rank()
        #    CPU 上的 bf16 训练：几样合成一次，见 fused_lora.py；别的情形照公式写
        if self.fusible(x):
            return lora_products(x, [self.part()])[0]
        # ① 底座照旧；它冻结着，反向传播只经过它，不为它算梯度
        output: Tensor = self.base_layer(x)  # (…, d_out)
        # ② 低秩的改动；刚装上时 B = 0，这里全是零
        change: Tensor = adapter(x)  # (…, d_out)
        if adapter.magnitude is not None:
            # ③ DoRA 写成「在原输出上再加多少」，s = 1 时逐位等于原输出；偏置不参与缩放
            scale = adapter.magnitude / self.column_norm(adapter)  # (d_out,)
            bias = self.base_layer.bias
            linear = output if bias is None else output - bias
            change = (scale - 1.0) * linear + scale * change
        # ④ 相加在 float32 里做，舍入只有这一次
        return (output + change).to(output.dtype)

    def fusible(self, x: Tensor) -> bool:
        """fused_lora.py 的那条路收不收：只有朴素的 LoRA，没有 DoRA、没有 dropout。

        只看状态，不碰数据：同样的设置总走同样的路，续训才逐比特相同
        """
        # 关掉了、这层没有、已合并：都不必动用适配器
        if not self.enabled or self.current is None or self.merged_weight is not None:
            return False
        # dropout 丢的是细的那一路的输入，两路就不能共用一份 x 了
        adapter = self.low_rank()
        dropped = adapter.training and adapter.dropout.p > 0
        plain = adapter.magnitude is None and not dropped
        return plain and adapter.A.dtype is torch.float32 and usable(x, self.base_layer)

    def part(self) -> Part:
        """交给 fused_lora.py 的四样：底座、A、B、缩放。

        那边只管乘法，不知道有 LoRALinear 这个类
        """
        adapter, base = self.low_rank(), self.base_layer
        assert isinstance(base, nn.Linear)  # fusible 已经问过
        return base, adapter.A, adapter.B, adapter.scaling

    @staticmethod
    def forward_together(x: Tensor, layers: Sequence[LoRALinear]) -> list[Tensor] | None:
        """q、k、v 看同一个 x：都能合就叠成一次，否则 None。

        transformer_basics/linear.py 的 project_together 会来问；得到 None 就逐个算
        形状：x (…, d_in) → 各 (…, d_out)，次序与 layers 相同
        """
        if not SPEED_UPS["joined"] or not all(layer.fusible(x) for layer in layers):
            return None
        return lora_products(x, [layer.part() for layer in layers])

    @torch.no_grad()
    def column_norm(self, adapter: LowRankAdapter) -> Tensor:
        """‖W + ΔW‖：每个输出一个长度 (d_out,)。

        形状：按 nn.Linear 的存法是每行的长度，按公式里的 W 是每列的长度
        按论文 §4.3 当作常数，不回传梯度：省下一整份激活，效果相当。
        """
        weight = self.base_layer.weight.to(adapter.A.dtype) + adapter.delta_weight()
        # 全零的一行（有的模型把投影层初始化为零）长度为 0，而 0/0 是 NaN：垫一个最小的正数
        norm: Tensor = torch.linalg.norm(weight, dim=1)
        return norm.clamp_min(torch.finfo(norm.dtype).tiny)

    @torch.no_grad()
    def effective_weight(self) -> Tensor:
        """W′ = W + ΔW；DoRA 再把每个输出的长度换成 m。

        形状：(d_out, d_in)
        半精度的底座，W′ 要舍入回半精度：合并前后的输出相差约半精度的一格，而不是 1e-6。
        """
        weight, adapter = self.base_layer.weight, self.low_rank()
        summed = weight.to(adapter.A.dtype) + adapter.delta_weight()
        if adapter.magnitude is not None:
            summed = summed * (adapter.magnitude / self.column_norm(adapter))[:, None]
        return summed.to(weight.dtype)


def apply_lora(model: nn.Module, config: LoRAConfig, adapter: str = "default") -> nn.Module:
    """就地给挑中的线性层加上适配器，冻结其余一切，返回同一个模型。

    可以多次调用，每次一个新名字；最后加的那个起作用、可训练。几个适配器共用一个底座，
    各占各的几兆字节，换用见 `set_adapter`。
    错误：名字不合法或已用；没挑中任何层；挑中与别处共用的权重 → ValueError，模型保持原样
    """
    # ① 会错的事全查清了，再动模型：不留下装了一半的模型
    check_adapter_name(adapter, adapter_names(model))
    candidates = candidate_layers(model)
    chosen = match_names(config.target, candidates)
    refuse_shared(model, chosen)
    # 另设 r 或 α 的写法若一层也没匹配，多半是拼错了；不说，训练照常，只是 r 不对
    for pattern in (*config.rank_pattern, *config.alpha_pattern):
        if not any(first_pattern([pattern], name) for name in chosen):
            raise ValueError(f"pattern {pattern!r} matches none of: {', '.join(chosen)}")
    # 下面只剩分配内存这一种失败
    # ② 把挑中的 nn.Linear 换成包着它的 LoRALinear；已经换过的，再添一个适配器
    for name in chosen:
        layer = candidates[name]
        if not isinstance(layer, AdaptedLinear):
            layer = LoRALinear(layer).train(layer.training)
            replace_module(model, name, layer)
        low_rank = LowRankAdapter(layer.base_layer, name, config)
        layer.adapters[adapter] = low_rank.train(layer.training)
    # ③ 先全部冻结，再放开刚装上的；归一化、词嵌入也冻结着，训练循环据此只优化适配器
    model.requires_grad_(False)
    set_adapter(model, adapter)
    return model


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """起作用的适配器的全部参数，也就是要交给优化器的那些。

    顺序：按层在模型里的先后，层内先 A 后 B，DoRA 再接 m
    """
    # 这个适配器不一定每层都有
    adapters = [layer.current for layer in adapted_layers(model).values()]
    return [p for adapter in adapters if adapter is not None for p in adapter.parameters()]


def demo() -> None:
    """四件事，各用真的数说一遍：省多少、从哪里起步、r 是什么、推理时有没有代价。"""
    show_parameter_table()
    show_zero_start()
    show_rank_is_capacity()
    show_merging()


def show_parameter_table() -> None:
    """一个 768×768 的矩阵，全量微调与 LoRA 各要训练多少个数。

    可训练的数还要乘上优化器：AdamW 为每个数另存两个，所以内存省得更多
    """
    # 768 是 GPT-2 最小一档的宽度，它的 q_proj 就是这么大
    print("一、768×768 的一个权重，要训练多少个数")
    full = 768 * 768
    print(f"  全量微调 {full:9,}")
    for rank in (1, 8, 64):
        model = nn.Sequential(nn.Linear(768, 768, bias=False))
        trainable, total = count_trainable(apply_lora(model, LoRAConfig(r=rank, target=("0",))))
        assert trainable == 768 * rank + rank * 768
        assert total == full + trainable
        saved = 1 - trainable / full
        print(f"  r = {rank:<4} {trainable:9,}  = 768×{rank} + {rank}×768，少了 {saved:.1%}")
        if rank == 8:
            # 论文与各处教程里常引用的那一行
            assert (full, trainable, round(saved, 3)) == (589_824, 12_288, 0.979)


def show_zero_start() -> None:
    """B = 0：刚加上时输出一个比特都不变，但梯度不全为零，学得动。"""
    print("\n二、刚加上时，模型一个比特都没变")
    # 两层、宽窄不同：不是方阵也一样
    for dora in (False, True):
        model = nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 24))
        x = torch.randn(5, 48)
        before = model(x)
        apply_lora(model, LoRAConfig(r=4, target=("0", "2"), use_dora=dora))
        after = model(x)
        assert torch.equal(before, after)
        after.square().sum().backward()
        # ∂L/∂A = (α/r)·xᵀ(∂L/∂y)Bᵀ，B = 0 时为零；∂L/∂B = (α/r)·(xA)ᵀ(∂L/∂y)，不为零
        grad_a, grad_b = (float(torch.linalg.norm(p.grad)) for p in lora_parameters(model)[:2])
        assert grad_a == 0 < grad_b
        kind = "DoRA" if dora else "LoRA"
        print(f"  {kind}：输出之差 0；第一步 ‖∂L/∂A‖ = {grad_a:.0f}，‖∂L/∂B‖ = {grad_b:.2f}")
    print("  先动的是 B；B 离开零之后，A 才有梯度")


def show_rank_is_capacity() -> None:
    """要学的 ΔW 秩为 4：r 够大就全学到，不够就停在 SVD 的极限上。

    梯度下降并不知道奇异值分解，却自己走到了那个极限
    """
    print("\n三、r 是容量：要学的 ΔW 有四个奇异值 4, 3, 2, 1")
    # 两组正交的方向夹着给定的奇异值，拼出一个秩正好为 4 的改变
    left, right = torch.linalg.qr(torch.randn(24, 4)).Q, torch.linalg.qr(torch.randn(40, 4)).Q
    singular = torch.tensor([4.0, 3.0, 2.0, 1.0])
    change = (left * singular) @ right.T  # (24, 40)
    for rank in (1, 2, 4):
        base = nn.Linear(40, 24, bias=False)
        frozen = base.weight.detach().clone()
        # α = r 使缩放为 1，学到的 AB 就直接是 ΔW 的近似
        model = apply_lora(nn.Sequential(base), LoRAConfig(r=rank, alpha=rank, target=("0",)))
        optimizer = torch.optim.Adam(lora_parameters(model), lr=0.03)
        # 只把适配器交给优化器；学习率比全量微调大得多，因为 B 要从零走出来。
        # 输入取单位矩阵，等于把每个方向各问一遍：输出之差就是矩阵之差
        inputs = torch.eye(40)
        for _ in range(400):
            loss = (model(inputs) - F.linear(inputs, frozen + change)).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        # Eckart–Young 定理：秩 r 的矩阵再好，也差着其余奇异值的平方和开根号
        limit, reached = float(singular[rank:].norm()), math.sqrt(float(loss.detach()))
        assert abs(reached - limit) < 0.02
        assert torch.equal(base.weight, frozen)
        print(f"  r = {rank}：学完还差 {reached:.3f}，理论上至少差 {limit:.3f}；W 逐位未变")


@torch.no_grad()
def show_merging() -> None:
    """合并后的普通模型与带着适配器的模型，输出相同。

    所以部署时不必带着 LoRA 的代码，速度也与没微调过的模型一样
    """
    print("\n四、合并等于不合并")
    x = torch.randn(7, 64)
    # 三种公式，一套检查：合并要相等，关掉要还原
    for name in ("LoRA", "rsLoRA", "DoRA"):
        model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))
        original = model(x)
        stable, dora = name == "rsLoRA", name == "DoRA"
        apply_lora(model, LoRAConfig(r=4, target=("0", "2"), use_rslora=stable, use_dora=dora))
        for parameter in lora_parameters(model):
            parameter.add_(0.05 * torch.randn_like(parameter))  # 假装训练过
        tuned = model(x)
        # 返回的是另一个模型：里面只有普通的 nn.Linear
        plain = merge_lora(model)
        assert not adapted_layers(plain)
        # 先乘再加与先加再乘，浮点的舍入不同，所以差一点点；远小于微调本身的改变才算对
        gap, moved = float((plain(x) - tuned).abs().max()), float((tuned - original).abs().max())
        assert gap < 1e-5 < moved
        with adapters_disabled(model):
            assert torch.equal(model(x), original)
        print(f"  {name:6}：微调改变了 {moved:.2f}，合并只差 {gap:.0e}；关掉适配器逐位还原")


if __name__ == "__main__":
    run_demo(demo)
