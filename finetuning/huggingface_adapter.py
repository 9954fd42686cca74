r"""我们练的 LoRA，怎样装到导出的 Hugging Face 模型上？反过来呢？——改名；GPT-2 还要拼。

adapter_files.py 的布局 PEFT 已经读得懂，只是层的名字还是我们的。底座导出之后换了名字，适配器也换：

    base_model.model.blocks.3.attention.q_proj.lora_A.weight
                            ↓ 与 huggingface.py 同一张表
    base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight

只有 GPT-2 不是改名：那边 Q、K、V 是一个 c_attn (D → 3D)，我们是三个。
三个低秩的改动，拼起来还是低秩：

$$\begin{bmatrix} s_q B_q A_q \\ s_k B_k A_k \\ s_v B_v A_v \end{bmatrix} =
  \underbrace{\begin{bmatrix} s_q B_q & & \\ & s_k B_k & \\ & & s_v B_v \end{bmatrix}}_{B\ (3D,\ R)}
  \underbrace{\begin{bmatrix} A_q \\ A_k \\ A_v \end{bmatrix}}_{A\ (R,\ D)},
  \qquad R = r_q + r_k + r_v$$

                     A_q (r, D)        B_q ·  ·            没有适配器的那段（例如 k），
    x (…, D) ──▶     A_k      ──▶       ·  B_k ·   ──▶     B 的那几行全是 0，R 也少一份
                     A_v                ·  ·  B_v

缩放 s = α/r 各层可以不同，拼进一个矩阵就只能有一个，所以先乘进 B，再令拼好的 α = R（缩放恰为 1）。
反方向容易：c_attn 的 B (3D, r) 横切三段，A 人手一份，r 与 α 都不变；
每个头练的还是同一件事，输出逐数相同，只是 A 从共用的一份变成三份。

DoRA 另记着每一行的长度。切开时跟着切；拼起来时，没有适配器的那段也得有长度，而那要看底座，
这里不读底座，所以 GPT-2 的 DoRA 导不出去：先合并成普通的模型。

常见疑问：
    导出的目录给谁用？ transformers 加 PEFT；vLLM 也能不合并就挂上去（它不收 DoRA）。
    Ollama、llama.cpp？ 先合并（fromzero export --adapter），导出一个普通的模型，最省事。
    要不要带着底座？  不要。这里只翻译文件，不载入模型；两边装上时，各自再核对形状。
    拼起来会变大吗？  A 一样大；B 是对角块，多出来的都是 0，文件大约多一倍，几兆而已。
    训练过再拼，能接着练吗？  能，但 0 的那些会被练成非 0：秩 R 的改动，比三个秩 r 的自由。
    指纹还在吗？      在。它记的是我们这边的底座；导出再导入，装回原来的模型，照样认得。

论文：Hu et al. 2021, LoRA；分块的低秩：秩(拼) ≤ 各块的秩之和
改哪里：多认一个家族 → gpt_model/huggingface.py 的名字表，这里跟着有；
       多一种张量（例如偏置）→ translate_parts；配置的键 → peft_config.py。
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from finetuning.adapter_files import (
    ADAPTER_KIND,
    CONFIG_FILE,
    PARTS,
    PREFIX,
    WEIGHTS_FILE,
    read_adapter,
)
from finetuning.lora_config import LoRAConfig, match_names
from finetuning.peft_config import config_to_peft
from foundation.demonstration import run_demo
from foundation.files import atomic_directory, sort_metadata, write_json
from gpt_model.config import GPTConfig
from gpt_model.huggingface import GPT2_FUSED, GPT2_PREFIX, QKV, renaming
from gpt_model.huggingface_export import family_of
from gpt_model.huggingface_files import refuse_existing

__all__ = ["export_adapter", "import_adapter"]


@dataclass(frozen=True)
class Layer:
    """一层的适配器：文件里的张量，与它的 r、α。

    形状照文件，不是内存里的：A (r, d_in)，B (d_out, r)
    """

    parts: dict[str, Tensor]  # "A" (r, d_in)、"B" (d_out, r)、DoRA 另有 "magnitude" (d_out,)
    rank: int
    alpha: float


def export_adapter(source: Path, out: Path, base: GPTConfig) -> int:
    """我们的适配器目录 → PEFT 装得上导出的底座的目录；返回层数（他们的层）。

    base：底座的配置，用来认家族
    错误：底座导不出去、不是适配器目录、GPT-2 的 DoRA、out 已经有东西 → ValueError
    """
    family = family_of(base)
    refuse_existing(out)
    # 读进来的都是张量与数字，没有模型；文件坏了，这里就会说
    config, layers, recorded = read_layers(source)
    # ① 名字表：我们的层 → 他们的层
    names = module_names(family, base.n_layers)
    #    GPT-2 的 q、k、v 不在表里，它们一起去 c_attn；层数之外的也要拒绝，不能悄悄丢下
    blocks = range(base.n_layers if family == "gpt2" else 0)
    fused = {f"blocks.{i}.attention.{name}" for i in blocks for name in QKV}
    unknown = [name for name in layers if name not in names and name not in fused]
    if unknown:
        raise ValueError(f"{source} is not for this base: it changes {', '.join(unknown[:3])}")
    # 只改名的一批：连张量都是同一个
    theirs = {names[name]: layer for name, layer in layers.items() if name in names}
    # ② GPT-2：每个块的 q、k、v 合成一个 c_attn
    for i in blocks:
        # None 是没有适配器的那几个
        block = {n: layers.get(f"blocks.{i}.attention.{n}") for n in QKV}
        # 这个块里一个也没有，就没有 c_attn 的适配器
        if any(block.values()):
            # 没有适配器的那段，长度要从底座算，而这里没有底座
            if config.use_dora:
                raise ValueError(
                    f"{source}: a DoRA adapter of q_proj, k_proj or v_proj does not fit the one "
                    "c_attn of gpt2; merge it into the model (--adapter) and export that"
                )
            theirs[GPT2_PREFIX + GPT2_FUSED.format(i=i)] = joined(block, base.dim, config)
    # ③ 他们的 Conv1D 存的是转置，PEFT 要知道
    extra = {"task_type": "CAUSAL_LM", "fan_in_fan_out": family == "gpt2"}
    write_layers(out, config, theirs, recorded, extra)
    return len(theirs)


def import_adapter(source: Path, out: Path, base: GPTConfig) -> int:
    """PEFT 在他们的模型上练的适配器 → 我们的目录，`load_adapter` 能装到导入的底座上；返回层数。

    错误：不是适配器、改了我们没有的层、缺了说好要有的层、out 已经有东西 → ValueError
    """
    family = family_of(base)
    refuse_existing(out)
    # 那边的层名，还没有翻译
    config, layers, recorded = read_layers(source, fan_in_fan_out=family == "gpt2")
    # 同一张表反过来用；c_attn 在表外，另有三个去处
    names = {theirs: ours for ours, theirs in module_names(family, base.n_layers).items()}
    attention = {GPT2_PREFIX + GPT2_FUSED.format(i=i): i for i in range(base.n_layers)}
    attention = attention if family == "gpt2" else {}
    # 例：Mixtral 的专家层，或者另一种模型的适配器
    unknown = [name for name in layers if name not in names and name not in attention]
    if unknown:
        known = ", ".join(list(names)[:3])
        raise ValueError(
            f"{source} is not for this base: it changes {', '.join(unknown[:3])}; "
            f"the base, a {family} model, has {known}…"
        )
    # 逐层翻译；GPT-2 的一层变三层
    ours: dict[str, Layer] = {}
    for name, layer in layers.items():
        # 多数层只是改名
        if name in names:
            ours[names[name]] = layer
            continue
        # B 与长度横切三段，A 人手一份；复制出来，文件里不许两个名字指同一块内存
        for index, projection in enumerate(QKV):
            parts = {
                part: tensor.clone() if part == "A" else tensor.chunk(3)[index].clone()
                for part, tensor in layer.parts.items()
            }
            ours[f"blocks.{attention[name]}.attention.{projection}"] = replace(layer, parts=parts)
    # 我们这边没有特别的键
    write_layers(out, config, ours, recorded, {})
    return len(ours)


def module_names(family: str, n_layers: int) -> dict[str, str]:
    """我们的层 → 他们的层，都是全名；张量名去掉 .weight 就是层名。

    例：blocks.3.attention.q_proj → model.layers.3.self_attn.q_proj
    """
    # 表里写的是张量名，这里要的是层名；偏置与权重同属一层，取一个就够
    prefix = GPT2_PREFIX if family == "gpt2" else ""
    names = {
        ours.removesuffix(".weight"): prefix + theirs.removesuffix(".weight")
        for ours, theirs in renaming(family, n_layers).items()
        if ours.endswith(".weight")
    }
    # GPT-2 的表里没有它，因为权重共用；名字两边相同
    return {**names, "lm_head": "lm_head"}


def joined(block: Mapping[str, Layer | None], dim: int, config: LoRAConfig) -> Layer:
    """q、k、v 的适配器 → c_attn 的一个：A 竖着摞，B 排成对角块，缩放乘进 B。

    形状：A (r, D) ×3 → (R, D)；B (D, r) ×3 → (3D, R)
    """
    present = {n: layer for n, layer in block.items() if layer is not None}
    # 三个的 r 可以不同（rank_pattern），所以是相加而不是乘三
    total = sum(layer.rank for layer in present.values())
    first = next(iter(present.values())).parts["B"]
    b = torch.zeros(3 * dim, total, dtype=first.dtype)  # 不在对角上的、没有适配器的，都是 0
    # 下一块从第几列起
    start = 0
    # 逐段填
    for index, name in enumerate(QKV):
        if name not in present:
            continue
        # q、k、v 的次序与权重拼接的次序相同，错了也拼得上，只是全错
        layer = present[name]
        # 缩放各不相同，所以乘进去
        scale = layer.alpha / (math.sqrt(layer.rank) if config.use_rslora else layer.rank)
        # 这一段占 D 行，从它自己的列开始
        rows, columns = slice(index * dim, (index + 1) * dim), slice(start, start + layer.rank)
        b[rows, columns] = layer.parts["B"] * scale
        start += layer.rank
    # 各个 A 都读同一个 x，所以竖着摞，一次乘完
    a = torch.cat([layer.parts["A"] for layer in present.values()])  # 与 b 的列同一个次序
    # 拼好的缩放应当是 1：α/R = 1，rsLoRA 则 α/√R = 1
    return Layer({"A": a, "B": b}, total, math.sqrt(total) if config.use_rslora else float(total))


def read_layers(
    source: Path, fan_in_fan_out: bool = False
) -> tuple[LoRAConfig, dict[str, Layer], dict[str, str]]:
    """读一个适配器目录：配置，层的全名 → 张量与 r、α，记下的指纹。

    fan_in_fan_out：允许配置里写着它（GPT-2 的 Conv1D 是转置着存的；A、B 的形状不受影响）
    错误：同 load_adapter 的第一关；配置说要改的层，文件里没有 → ValueError
    """
    # 写的是「底座的权重转置着存」：对 GPT-2 是实情，对别家就是看错了
    ignored = ("fan_in_fan_out",) if fan_in_fan_out else ()
    # 与清单不符的、会改变算法而我们没有的选项、LoRA 以外的张量，都在这里拒绝
    # 不查的话，翻了一个比特的文件会换上一份新的清单，从此看着是好的
    config, narrowed, tensors, recorded = read_adapter(source, ignored)
    # 残缺的文件：配置里的每个名字，都应当至少挑中一层
    if not narrowed:
        match_names(config.target, list(tensors))
    # 逐层：张量之外，还要知道它自己的 r 与 α
    layers = {}
    for name, parts in tensors.items():
        layers[name] = Layer(parts, config.rank_of(name), config.alpha_of(name))
        # 形状与配置说的 r 相符，翻译才有意义；与底座合不合，装上时再看
        wanted = {"A": (0, layers[name].rank), "B": (1, layers[name].rank)}
        for part, (axis, rank) in wanted.items():
            shape = tuple(parts[part].shape) if part in parts else None
            if shape is None or len(shape) != 2 or shape[axis] != rank:
                raise ValueError(f"{source}: {name} has {part} of shape {shape}, but r is {rank}")
    return config, layers, recorded


def write_layers(
    out: Path,
    config: LoRAConfig,
    layers: Mapping[str, Layer],
    recorded: Mapping[str, str],
    extra: Mapping[str, object],
) -> None:
    """写一个适配器目录；每层的 r、α 与总的不同时，逐层写明。

    extra：两边说法不同的键（例如 fan_in_fan_out），盖在通常的配置上
    错误：磁盘满 → OSError，out 不会出现
    """
    # 换了名字，旧的通配就不作数了：全部写成全名
    # 与总的相同的不写，文件短，人也看得清哪几层特别
    ranks = {name: layer.rank for name, layer in layers.items() if layer.rank != config.r}
    alphas = {name: layer.alpha for name, layer in layers.items() if layer.alpha != config.alpha}
    config = replace(config, target=tuple(layers), rank_pattern=ranks, alpha_pattern=alphas)
    # 内存里的名字 → 文件里的尾巴
    tails = {part: tail for tail, part in PARTS.items()}
    # 名字的三节：包装的前缀、层的全名、哪一个矩阵
    tensors = {
        f"{PREFIX}{name}.{tails[part]}": tensor.contiguous()
        for name, layer in layers.items()
        for part, tensor in layer.parts.items()
    }
    # 指纹跟着走：它记的是底座，不是这个文件；四比特的底座，组的大小也跟着走
    # 库写元数据的次序是随机的，写完排好，同样的适配器才是同样的文件
    metadata = {**recorded, "format": "pt"}
    # 配置与权重两个文件，缺一不可
    # 先写在旁边，完整了再改名
    with atomic_directory(out, kind=ADAPTER_KIND) as temporary:
        write_json(temporary / CONFIG_FILE, {**config_to_peft(config, list(layers)), **extra})
        save_file(tensors, temporary / WEIGHTS_FILE, metadata=metadata)
        sort_metadata(temporary / WEIGHTS_FILE)


def demo() -> None:
    """GPT-2 的 q 与 v 各有一个适配器：拼成一个 c_attn，改动的矩阵一个数也不差。"""
    torch.manual_seed(0)
    # 四维就够看清对角块
    dim, config = 4, LoRAConfig(r=1, alpha=2.0, target=("q_proj", "v_proj"))
    # 手工造两层：q 的秩 1，v 的秩 2，缩放也不同
    # 形状照文件：A (r, D)，B (D, r)
    query = Layer({"A": torch.randn(1, dim), "B": torch.randn(dim, 1)}, 1, 2.0)
    value = Layer({"A": torch.randn(2, dim), "B": torch.randn(dim, 2)}, 2, 3.0)
    layer = joined({"q_proj": query, "k_proj": None, "v_proj": value}, dim, config)
    print(f"q 的秩 {query.rank}，v 的秩 {value.rank} → c_attn 的秩 {layer.rank}，α {layer.alpha}")
    print("B：上四行归 q，中间归 k（没有适配器，全 0），下四行归 v")
    # 一行一个输出的维，一列一个秩
    for row in layer.parts["B"].tolist():
        print("  " + "".join(f"{number:8.3f}" for number in row))
    # 核对：ΔW = s·B·A，三段各自相等
    # 拼好的整个改动，与各自的改动比
    change = layer.alpha / layer.rank * layer.parts["B"] @ layer.parts["A"]  # (3D, D)
    for index, part in ((0, query), (2, value)):
        wanted = part.alpha / part.rank * part.parts["B"] @ part.parts["A"]  # (D, D)
        error = float((change.chunk(3)[index] - wanted).abs().max())
        print(f"第 {index} 段与原来的 ΔW 最多差 {error:.1e}")
        assert error < 1e-6
    # k 没有适配器，它的那段不许有任何改动
    assert not change.chunk(3)[1].any()

    # 名字：同一张表，两头都用
    # 同一层，在两个家族里各叫什么
    for family in ("llama", "gpt2"):
        names = module_names(family, 1)
        print(f"{family}：blocks.0.feed_forward.up_proj → {names['blocks.0.feed_forward.up_proj']}")


if __name__ == "__main__":
    run_demo(demo)
