r"""没有一个进程放得下整个模型，怎样存档？——各写各的一片；读的时候，各读各要的几行。

平常的存档由 rank 0 凑齐、写成一个文件（checkpoint.py）。FSDP 切开之后，θ、m、v 合起来是
12 字节 × 参数，凑齐要一个进程的内存放得下，还要一个一个地传过去。分片的存档（sharded_checkpoints）
什么也不传：

    rank 0  手里的几行 ──写──▶ model-shards/shard-00001-….safetensors ┐
    rank 1  手里的几行 ──写──▶ model-shards/shard-00002-….safetensors ┴─▶ rank 0 写清单、改名

$$\text{rank}\ r\ \text{写}\ \frac{12P}{W}\ \text{字节，而不是 rank 0 写}\ 12P\ \text{字节}
  \qquad P\ \text{个参数，}W\ \text{个进程}$$

用的是 torch.distributed.checkpoint（DCP），它管三件事：

    ① 谁写什么：人人都有一份的（优化器的步数、buffer）只写一遍
    ② 位置：每一片的起点写在文件头里，换了进程数，照起点取要的几行
    ③ 一个进程写不下，人人都知道

DCP 的默认写法有一个 .metadata，是 pickle，读它可以执行任何代码；所以用它的 safetensors 写法
（HuggingFaceStorageWriter），文件里只有数与 JSON。存的时候各进程用 pickle 互相说「谁写什么」，
那是同一次训练的进程之间的话，不落盘；从磁盘读进来的东西，没有一样经过 pickle。

清单仍由 rank 0 最后写，记下**每一片**的 SHA-256：少一片、坏一个比特，都不算存档。几台机器时，
存档的目录要是大家都看得见的（共享磁盘）。

分片的存档照样是模型目录：GPT.load 会拼起来，见 gpt_model/sharded_weights.py。

论文：FSDP — Zhao et al., arXiv:2304.11277 §4；ZeRO — Rajbhandari et al., arXiv:1910.02054 §3。

改哪里：换一种分片格式 → write_shards、TensorSource 与 sharded_weights.py 三处一起。
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from foundation.demonstration import run_demo
from gpt_model.model_directory import read_weights
from gpt_model.sharded_weights import POSITIONS, read_shards, shards_of, whole_shapes
from training.distributed import ALONE, Processes

__all__ = ["TensorSource", "write_shards", "write_tensors"]


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, processes: Processes, sharded: bool
) -> None:
    """写一组张量：rank 0 写成一个文件，或人人写自己的一片。

    约定：集体的；不分片时，张量已经凑齐在 rank 0 手里，别人给的不看
    错误：写不下 → 人人抛错
    """
    if sharded:
        processes.together(lambda: write_shards(path, tensors))
    else:
        processes.on_main(lambda: save_file(dict(tensors), path, metadata={"format": "pt"}))


def write_shards(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """各进程把手里的那一片写进 path 旁边的目录（model.safetensors → model-shards/）。

    约定：集体的；path 的上一级目录已经在了，人人都看得见
    错误：有一个进程写不下 → 人人抛 OSError，写明是哪个进程、什么毛病
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    folder = shards_of(path)
    folder.mkdir(exist_ok=True)  # 人人都试着建，谁先都行
    # save_distributed：各写各的；不写它，就成了 rank 0 写全部
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer)
    except CheckpointException as error:  # 它不是 Exception，别处的 except 都接不住
        rank, (cause, _) = next(iter(error.failures.items()))
        raise OSError(f"process {rank} could not write its shard of {folder}: {cause}") from None


class TensorSource:
    """磁盘上的一组张量：一个 safetensors 文件，或一个目录的分片；先看形状，再读要的。

    参数：path 是那个文件；它不在而旁边有分片，就用分片；两样都不在，就看 otherwise
    """

    def __init__(self, path: Path, otherwise: Path | None = None) -> None:
        folder = shards_of(path)
        if otherwise is not None and not path.is_file() and not folder.is_dir():
            path, folder = otherwise, shards_of(otherwise)
        self.sharded = not path.is_file() and folder.is_dir()
        # 出错时说的是真正读的那一个
        self.path = folder if self.sharded else path
        # 一个文件的：映射进内存，看形状与读数是同一次
        self.whole = None if self.sharded else read_weights(path)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """每个张量整个的形状；分片的只读文件头。

        错误：分片坏了、缺了 → ValueError，写明是哪里
        """
        if self.whole is None:
            return whole_shapes(self.path)
        return {name: tuple(tensor.shape) for name, tensor in self.whole.items()}

    def read(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """读出来，切法照 targets：切成几片的，只读自己的一片；targets 本身不动。

        形状：与 targets 相同（调用者先用 shapes 核对过）
        约定：有分片时是集体的，人人要同样的名字
        """
        if self.whole is not None:
            return self.whole  # 切下自己的一片，是 sharding.like 的事
        if not dist.is_initialized():
            return read_shards(self.path)  # 一个进程要的就是整个
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        # 读进新的张量：读到一半出错，模型还是原来的
        found = {name: torch.empty_like(target.detach()) for name, target in targets.items()}
        load(found, storage_reader=HuggingFaceStorageReader(str(self.path)))
        return found


def demo() -> None:
    """扮演两个进程写下的分片：照着读回来；只读文件头就知道整个的形状；写的字节数。"""
    import json
    import tempfile

    full = torch.arange(20.0).view(5, 4)  # 5 行：rank 0 拿 3 行，rank 1 拿 2 行
    with tempfile.TemporaryDirectory() as name:
        # 不分片的：一个文件
        write_tensors({"w": full}, Path(name, "one.safetensors"), ALONE, sharded=False)
        assert torch.equal(TensorSource(Path(name, "one.safetensors")).read({})["w"], full)
        path = Path(name, "model.safetensors")  # 没有这个文件，只有旁边的分片
        folder = shards_of(path)
        folder.mkdir()
        for rank, (start, piece) in enumerate(((0, full[:3]), (3, full[3:]))):
            # 真的几个进程、真的 DCP，见 tests/parallelism/；这里照它的格式写
            header = json.dumps({"w": {"saved_offsets": [start, 0]}})
            file = folder / f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"
            save_file({"w": piece.contiguous()}, file, metadata={POSITIONS: header})
        source = TensorSource(path)
        print(f"① {source.path.name}/ 里有 {len(list(folder.iterdir()))} 片；只看文件头：")
        print(f"   w 整个是 {source.shapes['w']}")
        assert source.shapes == {"w": (5, 4)}
        found = source.read({"w": torch.zeros(5, 4)})["w"]  # 一个进程，要整个
        print("② 一个进程读两个进程存的，与原来逐比特相同：", torch.equal(found, full))
        assert torch.equal(found, full)
        # 拿来生成时的读法，结果要一样
        assert torch.equal(read_weights(path)["w"], full)

    print("③ 70 亿参数，fp32 的 θ、m、v：存一次，每个进程写多少")
    for size in (1, 8, 64):
        print(
            f"   W = {size:2d}  凑齐了写 {12 * 7:.0f} GB（rank 0）   分片 {12 * 7 / size:5.1f} GB"
        )


if __name__ == "__main__":
    run_demo(demo)
