r"""一个权重能不能只用四个比特？——分组量化 (group-wise quantization)：每组一把尺子，16 个刻度。

模型的大小几乎全在线性层的权重里；生成一个词元要把它们从内存里全读一遍，微调时它们又只是摆着不动。
四比特存一个权重，内存与搬运都只剩 float32 的八分之一。

每 64 个相邻的权重一组，组里绝对值最大的那个数 m（带着符号）定下刻度：

$$s = \frac{m}{-8}, \qquad
  q_j = \mathrm{clamp}\!\left(\mathrm{round}\frac{w_j}{s},\, -8,\, 7\right), \qquad
  \hat w_j = s\,q_j$$

s 带着与 m 相反的符号，于是 m 恰好落在 −8 上，一点也不损失；若用 |m|/7，−8 这一格就永远空着，
别的格子都宽了七分之一。误差：另一头最远差一格（+8 没有，夹到 7），其余至多半格：

$$|w_j - \hat w_j| \le \tfrac{1}{2}|s| = \tfrac{1}{16}|m| \quad (q_j < 7), \qquad
  \le |s| \quad (q_j = 7)$$

    一行权重 (K,)   分成 G 组        量化              两个一字节
    ┌──────────┐   ┌──────┬──┐    q + 8 ∈ 0…15      低四位：组里的前一半
    │ w₀ w₁ …  │ → │ 64 个│… │ →  4 bit 一个     →  高四位：后一半          uint8 (N, G, 32)
    └──────────┘   └──────┴──┘    每组一个 s                               bfloat16 (N, G)

$$\text{每个权重} = 4 + \frac{16}{64} = 4.25\ \text{bit}$$

组为什么不能太大：一个离群的大数 (outlier) 会把整组的刻度撑宽，别人全挤在中间几格；
组也不能太小：每组都要存一个 s。64 是常用的折中（演示里量给你看）。

算的时候先还原 (dequantize)，再做普通的乘法。反向也要用到权重，但不留着还原出来的那一份：

    前向  Ŵ = 还原(q, s)    y = xŴᵀ + b     用完就扔，只记下 q 与 s（它们本来就在）
    反向  Ŵ 再还原一次      ∂L/∂x = G·Ŵ     权重冻结，没有 ∂L/∂W

QLoRA 就是这样：底座四比特，冻着；旁边的 A、B 是普通的浮点数，梯度穿过 Ŵ 传回去。

常见疑问：
    为什么不训练 q？   它是整数，没有导数；要改权重，就在旁边加 LoRA。
    为什么 s 用 bf16？ 与 float32 同样的范围，一个字节也不多；千分之几的误差比一格小得多。
    哪些层不量化？     与词嵌入共用的 lm_head：查表要用原样的；归一化、偏置：小，不值得。

论文：Dettmers & Zettlemoyer 2023, The case for 4-bit precision, arXiv:2212.09720；
      Dettmers et al. 2023, QLoRA, arXiv:2305.14314
改哪里：换刻度（例如 QLoRA 的 NF4），改 `quantize_groups` 与 `dequantize_groups`；
        多一种位数，在 `BITS` 里添；哪些层不动，`quantize` 的 skip。
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from foundation.checks import check_choice, check_int
from foundation.demonstration import run_demo
from transformer_basics.linear import product

__all__ = ["QuantizedLinear", "dequantize", "quantize", "quantized_layers"]

BITS = (4,)
LOWEST, HIGHEST = -8, 7  # 四比特的补码：16 个整数


def quantize_groups(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """权重 → 打包好的四比特，与每组的刻度。

    公式：s = m / −8，q = clamp(round(w / s), −8, 7)，m 是组里绝对值最大的数
    形状：(N, K) → packed uint8 (N, G, group_size / 2)、scale bfloat16 (N, G)；G = ⌈K / 组⌉
    错误：有 NaN 或无穷大 → ValueError：它会把整组都变成 NaN
    """
    if not torch.isfinite(weight).all():
        raise ValueError("the weight holds NaN or infinite values and cannot be quantized")
    # ① 分组；最后一组不满的补零，零量化了还是零
    rows, columns = weight.shape
    n_groups = -(-columns // group_size)
    wide = weight.new_zeros(rows, n_groups * group_size, dtype=torch.float32)
    wide[:, :columns] = weight
    groups = wide.view(rows, n_groups, group_size)  # (N, G, g)
    # ② 每组的刻度：绝对值最大的那个数，带着符号；除以 −8 是二的幂，不舍入
    where = groups.abs().argmax(dim=-1, keepdim=True)  # (N, G, 1)
    scale = (groups.gather(-1, where) / LOWEST).to(torch.bfloat16)  # (N, G, 1)
    # ③ 取整：用存下的那个 s 去除，而不是舍入之前的；全零的组 s = 0，除不得，结果就是 0
    step = scale.float()
    codes = torch.where(step == 0, 0.0, groups / step).round_().clamp_(LOWEST, HIGHEST)
    # ④ 挪到 0…15，两个拼成一个字节：组里的前一半放低四位，后一半放高四位
    low, high = (codes - LOWEST).to(torch.uint8).chunk(2, dim=-1)  # 各 (N, G, g/2)
    return low | (high << 4), scale[..., 0]


def dequantize_groups(packed: Tensor, scale: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """上一个函数的逆：ŵ = s·q。

    形状：packed (N, G, g/2)、scale (N, G) → (N, K)，K = columns，补的零去掉
    类型：结果是 dtype；q 与 s 在 bf16 里都精确，乘一次舍入一次
    """
    # ① 拆成两半，接回一组；先接再转，搬的是字节
    codes = torch.cat((packed & 15, packed >> 4), dim=-1)  # (N, G, g)
    # 就地做：一份 (N, K) 的浮点数已经不小，不要有第二份
    # ② 挪回 −8…7，乘上这一组的刻度
    values = codes.to(dtype).add_(LOWEST).mul_(scale.to(dtype)[..., None])
    return values.flatten(1)[:, :columns]  # (N, K)


class _FrozenProduct(torch.autograd.Function):
    """y = xŴᵀ：前向还原一次、反向再还原一次，中间不留。

    形状：x (…, K) → (…, N)
    autograd 自己来的话，会把 Ŵ 存到反向：每层一份全尺寸的权重，四比特就白量化了
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
        # 这两样本来就在模型里，存的只是引用
        ctx.save_for_backward(packed, scale)
        ctx.dtype, ctx.columns = x.dtype, x.shape[-1]
        weight = dequantize_groups(packed, scale, ctx.columns, x.dtype)  # (N, K)
        output = product(x.reshape(-1, x.shape[-1]), weight.t())
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Any:
        packed, scale = ctx.saved_tensors
        # ∂L/∂x = G·Ŵ；补的零列不在里面，所以记着前向有几列
        weight = dequantize_groups(packed, scale, ctx.columns, ctx.dtype)
        grad_x = product(slope.reshape(-1, slope.shape[-1]), weight)
        return grad_x.view(*slope.shape[:-1], ctx.columns), None, None


class QuantizedLinear(nn.Module):
    """四比特的 nn.Linear：y = xŴᵀ + b，Ŵ 冻结，偏置原样。

    形状：x (…, K) → (…, N)
    类型：自动混合精度时在 autocast 的类型里乘，否则用 x 的；输出与乘法同类型
    存取：packed、scale 是缓冲区，进 state_dict，但不是参数：没有梯度，优化器也不认识它们
    """

    packed: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, group_size: int = 64) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.group_size = check_int("group_size", group_size, 2)
        # 组里的前一半与后一半各占四位，所以要能对半分
        if group_size % 2:
            raise ValueError(f"group_size must be even, got {group_size}")
        packed, scale = quantize_groups(linear.weight.detach(), group_size)
        self.register_buffer("packed", packed)  # (N, G, g/2) uint8
        self.register_buffer("scale", scale)  # (N, G) bfloat16
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """还原出来的 Ŵ (N, K)，float32；每次现算，给看的、合并的用。

        只读：改它返回的张量，改不到存着的 q 与 s
        """
        return dequantize_groups(self.packed, self.scale, self.in_features, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """y = xŴᵀ + b；(…, K) → (…, N)。"""
        # 自动混合精度不认识我们的 Function，所以自己换类型
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            output: Tensor = _FrozenProduct.apply(x, self.packed, self.scale)  # type: ignore[no-untyped-call]
            return output if self.bias is None else output + self.bias.to(output.dtype)

    def extra_repr(self) -> str:
        """打印模型时看得出是几比特、多大一组。"""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bits=4, group_size={self.group_size}, bias={self.bias is not None}"

    def n_bytes(self) -> int:
        """权重占多少字节：半个字节一个，加上每组两个字节。"""
        return self.packed.nbytes + self.scale.nbytes


def quantize(
    model: nn.Module, bits: int = 4, group_size: int = 64, skip: Sequence[str] = ("lm_head",)
) -> nn.Module:
    """就地把模型里的线性层换成四比特的，返回同一个模型；权重从此冻结。

    skip：名字的最后一节是它们的不换；与别处共用的权重也不换（查词嵌入要用原样的）
    错误：位数、组的大小不对，权重里有 NaN，一层也没有 → ValueError；此时模型保持原样
    """
    check_choice("bits", str(bits), [str(known) for known in BITS])
    # ① 挑：nn.Linear，不在 skip 里，也不与别处共用
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    chosen = {
        name: module
        for name, module in model.named_modules()
        if name and isinstance(module, nn.Linear)
        if name.rpartition(".")[2] not in skip and owners[id(module.weight)] == 1
    }
    if not chosen:
        raise ValueError("the model has no Linear layer to quantize")
    # 词嵌入与 lm_head 共用一个张量时，它有两个名字
    # ② 全部算好再换：半路出错，模型也还是原样
    made = {}
    for name, linear in chosen.items():
        try:
            made[name] = QuantizedLinear(linear, group_size).train(linear.training)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return _replace(model, made)


def dequantize(model: nn.Module) -> nn.Module:
    """就地换回普通的 nn.Linear，权重是还原出来的 Ŵ（float32）；返回同一个模型。

    量化丢掉的不会回来；这样做是为了存成谁都认得的模型
    """

    def plain(layer: QuantizedLinear) -> nn.Linear:
        """先在 meta 上造空壳：不分配内存，也不惊动随机数。"""
        linear = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(layer.weight)
        linear.bias = layer.bias
        return linear.train(layer.training)

    return _replace(model, {name: plain(layer) for name, layer in quantized_layers(model).items()})


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    """全名 → 每个四比特的层，按模型里的先后；没有量化过的模型给出空的。"""
    return {name: m for name, m in model.named_modules() if isinstance(m, QuantizedLinear)}


def _replace(model: nn.Module, made: dict[str, Any]) -> nn.Module:
    """把名字对应的子模块换掉，返回同一个模型。"""
    # 例：blocks.0.attention.q_proj 就是 model.blocks[0].attention 的属性 q_proj
    for name, module in made.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, module)
    return model


def worked_example() -> None:
    """一组八个数，手算得出来：最大的是 −4，所以 s = 0.5。"""
    weight = torch.tensor([[-4.0, 3.9, 0.2, -0.2, 1.0, 0.0, 2.3, -1.1]])
    packed, scale = quantize_groups(weight, 8)
    back = dequantize_groups(packed, scale, 8, torch.float32)
    print(f"① 一组八个数，s = m/−8 = {float(scale):.2f}")
    print(f"   权重   {[round(v, 2) for v in weight[0].tolist()]}")
    print(f"   编码   {[round(v) for v in (back / scale.float())[0].tolist()]}")
    print(f"   还原   {back[0].tolist()}；打包成 {packed[0, 0].tolist()} 四个字节")
    # 打印里最后一行是存下的样子：低四位是前四个，高四位是后四个
    # 最大的那个一点不差；3.9 该是 7.8 格，夹到 7，差了将近一格
    assert back[0, 0] == -4.0
    assert back[0, 1] == 3.5
    assert packed.nbytes == 4


def group_sizes() -> None:
    """组越小越准，越占地方；一个离群的大数害多少人，就看组有多大。

    离群的数在真的大模型里很常见，而且集中在几列；这里照样造两个
    """
    torch.manual_seed(0)
    weight = torch.randn(256, 1024)
    weight[:, ::512] *= 20.0  # 每行两个离群的
    # 每个权重的比特数是精确的：4 + 16 / 组
    print("② 组的大小：相对误差 ‖W − Ŵ‖/‖W‖，与每个权重几比特")
    errors = []
    for size in (16, 64, 256, 1024):
        layer = nn.Linear(1024, 256, bias=False)
        layer.weight = nn.Parameter(weight)
        made = QuantizedLinear(layer, size)
        # 离群的那几个自己不算，看它们连累了别人多少
        rest = torch.ones(1024, dtype=torch.bool)
        rest[::512] = False
        gap = (weight - made.weight)[:, rest].norm() / weight[:, rest].norm()
        errors.append(float(gap))
        bits = 8 * made.n_bytes() / weight.numel()
        print(f"   {size:5} 个一组  误差 {float(gap):.3f}  {bits:.3f} bit")
        assert bits == 4 + 16 / size
    assert errors == sorted(errors)


def a_model() -> None:
    """整个模型：占多少、输出变了多少、梯度对不对。

    模型没有训练过，权重是正态分布；训练过的也差不多
    """
    # 到用时才导入：模型在更低的一层
    from gpt_model.config import preset
    from gpt_model.model import GPT

    torch.manual_seed(0)
    model = GPT(preset("gpt-micro", vocab_size=65, dim=128, n_layers=2)).eval()
    ids = torch.randint(65, (2, 64))
    before = model(ids).logits.detach()
    inner = sum(m.weight.nbytes for n, m in model.named_modules() if type(m).__name__ == "Linear")
    inner -= model.lm_head.weight.nbytes
    # 就地换：同一个模型，线性层变成了四比特的
    after = quantize(model)(ids).logits
    packed = sum(layer.n_bytes() for layer in quantized_layers(model).values())
    print(f"③ 线性层 {inner:,} → {packed:,} 字节，{inner / packed:.2f} 分之一")
    assert abs(inner / packed - 32 / 4.25) < 1e-9
    gap = float((after.detach() - before).norm() / before.norm())
    print(f"   logits 相对变了 {gap:.3f}")
    assert 0.0 < gap < 0.2

    # 反向穿过还原的权重：与普通线性层用 Ŵ 算的梯度相同
    layer = next(iter(quantized_layers(model).values()))
    x = torch.randn(3, layer.in_features, requires_grad=True)
    (found,) = torch.autograd.grad(layer(x).square().sum(), x)
    weight = layer.weight
    bias = 0.0 if layer.bias is None else layer.bias
    (wanted,) = torch.autograd.grad((x @ weight.t() + bias).square().sum(), x)
    print(f"   ∂L/∂x 与用 Ŵ 直接算的相差 {float((found - wanted).abs().max()):.0e}")
    torch.testing.assert_close(found, wanted)


def demo() -> None:
    """手算一组，看组的大小，再量化整个模型。

    三步各自断言：手算的数、误差的先后、内存的公式
    """
    steps: tuple[Callable[[], None], ...] = (worked_example, group_sizes, a_model)
    for step in steps:
        step()


if __name__ == "__main__":
    run_demo(demo)
