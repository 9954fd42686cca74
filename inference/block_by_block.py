r"""看着真的输入，把整个模型量化一遍：一块一块地走，换一块，走一块。

三种挑整数的办法用的是同一趟路，只在「一块里怎样换」上不同：

    rtn     一站一站地：量输入，直接取整（量输入只为知道差了多少）
    gptq    一站一站地：量输入，逐列取整、误差往后推；后一站看到的是前一站换过之后的输入
    awq     先量完这一块的各站，放大、折进前一层，再截、再取整

    ids ─► x₀ ─► [ 块 0：量 → 换 ] ─► x₁ ─► [ 块 1：量 → 换 ] ─► x₂ …
                                     └─ 用换过的块算，于是后面的块看得到前面的误差

每换一层，记下它在校准数据上的输出差了几成：

$$\text{output\_error} = \sqrt{\frac{\mathrm{tr}(\delta H \delta^\top)}{\mathrm{tr}(W H W^\top)}}$$

为什么 awq 不一站一站地来：它要改前一站的权重（除以 s），前一站若已经换成整数，就折不进去了。

例：一个两块的 Llama，gptq 走过的路（每行一站，共 8 站）：
    块 0   q、k、v    量 x₀ 归一化之后的 → H (D, D)，分解一次，三层叠在一起取整
           out        量注意力的输出（q、k、v 已经是整数）→ 另一份 H
           up、gate   量第二个归一化之后的
           down       量门控之后的 → H (F, F)
           走一遍块 0（全是整数了），得到 x₁
    块 1   同样的四站，从 x₁ 开始

几样数据各在哪里：
    x、掩码        在模型的设备上，每块算一次
    H、W、尺子     在 CPU 上，float64 与 float32；分解、求逆在那里做
    换上去的整数   回到模型的设备

各要多久（K 是列数，N 是行数，n 个词元）：
    量 H   n·K²
    gptq   K³ + N·K²，分解一次，逐列推一遍
    awq    21·N·K²，试 21 个 α

半路出错（输入里有 NaN、磁盘满了、按了 Ctrl-C），换过的都换回来：模型要么整个换好，要么原封不动。

论文：Frantar et al. 2022, GPTQ §4（一块一块地走）；Lin et al. 2023, AWQ §3.2
改哪里：多一种办法 → METHODS 里加一个函数：收下一块与它的输入，给出换上去的模块。
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from foundation.checks import check_choice
from foundation.demonstration import run_demo
from gpt_model.model import GPT
from inference.awq import best_scale, clipped, fold, folds_of
from inference.calibration import (
    BlockInput,
    InputStatistics,
    advance,
    collect,
    first_block_inputs,
    relative_error,
    stages_of,
)
from inference.gptq import gptq
from transformer_basics.integer_weights import Packed, WeightFormat, encode
from transformer_basics.quantized_linear import QuantizedLinear, replace_module

__all__ = ["METHODS", "quantize_blocks"]

# 每做完一块叫一声，收到的是给人看的一句话
Watch = Callable[[str], None]


@dataclass
class Work:
    """一块的活：块、它的输入、格式、哪些层不换。

    inputs     这一块的输入，几批；各块共用的掩码、位置也在里面
    form       几比特、几个一组
    act_order  只有 gptq 看它
    undo       换上去的都经过 `put`，记在这里；几块共用一份，撤就撤到底
    """

    block: nn.Module
    inputs: Sequence[BlockInput]
    form: WeightFormat
    skip: Sequence[str]
    act_order: bool
    # 换过的，按先后：(哪一块, 块里的名字, 原来的模块)
    undo: list[tuple[nn.Module, str, nn.Module]] = field(default_factory=list)

    def put(self, name: str, module: nn.Module) -> None:
        """换上一个模块，记下原来的。

        先记后换：换到一半出错，也撤得回来
        """
        self.undo.append((self.block, name, self.block.get_submodule(name)))
        replace_module(self.block, name, module)

    def wanted(self, names: Sequence[str]) -> list[str]:
        """要换的：名字的最后一节不在 skip 里。

        例：feed_forward.up_proj 的最后一节是 up_proj
        """
        return [name for name in names if name.rpartition(".")[2] not in self.skip]

    def linear(self, name: str) -> nn.Linear:
        """块里的一个线性层。

        折过之后取到的是折好的那一个
        """
        layer = self.block.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        return layer

    def round(self, name: str, stored: Packed, seen: InputStatistics, method: str) -> None:
        """把一层换成整数的，记下它的输出差了几成。

        stored：挑好的整数与尺子；seen：这一层看到的输入，折过的已经除以 s
        """
        # 算的时候都在 CPU 上，换上去要回到原来的设备
        linear = self.linear(name)
        device = linear.weight.device
        zero = None if stored.zero is None else stored.zero.to(device)
        stored = Packed(stored.packed.to(device), stored.scale.to(device), zero)
        layer = QuantizedLinear.from_linear(linear, self.form, stored, method)
        # 误差由真正存下的那一份算，连 bfloat16 的尺子在内
        layer.output_error = relative_error(linear.weight, layer.weight, seen)
        self.put(name, layer)


def round_to_nearest(work: Work) -> None:
    """rtn：直接取整；输入只用来量误差。

    也是一站一站地量，与另两种可比
    """
    for names in map(work.wanted, stages_of(work.block, work.inputs[0])):
        # 一站可能整个被跳过
        if names:
            seen = collect(work.block, names, work.inputs)
            # 三种办法都由 round 换上去，记下误差
            for name in names:
                stored = encode(work.linear(name).weight, work.form)
                work.round(name, stored, seen, "rtn")


def compensate_errors(work: Work) -> None:
    """gptq：逐列取整，误差往后推。

    一站的几层看同一个输入，H 只分解一次：几层的行叠在一起做，做完再切开
    形状：各 (N_i, K) → 叠成 (ΣN, K) → 各 (N_i, …)
    """
    for names in map(work.wanted, stages_of(work.block, work.inputs[0])):
        # 这一站全不换：不必量
        if not names:
            continue
        seen = collect(work.block, names, work.inputs)
        # 各行互不相干，叠在一起与分开做一样
        weights = [work.linear(name).weight for name in names]
        whole = gptq(torch.cat(weights), seen, work.form, act_order=work.act_order)
        # 做完按原来的行数切开
        first = 0
        for name, weight in zip(names, weights, strict=True):
            rows = slice(first, first + len(weight))
            # 抄一份：视图会让三层拖着同一大块内存
            zero = None if whole.zero is None else whole.zero[rows].clone()
            stored = Packed(whole.packed[rows].clone(), whole.scale[rows].clone(), zero)
            work.round(name, stored, seen, "gptq")
            first += len(weight)


def fold_loud_channels(work: Work) -> dict[str, InputStatistics]:
    """放大、折好，还没有取整；返回折好之后各层看到的输入：层 → 统计。

    折过的站，统计也跟着除：H / (s sᵀ)、a / s
    约定：一处的几层只要有一层不换，这一处就不放大
    """
    # ① 各站的输入都来自没有动过的块，
    #    但块的输入里已经带着前面各块的误差
    # 层 → 它看到的输入；同一站的几层是同一个对象
    seen: dict[str, InputStatistics] = {}
    for names in stages_of(work.block, work.inputs[0]):
        seen |= dict.fromkeys(names, collect(work.block, names, work.inputs))
    # ② 折：几处互不相干，次序无所谓；
    #    s 由没有折过的权重定，与折的次序无关
    for one in folds_of(work.block):
        if work.wanted(one.targets) != list(one.targets):
            continue
        # 同一站的几层，统计是同一份
        statistics = seen[one.targets[0]]
        weights = [work.linear(name).weight for name in one.targets]
        scale = best_scale(weights, statistics, work.form, one)
        # 前面的一层也换了（除以 s），它的输入没有变
        for name, module in fold(work.block, one, scale).items():
            work.put(name, module)
        seen |= dict.fromkeys(one.targets, statistics.divided(scale))
    return seen


def protect_loud_channels(work: Work) -> None:
    """awq：先量完各站，放大、折好，再截、再取整。

    分成两半，是为了能换掉后一半：折好之后改用 gptq 取整，就是两种办法合起来
    """
    # 截与取整用的是折过之后的权重与统计：
    # 折之前的，已经不是这个模型了
    seen = fold_loud_channels(work)
    for name in work.wanted(list(seen)):
        stored = clipped(work.linear(name).weight, seen[name], work.form)
        work.round(name, stored, seen[name], "awq")


# 名字 → 怎样换一块；名字就是命令行的 --method，也写进 config.json
METHODS: dict[str, Callable[[Work], None]] = {
    "rtn": round_to_nearest,
    "gptq": compensate_errors,
    "awq": protect_loud_channels,
}


@torch.no_grad()
def quantize_blocks(
    model: GPT,
    form: WeightFormat,
    ids: Tensor,
    method: str,
    *,
    skip: Sequence[str] = (),
    act_order: bool = False,
    watch: Watch | None = None,
) -> None:
    """就地把各块的线性层换成整数的；词表与 lm_head 不归这里管。

    形状：ids (n, T) 是校准的词元；watch 每做完一块叫一声，给进度条用
    错误：输入或权重里有 NaN → ValueError，写明是哪一块；模型保持原样
    """
    check_choice("method", method, METHODS)
    # 校准时不要 dropout；做完恢复原状
    was_training = model.training
    undo: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        # 词嵌入之后的，就是第一块的输入
        inputs = first_block_inputs(model.eval(), ids)
        for number, block in enumerate(model.blocks):
            work = Work(block, inputs, form, skip, act_order, undo)
            # 里面的错误说了哪一层，这里添上是哪一块
            try:
                METHODS[method](work)
            except ValueError as error:
                raise ValueError(f"blocks.{number}.{error}") from None
            # 用换过的块算出下一块的输入
            inputs = advance(block, inputs)
            # 大模型一块要几秒到几分钟，说一声
            if watch is not None:
                watch(f"block {number + 1} of {len(model.blocks)}")
    except BaseException:
        # 倒着撤：同一个名字换过两次（先放大、再取整）的，
        # 先换的后撤，最后留下的才是原来的；
        # Ctrl-C 也在内，所以是 BaseException
        for block, name, module in reversed(undo):
            replace_module(block, name, module)
        raise
    finally:
        model.train(was_training)


def like_a_trained_one() -> GPT:
    """没有训练过、却有训练过的样子的模型：各维大小悬殊，许多维同进同退。

    真的训练过的见 benchmarks/quantization_quality.py
    """
    from gpt_model.config import preset

    torch.manual_seed(0)
    # 两层，前馈窄一些：演示几秒钟就完
    config = preset("modern-micro", vocab_size=65, max_seq_len=64, dim=64, n_layers=2, n_heads=2)
    model = GPT(config.replace(ffn_dim=128)).eval()
    for name, parameter in model.named_parameters():
        # 归一化的 γ 悬殊：q、k、v 与 up 的输入里就有几维特别大
        if name.endswith("_norm.weight") and parameter.numel() == 64:
            parameter.copy_(torch.exp(torch.randn(64)))
        # 秩低的权重：out 与 down 的输入挤在少数几个方向里
        if "v_proj" in name or "up_proj" in name:
            rows = len(parameter)
            parameter.copy_(torch.randn(rows, 8) @ torch.randn(8, 64) / 10)
    return model


@torch.no_grad()
def demo() -> None:
    """三种办法各量化一份：各层的输出误差，整个模型的 logits 变了多少。"""
    import copy

    # 词元是随机的，输入却有大有小、彼此相关：那是权重造成的
    model = like_a_trained_one()
    # 校准用 48 段，另外 16 段没见过
    ids = torch.randint(65, (64, 64))
    before = model(ids[48:]).logits
    print("四比特、64 个一组；没见过的文本上，logits 相对变了多少：")
    # 办法 → logits 的相对变化
    found = {}
    for method in METHODS:
        # quantize_blocks 是就地换的，
        # 所以各用各的一份
        other = copy.deepcopy(model)
        quantize_blocks(other, WeightFormat(4, 64), ids[:48], method)
        layers = [m for m in other.modules() if isinstance(m, QuantizedLinear)]
        # 每层都记着自己的误差
        errors = [layer.output_error for layer in layers if layer.output_error is not None]
        assert len(errors) == 2 * 6
        # 各层的误差小，整个的才小
        found[method] = float((other(ids[48:]).logits - before).norm() / before.norm())
        print(f"   {method:<5} 各层的误差平均 {sum(errors) / 12:.4f}  logits {found[method]:.4f}")
    # 看过输入的，都比直接取整好
    assert found["gptq"] < found["rtn"]
    assert found["awq"] < found["rtn"]

    # 半路停下：模型原封不动；
    # 比的是对象本身，不是数
    modules = list(model.modules())

    def stop(progress: str) -> None:
        """做完第一块就按 Ctrl-C。"""
        raise KeyboardInterrupt(progress)

    try:
        quantize_blocks(model, WeightFormat(4, 64), ids[:8], "awq", watch=stop)
    except KeyboardInterrupt as stopped:
        print(f"在「{stopped}」之后停下：{len(modules)} 个模块都还是原来的")
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))


if __name__ == "__main__":
    run_demo(demo)
