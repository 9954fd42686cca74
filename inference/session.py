r"""一批文本同时往下写，一步里发生什么？——全部秘密都在 step() 里。

    ┌──▶ Decoder.next_logits     模型给每行的下一个词元打分       (B, V)
    │    restrict                有规则的行，划掉会写坏的词元     (B, V)
    │    sample_next             惩罚、温度、淘汰，抽一个         (B,)
    │    Continuation.feed       每行收下自己的，该显示的显示，该停的停
    │    keep                    写完的行退出，后面的步子更轻
    └─── append                  没写完的行接上新词元，回到开头

每一行都有自己的随机源、自己的停止条件、自己的解码器；行与行之间只共用一次矩阵乘法，

$$p(y^{(1)}, \dots, y^{(B)}) = \prod_b p(y^{(b)} \mid x^{(b)})$$

右边没有一项同时含有两行，所以成批不改变任何一行的内容，只是把权重从内存搬进来的代价摊给了
B 行：逐个词元地写时，时间几乎全花在搬权重上，B 行与 1 行用时相差不多。

写完的行立刻退出，而不是陪跑到最后：既省计算，也不会在结束之后又写出东西来。

三样东西按行号对齐，必须一起进退，漏掉一样就张冠李戴：

    active    给人看的：第 b 份文本
    decoder   模型看的：第 b 行的窗口、缓存、填充
    history   惩罚看的：第 b 行说过什么

常见疑问：
    批越大越快吗？      先是：搬一次权重，多算几行几乎不花时间。大到算得比搬得慢之后就不是了；
                        缓存也按行数占内存
    一行特别长怎么办？  别的行写完都退出了，最后只剩它自己一行，不耽误也不浪费
    为什么一步只等一次？GPU 自己排着队往前算，CPU 每问一次「是几」，就要等它全部算完；
                        所以一步里只在拿到编号时问一次

改哪里：让新的提示中途加入（continuous batching）→ step 里 keep 的反面，给 Decoder 加行；
       换选词的办法 → sampling.py 的 sample_next。
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from foundation.demonstration import run_demo
from inference.constraints import restrict
from inference.continuation import Continuation, TokenNote, take_notes
from inference.decoder import Decoder
from inference.drawing import RowRandom
from inference.penalties import History
from inference.sampling import SamplingParams, sample_next

if TYPE_CHECKING:
    from gpt_model.model import GPT
    from tokenization.tokenizer import Tokenizer

__all__ = ["Session"]


class Session:
    """一批正在写的文本；反复 step，直到 active 为空。

    rows 按原来的次序保留全部；active 只有还没写完的
    params 对全批相同；active、decoder、history 的第 b 行是同一份文本，rows 的行号则永远不变
    约定：行数只减不增；退出的行不再用它的随机源，所以不影响还在写的
    """

    def __init__(
        self, rows: Sequence[Continuation], decoder: Decoder, params: SamplingParams
    ) -> None:
        self.rows = list(rows)  # 全部，次序不变
        self.active = list(rows)  # 还没写完的
        self.decoder = decoder  # 行号跟着 active，不跟着 rows
        self.processors = params.processors()  # 一批之内不变，不必每步再造
        self.n_top = params.top_logprobs  # 每步另记几个候选
        self.with_notes = params.logprobs  # 没要就不算：多一次 (B, V) 的 log-softmax
        self.history: History | None = None
        # 记账要占 (B, V) 两张表，用不着就不记
        if params.needs_history:
            self.history = History(
                [row.prompt_ids for row in rows],  # 重复惩罚连提示也算
                vocab_size=decoder.vocab_size,  # 与分数的 V 一致，才能逐格相减
                device=decoder.model.device,  # 与分数同在一处，不来回搬
            )
        # 一个词元也不用写的（max_new_tokens = 0、提示已占满上下文），从一开始就不占行
        self._retire()

    def step(self) -> list[tuple[Continuation, str]]:
        """每行写一个词元；返回（哪一份，现在可以显示的文字）。

        次序：active 的次序；刚写完的也在内，下一步才不见
        形状：B = len(active) → B 对；文字可能是空的（还扣着）
        错误：分数里有 NaN、或每个词元都被禁用 → ValueError
        """
        # ① 打分，选词。每行用自己的随机数：旁边有谁、有几行，都不影响它
        #    贪心的行没有随机源，uniforms 就是空的
        logits = self.decoder.next_logits()  # (B, V)
        uniforms = [row.random.next() for row in self.active if row.random is not None]
        #    规则在最前面：划掉的记作 −∞，后面的惩罚、温度、淘汰都不会把它变回来
        scores = restrict(logits, [row.allowed() for row in self.active])  # (B, V)
        chosen = sample_next(scores, self.processors, self.history, uniforms or None)  # (B,)
        tokens = chosen.tolist()  # 整步里唯一一次等 GPU 算完
        # ② 分给各行；要记对数概率的话，用模型原来的分数，不是惩罚、温度之后的
        notes: list[TokenNote | None] = [None] * len(tokens)
        if self.with_notes:
            notes = [*take_notes(logits, tokens, self.n_top)]
        rows = zip(self.active, tokens, notes, strict=True)
        shown = [(row, row.feed(token, note)) for row, token, note in rows]
        #    显示的可能是空串：半个汉字、半个停止串还扣着
        # ③ 记账、退场、接上，次序不能换：账本与缓存的行号都还是旧的
        if self.history is not None:
            self.history.record(chosen)
        going = self._retire()
        if going:
            self.decoder.append([tokens[row] for row in going])
        return shown

    def _retire(self) -> list[int]:
        """写完的行退出批；返回留下的行在旧批里的行号。

        形状：B 行 → B' 行，B' ≤ B；没有谁退出时什么也不抄
        """
        going = [row for row, text in enumerate(self.active) if text.reason is None]
        if len(going) < len(self.active):
            self.active = [self.active[row] for row in going]
            # 全写完了就不必再抄缓存
            if going:
                self.decoder.keep(going)  # 窗口、缓存、掩码一起裁
                if self.history is not None:
                    self.history.keep(torch.tensor(going, device=self.history.counts.device))
        return going


def demo() -> None:
    """三份文本一起写，看谁在第几步退场；再看一批写与逐份写各用多久。

    「小诗人」背过三首诗（见 poet.py）；每首长短相同，提示却长短不一，所以退场有先后
    """
    from inference.poet import learn_poems
    from inference.request import Request

    model, tokenizer, _ = learn_poems()
    model.eval()
    # ① 贪心，写到句号为止；停止串让各行在不同的步数退场
    print("1. 三份一起写，写到句号为止：")
    with torch.inference_mode():
        params = SamplingParams(max_new_tokens=20, stop=("。",), temperature=0)
        request = Request(model, tokenizer, params)
        session = request.begin(request.encode(["春眠不觉", "白日", "床前明月光，疑是"]))
        step = 0
        while session.active:
            step += 1
            # 每行这一步能显示的；停止串一出现，那一行就写完了
            shown = "　".join(text or "（停）" for _, text in session.step())
            print(f"   第 {step:2} 步　{shown:12}　还剩 {len(session.active)} 份")
        for row in session.rows:
            print(f"   {tokenizer.decode(row.prompt_ids)}│{row.generation().text}")
            assert row.reason == "stop"

        print("\n2. 同一条提示写 16 份、各 60 个词元，分几批写：")
        # ② 吞吐：一批 16 行只读一遍权重，分 16 次写要读 16 遍
        seconds, results = [], []
        for size in (16, 1):
            start, written = time.perf_counter(), []
            for seed in range(0, 16, size):
                # 第 i 份用第 i 个种子，无论它在哪一批
                written += sixty_tokens(model, tokenizer, range(seed, seed + size))
            seconds.append(time.perf_counter() - start)
            results.append(written)
            print(f"   一批 {size:2} 份：{16 * 60 / seconds[-1]:7,.0f} 词元/秒")
        assert results[0] == results[1]
        print(f"   成批快 {seconds[1] / seconds[0]:.1f} 倍，每一份的内容都相同")


def sixty_tokens(model: GPT, tokenizer: Tokenizer, seeds: Sequence[int]) -> list[list[int]]:
    """每个种子一行，各写六十个词元；0 号是「文章结束」，禁用它好让各行一样长。"""
    params = SamplingParams(max_new_tokens=60, logit_bias={0: -torch.inf})
    ids = tokenizer.encode("春眠不觉晓")
    rows = [
        Continuation(ids, tokenizer, params, context=256, random=RowRandom(seed)) for seed in seeds
    ]
    session = Session(rows, Decoder(model, [ids] * len(rows), max_new_tokens=60), params)
    while session.active:
        session.step()
    return [row.ids for row in rows]


if __name__ == "__main__":
    run_demo(demo)
