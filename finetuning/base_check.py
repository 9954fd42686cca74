r"""这个适配器是给这个模型的吗？——层、形状、指纹，逐关问清楚。

适配器只有配上它训练时的底座 (base) 才有意义：它学的是「W 还差多少」，W 换了，差的就不是那些。

    换成的底座                        会怎样                        谁来发现
    ────────────────────────────────  ────────────────────────────  ──────────────────────
    别的结构，没有那些层              装不上                        refuse_other_shapes
    同样的层，宽度不同                矩阵乘不起来                  refuse_other_shapes
    同样的形状，另一次训练的权重      什么错也没有，只是说胡话      refuse_other_base
    正是它，但文件里少了几层          答得不好不坏，最难查          refuse_missing_layers

第三种靠指纹 (fingerprint)：$h = \mathrm{SHA256}(\text{每个张量的名字、形状、bfloat16 的字节})$。
为什么先舍入到 bfloat16：同一个模型以 float32 训练、以 bfloat16 打开来用，是常有的事，它们该算
同一个；而另一次训练的权重，前八个二进制有效位不可能全都相同。要散列的字节还少了一半。
为什么散列而不存名字：模型改个名、挪个地方，还是那个模型；同名的文件夹里，却可能换了权重。

顺序也有讲究：先形状后指纹。形状不合时两个指纹必然不同，但「指纹不同」远不如
「blocks.0.attention.q_proj 要 (8, 64)，文件里是 (8, 128)」说得明白。

论文：Merkle 1979（用散列认文件）；bfloat16 的取舍见 Kalamkar et al. 2019
改哪里：允许别的不同（例如扩过词表），改 `base_fingerprint` 里散列哪些张量；
        提示的话，改各个 refuse_ 函数。
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from finetuning.adapters import (
    AdaptedLinear,
    adapted_layers,
    adapter_names,
    candidate_layers,
)
from finetuning.lora import LoRAConfig, LowRankAdapter, apply_lora, lora_parameters
from finetuning.lora_config import match_names
from foundation.demonstration import run_demo
from transformer_basics.quantized_linear import PackedWeight, quantized_layers, quantized_parts

__all__ = [
    "base_fingerprint",
    "made_on_the_fly",
    "named_adapters",
    "quantization_in",
    "quantization_metadata",
    "quantization_of",
    "refuse_missing_layers",
    "refuse_other_base",
]
__all__ += ["refuse_other_quantization", "refuse_other_shapes"]


SIMPLE_BITS = 4  # quantize(model) 缺省的位数，QLoRA 用的就是它
# 适配器的元数据里的两个键，至多有其中一个
GROUP_SIZE, QUANTIZATION = "base_4bit_group_size", "base_quantization"


@torch.no_grad()
def base_fingerprint(model: nn.Module) -> str:
    """底座全部权重的 SHA-256，64 个十六进制字符。

    整数的底座散列的是 q 与 s，所以与没量化的不同
    不变：装没装适配器、训练了几步适配器、以 float32 还是 bfloat16 打开、在哪个设备上
    要变：名字、形状、任何一个权重（变动大于 bfloat16 的一格，约千分之四）
    耗时：把权重从头到尾读一遍；只在存与读适配器时各算一次
    """
    # 适配器自己的参数不算底座
    inside = tuple(f"{name}.adapters." for name in adapted_layers(model))
    # 边读边散列，不必把整个模型拼成一块
    digest = hashlib.sha256()
    # 按名字排序：与模块登记的先后无关
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(inside):
            continue
        # 装了适配器的层，名字里多一节 base_layer，去掉就和没装时一样
        # 例：blocks.0.attention.q_proj.base_layer.weight → blocks.0.attention.q_proj.weight
        name = name.replace(".base_layer.", ".")
        # 名字也散列进去：两层的权重互换，就不是同一个模型了
        # 形状也散列进去：(2, 3) 与 (3, 2) 的字节可以一样
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        # 整数的表（例如编号、四比特的 q）不能舍入，原样散列
        if tensor.is_floating_point():
            tensor = tensor.to(torch.bfloat16)
        # 按字节看：hashlib 直接读这块内存，不必再抄一份
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(memoryview(flat.numpy()))
    return digest.hexdigest()


def named_adapters(model: nn.Module, adapter: str | None) -> dict[str, LowRankAdapter]:
    """层的全名 → 名为 `adapter` 的适配器；None 表示起作用的那个。

    没装这个适配器的层不在其中：每个适配器可以只改自己的那几层
    错误：没有这个名字，或一个起作用的也没有 → ValueError
    """
    # 没装过适配器的模型，两样都是空的：
    # 那就一定是写错了，下面会说出来
    layers, names = adapted_layers(model), adapter_names(model)
    if adapter is None:
        # set_adapter 对所有层用同一个名字，所以这里至多一个
        adapter = next((layer.active for layer in layers.values() if layer.active), None)
    # 写错了名字，把有的都列出来
    if adapter is None or adapter not in names:
        raise ValueError(f"no adapter {adapter!r}; there are: {', '.join(names) or 'none'}")
    found = {}
    for name, layer in layers.items():
        # 别的适配器可能装在这一层，而这个没有
        if adapter in layer.adapters:
            module = layer.adapters[adapter]
            # 别的种类的适配器（继承 AdaptedLinear 写的）有自己的格式，不归这里存
            assert isinstance(module, LowRankAdapter)
            found[name] = module
    return found


def refuse_other_shapes(
    model: nn.Module,
    config: LoRAConfig,
    weights: Mapping[str, Mapping[str, Tensor]],  # 层的全名 → {"A", "B", "magnitude"}
    directory: Path,
) -> None:
    """文件里的每一层，模型里都要有，形状也要相合。

    形状：A (r, d_in)，B (d_out, r)，DoRA 另有 magnitude (d_out,)；r 由配置定，可以随层而异
    错误：ValueError，写明是哪一层、要什么、有什么；directory 只用于报错
    """
    candidates = candidate_layers(model)
    # 一个 Linear 也挑不到时 candidates 为空，下面同样报得出来
    problem = f"{directory} is an adapter for another base: "
    # 名字对不上的，列几个文件里的，再列几个模型里的，两边一比就知道是什么模型的
    absent = [name for name in weights if name not in candidates]
    if absent or not weights:
        raise ValueError(
            f"{problem}it changes {', '.join(absent[:3]) or 'no layer'}, "
            f"this model has {', '.join(list(candidates)[:3])}…"
        )
    # 一层的适配器装到另一层上，形状多半也合，所以名字在先
    # 名字都在，再逐层看形状；报第一个就够，其余多半同样不合
    for name, parts in weights.items():
        layer = candidates[name]
        # 这一层可能已经装过别的适配器，那就看里面的底座
        linear = layer.base_layer if isinstance(layer, AdaptedLinear) else layer
        rank = config.rank_of(name)
        # 照 nn.Linear 的习惯转置着存，见 adapter_files.py
        wanted: dict[str, tuple[int, ...]]
        wanted = {"A": (rank, linear.in_features), "B": (linear.out_features, rank)}
        # 配置说是 DoRA 而文件里没有长度（或反过来），下面就不相等
        if config.use_dora:
            wanted["magnitude"] = (linear.out_features,)
        # 整个字典一起比：多一样、少一样，与形状不合一样要拒绝
        found = {part: tuple(tensor.shape) for part, tensor in parts.items()}
        if found != wanted:
            raise ValueError(f"{problem}{name} needs {wanted}, the file has {found}")


def refuse_missing_layers(
    model: nn.Module, config: LoRAConfig, weights: Mapping[str, object], directory: Path
) -> None:
    """配置说要改的层，文件里要有；少了就是残缺的，装上去只对了一半。

    错误：ValueError，写明缺哪几层；target 在这个模型里什么也没挑中，也在此报
    """
    # 与装的时候同一套挑法，才知道「该有」的是哪些
    names = match_names(config.target, candidate_layers(model))
    missing = [name for name in names if name not in weights]
    # 多出来的层不在这里管：形状那一关已经看过，装的时候以文件为准
    if missing:
        raise ValueError(f"{directory} is incomplete: no tensors for {', '.join(missing[:3])}")


def quantization_of(model: nn.Module) -> str | None:
    """底座是怎样量化的，一句话；没有量化就是 None。

    例：「4 bits, groups of 64」是 quantize(model) 现做的那一种；量化过的模型目录更长：
        「4 bits, groups of 64, gptq + 8 bits, groups of 64」，加号后面是词表
    随适配器存下：QLoRA 学的 ΔW 补偿了量化的误差，要配同样量化过的底座
    """
    # 同样的只说一遍，先后照模型里的；线性层在前，词表多半在后
    layers = quantized_layers(model)
    found = dict.fromkeys(part_in_words(part) for part in layers.values())
    found |= dict.fromkeys(part_in_words(part) for part in quantized_parts(model).values())
    return " + ".join(found) or None


def part_in_words(part: PackedWeight) -> str:
    """一个整数的权重：几比特、几个一组、怎样挑的。

    直接取整、没有零点的不另说：那是最平常的一种
    """
    group = part.form.group_size
    words = [f"{part.bits} bits", "one scale a row" if group is None else f"groups of {group}"]
    words += ["zero points"] * part.form.zero_points + [part.method] * (part.method != "rtn")
    return ", ".join(words)


def made_on_the_fly(words: str | None) -> int | None:
    """这句话说的是不是 quantize(model, group_size=g) 现做的那一种；是就给出 g。

    别的（八比特、gptq、量化过的词表）现做不出来，要载入训练时的那个模型
    """
    start, end = f"{SIMPLE_BITS} bits, groups of ", "" if words is None else words
    size = end.removeprefix(start)
    return int(size) if end.startswith(start) and size.isdecimal() else None


def quantization_metadata(model: nn.Module) -> dict[str, str]:
    """随适配器存下的一项：底座怎样量化过；没有量化就什么也不写。

    现做的四比特只记组有多大（一直就是这样记的），别的记一整句话
    """
    words = quantization_of(model)
    group_size = made_on_the_fly(words)
    # 元数据里都是字符串，
    # 别的工具不认识这两个键，会跳过
    if group_size is not None:
        return {GROUP_SIZE: str(group_size)}
    return {} if words is None else {QUANTIZATION: words}


def quantization_in(metadata: Mapping[str, str]) -> str | None:
    """元数据里说底座怎样量化过，与 quantization_of 同样的说法；没有这一项就是没有量化。

    写坏了的当作没有：指纹那一关会拒绝
    """
    value = metadata.get(GROUP_SIZE, "")
    simple = f"{SIMPLE_BITS} bits, groups of {value}"
    return simple if value.isdecimal() else metadata.get(QUANTIZATION)


def refuse_other_quantization(model: nn.Module, recorded: str | None, directory: Path) -> None:
    """训练时的底座怎样量化过，这个模型也要是；没有量化过的也一样。

    先于指纹问：指纹必然不同，但「先量化」远比「指纹不同」有用
    错误：ValueError，写明两边各是什么，该调用什么

    为什么不自动量化：装适配器不该改动底座；命令行替用户做这一步，库让人自己做
    """
    found = quantization_of(model)
    # 先看说法，数值由指纹去比。
    # 都没有量化，或说的是同一句话：往下再问指纹
    if found == recorded:
        return
    # 两边各说一遍是什么：只说「不同」，用户不知道该动哪一边
    kinds = ["a plain base" if w is None else f"a base of {w}" for w in (recorded, found)]
    # 该怎么办，取决于训练时的是哪一种
    remedy = "load the base without quantizing it"
    group_size = made_on_the_fly(recorded)
    if group_size is not None:
        remedy = f"call quantize(model, group_size={group_size}) on the plain base first"
    elif recorded is not None:
        remedy = "load the quantized model that it was trained on"
    raise ValueError(
        f"{directory} was trained on {kinds[0]}, this model is {kinds[1]}; {remedy}, or pass "
        "allow_other_base=True if you know that it fits"
    )


def refuse_other_base(model: nn.Module, recorded: str, directory: Path) -> None:
    """指纹不同：形状虽合，却不是训练时的那个底座。

    recorded：存适配器时记下的指纹
    错误：ValueError，给出两个指纹的开头，和确知无妨时怎样放行（例如底座只做过量化）
    """
    # 到这里形状都合，只有权重的数值可能不同
    # 只显示开头十二个字符：够认，也好抄
    found = base_fingerprint(model)
    # 一个比特不同，散列就面目全非，所以只问等不等
    if recorded != found:
        raise ValueError(
            f"{directory} was trained on another base: its fingerprint is {recorded[:12]}…, this "
            f"model's is {found[:12]}…; load the base it was trained on, or pass "
            "allow_other_base=True if you know that it fits"
        )


def demo() -> None:
    """同一个底座的几种样子，指纹相同；动一个权重，就不同。

    最后看形状不合时的报错：两边各是什么，一眼看到
    """

    # 同一个种子，同一个底座
    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))

    # 每次都从种子重新造一个，证明认的是权重，不是同一个对象
    plain = base_fingerprint(build(0))
    # 三种都是「它」：原样、半精度、装了一个训练过的适配器
    print("一、同一个底座的几种样子")
    adapted = apply_lora(build(0), LoRAConfig(target=("0", "2")))
    with torch.no_grad():
        lora_parameters(adapted)[1].add_(1.0)  # 适配器训练过，底座没有
    for name, model in (
        ("原样", build(0)),
        ("bfloat16", build(0).to(torch.bfloat16)),
        ("装了适配器", adapted),
    ):
        print(f"  {base_fingerprint(model)[:16]}…  {name}")
        assert base_fingerprint(model) == plain

    # 两种都「不是它」：哪怕只动了一个权重
    print("\n二、别的底座")
    # 变动要大于 bfloat16 的一格才算数：0.01 对 0.1 左右的权重是足够的
    touched = build(0)
    with torch.no_grad():
        next(touched.parameters())[0, 0] += 0.01  # 八千多个权重里的一个
    for name, model in (("另一次初始化", build(1)), ("改了一个权重", touched)):
        print(f"  {base_fingerprint(model)[:16]}…  {name}")
        assert base_fingerprint(model) != plain

    print("\n三、装不上时说什么")
    # 名字相同，输入窄了一半：A 的形状对不上
    narrow = nn.Sequential(nn.Linear(32, 128))
    weights = {"0": {"A": torch.zeros(8, 64), "B": torch.zeros(128, 8)}}
    try:
        refuse_other_shapes(narrow, LoRAConfig(target=("0",)), weights, Path("my-adapter"))
        raise AssertionError("other shapes must be refused")
    except ValueError as error:
        print(f"  ValueError: {error}")


if __name__ == "__main__":
    run_demo(demo)
