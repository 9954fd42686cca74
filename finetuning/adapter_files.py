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

底座的指纹 (fingerprint)：适配器只有配上它训练时的底座才有意义。换一个形状不同的底座，一装就错；
换一个同形状的，什么错也没有，只会说胡话，最难查。所以存下底座全部权重的 SHA-256，读时比对。
算之前先舍入到 bfloat16：同一个模型以 float32 或 bfloat16 打开，指纹相同。
指纹放在 safetensors 的元数据里，不往 adapter_config.json 里添别人不认识的键。

论文：Hu et al. 2021, LoRA, §4.2：一个底座配许多适配器，换任务只换几兆字节
改哪里：换文件名，改下面的常量；多存一个张量，改 `PARTS` 与 `save_adapter`、`fill_in`；
        配置里的选项，见 peft_config.py。
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from finetuning.adapters import adapted_layers, adapter_names, candidate_layers
from finetuning.lora import LoRAConfig, LowRankAdapter, apply_lora
from finetuning.lora_config import first_pattern, match_names
from finetuning.peft_config import config_from_peft, config_to_peft
from foundation.demonstration import run_demo
from foundation.files import MANIFEST, atomic_directory, read_json, verify_manifest, write_json

__all__ = ["base_fingerprint", "load_adapter", "save_adapter"]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_KIND = "adapter"
# 保存会整个换掉目标目录；里面若有这几个以外的文件，那就不是一个适配器目录，不敢换
OWN_FILES = {CONFIG_FILE, WEIGHTS_FILE, MANIFEST, "README.md"}

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
    错误：没有这个适配器、含 NaN、目标目录里有别的东西 → ValueError，什么也不写
    """
    directory = Path(directory)
    refuse_foreign_directory(directory)
    layers = named_adapters(model, adapter)
    # ① 转置成文件里的样子；.contiguous() 让转置真的发生，而不只是换一种看法
    tensors = {}
    for name, layer in layers.items():
        parts = {"lora_A.weight": layer.A.T, "lora_B.weight": layer.B.T}
        if layer.magnitude is not None:
            parts["lora_magnitude_vector"] = layer.magnitude
        for tail, tensor in parts.items():
            tensors[f"{PREFIX}{name}.{tail}"] = tensor.detach().cpu().contiguous()
    refuse_non_finite(tensors, "the adapter")
    # ② 先写在旁边，全部落盘、清单写好，再改名：断电也不会留下半个
    config = next(iter(layers.values())).config
    metadata = {"format": "pt", "base_fingerprint": base_fingerprint(model)}
    with atomic_directory(directory, kind=ADAPTER_KIND) as temporary:
        write_json(temporary / CONFIG_FILE, config_to_peft(config, list(layers), base_name))
        save_file(tensors, temporary / WEIGHTS_FILE, metadata=metadata)


def load_adapter(
    model: nn.Module,
    directory: Path | str,
    adapter: str = "default",
    *,
    allow_other_base: bool = False,
) -> nn.Module:
    """读一个适配器目录（我们或 PEFT 写的），装到模型上并启用，返回同一个模型。

    allow_other_base：指纹不同也装（例如底座做过量化）；形状不符则无论如何都装不上
    错误：不是适配器目录、损坏、另一个底座、我们没有的选项 → ValueError，模型保持原样
    """
    directory = Path(directory)
    # ① 文件本身是不是完好
    refuse_not_an_adapter(directory)
    if (directory / MANIFEST).is_file():
        verify_manifest(directory)
    config, narrowed = config_from_peft(read_json(directory / CONFIG_FILE), directory / CONFIG_FILE)
    weights, recorded = read_weights(directory / WEIGHTS_FILE)
    # ② 是不是给这个模型的：先看层与形状，再看指纹
    refuse_other_shapes(model, config, weights, directory)
    if not narrowed:
        refuse_missing_layers(model, config, weights, directory)
    if recorded is not None and not allow_other_base:
        refuse_other_base(model, recorded, directory)
    # ③ 装上空的，再把数填进去；层以文件里有的为准
    apply_lora(model, fitted_config(config, weights), adapter)
    fill_in(named_adapters(model, adapter), weights)
    return model


def named_adapters(model: nn.Module, adapter: str | None) -> dict[str, LowRankAdapter]:
    """层的全名 → 名为 `adapter` 的适配器；None 表示起作用的那个。

    错误：没有这个名字，或一个起作用的也没有 → ValueError
    """
    layers, names = adapted_layers(model), adapter_names(model)
    if adapter is None:
        # set_adapter 对所有层用同一个名字，所以这里至多一个
        adapter = next((layer.active for layer in layers.values() if layer.active), None)
    if adapter is None or adapter not in names:
        raise ValueError(f"no adapter {adapter!r}; there are: {', '.join(names) or 'none'}")
    found = {}
    for name, layer in layers.items():
        if adapter in layer.adapters:
            module = layer.adapters[adapter]
            assert isinstance(module, LowRankAdapter)
            found[name] = module
    return found


@torch.no_grad()
def base_fingerprint(model: nn.Module) -> str:
    """底座全部权重的 SHA-256，64 个十六进制字符。

    与装没装适配器、以 float32 还是 bfloat16 打开无关；名字、形状、任何一个权重不同，就不同。
    """
    inside = tuple(f"{name}.adapters." for name in adapted_layers(model))
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(inside):
            continue
        # 装了适配器的层，名字里多一节 base_layer，去掉就和没装时一样
        name = name.replace(".base_layer.", ".")
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        if tensor.is_floating_point():
            tensor = tensor.to(torch.bfloat16)
        # 按字节看：hashlib 直接读这块内存，不必再抄一份
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(memoryview(flat.numpy()))
    return digest.hexdigest()


def read_weights(path: Path) -> tuple[dict[str, dict[str, Tensor]], str | None]:
    """safetensors → ({层的全名: {"A", "B", "magnitude"}}, 记下的指纹或 None)。

    错误：文件坏了、含 NaN、有 LoRA 矩阵以外的张量（例如整层另存的 modules_to_save）→ ValueError
    """
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            for key in file.keys():  # noqa: SIM118 - 它不是字典，不能直接遍历
                tensors[key] = file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    refuse_non_finite(tensors, str(path))
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        tail = next((tail for tail in PARTS if key.endswith("." + tail)), None)
        if tail is None or not key.startswith(PREFIX):
            raise ValueError(f"{path}: the tensor {key} is not supported; LoRA matrices only")
        name = key[len(PREFIX) : -len(tail) - 1]
        layers.setdefault(name, {})[PARTS[tail]] = tensor
    return layers, metadata.get("base_fingerprint")


@torch.no_grad()
def fill_in(
    layers: Mapping[str, LowRankAdapter], weights: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """把文件里的数抄进刚装上的适配器；copy_ 顺带换好精度与设备。"""
    for name, layer in layers.items():
        layer.A.copy_(weights[name]["A"].T)
        layer.B.copy_(weights[name]["B"].T)
        if layer.magnitude is not None:
            layer.magnitude.copy_(weights[name]["magnitude"])


def fitted_config(config: LoRAConfig, names: Iterable[str]) -> LoRAConfig:
    """把配置收窄到文件里真有的层。

    一层也没匹配的 pattern 也去掉：PEFT 允许它们存在，而 `apply_lora` 会当作拼写错误拒绝。
    """
    names = tuple(names)

    def used(pattern: str) -> bool:
        return any(first_pattern([pattern], name) for name in names)

    ranks = {pattern: rank for pattern, rank in config.rank_pattern.items() if used(pattern)}
    alphas = {pattern: alpha for pattern, alpha in config.alpha_pattern.items() if used(pattern)}
    return replace(config, target=names, rank_pattern=ranks, alpha_pattern=alphas)


def refuse_other_shapes(
    model: nn.Module,
    config: LoRAConfig,
    weights: Mapping[str, Mapping[str, Tensor]],
    directory: Path,
) -> None:
    """文件里的每一层，模型里都要有，形状也要相合。"""
    candidates = candidate_layers(model)
    problem = f"{directory} is an adapter for another base: "
    absent = [name for name in weights if name not in candidates]
    if absent or not weights:
        raise ValueError(
            f"{problem}it changes {', '.join(absent[:3]) or 'no layer'}, "
            f"this model has {', '.join(list(candidates)[:3])}…"
        )
    for name, parts in weights.items():
        layer = candidates[name]
        linear = layer if isinstance(layer, nn.Linear) else layer.base_layer
        rank = config.rank_of(name)
        wanted: dict[str, tuple[int, ...]]
        wanted = {"A": (rank, linear.in_features), "B": (linear.out_features, rank)}
        if config.use_dora:
            wanted["magnitude"] = (linear.out_features,)
        found = {part: tuple(tensor.shape) for part, tensor in parts.items()}
        if found != wanted:
            raise ValueError(f"{problem}{name} needs {wanted}, the file has {found}")


def refuse_missing_layers(
    model: nn.Module, config: LoRAConfig, weights: Mapping[str, object], directory: Path
) -> None:
    """配置说要改的层，文件里要有；少了就是残缺的，装上去只对了一半。"""
    names = match_names(config.target, candidate_layers(model))
    missing = [name for name in names if name not in weights]
    if missing:
        raise ValueError(f"{directory} is incomplete: no tensors for {', '.join(missing[:3])}")


def refuse_other_base(model: nn.Module, recorded: str, directory: Path) -> None:
    """指纹不同：形状虽合，却不是训练时的那个底座。"""
    found = base_fingerprint(model)
    if recorded != found:
        raise ValueError(
            f"{directory} was trained on another base: its fingerprint is {recorded[:12]}…, this "
            f"model's is {found[:12]}…; load the base it was trained on, or pass "
            "allow_other_base=True if you know that it fits"
        )


def refuse_non_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """NaN 或无穷大的适配器，既不存也不读。"""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{where} is damaged: {name} holds NaN or infinite values")


def refuse_foreign_directory(directory: Path) -> None:
    """目标已存在而不是适配器目录，就不覆盖：保存会把旧目录整个换掉。"""
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file; give a directory for the adapter")
    inside = directory.iterdir() if directory.is_dir() else ()
    foreign = sorted(path.name for path in inside if path.name not in OWN_FILES)
    if foreign:
        raise ValueError(
            f"{directory} is not an adapter directory: it holds {', '.join(foreign[:3])}; "
            "saving would replace it, so give another name"
        )


def refuse_not_an_adapter(directory: Path) -> None:
    """目录里该有的两个文件都在；只有 pickle 时，说清为什么不读。"""
    if not directory.is_dir():
        raise ValueError(f"adapter directory {directory} does not exist")
    if (directory / "adapter_model.bin").is_file() and not (directory / WEIGHTS_FILE).is_file():
        raise ValueError(
            f"{directory} holds only adapter_model.bin, a pickle that can run code; "
            "ask its author for safetensors"
        )
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / name).is_file():
            raise ValueError(f"{directory} is not an adapter directory: {name} is missing")


def demo() -> None:
    """存一个适配器，看目录里有什么；读回来输出相同；装到别的底座上会被拒绝。"""

    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))

    model = apply_lora(build(0), LoRAConfig(r=4, target=("0", "2"), use_rslora=True))
    nn.init.normal_(named_adapters(model, None)["0"].B, std=0.1)  # 假装训练过
    x = torch.randn(3, 64)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "my-adapter"
        save_adapter(model, directory)
        print("一、适配器目录")
        for path in sorted(directory.iterdir()):
            print(f"  {path.name:28} {path.stat().st_size:6,} 字节")
        for name, parts in read_weights(directory / WEIGHTS_FILE)[0].items():
            print(
                f"  层 {name}：A 存成 {tuple(parts['A'].shape)}，B 存成 {tuple(parts['B'].shape)}"
            )

        print("\n二、读回同一个底座")
        again = load_adapter(build(0), directory)
        assert torch.equal(again(x), model(x))
        half = build(0).to(torch.bfloat16)
        assert base_fingerprint(half) == base_fingerprint(model)
        print(f"  输出逐位相等；指纹 {base_fingerprint(again)[:12]}…，换成 bfloat16 也一样")

        print("\n三、同形状的另一个底座")
        try:
            load_adapter(build(1), directory)
            raise AssertionError("an adapter of another base must be refused")
        except ValueError as error:
            print(f"  ValueError: {str(error).replace(folder, '…')}")


if __name__ == "__main__":
    run_demo(demo)
