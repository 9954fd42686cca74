r"""给一个开头，让模型接着写。——把前面几课拼起来：提示 → 词元 → 一步步 → 文字。

$$y_t \sim p(\,\cdot \mid x, y_{<t}), \qquad t = 1, 2, \dots$$

    "床前"  ──encode──▶  [7, 3]  ──▶ ┌─────────────────────────────┐
                                     │ Session.step（session.py）  │──▶ 词元 ──▶ 文字
       提示长短不一也行，左填充       └──────────────┬──────────────┘
       （decoder.py）                               └── 接上，再来一步

三种要法：
  · generate("床前")              写完再交，得到 Generation
  · generate(["床前", "举头"])    一批一起写；与各自单独写的内容相同
  · stream("床前")                边写边交，合起来就是 generate 的文本

写多长：写满 max_new_tokens（"length"）、写到停止串（"stop"）、模型自己写出结束（"end"），
或者提示加上写的占满了模型的上下文（"context"）。想越过上下文，明说 sliding=True：
写满之后只留最近的一半，从头再读；它忘掉的，就真的忘了。

同样的种子，同样的文本：单独写与成批写、有缓存与没有缓存、流式与否，抽签用的随机数都相同。
剩下的差别只有浮点舍入：两个词元的分数只差百万分之一时，加法的次序可能改变谁在前面。

论文：GPT-2 (Radford et al. 2019)；缓存与批的代价，Pope 等 2022 (arXiv:2211.05102)。

改哪里：选词的策略 → sampling.py；一步里的次序 → session.py；何时停、显示什么 → continuation.py；
       缓存、填充、滑动 → decoder.py；束搜索 → beam_search.py。
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, overload

import torch
from torch import nn

from foundation.checks import check_int
from foundation.demonstration import run_demo
from inference.best_texts import best_texts
from inference.continuation import Continuation, Generation
from inference.decoder import Decoder
from inference.drawing import RowRandom
from inference.parameter_checks import check_vocabulary
from inference.sampling import SamplingParams
from inference.session import Session

if TYPE_CHECKING:
    from gpt_model.model import GPT
    from tokenization.tokenizer import Tokenizer

__all__ = ["Generation", "SamplingParams", "TextGenerator"]

DEFAULT = SamplingParams()
Prompt: TypeAlias = "str | Sequence[int]"  # 文本，或已经编好的号


@contextmanager
def ready(modules: Sequence[nn.Module]) -> Iterator[None]:
    """生成期间：关掉 dropout，不记梯度；出来时（哪怕被 Ctrl-C 打断）逐个复原。

    不能只记整个模型一个开关：用户可能特意冻住了其中一部分
    """
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


class TextGenerator:
    """会写字的模型：模型与分词器配成一对。

    提示：一段文本；或一串编号，给自己拼模板、要用特殊词元的程序。多条提示就给一个列表
    错误：词表对不上、提示是空的、提示放不下、参数不合适 → ValueError，写明两个数
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer
        n_tokens, n_rows = tokenizer.vocab_size, model.config.vocab_size
        if n_tokens > n_rows:
            raise ValueError(
                f"the tokenizer has {n_tokens} tokens, but the model's vocab_size is {n_rows}; "
                "load the tokenizer that was saved with this model"
            )
        # 模型的词表可以大一些，多出来的永远不选；分词器中间的空缺也一样
        unused = [token for token in range(n_tokens) if not is_token(tokenizer, token)]
        self.forbidden = torch.tensor(unused, device=model.device) if unused else None

    # str 也是 Sequence[str]，类型检查因此说两条重叠；它先匹配第一条，正是我们要的
    @overload
    def generate(  # type: ignore[overload-overlap]
        self,
        prompt: str,
        params: SamplingParams = ...,
        *,
        use_cache: bool = ...,
        sliding: bool = ...,
    ) -> Generation | list[Generation]: ...

    @overload
    def generate(
        self,
        prompt: Sequence[Prompt],
        params: SamplingParams = ...,
        *,
        use_cache: bool = ...,
        sliding: bool = ...,
    ) -> list[Generation]: ...

    def generate(
        self,
        prompt: str | Sequence[Prompt],
        params: SamplingParams = DEFAULT,
        *,
        use_cache: bool = True,
        sliding: bool = False,
    ) -> Generation | list[Generation]:
        """写完再交。

        一段文本、一份 → 一个 Generation；其余都是列表：提示 0 的 num_return 份在前，再是提示 1 的
        """
        single = isinstance(prompt, str)
        prompts: list[Prompt] = [prompt] if isinstance(prompt, str) else list(prompt)
        encoded = self._encode(prompts, params, sliding)
        with ready(list(self.model.modules())):
            if params.num_beams > 1:
                found = []
                for ids in encoded:
                    new_row = partial(self._row, ids, params, sliding)
                    new_decoder = partial(self._decoder, [ids], params, use_cache, sliding)
                    found += best_texts(new_row, new_decoder, params)
            else:
                session = self._begin(encoded, params, use_cache, sliding)
                rows = session.rows
                while session.active:
                    session.step()
                found = [row.generation() for row in rows]
        return found[0] if single and params.num_return == 1 else found

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams = DEFAULT,
        *,
        use_cache: bool = True,
        sliding: bool = False,
    ) -> Iterator[str]:
        """边写边交，每次是可以放心显示的一段：不会有半个字，也不会有停止串的开头。

        错误：与 generate 相同，在调用时（而不是取第一段时）就抛；一次只能写一份，束搜索不能流式
        """
        for name in ("num_return", "num_beams"):
            if getattr(params, name) != 1:
                raise ValueError(
                    f"stream writes one text as it comes: {name} must be 1, "
                    f"got {getattr(params, name)}; use generate"
                )
        encoded = self._encode([prompt], params, sliding)
        return self._stream(self._begin(encoded, params, use_cache, sliding))

    def _stream(self, session: Session) -> Iterator[str]:
        """两段之间控制权在调用者手里，所以模型的状态每步单独改、单独复原。"""
        modules = list(self.model.modules())
        while session.active:
            with ready(modules):
                ((_, text),) = session.step()
            if text:
                yield text

    # ── 准备 ────────────────────────────────────────────────────────────

    def _encode(
        self, prompts: Sequence[Prompt], params: SamplingParams, sliding: bool
    ) -> list[list[int]]:
        """提示 → 编号，并在跑模型之前查出一切能查的错误。"""
        check_vocabulary(params, self.tokenizer.vocab_size)
        return [
            self._checked(prompt, "the prompt" if len(prompts) == 1 else f"prompt {index}", sliding)
            for index, prompt in enumerate(prompts)
        ]

    def _checked(self, prompt: Prompt, name: str, sliding: bool) -> list[int]:
        """一条提示的编号；空的、放不下的、编号越界的，都说清楚。"""
        if isinstance(prompt, int):
            raise ValueError(f"{name} is the number {prompt}; for one prompt of ids write [[…]]")
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        n_tokens, context = self.tokenizer.vocab_size, self.model.config.max_seq_len
        if not ids:
            end_id = self.tokenizer.end_id
            hint = "" if end_id is None else f", or pass the ids [{end_id}] to begin a new document"
            raise ValueError(
                f"{name} is empty (0 tokens): the model needs at least 1 token to continue from; "
                f"write at least one character{hint}"
            )
        for token in ids:
            check_int(f"each token id in {name}", token, 0, n_tokens - 1)
        if len(ids) > context and not sliding:
            raise ValueError(
                f"{name} has {len(ids)} tokens, but the model's context (max_seq_len) is "
                f"{context}; shorten it, or use sliding=True to keep only its end"
            )
        return ids

    def _decoder(
        self, rows: Sequence[Sequence[int]], params: SamplingParams, use_cache: bool, sliding: bool
    ) -> Decoder:
        """模型一侧：窗口、缓存、填充。"""
        forbidden = None if self.forbidden is None else self.forbidden.to(self.model.device)
        return Decoder(
            self.model,
            rows,
            max_new_tokens=params.max_new_tokens,
            use_cache=use_cache,
            sliding=sliding,
            vocab_size=self.tokenizer.vocab_size,
            forbidden=forbidden,
        )

    def _begin(
        self,
        encoded: Sequence[Sequence[int]],
        params: SamplingParams,
        use_cache: bool,
        sliding: bool,
    ) -> Session:
        """每条提示 num_return 行；第 i 份用第 i 串随机数，与它在批里的位置无关。"""
        rows = []
        for ids in encoded:
            # 没给种子：每条提示各取一个新的；torch.manual_seed 之后仍可重现
            seed = params.seed
            if seed is None:
                seed = int(torch.randint(2**63 - 1, ()))
            for sample in range(params.num_return):
                random = None if params.is_greedy else RowRandom(seed, sample)
                rows.append(self._row(ids, params, sliding, random))
        prompts = [row.prompt_ids for row in rows]
        return Session(rows, self._decoder(prompts, params, use_cache, sliding), params)

    def _row(
        self,
        ids: Sequence[int],
        params: SamplingParams,
        sliding: bool,
        random: RowRandom | None = None,
    ) -> Continuation:
        """文字一侧：解码、停止串、长度。"""
        context = None if sliding else self.model.config.max_seq_len
        return Continuation(ids, self.tokenizer, params, context=context, random=random)


def is_token(tokenizer: Tokenizer, token: int) -> bool:
    """别人的词表偶有空缺：编号在范围之内，却没有对应的文字。"""
    try:
        tokenizer.token_bytes(token)
    except ValueError:
        return False
    return True


POEMS = """床前明月光，疑是地上霜。举头望明月，低头思故乡。
白日依山尽，黄河入海流。欲穷千里目，更上一层楼。
春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。
"""


def poet() -> TextGenerator:
    """一个背过三首诗的小模型，约一秒学成。"""
    from gpt_model.config import preset
    from gpt_model.model import GPT
    from tokenization.tokenizer import Tokenizer

    tokenizer = Tokenizer.characters([POEMS])
    config = preset("modern-micro", vocab_size=tokenizer.vocab_size, n_layers=2, dim=64, n_heads=2)
    model = GPT(config)
    ids = torch.tensor([tokenizer.encode(POEMS)])  # (1, T)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(130):
        loss = model(ids[:, :-1], ids[:, 1:]).loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return TextGenerator(model, tokenizer)  # 还在训练模式：生成时自会关掉，之后复原


def demo() -> None:
    """提示 → 词元 → 文字；策略、停止、流式、成批、缓存，逐样看一遍。"""
    writer = poet()
    first_steps(writer)
    strategies(writer)
    ways_agree(writer)
    cache_speed()


def first_steps(writer: TextGenerator) -> None:
    """一步一步看：模型给了哪些候选，选了谁。"""
    params = SamplingParams(temperature=0, max_new_tokens=5, logprobs=True, top_logprobs=3)
    (found,) = writer.generate(["举头"], params)
    print(f"1. 提示「举头」→ 编号 {writer.tokenizer.encode('举头')}；每步前三名与概率：")
    assert found.logprobs is not None
    assert found.top_logprobs is not None
    for token, top in zip(found.ids, found.top_logprobs, strict=True):
        shown = "　".join(f"{writer.tokenizer.decode([i])} {math.exp(p):.3f}" for i, p in top)
        print(f"   {shown}　→ {writer.tokenizer.decode([token])}")
        assert token == top[0][0]  # 贪心选的就是第一名
    print(f"   写出「{found.text}」，停下的原因：{found.finish_reason}")


def strategies(writer: TextGenerator) -> None:
    """同一个提示，各种策略；背熟了的诗，只有高温才会背错。"""
    print("\n2. 提示「春」，写到句号为止：")
    for name, changes in (
        ("贪心　　　　", {"temperature": 0.0}),
        ("温度 0.7　　", {"temperature": 0.7}),
        ("温度 2.0　　", {"temperature": 2.0}),
        ("　＋ top-k 3", {"temperature": 2.0, "top_k": 3}),
        ("　＋ top-p .9", {"temperature": 2.0, "top_p": 0.9}),
        ("　＋ min-p .1", {"temperature": 2.0, "min_p": 0.1}),
        ("束搜索 4 条 ", {"num_beams": 4}),
    ):
        params = SamplingParams(max_new_tokens=24, stop=("。",), seed=6, **changes)
        (found,) = writer.generate(["春"], params)
        print(f"   {name}\t春{found.text}　（{found.finish_reason}）")
        assert "。" not in found.text


def ways_agree(writer: TextGenerator) -> None:
    """流式、成批、没有缓存：写出来的都一样。"""
    params = SamplingParams(temperature=1.2, max_new_tokens=20, seed=3)
    alone = writer.generate(["白日"], params)[0]
    pieces = list(writer.stream("白日", params))
    print("\n3. 流式，一段一段地来：" + "│".join(pieces).replace("\n", "⏎"))
    batch = writer.generate(["床前明月光，", "白日", "春眠不觉"], params)
    plain = writer.generate(["白日"], params, use_cache=False)[0]
    assert "".join(pieces) == alone.text
    assert batch[1] == alone
    assert plain == alone
    assert writer.model.training  # 还在训练模式，生成没有把它弄乱
    print("   与一次写完、与成批（三条长短不一）、与不用缓存，一字不差")
    # 提示太长：说清两个数，而不是悄悄砍掉开头
    try:
        writer.generate(["春" * 300], params)
    except ValueError as error:
        print(f"   提示 300 字：{error}")
    else:
        raise AssertionError("a prompt longer than the context was accepted")


def cache_speed() -> None:
    """缓存省下的时间：上下文越长越明显。"""
    from gpt_model.config import preset
    from gpt_model.model import GPT
    from tokenization.tokenizer import Tokenizer

    tokenizer = Tokenizer.characters([POEMS])
    model = GPT(preset("modern-micro", vocab_size=tokenizer.vocab_size, init_std=0.1))
    writer = TextGenerator(model, tokenizer)
    params = SamplingParams(temperature=0, max_new_tokens=150, logit_bias={0: -math.inf})
    writer.generate(["春"], SamplingParams(max_new_tokens=2))  # 先热一热
    seconds, texts = [], []
    for use_cache in (True, False):
        start = time.perf_counter()
        texts.append(writer.generate(["春"], params, use_cache=use_cache)[0].ids)
        seconds.append(time.perf_counter() - start)
    print(
        f"\n4. modern-micro（随机权重）写 150 个词元：用缓存 {seconds[0]:.2f} 秒，"
        f"不用 {seconds[1]:.2f} 秒，快 {seconds[1] / seconds[0]:.1f} 倍，词元相同"
    )
    assert texts[0] == texts[1]
    assert len(texts[0]) == 150


if __name__ == "__main__":
    run_demo(demo)
