r"""还没开始，怎么知道内存装不装得下？装不下改什么？——按公式估一遍，再替人试几种改法。

内存不够（out of memory）往往在第一次反向的最深处才发生，错误只说「要不到 2.1 GB」，不说怎么办。
而用量是算得出来的（gpt_model/sizes.py）：N 是参数个数，B 批，T 长度，

$$M \approx \underbrace{16N}_{\text{权重、梯度、}m\text{、}v}
  + \underbrace{B\,T\,a}_{\text{激活}} + \underbrace{B\,T\,V\,c}_{\text{logits}}$$

    先看哪一块大                 就改什么
    激活、logits（随 B·T 增长）  减批次，用梯度累积补回来：结果完全相同，只是多几趟
                                 用 16 位（bf16）：激活减半
                                 减长度：看到的上下文也短了，放在后面
    权重、优化器（只看 N）       换小模型，或用 LoRA：只有适配器有梯度与状态

    练法 ─▶ memory_needed ─▶ 八成以内 ─▶ 不说话
                              │
                              ├ 八成以上，装得下 ─▶ 提醒一句 + 改法
                              └ 装不下 ──────────▶ 拒绝（ValueError）+ 改法

每种改法都真的代回公式再算一遍，装得下的才说出来，并写明要多少；一种不够，就几种一起改。

估得准吗？与实测差一两成：库的缓存、碎片没有算。所以超过可用的八成就提醒，超过可用的才拒绝。

论文：激活的大小 — Korthikanti et al., arXiv:2205.05198；优化器的份额 — ZeRO, arXiv:1910.02054。

改哪里：公式 → gpt_model/sizes.py；先建议什么、后建议什么 → _single_changes；
        提醒与拒绝的分界 → WARN_SHARE。
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from foundation.checks import check_choice
from foundation.demonstration import run_demo
from foundation.devices import available_memory_bytes
from gpt_model.config import GPTConfig, preset
from gpt_model.sizes import count_parameters, human, training_memory

__all__ = ["Plan", "check_memory", "memory_needed", "suggest_changes"]

WARN_SHARE = 0.8  # 用到可用内存的几成就提醒
SHORTEST = 64  # 不建议比这更短的序列


@dataclass(frozen=True)
class Plan:
    """一种练法：与内存有关的四个数。B × A 是每步的样本数。

    约定：冻结的；试别的练法一律用 replace 另建一份，原来的留着作比较
    """

    batch_size: int  # B，一次前向的行数；激活与它成正比
    grad_accumulation: int  # A，几个微批次合成一步；不占内存，只占时间
    seq_len: int  # T，每行几个词元
    precision: str  # fp32、bf16、fp16

    def changes_from(self, other: Plan) -> str:
        """与另一种练法比，要改什么；写成人看得懂的一句。

        约定：批次与累积总是一起说：只减批次不加累积，练出来的就不是同一个模型
        """
        words = []  # 次序固定：批次、累积、精度、长度
        if self.batch_size != other.batch_size:
            words.append(f"batch_size {self.batch_size}")
            words.append(f"grad_accumulation {self.grad_accumulation}")
        if self.precision != other.precision:
            words.append(f"precision {self.precision}")
        if self.seq_len != other.seq_len:
            words.append(f"sequence length {self.seq_len}")
        return " with ".join(words[:2]) + "".join(f" and {word}" for word in words[2:])


def memory_needed(config: GPTConfig, plan: Plan, *, n_trainable: int | None = None) -> int:
    """按这种练法，一步的内存峰值（字节）。

    公式：训练的总量 − (梯度 + 优化器) × 冻结的比例；权重与激活不因冻结而减少
    参数：n_trainable 少于全部参数时（LoRA），冻结的没有梯度与优化器状态
    """
    estimate = training_memory(config, plan.batch_size, plan.seq_len, precision=plan.precision)
    if n_trainable is None:
        return estimate.total  # 全部都训练，公式原样
    # 冻结的参数仍要前向、仍要把梯度传给前面的层，只是自己不留梯度
    share = n_trainable / max(1, count_parameters(config).total)
    # 训练的比基础模型还多（例如另加了词表）时不倒扣
    frozen_too_much = (estimate.gradients + estimate.optimizer) * max(0.0, 1 - share)
    return estimate.total - int(frozen_too_much)


def _single_changes(plan: Plan) -> Iterator[Plan]:
    """只改一样的各种练法，结果不变的在前。

    约定：同一类里由改得最少的到改得最多的；调用者取第一个装得下的，就是代价最小的
    """
    # ① 批减半、累积加倍，更新完全相同
    smaller = plan
    #    连着减半而不是一次减到 1：批太小，设备就吃不饱
    while smaller.batch_size > 1:
        batch = smaller.batch_size // 2
        rounds = -(-plan.batch_size * plan.grad_accumulation // batch)  # 向上取整
        smaller = replace(smaller, batch_size=batch, grad_accumulation=rounds)
        yield smaller
    # ② 16 位：激活减半，权重多一份 16 位的拷贝
    if plan.precision == "fp32":
        yield replace(plan, precision="bf16")
    # ③ 短一些：看到的上下文也少了，放在最后
    shorter = plan
    while shorter.seq_len // 2 >= SHORTEST:
        shorter = replace(shorter, seq_len=shorter.seq_len // 2)
        yield shorter


def suggest_changes(
    config: GPTConfig, plan: Plan, room: float, *, n_trainable: int | None = None
) -> list[tuple[Plan, int]]:
    """装得进 room 字节的改法，每一类至多一个；单改一样的都不够，才几样一起改。

    返回：[(练法, 要多少字节)]，一个也没有就是空的：那就只能换小模型
    约定：按 _single_changes 的次序；每一个都代回公式算过，不是凭经验猜的
    """
    fitting: dict[str, tuple[Plan, int]] = {}  # 改的是哪一类 → 改得最少的那种
    for candidate in _single_changes(plan):
        needed = memory_needed(config, candidate, n_trainable=n_trainable)
        # 每一类只留改得最少的；去掉数字，「批 4」与「批 2」就成了同一类
        kind = "".join(c for c in candidate.changes_from(plan) if not c.isdigit())
        if needed <= room:
            fitting.setdefault(kind, (candidate, needed))
    if fitting:
        return list(fitting.values())
    # 一起改：先动几乎不影响结果的，把最伤的（缩短）留到最后
    # 16 位，批减到 1，再不行就缩短
    rounds = plan.batch_size * plan.grad_accumulation  # 批减到 1，每步的样本数不变
    both = replace(plan, batch_size=1, grad_accumulation=rounds, precision="bf16")
    while both.seq_len >= SHORTEST:  # 再短就学不到什么了
        needed = memory_needed(config, both, n_trainable=n_trainable)
        if needed <= room:
            return [(both, needed)]
        both = replace(both, seq_len=both.seq_len // 2)
    return []


def check_memory(
    config: GPTConfig,
    *,
    batch_size: int,
    seq_len: int | None = None,  # None = 模型的上下文长度
    grad_accumulation: int = 1,
    precision: str = "fp32",
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
    plan = Plan(batch_size, grad_accumulation, length, precision)
    room = available_memory_bytes(device) if available is None else available
    if room is None:
        return None  # 问不出来的系统，不猜
    if model_is_loaded:
        # 公式里有权重，剩下的内存却已经扣过它：加回来，免得算两遍
        room += count_parameters(config).total * 4
    needed = memory_needed(config, plan, n_trainable=n_trainable)
    if needed <= WARN_SHARE * room:
        return None  # 宽裕就不打扰
    # 说清哪一块大，人才知道该动哪里；建议也按留有余地的标准挑
    parts = training_memory(config, batch_size, length, precision=precision).by_part()
    told = ", ".join(f"{part} {human(size, 'B')}" for part, size in parts.items())
    # 两个数都写出来：差一点点与差十倍，该做的事不同
    facts = f"training needs about {human(needed, 'B')} ({told}), {human(room, 'B')} are free"
    advice = _advice(config, plan, WARN_SHARE * room, n_trainable)
    if needed > room:
        raise ValueError(f"{facts}: it cannot fit. {advice}")
    return f"{facts}: it may not fit. {advice}"


def _advice(config: GPTConfig, plan: Plan, room: float, n_trainable: int | None) -> str:
    """把改法写成一句话；没有办法也要直说，不让人一种种去试。"""
    # room 是留了余地的那个数，照着改就不会再收到提醒
    found = suggest_changes(config, plan, room, n_trainable=n_trainable)
    if not found:
        return "No batch size helps: choose a smaller model, or train adapters only (LoRA)"
    options = [f"{p.changes_from(plan)} (about {human(size, 'B')})" for p, size in found]
    return "What would fit: " + "; or ".join(options)


def demo() -> None:
    """gpt2 在三台机器上：装得下、有点紧、装不下；装不下的改什么。"""
    # 只用公式，不建模型：所以在任何机器上都能算
    config = preset("gpt2")
    plan = Plan(batch_size=8, grad_accumulation=1, seq_len=1024, precision="fp32")
    needed = memory_needed(config, plan)
    print(f"① gpt2，批 8，长 1024，fp32：约 {human(needed, 'B')}")
    # 最长的一条就是该先动的
    for part, size in training_memory(config, 8, 1024).by_part().items():
        print(f"   {part:<12} {human(size, 'B'):>7}  " + "█" * round(40 * size / needed))

    print("② 三台机器")
    for gigabytes in (24, 14, 6):
        # 三种结果各一个：不说话、提醒、拒绝
        try:
            said = check_memory(config, batch_size=8, available=gigabytes * 10**9)
        except ValueError as error:
            said = str(error)
        print(f"   {gigabytes:2d} GB：{'装得下' if said is None else said.split('free')[1][2:]}")
        assert (said is None) == (gigabytes == 24)

    print("③ 建议的每一种都代回公式算过，确实装得下")
    # 建议若自己都装不下，比不建议还坏
    for suggested, size in suggest_changes(config, plan, 6e9):
        print(f"   {suggested.changes_from(plan)}：{human(size, 'B')}")
        assert size == memory_needed(config, suggested) <= 6e9

    print("④ LoRA：只训练 30 万个参数时，梯度与优化器几乎不占")
    # 省下的主要是每个冻结参数的梯度、m、v，各 4 字节
    lora = memory_needed(config, plan, n_trainable=300_000)
    print(f"   {human(needed, 'B')} → {human(lora, 'B')}，少了 {human(needed - lora, 'B')}")
    assert needed - lora > 12 * 124_000_000 * 0.99


if __name__ == "__main__":
    run_demo(demo)
