r"""整数的模型怎样交给只认浮点数的程序？——还原成普通的层；尺子也能单独取出来。

合并 LoRA、全量微调、存成 Hugging Face 的文件夹，都要普通的线性层。还原就是把 ŵ 写出来：

$$\hat w = s\,(q - z)$$

    QuantizedLinear (q, s, z, b)  ──dequantize──►  Linear (Ŵ, b)
    QuantizedEmbedding (q, s, z)  ──────────────►  TokenEmbedding (Ê)
    两处共用一张表的              ──────────────►  还是共用一张

为什么还原放在这一层：合并 LoRA（第 4 层）、存成 GGUF（第 2 层）都要它，放在两者下面才不绕圈。

类型怎样定：整数的层没有类型，跟着输入走；还原之后有了，就取模型里别的参数的，
float32 的模型还是 float32，bfloat16 的还是 bfloat16。

输出不变（只差乘法的次序），量化丢掉的却不会回来：Ŵ 里的数仍只有十六种（每组）。

llama.cpp 的 q4_0、q8_0 与我们的整数几乎是同一种东西：每 32 个一把尺子。想把整数原样写过去，就要知道
每个权重的尺子；而写的人（gguf_architecture.py）会重排行、拼接矩阵。办法：造一个「权重就是尺子」的
模型，让它走同样的路，尺子就跟着权重排好了：

    q_proj  Ŵ (N, K) ─┐ 重排、拼接            ┌─ 每个权重的值
    q_proj  S (N, K) ─┘ （同一个函数走两遍）  └─ 每个权重的尺子    值 / 尺子 = 整数 q

论文：Frantar et al. 2022, GPTQ, arXiv:2210.17323 §4：用时还原
改哪里：多一种整数的模块 → `plain_module`；交给 llama.cpp → gguf_integers.py。
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from foundation.demonstration import run_demo
from transformer_basics.embeddings import TokenEmbedding
from transformer_basics.integer_weights import WeightFormat
from transformer_basics.linear import Linear
from transformer_basics.quantized_linear import (
    PackedWeight,
    QuantizedLinear,
    quantized_parts,
    replace_module,
)

__all__ = ["dequantize", "float_type", "scales_as_weights"]


def float_type(model: nn.Module) -> torch.dtype:
    """模型里浮点数的类型：第一个参数的；一个也没有就是 float32。

    模型里偶尔有两种（冻结的底座 bf16、归一化 float32），取先登记的
    """
    # 整数的权重是缓冲区，不在其中；归一化、偏置总还在
    kinds = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(kinds, torch.float32)


@torch.no_grad()
def dequantize(model: nn.Module) -> nn.Module:
    """就地换回普通的层，权重是还原出来的 Ŵ；返回同一个模型。

    类型：与模型里别的参数相同，接着算才不会两边类型不合
    """
    # 共用的表还原一次，换上去还是共用：按 packed 认
    dtype, plain = float_type(model), dict[int, nn.Parameter]()
    # 收成字典再换：边走边换，走的就乱了
    for name, part in quantized_parts(model).items():
        key = id(part.packed)
        # 第二次见到同一张表，用的还是第一次还原的
        if key not in plain:
            plain[key] = nn.Parameter(part.weight.to(dtype))
        replace_module(model, name, plain_module(part, plain[key]))
    return model


def plain_module(part: PackedWeight, weight: nn.Parameter) -> nn.Module:
    """同样形状的普通的层，装着给定的权重与原来的偏置。

    用我们的 Linear 而不用 nn.Linear：快路、分段的损失只认它

    先在 meta 上造空壳：不分配内存，也不惊动随机数
    """
    module: Linear | TokenEmbedding
    with torch.device("meta"):
        if isinstance(part, QuantizedLinear):
            module = Linear(part.in_features, part.out_features, bias=False)
            # 偏置没有量化，还是那一个参数
            module.register_parameter("bias", part.bias)
        else:
            module = TokenEmbedding(part.rows, part.columns)
    module.weight = weight
    return module.train(part.training)


@torch.no_grad()
def scales_as_weights(model: nn.Module) -> nn.Module:
    """另一个模型：每个整数的权重换成它的尺子 s，别的参数都是 NaN（没有尺子）。

    形状：s (N, G) → (N, K)，一组里的 K/G 个都是同一个数
    约定：有零点的也当作没有：ŵ = s·(q − z) 除以 s 不在 −8…7 之内
    """
    # 复制一份来改；整数的模型小，复制得起
    scales = copy.deepcopy(model)
    for name, part in quantized_parts(scales).items():
        # 一组的尺子，组里每个权重一份；补的零不算
        wide = part.scale.float().repeat_interleave(part.group_size, dim=1)[:, : part.columns]
        # 有零点的写不成「尺子 × 整数」，
        # 当作没有尺子
        whole = wide if part.zero is None else torch.full_like(wide, torch.nan)
        module = plain_module(part, nn.Parameter(whole))
        replace_module(scales, name, module)
    # 归一化、偏置、没有量化的矩阵：没有尺子可言
    kept = {f"{name}.weight" for name in quantized_parts(model)}
    for name, parameter in scales.named_parameters(remove_duplicate=False):
        if name not in kept:
            parameter.fill_(torch.nan)
    # 不求导：它只是一张表
    return scales.requires_grad_(False)


def demo() -> None:
    """还原之后输出不变，数却只剩十六种；值除以尺子，就是整数。"""
    torch.manual_seed(0)
    form = WeightFormat(4, 32)
    model = nn.Sequential(nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 8))
    # 两层都换成四比特的
    for name in ("0", "2"):
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        replace_module(model, name, QuantizedLinear.from_linear(linear, form))
    x = torch.randn(5, 64)
    before = model(x).detach()
    # 尺子要在还原之前取
    scales = scales_as_weights(model).get_parameter("0.weight")
    plain = dequantize(model)
    gap = float((plain(x).detach() - before).abs().max())
    # 类型都是普通的了
    print(f"① 还原之后：{[type(m).__name__ for m in plain.children()]}，输出相差 {gap:.0e}")
    assert gap < 1e-5
    # 看第一层，64 列，两组
    weight: Tensor = plain.get_parameter("0.weight")
    # 一组 32 个，还原出来的至多十六种
    kinds = len(weight[0, :32].unique())
    print(f"② 第一行第一组 32 个权重，只有 {kinds} 种值")
    assert kinds <= 16
    # 除以尺子，应当正好是整数，一位不差
    codes = weight / scales
    print(f"③ 值 / 尺子 = {[round(v) for v in codes[0, :8].tolist()]} …，都是整数")
    assert torch.equal(codes, codes.round())
    assert codes.min() >= -8
    assert codes.max() <= 7
    # 第二层 48 列：最后一组不满，尺子照样排得上
    print(f"④ 第一组的尺子 {float(scales[0, 0]):.5f}，第二组的 {float(scales[0, 32]):.5f}")
    # 半精度的模型，
    # 还原出来也是半精度：
    # 导出的文件与没有量化的那个一样大，
    # 不会无缘无故大一倍
    kept = float_type(plain.to(torch.bfloat16))
    print(f"⑤ 模型若是 16 位的，还原出来也是：{kept}")
    assert kept == torch.bfloat16


if __name__ == "__main__":
    run_demo(demo)
