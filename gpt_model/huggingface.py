r"""Hugging Face 的模型怎样变成我们的 GPT？两张表：一张翻译配置，一张翻译权重的名字。

同一个东西，各家起名不同；算的是同样的乘法。所以载入一个公开的模型不需要新代码，只需要翻译：

    transformer.h.3.attn.c_attn.weight      (D, 3D)     GPT-2
    model.layers.3.self_attn.q_proj.weight  (Hd, D)     Llama、Mistral、Qwen
                    ↓
    blocks.3.attention.q_proj.weight        (Hd, D)     我们

只有 GPT-2 要动数字，而且只动两处：
  · 它的 Conv1D 存的是 W (入, 出)，nn.Linear 存的是 (出, 入)，差一个转置；
  · 它把 Q、K、V 横着拼成一个 (D, 3D) 的矩阵，我们分开放，要切成三段。
其余家族是纯粹的改名：RoPE 两边都用「前后两半配对」的约定，不必重排维度。

不认识的配置项一律拒绝，不猜：漏看一个会改变算法的开关，模型照样能说话，只是悄悄说错。

出处：transformers 的 configuration_*.py 与 modeling_*.py；GPT-2 的 Conv1D 沿自 TensorFlow 版。

改哪里：多认一个家族 → CONFIG_TABLES 与 WEIGHT_TABLES 各加一项（必要时在 GPTConfig 加正交的字段）；
       一个配置项其实无关紧要 → IGNORED。
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from foundation.checks import check_choice
from foundation.demonstration import run_demo
from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from gpt_model.model_directory import load_weights
from transformer_basics.rotary import RopeScaling

__all__ = [
    "FAMILIES",
    "config_from_huggingface",
    "model_from_huggingface",
    "weights_from_huggingface",
    "weights_to_huggingface",
]

# ── 配置 ────────────────────────────────────────────────────────────────────────────
# 我们的字段 ← 他们的键。没有列出的字段由 FIXED 给定。

_GPT2_KEYS = {
    "vocab_size": "vocab_size",
    "max_seq_len": "n_positions",
    "dim": "n_embd",
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "ffn_dim": "n_inner",
    "norm_eps": "layer_norm_epsilon",
    "init_std": "initializer_range",
}
_LLAMA_KEYS = {
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffn_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "init_std": "initializer_range",
}
CONFIG_TABLES = {
    "gpt2": _GPT2_KEYS,
    "llama": _LLAMA_KEYS,
    "mistral": _LLAMA_KEYS,
    "qwen2": _LLAMA_KEYS,
    "qwen3": _LLAMA_KEYS,
}
FAMILIES = tuple(CONFIG_TABLES)

# 每个家族固定不变的选择
_LLAMA_FIXED = {
    "norm": "rmsnorm",
    "position": "rope",
    "gated_ffn": True,
    "qkv_bias": False,
    "proj_bias": False,
}
FIXED: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": _LLAMA_FIXED,
    "mistral": _LLAMA_FIXED,
    "qwen2": {**_LLAMA_FIXED, "qkv_bias": True},
    "qwen3": {**_LLAMA_FIXED, "qk_norm": True},
}

# 他们对激活函数的叫法
ACTIVATION_NAMES = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# RoPE 缩放的叫法；llama3 与 yarn 还带几个同名的数
ROPE_KINDS = {"linear": "linear", "yarn": "yarn", "llama3": "llama3"}
ROPE_NUMBERS = {
    "factor": "factor",
    "original_max_position_embeddings": "original_max_seq_len",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
}

# 这些键取别的值会改变算法，而我们没有那种算法：必须等于这里的值
REQUIRED: dict[str, Any] = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "attention_bias": False,
    "mlp_bias": False,
    "pretraining_tp": 1,
}
# 另有代码处理的键
HANDLED = {
    "model_type",
    "activation_function",
    "hidden_act",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "sliding_window",
    "use_sliding_window",
    "layer_types",
}
# 与一次前向的数字无关：元数据、训练时的 dropout、生成的默认值、分类头
IGNORED = {
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attn_pdrop",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "embd_pdrop",
    "eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "label2id",
    "max_window_layers",
    "n_ctx",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "reorder_and_upcast_attn",
    "resid_pdrop",
    "return_dict",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


def config_from_huggingface(values: Mapping[str, Any]) -> GPTConfig:
    """把他们的 config.json 翻译成 GPTConfig。

    错误：家族不认识 → 列出认识的；有会改变算法而我们没有的设置 → 写明键、值与允许的值
    """
    family = check_choice("model_type", values.get("model_type"), FAMILIES)
    table = CONFIG_TABLES[family]
    # ① 先确认没有看漏的开关
    known = {*table.values(), *REQUIRED, *HANDLED, *IGNORED}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"config.json of a {family} model has unknown keys: {', '.join(unknown)}")
    for key, wanted in REQUIRED.items():
        if values.get(key, wanted) != wanted:
            raise ValueError(f"{key} must be {wanted!r} for a {family} model, got {values[key]!r}")
    # ② 改名
    fields = dict(FIXED[family])
    fields |= {ours: values[theirs] for ours, theirs in table.items() if theirs in values}
    activation = values.get("activation_function", values.get("hidden_act"))
    check_choice("activation", activation, ACTIVATION_NAMES)
    fields["activation"] = ACTIVATION_NAMES[str(activation)]
    fields["tie_embeddings"] = values.get("tie_word_embeddings", family == "gpt2")
    # ③ 位置与窗口
    if fields.get("position") == "rope":
        fields |= _rope_fields(values)
    fields["sliding_window"] = _sliding_window(values)
    return GPTConfig(**fields)


def _rope_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE 的底数与缩放；新旧两种写法：rope_parameters，或 rope_theta 加 rope_scaling。"""
    parameters = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    theta = parameters.pop("rope_theta", values.get("rope_theta", 10000.0))
    kind = parameters.pop("rope_type", parameters.pop("type", "default"))
    parameters.pop("type", None)
    if kind == "default":
        return {"rope_theta": theta}
    check_choice("rope_type", kind, ("default", *ROPE_KINDS))
    unknown = sorted(set(parameters) - set(ROPE_NUMBERS))
    if unknown:
        raise ValueError(f"rope_scaling of kind {kind!r} has unknown keys: {', '.join(unknown)}")
    numbers = {ROPE_NUMBERS[key]: value for key, value in parameters.items()}
    if kind == "yarn":  # 他们缺省时以模型的上下文为训练长度
        numbers.setdefault("original_max_seq_len", values["max_position_embeddings"])
    return {"rope_theta": theta, "rope_scaling": RopeScaling(kind=ROPE_KINDS[kind], **numbers)}


def _sliding_window(values: Mapping[str, Any]) -> int | None:
    """滑动窗口；只支持各层相同，一半层有、一半层没有的模型要拒绝。"""
    window: int | None = values.get("sliding_window")
    kinds = set(values.get("layer_types") or ())
    if kinds - {"full_attention", "sliding_attention"} or len(kinds) > 1:
        raise ValueError(f"layer_types must be the same in every layer, got {sorted(kinds)}")
    if values.get("use_sliding_window") is False or kinds == {"full_attention"}:
        return None
    return window


# ── 权重 ────────────────────────────────────────────────────────────────────────────
# 我们的名字 → 他们的名字；{i} 是层号。没有的偏置自然对不上，跳过即可。

_NORM_PAIRS = (".weight", ".bias")
_GPT2_WEIGHTS = {
    "token_embedding": "wte",
    "position_embedding": "wpe",
    "blocks.{i}.attention_norm": "h.{i}.ln_1",
    "blocks.{i}.attention.out_proj": "h.{i}.attn.c_proj",
    "blocks.{i}.ffn_norm": "h.{i}.ln_2",
    "blocks.{i}.feed_forward.up_proj": "h.{i}.mlp.c_fc",
    "blocks.{i}.feed_forward.down_proj": "h.{i}.mlp.c_proj",
    "final_norm": "ln_f",
}
_LLAMA_WEIGHTS = {
    "token_embedding": "model.embed_tokens",
    "blocks.{i}.attention_norm": "model.layers.{i}.input_layernorm",
    "blocks.{i}.attention.q_proj": "model.layers.{i}.self_attn.q_proj",
    "blocks.{i}.attention.k_proj": "model.layers.{i}.self_attn.k_proj",
    "blocks.{i}.attention.v_proj": "model.layers.{i}.self_attn.v_proj",
    "blocks.{i}.attention.out_proj": "model.layers.{i}.self_attn.o_proj",
    "blocks.{i}.attention.q_norm": "model.layers.{i}.self_attn.q_norm",
    "blocks.{i}.attention.k_norm": "model.layers.{i}.self_attn.k_norm",
    "blocks.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "blocks.{i}.feed_forward.gate_proj": "model.layers.{i}.mlp.gate_proj",
    "blocks.{i}.feed_forward.up_proj": "model.layers.{i}.mlp.up_proj",
    "blocks.{i}.feed_forward.down_proj": "model.layers.{i}.mlp.down_proj",
    "final_norm": "model.norm",
    "lm_head": "lm_head",
}
WEIGHT_TABLES = {"gpt2": _GPT2_WEIGHTS, **dict.fromkeys(FAMILIES[1:], _LLAMA_WEIGHTS)}

GPT2_PREFIX = "transformer."
GPT2_FUSED = "h.{i}.attn.c_attn"
QKV = ("q_proj", "k_proj", "v_proj")
# 早期的 GPT-2 权重文件里还存着因果掩码，它不是参数
GPT2_BUFFERS = (".attn.bias", ".attn.masked_bias")


def renaming(family: str, n_layers: int) -> dict[str, str]:
    """展开层号，得到整张表：我们的张量名 → 他们的张量名。"""
    pairs: dict[str, str] = {}
    for ours, theirs in WEIGHT_TABLES[family].items():
        layers = range(n_layers) if "{i}" in ours else (0,)
        for i in layers:
            for ending in _NORM_PAIRS:
                pairs[ours.format(i=i) + ending] = theirs.format(i=i) + ending
    return pairs


def is_transposed(name: str) -> bool:
    """GPT-2 的 Conv1D 权重：形状 (入, 出)，与 nn.Linear 差一个转置。"""
    return name.endswith(".weight") and (".c_" in name)


def weights_from_huggingface(
    weights: Mapping[str, Tensor], family: str, config: GPTConfig
) -> dict[str, Tensor]:
    """把他们的权重翻译成我们的名字与形状；数字不变，不转换类型。

    错误：家族不认识 → ValueError；多出的名字原样保留，由载入时一并列出
    """
    check_choice("family", family, FAMILIES)
    left = dict(weights)
    if family == "gpt2":
        left = {
            name.removeprefix(GPT2_PREFIX): tensor
            for name, tensor in left.items()
            if not name.endswith(GPT2_BUFFERS)
        }
    ours: dict[str, Tensor] = {}
    # ① 改名；GPT-2 的四种投影顺手转置
    for our_name, their_name in renaming(family, config.n_layers).items():
        if their_name in left:
            tensor = left.pop(their_name)
            flip = family == "gpt2" and is_transposed(their_name)
            ours[our_name] = tensor.t().contiguous() if flip else tensor
    # ② GPT-2 拼在一起的 Q、K、V：沿「出」的方向切成三段
    if family == "gpt2":
        for i in range(config.n_layers):
            for ending in _NORM_PAIRS:
                fused = left.pop(GPT2_FUSED.format(i=i) + ending, None)
                if fused is None:
                    continue
                for name, part in zip(QKV, fused.chunk(3, dim=-1), strict=True):
                    ours[f"blocks.{i}.attention.{name}{ending}"] = part.t().contiguous()
    # ③ 共用词表时他们可能又存一份 lm_head，丢掉；其余认不出的留给载入时报告
    if config.tie_embeddings:
        left.pop("lm_head.weight", None)
        ours.pop("lm_head.weight", None)
    return {**ours, **left}


def weights_to_huggingface(model: GPT, family: str) -> dict[str, Tensor]:
    """反方向：把我们的权重翻译成他们的名字与形状，`load_state_dict` 即可读入。"""
    check_choice("family", family, FAMILIES)
    state = model.state_dict()
    theirs: dict[str, Tensor] = {}
    prefix = GPT2_PREFIX if family == "gpt2" else ""
    for our_name, their_name in renaming(family, model.config.n_layers).items():
        if our_name in state:
            tensor = state.pop(our_name)
            flip = family == "gpt2" and is_transposed(their_name)
            theirs[prefix + their_name] = tensor.t().contiguous() if flip else tensor
    if family == "gpt2":
        for i in range(model.config.n_layers):
            for ending in _NORM_PAIRS:
                names = [f"blocks.{i}.attention.{name}{ending}" for name in QKV]
                parts = [state.pop(name).t() for name in names]
                theirs[prefix + GPT2_FUSED.format(i=i) + ending] = torch.cat(parts, dim=-1)
        theirs["lm_head.weight"] = state.pop("lm_head.weight")
    if state:
        raise ValueError(f"a {family} model has no place for {', '.join(sorted(state))}")
    return theirs


def model_from_huggingface(values: Mapping[str, Any], weights: Mapping[str, Tensor]) -> GPT:
    """由他们的 config.json 与权重建出我们的 GPT；名字或形状对不上就一次列全。"""
    config = config_from_huggingface(values)
    model = GPT.on_meta(config).to_empty(device="cpu")
    family = str(values["model_type"])
    load_weights(model, weights_from_huggingface(weights, family, config), f"the {family} weights")
    return model.eval()


def demo() -> None:
    """造一份小小的 GPT-2 权重，翻译过来，再翻译回去。"""
    values = {
        "model_type": "gpt2",
        "vocab_size": 11,
        "n_positions": 16,
        "n_embd": 12,
        "n_layer": 1,
        "n_head": 3,
        "activation_function": "gelu_new",
    }
    config = config_from_huggingface(values)
    theirs = weights_to_huggingface(GPT(config), "gpt2")
    model = model_from_huggingface(values, theirs)
    print("他们的名字                            形状      我们的名字")
    table = {their: our for our, their in renaming("gpt2", 1).items()}
    for name, tensor in theirs.items():
        ours = table.get(name.removeprefix(GPT2_PREFIX), "")
        ours = "切成 q_proj、k_proj、v_proj" if "c_attn" in name else ours or "与词向量共用"
        print(f"  {name:<36}{str(tuple(tensor.shape)):<10}{ours}")
    again = weights_to_huggingface(model, "gpt2")
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[name], theirs[name]) for name in theirs)
    print("翻译过去再翻译回来，逐比特相等")
    try:
        config_from_huggingface({**values, "scale_attn_by_inverse_layer_idx": True})
    except ValueError as error:
        print(f"看不懂的开关不放过：{error}")


if __name__ == "__main__":
    run_demo(demo)
