r"""束搜索给的是编号，怎样变成文本？——何时算写完、缓存怎样跟着走、对数概率从哪里来。

beam_search.py 只认得「分数」与「走完没有」，所以换成任何模型都能用。把真的模型接上去，要补三样：

    beam_search ──▶ 每条路的编号 ──▶ 走完没有？  重放一遍：停止串、「结束」都由
                                                 continuation.py 判断，与抽样时同一段程序
                                 ──▶ 缓存        Decoder.keep 按新的次序重排 K、V
                                 ──▶ 对数概率    沿着选定的路再走一次，逐步读出

搜索时比的是**惩罚之后**的分数（惩罚不起作用的话，就是模型自己的），打折后作 score；
logprobs 记的始终是模型自己的 log p。没有惩罚时两者一致：

$$\text{score} = \frac{1}{|y|^{\alpha}} \sum_t \log p(y_t \mid x, y_{<t})$$

束搜索不抽样，所以温度、top-k、top-p、min-p 与种子都用不上；后几种给了就报错，温度不看。

每条提示自己占一批（它的几条路），因此成批与单独自然相同。

重放（replay）是这里的小窍门：不让每条路都背着解码器、停止串的状态到处复制，只记编号；
要知道某条路的文字，就用一份全新的状态把编号从头喂一遍。多做一点便宜的事，换来的是：
「什么时候停、显示什么」在全书只有一份程序，束搜索与抽样不可能不一致。

有规则时，各条路写的不同，规则的状态也不同：每条路各划各的。一条路「写无可写」就算走完，
不必等「结束」；写满时，名单早已保证它收了尾（见 constraints.py）。

常见疑问：
    为什么名单里的几份那么像？   它们共用大半段前文，只在最后几个词上不同。想要多样，
                                 请抽样几份（num_return），而不是束搜索
    为什么束搜索写得又短又空？   短句的总概率天然高；把 length_penalty 调大。再大也救不了
                                 开放式的文本：人写的话本来就不是概率最高的那句
    score 是负的，对吗？         对：概率小于 1，对数就是负的；越接近 0 越可能

论文：Sutskever 等 2014 (arXiv:1409.3215) 用束搜索解码神经网络；
     Stahlberg 与 Byrne 2019 (arXiv:1908.10090) 找到了真正最高分的句子，却常常是空句。

改哪里：名单里每一份还要带什么 → best_texts 的最后一步；多条提示合成一批搜索 → 给 beam_search
       的每条路加上「属于哪条提示」。
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from foundation.demonstration import run_demo
from inference.beam_search import beam_search
from inference.constraints import restrict
from inference.continuation import Continuation, Generation, take_notes
from inference.penalties import History
from inference.request import Request
from inference.sampling import SamplingParams

if TYPE_CHECKING:
    from inference.token_guide import TokenGuide

__all__ = ["best_texts"]


def best_texts(
    request: Request, ids: Sequence[int], params: SamplingParams, guide: TokenGuide | None = None
) -> list[Generation]:
    """一条提示的 num_return 份最好的文本，分高的在前；guide 是这条提示的规则。

    形状：ids 一条提示 → num_return 个 Generation，score 从高到低
    错误：不同的写法不够 num_return 种 → ValueError，写明两个数
    """
    row = request.new_row(ids, params, guide=guide)
    # ① 一个词元的地方也没有：唯一的写法是什么也不写
    if row.reason is not None:
        return [row.generation(score=0.0)] * params.num_return  # Generation 不可变，共用无妨
    decoder, history = request.new_decoder([ids], row.limit), None
    # 没有惩罚就不记账
    if params.needs_history:
        # 惩罚要看说过什么，提示里的也算。账本也只有一行；分出几条路之后，由 beam_search 跟着重排
        device = decoder.model.device
        history = History([ids], vocab_size=decoder.vocab_size, device=device)

    def is_finished(chosen: Sequence[int]) -> bool:
        # 没有停止串时看最后一个就够了；有的话，停止串可能横跨好几个词元，重放才看得见
        if chosen[-1] in row.stop_ids:
            return True
        # 「结束」之外的另一种走完
        # 规则说不能再写了；有规则就没有停止串，不必重放
        if guide is not None:
            return guide.is_over(states(tuple(chosen)), row.limit - len(chosen))
        return bool(params.stop) and replay(request, ids, params, chosen).reason is not None

    # 路 → 规则的状态；没有规则就不划
    states = follow_rule(guide)
    strike = None
    if guide is not None:
        rule = guide

        # 余地也要减去已写的：写满之前就得开始收尾。
        # 各条路写的不同，规则的状态也不同
        def strike(logits: Tensor, routes: Sequence[tuple[int, ...]]) -> Tensor:
            found = [rule.allowed(states(one), row.limit - len(one)) for one in routes]
            return restrict(logits, found)

    # ② 搜索；row.limit 已把上下文还剩多少算在内
    found = beam_search(
        decoder,
        num_beams=params.num_beams,  # b
        max_new_tokens=row.limit,
        is_finished=is_finished,  # beam_search 不认得文字，只会问这一句
        length_penalty=params.length_penalty,  # α
        processors=params.penalties(),  # 没有温度与淘汰：这里不抽
        history=history,
        restrict=strike,
    )
    # ③ 束宽是上限，不是保证：词表小、禁用多时，不同的写法本来就没有那么多
    if len(found) < params.num_return:
        raise ValueError(
            f"only {len(found)} different texts can be written here, but num_return is "
            f"{params.num_return}; lower it or allow more new tokens"
        )
    # ④ 编号 → 文本；搜索已按分数排好，前几名就是要交的
    return [
        replay(request, ids, params, one.ids, guide, noting=params.logprobs).generation(one.score)
        for one in found[: params.num_return]
    ]


def follow_rule(guide: TokenGuide | None) -> Callable[[tuple[int, ...]], int]:
    """返回「一条路 → 规则的状态」的查询。

    每条路都是从上一步的路长出来的，只多走一个词元，所以记住走过的就不必从头走
    """
    known: dict[tuple[int, ...], int] = {(): 0 if guide is None else guide.start}

    def state(chosen: tuple[int, ...]) -> int:
        # 前一截多半上一步刚算过，只补最后一个词元
        if chosen not in known:
            assert guide is not None
            known[chosen] = guide.step(state(chosen[:-1]), chosen[-1])
        return known[chosen]

    return state


def replay(
    request: Request,
    ids: Sequence[int],
    params: SamplingParams,
    chosen: Sequence[int],
    guide: TokenGuide | None = None,
    *,
    noting: bool = False,
) -> Continuation:
    """把选定的词元照原样喂一遍；要记对数概率（noting）时，让模型跟着走一遍。

    为什么不在搜索时顺手记下？那时有 2b 个候选，多半会被淘汰；选定之后只要记一份
    约定：noting 与 params.logprobs 相同时，交出的才齐全；只问「走完没有」就不必记
    """
    row = request.new_row(ids, params, guide=guide)
    # 规则也一起重放：停下的原因要与当初一致。
    # 不要对数概率：只走文字一侧，不碰模型，便宜
    if not noting:
        for token in chosen:
            row.feed(token)  # 显示的各段由 row 自己攒着
        return row
    # 一行、一步一个词元：与当初写的时候同样的窗口，滑动时也在同样的地方滑动
    decoder = request.new_decoder([ids], row.limit)
    for token in chosen:
        # 这里的分数没有惩罚：logprobs 说的是模型自己怎么想
        (note,) = take_notes(decoder.next_logits(), [token], params.top_logprobs)
        row.feed(token, note)
        # 最后一个不必再喂：后面没有要打的分了
        if row.reason is None:
            decoder.append([token])
    return row


def demo() -> None:
    """一个背过五句话的小模型：贪心与束搜索各写什么，名单里还有谁。

    五句里三句以「山一」开头、后面各不相同，两句是「山中无」：正是贪心会上当的局面，

    P(一) = 3/5 > P(中) = 2/5，可是 P(一程。) = 1/5 < P(中无。) = 2/5
    """
    import torch

    from gpt_model.config import preset
    from gpt_model.model import GPT
    from inference.generator import TextGenerator
    from tokenization.tokenizer import Tokenizer

    # 五句都以「山」开头：「山一」三次，以后分岔；「山中」两次，以后没有悬念
    lines = ["山一程。", "山一更。", "山一片。", "山中无。", "山中无。"]
    # 字符级：一个字一步，好数
    tokenizer = Tokenizer.characters(lines)
    # 小到一秒学成；与 poet.py 同样的办法，只是要背的话特意挑过
    config = preset("modern-micro", vocab_size=tokenizer.vocab_size, n_layers=2, dim=32, n_heads=2)
    model = GPT(config)
    # 长短相同，不必填充；反复学同一批，直到记住各种开头的比例
    ids = torch.tensor([tokenizer.encode(line) for line in lines])  # (5, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(ids[:, :-1], ids[:, 1:]).loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    # 生成器里走的就是上面的 best_texts；模型还在训练模式，生成器会暂时关掉
    writer = TextGenerator(model, tokenizer)
    greedy = writer.generate(["山"], SamplingParams(temperature=0, max_new_tokens=3, logprobs=True))
    print("学过：" + " ".join(lines))
    # 贪心的每一步都是当时最好的，合起来却未必
    total = sum(greedy[0].logprobs or ())
    print(f"贪心　　　　山{greedy[0].text}  Σ log p = {total:.3f}")
    # 四条路，四份都要；α = 0 时总分就是整句的对数概率，好与贪心的比
    params = SamplingParams(
        num_beams=4, num_return=4, max_new_tokens=3, length_penalty=0.0, logprobs=True
    )
    # 搜索三步：四条路足够把这五句话都走到
    found = writer.generate(["山"], params)
    for place, one in enumerate(found, start=1):
        print(f"束搜索第 {place} 名 山{one.text}  Σ log p = {one.score:.3f}")
        # α = 0：打折后的总分就是对数概率之和，与逐步读出的一致
        assert one.score is not None
        assert one.logprobs is not None
        assert abs(one.score - sum(one.logprobs)) < 1e-4
    # 名单里没有重复：每条路的编号都不同。
    # 「一」开头更常见（3/5），但后面三选一；「中」开头（2/5）之后再无悬念
    assert greedy[0].text.startswith("一")
    assert found[0].text == "中无。"
    assert (found[0].score or 0.0) > total
    print("「一」的概率更高，接着却要三选一；「中」之后没有悬念，整句反而更可能")


if __name__ == "__main__":
    run_demo(demo)
