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

论文：Hu et al. 2021, LoRA；Meng et al. 2024, PiSSA（会改写底座的初始化，一例）
改哪里：支持 PEFT 的另一个选项：先在 lora_config.py 加字段，再加进 `FIELDS`，读和写就都有了；
        确认某个键无害，加进 `HARMLESS_KEYS`。
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetuning.lora_config import REGEX_MARK, LoRAConfig
from foundation.demonstration import run_demo

__all__ = ["config_from_peft", "config_to_peft"]

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

    layers：层的全名，写进 target_modules。不写后缀：PEFT 的后缀还会匹配线性层以外的模块，
            "0" 既是 Sequential 里的第 0 层，也是第 0 个 Transformer 块；全名没有歧义。
    base_name：底座叫什么，写进 base_model_name_or_path，供人和 PEFT 查阅
    """
    values = {key: getattr(config, field) for key, field in FIELDS.items()}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_name,
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

    path 只用于报错。
    错误：不是 LoRA、缺键、值不对、有我们没有的选项 → ValueError，写明文件与键
    """
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(values).__name__}")
    if values.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type must be 'LORA', got {values.get('peft_type')!r}")
    refuse_unsupported(values, path)
    # ① 挑出我们的字段；null 表示用默认值
    given = {key: value for key, value in values.items() if key in FIELDS and value is not None}
    missing = [key for key in REQUIRED if key not in given]
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} missing")
    # ② 字符串是正则，列表才是后缀：加上记号，免得把正则当成后缀
    if isinstance(given["target_modules"], str):
        given["target_modules"] = [REGEX_MARK + given["target_modules"]]
    narrowed = any(values.get(key) not in (None, []) for key in NARROWING_KEYS)
    # ③ 值的范围由 LoRAConfig 自己查，这里补上是哪个文件
    try:
        return LoRAConfig(**{FIELDS[key]: value for key, value in given.items()}), narrowed
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from None


def refuse_unsupported(values: dict[str, Any], path: Path) -> None:
    """拒绝会改变结果而我们没有的选项。

    取「空」值（null、false、空表、"none"）的选项等于没有，放行：PEFT 存盘时会把每个选项都写出来。
    """
    known = {*FIELDS, *HARMLESS_KEYS, *NARROWING_KEYS, "init_lora_weights"}
    for key, value in values.items():
        if key not in known and value not in (None, False, {}, [], "none"):
            raise ValueError(f"{path}: the option {key} = {value!r} is not supported")
    start = values.get("init_lora_weights", True)
    if start not in SAFE_INITIALIZATIONS:
        raise ValueError(
            f"{path}: init_lora_weights = {start!r} rewrites the base and is not supported; "
            "let PEFT convert it first (save_pretrained: path_initial_model_for_weight_conversion)"
        )


def demo() -> None:
    """一份配置写成 PEFT 的键、再读回来；三份读不得的配置各得到什么话。"""
    config = LoRAConfig(
        r=4, alpha=8.0, target=("q_proj",), use_rslora=True, alpha_pattern={"v": 2.0}
    )
    values = config_to_peft(config, ["blocks.0.attention.q_proj"])
    print("一、写：LoRAConfig → adapter_config.json")
    for key in FIELDS:
        print(f"  {key:16} {values[key]}")
    again, narrowed = config_from_peft(values, Path("adapter_config.json"))
    assert (again.r, again.alpha, again.use_rslora, narrowed) == (4, 8.0, True, False)
    assert again.alpha_pattern == {"v": 2.0}

    print("二、读：听不懂的一律拒绝")
    for change in (
        {"peft_type": "IA3"},
        {"lora_bias": True},
        {"init_lora_weights": "pissa"},
        {"lora_alpha": -1},
    ):
        try:
            config_from_peft({**values, **change}, Path("adapter_config.json"))
            raise AssertionError(f"{change} must be refused")
        except ValueError as error:
            print(f"  {change} → {str(error)[:88]}")


if __name__ == "__main__":
    run_demo(demo)
