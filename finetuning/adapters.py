r"""一个底座，许多本领：怎样给模型装上适配器、换着用、并进权重里、再原样拆下来？

适配器 (adapter) 是加在冻结的线性层旁边的一点新参数。这个文件只管「装、换、并、拆」，
不管新参数怎样改变输出：那是子类的事（LoRA 与 DoRA 在 lora.py）。

                     ┌─ adapters["translate"] ─┐
        x ──→ base_layer (冻结)  ＋  adapters[active]  ──→ y
                     └─ adapters["summarize"] ─┘

    四种状态                输出                              谁可训练
    ──────────────────────  ────────────────────────────────  ────────────────────
    平常                    底座 ＋ 起作用的那个适配器        起作用的那个适配器
    adapters_disabled       底座，即微调之前的模型            不变
    merge_in_place          同「平常」，但只算一次矩阵乘      谁也不可以（见下）
    merge_lora 的返回值     同「平常」，是普通 nn.Linear      全部参数

合并之后的权重 W′ = W + ΔW 另存一份，W 自己从不改动。所以撤销合并只是丢掉 W′，逐位还原；
若像多数实现那样 W += ΔW、再 W −= ΔW，浮点的舍入会留下来，反复几次，底座就不是原来的底座了。

从头到尾的用法：
    apply_lora(model, config, "translate")     装上，冻结底座（lora.py）
    ……训练……                                只有 translate 的参数在变
    apply_lora(model, config, "summarize")     再装一个，现在起作用、可训练的是它
    set_adapter(model, "translate")            换回来
    with adapters_disabled(model): ……          临时回到微调之前
    plain = merge_lora(model)                  定稿：一个普通模型，交给推理、量化、导出

论文：Houlsby et al. 2019, Parameter-Efficient Transfer Learning for NLP（适配器一词的由来）
改哪里：想加一种新的适配器，继承 `AdaptedLinear`，写 `forward` 与 `effective_weight` 两个方法，
        本文件的一切就都能用（文件末尾的演示用几行写了一个）。
"""

from __future__ import annotations

import copy as copying
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.checks import nearest
from foundation.demonstration import run_demo
from gpt_model.dequantization import dequantize, float_type
from transformer_basics.quantized_linear import QuantizedLinear, quantized_parts, replace_module

__all__ = [
    "AdaptedLinear",
    "adapted_layers",
    "adapter_names",
    "adapters_disabled",
    "candidate_layers",
    "check_adapter_name",
    "count_trainable",
    "merge_in_place",
    "merge_lora",
    "refuse_shared",
    "replace_module",
    "set_adapter",
    "unmerge_lora",
]


# 底座可以是四比特的：QLoRA 与 LoRA 的公式相同，只是 W 换成了还原的 Ŵ
BaseLinear: TypeAlias = nn.Linear | QuantizedLinear


class AdaptedLinear(nn.Module):
    """一个冻结的线性层（普通的或四比特的），加上若干个有名字的适配器；同一时刻至多一个起作用。

    形状：x (…, d_in) → (…, d_out)，与底座相同
    类型：参数的名字在 state_dict 里是 <层>.base_layer.weight 与 <层>.adapters.<名字>.……
    子类要写：forward（适配器怎样改输出）、effective_weight（同一件事，写成权重）
    """

    # 合并后的权重；None 表示没有合并
    merged_weight: Tensor | None

    def __init__(self, base_layer: BaseLinear) -> None:
        super().__init__()
        # 用组合而不用继承：底座整个放在里面，原封不动，换成量化过的线性层也一样
        self.base_layer = base_layer
        self.adapters = nn.ModuleDict()
        self.active: str | None = None
        self.enabled = True
        # 用缓冲区 (buffer) 而不是普通属性：model.to(device) 会带上它；
        # persistent=False：它随时能重算，不该进 state_dict
        self.register_buffer("merged_weight", None, persistent=False)

    @property
    def current(self) -> nn.Module | None:
        """起作用的适配器；没有则 None。

        两个适配器可以各改各的层，所以「模型用着 a」不等于「这一层有 a」；
        这一层没有时，它就只是底座。
        """
        if self.active is None or self.active not in self.adapters:
            return None
        return self.adapters[self.active]

    def unchanged(self, x: Tensor) -> Tensor | None:
        """不必动用适配器就能算出的输出：关掉了、这层没有、或已经合并；否则 None。

        先问「关掉了吗」，再问「合并了吗」：关掉的优先，合并着也要能看到微调之前的模型
        子类的 forward 先问它一句，就不必各自处理这三种状态。
        """
        if not self.enabled or self.current is None:
            output: Tensor = self.base_layer(x)  # (…, d_out)
            return output
        if self.merged_weight is not None:
            return F.linear(x, self.merged_weight, self.base_layer.bias)  # (…, d_out)
        return None

    def effective_weight(self) -> Tensor:
        """起作用的适配器加进去之后的权重 W′。

        形状：(d_out, d_in)，与底座的 weight 一样，类型也一样
        必须满足 F.linear(x, W′, b) = forward(x)，否则合并前后就是两个模型
        """
        raise NotImplementedError

    def merged_linear(self) -> nn.Linear:
        """一个普通的 nn.Linear，与这一层算的是同一件事，不与它共用任何张量。

        不共用，是为了接着训练任何一个，都不会悄悄改到另一个
        """
        base = self.base_layer
        # 先在 meta 设备上造一个空壳：不分配内存，也不惊动随机数；四比特的 weight 是还原出来的
        plain = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
        weight = base.weight.detach().clone() if self.current is None else self.effective_weight()
        plain.weight = nn.Parameter(weight)
        if base.bias is not None:
            plain.bias = nn.Parameter(base.bias.detach().clone())
        return plain.train(self.training)


def set_adapter(model: nn.Module, adapter: str) -> None:
    """换成名为 `adapter` 的适配器：只有它起作用，也只有它可训练。

    没装它的层就只用底座。训练循环要在换好之后再建优化器，优化器只认当时可训练的参数
    错误：没有这个名字（列出已有的与最接近的），或还有一个合并着没撤销 → ValueError
    """
    # 写错名字时给出最像的，而不是悄悄关掉所有适配器
    names = adapter_names(model)
    if adapter not in names:
        guess = nearest(adapter, names)
        hint = f"did you mean {guess!r}? " if guess else ""
        raise ValueError(f"no adapter {adapter!r}; {hint}there are: {', '.join(names) or 'none'}")
    layers = adapted_layers(model).values()
    # 合并的是旧适配器的权重，换了名字还用它，输出与名字就对不上了
    if any(layer.merged_weight is not None for layer in layers):
        raise ValueError("an adapter is merged; call unmerge_lora(model) before switching")
    # 起作用的与可训练的一起换，免得训练着一个、跑着另一个
    for layer in layers:
        layer.active = adapter
        for name, module in layer.adapters.items():
            module.requires_grad_(name == adapter)


@contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[None]:
    """`with adapters_disabled(model):` 里面是微调之前的模型，出来就恢复，出错也恢复。

    用处：比较微调前后；DPO、GRPO 的参考模型 (reference model) 不必另占一份内存。
    可以嵌套：里层出来时恢复的是外层的状态，不是「打开」
    """
    # 记住每层原来的样子，出来时照着恢复
    before = [(layer, layer.enabled) for layer in adapted_layers(model).values()]
    try:
        for layer, _ in before:
            layer.enabled = False
        yield
    finally:
        for layer, enabled in before:
            layer.enabled = enabled


def merge_lora(model: nn.Module, *, copy: bool = True) -> nn.Module:
    """把起作用的适配器并入权重，返回一个普通模型：里面再没有适配器，全部参数可训练。

    公式：每层 W ← W′ = effective_weight()，偏置不变
    四比特的层（装了适配器的与没装的）都换成普通的，权重是还原出来的：训练时用的正是它
    默认复制一份，原模型照旧可用、可继续训练；`copy=False` 就地替换，省一份内存，不能撤销。
    错误：模型里没有适配器 → ValueError
    """
    layers = adapted_layers(model)
    if not layers:
        raise ValueError("this model has no adapters; call apply_lora or load_adapter first")
    merged = {name: layer.merged_linear() for name, layer in layers.items()}
    # 整数的底座没有自己的类型，还原出来是 float32：
    # 换成模型里别的参数的，接着算才不会两边类型不合
    for name in [n for n, m in layers.items() if isinstance(m.base_layer, QuantizedLinear)]:
        merged[name].to(float_type(model))
    if copy:
        # deepcopy 遇到备忘录 (memo) 里已有的对象就直接用：于是每个带适配器的层都「复制」成
        # 普通线性层；而共用的权重（词嵌入与输出层）在副本里仍是同一个张量
        memo = {id(layer): merged[name] for name, layer in layers.items()}
        model = copying.deepcopy(model, memo)
    else:
        for name, linear in merged.items():
            replace_module(model, name, linear)
    dequantize(model)  # 没装适配器的层里，也许还有四比特的
    # 底座原是冻结的；定稿的模型与刚读进来的一样，想接着全量训练也可以
    return model.requires_grad_(True)


def merge_in_place(model: nn.Module) -> None:
    """并入权重但留着适配器：前向与普通模型一样快，`unmerge_lora` 可以撤销。

    多占一份被改动的那些层的权重。换适配器之前要先撤销。
    合并着的时候 A、B 不在计算图里，这时训练，反向传播会直接报错，不会白训一场。
    """
    # 这一层没有起作用的适配器，就无可合并，照旧走底座
    for layer in adapted_layers(model).values():
        layer.merged_weight = None if layer.current is None else layer.effective_weight()


def unmerge_lora(model: nn.Module) -> None:
    """撤销 `merge_in_place`，底座逐位还原；没有合并时什么也不做。

    说「还原」，其实底座从没变过：丢掉的只是另存的 W′
    """
    for layer in adapted_layers(model).values():
        layer.merged_weight = None


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLinear]:
    """全名 → 每个装了适配器的层，按模型里的顺序。

    例：{"blocks.0.attention.q_proj": …, "blocks.0.attention.v_proj": …}
    """
    return {name: m for name, m in model.named_modules() if isinstance(m, AdaptedLinear)}


def adapter_names(model: nn.Module) -> list[str]:
    """模型上所有适配器的名字，按装上的先后，不重复。"""
    return list(dict.fromkeys(n for m in adapted_layers(model).values() for n in m.adapters))


def count_trainable(model: nn.Module) -> tuple[int, int]:
    """(可训练的参数个数, 全部参数个数)；共用的张量只数一次。

    全部里也包括适配器自己的，所以装了适配器之后，它比底座的参数略多
    """
    # model.parameters() 本来就不重复计共用的张量；
    # 整数的底座不是参数，也要算进全部里
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    frozen = {id(part.packed): part.n_weights() for part in quantized_parts(model).values()}
    return sum(n for n, on in sizes if on), sum(n for n, _ in sizes) + sum(frozen.values())


def candidate_layers(model: nn.Module) -> dict[str, BaseLinear | AdaptedLinear]:
    """可以装适配器的层：全部线性层；已装过的算它自己，不算里面的底座。

    模型自己就是一个 nn.Linear 时（全名是空的）不算：没法把自己换掉
    """
    kinds = (nn.Linear, QuantizedLinear, AdaptedLinear)
    found = {name: m for name, m in model.named_modules() if name and isinstance(m, kinds)}
    # 装过的层里面，底座也是线性层，不能在适配器里再装一层适配器
    inside = tuple(f"{name}." for name, m in found.items() if isinstance(m, AdaptedLinear))
    return {name: layer for name, layer in found.items() if not name.startswith(inside)}


def check_adapter_name(adapter: str, taken: list[str]) -> None:
    """名字要能做 state_dict 里的一节（不含点号），又不能和已有的重名。

    例：default、translate、style-2 可以；a.b、"my task"、2nd 不可以
    错误：ValueError；连 "keys" 这样与 ModuleDict 自己的方法撞名的也在此说清
    """
    if not adapter.replace("-", "_").isidentifier() or hasattr(nn.ModuleDict, adapter):
        raise ValueError(
            f"adapter name must be letters, digits, _ or -, and not a method of ModuleDict; "
            f"got {adapter!r}"
        )
    if adapter in taken:
        raise ValueError(f"adapter {adapter!r} exists already; choose another name")


def refuse_shared(model: nn.Module, chosen: list[str]) -> None:
    """拒绝与别处共用的权重，例如与词嵌入绑定 (tied) 的 lm_head。

    不合并时只改了输出层，一合并却连词嵌入也改了（或者绑定断了，存盘再读又绑回去）：
    同一个适配器，前后成了两个模型。拒绝比悄悄选一种好。
    错误：ValueError，说出和谁共用、怎么办
    """
    # 同一个张量（按 id 认）有几个名字，就有几处在用它；
    owners: dict[int, list[str]] = {}
    # 量化过的词表是缓冲区，不在 named_parameters 里，也会两处共用
    tables = [(f"{name}.weight", part.packed) for name, part in quantized_parts(model).items()]
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *tables):
        owners.setdefault(id(tensor), []).append(name.replace(".base_layer.", "."))
    for names in owners.values():
        # 挑中的层占了这个张量，而它还有别的名字，就是共用
        mine = [name for name in names if name.rpartition(".")[0] in chosen]
        if mine and len(names) > 1:
            others = [name for name in names if name != mine[0]]
            raise ValueError(
                f"{mine[0]} shares its tensor with {', '.join(others)}: merging an adapter would "
                "change both; leave it out of target, or build the model with untied weights "
                "(tie_embeddings=False)"
            )


class ScaledLinear(AdaptedLinear):
    """演示用的最小适配器：每个输出乘一个数，y = s ∘ (xW) + b。

    这就是 IA³（Liu et al. 2022）对线性层的做法：参数比 LoRA 还少，只有 d_out 个
    """

    def add(self, adapter: str, start: float) -> None:
        """装上一个。真要训练时 s 从 1 起步，刚装上时输出不变。"""
        scale = torch.full((self.base_layer.out_features,), start)
        self.adapters[adapter] = nn.ParameterList([scale])

    def scale(self) -> Tensor:
        """起作用的那个 s。

        形状：(d_out,)
        """
        assert isinstance(self.current, nn.ParameterList)
        scale: Tensor = self.current[0]
        return scale

    def forward(self, x: Tensor) -> Tensor:
        """y = s ∘ (xW) + b。"""
        output = self.unchanged(x)
        # 偏置不乘：适配器改的是 W；没有偏置的，当作零
        if output is None:
            bias = 0.0 if self.base_layer.bias is None else self.base_layer.bias
            output = F.linear(x, self.base_layer.weight) * self.scale() + bias
        return output

    @torch.no_grad()
    def effective_weight(self) -> Tensor:
        """W′ = diag(s)·W。"""
        weight: Tensor = self.base_layer.weight * self.scale()[:, None]
        return weight


def demo() -> None:
    """用一个几行写成的适配器，走一遍装、换、关、并、拆。

    LoRA 用的正是这同一套函数，换的只是子类
    """
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    x = torch.randn(2, 6)
    original = model(x)
    # 装在最后一层：先包好，再换上去
    last = model[2]
    assert isinstance(last, nn.Linear)
    layer = ScaledLinear(last)
    replace_module(model, "2", layer)

    print("一、装：两个适配器，名字各异")
    outputs = {}
    # 后装的起作用；先装的还在，只是歇着
    for name, factor in (("louder", 2.0), ("quieter", 0.5)):
        layer.add(name, factor)
        set_adapter(model, name)
        outputs[name] = model(x)
        # 可训练的也只有刚装上的这一个
        trainable = [n for n, p in model.named_parameters() if p.requires_grad and "adapters" in n]
        assert trainable == [f"2.adapters.{name}.0"]
        print(f"  {name:8} 输出第一行 {[round(v, 3) for v in outputs[name][0].tolist()]}")

    # 换回去，输出与当初一个比特不差
    print("二、换与关：切换即换本领，关掉即还原")
    set_adapter(model, "louder")
    assert torch.equal(model(x), outputs["louder"])
    with adapters_disabled(model):
        assert torch.equal(model(x), original)
        print(f"  关掉     输出第一行 {[round(v, 3) for v in model(x)[0].tolist()]}")

    # 合并时多存了一份 W′，底座自己没动，先记下来好比
    print("三、并与拆：底座的权重一个比特都没动")
    weight = layer.base_layer.weight.detach().clone()
    merge_in_place(model)
    merged = model(x)
    unmerge_lora(model)
    torch.testing.assert_close(merged, outputs["louder"])
    assert torch.equal(layer.base_layer.weight, weight)
    # 对照：直接改 W 再改回来。(W + Δ) − Δ 在浮点里不等于 W，错一点，留一点
    drifted, delta = weight.clone(), torch.randn_like(weight)
    for _ in range(100):
        drifted += delta
        drifted -= delta
    drift = float((drifted - weight).abs().max())
    assert drift > 0
    print(f"  另存 W′：差 0；W 加上再减去 100 次：差 {drift:.1e}")
    # 定稿：返回的模型里没有适配器的痕迹，结构与当初一样
    plain = merge_lora(model)
    assert not adapted_layers(plain)
    print(f"  merge_lora 返回的是普通模型：{[type(m).__name__ for m in plain.children()]}")


if __name__ == "__main__":
    run_demo(demo)
