r"""别人的检查点（checkpoint）是一个文件夹：怎样读进来，又怎样不占两份内存？

    Llama-3.2-3B/
    ├── config.json                        形状与选择 → huggingface_config.py
    ├── model.safetensors.index.json       哪个张量在哪个文件里（只有一个文件时没有它）
    ├── model-00001-of-00002.safetensors   权重，分成几片
    ├── model-00002-of-00002.safetensors
    ├── tokenizer.json                     文字 ↔ 编号，与我们的格式相同
    └── tokenizer_config.json、generation_config.json、chat_template.jinja      随身带着，不解释

    索引 ─▶ 逐个文件映射进内存 ─▶ 改名 ─▶ 放进骨架 ─▶ 写成我们的模型目录

「映射」（mmap）是说文件的内容当作内存来用，碰到哪一页才读哪一页，内存紧张时系统随时可以收回。
所以只改名的家族（Llama、Mistral、Qwen）导入时，自己占住的内存接近零；GPT-2 要转置，占一份：

$$\text{自己占住的} \approx \begin{cases} 0 & \text{只改名} \\
  N \cdot \text{每个数的字节} & \text{GPT-2} \end{cases} \;+\; \text{检查一个张量用的}$$

不信任文件里写的任何名字：索引里的文件名只能是本文件夹里的名字，「../」与绝对路径一概拒绝，
否则一份恶意的索引就能让我们去读你别处的文件。权重只认 safetensors，pickle 不开；config.json 里的
auto_map 要求运行附带的代码，拒绝。对话模板（chat_template）只是一段文字，原样带着，不执行。

常见疑问：
    文件里是 bfloat16，读进来会变吗？ 不变，导入之后的模型目录也是 bfloat16。
    文件夹里还有 .bin？               旁边有 safetensors 就不理会它；只有它，就拒绝。
    为什么不直接用他们的文件夹？      导入时核对一遍名字、形状与数，再记下每个文件的 SHA-256；
                                      以后每次载入只认这份清单，坏一个比特也会发现。

    下到一半的文件夹呢？              缺的片一次列全；截短的片，与文件头记的长度对不上，也会说出。
    一个张量的名字不认得呢？          拒绝。多半是别的结构，硬塞进来只会得到一个说胡话的模型。
    能读几十 GB 的吗？                能，内存够放一份就行；磁盘要能再放一份：导入是另写一个目录。

出处：safetensors 的格式说明；transformers 的分片约定（model-0000i-of-0000n）。

改哪里：认别的文件名 → SINGLE 与 INDEX；多带一个文件 → CARRIED；写出去 → huggingface_writing.py。
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foundation.demonstration import run_demo
from foundation.files import atomic_directory, read_json, write_json
from gpt_model.huggingface import model_from_huggingface
from gpt_model.model import GPT
from gpt_model.model_directory import MODEL_KIND, read_weights, refuse_pickles, write_model_files

if TYPE_CHECKING:
    from tokenization.tokenizer import Tokenizer

__all__ = [
    "CARRIED",
    "CONFIG",
    "GENERATION",
    "INDEX",
    "SINGLE",
    "TOKENIZER_CONFIG",
    "carry",
    "import_huggingface",
    "load_huggingface",
    "read_huggingface_config",
    "read_huggingface_weights",
    "refuse_existing",
]

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# 我们用不着、他们用得着的：导入时原样带进模型目录，导出时原样带出去
GENERATION = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CARRIED = (GENERATION, TOKENIZER_CONFIG, "special_tokens_map.json", "chat_template.jinja")
TEMPLATES = "additional_chat_templates"


def read_huggingface_config(folder: Path) -> dict[str, Any]:
    """读他们的 config.json。

    返回的字典还没有查过内容，那是 config_from_huggingface 的事：这里只读，下载之前先看一眼也用它
    错误：不是文件夹、没有 config.json、不是他们的 → ValueError，写明路径
    """
    # 给的是一个文件、或拼错了名字：先说这个
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder with a Hugging Face checkpoint")
    if not (folder / CONFIG).is_file():
        # 只有一个 pickle 的文件夹，也多半没有 config.json：先说要紧的
        refuse_pickles(folder)
        raise ValueError(f"{folder} is not a Hugging Face checkpoint: {CONFIG} is missing")
    values = read_json(folder / CONFIG)
    # 内容合不合理由 huggingface_config.py 去查，这里只管是不是一份配置
    if not isinstance(values, dict):
        raise ValueError(f"{folder / CONFIG} must hold a JSON object, got {type(values).__name__}")
    # 我们自己的模型目录也有 config.json，那里没有 model_type
    # 认错了也不要紧，下一步会说缺 model_type；早说，话才说得到点子上
    if "model_type" not in values and "n_layers" in values:
        raise ValueError(f"{folder} is a model directory of this project already; use it as it is")
    return values


def read_huggingface_weights(folder: Path) -> dict[str, Tensor]:
    """全部权重：名字 → 映射进内存的张量；一个文件或几片都行。

    形状、类型都与文件里的相同，名字也还是他们的；改名在 huggingface.py
    约定：一片里有而索引没提到的张量也读进来；多出来的，由载入时一并列出，不在这里悄悄扔掉
    错误：只有 pickle → 建议怎样换；缺一片、索引说有而片里没有、两片里重名 → ValueError，写明名字
    """
    # 一个文件的优先，与 transformers 相同
    if (folder / SINGLE).is_file():
        return read_weights(folder / SINGLE)
    if not (folder / INDEX).is_file():
        refuse_pickles(folder)
        raise ValueError(f"{folder} holds no weights: neither {SINGLE} nor {INDEX} is there")
    # 索引与各片可能不是同一次下载的，所以两边互相核对
    places = read_index(folder / INDEX)
    # ① 缺的片一次说全：逐片地报，要下载几次才知道
    # 张量几百个，文件几个：一个文件名在索引里出现许多次
    shards = sorted(set(places.values()))
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} is incomplete: {len(missing)} of {len(shards)} shards are missing: "
            f"{', '.join(missing)}"
        )
    # ② 逐片映射；映射不占内存，所以合成一个字典无妨
    weights: dict[str, Tensor] = {}
    # 小的先来还是大的先来都一样：映射只记下位置
    for name in shards:
        # 文件坏了（截短、文件头不对），这里就会说出是哪个文件
        part = read_weights(folder / name)
        # 同一个名字在两片里：不知道该信哪个
        twice = sorted(set(part) & set(weights))
        if twice:
            raise ValueError(f"{folder / name} repeats tensors of another shard: {twice[0]}")
        # ③ 索引说在这一片里的，真的在
        lost = sorted(t for t, shard in places.items() if shard == name and t not in part)
        if lost:
            raise ValueError(f"{folder / name} lacks {', '.join(lost[:4])}, which {INDEX} lists")
        weights |= part
    return weights


def read_index(path: Path) -> dict[str, str]:
    """索引：张量名 → 文件名；文件名只能是同一个文件夹里的。

    例：{"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors", …}}
    为什么不靠「解析之后还在不在文件夹里」：下载的缓存里，每个文件都是指向别处的链接，那是正当的；
    所以只看名字，不跟着链接走
    错误：没有 weight_map、文件名指到文件夹外面去 → ValueError，写明是哪个
    """
    values = read_json(path)
    # 另一个键 metadata 记着总字节数，只供人看
    places = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{path} is damaged: it has no weight_map")
    # 几百个张量逐个看：一个坏名字就够让人去读别处的文件
    for tensor, name in places.items():
        # 斜杠、反斜杠、盘符（C:）、「..」，在哪个系统上都不许
        plain = isinstance(name, str) and not set(name) & set('/\\:"') and name.strip(". ")
        if not plain:
            raise ValueError(
                f"{path} is damaged: it places {tensor} in {name!r}, outside its folder"
            )
        # 名字在本文件夹里，却是 pickle：一样不开
        if not name.endswith(".safetensors"):
            raise ValueError(f"{path}: {name!r} is not a .safetensors file")
    return dict(places)


def load_huggingface(folder: Path | str) -> GPT:
    """他们的文件夹 → 我们的 GPT，类型与文件相同；权重仍映射在文件上。

    映射是私有的：训练改动了权重，改的是自己的副本，文件不变
    错误：见 read_huggingface_config、read_huggingface_weights、model_from_huggingface
    """
    folder = Path(folder)
    # 配置在前：不支持的家族，几十 GB 的权重一个字节也不必读
    values = read_huggingface_config(folder)
    # 此后读到的每个错，都带上这个文件夹的名字
    return model_from_huggingface(values, read_huggingface_weights(folder), str(folder))


def import_huggingface(folder: Path | str, out: Path | str, tokenizer: Tokenizer | None) -> GPT:
    """他们的文件夹 → 我们的模型目录 out；返回的就是写进去的模型。

    磁盘上因此有两份，内存里没有：写的时候，数直接从映射的文件里取
    tokenizer 由调用者读好（没有分词器的检查点给 None）；他们的几个小文件原样带着
    错误：out 已经有东西 → ValueError，绝不覆盖；其余见 load_huggingface
    """
    folder, out = Path(folder), Path(out)
    refuse_existing(out)  # 读几分钟之后才说写不了，就晚了
    model = load_huggingface(folder)
    # 先写在旁边，清单最后写，完整了才改名：中途断电不会留下半个模型
    with atomic_directory(out, kind=MODEL_KIND) as temporary:
        write_model_files(model, temporary, tokenizer)
        carry(folder, temporary)
    return model


def refuse_existing(out: Path) -> None:
    """目标已经有东西：不覆盖。

    一个写错的名字，不该换掉别的模型；何况 atomic_directory 会把整个旧目录换下来
    """
    # 空的文件夹可以用：有人习惯先建好
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{out} already exists; give another name, or remove it first")


def carry(source: Path, target: Path) -> None:
    """把随身带的小文件抄过去，有几个抄几个；内容不解释。

    只有一处例外：tokenizer_config.json 里的 auto_map 要求运行附带的代码，代码没有带来，这一项也去掉
    """
    # 多数检查点只有其中两三个
    for name in CARRIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    # 别的用途的对话模板，各一个文件
    # 例：用工具时换一个
    if (source / TEMPLATES).is_dir():
        shutil.copytree(source / TEMPLATES, target / TEMPLATES, dirs_exist_ok=True)
    path = target / TOKENIZER_CONFIG
    values = read_json(path) if path.is_file() else {}
    if "auto_map" in values:
        # 它指定的类在那份代码里；tokenizer.json 自己就够用
        del values["auto_map"]
        write_json(path, {**values, "tokenizer_class": "PreTrainedTokenizerFast"})


def demo() -> None:
    """读一个分成几片的文件夹；缺一片、指到外面去的索引各得到什么话。"""
    import tempfile

    from gpt_model.config import preset
    from gpt_model.huggingface_writing import save_huggingface

    # 两层、64 维：小得能看清每个文件
    model = GPT(preset("gpt-micro", vocab_size=65, n_layers=2, dim=64)).eval()
    ids = torch.randint(65, (1, 8))
    with tempfile.TemporaryDirectory() as name:
        # ① 造一个：每片至多 200 kB，好让小模型也分片
        folder = Path(name, "theirs")
        save_huggingface(model, folder, max_shard_bytes=200_000)
        # 索引就是一张表，打开来看
        index = read_json(folder / INDEX)  # 留着，好改回去
        places = read_index(folder / INDEX)
        print(f"一、{len(places)} 个张量分在 {len(set(places.values()))} 个文件里，前三个：")
        for tensor, file in list(places.items())[:3]:
            print(f"  {tensor:<36}{file}")
        # ② 读：拼起来、改名、转置回来，一个比特都不差
        again = load_huggingface(folder)
        assert torch.equal(again(ids).logits, model(ids).logits)
        # GPT-2 转置了两次，改名了两次，数一个没动
        print("二、读回来，logits 逐比特相等")

        # ③ 弄坏它：先改索引里的一个文件名，再删一片
        first = next(iter(places))
        print("三、弄坏之后：")
        write_json(folder / INDEX, {"weight_map": {**places, first: "../secret.safetensors"}})
        for damage in ("指到外面的索引", "少了一片"):
            try:
                load_huggingface(folder)
            except ValueError as error:
                print(f"  {damage}：{str(error).replace(name, '…')}")
            else:
                raise AssertionError(f"{damage} must be refused")
            # 改回好的索引，再删掉一片，看第二种
            write_json(folder / INDEX, index)
            (folder / places[first]).unlink(missing_ok=True)


if __name__ == "__main__":
    run_demo(demo)
