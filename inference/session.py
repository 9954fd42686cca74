r"""一批文本同时往下写，一步里发生什么？——全部秘密都在 step() 里。

    ┌──▶ Decoder.next_logits     模型给每行的下一个词元打分       (B, V)
    │    restrict                有规则的行，划掉会写坏的词元     (B, V)
    │    BatchSampler.choose     惩罚、温度、淘汰，抽一个         (B,)
    │    Continuation.feed       每行收下自己的，该显示的显示，该停的停
    │    keep                    写完的行退出，后面的步子更轻
    └─── append                  没写完的行接上新词元，回到开头

每一行都有自己的参数、随机数、停止条件、解码器；行与行之间只共用一次矩阵乘法，

$$p(y^{(1)}, \dots, y^{(B)}) = \prod_b p(y^{(b)} \mid x^{(b)})$$

右边没有一项同时含有两行，所以成批不改变任何一行的内容，只是把权重从内存搬进来的代价摊给了
B 行：逐个词元地写时，时间几乎全花在搬权重上，B 行与 1 行用时相差不多。

写完的行立刻退出，而不是陪跑到最后：既省计算，也不会在结束之后又写出东西来。

四样东西按行号对齐，必须一起进退，漏掉一样就张冠李戴：

    active    给人看的：第 b 份文本
    decoder   模型看的：第 b 行的窗口、缓存、填充
    sampler   选词看的：第 b 行的温度、top-k、惩罚
    history   惩罚看的：第 b 行说过什么

只剩一行时，一步可以不止写一个：先猜 k 个，连同末尾那个一起打分，对的都收下（见 speculative.py）。
别的行还在时不猜：搬一遍权重，已经有几行分摊了。

常见疑问：
    批越大越快吗？      先是：搬一次权重，多算几行几乎不花时间。大到算得比搬得慢之后就不是了；
                        缓存也按行数占内存
    一行特别长怎么办？  别的行写完都退出了，最后只剩它自己一行，不耽误也不浪费
    为什么一步只等一次？GPU 自己排着队往前算，CPU 每问一次「是几」，就要等它全部算完；
                        所以一步里只在拿到编号时问一次

改哪里：让新的提示中途加入（continuous batching）→ step 里 keep 的反面，给 Decoder 加行；
       换选词的办法 → sampling.py 与 batched_sampling.py。
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foundation.demonstration import run_demo
from inference.batched_sampling import BatchSampler
from inference.constraints import restrict
from inference.continuation import Continuation, TokenNote, take_notes
from inference.decoder import Decoder
from inference.penalties import History
from inference.random_stream import RowRandom
from inference.sampling import SamplingParams
from inference.speculative import Speculation, n_right

if TYPE_CHECKING:
    from gpt_model.model import GPT
    from inference.guessing import Guesser
    from tokenization.tokenizer import Tokenizer

__all__ = ["Session", "ready"]


@contextmanager
def ready(modules: Sequence[nn.Module]) -> Iterator[None]:
    """生成期间：关掉 dropout，不记梯度；出来时（哪怕被 Ctrl-C 打断）逐个复原。

    不用 model.eval() 与 model.train() 一进一出：用户可能特意冻住了其中一部分，那样会把它解冻
    """
    # 通常一个也没有，所以流式时每步进出一次也不费什么；
    # modules 由调用者列好：走一遍整棵模块树，在小模型上比一步还久
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        # 比 no_grad 更彻底：张量连版本号也不记，每一步都省一点
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


class Session:
    """一批正在写的文本；反复 step，直到 active 为空。

    rows 按原来的次序保留全部；active 只有还没写完的
    每行的参数在它自己那里；active、decoder、sampler、history 的第 b 行是同一份文本
    约定：行数只减不增；rows 的行号永远不变
    """

    def __init__(
        self,
        rows: Sequence[Continuation],
        decoder: Decoder,
        speculation: Speculation | None = None,
    ) -> None:
        self.rows = list(rows)  # 全部，次序不变
        self.active = list(rows)  # 还没写完的
        self.decoder = decoder  # 行号跟着 active，不跟着 rows
        self.speculation = speculation  # None 就老老实实一个一个地写
        self._guesser: tuple[Continuation, Guesser] | None = None  # 为哪一份文本准备的
        # 每行一组参数：多半相同，也可以各不相同
        params = [row.params for row in rows]
        self.sampler = BatchSampler(params, decoder.model.device)
        # 有一行要就整批都记，各行只交自己要的；没人要就不算：多一次 (B, V) 的 log-softmax
        self.with_notes = any(one.logprobs for one in params)
        self.n_top = max((one.top_logprobs for one in params), default=0)
        # 惩罚要看的账本：每个词元说过几次
        self.history: History | None = None
        # 记账要占 (B, V) 两张表，用不着就不记
        if any(one.needs_history for one in params):
            self.history = History(
                [row.prompt_ids for row in rows],  # 重复惩罚连提示也算
                vocab_size=decoder.vocab_size,  # 与分数的 V 一致，才能逐格相减
                device=decoder.model.device,  # 与分数同在一处，不来回搬
            )
        # 一个词元也不用写的（max_new_tokens = 0、提示已占满上下文），从一开始就不占行
        self._retire()

    def step(self) -> list[tuple[Continuation, str]]:
        """每行写一个词元，猜中了就多写几个；返回（哪一份，现在可以显示的文字）。

        次序：active 的次序；刚写完的也在内，下一步才不见
        形状：B = len(active) → B 对；文字可能是空的（还扣着）
        错误：分数里有 NaN、或每个词元都被禁用 → ValueError
        """
        began = time.perf_counter()
        # ① 打分，选词。猜了 k 个，就是一行的 k + 1 个位置；没猜就是 B 行各一个
        warm = self.decoder.room > 0
        ahead = self._guess() if warm and self.speculation is not None else []
        #    有填充、滑动、缓存满了，都是 decoder 的事
        logits = self.decoder.next_logits(ahead)  # (B, V) 或 (k + 1, V)
        chosen = self._choose(logits, ahead)  # (B,) 或 (k + 1,)
        tokens = chosen.tolist()  # 整步里唯一一次等 GPU 算完
        # ② 批改：对的几个，加上其后第一个；没猜时每行就是一个
        #    mine[b] 是第 b 行这一步写的，至少一个
        right = n_right(ahead, tokens)
        mine = [tokens[: right + 1]] if ahead else [[token] for token in tokens]
        #    要记对数概率的话，用模型原来的分数，不是惩罚、温度之后的
        notes: list[TokenNote | None] = [None] * len(tokens)
        if self.with_notes:
            notes = [*take_notes(logits, tokens, self.n_top)]
        # ③ 分给各行；显示的可能是空串：半个汉字、半个停止串还扣着
        shown, note = [], iter(notes)
        for row, several in zip(self.active, mine, strict=True):
            before, text = len(row.ids), ""
            # 逐个收：停止串、「结束」、规则都可能在半路说停，后面猜对的也就不要了
            for token in several:
                if row.reason is None:
                    text += row.feed(token, next(note))
            del several[len(row.ids) - before :]
            shown.append((row, text))
        # ④ 记账、退回、退场、接上，次序不能换：账本与缓存的行号都还是旧的
        if self.history is not None:
            # 没猜时只有一个位置，B 行一起记；猜了就是一行的几个位置，一个一个记
            for place in zip(*mine, strict=True):
                self.history.record(torch.tensor(place, device=logits.device))
        #    猜错的、没收的，从缓存里退掉
        self.decoder.rewind(len(ahead) - min(right, len(mine[0])))
        #    预填的那一步不算：它读的是整段提示，快慢与猜不猜无关
        if self.speculation is not None and warm:
            seconds = time.perf_counter() - began
            self.speculation.after(len(ahead), right, len(mine[0]), seconds)
        going = self._retire()
        if going:
            self.decoder.append([mine[row][-1] for row in going])
        return shown

    def _choose(self, logits: Tensor, ahead: Sequence[int]) -> Tensor:
        """每个位置选一个，照它自己的规则、账本与运气：旁边有谁、有几行，都不影响它。

        形状：(B, V) → (B,)；往前看了 k 个就是一行的 (k + 1, V) → (k + 1,)
        """
        # 每样都是先按行、再按位置排，与 logits 的行对得上。
        # 规则在最前面：划掉的记作 −∞，后面的惩罚、温度、淘汰都不会把它变回来
        allowed = [mask for row in self.active for mask in row.allowed(ahead)]
        scores = restrict(logits, allowed)
        # 第 t 个词元用第 t 份运气，不管它是哪一步、第几个位置写的
        keys = [row.key(i) for row in self.active for i in range(len(ahead) + 1)]
        # 惩罚也要看「前面几个都写了」之后的账
        history = self.history
        if history is not None and ahead:
            history = history.ahead(ahead)
        return self.sampler.choose(scores, history, keys)

    def _guess(self) -> list[int]:
        """猜接下来的几个；不值得、猜不出就是空的。只在剩一行时叫它。"""
        assert self.speculation is not None
        (row,) = self.active
        # 最后一个不必猜：批改时白得一个，恰好写满
        n = self.speculation.size(min(self.decoder.room, row.limit - len(row.ids) - 1))
        # 它说不值得猜，多半是量过了
        if n < 1:
            return []
        # 每份文本各有一个猜法：索引、草稿的缓存都跟着文本走
        # 前一份写完、轮到另一份独自写时，换一个新的
        if self._guesser is None or self._guesser[0] is not row:
            self._guesser = row, self.speculation.begin()

        # 草稿也照同样的规矩选，只为像：大模型选什么，与它无关
        def choose(logits: Tensor, guessed: list[int]) -> int | None:
            # 猜到文章结束、规则写完，后面就没有要猜的了
            if len(row.sensible(guessed)) < len(guessed):
                return None
            # 只要最后一个位置的：名单、账本、运气
            masks = row.allowed(guessed)[-1:]
            history = self.history if self.history is None else self.history.ahead(guessed)
            if history is not None:
                history.keep(torch.tensor([len(guessed)], device=logits.device))
            # 与 _choose 同样的三步，只是分数来自小模型
            scores = restrict(logits, masks)
            return int(self.sampler.choose(scores, history, [row.key(len(guessed))]))

        # 翻前文抄来的不管规则，所以再筛一遍
        return row.sensible(self._guesser[1].guess([*row.prompt_ids, *row.ids], n, choose))

    def _retire(self) -> list[int]:
        """写完的行退出批；返回留下的行在旧批里的行号。

        形状：B 行 → B' 行，B' ≤ B；没有谁退出时什么也不抄
        """
        # 行号都是旧批里的：四样东西照它一起裁
        going = [row for row, text in enumerate(self.active) if text.reason is None]
        if len(going) < len(self.active):
            self.active = [self.active[row] for row in going]
            # 全写完了就不必再抄缓存
            if going:
                self.decoder.keep(going)  # 窗口、缓存、掩码一起裁
                self.sampler.keep(going)
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
    session = Session(rows, Decoder(model, [ids] * len(rows), max_new_tokens=60))
    while session.active:
        session.step()
    return [row.ids for row in rows]


if __name__ == "__main__":
    run_demo(demo)
