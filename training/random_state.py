r"""续训之后，dropout 抽到的还是原来那些位置吗？——把随机数发生器的状态当作张量存下来。

训练里的随机不止初始化：dropout 每一步都要抽。随机数发生器（random number generator, RNG）是个
确定的机器，状态定了，以后吐出什么就全定了；所以「存下随机」就是存下那一串状态。

$$s_{t+1} = f(s_t), \qquad u_t = g(s_t)$$

    第 200 步存档 ──▶ 状态 s₂₀₀ ──存盘──▶ 第二天 ──放回──▶ u₂₀₀, u₂₀₁, …   与没停过一样
                                             │
                      忘了放回：从种子重来 ──┴─▶ u₀, u₁, …                权重从此走上另一条路

一共有几个发生器：
    torch 的 CPU 发生器        dropout、randn、multinomial（在 CPU 上）
    每块 GPU 各有一个          在 GPU 上的 dropout；换了卡数，对不上的就放不回去
    Python 的 random           训练循环自己不用，但损失函数、数据里可能用

numpy 的全局发生器不在其中：本书的数据次序由 (seed, 轮次) 直接算出，没有全局状态可言。

看一眼也会改变命运：评估、写样例时若抽了随机数，后面的 dropout 就全变了。所以凡是「只看不动」的
事，都放在 kept_random_state() 里做：出来时，随机数还在原处。「隔多少步评估一次」就不影响权重。

论文：可重现的训练 — Biderman et al., *Pythia*, arXiv:2304.01373。

改哪里：多一种发生器（例如 TPU）→ random_state 与 set_random_state 成对地加。
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from foundation.demonstration import run_demo
from foundation.devices import seed_everything
from training.distributed import Processes

__all__ = [
    "everyones_random_state",
    "kept_random_state",
    "random_state",
    "set_own_random_state",
    "set_random_state",
]


def random_state() -> dict[str, Tensor]:
    """现在的全部状态：名字 → 张量，可以直接存成 safetensors。

    类型：torch 的状态是一串字节（uint8）；Python 的是几百个整数（int64）
    约定：给出的是副本，以后再抽也不会改动它
    名字：cpu 与 python 总有；cuda.i、mps 要有那样的设备才有
    """
    state = {"cpu": torch.get_rng_state(), "python": _python_state()}
    # 没有用过 CUDA 时不要去问它：一问就要花几秒建立环境
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for index in range(torch.cuda.device_count()):  # 每块卡各抽各的
            state[f"cuda.{index}"] = torch.cuda.get_rng_state(index)
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()  # 苹果芯片的 GPU
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """放回存下的状态；存的时候有、现在没有的设备只好跳过（续训时另有警告）。

    约定：先后不要紧，各个发生器互不相干
    错误：缺了 cpu 或 python → KeyError
    """
    torch.set_rng_state(state["cpu"])
    # Python 的状态是 (版本, 六百多个整数, 高斯数的备份)；备份不存，它至多影响一个数
    numbers = tuple(state["python"].tolist())
    random.setstate((3, numbers, None))
    # GPU 的按编号一一放回；卡数变少时，多出来的状态没有去处
    for name, value in state.items():
        kind, _, index = name.partition(".")  # "cuda.0" → 种类与第几块
        if kind == "cuda" and torch.cuda.is_available() and int(index) < torch.cuda.device_count():
            torch.cuda.set_rng_state(value, int(index))
        elif kind == "mps" and torch.backends.mps.is_available():
            torch.mps.set_rng_state(value)


def everyones_random_state(processes: Processes) -> dict[str, Tensor]:
    """几个进程的状态放在一起：rank 0 的照旧，别人的名字前加 rank1/、rank2/……

    约定：集体的；一个进程时就是 random_state()
    """
    mine = random_state()
    if processes.size == 1:
        return mine
    # 都是整数，写成 JSON 不丢什么；一份约几千个数
    packed = {name: [str(t.dtype).removeprefix("torch."), t.tolist()] for name, t in mine.items()}
    return {
        name if rank == 0 else f"rank{rank}/{name}": torch.tensor(
            numbers, dtype=getattr(torch, kind)
        )
        for rank, state in enumerate(processes.gather(packed))
        for name, (kind, numbers) in state.items()
    }


def set_own_random_state(state: Mapping[str, Tensor], processes: Processes) -> None:
    """从大家的状态里放回自己的；存的时候没有这么多进程，就从 rank 0 的推出一份。

    约定：推出来的各进程不同，同样的存档推几遍都相同
    为什么不能都用 rank 0 的：两个进程的 dropout 会抹掉同样的位置
    """
    prefix = f"rank{processes.rank}/"
    own = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    if own:
        set_random_state(own)
        return
    set_random_state({name: tensor for name, tensor in state.items() if "/" not in name})
    if not processes.is_main:
        # 抽 rank + 1 个，用最后一个：人人从同一串里各取一个
        drawn = torch.randint(2**62, (processes.rank + 1,))[-1]
        seed_everything(int(drawn))


@contextmanager
def kept_random_state() -> Iterator[None]:
    """里面随便抽，出来时随机数还在原处；评估与写样例都在里面做。

    约定：里面抛出异常也会放回；可以套着用，各层还各层的
    """
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)  # finally：出了错也不能留下痕迹


def _python_state() -> Tensor:
    """random 模块的状态：版本 3 是梅森旋转（Mersenne Twister）的 624 个字加一个位置。"""
    version, numbers, _ = random.getstate()
    assert version == 3  # 换了算法就存不成这个样子，当场发现
    return torch.tensor(numbers, dtype=torch.int64)


def demo() -> None:
    """存下、乱抽一通、放回：接着吐出的数与没停过一样；只看不动的事不改变命运。"""
    state = random_state()
    print("① 状态就是张量：")
    for name, tensor in state.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        print(f"   {name:<8} {tuple(tensor.shape)} {kind}，开头 {tensor[:4].tolist()}")

    # 没停过的
    wanted = [torch.rand(1).item() for _ in range(3)]
    wanted_python = random.random()  # 两个发生器要一起对上
    # 停电：状态早已不在原处
    torch.manual_seed(999)  # 像是另一个进程
    random.seed(999)
    lost = [torch.rand(1).item() for _ in range(3)]
    # 放回
    set_random_state(state)
    found = [torch.rand(1).item() for _ in range(3)]
    print("② 接下来的三个数")
    for what, numbers in (("没停过", wanted), ("没放回", lost), ("放回了", found)):
        print(f"   {what} " + " ".join(f"{number:.6f}" for number in numbers))
    assert found == wanted != lost  # 恰好相等，不是接近
    assert random.random() == wanted_python  # Python 的也接上了

    print("③ 同一个 dropout，中间「评估」一次（抽掉一千个数）")
    state, x = random_state(), torch.ones(12)
    plain = torch.nn.functional.dropout(x, 0.5)  # ■ 留下，· 丢掉
    set_random_state(state)
    torch.rand(1000)
    disturbed = torch.nn.functional.dropout(x, 0.5)  # 状态已被评估推走
    set_random_state(state)
    with kept_random_state():
        torch.rand(1000)
    protected = torch.nn.functional.dropout(x, 0.5)  # 评估抽过的都还回去了
    for what, kept in (("不评估", plain), ("随手评估", disturbed), ("护着评估", protected)):
        print(f"   {what:　<4} " + "".join("■" if value else "·" for value in kept.tolist()))
    assert torch.equal(plain, protected)
    assert not torch.equal(plain, disturbed)


if __name__ == "__main__":
    run_demo(demo)
