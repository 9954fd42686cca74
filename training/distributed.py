r"""一个模型，许多进程，怎样让它们走得像一个？——数据按编号分，账在每一步合一次，决定由大家共同作出。

torchrun 把同一个程序启动 W 遍，靠环境变量告诉每一份「你是第几个」（rank）：

    torchrun --nproc-per-node 2 train.py --parallel ddp

             第 s 步的 A = 4 个微批次      0    1    2    3         W = 2 个进程
    rank 0   取 0、2 ── 前向、反向 ──▶ g₀ = ∇S₀ + ∇S₂ ┐
    rank 1   取 1、3 ── 前向、反向 ──▶ g₁ = ∇S₁ + ∇S₃ ┴─ 求和 ─▶ 同一个 g ─▶ 同样的一步

$$g = \frac{\sum_{r<W}\sum_{a \equiv r} \nabla S_a}{\sum_{a<A} n_a}
  \qquad\text{与一个进程相同：加法只是换了次序}$$

A（grad_accumulation）是**全体**的微批次数，不是每个进程的。所以 W 怎样变，第 s 步看的数据都一样，
学习率不必跟着调，存档也不认进程数：两个进程存的，一个进程接得上。

三条规矩，模型的代码一行也不用知道：
    ① 人人算同样的步。要不要停、要不要跳过，都由合过的数决定；一个走、一个停，就会永远互相等下去
    ② 一个人说话。进度、日志、画图、存档只归 rank 0（is_main），免得两份写进同一个文件
    ③ 出错一起知道。一个存不下，别人也要抛同一个错，而不是在下一次通信里干等

通信走 gloo（CPU 上的几个数、几句话）与 nccl（GPU 上的梯度）。话用 JSON 编成字节再传，不用 pickle。

常见疑问：
    一个进程时要付什么代价？ 不付：size 为 1 时每个方法原样返回，连进程组都不建。
    一个进程死了别人怎么办？ torchrun 会结束全体，再按 --max-restarts 重来，见 restart.py。

论文：Li et al., *PyTorch Distributed*, arXiv:2006.15704；FSDP — Zhao et al., arXiv:2304.11277；
      大批与 W 无关的切法 — Goyal et al., arXiv:1706.02677 §3。

改哪里：换通信库 → connect；梯度怎样合 → sharding.py；一步里先后 → train_step.py。
"""

from __future__ import annotations

import atexit
import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from foundation.demonstration import run_demo

__all__ = ["ALONE", "PARALLEL_KINDS", "Processes", "connect"]

PARALLEL_KINDS = ("none", "ddp", "fsdp")  # 各是什么，见 sharding.py
# 等多久算挂住：rank 0 第一次切词元可能要很久，而进程死了由 torchrun 发现，不靠它
PATIENCE = timedelta(hours=2)
# 别的进程学舌时用的类型；不在里面的一律说成 RuntimeError
KNOWN_ERRORS: dict[str, type[Exception]] = {"ValueError": ValueError, "OSError": OSError}


class Processes:
    """一起训练的几个进程，从其中一个的眼里看。

    参数：rank 是第几个（从 0 数起），size 是一共几个
    约定：每个方法都是集体的（collective）：要么大家都调用，次序也一样，要么谁也不调用
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def is_main(self) -> bool:
        """说话、写文件的那一个。"""
        return self.rank == 0

    def share_of(self, first: int, count: int) -> range:
        """第 first 号起的 count 个微批次里，归这个进程的：first+r, first+r+W, …

        为什么隔着取而不是各取一段：题数相近的批次多半相邻，隔着取，各进程的活更平均
        """
        return range(first + self.rank, first + count, self.size)

    def check_divides(self, grad_accumulation: int) -> None:
        """每个进程要分到同样多的微批次，否则有人在等一次永远不来的通信。

        错误：A 除不尽 W → ValueError，两个数都写出来
        """
        if grad_accumulation % self.size:
            raise ValueError(
                f"grad_accumulation is {grad_accumulation}, the number of batches that all "
                f"processes together take per step; it must be a multiple of the {self.size} "
                "processes that torchrun started"
            )

    def sum(self, values: Sequence[float]) -> list[float]:
        """逐项求和，人人得到同样的结果；一个是 NaN，和就是 NaN。

        形状：n 个数 → n 个数
        类型：float64，几个整数与别人的 0 相加不丢一位
        """
        if self.size == 1:
            return list(values)
        vector = torch.tensor(values, dtype=torch.float64)  # 在 CPU 上：不打扰 GPU
        dist.all_reduce(vector)
        summed: list[float] = vector.tolist()  # 人人手里逐比特相同，可以拿来做决定
        return summed

    def any(self, flag: bool) -> bool:
        """有一个人说是，大家就都是；例如有人按了 Ctrl-C。"""
        return self.size > 1 and self.sum([float(flag)])[0] > 0 or flag

    def barrier(self) -> None:
        """都到了这里，才往下走。"""
        if self.size > 1:
            self.sum([0.0])  # 求和也要等齐所有人，不必另用一种通信

    def gather(self, value: Any) -> list[Any]:
        """每个进程给一个 JSON 写得下的值，人人得到全部，按 rank 排列。"""
        if self.size == 1:
            return [value]
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        # 长短不一的话先报长度，再补齐到最长的一起传
        lengths = [int(n) for n in self.sum([len(data) * (r == self.rank) for r in self.everyone])]
        padded = torch.zeros(max(lengths), dtype=torch.uint8)  # all_gather 要求一样长
        padded[: len(data)] = data
        # 各拿一个空位，收每个进程的那一份
        found = [torch.empty_like(padded) for _ in self.everyone]
        dist.all_gather(found, padded)
        # 补上的零不是话的一部分：按报过的长度截断
        texts = zip(found, lengths, strict=True)
        return [json.loads(bytes(piece[:n].tolist()).decode()) for piece, n in texts]

    def broadcast(self, value: Any) -> Any:
        """人人得到 rank 0 的那个值；别人给的不理会。"""
        return self.gather(value if self.is_main else None)[0]

    def on_main(self, action: Callable[[], object]) -> None:
        """rank 0 做，别人等它做完；它失败了，人人都抛错（见 together）。"""
        self.together(action if self.is_main else bool)  # bool() 什么也不做

    def together(self, action: Callable[[], object]) -> None:
        """人人都做；有一个失败，人人都抛错。

        错误：自己失败的抛自己的；没有失败的，抛第一个失败者的同一类、同一句话
              （ValueError、OSError，其余是 RuntimeError）
        约定：KeyboardInterrupt 之类不转达：那是人要立刻停下
        """
        error: Exception | None = None
        try:
            action()
        except Exception as caught:  # noqa: BLE001 - 先告诉别人，再原样抛出
            error = caught
        if self.size > 1:
            # 异常对象传不过去（那要 pickle），传它的类名与那句话
            kind = next((k for k, t in KNOWN_ERRORS.items() if isinstance(error, t)), "other")
            # 没有出错也要报一声：别人正等着
            reports = self.gather(None if error is None else [kind, str(error)])
            told = next((report for report in reports if report is not None), None)
            if told is not None and error is None:
                raise KNOWN_ERRORS.get(told[0], RuntimeError)(told[1])
        if error is not None:
            raise error

    @property
    def everyone(self) -> range:
        """全体的 rank。"""
        return range(self.size)


ALONE = Processes()  # 只有一个进程：什么都不必商量


def connect(parallel: str = "none") -> Processes:
    """按 torchrun 的环境变量接通；不在 torchrun 里，或只有一个进程，就是 ALONE。

    参数：parallel 是 none、ddp 或 fsdp；none 在多个进程里没有意义，拒绝
    约定：叫几遍都行，进程组只建一次；程序结束时拆掉
    错误：torchrun 启动了几个进程，却没有说怎样合 → ValueError
    """
    # torchrun 写的：WORLD_SIZE 是 W，RANK 是 r；没有它们就是直接运行的
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if size == 1:
        return ALONE
    if parallel == "none":
        # 各练各的，还往同一个目录里写：绝不是人想要的
        raise ValueError(
            f"torchrun started {size} processes, but parallel is 'none': each would train alone; "
            "give parallel 'ddp' (or 'fsdp')"
        )
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank())  # 建进程组之前定好：各用各的卡
        # 两个后端一起要：CPU 张量走 gloo，CUDA 张量走 nccl；Windows 与 macOS 只有 gloo
        nccl = torch.cuda.is_available() and dist.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
        dist.init_process_group(
            backend, store=meeting_place(), rank=rank, world_size=size, timeout=PATIENCE
        )
        atexit.register(disconnect)
    return Processes(rank, size)


def meeting_place() -> Any:
    """进程们互报地址的地方；torchrun 重来一遍，就换一个新的。

    为什么：torchrun 的这块黑板几遍共用，上一遍死者的地址还写在上面；谁先读到旧的，
        就去连一个没有人的地址，全体从此干等。每一遍的话前面加上是第几遍，就不会读错
    约定：几台机器时各台数的遍数可能不同，只好照旧（那时设 TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1）
    """
    # 与 init_process_group 自己做的一样，只是多套一层
    store = next(rendezvous("env://", timeout=PATIENCE))[0]
    one_machine = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if one_machine else "any"
    return dist.PrefixStore(f"attempt-{attempt}", store)  # type: ignore[attr-defined]


def local_rank() -> int:
    """这台机器上的第几个：用第几块显卡，看它。"""
    return int(os.environ.get("LOCAL_RANK", "0"))


def own_device(device: torch.device, processes: Processes) -> torch.device:
    """设备是 CUDA 而没有指明哪块时，换成归自己的那一块；别的原样返回。

    错误：苹果芯片的 GPU（mps）没有通信库 → ValueError
    """
    if processes.size > 1 and device.type == "mps":
        raise ValueError(
            f"device 'mps' cannot be shared by {processes.size} processes: it has no "
            "communication library; use one process, or device 'cpu'"
        )
    if processes.size > 1 and device.type == "cuda":
        return torch.device("cuda", local_rank())  # 写了 cuda:0 也一样：不能都挤在一块上
    return device


def disconnect() -> None:
    """拆掉进程组；没建过就什么也不做。"""
    if dist.is_initialized():
        dist.destroy_process_group()
        # 通信的线程也许还拿着最后一次的张量，要等 Python 的锁才放得下；让它一让。
        # 不让，解释器先收摊，那个线程就使整个进程以 SIGABRT 告终，torchrun 当它死了
        time.sleep(0.1)


def refuse_differences(processes: Processes, description: dict[str, Any]) -> None:
    """大家的描述要一样；差一项就人人抛同一个错，一步也不走。

    参数：description 是「栏 → 项 → 值」的嵌套字典
    错误：第一处差别 → ValueError，写明键、两个值、是哪两个进程

    为什么：学习率不同的两个进程也能「训练」——梯度照样合，权重各走各的，谁也看不出
    """
    # 人人手里都有全部的描述，所以人人自己就能看出差别，抛同样的错
    first, *others = processes.gather(description)
    for rank, other in enumerate(others, 1):
        for section in {**first, **other}:  # 两边的键都要看
            # 缺了一整栏，当作空的：里面的每一项都算差别
            ours, theirs = first.get(section, {}), other.get(section, {})
            for key in {**ours, **theirs}:
                if ours.get(key) != theirs.get(key):
                    raise ValueError(
                        f"the processes differ in {section}.{key}: {ours.get(key)!r} in rank 0, "
                        f"{theirs.get(key)!r} in rank {rank}; start all with the same options"
                    )


def demo() -> None:
    """一步的微批次怎样分、分了再合与不分相同；一个进程时什么也不付。"""
    print("① A = 8 个微批次，第 5 步是第 40 … 47 个；几个进程怎样分")
    whole = list(ALONE.share_of(40, 8))
    for size in (1, 2, 4):
        shares = [list(Processes(rank, size).share_of(40, 8)) for rank in range(size)]
        print(f"   W = {size}  " + "  ".join(map(str, shares)))
        # 不重不漏：合起来就是一个进程看的那些
        assert sorted(sum(shares, [])) == whole

    print("② 各加各的，再求和：与一个进程的梯度比")
    torch.manual_seed(0)
    pieces = torch.randn(8, 1000)  # 八个微批次的 ∇S
    alone = pieces.sum(0)
    for size in (2, 4):
        # 这里挨个扮演每个进程；真的几个进程，见 tests/parallelism/
        # 各扮一次，各得一份部分和
        totals = [pieces[list(Processes(r, size).share_of(0, 8))].sum(0) for r in range(size)]
        gap = (torch.stack(totals).sum(0) - alone).abs().max().item()
        print(f"   W = {size}  最多相差 {gap:.0e}：加法换了次序")
        assert gap < 1e-5

    print("③ 除不尽就不开始")
    try:
        Processes(0, 3).check_divides(8)
    except ValueError as error:
        print(f"   {error}")
    else:
        raise AssertionError("8 batches cannot be shared by 3 processes")

    print("④ 一个进程：原样返回，进程组也不建")
    assert ALONE.sum([1.5, 2.5]) == [1.5, 2.5]
    assert ALONE.gather({"a": 1}) == [{"a": 1}]
    assert not dist.is_initialized()
    print("   dist.is_initialized() =", dist.is_initialized())


if __name__ == "__main__":
    run_demo(demo)
