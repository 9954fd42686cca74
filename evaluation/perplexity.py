r"""一段文本，模型觉得有多意外？——困惑度 (perplexity) 与每字节比特数 (bits per byte)。

公式：$L = -\frac{1}{N}\sum_t \ln p(x_t \mid x_{<t})$，$\mathrm{PPL} = e^{L}$，
      $\mathrm{BPB} = \dfrac{N L}{\ln 2 \cdot n_{\text{bytes}}}$

困惑度读作「平均在几个词元里拿不准」：在 V 个里瞎猜是 V，每次都对是 1。它的单位是「每词元」，
换一个分词器，词元的长短变了，数字就不能比；每字节比特数除以的是原文的字节，什么分词器都能比。

文本比上下文长，要切成窗口。窗口开头的词元看不到前文，吃亏；让窗口重叠，只给新的部分打分：

    上下文 C = 6，步长 (stride) s = 6：互不重叠，最快       · 看得到、不重复打分   ■ 打分
    ■■■■■■
          ■■■■■■        第二块的第一个词元，前文是空的
    s = 2：每个词元至少看得到 C − s = 4 个前文，慢 3 倍
    ■■■■■■
      ····■■
        ····■■

每个词元恰好打分一次，与步长无关；步长越小，前文越足，困惑度越低。比较两个模型时步长要相同。

数字怎样读：
    困惑度 = 词表大小          什么也没学到，与瞎猜一样
    困惑度接近 1               背下来了；在没练过的文本上也这样，才值得高兴，也才值得怀疑
    每字节 8 比特              与不压缩一样；原文一个字节就是 8 比特
    每字节比特数降了一半       照它编码，文件就能再小一半：预测与压缩是同一件事

常见疑问：
    为什么越练，训练集的降、别处的升？   背书了；看没练过的文本才算数
    两个模型的困惑度能比吗？             分词器相同、文本相同、步长相同，才能；否则比每字节比特数
    为什么第一个词元不打分？             它没有前文；垫一个结束符，它也就有了
    为什么加起来再除，而不是先平均再平均？ 各窗口打分的个数不同，平均的平均就偏了
    bf16 的模型准吗？                    损失一律在 float32 里算；舍入的只是权重与中间的数
    步长该取多少？                       报数时取 C/2：慢一倍，而每个词元至少有一半的前文
    许多篇文本，要分开算吗？             分开算，篇首没有前文，偏高；这里接起来，与训练时相同
    困惑度能当训练的目标吗？             它就是：损失取指数。降损失与降困惑度是同一件事

还有两样相近的量：每字符比特数（bits per character）除以字符数，汉字一个字三个字节，与每字节的
不能混着比；压缩率是 8 / 每字节比特数，模型配上算术编码，真的压得到那么小。

论文：Jelinek et al. 1977（困惑度）；Baevski & Auli 2018, §4（步长对困惑度的影响）
改哪里：换窗口的走法，改 `windows`；想按文档分别算，对每篇文档各调用一次 `evaluate_text`。
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foundation.checks import check_int
from foundation.demonstration import run_demo
from gpt_model.config import preset
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer
from training.batch import IGNORE_INDEX, Tokens, WindowReader
from training.token_shard import TokenShard

__all__ = [
    "Perplexity",
    "evaluate_documents",
    "evaluate_shard",
    "evaluate_text",
    "evaluate_tokens",
]


@dataclass(frozen=True)
class Perplexity:
    """一次评估的结果。

    不可变：算好的数不该再被人改；几个结果可以放心地比较、存进列表
    loss      平均每词元的损失，单位是 nat（自然对数）
    n_tokens  打了分的词元数；第一个词元没有前文，不在其中
    n_bytes   这些词元合多少字节的原文；不知道就是 None
    """

    loss: float
    n_tokens: int
    n_bytes: float | None = None

    @property
    def perplexity(self) -> float:
        """e 的 loss 次方；大得装不下时是 inf，而不是一个 OverflowError。"""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """每字节原文要多少比特才能记下来；不知道字节数就是 None。

        公式：总损失 N·L 是 nat，除以 ln 2 成比特，再除以字节数
        """
        if not self.n_bytes:
            return None
        return self.loss * self.n_tokens / math.log(2) / self.n_bytes

    def __str__(self) -> str:
        # 没有字节数就没有这一项
        bits = self.bits_per_byte
        # 不知道字节数，就不说那一项
        tail = "" if bits is None else f", {bits:.4f} bits per byte"
        return (
            f"loss {self.loss:.4f}, perplexity {self.perplexity:.2f}{tail} ({self.n_tokens} tokens)"
        )


def evaluate_text(
    model: GPT,
    tokenizer: Tokenizer,
    text: str,
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int = 16,
) -> Perplexity:
    """一段文本的困惑度；见 `evaluate_documents`，这里只有一篇。

    用法：print(evaluate_text(model, tokenizer, open("a.txt", encoding="utf-8").read()))
    """
    return evaluate_documents(
        model, tokenizer, [text], context=context, stride=stride, batch_size=batch_size
    )


def evaluate_documents(
    model: GPT,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int = 16,
) -> Perplexity:
    """几篇文档首尾相接的困惑度；每个字节都算到。

    公式：n_bytes = Σ 各篇的 UTF-8 字节数；垫的结束符打分，却不占字节，与训练时同一个口径
    每篇前面垫一个结束符，正如训练时文档都接在上一篇的结束符后面，于是第一个词元也有前文；
    分词器规定了开头（Llama 的 <s>）的，最前面垫的是它。两样都没有，第一个词元不打分，字节也不计。
    错误：文本为空、词表与模型不合 → ValueError
    """
    # 分词器与模型不是一对：编号的意思全错，却照样算得出数
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, "
            f"the model's vocab_size is {model.config.vocab_size}; they do not belong together"
        )
    # 一篇一篇地编码，接成一长串；array 里一个编号四个字节，列表里要三十多个
    ids = array("I")
    n_bytes = 0
    for text in texts:
        encoded = tokenizer.encode(text)
        # 空文档不成一篇；训练时的分片里也没有它
        # 开头是别家分词器自己规定的，只在最前面来一次
        if encoded and not ids and tokenizer.start_ids:
            ids.extend(tokenizer.start_ids)
        elif encoded and tokenizer.end_id is not None:
            ids.append(tokenizer.end_id)
        # 空文档不占编号，也就不多一个结束符
        ids.extend(encoded)
        n_bytes += len(text.encode("utf-8"))
    # 全是空文档：没有可打分的，平均数无从谈起
    if not n_bytes:
        raise ValueError("there is nothing to evaluate: the text is empty")
    # 第一个词元不打分，它的字节也要扣掉
    if tokenizer.end_id is None and not tokenizer.start_ids:
        n_bytes -= len(tokenizer.token_bytes(ids[0]))
    # frombuffer 不复制，只是换一种看法
    tokens: np.ndarray = np.frombuffer(ids, dtype=np.dtype(ids.typecode))
    return evaluate_tokens(
        model, tokens, context=context, stride=stride, batch_size=batch_size, n_bytes=n_bytes
    )


def evaluate_shard(
    model: GPT,
    shard: TokenShard,
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int = 16,
) -> Perplexity:
    """一个词元分片（训练时的验证集）的困惑度；字节数由分片自己记着。

    内存：分片是映射到内存的文件，用到哪段读哪段，比内存大也行
    错误：分片的词表比模型的大 → ValueError，两个数都说
    """
    # 编号超出词表会越界；先比大小，说得清楚
    if shard.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{shard.path} was made with {shard.vocab_size} tokens, "
            f"the model's vocab_size is {model.config.vocab_size}; they do not belong together"
        )
    # 分片里记着每个词元平均合几个字节
    per_token = shard.bytes_per_token
    # 与训练时报的每字节比特数同一个口径：按打了分的词元数折算
    n_bytes = None if per_token is None else per_token * (shard.n_tokens - 1)
    return evaluate_tokens(
        model, shard, context=context, stride=stride, batch_size=batch_size, n_bytes=n_bytes
    )


@torch.inference_mode()
def evaluate_tokens(
    model: GPT,
    tokens: Tokens,
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int = 16,
    n_bytes: float | None = None,
) -> Perplexity:
    """一串词元的困惑度：除第一个外，每个恰好打分一次。

    公式：L = (1/N)·Σ_t −ln p(x_t | 窗口里它前面的)；步长 s 时，前文在 C − s 与 C − 1 之间
    形状：N + 1 个词元 → N 道题，切成 ⌈(N − C)/s⌉ + 1 个窗口
    类型：context 缺省为模型的上限；stride 缺省等于 context，即互不重叠
    错误：少于 2 个词元；context、stride 超出范围；模型算出 NaN → ValueError
    """
    # 窗口再长，位置编码就没有了
    limit = model.config.max_seq_len
    context = limit if context is None else check_int("context", context, 1, limit)
    stride = context if stride is None else check_int("stride", stride, 1, context)
    # 一批几个窗口；只影响快慢与内存
    check_int("batch_size", batch_size, 1)
    # 评估完要还给训练的
    was_training = model.training
    # 先加总，最后才除
    total, count = 0.0, 0
    # 评估时要关掉 dropout；完了恢复原状，训练途中也可以调用
    model.eval()
    try:
        for inputs, targets in windows(tokens, context, stride, batch_size):
            inputs, targets = inputs.to(model.device), targets.to(model.device)
            # 要总和，不要平均：各批打分的个数不同
            loss = model(inputs, targets, reduction="sum").loss
            # Python 的浮点数是 64 位的：几百万个词元加起来也不丢精度
            total += float(loss)
            # 盖住的不算
            count += int((targets != IGNORE_INDEX).sum())
    finally:
        model.train(was_training)
    # 一个 NaN 会把总和变成 NaN；与其报一个怪数，不如说权重坏了
    if not math.isfinite(total):
        raise ValueError(f"the model's loss is {total}: its weights are damaged or have diverged")
    # 每词元的平均；第一个词元不在 count 里
    return Perplexity(total / count, count, n_bytes)


def windows(
    tokens: Tokens, context: int, stride: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """把词元切成窗口：(inputs, targets)，上一个窗口打过分的目标盖住。

    约定：盖住的目标是 IGNORE_INDEX，损失不看它，梯度也不经过它
    形状：都是 (B, C)；最后一批可以少几行，最后一个窗口右边补齐
    """
    # 列表、数组、分片都行；读的时候才切
    reader = WindowReader(tokens)
    n_questions = reader.n_tokens - 1
    if n_questions < 1:
        raise ValueError(f"evaluation needs at least 2 tokens, got {reader.n_tokens}")
    # 窗口一直走到最后一道题也打了分为止
    n_windows = 1 + max(0, -(-(n_questions - context) // stride))
    # 每个窗口从第几个词元开始
    starts: np.ndarray = np.arange(n_windows, dtype=np.int64) * stride
    for first in range(0, n_windows, batch_size):
        # 最后一个窗口不够长，右边补齐，补的也盖住
        batch = reader.read(starts[first : first + batch_size], context)
        targets = batch.targets.clone()
        # 只有第一个窗口全部打分；其余的只打最后 stride 个，前面的上一个窗口打过了
        targets[1 if first == 0 else 0 :, : context - stride] = IGNORE_INDEX
        # 一批一批地交，不必全放进内存
        yield batch.inputs, targets


def demo() -> None:
    """瞎猜的困惑度是词表大小；步长越小前文越足；不同的分词器用每字节比特数比。

    两段都是现造的文本、现练的模型，几秒做完；断言的都是公式保证的事，不靠运气
    """
    # 重复四十遍，好让 BPE 有东西可合并
    text = "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。" * 40
    print("一、瞎猜的困惑度就是词表大小；同一段文本，词表不同，要比的是每字节比特数")
    # 同样的文本，两种切法：每个词元的长短不同
    for tokenizer in (Tokenizer.characters([text]), Tokenizer.train_bpe([text], 300)):
        # 还没练过：分数全由最后一层定
        model = GPT(preset("gpt-micro", vocab_size=tokenizer.vocab_size, n_layers=1))
        # 最后一层全是零，每个词元的分数相同
        torch.nn.init.zeros_(model.lm_head.weight)
        # 两种切法，同一段原文
        result = evaluate_text(model, tokenizer, text, context=64)
        print(f"  {tokenizer.kind:10} 词表 {tokenizer.vocab_size:3}：{result}")
        # 在 V 个里瞎猜，困惑度就是 V
        assert math.isclose(result.perplexity, tokenizer.vocab_size, rel_tol=1e-4)

    print("二、教一个小模型背一串周期 24 的随机数，再用不同的步长量")
    # 一串随机数，重复五十遍：看得到上一遍，就全猜得中
    period = torch.randint(16, (24,))
    tokens = period.repeat(50)  # (1200,)
    # 上下文恰好一个周期
    config = preset("gpt-micro", vocab_size=16, max_seq_len=24, n_layers=1, dim=32, n_heads=2)
    model = GPT(config)
    # 学习率大一些：六十步就要背下来
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        # 每遍随机取十六段来练
        starts = torch.randint(1100, (16, 1))
        # 一段二十五个：二十四个输入，二十四道题
        block = tokens[starts + torch.arange(25)]  # (B, T+1)
        loss = model(block[:, :-1], block[:, 1:]).loss
        assert loss is not None
        # 每步从零的梯度开始
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # 三种步长，各量一遍
    found = []
    # 同一个模型、同一串词元，只有步长不同
    for stride in (24, 12, 4):
        # 上下文 24，一个周期也是 24：前文够了就没有悬念
        result = evaluate_tokens(model, tokens, stride=stride)
        found.append(result.perplexity)
        # 步长怎样，打分的词元数都一样
        assert result.n_tokens == len(tokens) - 1
        print(f"  步长 {stride:2}（前文至少 {24 - stride:2} 个）：困惑度 {result.perplexity:.3f}")
    # 前文从「可能为空」变成「至少一半」，差别最大；再多就所剩无几了
    assert found[0] > max(found[1:])


if __name__ == "__main__":
    run_demo(demo)
