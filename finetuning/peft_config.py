r"""LoRAConfig 与 PEFT 的 adapter_config.json：怎样说同一件事，听不懂时又怎样拒绝？

PEFT 是 Hugging Face 的微调库，网上的 LoRA 适配器大多是它的格式。一个适配器由两个文件组成：
这里管配置，权重在 adapter_files.py。

    adapter_config.json 的键       LoRAConfig 的字段     说明
    ─────────────────────────────  ────────────────────  ──────────────────────────────────────
    r                              r                     缺了就拒绝
    lora_alpha                     alpha                 缺了就拒绝
    lora_dropout                   dropout
    target_modules 是列表          target                后缀；我们总是写全名
    target_modules 是字符串        target = ("re:…",)    PEFT 里这时是正则，"q_proj" 不是后缀！
    rank_pattern, alpha_pattern    同名                  正则 → r 或 α
    use_rslora, use_dora           同名
    其余几十个键                   没有                  不影响算法的放行，影响的拒绝

最后一行是要紧处。PEFT 的选项多达几十个，有的会改变前向的公式（例如给 B 加偏置），有的会改写
底座（例如 PiSSA 初始化把主成分从 W 里挪走）。读的时候悄悄忽略一个，得到的是另一个模型，
而且不报错，只是答得差。所以宁可拒绝：凡是我们不认识、又不是「空」的选项，一律指名道姓。

也因此，本文件写出的配置很短：只有上表这些键，加上几个写明「没有」的。PEFT 读的时候，
没写的键用它自己的默认值，含义不变（tests/parity 里两个方向都验证过）。

论文：Hu et al. 2021, LoRA；Meng et al. 2024, PiSSA（会改写底座的初始化，一例）
改哪里：支持 PEFT 的另一个选项：先在 lora_config.py 加字段，再加进 `FIELDS`，读和写就都有了；
        确认某个键无害，加进 `HARMLESS_KEYS`。
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetuning.lora_config import REGEX_MARK, LoRAConfig, first_pattern
from foundation.demonstration import run_demo

__all__ = ["config_from_peft", "config_to_peft", "fitted_config"]

# PEFT 的键 → 我们的字段；读与写都照它
FIELDS = {
    "r": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "target",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
# 这三个 PEFT 自己有默认值，但少了它们的文件多半是残缺的，猜一个不如不猜
REQUIRED = ("r", "lora_alpha", "target_modules")

# 只是记录来历，不影响「已经训练好的适配器怎样算」
HARMLESS_KEYS = {
    *("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path"),
    *("revision", "inference_mode", "megatron_core", "qalora_group_size"),
}
# 只让挑中的层变少；到底是哪些层，以权重文件里有的为准
NARROWING_KEYS = {"exclude_modules", "layers_to_transform", "layers_pattern"}
# 只决定 A、B 的起点的初始化；别的（pissa、olora、loftq……）会改写底座，配原来的底座就不对了
SAFE_INITIALIZATIONS = (True, False, "gaussian", "orthogonal")


def config_to_peft(
    config: LoRAConfig, layers: Sequence[str], base_name: str | None = None
) -> dict[str, Any]:
    """LoRAConfig → adapter_config.json 的内容。

    返回的是能直接写成 JSON 的字典，键是 PEFT 的。
    layers：层的全名，写进 target_modules。不写后缀：PEFT 的后缀还会匹配线性层以外的模块，
            "0" 既是 Sequential 里的第 0 层，也是第 0 个 Transformer 块；全名没有歧义。
    base_name：底座叫什么，写进 base_model_name_or_path，供人和 PEFT 查阅
    """
    # 我们的字段照表抄；target 与两个 pattern 换成 JSON 能写的样子
    values = {key: getattr(config, field) for key, field in FIELDS.items()}
    return {
        "peft_type": "LORA",
        # 没有任务类型：PEFT 就用最普通的包装，不对模型的方法作任何假定
        "task_type": None,
        "base_model_name_or_path": base_name,
        # PEFT 的惯例：存盘的适配器默认冻结，读进来想接着训练，再放开
        "inference_mode": True,
        **values,
        "target_modules": list(layers),
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": dict(config.alpha_pattern),
        # 以下三个是我们的做法，写明了，PEFT 的默认值将来变了也不怕
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }


def config_from_peft(values: Any, path: Path) -> tuple[LoRAConfig, bool]:
    """adapter_config.json 的内容 → (LoRAConfig, 权重文件里的层是否可以比 target 少)。

    path 只用于报错。第二个返回值为真，是因为配置里有「只在某几层里挑」之类的选项：
    这时以权重文件里有的层为准，不能要求 target 挑中的每一层都在。
    错误：不是 LoRA、缺键、值不对、有我们没有的选项 → ValueError，写明文件与键
    """
    # 先看是不是 LoRA：别的方法（IA³、前缀微调……）也用这个文件名，键却是另一套
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(values).__name__}")
    if values.get("peft_type") != "LORA":
        # 大小写也要对：PEFT 写的就是大写
        raise ValueError(f"{path}: peft_type must be 'LORA', got {values.get('peft_type')!r}")
    refuse_unsupported(values, path)
    # ① 挑出我们的字段；null 表示用默认值
    # PEFT 存盘时把每个字段都写出来，没设的写 null
    given = {key: value for key, value in values.items() if key in FIELDS and value is not None}
    missing = [key for key in REQUIRED if key not in given]
    # 三样缺了哪几样，一次说全
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} missing")
    # 到这里，键齐了，也都认识
    # ② 字符串是正则，列表才是后缀：加上记号，免得把正则当成后缀
    if isinstance(given["target_modules"], str):
        given["target_modules"] = [REGEX_MARK + given["target_modules"]]
    # 例：layers_to_transform = [0, 1] 说只改前两层
    narrowed = any(values.get(key) not in (None, []) for key in NARROWING_KEYS)
    # ③ 值的范围由 LoRAConfig 自己查，这里补上是哪个文件
    try:
        return LoRAConfig(**{FIELDS[key]: value for key, value in given.items()}), narrowed
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from None


def refuse_unsupported(values: dict[str, Any], path: Path) -> None:
    """拒绝会改变结果而我们没有的选项。

    例：lora_bias = true 会给 B 加一个偏置，忽略它，每一层的输出都偏一点；
        modules_to_save = ["lm_head"] 表示输出层整个另存了一份，忽略它，等于没训练输出层。
    取「空」值（null、false、空表、"none"）的选项等于没有，放行：PEFT 存盘时会把每个选项都写出来。
    """
    # 认识的键有三类：我们也有的、无害的、只收窄的；初始化另看它的值
    known = {*FIELDS, *HARMLESS_KEYS, *NARROWING_KEYS, "init_lora_weights"}
    for key, value in values.items():
        if key not in known and value not in (None, False, {}, [], "none"):
            raise ValueError(f"{path}: the option {key} = {value!r} is not supported")
    # 键不在，就是 PEFT 的默认：A 随机、B 为零，不动底座
    start = values.get("init_lora_weights", True)
    if start not in SAFE_INITIALIZATIONS:
        raise ValueError(
            f"{path}: init_lora_weights = {start!r} rewrites the base and is not supported; "
            "let PEFT convert it first (save_pretrained: path_initial_model_for_weight_conversion)"
        )


def fitted_config(config: LoRAConfig, names: Iterable[str]) -> LoRAConfig:
    """把配置收窄到文件里真有的层，免得 `apply_lora` 多装了几层全零的。

    一层也没匹配的 pattern 也去掉：PEFT 允许它们存在，而 `apply_lora` 会当作拼写错误拒绝。
    """
    # names 是字典的键，按文件里的先后
    names = tuple(names)

    # 逐条问：文件里的层，有没有一个被它匹配
    def used(pattern: str) -> bool:
        return any(first_pattern([pattern], name) for name in names)

    # 例：PEFT 存的 rank_pattern 里有 k_proj，而这个适配器只改了 q_proj。
    # 没用上的去掉，用上的原样保留
    ranks = {pattern: rank for pattern, rank in config.rank_pattern.items() if used(pattern)}
    alphas = {pattern: alpha for pattern, alpha in config.alpha_pattern.items() if used(pattern)}
    return replace(config, target=names, rank_pattern=ranks, alpha_pattern=alphas)


def demo() -> None:
    """一份配置写成 PEFT 的键、再读回来；几份读不得的配置各得到什么话。"""
    # 每一类字段都用上一个：写出去再读回来，应当一样
    config = LoRAConfig(
        r=4, alpha=8.0, target=("q_proj",), use_rslora=True, alpha_pattern={"v": 2.0}
    )
    values = config_to_peft(config, ["blocks.0.attention.q_proj"])
    # 左边是 PEFT 的键，右边是我们写的值
    print("一、写：LoRAConfig → adapter_config.json")
    for key in FIELDS:
        print(f"  {key:16} {values[key]}")
    again, narrowed = config_from_peft(values, Path("adapter_config.json"))
    # 写出去的是全名，读回来的 target 也就是全名
    assert (again.r, again.alpha, again.use_rslora, narrowed) == (4, 8.0, True, False)
    assert again.alpha_pattern == {"v": 2.0}

    # 依次是：别的方法、会改前向的选项、会改底座的初始化、不合理的值
    print("二、读：听不懂的一律拒绝")
    for change in (
        {"peft_type": "IA3"},
        {"lora_bias": True},
        {"init_lora_weights": "pissa"},
        {"lora_alpha": -1},
    ):
        # 好的配置只改一个键，才知道拒绝的是它
        try:
            config_from_peft({**values, **change}, Path("adapter_config.json"))
            raise AssertionError(f"{change} must be refused")
        except ValueError as error:
            print(f"  {change} → {str(error)[:88]}")


if __name__ == "__main__":
    run_demo(demo)
