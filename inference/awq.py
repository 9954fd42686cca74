r"""哪些权重错不起？——输入大的那几列。先把它们放大，再取整：AWQ (activation-aware)。

输入里总有几维特别大。乘它们的那几列权重，差一点，输出就差很多；可直接取整对每一列一视同仁。
把第 k 列放大 s_k 倍、输入的第 k 维缩小 s_k 倍，函数一点没变：

$$y = xW^\top = (x \oslash s)\,(W \odot s)^\top$$

取整之后却不同了。一格还是那么宽（组里最大的数若没有变），放大的列里，同样的半格误差除回去就小了：

    第 k 列          放大 s=2           取整，误差 ≤ ½ 格        除回去，误差 ≤ ¼ 格
    0.3  −0.7   →   0.6  −1.4    →    0.5  −1.5          →    0.25  −0.75

放得太大，组里的最大值跟着涨，一格变宽，别的列就吃亏。所以只有一个旋钮 α，试 21 个值，谁的输出
误差小用谁；α = 0 就是不放大，所以在校准数据上不会比直接取整差：

$$s_k = a_k^{\alpha} \big/ \text{（几何中点）}, \qquad a_k = \mathrm{mean}_t\,|x_{t,k}|, \qquad
  \alpha^* = \arg\min_\alpha\ \mathrm{tr}(\delta_\alpha H \delta_\alpha^\top), \quad
  \delta_\alpha = W - Q(W \odot s) \oslash s$$

与 GPTQ 相比：它看两维之间的相关，AWQ 只看每一维的大小，不必求逆，也不易在小的校准集上学过头。

x ⊘ s 谁来除？推理时不多做一次除法：折进前面那一层 (fold)。前面得是一个逐维线性的东西：

    前面的                后面的              怎样折
    ────────────────────  ──────────────────  ──────────────────────────────────────
    归一化 γ、β           q、k、v             γ/s、β/s
    归一化 γ、β           up、gate            γ/s、β/s
    v_proj                out_proj            v 的行与偏置 /s；几个头共用一个 v 时，s 也要共用
    up_proj（有门控）     down_proj           up 的行与偏置 /s：门与 up 相乘，逐维线性
    up_proj（ReLU²）      down_proj           /√s：relu(x/√s)² = relu(x)²/s
    up_proj（GELU）       down_proj           折不进去：GELU 不是齐次的；这一站不放大

取整之前，折好的模型与原来的是同一个函数（float32 里只差舍入）。然后再试一样：每组的范围缩到几成
(clip)。最大的那个数截掉一点，一格变窄，别的都准了；截多少，也由输出误差定。

常见疑问：
    为什么不干脆不量化那几列？ 一行里混着两种类型，核就快不了；放大之后，整行还是整数。
    s 会不会太悬殊？           会：一组里放大过的撑宽了尺子，别的就粗。所以要试，不是越大越好。
    校准的文本换了呢？         a 是平均的大小，换一段相近的文本，几乎不变；这正是它稳的地方。

论文：Lin et al. 2023, AWQ, arXiv:2306.00978；折进前一层的办法出自 SmoothQuant, arXiv:2211.10438
改哪里：试哪些 α → GRID；截到几成 → SHRINKS；多一种能折的搭配 → `folds_of`。
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foundation.demonstration import run_demo
from inference.calibration import InputStatistics, output_errors
from inference.gptq import better_rows
from transformer_basics.attention import CausalSelfAttention
from transformer_basics.integer_weights import (
    Packed,
    WeightFormat,
    decode,
    encode,
    grouped,
    restore,
    round_to_codes,
    scales_of,
)
from transformer_basics.layers import FeedForward, LayerNorm, RMSNorm, TransformerBlock

__all__ = ["Fold", "best_scale", "clipped", "fold", "folds_of"]

GRID = tuple(i / 20 for i in range(21))  # α，论文也是二十格
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55)  # 范围缩到几成


@dataclass(frozen=True)
class Fold:
    """一处能折的：source 的每一维除以 s，targets 的每一列乘以 s。

    repeats：几个头共用 source 的一段（分组查询），s 就要在这几个头里相同
    power：source 除的是 s 的几次方；ReLU² 是 1/2
    """

    source: str  # 块里的全名
    targets: tuple[str, ...]
    repeats: int = 1
    head_dim: int = 1
    power: float = 1.0


def folds_of(block: nn.Module) -> list[Fold]:
    """一块里能折的几处；见本课开头的表。别的种类的块：一处也没有。"""
    # 不认识的块里，谁在谁前面就不知道
    if not isinstance(block, TransformerBlock):
        return []
    found: list[Fold] = []
    attention, feed_forward = block.attention, block.feed_forward
    # 我们自己的块里总是这两样
    assert isinstance(attention, CausalSelfAttention)
    assert isinstance(feed_forward, FeedForward)
    # 门控的前馈多一个 gate，它与 up 看同一个输入
    gated = feed_forward.gate_proj is not None
    # ① Post-LN 的块里，注意力前面没有归一化，折不进去
    if block.norm_position == "pre":
        names = tuple(f"attention.{x}_proj" for x in "qkv")
        found.append(Fold("attention_norm", names))
        # gate 与 up 看同一个输入，也就要乘同一个 s
        wide = ("feed_forward.up_proj",) + (("feed_forward.gate_proj",) if gated else ())
        found.append(Fold("ffn_norm", wide))
    #    下面两处与归一化的位置无关。
    # ② v 到 out：注意力只是把各个位置的 v 加权平均，逐维线性
    found.append(
        Fold(
            "attention.v_proj",
            ("attention.out_proj",),
            attention.n_heads // attention.n_kv_heads,
            attention.head_dim,
        )
    )
    #    头的个数与每头的维数，定下哪几维共用 s。
    # ③ up 到 down：有门控的，或激活是齐次的
    # act(c·x) = c^p·act(x) 对正的 c 都成立，就叫 p 次齐次
    powers = {"relu2": 0.5, "relu": 1.0}
    if gated or feed_forward.activation in powers:
        power = 1.0 if gated else powers[feed_forward.activation]
        down = ("feed_forward.down_proj",)
        found.append(Fold("feed_forward.up_proj", down, power=power))
    return found


def best_scale(
    weights: list[Tensor], statistics: InputStatistics, form: WeightFormat, one: Fold
) -> Tensor:
    """试遍 α，挑输出误差最小的 s；α = 0 总在其中。

    形状：weights 各 (N_i, K)，看的是同一个输入 → s (K,) float32，α = 0 时全是 1
    """
    size = shared_over_heads(statistics.mean_abs, one)  # a (K,)
    # 校准时从来是零的维：不放大也不缩小
    size = torch.where(size > 0, size, size[size > 0].mean() if (size > 0).any() else 1.0)
    # α = 0 时 s 全是 1，先试它
    best, smallest = torch.ones_like(size), float("inf")
    for alpha in GRID:
        # 输入大的维放大得多；α = 1 时与 a 成正比
        scale = size**alpha
        # 除以几何中点：s 有大有小，整体不涨，bfloat16 的尺子也不会溢出
        scale = scale / (scale.max() * scale.min()).sqrt()
        wrong = 0.0
        # 几层看同一个输入，s 只有一个，误差加起来看
        for weight in weights:
            wide = weight.detach().cpu().double() * scale
            back = decode(encode(wide.float(), form), wide.shape[1], torch.float64) / scale
            wrong += float(output_errors(weight, back, statistics).sum())
        # 一样大就用小的 α
        if wrong < smallest:
            best, smallest = scale, wrong
    return best.float()


def shared_over_heads(values: Tensor, one: Fold) -> Tensor:
    """几个查询头共用一个 v 头时，它们的那一维取同一个数（平均）。

    形状：(H·d,) → (H·d,)；第 h 个头用第 h // repeats 个 v 头
    """
    # 没有共用：各维各的
    if one.repeats == 1:
        return values
    heads = values.view(-1, one.repeats, one.head_dim)  # (G, H/G, d)
    return heads.mean(dim=1, keepdim=True).expand_as(heads).reshape(-1)


@torch.no_grad()
def fold(block: nn.Module, one: Fold, scale: Tensor) -> dict[str, nn.Module]:
    """折好的新模块：块里的全名 → 模块；原来的一个数也没有动。

    公式：targets  W ← W ⊙ s；source  γ, β 或行与偏置 ← /s^power
    """
    # 全是复制的：半路不折了，原来的还在
    made: dict[str, nn.Module] = {}
    # ① 后面的：每一列乘 s
    for name in one.targets:
        layer = copy.deepcopy(block.get_submodule(name))
        assert isinstance(layer, nn.Linear)
        # (N, K) 乘 (K,)：按列广播
        layer.weight.mul_(scale.to(layer.weight.device))
        made[name] = layer
    # 每个 v 头只有一份，取各组的第一个查询头的就行：它们相同
    if one.repeats > 1:
        scale = scale.view(-1, one.repeats, one.head_dim)[:, 0].reshape(-1)
    # ② 前面的：每一维除以 s
    source = copy.deepcopy(block.get_submodule(one.source))
    assert isinstance(source, (LayerNorm, RMSNorm, nn.Linear))
    divisor = scale.to(source.weight.device) ** one.power
    # 归一化的 γ (K,) 与线性层的行 (K, D)，都是第 0 维
    source.weight.div_(divisor.view(-1, *[1] * (source.weight.dim() - 1)))
    # β 与偏置也是加在那一维上的，一样要除
    bias = getattr(source, "bias", None)
    if bias is not None:
        bias.div_(divisor)
    made[one.source] = source
    return made


def clipped(weight: Tensor, statistics: InputStatistics, form: WeightFormat) -> Packed:
    """每组的范围缩到几成最好？试几样，由组内的输出误差定；再与不截的逐行比，取好的。

    公式：c* = argmin_c δ_g H_gg δ_gᵀ，H_gg (g, g) 是 H 对角线上的那一块：各组分开看，忽略组间的
    形状：weight (N, K) → 与 `encode` 相同的三样
    """
    # 不截的一份，最后逐行比
    plain = encode(weight, form)
    # 与取整时同样的分组
    groups = grouped(weight.detach().cpu(), form)  # (N, G, g)
    rows, n_groups, size = groups.shape
    # ① H 对角线上的块；最后一组补零
    padded = torch.zeros(n_groups * size, n_groups * size, dtype=torch.float64)
    columns = weight.shape[1]
    padded[:columns, :columns] = statistics.hessian
    # 第 i 组的行、第 i 组的列
    index = torch.arange(n_groups)
    blocks = padded.view(n_groups, size, n_groups, size)[index, :, index]  # (G, g, g)
    # ② 一样一样地试，
    #    第一样是不截，所以总有一份能用
    best = torch.ones(rows, n_groups, 1)
    smallest = torch.full((rows, n_groups), float("inf"), dtype=torch.float64)
    for shrink in SHRINKS:
        # 范围缩小，两头的夹住，中间的格子变窄
        scale, zero = scales_of(groups, form, shrink)
        # 取整再还原，看差了多少
        back = restore(round_to_codes(groups, scale, zero, form), scale, zero)
        change = (groups - back).double()  # (N, G, g)
        wrong = (torch.einsum("ngi,gij->ngj", change, blocks) * change).sum(dim=-1)
        # 每行每组各挑各的
        better = wrong < smallest
        best[better] = shrink
        smallest = torch.where(better, wrong, smallest)
    return better_rows(weight, statistics, encode(weight.detach().cpu(), form, best), plain)


def loud_channels() -> None:
    """输入里有几维大几十倍：放大它们的那几列，输出误差小多少。"""
    torch.manual_seed(0)
    # 权重都一样，只换输入
    weight, form = torch.randn(128, 256) * 0.05, WeightFormat(4, 64)
    print("① 四比特、64 个一组，输出的相对误差")
    for loud in (1.0, 10.0, 50.0):
        x = torch.randn(4000, 256)
        x[:, ::64] *= loud  # 每组恰有一维
        # 三种做法用同一份统计，
        # 误差才可比
        statistics = InputStatistics.empty(256)
        statistics.add(x)
        whole = output_errors(weight, torch.zeros_like(weight), statistics).sum()
        scale = best_scale([weight], statistics, form, Fold("norm", ("layer",)))
        # 折好之后：权重放大了，输入缩小了
        wide, inner = weight * scale, statistics.divided(scale)
        # 放大过的，误差在折好的输入上量，与原来的可比
        errors = []
        for made, target, seen in (
            (encode(weight, form), weight, statistics),
            (encode(wide, form), wide, inner),
            (clipped(wide, inner, form), wide, inner),
        ):
            wrong = output_errors(target, decode(made, 256), seen).sum()
            errors.append(float((wrong / whole).sqrt()))
        three = "直接取整 {:.4f}  放大 {:.4f}  再截 {:.4f}".format(*errors)
        print(f"   大 {loud:>2.0f} 倍  {three}  s 从 {scale.min():.2f} 到 {scale.max():.2f}")
        assert errors[2] <= errors[1] <= errors[0]


def folding_changes_nothing() -> None:
    """折进前一层：取整之前，块的输出只差 float32 的舍入。"""
    from gpt_model.config import preset
    from gpt_model.model import GPT

    # 三种块，各有各的搭配
    print("② 折好之后，块的输出变了多少（s 随机，0.1 到 10）")
    for name, changes in (
        ("GPT-2 的块", {}),
        ("Llama 的块", {"norm": "rmsnorm", "gated_ffn": True, "activation": "silu"}),
        ("分组查询、ReLU²", {"n_kv_heads": 2, "activation": "relu2"}),
    ):
        # 没有训练过的块就够：折与不折是代数上的事，
        # 与权重是多少无关
        torch.manual_seed(0)
        block = GPT(preset("gpt-micro", vocab_size=65, **changes)).blocks[0].eval()
        x = torch.randn(2, 9, 128)
        # 一处一处地折，折完再看
        before, folds = block(x), folds_of(block)
        for one in folds:
            target = block.get_submodule(one.targets[0])
            assert isinstance(target, nn.Linear)
            # 几个头共用的，s 也要共用；
            # 别的随便：这里从 0.1 到 10
            scale = shared_over_heads(10 ** (2 * torch.rand(target.in_features) - 1), one)
            for place, module in fold(block, one, scale).items():
                block.set_submodule(place, module)
        gap = float((block(x) - before).abs().max() / before.abs().max())
        print(f"   {name:　<9} {len(folds)} 处，{gap:.0e}")
        assert gap < 1e-5


@torch.no_grad()
def demo() -> None:
    """放大值多少；折进前一层是不是原样。

    两步各自断言
    """
    loud_channels()
    folding_changes_nothing()


if __name__ == "__main__":
    run_demo(demo)
