r"""一次请求要带哪些东西？——模型、分词器、参数、两个开关，合成一个小对象，一路传下去。

    Request ──encode────▶ 每条提示的编号，全部查过
            ──new_row───▶ 给人看的一半：Continuation（解码、停止串、写多长）
            ──new_decoder▶ 模型看的一半：Decoder（窗口、缓存、填充）
            ──begin─────▶ 两半合起来的一批：Session

为什么要它？生成、流式、束搜索都要同样的六样东西，一样一样地当参数传，签名会比函数体还长，
传错次序也看不出来。合成一个不可变的对象，谁都不能中途改掉一半。

为什么分成「给人看的」与「模型看的」两半？模型只认编号与位置，不知道什么是停止串、什么是
半个汉字；文字一侧也不必知道有没有缓存、左边填充了几个。两半各自测试，合起来只在 Session 里。

一批有多少行：P 条提示、每条 n 份，

$$B = P \cdot n, \qquad \text{第 } b \text{ 行}
  = \text{提示 } \lfloor b / n \rfloor \text{ 的第 } (b \bmod n) \text{ 份}$$

同一条提示的几份各占一行，提示只读一遍，读完复制成几行（shared_prompt.py）：从此各行互不相干，
写完一行退出一行。

有的组合没有意义，也在这里拦下：停止串会截断合格的文本；束搜索没有「一份文本」可猜；
滑动的缓存忘掉的东西，猜错了也退不回去。

检查都在 encode 里，跑模型之前：第三条提示太长，就不该等前两条写完才说。

随机数怎样分给各行，决定了「同样的种子写出同样的文本」在什么意义上成立：

    给了种子     第 i 份用（种子，i）：与提示无关，与批里有谁无关
                 于是同一条提示单独写、成批写、排在第几，都一样
    没给种子     每条提示从 torch 的全局随机源取一个新的：每次不同，
                 但 torch.manual_seed 之后仍可重现
    贪心         不用随机数，连取都不取

参数（params）与规则（constraint）一样：一组给所有的提示，或者每条提示一组；同一条提示的 n 份
用同一组，只差随机数。于是一批里可以有贪心的、有温度 1.5 的、有守规矩的，各写各的：

    generate(["翻译：…", "写诗："], [SamplingParams(temperature=0), SamplingParams(seed=7)])

规则的名单由分词器与规则一起决定，各行共用；走到哪个状态，则记在各行自己那里（Continuation）。

改哪里：多一个开关 → 在这里加字段，new_decoder 或 new_row 里用上；
       几条提示怎样共用开头 → shared_prompt.py，Decoder 预填时自己会用；跨请求的 → prefix_cache.py。
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from foundation.demonstration import run_demo
from gpt_model.caches import CacheSettings
from inference.constraints import Constraints, check_room, guide_for, per_prompt
from inference.continuation import Continuation
from inference.decoder import Decoder
from inference.parameter_checks import check_vocabulary
from inference.prefix_cache import PrefixCache
from inference.prompts import Prompt, encode_prompts
from inference.random_stream import RowRandom
from inference.sampling import SamplingParams
from inference.session import Session
from inference.speculative import Speculation

if TYPE_CHECKING:
    from gpt_model.model import GPT
    from inference.token_guide import TokenGuide
    from tokenization.tokenizer import Tokenizer

__all__ = ["ParamsPerPrompt", "Request"]

# 一组给所有的提示，或者每条提示一组
ParamsPerPrompt: TypeAlias = "SamplingParams | Sequence[SamplingParams]"


@dataclass(frozen=True)
class Request:
    """一次请求；字段就是全部的输入，除了提示。

    不可变，所以「只留几条提示」是另建一份（only），而不是就地改

    字段一经给定就不变：检查一次，处处可信
    同一个 Request 可以 begin 许多次：它自己没有状态，状态都在 Session、Continuation、Decoder 里
    """

    model: GPT  # 训练模式还是推理模式，由生成器管
    tokenizer: Tokenizer
    params: ParamsPerPrompt  # 建好时已经查过，见 parameter_checks.py
    cache: CacheSettings | str = "static"  # "none"：每步从头读，慢，用来核对
    sliding: bool = False  # True：写满上下文后忘掉旧的一半，接着写
    forbidden: Tensor | None = None  # 词表中间的空缺，见 prompts.unused_ids
    constraint: Constraints = None  # 一条规则给所有的提示，或者每条提示一条
    # 先猜几个再批改，见 speculative.py；它记着猜得怎样，所以会变
    speculation: Speculation | None = None
    prefixes: PrefixCache | None = None  # 从前的请求读过的，见 prefix_cache.py；它也会变

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """跑模型之前，查出一切能查的错误。

        错误：参数与词表对不上、提示接不下去 → ValueError，写明给的值与上限
        """
        # 各组参数逐一对照词表：错误里说的是给的值，看得出是哪一组
        for params in self.params_for(len(prompts)):
            check_vocabulary(params, self.tokenizer.vocab_size)
        # 两种滑动不能并用：一种从头重读，一种从不重读
        # 与模型不合的缓存，也在这里就说，不等读完提示
        settings = CacheSettings.of(self.cache).resolved(self.model.config)
        if settings.is_endless and self.sliding:
            raise ValueError(
                "sliding=True reads the newest half again, the cache 'sliding' never does: "
                "give one of them"
            )
        if self.speculation is not None:
            self._check_speculation(self.speculation, settings, len(prompts))
        # 没有缓存就没有可留的；滑动的缓存自己定位置，抄到别处就不对了。
        # 静静地不用它，用户会以为省了
        if self.prefixes is not None and (settings.kind == "none" or settings.is_endless):
            raise ValueError(
                "a prefix cache keeps the keys and values of earlier prompts: "
                f"the cache must be static, growing or int8, got {settings.kind!r}"
            )
        # 滑动的缓存，多长的提示都读得进去
        context = None if settings.is_endless else self.model.config.max_seq_len
        encoded = encode_prompts(prompts, self.tokenizer, context, sliding=self.sliding)
        self._check_constraints(encoded)
        return encoded

    def _check_speculation(
        self, speculation: Speculation, settings: CacheSettings, n_prompts: int
    ) -> None:
        """猜了没有意义的、猜不了的，都说清楚，而不是悄悄不猜。

        错误：草稿的分词器不同、束搜索、猜错了退不回去的缓存 → ValueError
        """
        # 草稿的编号要与正文的是同一套
        speculation.check(self.tokenizer)
        # 没有缓存，每步反正从头读；滑动的缓存忘掉的就回不来了
        if settings.kind == "none" or settings.is_endless:
            raise ValueError(
                "speculation takes wrong guesses back from the cache: "
                f"it must be static, growing or int8, got {settings.kind!r}"
            )
        # 几条路各写各的，没有「一份文本」可猜
        for params in self.params_for(n_prompts):
            if params.num_beams > 1:
                raise ValueError(
                    f"speculation writes one text at a time: num_beams must be 1, "
                    f"got {params.num_beams}"
                )

    def _check_constraints(self, encoded: Sequence[Sequence[int]]) -> None:
        """每条提示的规则都写得下吗？

        错误：写不下、拼不出、与停止串同用 → ValueError，写明是第几条提示
        借一行空的来问：还能写几个，由参数与上下文一起决定，算法只在 Continuation 里有一份
        """
        # 只有特殊词元的提示，后面写的算「开头」
        # 这时 SentencePiece 一类会去掉开头的一个空格
        special = set(self.tokenizer.special_tokens.values())
        parts = zip(encoded, self.params_for(len(encoded)), self.guides(len(encoded)), strict=True)
        for index, (ids, params, guide) in enumerate(parts):
            if guide is None:
                continue
            # 只有一条时说「第 0 条」反而让人糊涂
            name = "the prompt" if len(encoded) == 1 else f"prompt {index}"
            # 它在开头去掉一个空格，词元的字节与显示的就差了这一个
            if self.tokenizer.kind == "sentencepiece" and special.issuperset(ids):
                raise ValueError(
                    f"{name} holds special tokens only; with a constraint and a "
                    "SentencePiece tokenizer it needs at least 1 character"
                )
            # 规则的最短文本与余地，两个数都说得出
            check_room(guide, self.new_row(ids, params).limit, name)

    def params_for(self, n_prompts: int) -> list[SamplingParams]:
        """展开成每条提示一组。

        错误：不是 SamplingParams、组数与提示不等 → ValueError，两个数都说
        """
        # ① 一组给所有的
        if isinstance(self.params, SamplingParams):
            return [self.params] * n_prompts
        # ② 一个列表；给错了类型，也当作列表去查，好说出给的是什么
        found = list(self.params) if isinstance(self.params, Sequence) else [self.params]
        # 一个字典、一个数，都是常见的手误
        for one in found:
            if not isinstance(one, SamplingParams):
                raise ValueError(f"params must be SamplingParams, or a list of them, got {one!r}")
        # ③ 少一组就不知道哪条提示没有参数，所以不猜
        if len(found) != n_prompts:
            raise ValueError(
                f"a list of params needs one for each prompt: {n_prompts} prompts, "
                f"got {len(found)} params"
            )
        return found

    def guides(self, n_prompts: int) -> list[TokenGuide | None]:
        """每条提示的名单；没有规则的是 None。

        同一条规则共用一份，这次请求与下次也共用：名单算过的不再算
        """
        return [
            # 名单的缓存在 constraints.py；禁用的词元随参数走，所以参数也要给它
            None if rule is None else guide_for(rule, self.tokenizer, params)
            for rule, params in zip(
                per_prompt(self.constraint, n_prompts), self.params_for(n_prompts), strict=True
            )
        ]

    def only(self, rows: Sequence[int], n_prompts: int) -> Request:
        """只留这几条提示的参数与规则；其余不变。

        束搜索的提示各占一批，剩下的才合成一批：要把参数与规则也分开
        """
        # 先展开成每条一份，再挑
        params = self.params_for(n_prompts)
        rules = per_prompt(self.constraint, n_prompts)
        # 不可变，所以改一份新的
        return replace(
            self,
            params=[params[row] for row in rows],
            constraint=[rules[row] for row in rows],
        )

    def new_row(
        self,
        ids: Sequence[int],
        params: SamplingParams,
        random: RowRandom | None = None,
        guide: TokenGuide | None = None,
    ) -> Continuation:
        """给人看的一半，还什么都没写；没有 random 就不抽样，没有 guide 就写什么都行。"""
        # 这里不必再查：encode 查过了
        # 滑动时没有上限：满了就忘掉旧的，接着写
        endless = self.sliding or CacheSettings.of(self.cache).is_endless
        context = None if endless else self.model.config.max_seq_len
        return Continuation(
            ids, self.tokenizer, params, context=context, random=random, guide=guide
        )

    def new_decoder(self, rows: Sequence[Sequence[int]], max_new_tokens: int) -> Decoder:
        """模型看的一半，还什么都没读；至多再写 max_new_tokens 个。

        形状：B 串编号，长短不一；左填充、缓存都是 Decoder 自己的事
        """
        # 模型可能换过设备，所以到用时才搬
        forbidden = None if self.forbidden is None else self.forbidden.to(self.model.device)
        return Decoder(
            self.model,
            rows,
            max_new_tokens=max_new_tokens,
            cache=self.cache,  # 名字也行，Decoder 自己换成 CacheSettings
            sliding=self.sliding,
            vocab_size=self.tokenizer.vocab_size,
            forbidden=forbidden,
            prefixes=self.prefixes,  # 同一个对象：读完登记，下次好抄
        )

    def begin(self, encoded: Sequence[Sequence[int]]) -> Session:
        """每条提示 num_return 行，合成一批。

        形状：P 条提示 → B = P·n 行，提示 0 的 n 份在前
        """
        # 行的次序就是结果的次序
        rows = []
        # 三样一一对应：编号、参数、规则
        parts = zip(encoded, self.params_for(len(encoded)), self.guides(len(encoded)), strict=True)
        for ids, params, guide in parts:
            # 给了种子，每条提示都从它开始；没给，就各取一个新的
            seed = params.seed
            if seed is None and not params.is_greedy:
                seed = int(torch.randint(2**63 - 1, ()))
            for sample in range(params.num_return):
                # 每行一串独立的随机数：谁先写完退出，都不影响别人
                random = None if seed is None else RowRandom(seed, sample)
                rows.append(self.new_row(ids, params, None if params.is_greedy else random, guide))
        # 缓存开到写得最长的那一行为止；先写完的行会退出，不占着
        longest = max((row.limit for row in rows), default=0)
        # 两半合起来；行号从此一起进退
        decoder = self.new_decoder([row.prompt_ids for row in rows], longest)
        return Session(rows, decoder, self.speculation)


def demo() -> None:
    """两条提示、每条两份，合成四行；给种子与不给种子，各跑两遍。

    行的次序：春₀ 春₁ 白日₀ 白日₁
    """
    from inference.poet import learn_poems

    # 背过三首诗的小模型：温度高一些，几份就各不相同
    model, tokenizer, _ = learn_poems()
    model.eval()

    def write(params: SamplingParams) -> list[str]:
        # 生成器（generator.py）做的就是这几行，外加关掉 dropout 与两种交法
        request = Request(model, tokenizer, params)
        with torch.inference_mode():
            session = request.begin(request.encode(["春", "白日"]))
            while session.active:
                session.step()
        return [row.generation().text for row in session.rows]

    # 行数 B = 2 条提示 × 2 份
    for seed in (7, None):
        print(f"种子 {seed}：提示「春」两份，「白日」两份")
        # 温度高一些，才看得出随机数不同；0 号是「文章结束」，禁用它好让各份一样长
        params = SamplingParams(
            temperature=1.3, max_new_tokens=9, num_return=2, seed=seed, logit_bias={0: -torch.inf}
        )
        first, second = write(params), write(params)
        for texts in (first, second):
            print("   " + "　".join(text.replace("\n", "⏎") for text in texts))
        # 给了种子，两遍相同；没给，两遍不同
        assert (first == second) == (seed is not None)
    # 种子不同，提示相同：各份自然不同；但它们仍由一个数决定。
    # 没给种子时，种子取自 torch 的全局随机源：管住它，就管住了一切
    torch.manual_seed(1)
    first = write(params)
    torch.manual_seed(1)
    assert write(params) == first
    print("没给种子，但先 torch.manual_seed(1)：两遍又相同了")


if __name__ == "__main__":
    run_demo(demo)
