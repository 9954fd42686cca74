r"""一批文本同时往下写，一步里发生什么？——全部秘密都在 step() 里。

    ┌──▶ Decoder.next_logits     模型给每行的下一个词元打分       (B, V)
    │    sample_next             惩罚、温度、淘汰，抽一个         (B,)
    │    Continuation.feed       每行收下自己的，该显示的显示，该停的停
    │    keep                    写完的行退出，后面的步子更轻
    └─── append                  没写完的行接上新词元，回到开头

每一行都有自己的随机源、自己的停止条件、自己的解码器；行与行之间只共用一次矩阵乘法，

$$p(y^{(1)}, \dots, y^{(B)}) = \prod_b p(y^{(b)} \mid x^{(b)})$$

所以成批不改变任何一行的内容，只是把权重从内存搬进来的代价摊给了 B 行：逐个词元地写时，
时间几乎全花在搬权重上，B 行与 1 行用时相差不多。

写完的行立刻退出，而不是陪跑到最后：既省计算，也不会在结束之后又写出东西来。

改哪里：让新的提示中途加入（continuous batching）→ step 里 keep 的反面，给 Decoder 加行；
       换选词的办法 → sampling.py 的 sample_next。
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from foundation.demonstration import run_demo
from inference.continuation import Continuation, take_notes
from inference.decoder import Decoder
from inference.penalties import History
from inference.sampling import SamplingParams, sample_next

__all__ = ["Session"]


class Session:
    """一批正在写的文本；反复 step，直到 active 为空。

    params 对全批相同；rows 的第 b 行与 decoder 的第 b 行是同一份文本
    """

    def __init__(
        self, rows: Sequence[Continuation], decoder: Decoder, params: SamplingParams
    ) -> None:
        self.rows = list(rows)  # 全部，次序不变
        self.active = list(rows)  # 还没写完的
        self.decoder = decoder
        self.processors = params.processors()
        self.n_top = params.top_logprobs
        self.with_notes = params.logprobs
        self.history: History | None = None
        # 记账要占 (B, V) 两张表，用不着就不记
        if params.needs_history:
            self.history = History(
                [row.prompt_ids for row in rows],
                vocab_size=decoder.vocab_size,
                device=decoder.model.device,
            )
        self._retire()  # 一个词元也不用写的，从一开始就不占行

    def step(self) -> list[tuple[Continuation, str]]:
        """每行写一个词元；返回（哪一份，现在可以显示的文字）。

        错误：分数里有 NaN、或每个词元都被禁用 → ValueError
        """
        # ① 打分，选词。每行用自己的随机数：旁边有谁、有几行，都不影响它
        logits = self.decoder.next_logits()  # (B, V)
        uniforms = [row.random.next() for row in self.active if row.random is not None]
        chosen = sample_next(logits, self.processors, self.history, uniforms or None)  # (B,)
        tokens = chosen.tolist()  # 整步里唯一一次等 GPU 算完
        # ② 分给各行
        if self.with_notes:
            notes = take_notes(logits, tokens, self.n_top)
            shown = [
                (row, row.feed(token, note))
                for row, token, note in zip(self.active, tokens, notes, strict=True)
            ]
        else:
            shown = [(row, row.feed(token)) for row, token in zip(self.active, tokens, strict=True)]
        # ③ 记账、退场、接上，次序不能换：账本与缓存的行号都还是旧的
        if self.history is not None:
            self.history.record(chosen)
        going = self._retire()
        if going:
            self.decoder.append([tokens[row] for row in going])
        return shown

    def _retire(self) -> list[int]:
        """写完的行退出批；返回留下的行在旧批里的行号。"""
        going = [row for row, text in enumerate(self.active) if text.reason is None]
        if len(going) < len(self.active):
            self.active = [self.active[row] for row in going]
            # 全写完了就不必再抄缓存
            if going:
                self.decoder.keep(going)
                if self.history is not None:
                    self.history.keep(torch.tensor(going, device=self.history.counts.device))
        return going


def demo() -> None:
    """三份文本一起写，看谁在第几步退场；再看一批写与逐份写各用多久。"""
    from gpt_model.config import preset
    from gpt_model.model import GPT
    from inference.drawing import RowRandom
    from tokenization.tokenizer import Tokenizer

    tokenizer = Tokenizer.characters(["春眠不觉晓处闻啼鸟，。"])
    config = preset("modern-micro", vocab_size=tokenizer.vocab_size, init_std=0.1)
    model = GPT(config).eval()  # 没有训练过：写出来的是胡话，步骤却是真的

    def begin(prompts: list[str], samples: Sequence[int], params: SamplingParams) -> Session:
        ids = [tokenizer.encode(prompt) for prompt in prompts]
        rows = [
            Continuation(one, tokenizer, params, context=256, random=RowRandom(0, sample))
            for one, sample in zip(ids, samples, strict=True)
        ]
        return Session(rows, Decoder(model, ids, max_new_tokens=params.max_new_tokens), params)

    print("1. 三份一起写，写到句号为止，至多 10 个词元：")
    with torch.inference_mode():
        params = SamplingParams(max_new_tokens=10, stop=("。",), repetition_penalty=1.2)
        session = begin(["春眠", "处处闻", "鸟"], range(3), params)
        texts, step = session.rows, 0
        while session.active:
            step += 1
            shown = [f"{text or '（无）'}" for _, text in session.step()]
            print(f"   第 {step:2} 步　{' '.join(shown)}　→ 还剩 {len(session.active)} 份")
        for text in texts:
            found = text.generation()
            print(f"   {found.finish_reason:6} {found.text}")
            assert "。" not in found.text

        print("\n2. 16 份、各 60 个词元：")
        params = SamplingParams(max_new_tokens=60)
        seconds, results = [], []
        for size in (16, 1):
            start, written = time.perf_counter(), []
            for first in range(0, 16, size):
                session = begin(["春眠不觉晓"] * size, range(first, first + size), params)
                while session.active:
                    session.step()
                written += [row.generation().ids for row in session.rows]
            seconds.append(time.perf_counter() - start)
            results.append(written)
            print(f"   一批 {size:2} 份：{16 * 60 / seconds[-1]:7,.0f} 词元/秒")
        # 第 i 份用第 i 串随机数，无论它在哪一批
        assert results[0] == results[1]
        print(f"   成批快 {seconds[1] / seconds[0]:.1f} 倍，内容相同")


if __name__ == "__main__":
    run_demo(demo)
