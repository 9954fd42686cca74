r"""给一个开头，让模型接着写。——把前面几课拼起来：提示 → 词元 → 一步步 → 文字。

$$y_t \sim p(\,\cdot \mid x, y_{<t}), \qquad t = 1, 2, \dots$$

    "床前" ──prompts.py──▶ [7, 3] ──▶ ┌───────────────────────────┐
                                      │ Session.step，反复地      │──▶ 文字
    长短不一也行，左填充              │   打分   decoder.py       │
                                      │   选词   sampling.py      │
                                      │   收下   continuation.py  │
                                      └───────────────────────────┘

三种要法：
  · generate("床前")              写完再交，得到 Generation
  · generate(["床前", "举头"])    一批一起写；与各自单独写的内容相同。参数也可以每条提示一组
  · each(许多条)                  一批一批地写，写完一批交一批；几条一批不改变内容
  · stream("床前")                边写边交，合起来就是 generate 的文本

停在哪里（finish_reason）：写满 max_new_tokens（"length"）、写到停止串（"stop"）、模型自己
写出结束（"end"），或者提示加上写的占满了上下文（"context"）。想越过上下文，明说 sliding=True：
满了就只留最近的一半，从头再读；或者 cache="sliding"：每步忘一个，只留开头几个与最近的。
忘掉的，就真的忘了。

只许写合格的：constraint=Constraint.regex(…)、choices(…) 或 json_schema(…)，见 constraints.py。
写出来的必是完整的；写不下的在跑模型之前报错。停下的原因多了一种 "complete"：再写什么都不合格。

同样的种子，同样的文本：单独与成批、有缓存与没有、流式与否，抽签用的随机数都相同。剩下的差别
只有浮点舍入：两个词元的分数几乎相等时（float32 约百万分之一，bf16 约百分之一），加法的次序
可能改变谁在前面。要逐字复现，就用 float32，并且不改批的组成。

常见的错法，多半不报错，只是写得差或写得慢：
    忘了 eval()              dropout 还开着，每次随机抹掉一些数，同样的提示写出不同的话
    忘了关掉梯度             每一步的计算图都留着，写得越长内存越多，最后崩掉
    右填充                   最后一列是填充，取出来的是「填充之后写什么」
    填充占了位置             短的提示从第 7 个位置数起，与单独写时不一样
    流式时每次全文重新解码   写 n 个词元要解码 n²/2 个，还会闪出半个汉字
    在整个流上开 inference_mode   调用者在两段之间做的事也被关掉了梯度
这里逐个处理过了，都有测试；读代码时可以找找各在哪里。

写得不好时，按这个次序查：
    先看贪心                 贪心都不通顺，是模型没学好，调采样参数没有用
    再看前几名的概率         logprobs 与 top_logprobs；第一名总是 0.99 还重复，是过拟合
    再看提示                 末尾多余的空格、与训练时不同的模板，见 prompts.py
    最后才调温度与淘汰       一次只动一个，种子不变，比较才有意义

速度从哪里来：
    缓存        每步只读一个新词元，而不是全文；写得越长，差得越多
    成批        一次搬权重，算 B 行；见 session.py 的演示
    共用开头    一批里相同的提示、共同的开头只读一遍，见 shared_prompt.py
    接着读      TextGenerator(…, prefixes=PrefixCache())：上次读过的开头不再读，见 prefix_cache.py
    准备        TextGenerator(prepare_for_inference(model), …)：CPU 上快几倍，见 prepared.py
    先猜后批改  一次前向定下好几个词元，见 speculative.py
    这里没有的  连续成批（新的提示中途加入）；接口不挡着它

    先猜后批改何时有用？  一次只写一份、写的东西看得出规律；成批时不猜，见 session.py

常见疑问：
    为什么第一个字出来得慢？    先要把提示整个读一遍（预填），以后每步只读一个词元
    为什么写着写着重复起来？    见 penalties.py；也可能是上下文太短，忘了自己说过
    怎样让它写完一篇就停？      训练时每篇之后接「文章结束」，它学会了就会自己停

    同样的种子，换台机器呢？    随机数相同；分数的末位随处理器与线程数而异，多半写出同样的话
    能接着上次的写吗？          把提示与写好的接起来，再当提示；给了 prefixes，就只读新的

论文：GPT-2 (Radford et al. 2019)；缓存与批的代价，Pope 等 2022 (arXiv:2211.05102)。

改哪里：选词的策略 → sampling.py；一步里的次序 → session.py；何时停、显示什么 → continuation.py；
       缓存、填充、滑动 → decoder.py；束搜索 → best_texts.py；提示的检查 → prompts.py。
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast, overload

import torch

from foundation.checks import check_int
from foundation.demonstration import run_demo
from gpt_model.caches import CacheSettings
from inference.best_texts import best_texts
from inference.constraints import Constraints
from inference.continuation import Generation
from inference.poet import learn_poems
from inference.prompts import Prompt, check_sizes, unused_ids
from inference.request import ParamsPerPrompt, Request
from inference.sampling import SamplingParams
from inference.session import Session, ready
from inference.speculative import Speculation

if TYPE_CHECKING:
    from gpt_model.model import GPT
    from inference.prefix_cache import PrefixCache
    from inference.prepared import PreparedModel
    from tokenization.tokenizer import Tokenizer

__all__ = ["Generation", "SamplingParams", "TextGenerator"]

# 不给参数就是它：照模型的概率抽，写满为止；不可变，所以可以放心当默认值
DEFAULT = SamplingParams()


class TextGenerator:
    """会写字的模型：模型与分词器配成一对。

    状态：没有，除非给了 prefixes；两次调用的内容互不影响。模型的训练模式、梯度开关，用完都复原
    提示：一段文本，或一个列表，每项是文本或一串编号
    开关：cache="none" 每步从头读，慢而结果相同，别的见 gpt_model/caches.py；
         sliding=True 写满上下文后忘掉旧的一半
    错误：词表对不上、提示是空的或放不下、参数不合适 → ValueError，写明给的值与上限
    """

    def __init__(
        self,
        model: GPT | PreparedModel,
        tokenizer: Tokenizer,
        *,
        prefixes: PrefixCache | None = None,
    ) -> None:
        check_sizes(tokenizer, model.config.vocab_size)
        # 准备好的（prepared.py）是 GPT 的替身，用法相同，写得快；这里往下谁也不必知道
        self.model = cast("GPT", model)
        self.tokenizer = tokenizer
        self.prefixes = prefixes  # None：每次从头读
        # 模型多出来的行不会被选中；分词器中间若有空缺，也一样
        unused = unused_ids(tokenizer)
        self.forbidden = torch.tensor(unused) if unused else None

    # str 也是 Sequence[str]，类型检查因此说两条重叠；它先匹配第一条，正是我们要的。
    @overload
    def generate(  # type: ignore[overload-overlap]
        self,
        prompt: str,
        params: ParamsPerPrompt = ...,
        *,
        cache: CacheSettings | str = ...,
        sliding: bool = ...,
        constraint: Constraints = ...,
        speculation: Speculation | None = ...,
    ) -> Generation | list[Generation]: ...

    @overload
    def generate(
        self,
        prompt: Sequence[Prompt],
        params: ParamsPerPrompt = ...,
        *,
        cache: CacheSettings | str = ...,
        sliding: bool = ...,
        constraint: Constraints = ...,
        speculation: Speculation | None = ...,
    ) -> list[Generation]: ...

    def generate(
        self,
        prompt: str | Sequence[Prompt],
        params: ParamsPerPrompt = DEFAULT,
        *,
        cache: CacheSettings | str = "static",
        sliding: bool = False,
        constraint: Constraints = None,
        speculation: Speculation | None = None,
    ) -> Generation | list[Generation]:
        """写完再交。

        一段文本、一份 → 一个 Generation；其余都是列表：提示 0 的 num_return 份在前，再是提示 1 的。
        整个列表是一批：内存放不下时，用 each
        params：一组，或者每条提示一组，温度、种子、停止串各管各的
        constraint：只许写合格的，见 constraints.py；一条规则，或者每条提示一条（None 是不限）
        speculation：先便宜地猜几个再一次批改，文本不变，见 speculative.py；一行时才猜
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        # 整个列表是一批的 each
        # 一批就写完，所以等到这一句，全部都写好了
        each = self.each(
            prompts,
            params,
            batch=max(1, len(prompts)),
            cache=cache,
            sliding=sliding,
            constraint=constraint,
            speculation=speculation,
        )
        found = [text for texts in each for text in texts]
        return found[0] if isinstance(prompt, str) and len(found) == 1 else found

    def each(
        self,
        prompts: Sequence[Prompt],
        params: ParamsPerPrompt = DEFAULT,
        *,
        batch: int = 16,
        cache: CacheSettings | str = "static",
        sliding: bool = False,
        constraint: Constraints = None,
        speculation: Speculation | None = None,
    ) -> Iterator[list[Generation]]:
        """许多条提示，一次 batch 条，写完一批交一批：依次是每条提示的 num_return 份。

        内容与 generate 相同：一批几条，改变不了任何一条
        错误：与 generate 相同，在调用时就抛：第一千条太长，不该等前面的写完才说
        """
        # 几条都行，只要放得下；generate 就是一批全放进去
        check_int("batch", batch, 1)
        # 规则也收在请求里：与参数、开关一样，一次请求之内不变
        request = self._request(
            params, cache=cache, sliding=sliding, constraint=constraint, speculation=speculation
        )
        # 全部查过才开始写。带 yield 的函数要等到取第一份才开始执行，所以检查放在这里
        return self._in_batches(request, request.encode(list(prompts)), batch)

    def _in_batches(
        self, request: Request, encoded: list[list[int]], batch: int
    ) -> Iterator[list[Generation]]:
        """一批一批地写；两批之间，控制权在调用者手里，所以模型先复原再交出去。"""
        # 名单只列一次：每批重新走一遍整棵模块树，小模型上会占去可观的时间
        modules = list(self.model.modules())
        for begin in range(0, len(encoded), batch):
            # 这一批的参数与规则也要跟着挑
            rows = range(begin, min(begin + batch, len(encoded)))
            part = request.only(rows, len(encoded))
            with ready(modules):
                found = self._write(part, [encoded[row] for row in rows])
            yield from found

    def _write(self, request: Request, encoded: list[list[int]]) -> list[list[Generation]]:
        """一批提示，每条的各份。

        每条提示有自己的参数，所以束搜索的与抽样的可以同在一个列表里
        """
        # 一组参数也展开成每条一组：下面就只有一种情形
        each, guides = request.params_for(len(encoded)), request.guides(len(encoded))
        # ① 束搜索：每条提示自己占一批，它的几条路就是几行；
        #    各条提示的束宽可以不同，互不相干
        written = {
            index: best_texts(request, ids, params, guide)
            for index, (ids, params, guide) in enumerate(zip(encoded, each, guides, strict=True))
            if params.num_beams > 1
        }
        # ② 抽样与贪心：其余提示的所有份合成一批，一步一步，直到都写完
        rest = [index for index in range(len(encoded)) if index not in written]
        #    束搜索的那几条不在里面，参数与规则也要跟着挑
        session = request.only(rest, len(encoded)).begin([encoded[index] for index in rest])
        while session.active:
            session.step()
        # ③ session.rows 的次序不变：每条提示依次取走自己的 n 份
        rows = iter(session.rows)
        for index in rest:
            # 各条提示要的份数可以不同
            n = each[index].num_return
            written[index] = [row.generation() for row in itertools.islice(rows, n)]
        return [written[index] for index in range(len(encoded))]

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams = DEFAULT,
        *,
        cache: CacheSettings | str = "static",
        sliding: bool = False,
        constraint: Constraints = None,
        speculation: Speculation | None = None,
    ) -> Iterator[str]:
        """边写边交，每次是可以放心显示的一段：不会有半个字，也不会有停止串的开头。

        错误：与 generate 相同，在调用时就抛，不等到取第一段；一次只能写一份，束搜索不能流式：
        写完之前，它不知道哪一条路会赢
        """
        # 静悄悄地只给第一份，用户会以为 num_return 坏了
        for name in ("num_return", "num_beams"):
            if getattr(params, name) != 1:
                raise ValueError(
                    f"stream writes one text as it comes: {name} must be 1, "
                    f"got {getattr(params, name)}; use generate"
                )
        # 只有一份，也照样全部查过
        request = self._request(
            params, cache=cache, sliding=sliding, constraint=constraint, speculation=speculation
        )
        # 与 generate 走同一个 Session，所以文字必然相同
        return self._pieces(request.begin(request.encode([prompt])))

    def _pieces(self, session: Session) -> Iterator[str]:
        """两段之间，控制权在调用者手里：模型的状态每步单独改、单独复原。

        调用者中途不要了（break、Ctrl-C），没有任何东西需要收拾
        """
        # 名单只列一次：每步重新走一遍整棵模块树，小模型上会占去可观的时间
        modules = list(self.model.modules())
        while session.active:
            with ready(modules):
                ((_, text),) = session.step()
            # 一份一行，所以每步恰好一段。空的不交：半个汉字、半个停止串还扣着
            if text:
                yield text

    def _request(self, params: ParamsPerPrompt, **how: Any) -> Request:
        """把这次要用的东西收在一起，见 request.py；how 的名字就是 Request 的字段。

        每次调用新建一个：两次调用之间，只有读过的开头会留着
        """
        # forbidden：词表中间的空缺；prefixes：从前的调用读过的，请求里也是同一个，
        # 所以这次读了什么，下次就知道
        how |= {"forbidden": self.forbidden, "prefixes": self.prefixes}
        return Request(self.model, self.tokenizer, params, **how)


def demo() -> None:
    """提示 → 词元 → 文字；策略、停止、流式、成批，逐样看一遍。

    模型只背过三首诗（见 poet.py）：背得对不对一眼看得出来，策略的差别也就看得出来
    """
    # 学成只要一两秒；每次运行的权重都相同，因为 run_demo 先定好了种子
    model, tokenizer, _ = learn_poems()
    writer = TextGenerator(model, tokenizer)
    # 一行一条提示，用列表给，得到的也是列表；只给一段文本，得到的就是一个 Generation
    # ① 一步一步：模型给了哪些候选，选了谁。贪心选的总是第一名
    params = SamplingParams(temperature=0, max_new_tokens=5, logprobs=True, top_logprobs=3)
    (found,) = writer.generate(["床前"], params)
    print(f"1. 提示「床前」→ 编号 {tokenizer.encode('床前')}；每步前三名与概率：")
    for token, top in zip(found.ids, found.top_logprobs or (), strict=True):
        shown = "　".join(f"{tokenizer.decode([i])!r} {math.exp(p):.3f}" for i, p in top)
        print(f"   {shown}　→ {tokenizer.decode([token])!r}")
        assert token == top[0][0]
    print(f"   写出 {found.text!r}，停下的原因：{found.finish_reason}")

    # ② 同一个提示，各种策略：背熟的诗，温度高了才会背错。
    #    高温时尾巴太厚：top-p 要凑满九成，放进来的胡话就多；min-p 与第一名比，挡得住
    #    同一个种子：头几步抽到的随机数相同，差别只来自策略
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
        assert "。" not in found.text  # 停止串不算在文本里
    ways_agree(writer)


def ways_agree(writer: TextGenerator) -> None:
    """流式、成批、没有缓存：写出来的都一样。

    三条提示长短不一，成批时短的左边有填充；温度不是 0，所以随机数也要对得上
    """
    # 四种写法，同一个种子
    params = SamplingParams(temperature=1.2, max_new_tokens=20, seed=3)
    alone = writer.generate(["白日"], params)[0]
    pieces = list(writer.stream("白日", params))
    print("\n3. 流式，一段一段地来：" + "│".join(pieces).replace("\n", "⏎"))
    batch = writer.generate(["床前明月光，", "白日", "春眠不觉"], params)
    plain = writer.generate(["白日"], params, cache="none")[0]
    assert "".join(pieces) == alone.text == batch[1].text == plain.text
    assert writer.model.training  # 还在训练模式，生成没有把它弄乱
    print("   与一次写完、与成批（三条长短不一）、与不用缓存，一字不差")
    # 编号对上了，文字当然对上；反过来不一定：同样的文字可以有不同的切法
    assert batch[1].ids == plain.ids == alone.ids
    # 提示太长：说清两个数，而不是悄悄砍掉开头
    # 错误在开始写之前就抛出，列表里别的提示也不会白写
    try:
        writer.generate(["春" * 300], params)
    except ValueError as error:
        print(f"   提示 300 字：{error}")
    else:
        raise AssertionError("a prompt longer than the context was accepted")


if __name__ == "__main__":
    run_demo(demo)
