r"""几个进程的梯度怎样合成一个？——两种办法：人手一份权重（DDP），或各拿一片（FSDP）。

    DDP   每个进程都有完整的 θ、m、v；反向时把梯度分成几桶，边算边 all-reduce

          rank 0  θ m v ─▶ g₀ ┐                   显存/进程   16 字节 × 参数（fp32 的 θ g m v）
          rank 1  θ m v ─▶ g₁ ┴ all-reduce ─▶ ḡ   通信/步     每进程约 2 × 4 字节 × 参数

    FSDP  θ、g、m、v 都切成 W 片，各拿一片；用到某一块时才凑齐（all-gather），用完就放

          rank 0  θ[0] ┐ all-gather ─▶ 这一块的 θ ─▶ 前向、反向 ─▶ reduce-scatter ─▶ g[0]
          rank 1  θ[1] ┘                                                        └▶ g[1]
                                                  显存/进程   16 ÷ W 字节 × 参数，外加凑齐的那一块

两者都把梯度**平均**了：

$$\bar g = \frac{1}{W}\sum_r g_r, \qquad
  \frac{\sum_r g_r}{N} = \bar g \cdot \frac{W}{N}, \qquad N = \sum_a n_a$$

我们要的是和再除以总题数，所以乘回 W、除以 N 合成一个因子（train_step.py），一趟乘法也没有多。

梯度累积时，每步只在最后一个微批次通信（synchronized）：前面的只在本地相加。忘了这一句，
结果不变，只是多通信 A/W − 1 倍——测试数着次数，不许悄悄变多。

FSDP 的参数是 DTensor：看上去是整个（shape 是整个的），手里只有一片。所以：
    求长度   各片的平方和要合起来，不然裁剪就按自己那一片裁
    存       先凑齐再写，存下的与一个进程存的一样；或各写各的一片，见 sharded_files.py
    读       人人读整个文件，切下自己的一片；存的是分片，就只读自己要的几行

论文：DDP — Li et al., arXiv:2006.15704；ZeRO — Rajbhandari et al., arXiv:1910.02054；
      FSDP — Zhao et al., arXiv:2304.11277。

改哪里：按什么切（例如几层一组）→ shard；通信用 16 位 → fully_shard 的 mp_policy；
        再加一种切法（张量并行）→ PARALLEL_KINDS 与 wrap。
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature

import torch
import torch.distributed as dist
from torch import Tensor, nn

from foundation.demonstration import run_demo
from training.distributed import ALONE, Processes

__all__ = ["is_sharded", "like", "own_piece", "synchronized", "whole", "wrap"]


def wrap(model: nn.Module, kind: str, processes: Processes, device: torch.device) -> nn.Module:
    """让模型的梯度在进程之间合起来；只有一个进程，就原样返回。

    参数：kind 是 none、ddp 或 fsdp；模型已经在 device 上
    约定：返回的与 model 是同一批参数；fsdp 就地改造 model，所以优化器要在它之后建
    约定：人人从 rank 0 的权重出发，各自的初始化差了也不要紧
    """
    if processes.size == 1 or kind == "none":
        return model
    if kind == "fsdp":
        return shard(model, processes, device)
    ddp = nn.parallel.DistributedDataParallel
    # buffer 不必每次前向都广播：我们的都是常数表。torch 2.13 给这个选项改了名
    renamed = "forward_sync_buffers" in signature(ddp.__init__).parameters
    options = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return ddp(
        model,
        device_ids=None if device.type == "cpu" else [device.index],  # CPU 上不给
        gradient_as_bucket_view=True,  # 梯度就住在通信的桶里，省一份内存
        **options,  # type: ignore[arg-type]
    )


def shard(model: nn.Module, processes: Processes, device: torch.device) -> nn.Module:
    """就地切成 FSDP2：每个块一组，其余（词向量等）归根。

    为什么按块：一组里的参数一起凑齐、一起放；整个模型一组，就等于没切；一层一组，通信太碎
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # 与 DDP 一样，从 rank 0 的权重出发；fully_shard 自己不对齐
    for tensor in [*model.parameters(), *model.buffers()]:
        dist.broadcast(tensor.detach(), 0)
    mesh = init_device_mesh(device.type, (processes.size,))
    for block in getattr(model, "blocks", ()):  # 没有 blocks 的模型，整个一组
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


@contextmanager
def synchronized(model: nn.Module, now: bool) -> Iterator[None]:
    """里面的反向要不要合梯度：now 为假时只在本地累加。

    约定：前向也要放在里面：DDP 在前向时就定下这一次反向通不通信
    """
    guard: AbstractContextManager[object] = nullcontext()
    if isinstance(model, nn.parallel.DistributedDataParallel) and not now:
        guard = model.no_sync()
    # FSDP 是一个开关，而不是上下文
    switch = getattr(model, "set_requires_gradient_sync", None)
    if switch is not None:
        switch(now)
    with guard:
        yield


def whole(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """各拿一片的凑齐成整个（搬到 CPU）；本来就是整个的原样留下。

    参数：keep 为假时只陪着通信，凑齐了就扔：只有 rank 0 要写
    约定：集体的：人人以同样的次序调用；一次只凑一个，GPU 上至多多出一个张量
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = tensor
        if is_sharded(tensor):
            value = tensor.full_tensor().cpu()  # type: ignore[attr-defined]
        if keep:
            found[name] = value
    return found


def like(full: Tensor, target: Tensor) -> Tensor:
    """照 target 的切法，从整个张量里切下自己的一片；target 没有切，就原样返回。

    约定：不通信：每个进程手里的 full 都一样（读自同一个文件）
    """
    if not is_sharded(target) or full.shape != target.shape:  # 标量（优化器的步数）不切
        return full
    if is_sharded(full):  # 已经是自己的一片
        return full
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = target.device_mesh, target.placements  # type: ignore[attr-defined]
    return distribute_tensor(full.to(target.device), mesh, placements, src_data_rank=None)


def own_piece(tensor: Tensor) -> Tensor:
    """手里的那一片；没有切，就是整个。"""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def is_sharded(tensor: Tensor) -> bool:
    """是不是 DTensor。只看有没有 full_tensor：一个进程时不必载入那一大块库。"""
    return hasattr(tensor, "full_tensor")


def demo() -> None:
    """一个进程：原样返回；平均了的梯度怎样变回「和除以总题数」；人均显存。"""
    model = nn.Linear(4, 4)
    print("① 一个进程：不包，不切，一个字节也不多")
    assert wrap(model, "ddp", ALONE, torch.device("cpu")) is model
    assert whole({"w": model.weight})["w"] is model.weight
    print("   wrap(model, 'ddp') is model")

    print("② 两个进程，题数 6 与 2：通信给的是平均，要的是和 ÷ 总题数")
    torch.manual_seed(0)
    inputs, counts = torch.randn(8, 4), [6, 2]
    # 每道题的损失是输出的平方和；各进程只对自己那几道求和
    shares = torch.split(inputs, counts)
    gradients = []
    for share in shares:
        model.zero_grad()
        model(share).square().sum().backward()
        assert model.weight.grad is not None
        gradients.append(model.weight.grad.clone())
    averaged = torch.stack(gradients).mean(0)  # DDP 与 FSDP 交给我们的
    model.zero_grad()
    (model(inputs).square().sum() / 8).backward()  # 一个进程
    assert model.weight.grad is not None
    right = averaged * (2 / 8)  # 乘回 W，除以 N
    # 常见的错法：各进程先按自己的题数平均，再让通信平均一次
    wrong = torch.stack([g / n for g, n in zip(gradients, counts, strict=True)]).mean(0)
    for name, found in (("× W ÷ N     ", right), ("平均的平均  ", wrong)):
        gap = (found - model.weight.grad).abs().max().item()
        print(f"   {name}与一个进程相差 {gap:.0e}")
    assert torch.allclose(right, model.weight.grad, atol=1e-6)
    assert not torch.allclose(wrong, model.weight.grad, atol=1e-3)

    print("③ 1.3 亿参数，fp32 的 θ、g、m、v：每个进程要多少显存")
    for size in (1, 2, 8):
        print(f"   W = {size}  DDP {16 * 0.13:.2f} GB   FSDP {16 * 0.13 / size:.2f} GB")


if __name__ == "__main__":
    run_demo(demo)
