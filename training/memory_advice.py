r"""还没开始，怎么知道内存装不装得下？装不下改什么？——按公式估一遍，再替人试几种改法。

内存不够（out of memory）往往在第一次反向的最深处才发生，错误只说「要不到 2.1 GB」，不说怎么办。
而用量是算得出来的（gpt_model/memory.py）：N 是参数个数，B 批，T 长度，

$$M \approx \underbrace{12N}_{\text{权重、}m\text{、}v}
  + \max\big(\underbrace{B\,T\,a}_{\text{激活}},\ \underbrace{4N}_{\text{梯度}}\big)$$

    先看哪一块大                 就改什么
    激活（随 B·T 增长）          减批次，用梯度累积补回来：结果完全相同，只是多几趟
                                 重算（checkpointing）：结果逐比特相同，只是多算几成
                                 用 16 位（bf16）：激活少近一半，主路仍是 32 位
                                 减长度：看到的上下文也短了，放在后面
    权重、优化器（只看 N）       几块 GPU 分着拿（FSDP），或再添几块
                                 换小模型，或用 LoRA：只有适配器有梯度与状态

    练法 ─▶ memory_needed ─▶ 八成以内 ─▶ 不说话
                              │
                              ├ 八成以上，装得下 ─▶ 提醒一句 + 改法
                              └ 装不下 ──────────▶ 拒绝（ValueError）+ 改法

每种改法都真的代回公式再算一遍，装得下的才说出来，并写明要多少；一种不够，就几种一起改：

    一样样加   批 1 ─▶ 重算 ─▶ 分片 ─▶ bf16 ─▶ 添卡 ─▶ 缩短     第一个装得下的停
    一样样退   不重算？原来的精度？批大一点？                   退了仍装得下的，就不改

估得准吗？张量的峰值与实测相差一成五以内（benchmarks/plan_accuracy.py）；分配器的碎片没有算，
所以超过可用的八成就提醒，超过可用的才拒绝。

论文：激活的大小 — Korthikanti et al., arXiv:2205.05198；优化器的份额 — ZeRO, arXiv:1910.02054。

改哪里：公式 → gpt_model/memory.py；先建议什么、后建议什么 → _single_changes；
        提醒与拒绝的分界 → WARN_SHARE；还没租卡时连时间、花费一起估 → run_plan.py。
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch

from foundation.checks import check_choice
from foundation.demonstration import run_demo
from foundation.devices import available_memory_bytes
from gpt_model.config import GPTConfig, preset
from gpt_model.memory import MemoryEstimate, training_memory
from gpt_model.sizes import count_parameters, human
from transformer_basics.recomputation import KINDS

__all__ = ["Plan", "check_memory", "estimate_memory", "memory_needed", "suggest_changes"]

WARN_SHARE = 0.8  # 用到可用内存的几成就提醒
SHORTEST = 64  # 不建议比这更短的序列
MOST_PROCESSES = 1024  # 不建议比这更多的 GPU


@dataclass(frozen=True)
class Plan:
    """一种练法：与内存有关的几样。B × A 是每步的样本数。

    约定：冻结的；试别的练法一律用 replace 另建一份，原来的留着作比较
    """

    batch_size: int  # B，一次前向的行数；激活与它成正比
    grad_accumulation: int  # A，全体合起来几个微批次合成一步；不占内存，只占时间
    seq_len: int  # T，每行几个词元
    precision: str  # fp32、bf16、fp16
    checkpointing: str = "none"  # none、selective、block：见 recomputation.py
    parallel: str = "none"  # 几个进程怎样合：none、ddp、fsdp，见 sharding.py
    processes: int = 1  # W，几块 GPU；内存说的都是一块上的
    optimizer: str = "adamw"  # adamw 每个参数留两个数，muon 的矩阵只留一个

    def resized(self, batch_size: int, processes: int) -> Plan:
        """换批次与 GPU 数，累积跟着补：每步的样本数不少于现在，又分得匀。

        公式：A′ = W′·⌈B·A / (B′·W′)⌉；A 是全体的，见 distributed.py，所以要是 W 的倍数
        """
        share = -(-self.batch_size * self.grad_accumulation // (batch_size * processes))
        # 每块 GPU 分到 share 个；除不尽时向上取，宁可多看几行
        changed = replace(self, batch_size=batch_size, processes=processes)
        return replace(changed, grad_accumulation=share * processes)

    def changes(self, other: Plan) -> dict[str, int | str]:
        """与另一种练法比，改了哪些：字段名 → 新的值。

        公式：{f: self.f | self.f ≠ other.f}，次序是上面各字段的次序
        约定：批次与累积总是一起说：只减批次不加累积，练出来的就不是同一个模型
        """
        names = [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]
        if "batch_size" in names and "grad_accumulation" not in names:
            names.insert(1, "grad_accumulation")
        return {name: getattr(self, name) for name in names}

    def changes_from(self, other: Plan) -> str:
        """改了哪些，写成人看得懂的一句。

        约定：名字与 `fromzero train` 的选项相同，照着加上 -- 就能用
        """
        # 长度在那里叫 block_size，在库里叫 seq_len：都不如说白了
        spoken = {"seq_len": "sequence length", "checkpointing": "gradient_checkpointing"}
        changed = self.changes(other)
        text = " and ".join(f"{spoken.get(name, name)} {v}" for name, v in changed.items())
        # 累积是批次的补偿，不是另一种改法
        return text.replace(" and grad_accumulation", " with grad_accumulation")


def estimate_memory(
    config: GPTConfig, plan: Plan, *, n_trainable: int | None = None, device: str = "cuda"
) -> MemoryEstimate:
    """按这种练法，一块 GPU 上最挤的那一刻，各部分要多少字节：把练法的各项交给公式。

    参数：n_trainable 少于全部参数时（LoRA），冻结的没有梯度与优化器状态
    约定：累积几次不要紧，要紧的是有没有：有，梯度就从上一个微批次一直留着
    """
    # 公式里每一样是怎么来的，见 gpt_model：这里只管把名字对上
    return training_memory(
        config,
        plan.batch_size,
        plan.seq_len,
        precision=plan.precision,
        checkpointing=plan.checkpointing,
        parallel=plan.parallel,
        processes=plan.processes,
        optimizer=plan.optimizer,
        grad_accumulation=plan.grad_accumulation,
        n_trainable=n_trainable,
        device=device,
    )


def memory_needed(
    config: GPTConfig, plan: Plan, *, n_trainable: int | None = None, device: str = "cuda"
) -> int:
    """按这种练法，一步的内存峰值（字节）；参数同 estimate_memory。

    比较两种练法时只要这一个数；要说清大头在哪里，才用各部分
    """
    return estimate_memory(config, plan, n_trainable=n_trainable, device=device).total


def _single_changes(plan: Plan, more_processes: bool) -> Iterator[Plan]:
    """只改一样的各种练法，结果不变的在前。

    约定：同一类里由改得最少的到改得最多的；调用者取第一个装得下的，就是代价最小的
    """
    # ① 批减半、累积加倍，更新完全相同
    #    连着减半而不是一次减到 1：批太小，设备就吃不饱
    batch = plan.batch_size // 2
    while batch >= 1:
        yield plan.resized(batch, plan.processes)
        batch //= 2
    # ② 重算：逐比特相同；只重算便宜的在前
    for kind in KINDS[KINDS.index(plan.checkpointing) + 1 :]:
        yield replace(plan, checkpointing=kind)
    # ③ 分着拿，或再添几块分着拿；Muon 要整个矩阵，不能分
    #    只添不分没有用：DDP 人手一份，一块上的一个字节也不会少
    sharded = replace(plan, parallel="fsdp")
    if plan.optimizer != "muon":
        if plan.processes > 1 and plan.parallel != "fsdp":
            yield sharded
        while more_processes and sharded.processes * 2 <= MOST_PROCESSES:
            sharded = sharded.resized(plan.batch_size, sharded.processes * 2)
            yield sharded
    # ④ 16 位：激活少近一半，权重多一份 16 位的拷贝；数变了一点，结果也就不再逐比特相同
    #    批已经很小时，激活本来就不多，反而可能更占：所以也要代回去算
    if plan.precision == "fp32":
        yield replace(plan, precision="bf16")
    # ⑤ 短一些：看到的上下文也少了，放在最后
    shorter = plan
    while shorter.seq_len // 2 >= SHORTEST:
        shorter = replace(shorter, seq_len=shorter.seq_len // 2)
        yield shorter


def _several_changes(plan: Plan, more_processes: bool) -> Iterator[Plan]:
    """一样一样地加上去，先动几乎不影响结果的，把最伤的（缩短）留到最后。

    次序：批减到 1 → 整块重算 → 分着拿 → 16 位 → 再添几块 → 缩短
    """
    # 激活的一头先减到底，再减权重的一头；每加一样就试一次
    now = plan.resized(1, plan.processes)
    yield now  # 单改它已经试过，装不下；留着是因为后面的都从它加起
    now = replace(now, checkpointing=KINDS[-1])
    yield now  # 激活只剩每块的输入，还装不下，大头就是权重与优化器
    if plan.processes > 1 and plan.optimizer != "muon":
        now = replace(now, parallel="fsdp")
        yield now
    # 原来就是 16 位的，不动
    now = replace(now, precision="bf16" if plan.precision == "fp32" else plan.precision)
    yield now
    if more_processes and plan.optimizer != "muon":
        # 每加倍一次，权重、梯度、优化器状态各减半
        while now.processes * 2 <= MOST_PROCESSES:
            now = replace(now.resized(1, now.processes * 2), parallel="fsdp")
            yield now
    while now.seq_len // 2 >= SHORTEST:  # 再短就学不到什么了
        now = replace(now, seq_len=now.seq_len // 2)
        yield now


def _taken_back(plan: Plan, original: Plan) -> Iterator[Plan]:
    """把重算、精度、批次往回退的各种搭配，退得最多的在前，最后一个就是 plan 自己。

    约定：重算多花时间，最该退；其次是精度；批次最后，但也是能大就大：太小就喂不饱 GPU
    """
    # 三样的搭配不多（3 × 2 × log₂B），全试一遍比想一个聪明的次序可靠
    first = KINDS.index(original.checkpointing)
    for kind in KINDS[first : KINDS.index(plan.checkpointing) + 1]:
        for precision in dict.fromkeys((original.precision, plan.precision)):
            batch = original.batch_size
            while batch >= 1:  # 由原来的一路减半
                less = replace(plan, checkpointing=kind, precision=precision)
                yield less.resized(batch, plan.processes)
                batch //= 2


def suggest_changes(
    config: GPTConfig,
    plan: Plan,
    room: float,
    *,
    n_trainable: int | None = None,
    device: str = "cuda",
    more_processes: bool = False,
) -> list[tuple[Plan, int]]:
    """装得进 room 字节的改法，每一类至多一个；单改一样的都不够，才几样一起改。

    参数：more_processes 为真时，「再添几块 GPU」也算一种改法
    返回：[(练法, 要多少字节)]，一个也没有就是空的：那就只能换小模型
    约定：按 _single_changes 的次序；每一个都代回公式算过，不是凭经验猜的
    """
    # ① 单改一样
    # 改的是哪几样 → 改得最少的那种；「批 4」与「批 2」是同一类，只留前者
    fitting: dict[tuple[str, ...], tuple[Plan, int]] = {}
    for candidate in _single_changes(plan, more_processes):
        needed = memory_needed(config, candidate, n_trainable=n_trainable, device=device)
        # 由少到多地试，所以先到的就是改得最少的
        # 累积只是跟着补的，分类时不算
        if needed <= room:
            kind = [name for name in candidate.changes(plan) if name != "grad_accumulation"]
            fitting.setdefault(tuple(kind), (candidate, needed))
    if fitting:
        return list(fitting.values())
    # ② 一样不够，几样一起；一路加上来的，未必样样都要：退回去仍装得下的，就不改
    for candidate in _several_changes(plan, more_processes):
        for less in _taken_back(candidate, plan):
            needed = memory_needed(config, less, n_trainable=n_trainable, device=device)
            if needed <= room:
                return [(less, needed)]
    return []


def check_memory(
    config: GPTConfig,
    *,
    batch_size: int,
    seq_len: int | None = None,  # None = 模型的上下文长度
    grad_accumulation: int = 1,
    precision: str = "fp32",
    checkpointing: str = "none",
    parallel: str = "none",
    processes: int = 1,
    optimizer: str = "adamw",
    device: torch.device | None = None,
    n_trainable: int | None = None,  # None = 全部参数
    model_is_loaded: bool = False,
    available: int | None = None,  # 字节
) -> str | None:
    """装得下返回 None；有点紧返回一句提醒；装不下就拒绝。

    参数：model_is_loaded=True 时权重已在内存里，不再算一遍；available 不给就去问系统
    错误：要的比有的多 → ValueError，写明两个数、各部分、能改什么
    """
    check_choice("precision", precision, ("fp32", "bf16", "fp16"))
    length = config.max_seq_len if seq_len is None else seq_len
    plan = Plan(
        *(batch_size, grad_accumulation, length, precision),
        *(checkpointing, parallel, processes, optimizer),
    )
    room = available_memory_bytes(device) if available is None else available
    if room is None:
        return None  # 问不出来的系统，不猜
    if model_is_loaded:
        # 公式里有权重，剩下的内存却已经扣过它：加回来，免得算两遍
        room += count_parameters(config).total * 4
    # CPU 上 bf16 的路不同，公式也就不同；没说是哪里，就是这台机器的内存
    kind = "cpu" if device is None else device.type
    estimate = estimate_memory(config, plan, n_trainable=n_trainable, device=kind)
    needed = estimate.total
    if needed <= WARN_SHARE * room:
        return None  # 宽裕就不打扰
    # 大头是激活，减批次；大头是权重与优化器，减批次没有用
    # 说清哪一块大，人才知道该动哪里；建议也按留有余地的标准挑
    parts = estimate.by_part()
    told = ", ".join(f"{part} {human(size, 'B')}" for part, size in parts.items())
    # 两个数都写出来：差一点点与差十倍，该做的事不同
    facts = f"training needs about {human(needed, 'B')} ({told}), {human(room, 'B')} are free"
    advice = _advice(config, plan, WARN_SHARE * room, n_trainable, kind)
    if needed > room:
        raise ValueError(f"{facts}: it cannot fit. {advice}")
    return f"{facts}: it may not fit. {advice}"


def _advice(
    config: GPTConfig, plan: Plan, room: float, n_trainable: int | None, device: str
) -> str:
    """把改法写成一句话；没有办法也要直说，不让人一种种去试。"""
    # room 是留了余地的那个数，照着改就不会再收到提醒
    found = suggest_changes(config, plan, room, n_trainable=n_trainable, device=device)
    # 连只有一行、最短的都装不下，大头就是权重
    if not found:
        return "No batch size helps: choose a smaller model, or train adapters only (LoRA)"
    options = [f"{p.changes_from(plan)} (about {human(size, 'B')})" for p, size in found]
    return "What would fit: " + "; or ".join(options)


def demo() -> None:
    """gpt2 在三台机器上：装得下、有点紧、装不下；装不下的改什么。"""
    # 只用公式，不建模型：所以在任何机器上都能算
    # 不累积，所以最挤的那一刻，梯度只有词表的一份
    config = preset("gpt2")
    plan = Plan(batch_size=8, grad_accumulation=1, seq_len=1024, precision="fp32")
    needed = memory_needed(config, plan)
    print(f"① gpt2，批 8，长 1024，fp32：约 {human(needed, 'B')}")
    # 最长的一条就是该先动的
    for part, size in training_memory(config, 8, 1024).by_part().items():
        print(f"   {part:<12} {human(size, 'B'):>7}  " + "█" * round(40 * size / needed))

    print("② 三台机器")
    for gigabytes in (24, 8, 4):
        # 三种结果各一个：不说话、提醒、拒绝
        # 提醒与拒绝都带着改法，每一种后面是它要多少
        try:
            said = check_memory(config, batch_size=8, available=gigabytes * 10**9)
        except ValueError as error:
            said = str(error)
        print(f"   {gigabytes:2d} GB：{'装得下' if said is None else said.split('free')[1][2:]}")
        assert (said is None) == (gigabytes == 24)

    print("③ 建议的每一种都代回公式算过，确实装得下")
    # 建议若自己都装不下，比不建议还坏
    for suggested, size in suggest_changes(config, plan, 4e9):
        print(f"   {suggested.changes_from(plan)}：{human(size, 'B')}")
        assert size == memory_needed(config, suggested) <= 4e9

    print("④ LoRA：只训练 30 万个参数时，优化器几乎不占")
    # 省下的主要是每个冻结参数的 m、v，各 4 字节：最挤的那一刻，梯度多半还没有
    lora = memory_needed(config, plan, n_trainable=300_000)
    print(f"   {human(needed, 'B')} → {human(lora, 'B')}，少了 {human(needed - lora, 'B')}")
    assert needed - lora > 8 * 124_000_000 * 0.99


if __name__ == "__main__":
    run_demo(demo)
