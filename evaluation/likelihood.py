r"""模型觉得「这句后面接那句」有多可能？——续写的对数似然（log-likelihood）。

$$\ln p(y \mid x) = \sum_{t=1}^{|y|} \ln p(y_t \mid x, y_{<t})$$

不必让模型写，只问它「若是这样写，你有多意外」。一次前向就算出每个位置的 ln p，再挑出续写的几个：

    前文 x = [a b c]   续写 y = [d e]

    输入   a   b   c   d        去掉最后一个：它后面没有要打分的了
    打分   b   c  [d] [e]       只要后两个位置：ln p(d|abc) + ln p(e|abcd)

几道题一起算，短的在右边补齐。因果注意力看不见右边，补什么都不影响左边的分数，所以连掩码也不用；
单独算与成批算是同一个数（只差浮点舍入）：

    a  b  c  d             补齐放在左边，位置编号就全错了；
    a  b  ·  ·  ← 补齐     放在右边，真词元的位置与单独算时相同

太长了怎么办：从左边砍，只留最后 C 个前文——最近的前文最有用，而且要打分的一个也不能少。

常见的错法，都不报错：
    位置错开一个       拿 ln p(y_t | x, y_{≤t}) 去打分，模型「看见」了答案，分数高得出奇
    砍右边             太长时把要打分的砍掉，长选项反而占便宜
    忘了 eval()        dropout 还开着，同一句话每次分数不同
    先 softmax 再取对数 概率小到 0，对数成了 −∞；log_softmax 不会

常见疑问：
    分数都是负的？             概率不超过 1，对数就不超过 0；−3 比 −7 可能得多
    长的续写总是分低？         对：每多一个词元就多乘一个小于 1 的数；怎样比见 multiple_choice.py
    与困惑度什么关系？         困惑度是 exp(−平均每词元的 ln p)，见 perplexity.py
    为什么不用 KV 缓存？       选项多而前文长时，缓存前文能快几倍；这里求简单，一行一行整个算
    GPU 与 CPU 一样吗？        差在末位；两个选项几乎一样可能时，谁第一才会不同

空的续写有定义：什么也没说的概率是 1，ln 1 = 0。空的前文没有定义：模型至少要看见一个词元，
才说得出下一个；想问「一篇文章以它开头有多可能」，就用「文章结束」作前文，训练时正是这样接的。

论文：GPT-3 (Brown et al. 2020), arXiv:2005.14165, §2.4（选择题就是这样考的）。
改哪里：怎样从文本切出前文与续写 → `multiple_choice.py` 的 `choice_tokens`；
       一批放几行 → `MAX_BYTES`。
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from foundation.checks import check_int
from foundation.demonstration import run_demo
from gpt_model.config import preset
from gpt_model.model import GPT

__all__ = ["Likelihood", "TokenPair", "score_tokens"]

TokenPair: TypeAlias = tuple[Sequence[int], Sequence[int]]  # (前文, 续写)

# 一批的打分表 (B, T, V) 至多占这么多：词表五万、上下文一千时，一行就是 200 MB
MAX_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Likelihood:
    """一段续写的分数。

    log_likelihood  Σ ln p，单位 nat；越大越可能，至多是 0
    n_tokens        续写有几个词元
    is_greedy       每一步它都是模型的第一名吗（贪心就会写出它）
    """

    log_likelihood: float
    n_tokens: int
    is_greedy: bool


@torch.inference_mode()
def score_tokens(
    model: GPT, pairs: Sequence[TokenPair], *, batch_size: int = 16
) -> list[Likelihood]:
    """每一对 (前文, 续写) 的似然，次序与给的相同；与单独算、与批的大小无关。

    约定：前文至少一个词元（想从头打分，用「文章结束」作前文）；空的续写是 ln 1 = 0
    错误：前文是空的、续写比上下文长、编号越界、模型算出 NaN → ValueError，给出两个数
    """
    # 一次前向放几行；只影响快慢与内存
    check_int("batch_size", batch_size, 1)
    limit = model.config.max_seq_len
    rows = [cut(pair, limit, index) for index, pair in enumerate(pairs)]
    # 长的在前：一批里长短相近，补齐最少；第一批最大，内存不够马上就知道
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    found: dict[int, Likelihood] = {}
    # 记下谁还在训练模式，完了照原样放回
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        while order:
            first = rows[order[0]]
            # 打分表太大就少放几行；一行总要放
            fits = MAX_BYTES // (4 * max(1, len(first)) * model.config.vocab_size)
            # 内存允许几行就几行，至少一行
            batch = order[: max(1, min(batch_size, fits))]
            order = order[len(batch) :]
            # 要打分的在末尾，各有几个
            lengths = [len(pairs[index][1]) for index in batch]
            scores = score_batch(model, [rows[index] for index in batch], lengths)
            found.update(zip(batch, scores, strict=True))
    finally:
        # 逐个复原，而不是整个 train()：有人特意冻住了一部分
        for module in training:
            module.training = True
    return [found[index] for index in range(len(rows))]


def cut(pair: TokenPair, limit: int, index: int) -> list[int]:
    """前文与续写接成一行，太长就从左边砍到 limit + 1 个：输入 limit 个，题 limit 道。

    为什么是 limit + 1：最后一个词元只当题目、不当输入，所以一行可以多一个
    错误：前文是空的；续写比 limit 长（砍了就不是同一道题）→ ValueError
    """
    context, continuation = pair
    if not len(context):
        raise ValueError(
            f"pair {index} has an empty context: give at least 1 token, "
            "such as the tokenizer's end_id, from which documents begin"
        )
    if len(continuation) > limit:
        raise ValueError(
            f"the continuation of pair {index} has {len(continuation)} tokens, but the model's "
            f"context (max_seq_len) is {limit}; shorten it"
        )
    return [*context, *continuation][-(limit + 1) :]


def score_batch(
    model: GPT, rows: Sequence[Sequence[int]], lengths: Sequence[int]
) -> list[Likelihood]:
    """一批行，每行末尾 lengths[i] 个是续写；右边补齐，一次前向。

    为什么不直接用 model(ids, targets).loss：那是一批的总和，这里要每一行各自的
    形状：输入 (B, T)，logits (B, T, V)，只取 Σ|y| 个位置算 log_softmax
    """
    # ① 空的续写不必算：ln 1 = 0，也没有哪一步不是第一名
    width = max(len(row) - 1 for row in rows)
    if not any(lengths):
        return [Likelihood(0.0, 0, True) for _ in rows]
    # 补 0 还是补别的都一样：右边的谁也看不见
    inputs = torch.zeros(len(rows), max(1, width), dtype=torch.long)  # (B, T)
    # 最后一个词元不当输入：它后面没有要打分的了
    for row, ids in enumerate(rows):
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1], dtype=torch.long)
    logits = model(inputs.to(model.device)).logits  # (B, T, V)
    # ② 第 j 个输入的打分，是给第 j + 1 个词元的；续写从末尾数起
    found = []
    for row, (ids, length) in enumerate(zip(rows, lengths, strict=True)):
        # 输入比整行少最后一个
        end = len(ids) - 1
        picked = logits[row, end - length : end].float()  # (|y|, V)
        found.append(likelihood(picked, torch.tensor(ids[len(ids) - length :], dtype=torch.long)))
    return found


def likelihood(logits: Tensor, targets: Tensor) -> Likelihood:
    """几个位置的打分 (n, V) 与正确的编号 (n,) → 一个分数。

    类型：softmax 在 float32 里算（bf16 的 logits 也先转），加起来用 float64
    错误：NaN 或 −∞ → ValueError：权重坏了，给出的名次没有意义
    """
    if not len(targets):
        return Likelihood(0.0, 0, True)
    targets = targets.to(logits.device)
    # 先减去最大值再取指数，logits 再大也不溢出
    log_probabilities = torch.log_softmax(logits, dim=-1)  # (n, V)，float32
    picked = log_probabilities.gather(-1, targets[:, None]).double().sum()
    # 移回 CPU，成为普通的数
    total = float(picked)
    if not math.isfinite(total):
        raise ValueError(
            f"the model's log-likelihood is {total}: its weights are damaged or have diverged"
        )
    return Likelihood(total, len(targets), bool((logits.argmax(-1) == targets).all()))


def demo() -> None:
    """与逐个词元相乘一样；成批与单独一样；砍左边；贪心写出来的，is_greedy 为真。"""
    config = preset("gpt-micro", vocab_size=50, max_seq_len=16, n_layers=2, dim=32, n_heads=2)
    model = GPT(config).eval()
    with torch.no_grad():
        # 没学过的模型几乎均匀，看不出差别
        model.lm_head.weight.mul_(20)  # 放大，分数才有高低

    context, continuation = [3, 14, 15], [9, 26, 5]
    print("① 一次前向，与一个一个乘起来，是同一个数")
    # 同样三个词元，一次算完
    (found,) = score_tokens(model, [(context, continuation)])
    total, seen = 0.0, list(context)
    for token in continuation:
        with torch.no_grad():
            log_p = torch.log_softmax(model(torch.tensor([seen])).logits[0, -1], -1)
        total += float(log_p[token])
        print(f"   ln p({token:2} | {seen}) = {float(log_p[token]):.4f}")
        # 下一个词元的前文，多了这一个
        seen.append(token)
    print(f"   合计 {total:.4f}；一次前向 {found.log_likelihood:.4f}")
    assert math.isclose(total, found.log_likelihood, rel_tol=1e-5)

    print("② 长短不一的一批，与单独算")
    # 长短各异，还有一个空的
    pairs = [([1], [2, 3]), ([4, 5, 6, 7, 8], [9]), (context, continuation), ([7], [])]
    batch = score_tokens(model, pairs)
    # 一批里的每一行，与它单独算的
    for pair, together in zip(pairs, batch, strict=True):
        (alone,) = score_tokens(model, [pair])
        difference = abs(alone.log_likelihood - together.log_likelihood)
        sizes = f"{len(pair[0])} + {len(pair[1])} 个"
        print(f"   {sizes}：{alone.log_likelihood:9.4f}，差 {difference:.0e}")
        assert difference < 1e-4

    print("③ 前文太长：砍掉左边，与只给最后 16 个相同")
    # 四十个词元，上下文只有十六
    long = torch.randint(50, (40,)).tolist()
    # 两行一起算：一行四十个，一行十七个
    full, tail = score_tokens(model, [(long[:-2], long[-2:]), (long[-17:-2], long[-2:])])
    print(f"   {full.log_likelihood:.4f} = {tail.log_likelihood:.4f}")
    assert math.isclose(full.log_likelihood, tail.log_likelihood, rel_tol=1e-5)

    with torch.no_grad():
        # 问模型：下一个你最想写什么
        best = int(model(torch.tensor([context])).logits[0, -1].argmax())
    greedy, other = score_tokens(model, [(context, [best]), (context, [(best + 1) % 50])])
    print(f"④ 第一名 {best}：is_greedy = {greedy.is_greedy}；别的：{other.is_greedy}")
    assert greedy.is_greedy
    assert not other.is_greedy


if __name__ == "__main__":
    run_demo(demo)
