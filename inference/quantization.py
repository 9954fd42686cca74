r"""整个模型怎样变成整数，而写出来的话几乎不变？——换掉每个线性层，别的一样不动。

模型的大小几乎全在线性层的权重里；生成一个词元要把它们从内存里全读一遍，微调时它们又只是摆着不动。
四比特存一个权重，内存与搬运都只剩 float32 的八分之一：

$$\text{每个权重的比特} = b + \frac{16\,[+\,8]}{g}, \qquad
  b = 4,\ g = 64:\quad 4 + \tfrac{16}{64} = 4.25$$

    GPT                                     quantize(model, bits=4)
    ├── token_embedding   (V, D)            不动；embeddings=8 时变成 int8 的表
    ├── blocks.i
    │   ├── attention.{q,k,v,out}_proj      → QuantizedLinear，四比特
    │   ├── feed_forward.{up,gate,down}_proj → QuantizedLinear，四比特
    │   └── 归一化、偏置                    不动：小，不值得
    └── lm_head           与词嵌入共用      跟着词嵌入走

一个数怎样变成整数，在 transformer_basics/integer_weights.py；
整数的层怎样算，在 quantized_linear.py。
本课只管哪些层换、换完怎样，和换回来。

权重差多少，与输出差多少，是两回事：输入里有一维特别大（离群，outlier），误差就几乎全来自乘它的那
一列。好办法都从这里来：看过真的输入，再决定每个权重往哪边舍入，见 gptq.py 与 awq.py。

量化之后，各处怎样：
    生成、评估    照旧：QuantizedLinear 的输入输出与 nn.Linear 一样
    存盘          packed、scale 进 safetensors，config.json 里多一项 quantization
    微调          QLoRA：旁边加适配器，底座不动
    合并、导出    先换回来（dequantize）

常见疑问：
    激活为什么不舍入？   激活有离群的维，一把尺子管不住；权重没有，而且只舍入一次，可以慢慢挑。
    词嵌入为什么另说？   它与 lm_head 往往是同一张表，一头查表、一头打分；四比特伤得最重，
                         八比特几乎无损。小模型里它占两三成，不量化它，模型就小不下去。
    量化之后还能练吗？   整数没有导数；在旁边加 LoRA（QLoRA），或先 dequantize 再全量地练。

论文：Dettmers & Zettlemoyer 2023, The case for 4-bit precision, arXiv:2212.09720；
      Dettmers et al. 2023, QLoRA, arXiv:2305.14314
改哪里：哪些层不动 → `quantize` 的 skip；换一种刻度 → integer_weights.py；
        多一种挑整数的办法 → block_by_block.py 的 METHODS。
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from foundation.checks import check_choice
from foundation.demonstration import run_demo
from gpt_model.config import preset
from gpt_model.dequantization import dequantize
from gpt_model.model import GPT
from inference.block_by_block import METHODS, quantize_blocks
from transformer_basics.embeddings import TokenEmbedding
from transformer_basics.integer_weights import WeightFormat, encode, refuse_non_finite
from transformer_basics.quantized_linear import (
    PackedWeight,
    QuantizedEmbedding,
    QuantizedLinear,
    quantized_layers,
    quantized_parts,
    replace_module,
)

__all__ = ["dequantize", "quantize", "quantized_bytes", "quantized_layers"]


@torch.no_grad()
def quantize(
    model: nn.Module,
    bits: int = 4,
    group_size: int | None = 64,
    skip: Sequence[str] = ("lm_head",),
    *,
    zero_points: bool = False,
    embeddings: int | None = None,
    method: str = "rtn",
    calibration: Tensor | None = None,
    act_order: bool = False,
    watch: Callable[[str], None] | None = None,
) -> nn.Module:
    """就地把模型里的线性层换成整数的，返回同一个模型；权重从此冻结。

    group_size：几个权重一把尺子；None 是一行一把
    skip：名字的最后一节是它们的不换；与别处共用的权重也不换
    embeddings：词嵌入（与它共用或单独的 lm_head）用几比特；None 就不动，查表用原样的
    method：rtn 直接取整；gptq、awq 要看 calibration 里的词元 (n, T)，只对 GPT；
            rtn 也给了 calibration，就顺便量出每层的输出误差；act_order 只给 gptq；watch 报进度
    错误：位数、组的大小不对，权重里有 NaN，量化过了，一层也没有 → ValueError；此时模型保持原样
    """
    check_choice("method", method, METHODS)
    check_calibration(model, method, calibration, act_order)
    # 写错的位数、组的大小，在动手之前就说
    form = WeightFormat(bits, group_size, zero_points)
    table_form = None if embeddings is None else WeightFormat(embeddings, group_size)
    # 量化两遍，误差叠两次；多半是忘了已经量化过
    if quantized_parts(model):
        raise ValueError(
            "the model is quantized already; dequantize it first, or load the original"
        )
    # ① 挑：nn.Linear，不在 skip 里，也不与别处共用
    chosen = {
        name: linear
        for name, linear in linear_layers(model).items()
        if name.rpartition(".")[2] not in skip and not is_shared(model, linear.weight)
    }
    if not chosen:
        # 什么也没换却说成功，不如说清楚
        raise ValueError("the model has no Linear layer to quantize")
    # 组比最宽的一行还宽，每行都要补零到满一组，文件反而变大；那时该写的是一行一组。
    # 256 以内不管：极窄的模型，补的零不多，常用的大小处处可用
    most = max(256, *(linear.weight.shape[1] for linear in chosen.values()))
    if group_size is not None and group_size > most:
        # 给的、上限、该怎么写，一次说完
        raise ValueError(
            f"group_size must be at most {most} here, got {group_size}: no row is as wide "
            "(None, or --group-size 0, gives each row one scale)"
        )
    # ② 全部算好再换：半路出错，模型也还是原样；词表另有自己的位数
    made = {} if table_form is None else quantized_tables(model, table_form)
    for name, linear in chosen.items():
        with named(name):
            refuse_non_finite(linear.weight)
            # 各块里的，有校准数据时另做；
            # 词表的那几个已经做好了
            if name not in made and (calibration is None or not name.startswith("blocks.")):
                made[name] = QuantizedLinear.from_linear(linear, form)
    # 看着输入，一块一块地换；
    # 出错时它自己会换回来，这时别处还没有动
    if calibration is not None:
        assert isinstance(model, GPT)
        quantize_blocks(
            model, form, calibration, method, skip=skip, act_order=act_order, watch=watch
        )
    # ③ 换上去：blocks.0.attention.q_proj 就是 model.blocks[0].attention 的属性 q_proj
    for name, module in made.items():
        replace_module(model, name, module)
    return model


def check_calibration(
    model: nn.Module, method: str, calibration: Tensor | None, act_order: bool
) -> None:
    """给的与办法合不合；不合的不悄悄略过。

    错误：gptq、awq 没有词元，或模型不是 GPT；act_order 给了别的办法 → ValueError
    """
    # 给错了办法的选项，略过就是骗人
    if act_order and method != "gptq":
        raise ValueError(f"act_order belongs to method gptq, got method {method}")
    if calibration is None:
        if method != "rtn":
            raise ValueError(f"method {method} needs calibration: token ids to run the model on")
        return
    # 一块一块地走，
    # 要知道块在哪里
    if not isinstance(model, GPT):
        raise ValueError(f"calibration needs a GPT, got {type(model).__name__}")


def quantized_tables(model: nn.Module, form: WeightFormat) -> dict[str, PackedWeight]:
    """词嵌入与输出层：共用一张表的，量化之后也共用。

    lm_head 在 skip 里也照换：要不要动词表，由 embeddings 一个开关说了算
    """
    made: dict[str, PackedWeight] = {}
    # ① 查表的那一头；一个模型里通常只有一张
    for name, table in model.named_modules():
        if not isinstance(table, TokenEmbedding):
            continue
        with named(name):
            stored = encode(table.weight, form)
        rows, columns = table.weight.shape
        # 输出的类型照旧：整个模型的类型由词嵌入定
        made[name] = QuantizedEmbedding(rows, columns, form, stored, dtype=table.dtype)
        # ② 与它共用的线性层，多半就是 lm_head：
        #    拿的是同一份 stored，内存里只有一份
        for head_name, head in linear_layers(model).items():
            if head.weight is table.weight:
                made[head_name] = QuantizedLinear.from_linear(head, form, stored)
    # ③ 不共用的 lm_head，也是一张 (V, D) 的表
    for name, head in linear_layers(model).items():
        if name.rpartition(".")[2] == "lm_head" and name not in made:
            with named(name):
                made[name] = QuantizedLinear.from_linear(head, form)
    return made


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """全名 → 每个普通的线性层。

    模型自己就是一个时（全名是空的）不算：没法把自己换掉
    """
    return {n: m for n, m in model.named_modules() if n and isinstance(m, nn.Linear)}


def is_shared(model: nn.Module, weight: Tensor) -> bool:
    """这个张量是不是有两个名字：词嵌入与 lm_head 共用时就是。

    换掉其中一个，共用就断了：另一头还是原来的数，存盘却只有一份
    """
    return sum(p is weight for _, p in model.named_parameters(remove_duplicate=False)) > 1


@contextmanager
def named(name: str) -> Iterator[None]:
    """里面抛的 ValueError，前面加上是哪一层。

    取整的函数不知道层名；几十层里是哪一层坏了，用户只能从这里知道
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def how_large_and_how_wrong() -> None:
    """整个模型：占多少、输出变了多少；几比特、几个一组、词表动不动。

    模型没有训练过，权重是正态分布；训练过的见 benchmarks/quantization_quality.py
    """
    # 同一串编号，比较量化前后
    model, ids = small_model(), torch.randint(65, (2, 64))
    before = model(ids).logits
    size = sum(p.nbytes for p in model.parameters())
    print(f"① 整个模型 {size:,} 字节；logits 相对变了多少")
    gaps = []
    # 从粗到细，词表两种
    for bits, group, tables in (
        (8, None, None),
        (8, 64, 8),
        (4, 128, None),
        (4, 64, 8),
        (4, 32, 8),
    ):
        # quantize 是就地换的，所以先复制一份
        other = quantize(copy.deepcopy(model), bits, group, embeddings=tables)
        # 大小有两部分：
        # 剩下的参数（归一化、偏置、位置表），加上整数的
        found = sum(p.nbytes for p in other.parameters()) + quantized_bytes(other)
        # 变了多少：‖差‖ / ‖原来的‖
        gap = float((other(ids).logits - before).norm() / before.norm())
        kind = f"{bits} 比特，{'一行' if group is None else f'{group} 个'}一组"
        print(f"   {kind:<14} 词表 {tables or 32:>2} 比特  {found:>9,} 字节  {gap:.4f}")
        assert 0.0 < gap < 0.2
        gaps.append(gap)
    # 八比特几乎无损；四比特，组越小越准
    assert max(gaps[:2]) < 0.02 < min(gaps[2:])
    assert gaps[4] < gaps[3]


def one_loud_column() -> None:
    """输入里有一维特别大：权重的误差一个比特也没变，输出的误差却几乎全来自那一列。

    公式：输出误差的平方 = Σ_j (Σ_k x_k·δ_jk)²，δ = W − Ŵ；
          输入各维不相关时，第 k 列的一份是 E[x_k²]·‖δ_k‖²
    """
    # 没有训练过的就够：
    # 一层没有训练过的，各列的误差差不多大
    layer = nn.Linear(256, 256, bias=False)
    rounded = QuantizedLinear.from_linear(layer, WeightFormat(4, 64))
    # 与输入无关，
    # 三种放大都用它
    wrong = (layer.weight - rounded.weight).square().sum(dim=0)  # (K,) 每一列的误差
    x = torch.randn(1000, 256)
    print("② 第 7 列的误差占输出误差的几成；256 列，本该各占 0.4%")
    shares = []
    for loud in (1.0, 10.0, 100.0):
        # 各维的均方 E[x_k²]，
        # 放大 c 倍，均方是 c² 倍
        sizes = x.square().mean(dim=0)
        sizes[7] *= loud**2
        # 这一列的一份，
        # 除以全部
        shares.append(float(sizes[7] * wrong[7] / (sizes * wrong).sum()))
        print(f"   第 7 维放大 {loud:>3.0f} 倍  {shares[-1]:.1%}")
    # 放大一百倍，平方是一万倍
    assert shares[0] < 0.01
    assert shares[2] > 0.9


def there_and_back() -> None:
    """换回来：整数丢掉的不会回来，但输出与整数的一样。"""
    model = quantize(small_model(), embeddings=8)
    assert isinstance(model, GPT)
    # 换回来之前，先记下它算的
    ids = torch.randint(65, (2, 64))
    # 两层各六个，加上词表的两头
    count, logits = len(quantized_parts(model)), model(ids).logits
    # 就地换，返回同一个模型
    plain = dequantize(model)
    gap = float((plain(ids).logits - logits).abs().max())
    print(f"③ 换回来：{count} 个模块又是浮点数，输出相差 {gap:.0e}")
    assert quantized_parts(plain) == {}
    # 共用的还是共用的
    assert model.lm_head.weight is model.token_embedding.weight
    assert gap < 1e-4


def small_model() -> GPT:
    """演示用的小模型：两层，词表 65。

    同一个种子，每次都一样
    """
    torch.manual_seed(0)
    return GPT(preset("gpt-micro", vocab_size=65, dim=128, n_layers=2)).eval()


def quantized_bytes(model: nn.Module) -> int:
    """整数的那一部分占多少字节。

    按张量认：词嵌入与 lm_head 共用的表只算一次
    """
    parts = {id(part.packed): part.n_bytes() for part in quantized_parts(model).values()}
    return sum(parts.values())


@torch.no_grad()
def demo() -> None:
    """大小与误差，离群的输入，换回来。

    每一步都自己断言
    """
    steps: tuple[Callable[[], None], ...]
    steps = (how_large_and_how_wrong, one_loud_column, there_and_back)
    for step in steps:
        step()


if __name__ == "__main__":
    run_demo(demo)
