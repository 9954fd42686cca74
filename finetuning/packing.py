r"""对话长短不一，怎样放进方方正正的一批，又不浪费、不串味？——补齐，或者打包。

    补在右边 (right)        补在左边 (left)         打包 (packed)
    问 问 答 ·  ·  ·        ·  ·  ·  问 问 答        问 问 答 问 答 答      两段，一行
    问 答 答 答 ·  ·        ·  ·  问 答 答 答        问 答 答 答 ·  ·
    一行一段                一行一段                 一行几段，互相看不见

补齐的空位一样要算；长短越悬殊越浪费。打包把几段首尾相接放进一行，只在行尾有空位：

$$\text{浪费} = 1 - \frac{\sum_i \ell_i}{B \cdot T}$$

打包不能串味：一段看见了另一段，损失会低得可疑，生成时却没有那样的前文。要两样东西都对：

    谁看得见谁   document_ids：同一段才互相看得见（transformer_basics/document_attention.py）
    第几个       positions：每段从 0 数起；学出来的位置表认的是绝对的位置

检验用求导：甲段的损失对乙段词向量的梯度，必须恰好是 0，不是「很小」。三种拼法的损失之和
（与梯度）也必须相同：拼法只管怎样放，不管学什么（演示与测试都验证）。

放法是固定的：长的先放，放进装得下的行里最满的一行 (best-fit decreasing)。每一轮只打乱行的先后，
于是「第几批是哪几行」仍是 (seed, 编号) 的纯函数，断点续训直接跳到那里。

三种怎么选：
    right   最简单；长短差不多时，也不浪费
    left    生成时用的就是它（最后一列都是真词元）；训练用它，只为与生成的批同样
    packed  长短悬殊、短的居多时，一步能多学几倍的题

左补齐的空位也是一段「谁也不属于的文档」，与打包同一套办法；右补齐连这都不必：注意力是因果的，
真实的词元看不到后面。

论文：Krell et al. 2021, Efficient Sequence Packing, arXiv:2107.02027；
      Johnson 1973（装箱：best-fit decreasing 至多比最优多 11/9）
改哪里：换放法，改 `pack`；放不下的另想办法（例如丢掉最早的几轮），改 `ConversationBatches`；
        哪些词元算损失，见 sft.py。
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from finetuning.conversations import Pair
from finetuning.sft import Encoded, Render, Spoken, encode
from foundation.checks import check_choice, check_int
from foundation.demonstration import run_demo
from gpt_model.config import preset
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer
from training.accumulation import gradients_of, language_model_loss
from training.batch import IGNORE_INDEX, Batch

__all__ = ["LAYOUTS", "ConversationBatches", "pack"]

LAYOUTS = ("right", "left", "packed")


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """装箱：每段去哪一行；返回每行有第几段，各行装的不超过 capacity。

    约定：只看长度与先后，没有随机数：同样的数据总是同样的行
    每段都不超过 capacity，由调用者保证
    """
    # 行是要用时才开的；一行也不多开
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (还剩多少, 第几行)，从少到多
    # 长的先放：短的好塞缝。sorted 是稳定的，同样长的照原来的先后
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # 装得下的里面最满的一行：剩得最少而够用
        place = bisect_left(free, (lengths[index], -1))
        # 哪一行都放不下，就新开一行
        if place == len(free):
            free.append((capacity, len(rows)))
            rows.append([])
        # 放进去之后剩得少了，在从少到多的队伍里往前挪
        left, row = free.pop(place)
        rows[row].append(index)
        insort(free, (left - lengths[index], row))
    return rows


class ConversationBatches:
    """批次号 → Batch，(seed, 批次号) 的纯函数；每一轮每一段恰好一次。

    与 training 里的 TokenBatches 是同一个接口，训练循环分不出它们：换任务，只换批次。

    公式：第 b 批是「无穷队伍」的第 b·B … b·B+B−1 行；队伍由一轮一轮的排列首尾相接而成
    形状：inputs、targets (B, T)，T 是这一批里最长的一行，不超过 max_length
    类型：layout 见文件开头；too_long 为 "refuse"（有一段放不下就报错）或 "skip"（跳过，
          个数记在 n_skipped）
    错误：没有一段放得下；refuse 时有放不下的 → ValueError，写明长度与上限
    """

    def __init__(
        self,
        conversations: Sequence[Spoken],
        tokenizer: Tokenizer,
        batch_size: int,
        max_length: int,
        *,
        seed: int = 0,
        too_long: str = "refuse",
        layout: str = "right",
        render: Render | None = None,
    ) -> None:
        self.batch_size = check_int("batch_size", batch_size, 1)
        self.max_length = check_int("max_length", max_length, 1)
        self.seed = check_int("seed", seed, 0)
        check_choice("too_long", too_long, ("refuse", "skip"))
        self.layout = check_choice("layout", layout, LAYOUTS)
        # 一次全部分好词：几千段只占几兆字节，以后每一步都不必再分
        encoded = [encode(one, tokenizer, render) for one in conversations]
        # inputs 比全部词元少一个结束符，它的长度才是模型要看的长度
        lengths = [len(one.inputs) for one in encoded]
        longest = max(lengths, default=0)
        # 截断是最坏的办法：砍头丢了提问，砍尾教模型话说一半就停
        # 记住留下的是第几段，出了坏批次才能指回原来的数据
        self.kept = [number for number, length in enumerate(lengths) if length <= max_length]
        # 跳过了几段要让人知道，悄悄少了一半数据是很难发现的
        self.n_skipped = len(conversations) - len(self.kept)
        if self.n_skipped and too_long == "refuse":
            raise ValueError(
                f"{self.n_skipped} of {len(conversations)} conversations are longer than "
                f"max_length {max_length} tokens (the longest: {longest}); shorten them, or pass "
                "too_long='skip'"
            )
        # 全跳过了也不行：一步都训练不了
        if not self.kept:
            raise ValueError(
                f"no conversation is left of {len(conversations)}: max_length is {max_length} "
                f"tokens, the longest has {longest}"
            )
        # 从此只看留下的；第几段要查 kept
        # 词元编号放在 Python 的列表里，取到哪一批才变成张量
        self.encoded: list[Encoded] = [encoded[number] for number in self.kept]
        # 一行有哪几段：打包时几段，补齐时一段
        # 两种补齐放法相同，只差写在行的哪一头
        self.rows = [[index] for index in range(len(self.encoded))]
        if layout == "packed":
            self.rows = pack([len(one.inputs) for one in self.encoded], max_length)
        # 补位用什么编号都行，它的目标是 −100，又没有真实的词元看得到它
        self.padding_id = tokenizer.end_id or 0
        # 只记最近一轮的顺序；整个元组一起换，后台预取的线程读到的总是成对的
        self._recent: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        # 一轮有多少段对话；批次却是无穷的
        return len(self.encoded)

    def __call__(self, index: int) -> Batch:
        """取第 index 批；与之前取过哪些批无关，断点续训直接跳到这里。

        一批可以跨两轮：不丢掉每轮末尾的零头，每一段出现的次数才相同
        """
        first = check_int("index", index, 0) * self.batch_size
        # 打包时一行有几段，批的大小数的是行：内存只与行的长度有关
        chosen = []
        for place in range(first, first + self.batch_size):
            # 各轮首尾相接成一条无穷的队伍：第几轮、轮内第几个
            epoch, rank = divmod(place, len(self.rows))
            chosen.append(int(self.order(epoch)[rank]))
        return self.collate(chosen)

    def order(self, epoch: int) -> np.ndarray:
        """第 epoch 轮的顺序，各行的一个排列，只取决于 (seed, epoch)。

        打乱的是行，不是行里的几段：它们互相看不见，先后无所谓

        给每行发一个 64 位随机数再排序：numpy 只保证位流永不改变，不保证洗牌的算法不变。
        """
        # 一轮之内取许多批，排一次就够
        recent = self._recent
        if recent is not None and recent[0] == epoch:
            return recent[1]
        # SeedSequence 把两个整数搅匀：相邻的 seed 与 epoch 也得到毫不相干的顺序
        bits = np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))
        order: np.ndarray = np.argsort(bits.random_raw(len(self.rows)), kind="stable")
        # 记住的与算出来的是同一个排列，所以 order 仍是纯函数，只是快些
        # 跳回前一轮（例如续训）也只是再排一次
        self._recent = (epoch, order)
        return order

    def once(self) -> Iterator[Batch]:
        """按固定的顺序把每一段恰好走一遍，供评估；最后一批可以少几行。

        评估要比较前后两次，题目与顺序都必须相同，所以不打乱
        """
        # 打包的评估与补齐的评估是同一个数：损失之和与题数都不变
        # 一次只拼一批，留出集再大也不占内存
        for first in range(0, len(self.rows), self.batch_size):
            yield self.collate(range(first, min(first + self.batch_size, len(self.rows))))

    def waste(self) -> float:
        """空位占多少：每行都补到最长的一行时算。

        公式：1 − Σℓ / (行数 · 最长的一行)；真训练时每批只补到自己最长的，会少一些
        """
        used = [sum(len(self.encoded[index].inputs) for index in row) for row in self.rows]
        return 1.0 - sum(used) / (len(used) * max(used))

    def collate(self, chosen: Sequence[int]) -> Batch:
        """把几行拼成一批。

        chosen 是行的编号；同一行可以出现两次（数据很少、批很大时）
        形状：(B, T)，T 取这几行里最长的，而不是 max_length：少算许多补位
        """
        rows = [self.rows[row] for row in chosen]
        # window_ids 记的是第几段：损失突然成了 NaN 时，凭它回到原来的数据去看
        numbers = tuple(self.kept[index] for row in rows for index in row)
        used = [sum(len(self.encoded[index].inputs) for index in row) for row in rows]
        # 一行用了多少；最长的定下这一批的宽度
        shape = (len(rows), max(used))
        # 目标铺 −100：补位不是题，题数（分母）里也没有它们
        # 先铺满补位，再把真的写进去：没写到的地方自然就是补位
        inputs = torch.full(shape, self.padding_id)
        targets = torch.full(shape, IGNORE_INDEX)
        # 补位自成一段：编号 0，位置也是 0；真的从 1 数起
        documents, positions = torch.zeros(shape).long(), torch.zeros(shape).long()
        for place, row in enumerate(rows):
            # 左补齐的从中间开始写，写到行尾正好用完
            start = shape[1] - used[place] if self.layout == "left" else 0
            for number, index in enumerate(row, start=1):
                # 一段占 [start, start + ℓ)，四样东西写在同一处
                one = self.encoded[index]
                span = slice(start, start := start + len(one.inputs))
                inputs[place, span] = torch.tensor(one.inputs)
                targets[place, span] = torch.tensor(one.targets)
                documents[place, span] = number
                positions[place, span] = torch.arange(len(one.inputs))
        # 每段的编号不同、各从 0 数起，模型据此画出「谁看得见谁」
        # 右补齐不必说：因果注意力只往回看，右边的补位谁也看不见
        if self.layout == "right":
            return Batch(inputs, targets, window_ids=numbers)
        return Batch(inputs, targets, documents, numbers, positions)


def demo() -> None:
    """三种拼法：浪费多少、损失同不同、串不串味；再看放不下的怎么说。

    用按字分的分词器：一个字一个词元，长短一看便知
    """
    letters = "一二三四五六七八九十"
    tokenizer = Tokenizer.characters([letters])
    # 长短悬殊的九段：补齐很浪费
    pairs = [Pair(letters[:n], letters[-n:]) for n in (1, 9, 2, 1, 8, 3, 1, 2, 7)]
    layouts = {
        layout: ConversationBatches(pairs, tokenizer, 9, 24, layout=layout) for layout in LAYOUTS
    }
    # init_std 取大一些：注意力有了分明的偏好，看错一个词元就看得出来
    model = GPT(preset("gpt-micro", vocab_size=tokenizer.vocab_size, n_layers=2, init_std=0.2))

    # 每段的长度是提问与答案之和；结束符只是目标，不占位置
    print("一、打包：第几段放进哪一行（每行至多 24 个词元）")
    for row in layouts["packed"].rows:
        lengths = [len(layouts["packed"].encoded[index].inputs) for index in row]
        print(f"  {row} 长 {lengths}，共 {sum(lengths)}")
        assert sum(lengths) <= 24
    print("  空位：" + "，".join(f"{name} {b.waste():.0%}" for name, b in layouts.items()))
    assert layouts["packed"].waste() < 0.1 < layouts["right"].waste()

    show_equal_gradients(model, layouts)
    show_no_leak(model, layouts["packed"](0))

    # 悄悄截断的话，损失照样下降，只是学会了话说一半
    # 上限 8 个词元，有几段更长
    print("四、放不下的不截断，而是说出来")
    try:
        ConversationBatches(pairs, tokenizer, batch_size=2, max_length=8)
        raise AssertionError("a conversation longer than max_length must be refused")
    except ValueError as error:
        print(f"  ValueError: {error}")


def show_equal_gradients(model: GPT, layouts: Mapping[str, ConversationBatches]) -> None:
    """三种拼法的梯度逐个与右补齐的比：只差加法的次序。"""
    print("二、三种拼法，同一个梯度（没训练过的模型，位置表是学出来的那种）")
    gradients = {}
    for name, batches in layouts.items():
        model.zero_grad()
        for batch in batches.once():
            # 损失之「和」：平均会因一批的题数不同而不同
            torch.autograd.backward(language_model_loss(model, batch)[0])
        # 全部参数的梯度接成一个长向量，一个数也不漏
        gradients[name] = torch.cat([g.flatten() for g in gradients_of(model.parameters())])
        gap = float((gradients[name] - gradients["right"]).norm() / gradients["right"].norm())
        print(f"  {name:7} ‖梯度‖ {float(gradients[name].norm()):.4f}，与右补齐相差 {gap:.0e}")
        assert gap < 1e-5


def show_no_leak(model: GPT, batch: Batch) -> None:
    """甲段的损失对乙段词向量的梯度：说明了谁是谁，恰好是 0；忘了说，就不是。"""
    print("三、串不串味：每行第二段的损失，对各段词向量的梯度")
    assert batch.document_ids is not None
    mine = batch.document_ids == 2  # 第一段没有前面的段可看，取第二段才验得出
    # 记下词向量那一层的输出：损失对它求导，就知道谁影响了谁
    seen: list[torch.Tensor] = []
    hook = model.token_embedding.register_forward_hook(
        lambda _module, _args, output: seen.append(output)
    )
    # 只留甲段的题目，别的全盖住
    targets = torch.where(mine, batch.targets, IGNORE_INDEX)
    # 同一批，说与不说「谁是谁」，各求一次导
    for name, documents in (("说明了谁是谁", batch.document_ids), ("忘了说　　　", None)):
        loss = model(batch.inputs, targets, document_ids=documents, reduction="sum").loss
        (slope,) = torch.autograd.grad(loss, seen[-1])
        # 乙段的梯度里只要有一个不是 0，就是漏了
        leak = float(slope[~mine].abs().max())
        print(f"  {name} 自己 {float(slope[mine].abs().max()):.3f}，别的段 {leak:.3f}")
        assert (leak == 0.0) == (documents is not None)
    # 摘下钩子，模型恢复原样
    hook.remove()


if __name__ == "__main__":
    run_demo(demo)
