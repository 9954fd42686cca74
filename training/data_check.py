r"""喂给模型的到底是什么？——解码一批看一眼，训练集与验证集再核对一遍；错的数据，损失照样降。

模型不挑食：目标没有错开一位，它就学照抄，损失很快接近 0；验证集就是训练集，验证损失一样好看。
这些错不会崩溃，曲线还格外漂亮，只有看数据才看得出。

    输入     白 日 依 山 尽        targets[t] = inputs[t+1]：第 t 个位置猜它后面的那一个
              ╱  ╱  ╱  ╱
    目标     日 依 山 尽 ，        竖着看：「白」的答案是「日」
    盖住     ·  ·  山 尽 ，        · 是不算损失的位置（指令微调里的问题）

$$\text{错开一位}\iff \forall t:\ \text{targets}_t = \text{inputs}_{t+1}
  \ \text{或}\ \text{targets}_t \text{ 被盖住}$$

    检查                       不检查会怎样
    look_at_batch  编号 → 文字  分词器与数据配错了，模型学的是乱码
                   错开一位     学会照抄，一生成就不断重复自己
    show_windows   编号 → 原文  损失跳高、NaN 的那一步，到底喂了什么
    check_data     够不够长     一块也切不出来
                   是不是同一份  验证损失只说明背得好不好，过拟合也看不见

训练出了毛病，警告与 metrics.jsonl 里有窗口的编号，凭它回到原文：

    window_ids [81920, 4096] ──show_windows──▶ 81920、4096 起的两段文字，各自的损失

常见的一眼就懂：一长串同一个字符、乱码、别的语言、一整张只有数字的表。

参考：「先与数据融为一体」（become one with the data）— Karpathy,
      *A Recipe for Training Neural Networks*, 2019。

改哪里：多显示一样东西 → look_at_batch；多核对一件事 → check_data 里加一条毛病。
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foundation.demonstration import run_demo
from tokenization.tokenizer import Tokenizer
from training.batch import IGNORE_INDEX, Batch, Tokens, WindowReader

__all__ = ["check_data", "look_at_batch", "show_windows"]


def look_at_batch(batch: Batch, tokenizer: Tokenizer, *, rows: int = 2, columns: int = 60) -> str:
    """把一批解码成文字，给人看：输入、目标、盖住了几个、是不是错开一位。

    形状：inputs、targets (B, T)；至多显示 rows 行、每行 columns 个词元
    约定：只返回文字，不打印；终端、笔记本、日志里都能用
    """
    n_rows, length = batch.inputs.shape  # B, T
    masked = int((batch.targets == IGNORE_INDEX).sum())  # 几个位置不算损失
    # ① 一行总数：最小与最大的编号也写上，越过词表的一眼看出
    lines = [  # 先总数，后细节
        f"batch of {n_rows} × {length} tokens, {batch.n_targets} targets ({masked} masked); "
        f"ids {int(batch.inputs.min())}..{int(batch.inputs.max())} "
        f"of a vocabulary of {tokenizer.vocab_size}"
    ]
    # ② 错开一位：盖住的不算；最后一列的答案在窗口之外，没法核对
    ahead, targets = batch.inputs[:, 1:], batch.targets[:, :-1]  # (B, T−1) 各一个
    agree = (ahead == targets) | (targets == IGNORE_INDEX)
    lines.append(f"targets are the inputs shifted by one: {'yes' if bool(agree.all()) else 'NO'}")
    # ③ 挑几行解码：用 repr，空格与换行才看得见
    for row in range(min(rows, n_rows)):
        # 窗口的编号：凭它能回到原文，看这一段从哪里来
        where = f" (window {batch.window_ids[row]})" if batch.window_ids else ""
        lines.append(f"row {row}{where}")
        lines.append(f"  input   {tokenizer.decode(batch.inputs[row, :columns].tolist())!r}")
        lines.append(f"  target  {_decode_masked(batch.targets[row, :columns], tokenizer)!r}")
    return "\n".join(lines)


def _decode_masked(targets: Tensor, tokenizer: Tokenizer) -> str:
    """解码目标；盖住的一段写成一个 ·，一眼看出哪些不算损失。

    形状：targets (T,) → 一行文字；不论盖住多少个，连着的只写一个 ·
    """
    pieces: list[str] = []  # 文字与 · 相间
    run: list[int] = []  # 还没解码的一段
    # 末尾添一个哨兵：最后一段不必在循环之外再解码一次
    for value in [*targets.tolist(), IGNORE_INDEX]:
        if value != IGNORE_INDEX:
            run.append(value)
            continue  # 还在一段里，先攒着
        # 成段地解码：一个汉字可能由几个词元拼成，逐个解码会成乱码
        pieces += [tokenizer.decode(run)] if run else []
        if not pieces or pieces[-1] != "·":
            pieces.append("·")
        run = []
    text = "".join(pieces)
    # 末尾的 · 可能是我们自己添的哨兵
    return text if targets[-1] == IGNORE_INDEX else text.removesuffix("·")


def show_windows(
    tokens: Tokens,
    window_ids: Sequence[int],
    tokenizer: Tokenizer,
    *,
    block_size: int = 64,
    model: nn.Module | None = None,
) -> str:
    """把出过毛病的那几段原样取回，解码给人看；给了模型，就按损失从高到低排，坏的在最前。

    参数：window_ids 抄自警告或 metrics.jsonl；tokens 是训练用的那个分片；block_size 与训练时相同
    形状：每个编号取 block_size + 1 个相邻的词元，与训练时的一行逐个相同
    错误：编号在分片之外 → ValueError，写明编号与分片有多长
    """
    # ① 用训练时的同一个取法，看到的就是模型看到的
    reader = WindowReader(tokens)
    # 编号抄错、分片拿错，多半落在外面；不查，取回的就是不相干的一段
    for start in window_ids:
        if not 0 <= start < reader.n_tokens - 1:
            raise ValueError(
                f"window {start} is outside the corpus of {reader.n_tokens} tokens; "
                "is this the shard the run was trained on?"
            )
    # 逐段取：每段自成一批 (1, T)，损失才分得开
    rows = [reader.read(np.array([start]), block_size) for start in window_ids]
    # ② 每段单独算损失：一批的平均看不出是哪一段；没给模型就不算，照给的次序印
    losses = [float("nan") if model is None else _mean_loss(model, row) for row in rows]
    # 坏的在最前：几十段里要找的多半只有一段
    order = list(range(len(rows)))
    if model is not None:
        order.sort(key=lambda index: -losses[index])
    # ③ 一段两行：在哪里、写的什么；repr 使空格、换行、控制字符都看得见
    lines = []
    for index in order:
        # 坏的那一段往往比别的高出几倍，一眼看得出
        note = "" if model is None else f", loss {losses[index]:.3f}"
        lines.append(f"window {window_ids[index]}{note}")
        lines.append(f"  {tokenizer.decode(rows[index].inputs[0].tolist())!r}")
    return "\n".join(lines)


@torch.no_grad()
def _mean_loss(model: nn.Module, row: Batch) -> float:
    """一段的平均损失；不用 dropout，也不动随机数。"""
    was_training = model.training
    row = row.to(next(model.parameters()).device)  # (1, T)，搬到模型所在的设备
    try:
        return float(model.eval()(row.inputs, row.targets).loss)
    finally:
        model.train(was_training)  # 借来看一眼，原样还回去


def check_data(train: Any, val: Any, block_size: int) -> list[str]:
    """训练与验证的词元有没有毛病；每条毛病一句话，没有就是空的。

    参数：train、val 是 TokenShard 或一维数组；val 可以是 None
    约定：只说，不拒绝；要不要接着练，由调用者定
    """
    problems = []
    # ① 够不够长：一块要 T 个输入，错开一位还要多一个
    # 短一个也不行，所以两个数都写出来
    if len(train) < block_size + 1:
        problems.append(
            f"the training corpus has {len(train)} tokens, one block needs {block_size + 1}; "
            "give more text or a smaller block_size"
        )
    if val is None:
        return problems  # 没有验证集，下面的都不必问
    if len(val) < block_size + 1:
        problems.append(
            f"the validation corpus has {len(val)} tokens, less than one block of "
            f"{block_size + 1}: its loss will be noisy"
        )
    # ② 是不是同一份：先比长度，不等就不必读内容
    same = len(train) == len(val) and bool(torch.equal(_first_tokens(train), _first_tokens(val)))
    if same:
        # 验证集的用处是「没见过」；见过了，它就只是另一份训练损失
        problems.append(
            "training and validation hold the same tokens: the validation loss will only show how "
            "well the model learned them by heart; hold out other documents"
        )
    return problems


def _first_tokens(tokens: Any) -> Tensor:
    """开头的一百万个词元：够说明两份是不是同一份，又不必把几十 GB 读进来。"""
    array = getattr(tokens, "tokens", tokens)  # TokenShard 的词元在 .tokens 里
    return torch.as_tensor([int(value) for value in array[:1_000_000]])


def demo() -> None:
    """一首诗的一批：好的、忘了错开的、盖住一半的；凭编号取回一段；再核对两份数据。"""
    text = "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"
    tokenizer = Tokenizer.characters([text])  # 一字一个词元，编号与文字对得上
    ids = torch.tensor([tokenizer.encode(text)])  # (1, T+1)
    print("① 好的一批：目标是输入左移一位")
    good = look_at_batch(Batch(ids[:, :-1], ids[:, 1:]), tokenizer)
    print("\n".join(f"   {line}" for line in good.splitlines()))
    assert "shifted by one: yes" in good

    # 损失会很快接近 0：答案就在题目里
    print("② 忘了错开：模型只要照抄")
    bad = look_at_batch(Batch(ids[:, :-1], ids[:, :-1]), tokenizer)
    print(f"   {bad.splitlines()[1]}")
    assert "shifted by one: NO" in bad

    # 指令微调：问题不算损失，只学怎样回答
    print("③ 盖住前半首：只有后半首算损失，盖住的不妨碍「错开一位」")
    targets = ids[:, 1:].clone()
    targets[:, :11] = IGNORE_INDEX
    half = look_at_batch(Batch(ids[:, :-1], targets), tokenizer)
    print(f"   {half.splitlines()[-1].strip()}")
    assert "'·欲穷千里目" in half
    assert "shifted by one: yes" in half

    # 训练时的警告只给编号：第 12 个词元起的一段
    print("④ 凭编号取回原文")
    shown = show_windows(ids[0], [12], tokenizer, block_size=11)
    print("\n".join(f"   {line}" for line in shown.splitlines()))
    assert "欲穷千里目" in shown

    print("⑤ 核对两份数据")
    # 倒过来的字一样多、次序不同：够算「别的文字」
    tokens = ids[0].tolist()  # (T+1,)
    for name, val in (("别的文字", tokens[::-1]), ("同一份", tokens), ("太短", tokens[:3])):
        problems = check_data(tokens, val, 8)
        print(f"   验证集是{name}：{problems[0].split(':')[0] if problems else '没有毛病'}")
        assert len(problems) == (name != "别的文字")


if __name__ == "__main__":
    run_demo(demo)
