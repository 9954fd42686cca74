r"""模型怎样落到磁盘上、又怎样原样读回？一个目录，四个文件，没有 pickle。

    my-model/
    ├── config.json          GPTConfig 的字段；量化过的多一项 quantization
    ├── model.safetensors    权重：名字 → 数；共用的矩阵只存一份
    ├── tokenizer.json       文字与编号的对应（Hugging Face tokenizers 的格式）
    └── manifest.json        以上每个文件的大小与 SHA-256，最后写成

为什么不用 torch.save：它是 pickle，读一个文件就可能执行里面的代码。别人给的模型，不该能动你的电脑。
safetensors 只是「一段 JSON 说明 + 一长串数」，读它不会执行任何东西，还能直接映射进内存。

为什么要清单：safetensors 自己发现不了权重里翻转的一个比特，模型只会「悄悄变笨」。
清单记下每个文件的大小与 SHA-256，差一个比特就拒绝，并说出是哪个文件。

为什么先写旁边再改名：写到一半断电，留下的是一个没人认的临时目录，旧模型原封不动；
改名在文件系统里是一下子完成的，看到新名字的人看到的必是完整的目录。

    写    my-model.tmp-3f2a/ 里逐个写好 → 刷到磁盘 → 最后写清单 → 改名为 my-model/
    读    核对清单 → 读配置 → 搭骨架（不占内存）→ 逐个对上名字与形状 → 放进权重

一次训练的存档（run/step-000200/）也是模型目录，只是多了优化器的状态，所以训练的目录可以直接拿来生成。

量化过的模型也是同样的四个文件，见 quantized_directory.py；旧版的程序不认识那一项，会说清后拒绝。

改哪里：目录里多存一个文件 → save_model 里写它，清单自动收录；
       换一种权重格式 → load_weights；Hugging Face 的目录 → huggingface.py。
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from foundation.demonstration import run_demo
from foundation.files import MANIFEST, atomic_directory, read_json, verify_manifest, write_json
from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from gpt_model.quantized_directory import QUANTIZATION, describe, finish, swap_in
from gpt_model.sharded_weights import read_shards, shards_of
from transformer_basics.embeddings import TokenEmbedding
from transformer_basics.quantized_linear import quantized_parts

if TYPE_CHECKING:
    from tokenization.tokenizer import Tokenizer

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "find_model_directory",
    "load_model",
    "load_weights",
    "save_model",
    "stored_quantization",
    "write_config_and_tokenizer",
    "write_model_files",
]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"  # 与 Hugging Face 的叫法相同
MODEL_KIND = "model"  # 写进清单，与存档、词元分片区分
STEP_PATTERN = "step-*"  # 训练目录里每一步的存档
PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")  # 惯用来存 pickle 的，一概不开


def state_to_save(model: nn.Module) -> dict[str, Tensor]:
    """要写进文件的张量：共用同一块内存的只留第一个名字。

    safetensors 不许两个名字指同一块内存；词向量与 lm_head 共用时只存词向量，读回时再系上
    """
    kept: dict[str, Tensor] = {}
    seen: set[int] = set()  # 已经写过的内存地址
    # 同一个参数的别名，按对象认：切成几片的（DTensor）与 meta 上的没有地址可比
    # 地址还是要看：buffer 与视图不是参数，也可能共用内存
    aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    aliases -= {name for name, _ in model.named_parameters()}
    for name, tensor in model.state_dict().items():
        address = tensor.data_ptr()
        if name in aliases or (address in seen and tensor.numel()):  # 空张量没有地址可比
            continue
        if address:  # 0 不是地址：记下它，第二个没有地址的就被当成别名丢掉
            seen.add(address)
        kept[name] = tensor.detach().contiguous()  # 转置过的视图要先排好
    return kept


def write_model_files(
    model: GPT,
    directory: Path,
    tokenizer: Tokenizer | None = None,
    state: Mapping[str, Tensor] | None = None,  # 名字与 state_to_save 给出的相同
) -> None:
    """把模型的文件写进一个已存在的目录；清单由调用者最后写（存档目录里还有别的文件）。

    参数：state 是已经收好的权重（切成几片的模型，先凑齐才写得下）；None 就从模型里取
    错误：权重里有 NaN 或无穷大 → ValueError，写明是哪一个；坏模型不落盘
    """
    state = state_to_save(model) if state is None else dict(state)
    # ① 坏数一旦落盘，下一次就会从它继续：在门口拦住
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinite values; a broken model is not saved")
    # ② 先写小的，磁盘满时早些知道
    write_config_and_tokenizer(model, directory, tokenizer)
    save_file(state, directory / WEIGHTS_FILE, metadata={"format": "pt"})


def write_config_and_tokenizer(model: GPT, directory: Path, tokenizer: Tokenizer | None) -> None:
    """权重以外的文件：形状，与文字怎样变成编号。

    错误：分词器的编号比词表多 → ValueError，两个数都写出来
    """
    values = model.config.to_dict()
    # 量化过的，多一项说清哪些模块是整数的，
    # 见 quantized_directory.py；没有量化的，与从前逐字节相同
    quantization = describe(model)
    if quantization is not None:
        values[QUANTIZATION] = quantization
    write_json(directory / CONFIG_FILE, values)
    # 分词器放在一起：编号与词向量的行一一对应，拆开就成了乱码
    if tokenizer is not None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, "
                f"but the model's vocab_size is {model.config.vocab_size}"
            )
        tokenizer.save(directory)


def save_model(model: GPT, directory: Path | str, tokenizer: Tokenizer | None = None) -> None:
    """存成模型目录：先写在旁边，完整了再改名，中途断电也不会留下半个。

    同名的旧目录先挪开，新的就位后才删；任何一步出错，旧的都还在
    错误：权重含 NaN、分词器比词表大 → ValueError；磁盘满 → OSError，旧目录不变
    """
    with atomic_directory(directory, kind=MODEL_KIND) as temporary:
        write_model_files(model, temporary, tokenizer)


def load_model(
    directory: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> GPT:
    """读回一个模型目录；dtype 为 None 时保持存下时的类型。

    错误：不是模型目录、文件损坏、多出或缺少张量、形状不符、含 NaN → ValueError
    """
    directory = Path(directory)
    refuse_pickles(directory)
    refuse_theirs(directory)
    verify_manifest(directory)  # 模型目录与训练存档都行，种类不限
    config = load_config(directory)
    # 量化过的：哪些模块是整数，写在同一个文件里
    quantization = stored_quantization(directory)
    # 先有形状再有数字：随机初始化 1.5B 个数要好几秒，而它们马上就会被换掉
    model = GPT.on_meta(config)
    # 趁还在 meta 上，把那些层换成整数的空壳：
    # 浮点数的那一份从来没有分配过
    if quantization is not None:
        swap_in(model, quantization, str(directory / CONFIG_FILE))
    model = model.to_empty(device="cpu")  # 只占地址，还没有写入任何字节
    load_weights(model, read_weights(directory / WEIGHTS_FILE), str(directory / WEIGHTS_FILE))
    model = model.to(device=device, dtype=dtype or model.dtype)  # 没有参数的表也跟着换类型
    # 换了设备，共用的词表要再系一次
    finish(model)
    return model.eval()


def load_config(directory: Path) -> GPTConfig:
    """读 config.json 并检查每个字段；给的就是一个文件，就读它。

    错误：不是 JSON → 行与列；不是对象、键不认识、值越界 → ValueError，写明文件
    """
    path = directory if directory.is_file() else directory / CONFIG_FILE
    refuse_theirs(path.parent if path.name == CONFIG_FILE else directory)
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(values).__name__}")
    # 权重怎样存，不是形状的事：
    # 数参数、导出、再训练的，都只看形状
    values.pop(QUANTIZATION, None)
    return GPTConfig.from_dict(values, where=str(path))


def stored_quantization(directory: Path) -> Any:
    """config.json 里的 quantization 一项；没有量化过就是 None，内容由 swap_in 去查。

    开工之前问一句（全量微调收不收），不必先把模型读进来
    """
    values = read_json(directory / CONFIG_FILE)
    return values.get(QUANTIZATION) if isinstance(values, dict) else None


def read_weights(path: Path) -> dict[str, Tensor]:
    """读一个 safetensors 文件：名字 → 张量，映射进内存，用到时才真正读盘。

    几个进程各写一片的存档没有这个文件，旁边有 model-shards/：那就拼起来，见 sharded_weights.py
    错误：文件不在、格式坏了 → ValueError，写明文件名；库自己的错误不会说是哪个文件
    """
    if not path.is_file() and shards_of(path).is_dir():
        return read_shards(shards_of(path))
    try:
        weights: dict[str, Tensor] = load_file(path)
        return weights
    except FileNotFoundError:  # 清单核对之后才被删掉的，也要说清
        raise ValueError(f"{path} does not exist") from None
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def load_weights(model: GPT, weights: Mapping[str, Tensor], where: str) -> None:
    """把张量放进（可能在 meta 设备上的）骨架，名字与形状必须一一对上。

    错误：缺少、多出、形状不符 → 一次列全；NaN 或无穷大 → 写明名字
    """
    weights = dict(weights)
    expected = model.state_dict()  # 只用它的名字与形状
    # ① 共用的矩阵只存了一个名字，先补上另一个：
    #    浮点数的是 weight；整数的是 packed、scale，两三样一起补
    if model.config.tie_embeddings:
        for name in [name for name in weights if name.startswith("token_embedding.")]:
            weights.setdefault(name.replace("token_embedding", "lm_head"), weights[name])
    # ② 名字与形状：一次说全，免得改一个错一个
    #    （共用词表时两个名字都在 expected 里，所以上面要补）
    problems = [f"missing {name}" for name in expected if name not in weights]
    #    多出来的也是错：多半是另一种结构的权重，硬塞进来只会得到一个说胡话的模型
    problems += [f"unexpected {name}" for name in weights if name not in expected]
    #    形状不符时两边都写出来，一眼看出是词表、宽度还是层数不对
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    #    整数的三样，类型也要对：q 存成了浮点数，
    #    算出来的就不是它；浮点数的类型则随文件
    problems += [
        f"{name} has type {weights[name].dtype}, expected {tensor.dtype}"
        for part, module in quantized_parts(model).items()
        for name, tensor in module.state_dict(prefix=f"{part}.").items()
        if not name.endswith(".bias") and name in weights and weights[name].dtype != tensor.dtype
    ]
    if problems:
        listed = "; ".join(problems[:8]) + (f"; … {len(problems)} in all" if problems[8:] else "")
        raise ValueError(f"{where} does not fit the model: {listed}")
    # ③ 数字：NaN 会从第一次乘法传染到每一个输出
    for name, tensor in weights.items():
        # 整数没有 NaN，
        # 不必为它读每一页
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{where} is damaged: {name} holds NaN or infinite values")
    # ④ 直接换上（assign）而不复制，类型也随文件；再把共用的矩阵重新系在一起，
    #    否则训练时两份各走各的，存盘又只存一份
    model.load_state_dict(weights, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)  # 换上来的张量默认不求梯度
    if model.config.tie_embeddings and isinstance(model.token_embedding, TokenEmbedding):
        model.lm_head.weight = model.token_embedding.weight
    # 整数的词表也一样；它输出什么类型，到这里才知道
    finish(model)


def find_model_directory(path: Path | str) -> Path:
    """把用户给的路径变成模型目录：自己就是，或是一次训练的目录，取其中最好的一步。

    训练目录里验证损失最低的一步优先，没有验证过的取最新的一步。
    错误：两者都不是 → ValueError，写明那里有什么
    """
    path = Path(path)
    # ① 自己就是模型目录
    if (path / CONFIG_FILE).is_file():
        return path
    # ② 训练目录：没有清单的一步是存到一半的，不算
    steps = sorted(step for step in path.glob(STEP_PATTERN) if (step / MANIFEST).is_file())
    if steps:
        # min 取第一个最小的；倒着排，损失相同（或都没有）时就取最新的
        return min(reversed(steps), key=validation_loss)
    if not path.exists():
        raise ValueError(f"model directory {path} does not exist")
    refuse_pickles(path)
    # 存在却什么也不是：说清两种合格的样子
    raise ValueError(
        f"{path} is neither a model directory ({CONFIG_FILE}, {WEIGHTS_FILE}) "
        f"nor a run with a whole {STEP_PATTERN} checkpoint"
    )


def refuse_pickles(path: Path) -> None:
    """只有 pickle 存的权重（.bin、.pt……）：不打开，说清为什么、怎么办。

    打开一个 pickle，就是运行写它的人放进去的代码；所以连「试着读一下」也不行
    约定：safetensors 也在的话，旁边的 pickle 不理会就是了
    错误：path 自己是这样的文件，或目录里只有这样的权重 → ValueError，写明是哪个文件
    """
    if path.is_dir():
        if (path / WEIGHTS_FILE).is_file():
            return
        # 排好序：同一个目录每次都说同一个文件
        found = sorted(file for file in path.iterdir() if file.suffix in PICKLE_ENDINGS)
    else:
        # 直接给了一个文件：以后缀判断，绝不打开来看
        found = [path] if path.is_file() and path.suffix in PICKLE_ENDINGS else []
    if found:
        raise ValueError(
            f"{found[0]} is a pickle, which can run code when it is opened; this program never "
            f"opens one. Ask its author for {WEIGHTS_FILE}, or convert it where it cannot do harm"
        )


def refuse_theirs(directory: Path) -> None:
    """Hugging Face 的文件夹也有 config.json 与 model.safetensors，里面的名字却是另一套。

    错误：里面写着 model_type → ValueError，说清要先导入
    """
    path = directory / CONFIG_FILE
    # 别的毛病（没有文件、不是 JSON）由后面的检查去说
    values = read_json(path) if path.is_file() else None
    # 只凭一个键就认得出：他们的每一份都有它，我们的从来没有
    # （GPTConfig 没有这个字段）
    if isinstance(values, dict) and "model_type" in values:
        raise ValueError(
            f"{directory} is a Hugging Face checkpoint; make a model directory of it first: "
            f"fromzero import {directory} --out DIR"
        )


def validation_loss(step: Path) -> float:
    """一步存档的清单里记下的验证损失；没有就当作无穷大，排在验证过的后面。"""
    value = read_json(step / MANIFEST).get("val_loss")
    return float("inf") if value is None else float(value)


def demo() -> None:
    """存一个小模型，读回，再翻转一个比特看会怎样。"""
    import tempfile

    from gpt_model.config import preset

    # 一层、词表 65 的小模型：文件才看得过来
    model = GPT(preset("gpt-micro", vocab_size=65, n_layers=1)).eval()
    ids = torch.randint(65, (1, 8))  # 拿同一句话比较存前与读后
    with tempfile.TemporaryDirectory() as folder:
        # ① 存与读
        directory = Path(folder) / "my-model"
        model.save(directory)
        print("模型目录：")
        # 没有分词器：这里没有给
        for file in sorted(directory.iterdir()):
            print(f"  {file.name:<20}{file.stat().st_size:>9,} 字节")
        again = GPT.load(directory)  # 清单核对过才读
        # 不是「接近」，而是每个比特都相同
        assert torch.equal(model(ids).logits, again(ids).logits)
        print("读回后 logits 逐比特相等")

        # ② 损坏：safetensors 照样读得出来，只有清单知道
        weights = directory / WEIGHTS_FILE
        damaged = bytearray(weights.read_bytes())
        damaged[-1] ^= 1  # 某个权重的一个比特
        weights.write_bytes(damaged)
        assert read_weights(weights)  # 库毫无察觉
        try:
            GPT.load(directory)  # 应当拒绝
        except ValueError as error:
            # 临时目录的名字每次不同，换成好读的
            message = str(error).replace(str(directory), "my-model")
        assert "damaged" in message
        print(f"翻转最后一个比特 → {message}")


if __name__ == "__main__":
    run_demo(demo)
