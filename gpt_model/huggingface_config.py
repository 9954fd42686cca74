r"""Hugging Face 的 config.json 怎样变成 GPTConfig？一张表翻译名字，其余的一个都不放过。

同一个数，各家起名不同：

    我们           GPT-2                 Llama、Mistral、Qwen
    dim            n_embd                hidden_size
    n_layers       n_layer               num_hidden_layers
    n_heads        n_head                num_attention_heads
    n_kv_heads     （没有）              num_key_value_heads
    ffn_dim        n_inner               intermediate_size
    max_seq_len    n_positions           max_position_embeddings
    norm_eps       layer_norm_epsilon    rms_norm_eps

他们的键分四类，每一个键都必须落进其中一类，否则拒绝：

    改名的    上面这张表
    必须的    取别的值就会改变算法，而我们没有那种算法（REQUIRED）
    另处理的  激活、偏置、RoPE、滑动窗口，各有几种写法（HANDLED）
    无关的    与一次前向的数字无关：元数据、dropout、生成的默认值（IGNORED）

一个家族固定不变的选择（用哪种归一化、有没有偏置）不在 config.json 里，而写死在他们的模型代码里；
我们没有每家一份的代码，所以把它们记在 FIXED 表中。读完那张表，就读完了五个家族的差别：

    gpt2      一切照 GPTConfig 的默认值：LayerNorm、学出来的位置、GELU、处处有偏置
    llama     RMSNorm、RoPE、SwiGLU，去掉全部偏置（有两个开关可以全加回来）；从 3 起键值头少于查询头
    mistral   与 llama 相同，只多一个滑动窗口
    qwen2     与 llama 相同，只给 q、k、v 加回偏置
    qwen3     与 llama 相同，改用 q、k 各自的归一化

没写的键也有含义：他们读 config.json 时用那个家族的默认值补上，我们照同一张表补（DEFAULTS）；
没有默认值可依的大小（层数、宽度……），没写就拒绝。

为什么这样严：漏看一个开关，模型照样能说话，只是悄悄说错；拒绝至少让人知道。

出处：transformers 的 configuration_gpt2.py、_llama.py、_mistral.py、_qwen2.py、_qwen3.py。

改哪里：多认一个家族 → CONFIG_TABLES 与 FIXED 各加一项，权重的名字在 huggingface.py；
       一个配置项其实无关紧要 → IGNORED；新的 RoPE 缩放 → transformer_basics/rotary.py 先有了再加；
       反方向（GPTConfig → 他们的 config.json）→ huggingface_export.py。
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foundation.checks import check_choice
from foundation.demonstration import run_demo
from gpt_model.config import GPTConfig
from transformer_basics.rotary import RopeScaling

__all__ = ["FAMILIES", "config_from_huggingface"]


def pairs(text: str) -> dict[str, str]:
    """把「我们的名字 他们的名字」每行一对的文字变成字典。

    写成文字而不是字典字面量，是为了让两列名字对得上、看得清
    """
    return dict(line.split() for line in text.strip().splitlines())


# ── 改名：我们的字段 ← 他们的键；没有列出的字段由 FIXED 给定，或取 GPTConfig 的默认值 ──────
_GPT2_KEYS = pairs("""
    vocab_size vocab_size
    max_seq_len n_positions
    dim n_embd
    n_layers n_layer
    n_heads n_head
    ffn_dim n_inner
    norm_eps layer_norm_epsilon
    init_std initializer_range
""")
# Llama 之后的几家沿用同一套名字，差别只在 FIXED。
# head_dim 单列一项：Qwen3 与 Mistral 的头宽不等于 dim / n_heads；
# ffn_dim 在 Llama 里不是 4·dim：门控多一个矩阵，取 8/3·dim 参数量才相当。
_LLAMA_KEYS = pairs("""
    vocab_size vocab_size
    max_seq_len max_position_embeddings
    dim hidden_size
    n_layers num_hidden_layers
    n_heads num_attention_heads
    n_kv_heads num_key_value_heads
    head_dim head_dim
    ffn_dim intermediate_size
    norm_eps rms_norm_eps
    init_std initializer_range
""")
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")
CONFIG_TABLES = {"gpt2": _GPT2_KEYS, **dict.fromkeys(LLAMA_LIKE, _LLAMA_KEYS)}
FAMILIES = tuple(CONFIG_TABLES)

# ── 每个家族固定不变的选择：写在他们的代码里，不在 config.json 里 ────────────────────────
_BARE = {"qkv_bias": False, "proj_bias": False}  # Llama 去掉了所有偏置
_LLAMA_FIXED = {"norm": "rmsnorm", "position": "rope", "gated_ffn": True, **_BARE}
FIXED: dict[str, dict[str, Any]] = {
    "gpt2": {},  # GPTConfig 的默认值就是 GPT-2
    "llama": _LLAMA_FIXED,  # 1、2、3 都是这一套
    "mistral": _LLAMA_FIXED,  # 只多一个滑动窗口
    "qwen2": {**_LLAMA_FIXED, "qkv_bias": True},  # 只有 q、k、v 带偏置
    "qwen3": {**_LLAMA_FIXED, "qk_norm": True},  # 去掉偏置，换成 q、k 的归一化
}

# ── 没写的键取什么值：照那个家族的配置类；这里没有、文件里也没有的大小 → 拒绝 ──────────────
_LLAMA_DEFAULTS = {"head_dim": None, "rms_norm_eps": 1e-6, "initializer_range": 0.02}
DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_inner": None, "layer_norm_epsilon": 1e-5, "initializer_range": 0.02},
    # Llama 1、2 的旧文件没有键值头这一项：每个查询头各有一份
    "llama": {**_LLAMA_DEFAULTS, "num_key_value_heads": None},
    "mistral": {**_LLAMA_DEFAULTS, "sliding_window": 4096},
    # 窗口写了也不算数，要 use_sliding_window 为真；从第几层起用它，默认是第 28 层
    "qwen2": {**_LLAMA_DEFAULTS, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": {**_LLAMA_DEFAULTS, "head_dim": 128, "sliding_window": 4096, "max_window_layers": 28},
}

# ── 激活函数的叫法：gelu_new 是 GPT-2 的 tanh 近似，gelu 才是精确的 ──────────────────────
ACTIVATION_NAMES = pairs("""
    gelu_new gelu_tanh
    gelu_pytorch_tanh gelu_tanh
    gelu gelu
    relu relu
    silu silu
    swish silu
""")
# ── RoPE 缩放：种类同名，只翻译里面的数 ───────────────────────────────────────────────
# dynamic 的训练长度就是 max_position_embeddings，到那里为止与不缩放逐数相同；更长时他们随句子的长度
# 换频率，我们按打开时的长度定好（gpt_model/longer_context.py）。longrope 在训练长度之内也变，不收。
# 每个数的含义见 transformer_basics/rotary.py 的 RopeScaling。
ROPE_KINDS = ("linear", "dynamic", "yarn", "llama3")
# 每种用到哪些数；写了用不到的，他们的代码不理会，我们却可能照用，所以拒绝
_ALWAYS = ("factor", "original_max_position_embeddings")
ROPE_USES = {
    **dict.fromkeys(("default", "dynamic", "linear"), _ALWAYS),
    "yarn": (*_ALWAYS, "beta_fast", "beta_slow", "attention_factor"),
    "llama3": (*_ALWAYS, "low_freq_factor", "high_freq_factor"),
}
ROPE_NUMBERS = pairs("""
    factor factor
    original_max_position_embeddings original_max_seq_len
    low_freq_factor low_freq_factor
    high_freq_factor high_freq_factor
    beta_fast beta_fast
    beta_slow beta_slow
    attention_factor attention_factor
""")

# ── 必须等于这里的值 ────────────────────────────────────────────────────────────────
REQUIRED: dict[str, Any] = {
    "scale_attn_weights": True,  # 打分要除以 √d
    "scale_attn_by_inverse_layer_idx": False,  # 再除以层号：Mistral 研究 GPT-2 时的变体
    "add_cross_attention": False,  # 只有解码器
    "is_encoder_decoder": False,  # 没有编码器
    "pretraining_tp": 1,  # 把一次乘法拆开算，末位数字会不同
    "partial_rotary_factor": 1.0,  # 只转每个头的一部分维
    "rope_interleaved": False,  # 相邻两个配对，见 huggingface.py
    "use_mrope": False,  # 看图的 Qwen：时间、行、列各转一段
    "n_special": 0,  # GPT-1 的旧开关
    "quantization_config": None,  # 权重存成了 8 位或 4 位，不是原来的数
    "is_decoder": False,  # BERT 一类才有的开关
    "cross_attention_hidden_size": None,
    "pruned_heads": {},  # 剪掉了几个头
    "auto_map": None,  # 要运行文件里附带的代码：绝不
}
# ── 另有代码处理 ────────────────────────────────────────────────────────────────────
HANDLED = set(
    "model_type activation_function hidden_act tie_word_embeddings rope_theta rope_scaling "
    "rope_parameters sliding_window use_sliding_window max_window_layers layer_types "
    "attention_bias mlp_bias".split()
)
# ── 与一次前向的数字无关 ────────────────────────────────────────────────────────────
IGNORED = set(
    # 元数据
    "_name_or_path architectures dtype torch_dtype transformers_version gradient_checkpointing "
    # 训练时才有的 dropout；n_ctx 是 n_positions 的旧名
    "attention_dropout attn_pdrop embd_pdrop resid_pdrop n_ctx "
    # 生成的默认值
    "bos_token_id eos_token_id pad_token_id use_cache output_attentions output_hidden_states "
    "return_dict task_specific_params "
    # 分类头；只影响实现方式、不影响结果的开关
    "id2label label2id problem_type summary_activation summary_first_dropout "
    "summary_proj_to_labels summary_type summary_use_proj chunk_size_feed_forward "
    "reorder_and_upcast_attn "
    # 旧版写进每个文件的：生成的默认值，如今在 generation_config.json 里
    "max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty "
    "temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size "
    "encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores "
    "return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values "
    "exponential_decay_length_penalty suppress_tokens begin_suppress_tokens prefix "
    "decoder_start_token_id sep_token_id unk_token_id "
    # 旧版写进每个文件的：别的模型、别的框架用的
    "finetuning_task tokenizer_class torchscript tf_legacy_loss use_bfloat16 _attn_implementation "
    "_attn_implementation_autoset attn_implementation unsloth_version unsloth_fixed "
    "predict_special_tokens output_past _num_labels is_llama_config transformers.js_config "
    "max_sequence_length".split()
)


def config_from_huggingface(values: Mapping[str, Any]) -> GPTConfig:
    """把他们的 config.json 翻译成 GPTConfig。

    错误：家族不认识 → 列出认识的；有会改变算法而我们没有的设置 → 写明键、值与允许的值
    """
    family = check_choice("model_type", values.get("model_type"), FAMILIES)
    table = CONFIG_TABLES[family]
    # ① 先确认没有看漏的开关
    refuse_unknown(values, family)
    # ② 没写的键补上家族的默认值；补不上的大小，一次列全
    values = {**DEFAULTS[family], **values}
    # 例：漏了层数，用默认的 32 层去配 16 层的权重，只会得到一长串「缺少」
    missing = [theirs for theirs in table.values() if theirs not in values]
    # 与其那样，不如在这里说
    if missing:
        raise ValueError(f"config.json of a {family} model lacks {', '.join(missing)}")
    # ③ 改名；值写成 null 也照抄：None 在两边都表示「按惯例」
    fields = {**FIXED[family], **{ours: values[theirs] for ours, theirs in table.items()}}
    # ④ 激活：GPT-2 的键名与后来各家不同。
    #    词表：没写时 GPT-2 默认输入输出共用，其余默认不共用，弄反了就多出或缺少一个 lm_head
    # 没写时：GPT-2 是 gelu_new，其余是 silu
    key, usual = ("activation_function", "gelu_new") if family == "gpt2" else ("hidden_act", "silu")
    activation = check_choice("activation", values.get(key, usual), ACTIVATION_NAMES)
    fields["activation"] = ACTIVATION_NAMES[activation]
    fields["tie_embeddings"] = values.get("tie_word_embeddings", family == "gpt2")
    # （到这里 fields 里是大小、FIXED 的选择、激活与共用）
    # ⑤ 偏置、位置与窗口：各有几种写法，各有一个函数
    fields |= bias_fields(values, family)
    if fields.get("position") == "rope":
        fields |= rope_fields(values)
    fields["sliding_window"] = window_size(values, family)
    return GPTConfig(**fields)


def refuse_unknown(values: Mapping[str, Any], family: str) -> None:
    """四类之外的键、REQUIRED 里取了别的值的键 → ValueError。"""
    known = {*CONFIG_TABLES[family].values(), *REQUIRED, *HANDLED, *IGNORED}
    # 写成 null 的等于没写；以 _ 开头的是他们程序自己的记号
    unknown = sorted(k for k, v in values.items() if k not in known and v is not None)
    if unknown:
        raise ValueError(f"config.json of a {family} model has unknown keys: {', '.join(unknown)}")
    for key, wanted in REQUIRED.items():
        if values.get(key, wanted) != wanted:  # 没写就是默认值，也就是我们要的值
            raise ValueError(f"{key} must be {wanted!r} for a {family} model, got {values[key]!r}")


def bias_fields(values: Mapping[str, Any], family: str) -> dict[str, Any]:
    """Llama 的两个开关：注意力的四个投影、前馈的三个，各自要不要偏置。

    我们的两个旋钮分法不同：qkv_bias 管 q、k、v，proj_bias 管其余的。
    所以两个开关同开或同关才表达得了；别家没有这样的开关（Qwen3 的只管注意力）
    错误：只开一个，或别家开了 → ValueError，写明两个键
    """
    # 没写就是没有
    attention, mlp = (bool(values.get(key)) for key in ("attention_bias", "mlp_bias"))
    if not attention and not mlp:
        return {}  # 家族自己的惯例：Qwen2 的 q、k、v 有偏置，就写在 FIXED 里
    if family == "llama" and attention and mlp:
        return {"qkv_bias": True, "proj_bias": True}
    raise ValueError(
        f"attention_bias and mlp_bias must be false for a {family} model"
        f"{', or both true' if family == 'llama' else ''}; got {attention} and {mlp}"
    )


def rope_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE 的底数与缩放，新旧两种写法都认。

    公式：旋转角 = 位置 · θ^(−2i/d)，θ 即 rope_theta；缩放只改这些频率
    写法：旧 {"rope_theta": θ, "rope_scaling": {"type": …}}；
         新 {"rope_parameters": {"rope_type": …, "rope_theta": θ}}
    错误：种类不认识、带有不认识的数 → ValueError
    """
    new, old = (values.get(key) or {} for key in ("rope_parameters", "rope_scaling"))
    # transformers 5 会两个都写；写得一样就好
    if new and old and new != old:
        raise ValueError(f"rope_parameters {new} and rope_scaling {old} contradict each other")
    # 先取出两种写法都有的东西，剩下的就该全是缩放的数；写成 null 的等于没写
    given = {key: value for key, value in (new or old).items() if value is not None}
    theta = given.pop("rope_theta", values.get("rope_theta", 10000.0))
    old_kind = given.pop("type", "default")
    kind = given.pop("rope_type", old_kind)
    if given.get("partial_rotary_factor") == 1.0:  # 全转，等于没写
        del given["partial_rotary_factor"]
    check_choice("rope_type", kind, ("default", *ROPE_KINDS))
    # 多出来的数：拼错了，或是我们不知道的新花样
    unknown = sorted(set(given) - set(ROPE_USES[kind]))
    if unknown:
        raise ValueError(f"rope_scaling of kind {kind!r} has unknown keys: {', '.join(unknown)}")
    if kind == "default":
        return {"rope_theta": theta}
    numbers = {ROPE_NUMBERS[key]: value for key, value in given.items()}
    if kind in ("yarn", "llama3"):  # 他们缺省时以模型的上下文为训练长度
        numbers.setdefault("original_max_seq_len", values["max_position_embeddings"])
    if kind == "dynamic":  # 他们的代码只看模型的上下文，不看 original_max_position_embeddings
        numbers["original_max_seq_len"] = values["max_position_embeddings"]
    # 每一种都要知道拉长几倍
    if "factor" not in numbers:
        raise ValueError(f"rope_scaling of kind {kind!r} lacks factor")
    return {"rope_theta": theta, "rope_scaling": RopeScaling(kind=kind, **numbers)}


def window_size(values: Mapping[str, Any], family: str) -> int | None:
    """滑动窗口的大小，没有则 None；一半层有、一半层没有的模型要拒绝。

    约定：窗口 w 表示位置 p 看得见 p−w+1 … p，连自己在内共 w 个，两边相同
    写法：Mistral 写了 sliding_window 就生效；
         Qwen 还要 use_sliding_window 为真，从第 max_window_layers 层起才有；
         新版在 layer_types 里逐层列出种类，有它就以它为准
    错误：各层种类不同 → ValueError；我们的 GPT 每层同样配置
    """
    # 先按各家的规矩推出每一层是哪一种
    window: int | None = values.get("sliding_window")
    n_layers = values.get("num_hidden_layers", 0)
    if family in ("gpt2", "llama"):  # 他们的代码不看这个键：写了也没有窗口
        kinds = ["full_attention"]
        if window is not None:
            raise ValueError(f"sliding_window must be null for a {family} model, got {window}")
    elif family == "mistral":
        kinds = ["sliding_attention"]
    else:
        # 前 max_window_layers 层全看，其余的层开窗
        n_full = values["max_window_layers"] if values.get("use_sliding_window") else n_layers
        kinds = ["full_attention" if i < n_full else "sliding_attention" for i in range(n_layers)]
    listed = set(values.get("layer_types") or kinds)
    # 只有 Qwen 的代码看这张表；别家写了不同的，两处说法矛盾，不猜哪个对
    qwen = family.startswith("qwen")
    found = listed if qwen else listed | set(kinds)
    off = qwen and not values.get("use_sliding_window")  # 关掉了，表里怎么写也没有窗口
    if found - {"full_attention", "sliding_attention"} or len(found) > 1:
        raise ValueError(
            f"attention must be the same in every layer, got {sorted(found)} "
            "(from layer_types, or from use_sliding_window with max_window_layers)"
        )
    return None if off or "full_attention" in found else window


def demo() -> None:
    """翻译一份 Llama 3 风格的配置，再看三种会被拒绝的。"""
    values = {
        "model_type": "llama",  # 决定用哪张表
        "vocab_size": 128256,
        "hidden_size": 2048,  # → dim
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,  # 4 个查询头共用一份 K、V
        "intermediate_size": 8192,  # → ffn_dim，这里恰是 4·dim
        "hidden_act": "silu",  # 加上 FIXED 里的门控就是 SwiGLU
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,  # 上下文长，最慢的频率也要慢
        "tie_word_embeddings": True,  # 1B、3B 共用词表，8B 起不共用
    }
    config = config_from_huggingface(values)
    print("Llama 3.2 1B 的形状，翻译之后：")
    for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "norm", "activation", "gated_ffn"):
        print(f"  {name:<12}{getattr(config, name)}")
    # 形状翻译对了，参数个数就与官方公布的一致
    from gpt_model.sizes import count_parameters

    total = count_parameters(config).total
    print(f"  合计 {total:,} 个参数，官方说 1.23B")
    assert total == 1_235_814_400

    print("\n看不懂的开关不放过：")
    for change in ({"model_type": "mamba"}, {"mlp_bias": True}, {"query_scale": 2.0}):
        try:
            config_from_huggingface({**values, **change})
        except ValueError as error:
            print(f"  {change} → {error}")


if __name__ == "__main__":
    run_demo(demo)
