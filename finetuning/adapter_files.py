r"""适配器怎样存成文件，又怎样认出「这不是给这个模型的」？

适配器目录用 PEFT（Hugging Face 的微调库）的布局，两边互相能读：

    my-adapter/
    ├── adapter_config.json        r、α、哪些层、哪种变体，见 peft_config.py
    ├── adapter_model.safetensors  每层两条矩阵，DoRA 再加一个向量
    └── manifest.json              大小与 SHA-256；PEFT 不看它，它写的目录里也没有

文件里的名字与形状，和 lora.py 里的对应（照 nn.Linear 的习惯，转置着存）：

    文件里，都以 base_model.model.<层的全名> 开头          内存里
    ─────────────────────────────────────────────────────  ──────────────────────────────
    .lora_A.weight             (r, d_in)                    A          (d_in, r)
    .lora_B.weight             (d_out, r)                   B          (r, d_out)
    .lora_magnitude_vector     (d_out,)                     magnitude  (d_out,)

读一个目录要过三关，过一关才做下一件事，所以出错时模型一定还是原样：
    ① 文件完好吗        两个文件都在，清单里的 SHA-256 相符，没有 NaN，配置我们都懂
    ② 是给这个模型的吗  层、形状、底座的指纹，见 base_check.py
    ③ 装上              空的适配器装好，再把数抄进去

底座的指纹放在 safetensors 的元数据里，不往 adapter_config.json 里添别人不认识的键；
PEFT 写的目录没有指纹，就只看层与形状。

底座若是整数的 (QLoRA)，元数据里还说它怎样量化过：读的人要先照样量化底座（或载入那个量化过的），
再装适配器；不然学来补偿舍入误差的那一份，补在了没有误差的权重上。

为什么不把整个模型存一份：底座几个吉字节，适配器几兆字节。一个底座配一百个任务，
就是一个底座加一百个小目录，拷给别人也只拷那几兆。

几个函数各管一头，彼此不知道对方怎么做：
    save_adapter   模型 → 目录；先写在旁边，写完整了再改名
    read_adapter   目录 → 配置与张量：第一关；不碰模型，翻译成别家的名字也从这里读
    load_adapter   目录 → 模型；三关都过了才动模型
    AdapterHook    训练途中 → 检查点目录；借用检查点自己的「写完整了再改名」
    read_weights   只看文件，不碰模型；想检查一个来历不明的适配器，用它

论文：Hu et al. 2021, LoRA, §4.2：一个底座配许多适配器，换任务只换几兆字节
改哪里：换文件名，改下面的常量；多存一个张量，改 `PARTS` 与 `save_adapter`、`fill_in`；
        配置里的选项，见 peft_config.py。
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from finetuning.base_check import (
    base_fingerprint,
    made_on_the_fly,
    named_adapters,
    quantization_in,
    quantization_metadata,
    refuse_missing_layers,
    refuse_other_base,
    refuse_other_quantization,
    refuse_other_shapes,
)
from finetuning.lora import LoRAConfig, LowRankAdapter, apply_lora
from finetuning.peft_config import config_from_peft, config_to_peft, fitted_config
from foundation.demonstration import run_demo
from foundation.files import (
    MANIFEST,
    atomic_directory,
    read_json,
    refuse_foreign_directory,
    sort_metadata,
    verify_manifest,
    write_json,
)
from training.hook_base import Hook

if TYPE_CHECKING:
    from training.trainer import Trainer

__all__ = [
    "OWN_FILES",
    "AdapterHook",
    "base_fingerprint",
    "recorded_quantization",
    "load_adapter",
    "read_adapter",
    "save_adapter",
    "write_adapter_files",
]

# 这两个名字是 PEFT 定的，改了它就找不到
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_KIND = "adapter"
# 元数据里的键：底座的指纹；底座怎样量化过，见 base_check.py
FINGERPRINT = "base_fingerprint"
# 保存会整个换掉目标目录；里面若有这几个以外的文件，那就不是一个适配器目录，不敢换
# README.md 是 PEFT 顺手写的说明
OWN_FILES = {CONFIG_FILE, WEIGHTS_FILE, MANIFEST, "README.md"}

# PEFT 把模型包了两层，名字前面就多了两节
PREFIX = "base_model.model."
# 文件里的尾巴 → 内存里的名字
PARTS = {"lora_A.weight": "A", "lora_B.weight": "B", "lora_magnitude_vector": "magnitude"}


def save_adapter(
    model: nn.Module,
    directory: Path | str,
    adapter: str | None = None,
    *,
    base_name: str | None = None,
) -> None:
    """把一个适配器存成 PEFT 能读的目录；不指名就存起作用的那个。

    base_name：底座叫什么，供人和 PEFT 查阅；我们自己认的是指纹
    合并着也能存：merge_in_place 不动 A、B，也不动底座
    错误：没有这个适配器、含 NaN、目标目录里有别的东西 → ValueError，什么也不写
    """
    directory = Path(directory)
    refuse_foreign_directory(directory, OWN_FILES, "an adapter")
    # 例：runs/my-adapter 上次存过，这次换成新的。
    # 目录里若有别的东西，上面已经拒绝；到这里只会换掉旧的适配器。
    # 先写在旁边，全部落盘、清单写好，再改名：断电也不会留下半个
    with atomic_directory(directory, kind=ADAPTER_KIND) as temporary:
        write_adapter_files(model, temporary, adapter, base_name=base_name)


def write_adapter_files(
    model: nn.Module,
    directory: Path,
    adapter: str | None = None,
    *,
    base_name: str | None = None,
) -> None:
    """把适配器的两个文件写进一个已有的目录；清单由调用者写。

    与 `save_adapter` 分开，是为了训练的存档也能用：那里的目录与清单归检查点管
    错误：没有这个适配器、含 NaN → ValueError
    """
    # 只有装了这个适配器的层；别的层不必写，读回来就是底座
    layers = named_adapters(model, adapter)
    # ① 转置成文件里的样子；.contiguous() 让转置真的发生，而不只是换一种看法。
    # .cpu() 让 GPU 上训练的也能存；.detach() 去掉梯度的账
    tensors = {}
    for name, layer in layers.items():
        # 逐层：A、B 必有，长度只有 DoRA 才有
        parts = {"lora_A.weight": layer.A.T, "lora_B.weight": layer.B.T}
        if layer.magnitude is not None:
            parts["lora_magnitude_vector"] = layer.magnitude
        for tail, tensor in parts.items():
            # 例：base_model.model.blocks.0.attention.q_proj.lora_A.weight
            tensors[f"{PREFIX}{name}.{tail}"] = tensor.detach().cpu().contiguous()
    # ② 坏的不落盘；每层的适配器都记着同一份配置，取哪一个都行
    refuse_non_finite(tensors, "the adapter")
    # 配置里写的是真有适配器的那些层，而不是当初的通配
    config = next(iter(layers.values())).config
    write_json(directory / CONFIG_FILE, config_to_peft(config, list(layers), base_name))
    # 元数据只能是字符串 → 字符串；PEFT 与别的工具不认识的键会跳过
    metadata = {"format": "pt", FINGERPRINT: base_fingerprint(model)}
    # QLoRA：底座是怎样量化的也记下，读的人才知道要先做同样的事
    metadata |= quantization_metadata(model)
    save_file(tensors, directory / WEIGHTS_FILE, metadata=metadata)
    sort_metadata(directory / WEIGHTS_FILE)  # 库写元数据的次序是随机的


class AdapterHook(Hook):
    """交给 Trainer：每次存档都把适配器一并写进去，存档目录本身就是一个适配器目录。

    于是训练途中的任何一步，都可以直接 load_adapter(runs/…/step-000200)，不必等到练完。
    底座不在存档里：冻结的参数没有变，检查点只存要训练的那一点。

    用法：Trainer(model, batches, …, run_dir=…, hooks=[AdapterHook()])
    """

    def __init__(self, base_name: str | None = None) -> None:
        # 底座叫什么，同 save_adapter
        self.base_name = base_name

    def write_files(self, trainer: Trainer, directory: Path) -> None:
        """存档快写完了：添上适配器的两个文件，清单会一并记下。"""
        # 起作用的那个适配器，就是正在训练的那个
        write_adapter_files(trainer.model, directory, base_name=self.base_name)


def load_adapter(
    model: nn.Module,
    directory: Path | str,
    adapter: str = "default",
    *,
    allow_other_base: bool = False,
) -> nn.Module:
    """读一个适配器目录（我们或 PEFT 写的），装到模型上并启用，返回同一个模型。

    adapter：在这个模型上叫什么；目录里不存名字，同一个目录可以用不同的名字装两次
    allow_other_base：指纹不同也装（例如底座做过量化）；形状不符则无论如何都装不上
    错误：不是适配器目录、损坏、另一个底座、我们没有的选项 → ValueError，模型保持原样
    """
    directory = Path(directory)
    # 三关都只看不动，动手的是最后一步
    # ① 文件本身是不是完好
    config, narrowed, weights, metadata = read_adapter(directory)
    recorded = metadata.get(FINGERPRINT)
    # ② 是不是给这个模型的：先看层与形状，再看指纹；都只看不动
    refuse_other_shapes(model, config, weights, directory)
    if not narrowed:
        refuse_missing_layers(model, config, weights, directory)
    if recorded is not None and not allow_other_base:
        refuse_other_quantization(model, quantization_in(metadata), directory)
        refuse_other_base(model, recorded, directory)
    # ③ 装上空的，再把数填进去；层以文件里有的为准。装好就起作用，也可以接着训练
    apply_lora(model, fitted_config(config, weights), adapter)
    fill_in(named_adapters(model, adapter), weights)
    return model


def read_adapter(
    directory: Path, ignored: Collection[str] = ()
) -> tuple[LoRAConfig, bool, dict[str, dict[str, Tensor]], dict[str, str]]:
    """第一关：文件本身是不是完好。返回配置、target 是否收窄过、各层的张量、元数据。

    ignored：配置里这几个键不看，由调用者负责（GPT-2 的转置，见 huggingface_adapter.py）
    错误：缺文件、与清单不符、配置里有我们没有的选项、张量不对 → ValueError
    """
    refuse_not_an_adapter(directory)
    # 清单是我们加的，PEFT 写的目录没有，就靠下面逐项检查
    if (directory / MANIFEST).is_file():
        verify_manifest(directory)
    path = directory / CONFIG_FILE
    # 不是字典的，由 config_from_peft 去说
    values = read_json(path)
    if isinstance(values, dict):
        values = {key: value for key, value in values.items() if key not in ignored}
    # 配置与权重各自说得通，还要彼此、与模型都对得上：那是调用者的事
    config, narrowed = config_from_peft(values, path)
    return config, narrowed, *read_weights(directory / WEIGHTS_FILE)


def recorded_quantization(directory: Path | str) -> int | None:
    """这个适配器要的底座是现做的四比特吗：组有多大；别的底座、PEFT 写的目录是 None。

    QLoRA 的 ΔW 是在舍入过的权重旁边学的，补偿着那些误差；配上没舍入的，反而多补了一次
    只看文件的元数据；命令行据此先量化底座，再装适配器
    """
    directory = Path(directory)
    # 先看目录对不对，报错才说得到点子上
    refuse_not_an_adapter(directory)
    return made_on_the_fly(quantization_in(read_weights(directory / WEIGHTS_FILE)[1]))


def read_weights(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """safetensors → ({层的全名: {"A", "B", "magnitude"}}, 元数据：指纹等，可以是空的)。

    例：base_model.model.blocks.0.attention.q_proj.lora_A.weight
        └── PREFIX ──┘ └────────── 层的全名 ──────────┘ └─ 尾巴 ─┘
    safetensors 的文件头是 JSON，其后是一块连续的数，没有可执行的东西，读它不会运行任何代码
    错误：文件坏了、含 NaN、有 LoRA 矩阵以外的张量（例如整层另存的 modules_to_save）→ ValueError
    """
    # 逐个取出来，文件一关就与它无关了：Windows 上开着的文件换不掉
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            for key in file.keys():  # noqa: SIM118 - 它不是字典，不能直接遍历
                tensors[key] = file.get_tensor(key)
    # 文件头坏了、截短了，库抛的是它自己的错；换成一句写明文件的话
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    refuse_non_finite(tensors, str(path))
    # 按层归拢；名字不合格式的一律不认
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        # 一个键恰有一种尾巴；没有的，就是 LoRA 矩阵以外的东西
        tail = next((tail for tail in PARTS if key.endswith("." + tail)), None)
        if tail is None or not key.startswith(PREFIX):
            raise ValueError(f"{path}: the tensor {key} is not supported; LoRA matrices only")
        # 掐头去尾，剩下的就是层的全名
        name = key[len(PREFIX) : -len(tail) - 1]
        layers.setdefault(name, {})[PARTS[tail]] = tensor
    return layers, dict(metadata)


@torch.no_grad()
def fill_in(
    layers: Mapping[str, LowRankAdapter], weights: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """把文件里的数抄进刚装上的适配器。

    形状：文件里的 A (r, d_in) 转回 (d_in, r)，B (d_out, r) 转回 (r, d_out)
    类型：copy_ 顺带换好精度与设备：bfloat16 的文件读进来也是 float32 的参数
    """
    # 名字在前面都核对过了，这里不会找不到
    for name, layer in layers.items():
        layer.A.copy_(weights[name]["A"].T)
        layer.B.copy_(weights[name]["B"].T)
        if layer.magnitude is not None:
            layer.magnitude.copy_(weights[name]["magnitude"])


def refuse_non_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """NaN 或无穷大的适配器，既不存也不读。

    存下了，下次读进来的模型句句是 NaN，而那时已经忘了是哪一步坏的
    """
    # 报第一个就够：一处坏了，整个都不能用
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{where} is damaged: {name} holds NaN or infinite values")


def refuse_not_an_adapter(directory: Path) -> None:
    """目录里该有的两个文件都在；只有 pickle 时，说清为什么不读。

    早期的 PEFT 存的是 adapter_model.bin，一个 pickle：打开它，就是运行写它的人放进去的代码
    """
    # 依次问：目录在吗、只有 pickle 吗、缺哪个文件
    if not directory.is_dir():
        raise ValueError(f"adapter directory {directory} does not exist")
    if (directory / "adapter_model.bin").is_file() and not (directory / WEIGHTS_FILE).is_file():
        raise ValueError(
            f"{directory} holds only adapter_model.bin, a pickle that can run code; "
            "ask its author for safetensors"
        )
    # 两个文件缺一不可：只有配置的目录，多半是下载到一半
    # 报第一个缺的：目录多半整个拿错了
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / name).is_file():
            raise ValueError(f"{directory} is not an adapter directory: {name} is missing")


def demo() -> None:
    """存一个适配器，看目录里有什么；读回来输出相同；装到别的底座上会被拒绝。

    两层的矩阵宽窄不同，注意文件里的形状是转置过的
    """

    # 同一个种子造出同一个底座
    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))

    # B 从零起步，存一个全零的没意思，给它几个数
    model = apply_lora(build(0), LoRAConfig(r=4, target=("0", "2"), use_rslora=True))
    nn.init.normal_(named_adapters(model, None)["0"].B, std=0.1)  # 假装训练过
    x = torch.randn(3, 64)
    # 存进一个用完即删的文件夹
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "my-adapter"
        # 写好之前，这个目录并不存在
        save_adapter(model, directory)
        print("一、适配器目录")
        # 三个文件：两个给 PEFT，一个给我们自己核对
        for path in sorted(directory.iterdir()):
            print(f"  {path.name:28} {path.stat().st_size:6,} 字节")
        for name, parts in read_weights(directory / WEIGHTS_FILE)[0].items():
            print(
                f"  层 {name}：A 存成 {tuple(parts['A'].shape)}，B 存成 {tuple(parts['B'].shape)}"
            )

        # 「读回」装在另一个对象上：权重相同，就是同一个底座
        print("\n二、读回同一个底座")
        again = load_adapter(build(0), directory)
        # 存取不经过任何舍入，所以是逐位相等，不是近似
        assert torch.equal(again(x), model(x))
        # 半精度打开的还是它，不会被拒绝
        half = build(0).to(torch.bfloat16)
        assert base_fingerprint(half) == base_fingerprint(model)
        print(f"  输出逐位相等；指纹 {base_fingerprint(again)[:12]}…，换成 bfloat16 也一样")

        # 形状全都对得上，只有指纹知道不是它
        print("\n三、同形状的另一个底座")
        try:
            load_adapter(build(1), directory)
            raise AssertionError("an adapter of another base must be refused")
        except ValueError as error:
            # 临时文件夹的名字每次不同，换成省略号
            print(f"  ValueError: {str(error).replace(folder, '…')}")


if __name__ == "__main__":
    run_demo(demo)
