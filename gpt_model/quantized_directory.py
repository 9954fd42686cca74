r"""量化过的模型怎样存、怎样读？——config.json 里多一项，权重文件里照存整数。

模型目录还是那四个文件，没有新的格式。整数的三样张量（packed、scale、zero，见
transformer_basics/integer_weights.py）照样进 model.safetensors；config.json 里多一项，说清哪些模块
是整数的：

    config.json                             model.safetensors
    {                                       blocks.0.attention.q_proj.packed  uint8 (128, 2, 32)
      "dim": 128, …                         blocks.0.attention.q_proj.scale   bf16  (128, 2)
      "quantization": {                     token_embedding.packed            int8  (65, 2, 64)
        "version": 1,                       …
        "parts": [
          {"bits": 4, "group_size": 64, "zero_points": false, "method": "gptq",
           "modules": ["blocks.0.attention.q_proj", …]},
          {"bits": 8, …, "modules": ["token_embedding", "lm_head"]}
        ]
      }
    }

读的次序：先照配置搭骨架（不占内存），再把列出的模块换成整数的空壳，最后换上文件里的张量。张量是
映射进内存的，用到哪一页才读哪一页；整数不必先还原成浮点数，所以载入与文件一样小：

$$\text{字节} = \sum_{\text{整数的}} N\left(\tfrac{b}{8}K + 2G + [\text{有零点}]\,G\right)
  + 4 \times \text{其余参数}$$

常见疑问：
    为什么不放进 GPTConfig？   它说的是形状；同一个形状，权重怎么存是另一件事。训练、导出、数参数都
                               只看形状，不该问「是不是整数」。
    旧版的程序读到会怎样？     它不认识 quantization 这个键，说出键名就停下，不会把整数当成权重。
    为什么逐个列出模块的名字？ 一眼看得到；读的人不必知道当初的规则（跳过哪些、词表算不算）。
    共用的词表存几份？         一份；读回来两处再系在一起，与没有量化的一样。

论文：Frantar et al. 2022, GPTQ, arXiv:2210.17323 §4：存下的是整数与尺子，用时还原
改哪里：多一种整数的模块 → `shell_of`；格式有变 → `VERSION` 加一，旧的照旧读。
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from foundation.checks import check_int, unknown_key_message
from foundation.demonstration import run_demo
from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from transformer_basics.embeddings import TokenEmbedding
from transformer_basics.integer_weights import WeightFormat
from transformer_basics.quantized_linear import (
    PackedWeight,
    QuantizedEmbedding,
    QuantizedLinear,
    quantized_parts,
    replace_module,
)

__all__ = ["QUANTIZATION", "describe", "expected_bytes", "finish", "swap_in"]

QUANTIZATION = "quantization"  # config.json 里的键
VERSION = 1
PART_KEYS = ("bits", "group_size", "zero_points", "method", "modules")


def describe(model: nn.Module) -> dict[str, Any] | None:
    """模型 → config.json 里的那一项；没有量化过就是 None。

    由模块自己说，不另记一份：换了哪些、是几比特，模型里的就是真的
    """
    # 格式与办法都相同的，归成一组；次序照模型里的
    groups: dict[tuple[WeightFormat, str], list[str]] = {}
    for name, part in every_part(model):
        groups.setdefault((part.form, part.method), []).append(name)
    # 一组也没有，就是没有量化过。
    # 普通的模型：config.json 里没有这一项，与从前逐字节相同
    if not groups:
        return None
    parts = [
        {
            "bits": form.bits,
            "group_size": form.group_size,  # null 就是一行一组
            "zero_points": form.zero_points,
            "method": method,  # 只给人看
            "modules": names,
        }
        for (form, method), names in groups.items()
    ]
    return {"version": VERSION, "parts": parts}


def every_part(model: nn.Module) -> list[tuple[str, PackedWeight]]:
    """全名与模块，一个模块挂在两处时两个名字都列出。

    读的人按名字换，少列一个，那一处就还是浮点数的空壳
    """
    found = model.named_modules(remove_duplicate=False)
    return [(name, module) for name, module in found if isinstance(module, PackedWeight)]


def swap_in(model: nn.Module, description: Any, where: str) -> None:
    """就地把列出的模块换成整数的空壳；模型通常还在 meta 上，不占内存。

    where：哪个文件，写进错误里
    错误：版本更新、键不认识、模型里没有的模块、位数不对 → ValueError
    """
    problem = f"{where}: quantization"
    if not isinstance(description, Mapping):
        raise ValueError(f"{problem} must be an object, got {type(description).__name__}")
    # ① 更新的格式：说清是版本，不是坏了
    if description.get("version") != VERSION:
        raise ValueError(
            f"{problem} has version {description.get('version')!r}; this program reads {VERSION}. "
            "Update the program to read a newer one"
        )
    check_keys(description, ("version", "parts"), problem)
    # ② 一组一组地换；一个模块列了两次，第二次就找不到原来的层了
    for part in description.get("parts", ()):
        # 文件可以是任何人写的，一样一样地查
        if not isinstance(part, Mapping) or not isinstance(part.get("modules"), list):
            raise ValueError(f"{problem}: every part must be an object with a list of modules")
        check_keys(part, PART_KEYS, problem)
        # 缺了哪一项、位数不对，都在这里说
        try:
            form = WeightFormat(part["bits"], part["group_size"], part["zero_points"])
        except (KeyError, ValueError) as error:
            raise ValueError(f"{problem}: {error}") from None
        # 空壳的形状由骨架定，文件里的张量随后与它核对
        for name in part["modules"]:
            replace_module(model, *shell_of(model, name, form, str(part.get("method")), problem))


def check_keys(values: Mapping[str, Any], allowed: tuple[str, ...], problem: str) -> None:
    """不认识的键不悄悄略过：它也许正是读不懂的那一半。

    错误：ValueError，给出最像的与全部
    """
    for key in values:
        if key not in allowed:
            raise ValueError(unknown_key_message(key, allowed, problem))


def shell_of(
    model: nn.Module, name: str, form: WeightFormat, method: str, problem: str
) -> tuple[str, PackedWeight]:
    """这个名字该换成怎样的空壳；形状由骨架里原来的那一层定。

    错误：没有这个名字，或它不是线性层、词表 → ValueError
    """
    # 名字来自文件，可以是任何东西
    known = dict(model.named_modules())
    module = known.get(name) if isinstance(name, str) else None
    if not name or not isinstance(module, (nn.Linear, TokenEmbedding)):
        raise ValueError(f"{problem}: the model has no layer {name!r} to hold integers")
    # 在 meta 上造：数随后从文件里换上来；
    # 偏置就是骨架里的那一个，没有量化
    with torch.device("meta"):
        if isinstance(module, TokenEmbedding):
            rows, columns = module.weight.shape
            return name, QuantizedEmbedding(rows, columns, form, method=method)
        sizes = module.in_features, module.out_features
        return name, QuantizedLinear(*sizes, form, module.bias, method=method)


def finish(model: GPT) -> None:
    """张量都换上之后：共用的词表系在一起，词嵌入的类型照别的参数。

    换了设备之后也要来一次：.to() 给两处各做一份
    """
    table, head = model.token_embedding, model.lm_head
    # 词表没有量化，就没有要补的
    if not isinstance(table, QuantizedEmbedding):
        return
    # 浮点数的词表，类型由文件里的张量定；整数的没有这一样。
    # 空壳不知道模型存的是 float32 还是 bfloat16，归一化的权重知道
    table.like = torch.empty(0, dtype=next(model.parameters()).dtype, device=table.packed.device)
    # 文件里只有一份，两处都换上了它；系上之后，改一处就是改两处
    if model.config.tie_embeddings and isinstance(head, QuantizedLinear):
        head.share(table)


def expected_bytes(
    config: GPTConfig, form: WeightFormat, table: WeightFormat | None = None, float_bytes: int = 4
) -> int:
    """理论上权重占多少字节：块里的矩阵是整数，table 给出时词表也是，其余是浮点数。

    公式：见本课开头；只看配置，不建模型，所以是独立的一份答案
    """
    # 布尔与负数都拦住。
    # 浮点数的那些，每个几字节：float32 是 4，bfloat16 是 2
    check_int("float_bytes", float_bytes, 1)
    c = config
    wide_q, wide_kv = c.n_heads * c.head_size, c.kv_heads * c.head_size
    # ① 块里的矩阵：(行数, 列数)，列数是输入的宽
    matrices = [(wide_q, c.dim), (wide_kv, c.dim), (wide_kv, c.dim), (c.dim, wide_q)]
    matrices += [(c.ffn_size, c.dim)] * (2 if c.gated_ffn else 1) + [(c.dim, c.ffn_size)]
    integers = c.n_layers * sum(rows * form.row_bytes(columns) for rows, columns in matrices)
    # 量化了多少个权重，其余的才好数
    n_integers = c.n_layers * sum(rows * columns for rows, columns in matrices)
    # ② 词表：共用的一张，不共用的两张
    n_tables = 0 if table is None else 1 if c.tie_embeddings else 2
    if table is not None:
        integers += n_tables * c.vocab_size * table.row_bytes(c.dim)
    # ③ 其余：偏置、归一化、位置表，与没有量化的词表
    others = GPT.on_meta(c).num_parameters() - n_integers - n_tables * c.vocab_size * c.dim
    return integers + others * float_bytes


def demo() -> None:
    """一个小模型量化成四比特：目录里有什么，大小与公式，读回来逐比特相同。

    怎样挑整数不在这一层，这里直接取整
    """
    import json
    import tempfile
    from pathlib import Path

    from gpt_model.config import preset
    from gpt_model.model_directory import CONFIG_FILE, WEIGHTS_FILE

    # 四比特、64 个一组；词表不动
    form, table = WeightFormat(4, 64), WeightFormat(8, 64)
    model = GPT(preset("gpt-micro", vocab_size=65, n_layers=1)).eval()
    ids = torch.randint(65, (1, 8))
    # 除了 lm_head（与词表共用），线性层都换；
    # 先收成列表：边走边换，走的就乱了
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            replace_module(model, name, QuantizedLinear.from_linear(module, form))
    with tempfile.TemporaryDirectory() as folder:
        # ① 存
        directory = Path(folder) / "small"
        model.save(directory)
        found = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))[QUANTIZATION]
        (part,) = found["parts"]
        print(f"① config.json 的 quantization：{part['bits']} 比特、{part['group_size']} 个一组，")
        print(f"   {len(part['modules'])} 个模块：{part['modules'][0]} …")
        # 训练、导出都不看这一项
        # ② 大小：文件比张量多一个文件头
        size, theory = (directory / WEIGHTS_FILE).stat().st_size, expected_bytes(model.config, form)
        plain = 4 * model.num_parameters()
        print(f"② {size:,} 字节，公式说 {theory:,}；float32 是 {plain:,}")
        assert theory <= size < 1.03 * theory
        # ③ 读：
        # 不是「接近」，而是每个比特都相同
        again = GPT.load(directory)
        assert torch.equal(again(ids).logits, model(ids).logits)
        print(f"③ 读回 {len(quantized_parts(again))} 个整数的模块，logits 逐比特相同")
    # ④ 词表也是整数的话
    print(f"④ 词表也用八比特，公式说 {expected_bytes(model.config, form, table):,} 字节")
    # ⑤ 坏的描述：
    # 版本不认识，就不猜
    try:
        swap_in(GPT.on_meta(model.config), {"version": 2}, "config.json")
    except ValueError as error:
        print(f"⑤ 更新的格式 → {error}")
    else:
        raise AssertionError("a newer format must be refused")


if __name__ == "__main__":
    run_demo(demo)
