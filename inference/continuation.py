r"""一份正在写的文本：又来了一个词元，该显示什么，该不该停？

    词元 ──▶ 凑成完整的字符 ──▶ 扣住可能的停止串 ──▶ 可以显示的文字
            StreamDecoder        StopMatcher
                                    │
    停下的原因（finish_reason）     ├─ "stop"     写到了停止串
                                    ├─ "end"      模型写出了「文章结束」
                                    ├─ "length"   写满了 max_new_tokens
                                    ├─ "complete" 规则已满足，再写什么都不合格
                                    └─ "context"  提示加上写的，占满了上下文

无论逐个显示还是写完一起交，走的都是这一条路，所以

$$\text{stream 各段之和} = \text{generate 的文本}$$

编号与文本的分工：ids 是模型选的全部词元，包括最后那个「结束」和凑成停止串的几个，对数概率与
它一一对应；text 是给人看的，不含「结束」与停止串。提示里的文字不参与停止串的匹配。

记下的对数概率是模型自己的：还没有惩罚、没有温度、没有淘汰，

$$\log p_v = z_v - \log \textstyle\sum_u e^{z_u}$$

这样不同的采样参数写出的文本，才能用同一把尺子比较。

四种停法的先后：同一个词元可能同时满足几种，

    「结束」 > 停止串 > 规则已满足 > 写满（length 与 context 谁先到算谁的，一样时算 length）

写满时手里还扣着的怎么办？半个停止串不会再变完整，如数放行；半个字符也不会了，显示成 �。
放行的 � 若恰好凑成停止串，就算停在那里：不能因为是最后一步就破例。

常见疑问：
    为什么 decode(ids) 有时比 text 长？  ids 里有凑成停止串的词元，text 到停止串之前为止
    为什么「结束」也算一个词元？        它也是模型选的，也占一步；max_new_tokens 数的是步数
    为什么不把特殊词元藏起来？          除了「结束」，一概照原样显示：藏起来的话，用它作停止串
                                        就永远找不到，模型写坏了也看不出来

改哪里：加一种停下的原因 → Continuation.feed；结果里多带一样东西 → Generation。
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from foundation.demonstration import run_demo
from inference.random_stream import RowRandom
from inference.sampling import SamplingParams, best_tokens
from inference.stop_strings import StopMatcher

if TYPE_CHECKING:
    from inference.token_guide import TokenGuide
    from tokenization.tokenizer import Tokenizer

__all__ = ["Continuation", "Generation", "TokenNote", "take_notes"]


@dataclass(frozen=True)
class Generation:
    """写好的一份；不可变，可以放心地存下来、比较、放进集合。

    关系：len(logprobs) = len(top_logprobs) = len(ids)；没要的就是 None
    """

    text: str  # 给人看的；不含提示、「结束」与停止串
    ids: tuple[int, ...]  # 模型选的全部词元，含「结束」与凑成停止串的
    finish_reason: str  # "stop"、"end"、"complete"、"length" 或 "context"，见上面的表
    logprobs: tuple[float, ...] | None = None  # 每个词元的 log p，与 ids 一一对应
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None = None  # 每步的候选
    score: float | None = None  # 束搜索按长度打折后的总分


class TokenNote(NamedTuple):
    """选这个词元时，模型是怎么想的。"""

    logprob: float
    # 最可能的几个（编号，log p），从高到低；选中的不一定在内：抽签可以抽到冷门
    top: tuple[tuple[int, float], ...]


def take_notes(logits: Tensor, tokens: Sequence[int], n_top: int) -> list[TokenNote]:
    """每行记一条；logits 是模型给的原样。

    公式：log p_v = z_v − log Σ e^{z_u}，不是 log(softmax(z))：先指数再取对数，小概率会变成 −∞
    形状：logits (B, V)，tokens B 个 → B 条
    """
    log_probs = logits.log_softmax(dim=-1)  # (B, V)
    index = torch.tensor(tokens, device=logits.device)[:, None]  # (B, 1)
    chosen = log_probs.gather(-1, index)[:, 0].tolist()  # B 个
    if not n_top:
        return [TokenNote(value, ()) for value in chosen]
    # 选中的未必在前几名里：抽样会抽到冷门的，所以它的 log p 另存一份
    tops = best_tokens(log_probs, n_top)
    return [
        TokenNote(value, tuple((token, score) for score, token in top))  # 换成编号在前
        for value, top in zip(chosen, tops, strict=True)
    ]


class Continuation:
    """一条提示的一份续写：收词元，交文字，到时候说停。

    状态：ids 只增不减；reason 一旦有了就不再变，此后再 feed 是调用者的错
    context 为 None 表示没有上限（滑动时）；random 为 None 表示不抽（贪心、束搜索）
    guide 为 None 表示写什么都行；有的话，只许喂 allowed 里的
    约定：不碰模型也不碰分数，所以喂一串现成的编号就能重放，束搜索正是这样得到文本的
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        tokenizer: Tokenizer,
        params: SamplingParams,
        *,
        context: int | None,
        random: RowRandom | None = None,
        guide: TokenGuide | None = None,
    ) -> None:
        self.prompt_ids = prompt_ids  # 只读：账本与解码器也从这里取
        self.params = params  # 同一批里各行可以不同
        self._random = random  # 随文本走，不随行号走
        self.stop_ids = tokenizer.stop_ids  # 分词器可以没有「结束」，那就是空的
        self.ids: list[int] = []  # 写了的，不含提示
        self.notes: list[TokenNote] = []
        self.reason: str | None = None  # 还在写就是 None
        self._pieces: list[str] = []  # 已放行的各段，到最后才拼：边写边拼要反复抄
        # 两道关：先凑字，再查停止串；都有自己的记性，所以每份文本各用一个
        # 提示里有字，写的就是接着它的；只有特殊词元（例如「从头写一篇」）的，是新的开头
        begun = any(token not in tokenizer.special_tokens.values() for token in prompt_ids)
        self._decoder = tokenizer.stream(continued=begun)
        self._matcher = StopMatcher(params.stop)
        # 两个上限谁先到：自己说的，还是上下文剩下的。
        # 提示加上写的至多 C 个：这样写完的全文还能原样再喂给模型，例如给它打分
        room = params.max_new_tokens if context is None else context - len(prompt_ids)
        self.limit = min(params.max_new_tokens, room)
        self._limit_reason = "length" if params.max_new_tokens <= room else "context"
        if self.limit == 0:  # 一个也不用写，模型也不必跑
            self.reason = self._limit_reason
        # 规则的状态随文本走；名单与表是大家共用的
        self.guide = guide
        self.state = 0 if guide is None else guide.start
        self._check_rule()

    def allowed(self, ahead: Sequence[int] = ()) -> list[Tensor | None]:
        """下一个词元许写哪些，以及再写了 ahead 里的第一个、前两个…之后：各是 (V,) 布尔。

        形状：k 个 → k + 1 张名单；没有规则的都是 None
        约定：ahead 须先用 sensible 筛过，否则走进死路，名单是空的
        """
        if self.guide is None:
            return [None] * (len(ahead) + 1)
        found: list[Tensor | None] = []
        state, left = self.state, self.limit - len(self.ids)
        for i in range(len(ahead) + 1):
            found.append(self.guide.allowed(state, left - i))
            state = self.guide.step(state, ahead[i]) if i < len(ahead) else state
        return found

    def sensible(self, ahead: Sequence[int]) -> list[int]:
        """猜的里面值得批改的一段：规则许可、写了它文章还没完的；从头一个不合的起都不要。"""
        found: list[int] = []
        state, left = self.state, self.limit - len(self.ids)
        for token in ahead:
            left -= 1
            if token in self.stop_ids or left < 1:
                break
            if self.guide is not None:
                if not self.guide.allowed(state, left + 1)[token]:
                    break
                state = self.guide.step(state, token)
                if self.guide.is_complete(state) or self.guide.is_over(state, left):
                    break
            found.append(token)
        return found

    def key(self, ahead: int = 0) -> int:
        """抽第 len(ids) + ahead 个词元的运气由它决定；不抽的（贪心、束搜索）给什么都行。"""
        return 0 if self._random is None else self._random.at(len(self.ids) + ahead)

    def feed(self, token: int, note: TokenNote | None = None) -> str:
        """收下一个词元，返回现在可以显示的文字；停下的原因写在 reason。

        约定：写完之后不许再喂；note 里的候选可以比要的多，要记就每步都给
        """
        assert self.reason is None, "this text is finished"
        # 先记下再判断：停下的那个词元也是模型选的
        self.ids.append(token)
        if note is not None:
            self.notes.append(note)
        # ① 「结束」是给机器看的，不显示
        if token in self.stop_ids:
            return self._finish("end", "")
        # ② 完整的字符 → 不会变成停止串的部分；两道关都可能一个字也不放行
        shown = self._matcher.push(self._decoder.push(token))
        if len(self.ids) == self.limit:
            self.reason = self._limit_reason
        # ③ 规则走一步；写无可写就不必等模型说「结束」
        if self.guide is not None:
            self.state = self.guide.step(self.state, token)
            self._check_rule()
        if self._matcher.found is None and self.reason is None:
            self._pieces.append(shown)
            return shown
        # ④ 找到停止串也走这里：_finish 会把原因改成 "stop"，所以它先于写满
        return self._finish(self.reason or "stop", shown)

    def _check_rule(self) -> None:
        """规则说该停了吗？写无可写是 "complete"；还可以写、但地方不够再收一次尾，算写满。"""
        if self.guide is None:
            return
        if self.guide.is_complete(self.state):
            self.reason = "complete"
        elif self.guide.is_over(self.state, self.limit - len(self.ids)):
            self.reason = self._limit_reason

    def _finish(self, reason: str, shown: str) -> str:
        """交出扣住的：半个字符变成 �，半个停止串如数放行；若恰好凑成停止串，就算停在那里。"""
        # 次序不能反：先把半个字交给停止串去查，再放行停止串扣住的
        shown += self._matcher.push(self._decoder.flush())
        shown += self._matcher.flush()
        self.reason = reason if self._matcher.found is None else "stop"
        self._pieces.append(shown)
        return shown

    def generation(self, score: float | None = None) -> Generation:
        """写完之后的样子；score 由束搜索给。"""
        # 没写完的文本末尾还扣着东西，这时交出去会与 stream 对不上
        assert self.reason is not None, "this text is still being written"
        # 编号与对数概率原样交出；没要的不给空表而给 None，免得看成「都是零」。
        # 同一批里有人要得多，候选就都多记了几个：只交自己要的
        params, n = self.params, self.params.top_logprobs
        return Generation(
            text="".join(self._pieces),
            ids=tuple(self.ids),
            finish_reason=self.reason,
            logprobs=tuple(note.logprob for note in self.notes) if params.logprobs else None,
            top_logprobs=tuple(note.top[:n] for note in self.notes) if n else None,
            score=score,
        )


def demo() -> None:
    """同一串词元，四种停法；每一步显示了什么。

    分词器故意只学几次合并：汉字大多散成两三段，好看清扣住与放行
    """
    from tokenization.tokenizer import Tokenizer

    tokenizer = Tokenizer.train_bpe(["春眠不觉晓。处处闻啼鸟。"] * 2, 275)
    # 编号 → 字节：看得出一个汉字（三个字节）是怎样被切开的
    ids = tokenizer.encode("春眠不觉晓。处处")
    assert tokenizer.end_id is not None
    print(f"{len(ids)} 个词元：{' '.join(tokenizer.token_bytes(i).hex() for i in ids)}")
    cases = [
        ("至多 9 个词元", ids, SamplingParams(max_new_tokens=9), None),
        ("停止串「。处」", ids, SamplingParams(stop=("。处",)), None),
        ("模型写出结束", [*ids[:6], tokenizer.end_id], SamplingParams(), None),
        ("上下文只有 8 ", ids, SamplingParams(), 8),
    ]
    for name, tokens, params, context in cases:
        # 提示用哪三个编号都行：它只占上下文的位置，不参与解码与停止串
        row = Continuation([1, 2, 3], tokenizer, params, context=context)
        # 停下之后就不再喂：模型那边也是一停就退出批
        shown = []
        for token in tokens:
            shown.append(row.feed(token))  # 空的一段就是扣住了
            if row.reason is not None:
                break
        print(f"{name}\t{row.reason!s:8} " + "│".join(shown))
        # 逐段显示的，合起来就是最后的文本；这就是「流式 = 一次写完」
        assert "".join(shown) == row.generation().text
        assert "。处" not in row.generation().text or not params.stop


if __name__ == "__main__":
    run_demo(demo)
