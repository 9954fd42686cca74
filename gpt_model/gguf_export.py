r"""怎样让训练好的模型在 llama.cpp、Ollama 里跑起来？——写成一个 GGUF 文件。

模型目录有四个文件，要靠程序把它们凑在一起；GGUF 只有一个，里面什么都有，映射进内存就能用：

    ┌─────────────┬──────────────────┬───────────────────────┬────────┬──────────────────┐
    │ "GGUF" 版本 │ 键与值           │ 张量表                │ 补到   │ 张量的数         │
    │ 张量数 键数 │ 结构、分词器……   │ 名字 形状 存法 偏移 … │ 32 的  │ 每个都从 32 的   │
    │ 24 字节     │ 每个值带着类型   │ 形状倒着写：(列, 行)  │ 倍数   │ 倍数处开始       │
    └─────────────┴──────────────────┴───────────────────────┴────────┴──────────────────┘

$$\text{offset}_{k+1} = \text{offset}_k + 32\left\lceil \frac{\text{bytes}_k}{32} \right\rceil$$

先有整张表、后有数：读的人一眼看完开头，就知道每个张量在哪里；写的人也不必把数都攒在内存里——
大小由形状与存法就算得出，所以表可以先写，数一个一个地算、一个一个地写，写完就扔。

每个张量用哪种存法（weight_type 是 f32、f16、q8_0，或 stored）：

    一维的（归一化、偏置）、rope_freqs、位置表      永远 f32：小，而且 llama.cpp 只认 f32
    矩阵，行长是 32 的倍数                          照 weight_type
    矩阵，行长不是 32 的倍数，要 q8_0               改存 f16，与 llama.cpp 自己的量化相同；会列出来

「行长」是最后一维，即每个输出用到的输入数；词表的大小是行数，多怪都不要紧。

    f32     与我们的数逐比特相同          4 字节一个参数
    f16     舍入一次                      2 字节
    q8_0    分块量化，见 gguf_blocks.py   约 1.06 字节
    stored  量化过的模型：整数原样写成 q4_0、q8_0，见 gguf_integers.py；其余的矩阵 f16

用 f16、q8_0 推理时 llama.cpp 把输入也舍入成同样的精度再相乘，所以 logits 会有差别。

键与值的一个例子，逐字节：

    11 00 00 00 00 00 00 00          键名有 17 个字节（十六进制 11）；长度自己占 8 个字节
    6c 6c 61 6d 61 2e 62 …           "llama.block_count"，UTF-8，不带结尾的 0
    04 00 00 00                      值的种类：4 是 uint32，6 是 float32，8 是字符串，9 是数组
    02 00 00 00                      值：2 层

字节都是小端的（little-endian）：低位在前，所以 2 写作 02 00 00 00。

常见疑问：
    为什么形状倒着写？ ggml 的第 0 维是内存里挨得最近的一维，即我们的最后一维。数的次序没有变。
    为什么补到 32 的倍数？ 映射进内存之后，向量指令要从对齐的地址读起。
    大模型会不会撑爆内存？ 一次只编码一个张量；最大的一个多半是词表，V·D·4 字节。
    能不能再读回来？ 本书只写不读；要接着训练，用模型目录（model_directory.py）。

出处：ggml 的 GGUF 规格；llama.cpp 的 src/models/。
改哪里：结构的对应 → gguf_architecture.py；分词器 → gguf_tokenizer.py；存法 → gguf_blocks.py；
       哪个张量用哪种存法 → stored_type。
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from foundation.checks import check_choice
from foundation.demonstration import run_demo
from foundation.files import atomic_file
from gpt_model.dequantization import dequantize, scales_as_weights
from gpt_model.gguf_architecture import (
    GGUFTensor,
    architecture_metadata,
    architecture_of,
    tensors_of,
)
from gpt_model.gguf_blocks import BLOCK, ENCODERS, ROW_MULTIPLE, Array
from gpt_model.gguf_integers import FORMATS, encode_integers, integers_of
from gpt_model.gguf_tokenizer import NO_TOKENIZER, tokenizer_metadata
from gpt_model.model import GPT
from transformer_basics.quantized_linear import quantized_parts

if TYPE_CHECKING:
    from tokenization.tokenizer import Tokenizer

__all__ = ["GGUFSummary", "export_gguf"]

STORED = "stored"  # 量化过的模型，整数怎样存着就怎样写
WEIGHT_TYPES = (*ENCODERS, STORED)  # 命令行的 --type
# 编号是 llama.cpp 定的，中间空着的是别的量化
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7}  # general.file_type：多数张量是哪一种
# 位置表直接加到词向量上，不做乘法，省不出时间；它也小
ALWAYS_F32 = ("position_embd.weight", "rope_freqs.weight")
ALIGNMENT = 32  # 规格的默认值


@dataclass(frozen=True)
class GGUFSummary:
    """写成了什么：给命令行打印，也给测试核对。"""

    path: Path
    architecture: str  # general.architecture
    n_tensors: int  # 共用的词表只算一个
    n_bytes: int  # 整个文件
    # 文件头里看得到每个张量的存法，这里只列出意料之外的
    fallbacks: tuple[str, ...]  # 行长不是 32 的倍数、改存 f16 的张量
    kinds: dict[str, int]  # 存法 → 几个张量


def export_gguf(
    model: GPT,
    path: Path | str,
    *,
    tokenizer: Tokenizer | None = None,
    weight_type: str = "f16",
    pretokenizer: str | None = None,
    name: str | None = None,
) -> GGUFSummary:
    """把模型（与分词器）写成一个 GGUF 文件；写在旁边，完整了再改名。

    分词器：None 就不写，llama.cpp 只认编号；pretokenizer 见 gguf_tokenizer.py
    名字：name 写进 general.name，缺省是文件名
    内存：模型之外，只多一个张量的 float32 与它编码后的那一份
    量化过的模型：weight_type 是 stored 时整数原样写；别的就先还原，再照普通的模型写
    错误：llama.cpp 没有的结构、装不下的分词器、NaN、超出 float16 的数 → ValueError；旧文件不变
    """
    check_choice("weight_type", weight_type, WEIGHT_TYPES)
    model, scales = plain_and_scales(model, weight_type)
    gguf = import_gguf()
    # ① 先把能拒绝的都查完，再碰磁盘
    architecture = architecture_of(model.config)
    tensors = tensors_of(model, architecture)
    #    尺子走同样的路：重排、拼接之后，
    #    与权重一一对上
    rules = {} if scales is None else {t.name: t for t in tensors_of(scales, architecture)}
    # 先定存法，再写表：
    # 存法由名字、形状与尺子决定，所以写表之前就定得下来
    kinds = {t.name: stored_type(t, weight_type, rules.get(t.name)) for t in tensors}
    counts = Counter(kinds.values())
    values = {
        "general.type": "model",  # 也有 "adapter"
        "general.name": name or Path(path).stem,
        # 只给人看，读的一方看每个张量自己的
        "general.file_type": FILE_TYPES[most_common(counts) if scales else weight_type],
        "general.quantization_version": 2,  # 各种分块格式的第几版
        **architecture_metadata(model.config, architecture),
    }
    # 分词器与权重同在一个文件里：拆开，编号就对不上行
    if tokenizer is None:
        values |= NO_TOKENIZER
    else:
        values |= tokenizer_metadata(tokenizer, model.config.vocab_size, pretokenizer)
    with atomic_file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        try:
            # ② 键与值、张量表：只要形状，还没有一个数；
            #    次序是规格定的，GGUFWriter 会检查
            for key, value in values.items():
                add_value(writer, key, value)
            for tensor in tensors:
                add_info(gguf, writer, tensor, kinds[tensor.name])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            # ③ 数：算一个，写一个
            for tensor in tensors:
                data = encoded(tensor, kinds[tensor.name], rules.get(tensor.name))
                writer.write_tensor_data(data)
        finally:
            writer.close()  # 还开着的文件，Windows 不许改名、不许删
    return GGUFSummary(
        path=Path(path),
        architecture=architecture,
        n_tensors=len(tensors),
        n_bytes=Path(path).stat().st_size,
        fallbacks=tuple(n for n, kind in kinds.items() if weight_type == "q8_0" and kind == "f16"),
        kinds=dict(counts),
    )


def plain_and_scales(model: GPT, weight_type: str) -> tuple[GPT, GPT | None]:
    """普通的模型，与（要原样写整数时）同样形状、权重是尺子的模型；原来的不动。

    错误：没有量化过的模型，没有整数可以原样写 → ValueError
    """
    if not quantized_parts(model):
        # 说清两条路：换一种存法，或先量化
        if weight_type == STORED:
            raise ValueError(
                f"weight_type {STORED} keeps the integers of a quantized model, and this one has "
                "none; give f32, f16 or q8_0, or quantize it first"
            )
        return model, None
    # 尺子要在还原之前取；
    # 不必原样写时用不着它，
    # 也就不多占那一份内存；
    # 复制的是整数的模型，不大
    scales = scales_as_weights(model) if weight_type == STORED else None
    # 还原是就地做的，所以复制一份：导出不该改动人家的模型
    plain = dequantize(copy.deepcopy(model))
    assert isinstance(plain, GPT)
    assert scales is None or isinstance(scales, GPT)
    return plain, scales


def most_common(counts: Counter[str]) -> str:
    """整数的存法里张量最多的那一种；一个整数也写不进去时是 f16。

    例：24 个 q4_0、1 个 q8_0（词表）→ q4_0
    """
    integers = {kind: counts[kind] for kind in FORMATS if counts[kind]}
    return max(integers, key=lambda kind: integers[kind]) if integers else "f16"


def import_gguf() -> Any:
    """载入 gguf 包；它是可选的，没有就说怎样装。

    用它而不自己拼字节：键值与张量表的写法有许多细节，跟着规格的作者走最稳
    """
    try:
        import gguf
    except ImportError as error:
        raise ImportError(
            f"writing GGUF needs the package 'gguf' ({error}): pip install 'llm-from-zero[gguf]'"
        ) from None
    return gguf


def stored_type(tensor: GGUFTensor, weight_type: str, rule: GGUFTensor | None = None) -> str:
    """这个张量用哪种存法；规则见文件开头的表。

    例：(37, 64) 的词表，64 是 32 的倍数 → q8_0；(64, 41) 的 down_proj → f16
    """
    if len(tensor.shape) < 2 or tensor.name in ALWAYS_F32:
        return "f32"
    # 整数原样写：值除以尺子，看写得进哪一种；
    # 写不进去的、本来就不是整数的，存 f16
    if weight_type == STORED:
        found = None if rule is None else integers_of(floats(tensor), floats(rule))
        return "f16" if found is None else found[0]
    # 名字里没有的规则只有这一条：
    # 一块不许跨行：每一行都要能单独取出来（查词表就是取一行）
    fits = tensor.shape[-1] % ROW_MULTIPLE[weight_type] == 0
    return weight_type if fits else "f16"


def add_value(writer: Any, key: str, value: Any) -> None:
    """一个键：Python 的类型决定 GGUF 的类型。

    bool 要在 int 之前问：它是 int 的子类；写成 uint32，llama.cpp 会说类型不符
    """
    # 列表不必写明：里面是字符串还是 int32，GGUFWriter 看第一个就知道
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)  # 字符串或 int32 的列表


def add_info(gguf: Any, writer: Any, tensor: GGUFTensor, kind: str) -> None:
    """张量表里的一行。

    约定：GGUFWriter 对量化的张量要的是「字节的形状」，它再换算回数的形状
    """
    *rows, width = tensor.shape
    # 32 个数一块，一块 18 或 34 个字节；stored_type 保证除得尽
    if kind in FORMATS:
        width = width // BLOCK * FORMATS[kind][2]
    dtype: np.dtype[Any] = np.dtype({"f32": np.float32, "f16": np.float16}.get(kind, np.uint8))
    shape = (*rows, width)
    size = math.prod(shape) * dtype.itemsize
    quantization = gguf.GGMLQuantizationType[kind.upper()]
    writer.add_tensor_info(tensor.name, shape, dtype, size, raw_dtype=quantization)


def encoded(tensor: GGUFTensor, kind: str, rule: GGUFTensor | None = None) -> Array:
    """一个张量的字节：接好、重排、变成 float32，再按存法编码；rule 给出时，整数原样写。

    错误：NaN、无穷大，或编码后装不下的数 → ValueError，写明张量名
    """
    # ① 到这里才真正拼接、重排，多占一份内存，函数一返回就还回去
    whole = tensor.build().detach()
    # ② 坏数一旦写出去，别人只会看到一个说胡话的模型
    if not torch.isfinite(whole).all():
        raise ValueError(f"{tensor.name} holds NaN or infinite values; it is not exported")
    #    词表与矩阵各有各的格式：q4_0 与 q8_0 可以混在一个文件里
    # ③ 整数原样写：与定存法时同样的一步，这次要的是整数
    found = (
        None if rule is None or kind not in FORMATS else integers_of(floats(tensor), floats(rule))
    )
    if found is not None:
        return encode_integers(*found, rows=tensor.shape[0])
    # ④ 编码的函数不知道名字，错误在这里补上
    try:
        # bfloat16 先变成 float32：一个比特不丢，numpy 也没有 bfloat16
        return ENCODERS[kind](whole.to("cpu", torch.float32).numpy())
    except ValueError as error:
        raise ValueError(f"{tensor.name}: {error}") from None


def floats(tensor: GGUFTensor) -> Array:
    """拼好、重排过的张量，float32 的数组。

    到这里才真正拼接，用完就扔
    """
    whole: Array = tensor.build().detach().to("cpu", torch.float32).numpy()
    return whole


def read_head(path: Path) -> tuple[bytes, int, int, int]:
    """文件最前面的 24 个字节：记号、版本、张量数、键数；演示与测试用。"""
    import struct

    # < 小端；4s 四个字节，I 四字节整数，Q 八字节整数
    with open(path, "rb") as file:
        magic, version, n_tensors, n_keys = struct.unpack("<4sIQQ", file.read(24))
    return magic, version, n_tensors, n_keys


def demo() -> None:
    """同一个小模型的三种存法：开头的字节、大小、读回来差多少。"""
    import tempfile

    from gpt_model.config import preset
    from gpt_model.gguf_blocks import decode_q8_0

    # 前馈中间层故意取 100：不是 32 的倍数，看它怎样退回 f16
    torch.manual_seed(0)
    model = GPT(preset("gpt-micro", vocab_size=65, n_layers=2, ffn_dim=100))
    gguf = import_gguf()
    original = model.get_parameter("token_embedding.weight").detach().numpy()
    sizes = {}
    # 写三次，每次用别人的读法（gguf 包的 GGUFReader）读回来
    with tempfile.TemporaryDirectory() as folder:
        for kind in ENCODERS:
            path = Path(folder) / f"tiny-{kind}.gguf"
            summary = export_gguf(model, path, weight_type=kind)
            # 开头的 24 个字节，自己拆开看
            magic, version, n_tensors, n_keys = read_head(path)
            assert (magic, n_tensors) == (b"GGUF", summary.n_tensors)
            print(f"{path.name:<15}{magic!r} 第 {version} 版，{n_tensors} 个张量，{n_keys} 个键")
            # 词表：与原来的数比
            reader = gguf.GGUFReader(path)
            # data 是磁盘上的样子：q8_0 的是字节，形状 (V, D/32·34)
            stored = next(t for t in reader.tensors if t.name == "token_embd.weight")
            assert all(t.data_offset % ALIGNMENT == 0 for t in reader.tensors)
            data = np.asarray(stored.data)
            back = decode_q8_0(data) if kind == "q8_0" else data.astype(np.float32)
            error = float(np.abs(back - original).max())
            print(f"   {summary.n_bytes:>9,} 字节，词表读回最多差 {error:.1e}")
            assert (error == 0.0) == (kind == "f32")
            sizes[kind] = summary.n_bytes
            del reader, stored, data, back  # 还映射着的文件，Windows 不许删
        print("行长 100、改存 f16 的：", ", ".join(summary.fallbacks))
    assert summary.fallbacks == ("blk.0.ffn_down.weight", "blk.1.ffn_down.weight")
    assert sizes["q8_0"] < sizes["f16"] < sizes["f32"]
    # 更可靠的核对在测试里：llama.cpp 自己载入，比较 logits 与编号


if __name__ == "__main__":
    run_demo(demo)
