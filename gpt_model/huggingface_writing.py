r"""怎样写成别人读得进的文件夹？逐个张量改名，装满一片写一片，最后写索引。

    模型 ──their_tensors──▶ wte │ wpe │ h.0.ln_1 │ h.0.attn.c_proj │ …      一个一个地来
                            └──────── 第 1 片 ────────┘└──── 第 2 片 ────…   装满就写，写完就丢

贪心地装：放得下就放，放不下就先写出去。于是

$$\text{每片的字节} \le \max(\text{max\_shard\_size},\ \text{最大的一个张量}), \qquad
  \text{自己占住的内存} \le \text{一片}$$

为什么要分片？网断了重下一片，比重下 140 GB 好；有的文件系统一个文件只许 4 GB；几张显卡可以各读各的
几片。片数写在每一片的名字里（model-00001-of-00002），而写第一片时还不知道有几片：先用临时的名字，最后一起改。

权重之外还有三个小文件，各家的程序靠它们知道怎样用：

    tokenizer.json            编号表，与我们的同一种格式，原样写出
    tokenizer_config.json     哪个类来读它、哪个是结束、对话模板在不在
    generation_config.json    生成到哪个编号停

导入时带着的（CARRIED）原样写回；我们自己训练的模型没有，就由分词器写一份。

常见疑问：
    共用词表的 lm_head 写几份？  一份。读的人见到 tie_word_embeddings 就会系上；写两份反而白占地方。
    写到一半断电？              先写在旁边，完整了才改名，不会留下半个；manifest.json 记着每个文件的
                                SHA-256，别家的程序不看它，抄到别处之后可以拿来核对。

    量化的、切成几片训练的模型？ 先变回普通的 GPT 再写：GPT.load 会拼好，LoRA 先合并。
    为什么把小文件写在前面？      磁盘满时早些知道；权重是最大的，放最后。
    读的人怎样知道写全了？        索引列出每个张量在哪一片，缺一片，transformers 会报错。

出处：transformers 的 save_pretrained 与分片约定。

改哪里：默认每片多大 → SHARD_BYTES；多写一个小文件 → ends；
       哪些模型写得出去 → huggingface_export.py；反方向 → huggingface_files.py。
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from foundation.checks import check_int
from foundation.demonstration import run_demo
from foundation.files import atomic_directory, read_json, write_json
from gpt_model.huggingface import their_tensors
from gpt_model.huggingface_export import config_to_huggingface
from gpt_model.huggingface_files import (
    CONFIG,
    GENERATION,
    INDEX,
    SINGLE,
    TOKENIZER_CONFIG,
    carry,
    refuse_existing,
)
from gpt_model.model import GPT

if TYPE_CHECKING:
    from tokenization.tokenizer import Tokenizer

__all__ = ["SHARD_BYTES", "save_huggingface"]

SHARD = "model-{number:05d}-of-{total:05d}.safetensors"
SHARD_BYTES = 5 * 10**9  # 每片至多这么大；transformers 也用过这个数


def save_huggingface(
    model: GPT,
    out: Path | str,
    tokenizer: Tokenizer | None = None,
    *,
    max_shard_bytes: int = SHARD_BYTES,
    carried_from: Path | None = None,
) -> str:
    """我们的 GPT → 他们的文件夹，transformers、vLLM、llama.cpp 都读得进；返回家族名。

    类型不变：模型是 bfloat16，写出去也是；想换，先 model.to(…)
    carried_from：模型是从这个目录读来的，里面若有导入时带着的小文件，原样带出去
    错误：没有家族装得下 → 见 huggingface_export.py；权重含 NaN、out 已经有东西 → ValueError
    """
    out = Path(out)
    # 0 与负数没有意义；太小的，每个张量独占一片，也写得出来
    check_int("max_shard_size", max_shard_bytes, 1)
    # ① 配置先行：装不下的，一个字节也不写
    config = config_to_huggingface(model.config, str(model.dtype).removeprefix("torch."))
    # 家族由配置推出来，不由用户说：说错了，写出来的就是错的
    family = str(config["model_type"])
    refuse_existing(out)
    with atomic_directory(out, kind="huggingface") as temporary:
        # ② 小文件：我们的分词器写一份，他们自己的再盖上去，那里的键更全
        # 没有分词器的模型也写得出去，只是别人得自己配一个
        if tokenizer is not None:
            tokenizer.save(temporary)
        if carried_from is not None:
            carry(carried_from, temporary)
        if tokenizer is not None:
            config |= ends(tokenizer, temporary)
        # 结束的编号两处都写：旧的程序只看 config.json
        write_json(temporary / CONFIG, config)
        # ③ 权重最后写：它最大
        write_shards(model, family, temporary, max_shard_bytes)
    return family


def write_shards(model: GPT, family: str, folder: Path, max_bytes: int) -> None:
    """逐个张量翻译，装满一片就写；只有一片时不写索引。

    读的人先看索引，再去开它要的那几片；各片之间没有次序，名字里的号只是给人看的
    片数要写进每一片的文件名，而写第一片时还不知道有几片：先用临时的名字，最后一起改
    """
    shards: list[list[str]] = []  # 写好的每一片里有哪些张量
    waiting: dict[str, Tensor] = {}  # 还没写的，至多一片
    total = size = 0  # 单位都是字节

    def flush() -> None:
        # format 这一项 transformers 会看，没有它就拒绝
        save_file(waiting, folder / f"{len(shards)}.part", metadata={"format": "pt"})
        # 写完就忘掉这一片的数，只记名字
        shards.append(list(waiting))
        waiting.clear()

    for name, tensor in their_tensors(model, family):
        # 共用的词表只写一份，transformers 自己会系上
        if name == "lm_head.weight" and model.config.tie_embeddings:
            continue
        # 坏数不出门：别人读到 NaN，不会想到是从这里来的
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinite values; a broken model is not exported")
        # 一个张量比一片还大时，它独占一片；张量不能切开
        if waiting and size + tensor.nbytes > max_bytes:
            flush()
            size = 0
        # 转置过的视图先排好：文件里是一行接一行的数
        waiting[name] = tensor.detach().contiguous()
        size += tensor.nbytes
        total += tensor.nbytes
    flush()
    # 最后一片多半不满；模型至少有一个张量，所以不会是空的
    # 现在知道有几片了：改成正式的名字。只有一片时，用人人都认得的那个名字，不写索引
    names = [SHARD.format(number=i + 1, total=len(shards)) for i in range(len(shards))]
    names = [SINGLE] if len(shards) == 1 else names
    # 改名不搬数据，几十 GB 也只是一瞬间
    for number, name in enumerate(names):
        (folder / f"{number}.part").rename(folder / name)
    # 索引最后写：有了它，这个文件夹才算有权重
    if len(shards) > 1:
        places = {t: name for name, inside in zip(names, shards, strict=True) for t in inside}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def ends(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """补全 tokenizer_config.json 与 generation_config.json，返回 config.json 要的编号。

    AutoTokenizer 看前者才知道怎样读 tokenizer.json；generate 看后者才知道哪个编号是结束
    tokenizer_class 写最通用的那个：它照 tokenizer.json 办事，不加自己的规矩
    （写成 GPT2Tokenizer 一类，有的版本会自作主张换掉切片规则）
    返回：eos_token_id 与 bos_token_id，有哪个写哪个
    """
    # 那边按名字写，我们按编号记：反过来查
    names = {token_id: name for name, token_id in tokenizer.special_tokens.items()}
    # 对话模型有两个结束：一轮说完了（写在前面，transformers 拿它补齐）与文章结束
    stops = sorted(tokenizer.stop_ids, key=lambda token: token == tokenizer.end_id)
    ids: dict[str, Any] = {}
    # 自己的字符级分词器可以两样都没有；没有「结束」，生成就只能靠长度停
    if stops:
        ids["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    # 每段文字开头要加的那一个（Llama 的 <s>）；GPT-2 没有，就以结束当开头，与它训练时一样
    begin = tokenizer.start_ids[0] if tokenizer.start_ids else tokenizer.end_id
    if begin is not None:
        ids["bos_token_id"] = begin
    # ① 特殊词元在那里按名字写：eos_token、bos_token；已经写了的不动
    path = folder / TOKENIZER_CONFIG
    settings = read_json(path) if path.is_file() else {}
    known = {"eos_token": stops[:1], "bos_token": [] if begin is None else [begin]}
    wanted = {"tokenizer_class": "PreTrainedTokenizerFast"}
    wanted |= {key: names[i] for key, found in known.items() for i in found if i in names}
    # 解码之后不许改动空格：旧版的 transformers 默认会把「 ,」改成「,」
    write_json(path, {**wanted, "clean_up_tokenization_spaces": False, **settings})
    # ② 带来的文件说了算。例：Llama 3 的对话模型有三个结束：文章、一轮、等工具的结果
    path = folder / GENERATION
    carried = read_json(path) if path.is_file() else {}
    ids |= {key: carried[key] for key in ("eos_token_id", "bos_token_id") if key in carried}
    write_json(path, {**ids, **carried})
    return ids


def demo() -> None:
    """写一个分三片的文件夹，看里面有什么；再看每片的大小守不守规矩。

    真正的核对在 tests/parity：transformers 读进去，logits 与贪心生成的编号都相等
    """
    import tempfile

    from gpt_model.config import preset
    from tokenization.tokenizer import Tokenizer

    # 两层、64 维：小得能看清每个文件
    # 分词器也要一起写出去
    tokenizer = Tokenizer.characters(["床前明月光，疑是地上霜。"])
    size = tokenizer.vocab_size
    model = GPT(preset("gpt-micro", vocab_size=size, n_layers=2, dim=64)).eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "exported")
        # 每片至多 200 kB，好让小模型也分片
        family = save_huggingface(model, folder, tokenizer, max_shard_bytes=200_000)
        print(f"一、写成 {family} 的文件夹：")
        for path in sorted(folder.iterdir()):
            print(f"  {path.name:<36}{path.stat().st_size:>9,} 字节")
        # 一片里除了数，还有一段 JSON 说明，几 kB
        # 每一片都不超过说好的大小：
        pieces = [path.stat().st_size for path in folder.glob("model-*")]
        assert max(pieces) < 200_000 + 4_000
        # 全部的数，一个不多一个不少；共用的词表只算一次
        # 索引里记着的总数，与参数个数核对
        total = read_json(folder / INDEX)["metadata"]["total_size"]
        numbers = sum(parameter.numel() for parameter in model.parameters())
        print(f"二、{len(pieces)} 片合计 {total:,} 字节 = {numbers:,} 个数 × 4")
        assert total == 4 * numbers
        # 结束的编号，写进了 generate 会看的那个文件
        print(f"三、{GENERATION}：{read_json(folder / GENERATION)}")
        assert read_json(folder / GENERATION)["eos_token_id"] == tokenizer.end_id


if __name__ == "__main__":
    run_demo(demo)
