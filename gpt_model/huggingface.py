r"""Hugging Face 的权重怎样变成我们的 GPT？同样的数，换个名字；只有 GPT-2 要切一刀、转一下。

    transformer.h.3.attn.c_attn.weight      (D, 3D)     GPT-2：Q、K、V 横着拼在一起
    model.layers.3.self_attn.q_proj.weight  (Hd, D)     Llama、Mistral、Qwen
                    ↓
    blocks.3.attention.q_proj.weight        (Hd, D)     我们

为什么只需要翻译？因为算的是同样的乘法：

  · 线性层都是 y = x·Wᵀ + b，nn.Linear 存 W (出, 入)；
    GPT-2 沿用 TensorFlow 的 Conv1D，存的是 (入, 出)，所以差一个转置；
  · 注意力都先分头再打分。头在维度上是连续的一段，两边约定相同，不必重排；
  · RoPE 两边都用「前后两半配对」（half-split）。Llama 原版的文件是「相邻两个配对」，
    Hugging Face 转换时已经重排过一次 W_Q、W_K 的行，所以从它那里来就是纯粹的改名。

  c_attn.weight (D, 3D)  =  [ W_Qᵀ │ W_Kᵀ │ W_Vᵀ ]     沿最后一维切三段，各自转置

核对的办法：用随机权重造一个小模型，两边 logits 应当相等（测试里五个家族、十种形状都核对）。
形状故意取得古怪：5 个头、1 个键值头、词表 37，错位的重排在整齐的形状里看不出来。

出处：transformers 的 modeling_gpt2.py、modeling_llama.py 等的参数名。

改哪里：多认一个家族 → WEIGHT_TABLES 加一项（配置在 huggingface_config.py）；
       文件怎样读、怎样写（分片、目录）→ huggingface_files.py；从网上取 → foundation/hub.py。
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from foundation.checks import check_choice
from foundation.demonstration import run_demo
from gpt_model.config import GPTConfig
from gpt_model.huggingface_config import FAMILIES, LLAMA_LIKE, config_from_huggingface, pairs
from gpt_model.model import GPT
from gpt_model.model_directory import load_weights

__all__ = [
    "model_from_huggingface",
    "their_tensors",
    "weights_from_huggingface",
    "weights_to_huggingface",
]

# 我们的模块名 → 他们的模块名；{i} 是层号，.weight 与 .bias 由 renaming 补上。
# 表里多列的不碍事：没有的偏置、没有的 q_norm 自然对不上，跳过即可。
_GPT2_WEIGHTS = pairs("""
    token_embedding wte
    position_embedding wpe
    blocks.{i}.attention_norm h.{i}.ln_1
    blocks.{i}.attention.out_proj h.{i}.attn.c_proj
    blocks.{i}.ffn_norm h.{i}.ln_2
    blocks.{i}.feed_forward.up_proj h.{i}.mlp.c_fc
    blocks.{i}.feed_forward.down_proj h.{i}.mlp.c_proj
    final_norm ln_f
""")
# Llama、Mistral、Qwen2、Qwen3 同一张表；q_norm 只有 Qwen3 有，投影的偏置只有 Qwen2 有。
# 他们的 post_attention_layernorm 名字有误导：它在前馈之前，仍是 Pre-LN
_LLAMA_WEIGHTS = pairs("""
    token_embedding model.embed_tokens
    blocks.{i}.attention_norm model.layers.{i}.input_layernorm
    blocks.{i}.attention.q_proj model.layers.{i}.self_attn.q_proj
    blocks.{i}.attention.k_proj model.layers.{i}.self_attn.k_proj
    blocks.{i}.attention.v_proj model.layers.{i}.self_attn.v_proj
    blocks.{i}.attention.out_proj model.layers.{i}.self_attn.o_proj
    blocks.{i}.attention.q_norm model.layers.{i}.self_attn.q_norm
    blocks.{i}.attention.k_norm model.layers.{i}.self_attn.k_norm
    blocks.{i}.ffn_norm model.layers.{i}.post_attention_layernorm
    blocks.{i}.feed_forward.gate_proj model.layers.{i}.mlp.gate_proj
    blocks.{i}.feed_forward.up_proj model.layers.{i}.mlp.up_proj
    blocks.{i}.feed_forward.down_proj model.layers.{i}.mlp.down_proj
    final_norm model.norm
    lm_head lm_head
""")
WEIGHT_TABLES = {"gpt2": _GPT2_WEIGHTS, **dict.fromkeys(LLAMA_LIKE, _LLAMA_WEIGHTS)}

# 每个模块至多两个张量；嵌入与 RMSNorm 只有前一个
ENDINGS = (".weight", ".bias")
# 融合矩阵里三段的次序
QKV = ("q_proj", "k_proj", "v_proj")
GPT2_PREFIX = "transformer."  # GPT2LMHeadModel 有，裸的 GPT2Model 没有
GPT2_FUSED = "h.{i}.attn.c_attn"
# 早期文件里存着不是参数的表：GPT-2 的因果掩码，Llama 的旋转频率；都由配置决定，自己会算
GPT2_BUFFERS = (".attn.bias", ".attn.masked_bias")
LLAMA_BUFFERS = (".rotary_emb.inv_freq",)
# 认得的类型；别的（8 位整数、fp8……）是量化过的，还要乘上另存的系数才是权重
WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def renaming(family: str, n_layers: int) -> dict[str, str]:
    """展开层号与 .weight / .bias，得到整张表：我们的张量名 → 他们的张量名。

    例：blocks.{i}.ffn_norm → h.{i}.ln_2，两层 → blocks.0.ffn_norm.weight → h.0.ln_2.weight，
       blocks.0.ffn_norm.bias → h.0.ln_2.bias，再加第 1 层的两个，共四项
    """
    return {
        ours.format(i=i) + ending: theirs.format(i=i) + ending
        for ours, theirs in WEIGHT_TABLES[family].items()
        # 不分层的（词向量、末尾的归一化、lm_head）只出现一次
        for i in (range(n_layers) if "{i}" in ours else (0,))
        for ending in ENDINGS
    }


def turn(tensor: Tensor, their_name: str) -> Tensor:
    """GPT-2 的 Conv1D（c_attn、c_proj、c_fc）权重是 (入, 出)，转置成 (出, 入)；其余不动。"""
    # 一维的偏置没有方向可言
    conv1d = ".c_" in their_name and their_name.endswith(".weight")
    return tensor.t().contiguous() if conv1d else tensor


def weights_from_huggingface(
    weights: Mapping[str, Tensor], family: str, config: GPTConfig
) -> dict[str, Tensor]:
    """把他们的权重翻译成我们的名字与形状；数字不变，不转换类型。

    形状：GPT-2 的 c_attn (D, 3D) → 三个 (D, D)；其余只改名
    错误：家族不认识 → ValueError；多出的名字原样保留，由载入时一并列出
    """
    check_choice("family", family, FAMILIES)  # 家族只决定用哪张表，模型不知道它
    # 复制一份清单，认出一个划掉一个，最后剩下的就是认不出的
    left = dict(weights)
    # 前缀有没有都认；早期文件里的表不是权重，先剔除
    prefix, buffers = (GPT2_PREFIX, GPT2_BUFFERS) if family == "gpt2" else ("", LLAMA_BUFFERS)
    left = {
        name.removeprefix(prefix): tensor
        for name, tensor in left.items()
        if not name.endswith(buffers)
    }
    ours: dict[str, Tensor] = {}
    # 下面三步都不复制数字：改名只换字典的键，转置只对 GPT-2 的小矩阵发生
    # ① 改名；GPT-2 的投影顺手转置（别家的名字里没有 .c_）
    for our_name, their_name in renaming(family, config.n_layers).items():
        if their_name in left:
            ours[our_name] = turn(left.pop(their_name), their_name)
    # ② GPT-2 拼在一起的 Q、K、V：「出」的方向是最后一维，切三段再转置
    #    权重 (D, 3D) → 三个 (D, D)；偏置 (3D,) → 三个 (D,)
    for i in range(config.n_layers if family == "gpt2" else 0):
        for ending in ENDINGS:
            fused = left.pop(GPT2_FUSED.format(i=i) + ending, None)  # (D, 3D) 或 (3D,)
            if fused is None:
                continue  # 缺了什么，载入时会报出我们的名字
            for name, part in zip(QKV, fused.chunk(3, dim=-1), strict=True):
                ours[f"blocks.{i}.attention.{name}{ending}"] = part.t().contiguous()
    # ③ 共用词表时他们可能又存了一份 lm_head，丢掉，免得以为有两个矩阵
    if config.tie_embeddings:
        left.pop("lm_head.weight", None)
        ours.pop("lm_head.weight", None)  # Llama 的表认得它，所以可能在这边
    # 两边不会有同名的：认出的已经划掉了
    # 认不出的也带上：由载入时和缺少的一起报告
    return {**ours, **left}


def weights_to_huggingface(model: GPT, family: str) -> dict[str, Tensor]:
    """反方向：把我们的权重翻译成他们的名字与形状，`load_state_dict` 即可读入。

    错误：家族不认识，或模型里有那个家族没有的零件 → ValueError，写明是哪些张量
    """
    return dict(their_tensors(model, family))


def their_tensors(model: GPT, family: str) -> Iterator[tuple[str, Tensor]]:
    """同上，但一个一个地给：大模型存盘时，转置出来的副本用完即弃，不必同时放得下两份。

    次序：先是改名的，GPT-2 的融合矩阵在后；次序不影响读的人，safetensors 按名字找
    错误：同 weights_to_huggingface；在给出第一个之前就查完
    """
    check_choice("family", family, FAMILIES)
    # state_dict 给的是同一块内存的别名，不是副本
    state, n_layers = model.state_dict(), model.config.n_layers
    # ① 先看那个家族装不装得下：宁可不导出，也不丢掉一部分
    table = renaming(family, n_layers)
    #    表里没有的只有两样：拼在一起的 Q、K、V，和 GPT-2 共用的 lm_head
    fused = {f"blocks.{i}.attention.{n}{e}" for i in range(n_layers) for n in QKV for e in ENDINGS}
    places = {*table, "lm_head.weight"} | (fused if family == "gpt2" else set())
    # 例：把 RMSNorm 的模型写成 gpt2，多出来的位置嵌入没处放
    if set(state) - places:
        raise ValueError(
            f"a {family} model has no place for {', '.join(sorted(set(state) - places))}"
        )
    # 带语言模型头的 GPT-2 把主干放在 transformer 之下，Llama 的表里已经写了 model.
    prefix = GPT2_PREFIX if family == "gpt2" else ""
    # ② 改名；转置两次等于没转，所以同一个 turn 两个方向都用
    for our_name, their_name in table.items():
        if our_name in state:
            yield prefix + their_name, turn(state[our_name], their_name)
    # ③ GPT-2：三段转置后拼回一个；它的 lm_head 没有 transformer. 前缀
    for i in range(n_layers if family == "gpt2" else 0):
        # 权重与偏置各拼一次
        for ending in ENDINGS:
            # 次序是 Q、K、V，错了也拼得上，只是全错
            # 权重 (D, D) 转置后沿最后一维拼成 (D, 3D)；偏置 (D,) 转置不变，拼成 (3D,)
            parts = [state[f"blocks.{i}.attention.{name}{ending}"].t() for name in QKV]
            yield prefix + GPT2_FUSED.format(i=i) + ending, torch.cat(parts, dim=-1)
    #    共用词表时 lm_head 与 wte 是同一个张量，他们的 state_dict 里两个名字都有
    # 存盘的人会看 tie_embeddings，决定要不要写它
    if family == "gpt2":
        yield "lm_head.weight", state["lm_head.weight"]


def model_from_huggingface(
    values: Mapping[str, Any], weights: Mapping[str, Tensor], where: str | None = None
) -> GPT:
    """由他们的 config.json 与权重建出我们的 GPT；类型与文件里的相同。

    类型不转换：文件里是 bfloat16，模型就是 bfloat16
    错误：配置看不懂 → 见 huggingface_config.py；名字或形状对不上、权重是量化过的 → 一次列全
    """
    # 配置先行：看不懂的配置，权重也不必看了
    config = config_from_huggingface(values)
    family = str(values["model_type"])
    # 报错时说的名字：给了文件夹就说文件夹
    where = where or f"the {family} weights"
    # 改名与转置；认不出的也在里面，由 load_weights 一起报
    ours = weights_from_huggingface(weights, family, config)
    # 量化过的数，单看是没有意义的整数；当作权重用，只会得到胡话
    odd = [f"{name} ({t.dtype})" for name, t in ours.items() if t.dtype not in WEIGHT_TYPES]
    # 列几个就够：多半是全部
    if odd:
        listed = ", ".join(odd[:4]) + (f", … {len(odd)} in all" if odd[4:] else "")
        raise ValueError(
            f"{where}: weights must be float32, float16 or bfloat16, got {listed}; "
            "quantized checkpoints are not supported, import the original one"
        )
    # 先搭一个没有数字的骨架，再把翻译好的张量换上去，不占两份内存
    model = GPT.on_meta(config).to_empty(device="cpu")
    load_weights(model, ours, where)
    return model.eval()  # 载入是为了用：默认关掉 dropout


def demo() -> None:
    """造一份小小的 GPT-2 权重，翻译过来，再翻译回去。

    真正的核对在测试里：用 transformers 的随机模型比较 logits、梯度与左填充的批
    """
    # 名字与键照他们的写法
    shape = {"n_positions": 16, "n_embd": 12, "n_layer": 1, "n_head": 3, "vocab_size": 11}
    values = {"model_type": "gpt2", "activation_function": "gelu_new", **shape}
    theirs = weights_to_huggingface(GPT(config_from_huggingface(values)), "gpt2")
    model = model_from_huggingface(values, theirs)
    # ① 逐个列出：名字与形状怎样对应
    print("他们的名字                            形状      我们的名字")
    table = {their: our for our, their in renaming("gpt2", 1).items()}
    # 一行一个张量；左边是文件里看到的，右边是 model.named_parameters() 里的
    for name, tensor in theirs.items():
        ours = table.get(name.removeprefix(GPT2_PREFIX), "")
        ours = "切成 q_proj、k_proj、v_proj" if "c_attn" in name else ours or "与词向量共用"
        print(f"  {name:<36}{str(tuple(tensor.shape)):<10}{ours}")

    # ② 第 1 个头的 W_Q 在融合矩阵里的位置：前 D 列中的前 d 列，转置之后就是前 d 行
    fused = theirs["transformer.h.0.attn.c_attn.weight"]  # (12, 36)
    query = model.get_parameter("blocks.0.attention.q_proj.weight")  # (12, 12)
    assert torch.equal(query[:4], fused[:, :4].t())
    # ③ 一来一回，一个比特都不该变
    again = weights_to_huggingface(model, "gpt2")
    assert again.keys() == theirs.keys()  # 一个不多，一个不少
    assert all(torch.equal(again[name], theirs[name]) for name in theirs)
    print("翻译过去再翻译回来，逐比特相等")


if __name__ == "__main__":
    run_demo(demo)
