r"""模型怎样落到磁盘上、又怎样原样读回？一个目录，四个文件，没有 pickle。

    my-model/
    ├── config.json          GPTConfig 的字段
    ├── model.safetensors    权重：名字 → 数；共用的矩阵只存一份
    ├── tokenizer.json       文字与编号的对应（Hugging Face tokenizers 的格式）
    └── manifest.json        以上每个文件的大小与 SHA-256，最后写成

为什么不用 torch.save：它是 pickle，读一个文件就可能执行里面的代码。
为什么要清单：safetensors 自己发现不了权重里翻转的一个比特，模型只会「悄悄变笨」。

读的步骤：核对清单 → 读配置 → 在 meta 设备上搭骨架（不占内存）→ 逐个对上名字与形状 → 放进权重。

改哪里：目录里多存一个文件 → save_model 里写它，清单自动收录；
       换一种权重格式 → load_weights；Hugging Face 的目录 → huggingface.py。
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from foundation.demonstration import run_demo
from foundation.files import MANIFEST, atomic_directory, read_json, verify_manifest, write_text
from gpt_model.config import GPTConfig
from gpt_model.model import GPT

if TYPE_CHECKING:
    from tokenization.tokenizer import Tokenizer

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "find_model_directory",
    "load_model",
    "load_weights",
    "save_model",
    "write_model_files",
]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MODEL_KIND = "model"
STEP_PATTERN = "step-*"


def state_to_save(model: nn.Module) -> dict[str, Tensor]:
    """要写进文件的张量：共用同一块内存的只留第一个名字（safetensors 不许重复）。"""
    kept: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():
            continue
        seen.add(tensor.data_ptr())
        kept[name] = tensor.detach().contiguous()
    return kept


def write_model_files(model: GPT, directory: Path, tokenizer: Tokenizer | None = None) -> None:
    """把模型的文件写进一个已存在的目录；清单由调用者最后写（存档目录里还有别的文件）。

    错误：权重里有 NaN 或无穷大 → ValueError，写明是哪一个；坏模型不落盘
    """
    state = state_to_save(model)
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinite values; a broken model is not saved")
    write_text(directory / CONFIG_FILE, model.config.to_json() + "\n")
    save_file(state, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    if tokenizer is not None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, "
                f"but the model's vocab_size is {model.config.vocab_size}"
            )
        tokenizer.save(directory)


def save_model(model: GPT, directory: Path | str, tokenizer: Tokenizer | None = None) -> None:
    """存成模型目录：先写在旁边，完整了再改名，中途断电也不会留下半个。"""
    with atomic_directory(directory, kind=MODEL_KIND) as temporary:
        write_model_files(model, temporary, tokenizer)


def load_model(
    directory: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> GPT:
    """读回一个模型目录；dtype 为 None 时保持存下时的类型。

    错误：不是模型目录、文件损坏、多出或缺少张量、形状不符、含 NaN → ValueError
    """
    directory = Path(directory)
    verify_manifest(directory)
    config = load_config(directory)
    model = GPT.on_meta(config).to_empty(device="cpu")  # 只占地址，还没有写入任何字节
    load_weights(model, read_weights(directory / WEIGHTS_FILE), str(directory / WEIGHTS_FILE))
    return model.to(device=device, dtype=dtype or model.dtype).eval()  # 没有参数的表也跟着换类型


def load_config(directory: Path) -> GPTConfig:
    """读 config.json；不认识的键给出最接近的字段名。"""
    path = directory / CONFIG_FILE
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return GPTConfig.from_dict(values, where=str(path))


def read_weights(path: Path) -> dict[str, Tensor]:
    """读一个 safetensors 文件；格式坏了就写明文件名，不让库的错误漏到用户面前。"""
    try:
        weights: dict[str, Tensor] = load_file(path)
        return weights
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def load_weights(model: GPT, weights: Mapping[str, Tensor], where: str) -> None:
    """把张量放进（可能在 meta 设备上的）骨架，名字与形状必须一一对上。

    错误：缺少、多出、形状不符 → 一次列全；NaN 或无穷大 → 写明名字
    """
    weights = dict(weights)
    expected = model.state_dict()
    # ① 共用的矩阵只存了一个名字，先补上另一个
    if model.config.tie_embeddings:
        weights.setdefault("lm_head.weight", weights.get("token_embedding.weight", torch.empty(0)))
    # ② 名字与形状：一次说全，免得改一个错一个
    problems = [f"missing {name}" for name in expected if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in expected]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if problems:
        listed = "; ".join(problems[:8]) + (f"; … {len(problems)} in all" if problems[8:] else "")
        raise ValueError(f"{where} does not fit the model: {listed}")
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{where} is damaged: {name} holds NaN or infinite values")
    # ③ 直接换上（assign）而不复制；再把共用的矩阵重新系在一起
    model.load_state_dict(weights, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    if model.config.tie_embeddings:
        model.lm_head.weight = model.token_embedding.weight


def find_model_directory(path: Path | str) -> Path:
    """把用户给的路径变成模型目录：自己就是，或是一次训练的目录，取其中最好的一步。

    训练目录里验证损失最低的一步优先，没有验证过的取最新的一步。
    错误：两者都不是 → ValueError，写明那里有什么
    """
    path = Path(path)
    if (path / CONFIG_FILE).is_file():
        return path
    steps = sorted(step for step in path.glob(STEP_PATTERN) if (step / MANIFEST).is_file())
    if steps:
        return min(reversed(steps), key=validation_loss)
    if not path.exists():
        raise ValueError(f"model directory {path} does not exist")
    raise ValueError(
        f"{path} is neither a model directory ({CONFIG_FILE}, {WEIGHTS_FILE}) "
        f"nor a run with a whole {STEP_PATTERN} checkpoint"
    )


def validation_loss(step: Path) -> float:
    """一步存档清单里记下的验证损失；没有就当作无穷大。"""
    value = read_json(step / MANIFEST).get("val_loss")
    return float("inf") if value is None else float(value)


def demo() -> None:
    """存一个小模型，读回，再翻转一个比特看会怎样。"""
    import tempfile

    from gpt_model.config import preset

    torch.manual_seed(0)
    model = GPT(preset("gpt-micro", vocab_size=65, n_layers=1)).eval()
    ids = torch.randint(65, (1, 8))
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "my-model"
        model.save(directory)
        print("模型目录：")
        for file in sorted(directory.iterdir()):
            print(f"  {file.name:<20}{file.stat().st_size:>9,} 字节")
        again = GPT.load(directory)
        assert torch.equal(model(ids).logits, again(ids).logits)
        print("读回后 logits 逐比特相等")

        weights = directory / WEIGHTS_FILE
        damaged = bytearray(weights.read_bytes())
        damaged[-1] ^= 1
        weights.write_bytes(damaged)
        try:
            GPT.load(directory)
        except ValueError as error:
            message = str(error).replace(str(directory), "my-model")
        assert "damaged" in message
        print(f"翻转最后一个比特 → {message}")


if __name__ == "__main__":
    run_demo(demo)
