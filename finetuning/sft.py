r"""指令微调 (supervised fine-tuning, SFT)：怎样教模型「答」，而不是教它「出题」？

同样是预测下一个词元，只有一处不同：提问部分不算损失。提问是用户给的，模型不必学会编它；
若也算进去，提问往往比答案长得多，梯度里就尽是「怎样出题」。

公式：$L = -\frac{1}{|\mathcal A|}\sum_{t \in \mathcal A} \log p(x_{t+1} \mid x_{\le t})$，
      $\mathcal A$ 是「下一个词元属于答案」的那些位置

    词元       问   问   问   答   答   ⏎        ⏎ = <|endoftext|>：学会说完就停
    inputs     问   问   问   答   答             少最后一个
    targets   −100 −100  答   答   ⏎             错开一位；−100 = 不算损失
                          ▲
                          提问的最后一个位置要预测答案的第一个词元，它算

一批里长短不一，短的在右边补齐 (padding)，目标也是 −100。补在右边，注意力又是因果的：
真实的词元看不到后面的补位，所以既不需要掩码，也与单独算的结果相同（演示会验证）。

提问与答案分开分词再拼接，不把整段一起分词：生成时模型只拿到提问，若边界处的两个字符在训练时
被并成了一个词元，生成时就是另一串编号，模型从没见过。

常见的错法，每一种都不报错，只是学得差：
    目标没有错开        模型学会照抄当前的词元，损失很快到零，生成却是复读
    掩码差了一位        少盖一个：学了提问的最后一个词元；多盖一个：答案的第一个词元没人教
    忘了结束符          学会了答，没学会停，生成时没完没了
    补位也算损失        短答案的批次里，多半的梯度都在教「补位之后还是补位」
    截断太长的          砍掉提问的头，答案就无从答起；砍掉答案的尾，学会的是话说一半

论文：Radford et al. 2018 (GPT)；Ouyang et al. 2022, InstructGPT；
      Shi et al. 2024, Instruction Modelling（提问也算损失何时有益：答案很短、数据很少时）
改哪里：提问也要算损失，改 `encode_pair` 里的掩码；换一种数据格式，在 `read_pairs` 旁边另写一个
        返回 Pair 列表的函数；多轮对话，把 Pair 换成若干段，仍旧「只有助手的话算损失」。
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from foundation.checks import check_choice, check_int, nearest
from foundation.demonstration import run_demo
from foundation.files import read_text
from gpt_model.config import preset
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer
from training.batch import IGNORE_INDEX, Batch

__all__ = ["Pair", "PairBatches", "encode_pair", "read_pairs"]


@dataclass(frozen=True)
class Pair:
    """一问一答。prompt 原样喂给模型，连同末尾的换行；answer 是要学会说的。

    例：Pair("2+2=", "4")。提问末尾要有个明白的收尾（"="、"：\n"），模型才知道该它说了；
    生成时也要用同样的收尾
    """

    prompt: str
    answer: str


class Encoded(NamedTuple):
    """一问一答的词元：inputs 与 targets 等长，提问部分的 target 是 −100。

    例（P = 3，A = 2）：inputs [p₀ p₁ p₂ a₀ a₁]，targets [−100 −100 a₀ a₁ ⏎]
    """

    inputs: list[int]
    targets: list[int]


def read_pairs(
    path: Path | str, *, prompt_key: str = "prompt", answer_key: str = "answer"
) -> list[Pair]:
    """读 jsonl：每行一个 JSON 对象，取其中两个键；空行跳过，多余的键不管。

    例：{"prompt": "法国的首都是", "answer": "巴黎"}
    原样保留空白：提问末尾的换行、答案开头的空格，都可能是格式的一部分
    错误：不是 JSON、缺键、不是字符串、为空、一对也没有 → ValueError，写明文件与第几行
    """
    path, pairs = Path(path), []
    # 行号从 1 数起，与编辑器里看到的一样
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        try:
            value = json.loads(line)
        # 一行坏了就停：跳过它，用户会以为每一行都用上了
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{where} is not valid JSON: {error.msg}, column {error.colno}"
            ) from None
        pairs.append(Pair(text_of(value, prompt_key, where), text_of(value, answer_key, where)))
    # 例子写在报错里：最常见的问题是不知道该写成什么样
    if not pairs:
        raise ValueError(
            f"{path} holds no pairs; write one JSON object per line, "
            f'for example {{"{prompt_key}": "2+2=", "{answer_key}": "4"}}'
        )
    return pairs


def text_of(value: Any, key: str, where: str) -> str:
    """取一个键的字符串。

    错误：不是对象、没有这个键（给出最像的）、不是非空的字符串 → ValueError，写明是哪一行
    """
    # 例：一行是 ["问", "答"]，或整个文件是一个大列表
    if not isinstance(value, dict):
        raise ValueError(f"{where} must hold a JSON object, got {type(value).__name__}")
    if key not in value:
        guess = nearest(key, value)
        hint = f"; did you mean {guess!r}?" if guess else ""
        raise ValueError(f"{where} has no key {key!r}, only {', '.join(value) or 'nothing'}{hint}")
    # 取到什么就是什么，不修剪空白
    text = value[key]
    # null 与数字都不悄悄转成 "None"、"4"：那样会教模型说 None
    if not isinstance(text, str) or not text:
        raise ValueError(f"{where}: {key} must be a non-empty string, got {text!r}")
    return text


def encode_pair(pair: Pair, tokenizer: Tokenizer) -> Encoded:
    """一问一答 → 错开一位的 inputs 与 targets，提问部分盖住。

    形状：设提问 P 个词元、答案 A 个，则两者都长 P + A，其中 A + 1 个目标算损失（含结束符）
    错误：提问或答案没有词元、分词器没有结束符 → ValueError
    """
    if tokenizer.end_id is None:
        raise ValueError("the tokenizer has no end token: the model could not learn to stop")
    # 分开分词，见文件开头
    prompt, answer = tokenizer.encode(pair.prompt), tokenizer.encode(pair.answer)
    # 没有提问，答案的第一个词元就没有位置来预测它
    if not prompt or not answer:
        raise ValueError(f"prompt and answer must not be empty, got {pair}")
    # 结束符也是要学的：说完了就停
    ids = [*prompt, *answer, tokenizer.end_id]
    # 位置 t 的目标是 ids[t+1]：它属于提问，当且仅当 t + 1 < P
    hidden = len(prompt) - 1
    return Encoded(ids[:-1], [IGNORE_INDEX] * hidden + ids[hidden + 1 :])


class PairBatches:
    """批次号 → Batch，(seed, 批次号) 的纯函数；每一轮每一对恰好一次。

    与 training 里的 TokenBatches 是同一个接口，训练循环分不出它们：换任务，只换批次。

    公式：第 b 批是「无穷队伍」的第 b·B … b·B+B−1 个；队伍由一轮一轮的排列首尾相接而成
    形状：inputs、targets (B, T)，T 是这一批里最长的一对，不超过 max_length
    类型：too_long 为 "refuse"（有一对放不下就报错）或 "skip"（跳过，个数记在 n_skipped）
    错误：没有一对放得下；refuse 时有放不下的 → ValueError，写明长度与上限
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        tokenizer: Tokenizer,
        batch_size: int,
        max_length: int,
        *,
        seed: int = 0,
        too_long: str = "refuse",
    ) -> None:
        self.batch_size = check_int("batch_size", batch_size, 1)
        self.max_length = check_int("max_length", max_length, 1)
        self.seed = check_int("seed", seed, 0)
        check_choice("too_long", too_long, ("refuse", "skip"))
        # 一次全部分好词：几千对只占几兆字节，以后每一步都不必再分
        encoded = [encode_pair(pair, tokenizer) for pair in pairs]
        # inputs 比全部词元少一个，它的长度才是模型要看的长度。
        # 截断是最坏的办法：砍头丢了提问，砍尾教模型话说一半就停
        lengths = [len(one.inputs) for one in encoded]
        longest = max(lengths, default=0)
        # 记住留下的是第几对，出了坏批次才能指回原来的数据
        self.kept = [number for number, length in enumerate(lengths) if length <= max_length]
        # 跳过了几对要让人知道，悄悄少了一半数据是很难发现的
        self.n_skipped = len(pairs) - len(self.kept)
        if self.n_skipped and too_long == "refuse":
            raise ValueError(
                f"{self.n_skipped} of {len(pairs)} pairs are longer than max_length {max_length} "
                f"tokens (the longest: {longest}); shorten them, or pass too_long='skip'"
            )
        # 全跳过了也不行：一步都训练不了
        if not self.kept:
            raise ValueError(
                f"no pair is left of {len(pairs)}: max_length is {max_length} tokens, "
                f"the longest pair has {longest}"
            )
        # 从此只看留下的；第几对要查 kept
        self.encoded = [encoded[number] for number in self.kept]
        # 补位用什么编号都行，它的目标是 −100，又没有真实的词元看得到它
        self.padding_id = tokenizer.end_id or 0

    def __len__(self) -> int:
        # 一轮有多少对；批次却是无穷的
        return len(self.encoded)

    def __call__(self, index: int) -> Batch:
        """取第 index 批；与之前取过哪些批无关，断点续训直接跳到这里。

        一批可以跨两轮：不丢掉每轮末尾的零头，每一对出现的次数才相同
        """
        first = check_int("index", index, 0) * self.batch_size
        # 数据很少时，一批里同一对出现两次也是有的
        rows = []
        for place in range(first, first + self.batch_size):
            # 各轮首尾相接成一条无穷的队伍：第几轮、轮内第几个
            epoch, rank = divmod(place, len(self.encoded))
            rows.append(int(self.order(epoch)[rank]))
        # 取出来的顺序就是行的顺序，window_ids 与之对应
        return self.collate(rows)

    def order(self, epoch: int) -> np.ndarray:
        """第 epoch 轮的顺序，0…n−1 的一个排列，只取决于 (seed, epoch)。

        给每对发一个 64 位随机数再排序：numpy 只保证位流永不改变，不保证洗牌的算法不变。
        """
        # SeedSequence 把两个整数搅匀：相邻的 seed 与 epoch 也得到毫不相干的顺序
        bits = np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))
        order: np.ndarray = np.argsort(bits.random_raw(len(self.encoded)), kind="stable")
        return order

    def once(self) -> Iterator[Batch]:
        """按原来的顺序把每一对恰好走一遍，供评估；最后一批可以少几行。

        评估要比较前后两次，题目与顺序都必须相同，所以不打乱
        """
        # 一次只拼一批，留出集再大也不占内存
        for first in range(0, len(self.encoded), self.batch_size):
            yield self.collate(range(first, min(first + self.batch_size, len(self.encoded))))

    def collate(self, rows: Sequence[int]) -> Batch:
        """把几对拼成一批：短的在右边补齐。

        形状：(B, T)，T 取这几对里最长的，而不是 max_length：少算许多补位
        """
        # 先铺满补位，再把真的写进去：没写到的地方自然就是补位
        chosen = [self.encoded[row] for row in rows]
        width = max(len(one.inputs) for one in chosen)
        # 因果注意力只往回看，右边的补位谁也看不见
        inputs = torch.full((len(chosen), width), self.padding_id)  # (B, T)
        targets = torch.full((len(chosen), width), IGNORE_INDEX)  # (B, T)
        for row, one in enumerate(chosen):
            inputs[row, : len(one.inputs)] = torch.tensor(one.inputs)
            targets[row, : len(one.targets)] = torch.tensor(one.targets)
        # window_ids 记的是第几对：损失突然成了 NaN 时，凭它回到原来的数据去看
        return Batch(inputs, targets, window_ids=tuple(self.kept[row] for row in rows))


def demo() -> None:
    """看一对怎样变成题目，一批怎样补齐，再验证补齐不改变损失。

    用按字分的分词器，一个字就是一个词元，看得最清楚
    """
    pairs = [
        Pair("法国的首都是", "巴黎"),
        Pair("1+1=", "2"),
        Pair("天空是什么颜色？", "晴天是蓝色的"),
    ]
    tokenizer = Tokenizer.characters(pair.prompt + pair.answer for pair in pairs)

    print("一、一对怎样变成题目（· 表示不算损失）")
    inputs, targets = encode_pair(pairs[0], tokenizer)
    # 上下两行对着看：每个目标是它右上方的那个字
    for name, ids in (("inputs ", inputs), ("targets", targets)):
        shown = ["·" if i == IGNORE_INDEX else tokenizer.decode([i]) for i in ids]
        print(f"  {name} {'  '.join(shown)}")
    # 答案两个字，加一个结束符
    assert sum(target != IGNORE_INDEX for target in targets) == len("巴黎") + 1

    # 三对长短不一，放进同一批
    print("\n二、一批：短的在右边补齐")
    # 批次数是无穷的，batches(0)、batches(1)、…… 要第几批就有第几批
    batches = PairBatches(pairs, tokenizer, batch_size=3, max_length=32, seed=1)
    batch = batches(0)
    # 这一批的顺序由 (seed, 0) 决定
    for row, number in enumerate(batch.window_ids):
        counted = int((batch.targets[row] != IGNORE_INDEX).sum())
        print(f"  第 {number} 对：{batch.inputs.shape[1]} 个位置，{counted} 个算损失")
    assert batch.n_targets == sum(len(pair.answer) + 1 for pair in pairs)
    assert sorted(batch.window_ids) == [0, 1, 2]

    # 用损失之「和」来比：平均会因题数不同而不同
    print("\n三、补齐不改变损失：一起算 = 各自算")
    # 没训练过的模型就够了：要验证的是算法，不是它答得好不好
    model = GPT(preset("gpt-micro", vocab_size=tokenizer.vocab_size, n_layers=2)).eval()
    together = model(batch.inputs, batch.targets, reduction="sum").loss
    # 各自成批，就没有补位
    alone = [PairBatches([pair], tokenizer, 1, 32)(0) for pair in pairs]
    separate = [model(one.inputs, one.targets, reduction="sum").loss for one in alone]
    # 给了 targets 就一定有损失
    assert together is not None
    # 三个数相加，应当等于一批的总和
    losses = [float(loss.detach()) for loss in separate if loss is not None]
    print(f"  一起 {float(together.detach()):.5f}，各自相加 {sum(losses):.5f}")
    assert abs(float(together.detach()) - sum(losses)) < 1e-3

    # 上限 8 个词元，第三对有 14 个
    print("\n四、放不下的不截断，而是说出来")
    try:
        PairBatches(pairs, tokenizer, batch_size=2, max_length=8)
        raise AssertionError("a pair longer than max_length must be refused")
    except ValueError as error:
        print(f"  ValueError: {error}")


if __name__ == "__main__":
    run_demo(demo)
