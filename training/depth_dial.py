r"""只转一个旋钮，别的都跟着定下来？——层数 ℓ 定了，宽、头、数据、批、学习率、步数都由它推出。

几十个超参数各调各的，一半的组合练不好：宽了一倍而学习率没降，模型大了而数据没多。它们本来就
互相牵着，所以只留一个自由度，其余写成它的函数：

    ℓ ─▶ 宽 D = 64ℓ ─▶ 块里的参数 N = 12ℓD² ∝ ℓ³ ─▶ 词元 20N ─▶ 批 ∝ √词元 ─▶ 步数 = 词元 ÷ 批
              │
              ├▶ 头：每头 32（D ≤ 128）或 64 维
              └▶ 学习率 ∝ 1/√D

为什么是这几条？

    宽深比 64   GPT-2 small 正是 12 层 × 768；在这个比例附近，损失对它很不敏感（Kaplan §3.2）
    20 个词元   每个参数 20 个词元，是给定算力下损失最低的分法（Chinchilla）；N 只数块里的矩阵，
                词表多大不影响它，所以小模型的实际比例低于 20
    批 ∝ √词元  批大到一定程度，再大就不省步数了（临界批，critical batch）；它随训练变长而变大，
                量出来的指数在 0.5 上下。小于它只是慢，大于它是浪费，所以取偏小的系数
    1/√D        Muon 的更新是摆正的矩阵乘 s = 0.2·√D（见 muon.py），谱范数随 √D 长；
                要每一步对输出的改变与宽无关，学习率就除以 √D

$$\eta = \eta_0\sqrt{\frac{128}{D}}, \qquad
  B = B_0\sqrt{\frac{20N}{10^6}}, \qquad
  C \approx 6 \cdot N \cdot 20N \propto \ell^6$$

最后一式说明这个旋钮多陡：加深一倍，算力要 64 倍。系数 η₀、B₀ 取自几个配方（recipes.py）试出来的数。

结果是一个配方（Recipe），与手写的同一种东西：哪一项不满意，照样单独改。

    fromzero train --depth 2
    fromzero train --depth 4 --batch-size 16 --data "books/*.txt"

什么时候不该用？ 数据少于 20N 时：多出来的遍数（超过四遍左右，arXiv:2305.16264）几乎学不到东西，
不如转小一点；已经知道这份数据最好的配方时，用配方。

论文：Hoffmann et al. 2022, arXiv:2203.15556；Kaplan et al. 2020, arXiv:2001.08361；
      临界批 — McCandlish et al. 2018, arXiv:1812.06162；Zhang et al. 2024, arXiv:2410.21676；
      宽与学习率 — Yang et al. 2023, arXiv:2310.17813；
      一个旋钮的想法 — Karpathy, *nanochat*（depth），2025。

改哪里：每个参数几个词元 → TOKENS_PER_PARAMETER；宽深比 → WIDTH_PER_LAYER；
        学习率与批的系数 → LEARNING_RATE、BATCH_TOKENS。
"""

from __future__ import annotations

import math

from foundation.checks import check_int
from foundation.demonstration import run_demo
from training.recipes import Recipe

__all__ = ["from_depth"]

DEEPEST = 64  # 再深，一层 64 的宽就不是人用的了：ℓ = 64 已有三十亿以上的参数
WIDTH_PER_LAYER = 64  # D = 64ℓ，GPT-2 的比例
SMALL_WIDTH = 128  # 到这个宽为止，每头 32 维，免得只有一两个头
TOKENS_PER_PARAMETER = 20  # Chinchilla
LEARNING_RATE = 0.008  # D = 128 时的 η₀
BATCH_TOKENS = 1024  # 一百万个词元的训练，每步这么多
MOST_ROWS = 32  # 一次前向至多几行；再大的批用梯度累积凑，内存不跟着长


def from_depth(depth: int) -> Recipe:
    """由层数推出整套选择。

    公式：D = 64ℓ；词元 = 20·12ℓD²；批、学习率见本课开头
    错误：ℓ 不在 1 … 64 → ValueError
    """
    check_int("depth", depth, 1, DEEPEST)
    # ① 形状
    width = WIDTH_PER_LAYER * depth
    head_size = 32 if width <= SMALL_WIDTH else 64
    context = context_length(depth)
    # ② 看多少：N = 12ℓD²，注意力 4D²、前馈 8D²
    n_parameters = 12 * depth * width**2
    n_tokens = TOKENS_PER_PARAMETER * n_parameters
    # ③ 每步多少：√ 的律，至少一行；太多行就分成几次累积，每次一样多
    rows = max(1.0, BATCH_TOKENS * math.sqrt(n_tokens / 1e6) / context)
    accumulation = math.ceil(rows / MOST_ROWS)
    batch_size = round(rows / accumulation)
    steps = round(n_tokens / (batch_size * accumulation * context))
    return Recipe(
        purpose=f"深 {depth} 层，其余由它推出",
        preset="modern-micro",  # 零件（RoPE、RMSNorm、q/k 归一化、ReLU²）与大小无关
        model={
            "n_layers": depth,
            "dim": width,
            "n_heads": width // head_size,
            "max_seq_len": context,
            "token_shift": True,  # D 个参数，换来一眼看见前一个词元
            "zero_init": True,  # 每个块从「什么也不做」长起，深的也稳
        },
        training={
            "optimizer": "muon",
            "schedule": "wsd",
            "steps": steps,
            "warmup_steps": max(10, steps // 100),
            "decay_steps": steps // 2,  # 后一半直线降到 0
            "min_lr_ratio": 0.0,
            "batch_size": batch_size,
            "grad_accumulation": accumulation,
            "learning_rate": LEARNING_RATE * math.sqrt(SMALL_WIDTH / width),
            "weight_decay": 0.1,
        },
    )


def context_length(depth: int) -> int:
    """一行几个词元：小模型用不上远处的前文，注意力的 T² 却要照付。"""
    if depth <= 4:
        return 256  # 一两千个字符
    return 512 if depth <= 8 else 1024  # GPT-2 的长度


def demo() -> None:
    """旋钮的各档；越深，参数、词元、步数都越多；加深一倍，算力约六十四倍。"""
    from gpt_model.sizes import count_parameters, flops_per_token, human

    vocab_size = 4096
    print(f"① 各档（词表按 {vocab_size}）")
    before = (0, 0, 0)
    work = {}
    for depth in (1, 2, 4, 6, 12, 24):
        one = from_depth(depth)
        config = one.model_config(vocab_size)
        training = one.train_config()
        # 计算 = 词元 × 每个词元的运算，词表的那一份也在内
        work[depth] = one.n_tokens * flops_per_token(config)
        size = count_parameters(config).total
        print(
            f"   ℓ = {depth:2d}  宽 {config.dim:4d}  {config.n_heads:2d} 头  上下文 "
            f"{config.max_seq_len:4d}  {human(size):>5} 个参数  {human(one.n_tokens):>5} 个词元 = "
            f"{training.steps:6,} 步  学习率 {training.learning_rate:.4f}  "
            f"{human(work[depth])}FLOPs"
        )
        # 哪一项也不会随深而减
        now = (size, one.n_tokens, training.steps)
        assert all(new > old for new, old in zip(now, before, strict=True))
        before = now

    print("② 加深一倍，算力几倍？块里的矩阵按 ℓ⁶，词表与注意力长得慢一些")
    for shallow, deep in ((6, 12), (12, 24)):
        ratio = work[deep] / work[shallow]
        print(f"   {shallow:2d} → {deep} 层：{ratio:.0f} 倍")
        # 六次方是上限：词表、注意力的份额随深而降
        assert 30 < ratio <= 64

    print("③ 12 层正是 GPT-2 small 的块：", end="")
    blocks = count_parameters(from_depth(12).model_config(vocab_size))
    # 没有偏置，所以就是 12ℓD²，外加 q/k 归一化的零头
    print(f"{human(blocks.attention + blocks.feed_forward)} 个参数，20 倍是 ", end="")
    print(f"{human(from_depth(12).n_tokens)} 个词元")
    assert abs(blocks.attention + blocks.feed_forward - 12 * 12 * 768**2) < 1e5


if __name__ == "__main__":
    run_demo(demo)
