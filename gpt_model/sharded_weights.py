r"""几个进程各写了一片的权重，怎样拼回整个？——每一片都带着自己的位置，照着贴回去。

FSDP 训练时没有一个进程手里有整个模型。存档若要先凑齐再写，就得有一个进程放得下整个；
各写各的一片，人人只写自己那 1/W，写得也快。写的是 torch.distributed.checkpoint（DCP）：

    model-shards/
    ├── shard-00001-….safetensors    rank 0 的：每个矩阵的前几行
    └── shard-00002-….safetensors    rank 1 的：后几行

                   起点 (0, 0)                  文件头里记着每一片的起点 o，
        ┌──────────────────┐                    大小 s 就是这一片的形状
        │ rank 0 的三行    │
        ├──────────────────┤ ← 起点 (3, 0)      $$W[o_1 : o_1+s_1,\ o_2 : o_2+s_2] = \text{piece}$$
        │ rank 1 的两行    │
        └──────────────────┘                    整个的形状 = 各片 o + s 的最大值

分片是训练的事，模型这一层只管读：一个进程，把整个拼进内存。步骤是先看后读：

    ① 只读各个文件头，算出每个张量整个有多大，数一数各片够不够
    ② 要来内存，一个文件一个文件地读，读一片贴一片

DCP 平常还写一个 .metadata，那是 pickle；这里用的是它的 safetensors 写法，位置写在文件头的 JSON 里，
没有 pickle。所以拼回去既用不着 DCP，也用不着几个进程：就是下面这几十行。

读一个存档来生成、评测，走这里（整个读进内存）；接着训练走 training/sharded_files.py：
那里每个进程只读自己要的几行。

常见疑问：
    各片会不会重叠？ DCP 不会写重叠的；重叠而又正好数目相符的，是有人改过，清单的 SHA-256 会发现。
    要变成一个文件？ GPT.load(存档).save(新目录, 分词器)：载入时拼好了，再存就是一个文件。

论文：DCP 的「存的与读的不必是同样多的进程」— Zhao et al., *PyTorch FSDP*, arXiv:2304.11277 §4。

改哪里：换一种分片的格式 → read_shards；哪里会用到它 → model_directory.py 的 weights_of。
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from foundation.demonstration import run_demo

__all__ = ["POSITIONS", "read_shards", "shards_of", "whole_shapes"]

POSITIONS = "DCP_SHARDING_INFO"  # 文件头里的键，DCP 定的：名字 → 这一片的起点


def shards_of(path: Path) -> Path:
    """model.safetensors 若是分片写的，在旁边的哪个目录里：model-shards/。"""
    return path.with_name(f"{path.stem}-shards")


def read_shards(folder: Path) -> dict[str, Tensor]:
    """读一个目录里的全部分片，拼成整个：名字 → 张量。

    形状：各片 (s₁, …)，起点 (o₁, …) → 整个 (max(o₁ + s₁), …)
    错误：没有分片、文件坏了、中间缺了一片 → ValueError，写明是哪里
    约定：缺的若是最后一片，拼出来的只是小一些；形状对不对，由用的人与模型比
    """
    shapes = whole_shapes(folder)  # 只读文件头；数够不够，也在这里查
    whole: dict[str, Tensor] = {}
    for path in shard_files(folder):
        starts = places(path)
        # 一次只开一个文件，读一片贴一片：内存里不会有两份
        with safe_open(path, framework="pt") as file:
            for name, (start, _) in starts.items():
                part = file.get_tensor(name)
                # 头一次见到这个名字：要一块整个的内存
                if name not in whole:
                    whole[name] = torch.empty(shapes[name], dtype=part.dtype)
                # 照起点贴回去；空的一片（行数比进程少）贴了也无妨
                spot = tuple(slice(o, o + s) for o, s in zip(start, part.shape, strict=True))
                whole[name][spot] = part
    return whole


def whole_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """每个张量整个的形状；只读文件头，不读数。

    错误：同 read_shards
    """
    shapes: dict[str, tuple[int, ...]] = {}
    # 每个名字一共找到几个数：n_found = Σ 各片的 s₁·s₂·…
    n_found: dict[str, int] = {}
    for path in shard_files(folder):
        for name, (start, shape) in places(path).items():
            # ① 每一维上，最远的那一片到哪里，整个就有多大；标量没有维，就是 ()
            end = tuple(o + s for o, s in zip(start, shape, strict=True))
            shapes[name] = tuple(map(max, end, shapes.get(name, end)))
            n_found[name] = n_found.get(name, 0) + math.prod(shape)
    # ② 各片不重叠，所以个数加起来要正好；少了一片，就会有没人写过的地方
    #    数过了才去要内存：坏文件里的起点可以大得离谱
    for name, size in shapes.items():
        if n_found[name] != math.prod(size):
            raise ValueError(
                f"{folder} is incomplete: the shards hold {n_found[name]} of the "
                f"{math.prod(size)} numbers of {name}"
            )
    return shapes


def shard_files(folder: Path) -> list[Path]:
    """目录里的分片，按名字排；一个也没有 → ValueError。"""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no shard (*.safetensors)")
    return files


def places(path: Path) -> dict[str, tuple[list[int], list[int]]]:
    """一个文件里的各片：名字 → (起点, 大小)；只读文件头。

    错误：不是 safetensors、没有记着位置、位置不像话 → ValueError，写明文件
    """
    try:
        with safe_open(path, framework="pt") as file:
            # 文件头是一小段 JSON，读它不必碰后面的数
            positions = json.loads(file.metadata()[POSITIONS])
            found = {}
            for name in file.keys():  # noqa: SIM118 - 不是字典
                start, shape = positions[name]["saved_offsets"], file.get_slice(name).get_shape()
                # 负的起点在切片里是「从末尾数」，会贴到别处去
                if len(start) != len(shape) or any(type(o) is not int or o < 0 for o in start):
                    raise ValueError(f"{name} of shape {shape} begins at {start}")
                found[name] = (start, shape)
            return found
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or not a shard: {error}") from None


def demo() -> None:
    """把一个矩阵按行、按列切开存成两个文件，再拼回来；少一个文件会怎样。"""
    import tempfile

    from safetensors.torch import save_file

    def write(path: Path, start: list[int], part: Tensor) -> None:
        """像 DCP 那样写一片：位置在文件头里。"""
        positions = json.dumps({"w": {"saved_offsets": start}})
        save_file({"w": part.contiguous()}, path, metadata={POSITIONS: positions})

    # FSDP 按第 0 维切；格式本身哪一维都行
    matrix = torch.arange(15.0).view(5, 3)  # 5 行：两个进程分，一个三行、一个两行
    with tempfile.TemporaryDirectory() as name:
        for axis, cut in ((0, 3), (1, 1)):
            folder = Path(name, f"axis-{axis}")
            folder.mkdir()
            # 两个进程各拿一片
            first, second = matrix.split([cut, matrix.shape[axis] - cut], dim=axis)
            write(folder / "shard-1.safetensors", [0, 0], first)
            start = [cut if axis == dim else 0 for dim in (0, 1)]  # 只在切开的那一维上错开
            write(folder / "shard-2.safetensors", start, second)
            # 读的人不必知道当初是怎样切的
            again = read_shards(folder)["w"]
            print(
                f"沿第 {axis} 维切：{tuple(first.shape)} 与 {tuple(second.shape)}，"
                f"起点 [0, 0] 与 {start} → 拼回 {tuple(again.shape)}"
            )
            assert torch.equal(again, matrix)  # 逐比特

        # 少的是头一片，后一片的起点还记着，所以知道前面应当有数
        print("少了一个文件：")
        (folder / "shard-1.safetensors").unlink()
        try:
            read_shards(folder)
        except ValueError as error:
            print(f"  {str(error).replace(name, '…')}")
        else:
            raise AssertionError("a missing shard must be noticed")
        # 一个也不剩：说清目录是空的，而不是给一个空的模型
        (folder / "shard-2.safetensors").unlink()
        try:
            read_shards(folder)
        except ValueError as error:
            print(f"  {str(error).replace(name, '…')}")
        else:
            raise AssertionError("an empty folder must be noticed")


if __name__ == "__main__":
    run_demo(demo)
