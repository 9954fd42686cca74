r"""我们的 GPT 怎样写成别家程序认得的样子？先看它是不是某个家族的一员，是才写，不是就说差在哪里。

transformers、vLLM、llama.cpp 都按 config.json 里的 model_type 挑一份写好的代码来算。那份代码固定了
许多选择，所以能不能导出，不看有多少参数，只看每个选择是否恰好是它的选择：

    GPTConfig                                               model_type
    ─────────────────────────────────────────────────────   ──────────
    layernorm，learned，不门控，处处有偏置，键值头 = 查询头     gpt2
    rmsnorm，rope，门控，没有偏置                               llama
    同上，有滑动窗口                                            mistral
    同 llama，q、k、v 有偏置                                    qwen2
    同 llama，qk_norm                                           qwen3
    同 llama，处处有偏置                                        llama（attention_bias、mlp_bias）

$$\text{logits}_{\text{他们的代码}}(\text{导出}(M)) = \text{logits}_{\text{我们}}(M)
  \quad\Longleftarrow\quad \text{上表有一行完全相符}$$

这是充分条件：家族没有的零件，哪怕恰好不起作用，也不去猜。
不相符就不导出。ReLU²、logit_softcap、token_shift、n 元组的嵌入……哪一样都没有家族装得下；
硬写成 llama，文件读得进，话也说得出，只是每个数都悄悄错了。

从哪个家族导入的并不记着：Mistral v0.3 没有窗口，与 Llama 是同一种算法，写出去就是 llama，
数字一个不差。两边相同的东西，不必分两个名字。

为什么写旧的拼法（rope_theta、rope_scaling、torch_dtype）？transformers 5 改了名，但旧名仍认得；
反过来，旧的程序不认得新名，会悄悄用默认的 θ = 10000。

常见疑问：
    怎样训练一个导得出去的模型？  gpt-* 与 gpt2-* 的预设天生就是 gpt2；modern-* 用了 ReLU²，不行。
                                  想要 Llama 的样子，照上表改那几个旋钮再训练。
    dropout 呢？                  只在训练时起作用，不影响能不能导出；gpt2 的配置里照实写上。
    初始化的标准差呢？            也只影响训练的起点，写在 initializer_range。

出处：transformers 的 configuration_gpt2.py、_llama.py、_mistral.py、_qwen2.py、_qwen3.py。

改哪里：多一个能导出的家族 → family_of 与 ARCHITECTURES，名字在 huggingface_config.py 的两张表；
       反方向 → huggingface_config.py；文件怎样写 → huggingface_files.py。
"""

from __future__ import annotations

from typing import Any

from foundation.demonstration import run_demo
from gpt_model.config import GPTConfig
from gpt_model.huggingface_config import (
    ACTIVATION_NAMES,
    CONFIG_TABLES,
    ROPE_KINDS,
    ROPE_NUMBERS,
    ROPE_USES,
)

__all__ = ["config_to_huggingface", "family_of"]

# model_type → 他们的类名；写进 config.json 的 architectures，vLLM 与 llama.cpp 看的是它
ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# 没有家族有的零件：必须是这里的值
NOWHERE: dict[str, Any] = {
    "norm_position": "pre",  # 2017 年的原版 Transformer 才是 post
    "token_shift": False,
    "bigram_rows": None,
    "logit_softcap": None,
}
# 两大支各自固定的选择
GPT2_PARTS: dict[str, Any] = {
    **{"norm": "layernorm", "position": "learned", "gated_ffn": False, "qk_norm": False},
    **{"qkv_bias": True, "proj_bias": True, "sliding_window": None},
}
LLAMA_PARTS: dict[str, Any] = {"norm": "rmsnorm", "position": "rope", "gated_ffn": True}
# Llama 一支里，三个开关分出家族；没列出的组合没有家族
LLAMA_BRANCHES = {
    # (qk_norm, qkv_bias, proj_bias)
    (False, False, False): "llama",  # 有窗口就是 mistral
    (False, True, True): "llama",  # attention_bias 与 mlp_bias 都开
    (False, True, False): "qwen2",
    (True, False, False): "qwen3",
}


def family_of(config: GPTConfig) -> str:
    """这份配置是哪个家族的一员。

    错误：哪个都不是 → ValueError，列出每个不相符的字段、它的值与家族要的值
    """
    # ① 先看大的一支：归一化决定往哪边比，这样报错才说得到点子上
    #    每个字段逐一与家族的固定选择比，不问「像不像」
    branch = "gpt2" if config.norm == "layernorm" else "llama"
    wanted = NOWHERE | (GPT2_PARTS if branch == "gpt2" else LLAMA_PARTS)
    problems = [
        f"{field} is {getattr(config, field)!r}, not {value!r}"
        for field, value in wanted.items()
        if getattr(config, field) != value
    ]
    # ② 激活与缩放：他们有几种，我们多几种
    # ReLU² 就在这里被拦下：他们的函数表里有它，这几个家族的公开模型却没有一个用它
    if config.activation not in ACTIVATION_NAMES.values():
        known = ", ".join(sorted(set(ACTIVATION_NAMES.values())))
        problems.append(f"activation is {config.activation!r}, not one of {known}")
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind not in ROPE_KINDS:
        problems.append(f"rope_scaling is {scaling.kind!r}, not one of {', '.join(ROPE_KINDS)}")
    elif scaling is not None and scaling.kind != "yarn" and scaling.attention_factor is not None:
        problems.append(f"attention_factor is {scaling.attention_factor} for {scaling.kind!r}")
    # dynamic：他们没有另记训练长度
    # 他们的训练长度就是上下文：拉长过的，写出去就成了没有拉长
    trained = None if scaling is None else scaling.original_max_seq_len
    if scaling is not None and scaling.kind == "dynamic" and trained != config.max_seq_len:
        problems.append(f"max_seq_len is {config.max_seq_len}, not the {trained} of 'dynamic'")
    # ③ 每一支自己的约束
    problems += gpt2_problems(config) if branch == "gpt2" else llama_problems(config)
    # 一次说全：改一个旋钮再试，又发现一个，要试好几回
    if problems:
        families = "gpt2" if branch == "gpt2" else "llama, mistral, qwen2 or qwen3"
        raise ValueError(
            f"no Hugging Face family has this model's parts; as {families}: {'; '.join(problems)}"
        )
    # 到这里，每个选择都相符
    if branch == "gpt2":
        return "gpt2"
    # ④ Llama 一支：三个开关，再看窗口
    family = LLAMA_BRANCHES[config.qk_norm, config.qkv_bias, config.proj_bias]
    return "mistral" if family == "llama" and config.sliding_window is not None else family


def gpt2_problems(config: GPTConfig) -> list[str]:
    """GPT-2 一支独有的约束。

    Q、K、V 拼成一个 (D, 3D) 的矩阵，所以三者一样宽，合起来恰是 3D；
    返回每一处不相符的说法，空的就是相符
    """
    problems = []
    # 键值头少，K、V 就比 Q 窄；头宽另给，三者就不是 D 宽
    if config.kv_heads != config.n_heads:
        problems.append(f"n_kv_heads is {config.kv_heads}, not n_heads = {config.n_heads}")
    # 例：dim 30、5 个头、每头 8 维，Q 就有 40 维，拼不进 (30, 90)
    if config.head_size * config.n_heads != config.dim:
        problems.append(f"head_dim is {config.head_size}, not dim / n_heads")
    return problems


def llama_problems(config: GPTConfig) -> list[str]:
    """Llama 一支独有的约束：偏置与 qk_norm 的组合要有家族；处处有偏置的 llama 没有窗口。

    返回每一处不相符的说法，空的就是相符
    """
    # 三个开关各自都有家族开着它，合在一起却未必有
    switches = ("qk_norm", "qkv_bias", "proj_bias")
    # 查的是组合，所以报错也把三个一起说
    values = (config.qk_norm, config.qkv_bias, config.proj_bias)
    # 八种组合里只有四种有主人
    if values not in LLAMA_BRANCHES:
        given = ", ".join(f"{s} is {v}" for s, v in zip(switches, values, strict=True))
        return [f"{given}, a combination of none of them"]
    # 有窗口要写成 mistral，而 mistral 的代码里没有偏置
    if config.proj_bias and config.sliding_window is not None:
        return [f"sliding_window is {config.sliding_window} together with proj_bias"]
    return []


def config_to_huggingface(config: GPTConfig, dtype: str = "float32") -> dict[str, Any]:
    """GPTConfig → config.json 的内容；读回来（config_from_huggingface）算法不变。

    键的次序不要紧；没有写的键（use_cache 之类），他们用默认值，与数字无关
    dtype 写进 torch_dtype：没有它，别家的程序会按 32 位载入，多占一倍内存
    错误：没有家族装得下 → 见 family_of
    """
    family = family_of(config)
    values: dict[str, Any] = {"architectures": [ARCHITECTURES[family]], "model_type": family}
    # ① 改名；「按惯例」的三个写成算出来的数，别家的惯例未必与我们相同
    # 例：Qwen3 没写 head_dim 时，他们取 128，不取 dim / n_heads
    computed = {"n_kv_heads": config.kv_heads, "head_dim": config.head_size}
    computed["ffn_dim"] = config.ffn_size
    # 同一张表，导入时从右往左读，导出时从左往右读
    for ours, theirs in CONFIG_TABLES[family].items():
        values[theirs] = computed.get(ours, getattr(config, ours))
    values["tie_word_embeddings"] = config.tie_embeddings
    # 共用不共用一定要写：没写时各家的默认值不同
    values["torch_dtype"] = dtype
    # ② 激活：几个名字指同一个函数时，取表里的第一个（gelu_new，各家都认得）
    named = {ours: theirs for theirs, ours in reversed(ACTIVATION_NAMES.items())}
    # 键名也分两支
    key = "activation_function" if family == "gpt2" else "hidden_act"
    values[key] = named[config.activation]
    if family == "gpt2":
        # n_ctx 是 n_positions 的旧名，llama.cpp 的转换程序只看它；dropout 在他们那里是三个
        dropouts = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), config.dropout)
        return {**values, "n_ctx": config.max_seq_len, **dropouts}
    # ③ Llama 一支：底数与缩放，偏置，窗口
    # 写成旧的两个键；新程序会自己合成 rope_parameters
    values["rope_theta"] = config.rope_theta
    values["rope_scaling"] = scaling_to_huggingface(config)
    # 两个开关只有 llama 有；走到这里，两个必是同开或同关
    if family == "llama":
        values |= dict.fromkeys(("attention_bias", "mlp_bias"), config.proj_bias)
    # mistral 写了就生效；qwen 还要打开开关
    if family == "mistral":
        values["sliding_window"] = config.sliding_window
    # 从第几层起开窗：我们的每层都一样，所以不是 0 就是全部
    if family.startswith("qwen"):
        on = config.sliding_window is not None
        # 从第 0 层起都有窗口；没有窗口时，这两个数没有人看
        values |= {"use_sliding_window": on, "sliding_window": config.sliding_window}
        values["max_window_layers"] = 0 if on else config.n_layers
    return values


def scaling_to_huggingface(config: GPTConfig) -> dict[str, Any] | None:
    """RoPE 的缩放换成他们的键；None 的项不写，让他们用同样的默认值。

    例：llama3 ×8 → {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, …}

    只写这一种用得着的数：他们的程序见到别种的数，会当作写错了
    """
    scaling = config.rope_scaling
    if scaling is None:
        return None
    numbers = {theirs: getattr(scaling, ROPE_NUMBERS[theirs]) for theirs in ROPE_USES[scaling.kind]}
    # None 是「用你自己的取法」，写成 null 有的版本会拿它去做除法
    numbers = {theirs: value for theirs, value in numbers.items() if value is not None}
    # 名字两边相同，所以不必翻译
    # 新旧两个名字都写上，旧程序看 type，新程序看 rope_type
    return {"rope_type": scaling.kind, "type": scaling.kind, **numbers}


def demo() -> None:
    """几份配置各是哪一家；改一个旋钮，换一家，或者没有家。"""
    import json

    from gpt_model.config import preset
    from gpt_model.huggingface_config import config_from_huggingface

    # 以 Llama 的形状为起点，每次只改几个旋钮
    sizes: dict[str, Any] = {"vocab_size": 37, "max_seq_len": 64, "dim": 30, "n_layers": 2}
    parts: dict[str, Any] = {**LLAMA_PARTS, "activation": "silu", "tie_embeddings": False}
    bare: dict[str, Any] = {"qkv_bias": False, "proj_bias": False}
    llama = GPTConfig(**sizes, **parts, **bare, n_heads=5, n_kv_heads=1)
    changes: list[dict[str, Any]] = [{}, {"sliding_window": 8}, {"qkv_bias": True}]
    changes += [{"qk_norm": True}, {"qkv_bias": True, "proj_bias": True}]
    print("一、改几个旋钮，就是另一家：")
    for change in changes:
        config = llama.replace(**change)
        print(f"  {change or '（起点）'!s:<44} → {family_of(config)}")
        # 写出去再读回来，每个字段都相同
        # ffn_dim 例外：这里没给，写出去的是算好的数
        again = config_from_huggingface(config_to_huggingface(config))
        assert again.replace(head_dim=None, ffn_dim=None) == config.replace(ffn_dim=None)

    # 前几行就够了：键是他们的名字，值是我们的数
    print("二、写成 config.json：")
    for line in json.dumps(config_to_huggingface(llama), indent=2).splitlines()[1:8]:
        print(f"  {line}")

    # 报错要能照着改：字段、现在的值、要的值
    print("三、没有家的：")
    # 一个是整套新零件，一个只改了一处：都得说出差在哪里
    softcap: dict[str, Any] = {"logit_softcap": 30.0}
    for name, change in (("modern-micro", {}), ("gpt-micro", softcap)):
        try:
            family_of(preset(name, **change))
        except ValueError as error:
            print(f"  {name} {change or ''} → {error}")
        else:
            raise AssertionError("a model of no family must be refused")


if __name__ == "__main__":
    run_demo(demo)
