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

论文：Sutskever 等 2014 (arXiv:1409.3215) 用束搜索解码神经网络；
     Stahlberg 与 Byrne 2019 (arXiv:1908.10090) 找到了真正最高分的句子，却常常是空句。

改哪里：名单里每一份还要带什么 → best_texts 的最后一步；多条提示合成一批搜索 → 给 beam_search
       的每条路加上「属于哪条提示」。
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from foundation.demonstration import run_demo
from inference.beam_search import beam_search
from inference.continuation import Continuation, Generation, take_notes
from inference.decoder import Decoder
from inference.penalties import History
from inference.sampling import SamplingParams

__all__ = ["best_texts"]


def best_texts(
    new_row: Callable[[], Continuation],
    new_decoder: Callable[[], Decoder],
    params: SamplingParams,
) -> list[Generation]:
    """一条提示的 num_return 份最好的文本，分高的在前。

    new_row、new_decoder 每次给一份全新的：搜索要一份，每次重放又要一份
    错误：不同的写法不够 num_return 种 → ValueError，写明两个数
    """
    row, decoder = new_row(), new_decoder()
    # ① 一个词元的地方也没有：唯一的写法是什么也不写
    if row.reason is not None:
        return [row.generation(score=0.0)] * params.num_return
    history = None
    if params.needs_history:
        device = decoder.model.device
        history = History([row.prompt_ids], vocab_size=decoder.vocab_size, device=device)

    def is_finished(ids: Sequence[int]) -> bool:
        # 没有停止串时看最后一个就够了；有的话，停止串可能横跨好几个词元，重放才看得见
        return ids[-1] == row.end_id or bool(params.stop and replay(new_row(), ids).reason)

    # ② 搜索
    found = beam_search(
        decoder,
        num_beams=params.num_beams,
        max_new_tokens=row.limit,
        is_finished=is_finished,
        length_penalty=params.length_penalty,
        processors=params.penalties(),
        history=history,
    )
    if len(found) < params.num_return:
        raise ValueError(
            f"only {len(found)} different texts can be written here, but num_return is "
            f"{params.num_return}; lower it or allow more new tokens"
        )
    # ③ 编号 → 文本
    texts = []
    for one in found[: params.num_return]:
        noting = (new_decoder(), params.top_logprobs) if params.logprobs else None
        texts.append(replay(new_row(), one.ids, noting).generation(score=one.score))
    return texts


def replay(
    row: Continuation, ids: Sequence[int], noting: tuple[Decoder, int] | None = None
) -> Continuation:
    """把一串词元照原样喂一遍；要记对数概率时，让模型跟着走一遍。

    noting 是（新的 Decoder，每步记几个候选）
    """
    for token in ids:
        if noting is None:
            row.feed(token)
            continue
        decoder, n_top = noting
        (note,) = take_notes(decoder.next_logits(), [token], n_top)
        row.feed(token, note)
        if row.reason is None:
            decoder.append([token])
    return row


def demo() -> None:
    """一个背过两句诗的小模型：贪心与束搜索各写什么，名单里还有谁。"""
    import torch

    from gpt_model.config import preset
    from gpt_model.model import GPT
    from inference.generator import TextGenerator
    from tokenization.tokenizer import Tokenizer

    # 三句以「山」开头：山一（两次，以后分岔）、山中（一次，以后没有悬念）
    lines = ["山一程。", "山一更。", "山一片。", "山中无。", "山中无。"]
    tokenizer = Tokenizer.characters(lines)
    config = preset("modern-micro", vocab_size=tokenizer.vocab_size, n_layers=2, dim=32, n_heads=2)
    model = GPT(config)
    ids = torch.tensor([tokenizer.encode(line) for line in lines])  # (5, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(ids[:, :-1], ids[:, 1:]).loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    writer = TextGenerator(model, tokenizer)
    greedy = writer.generate(["山"], SamplingParams(temperature=0, max_new_tokens=3, logprobs=True))
    print("学过：" + " ".join(lines))
    total = sum(greedy[0].logprobs or ())
    print(f"贪心　　　　山{greedy[0].text}  Σ log p = {total:.3f}")
    params = SamplingParams(
        num_beams=4, num_return=4, max_new_tokens=3, length_penalty=0.0, logprobs=True
    )
    found = writer.generate(["山"], params)
    for place, one in enumerate(found, start=1):
        print(f"束搜索第 {place} 名 山{one.text}  Σ log p = {one.score:.3f}")
        # α = 0：打折后的总分就是对数概率之和，与逐步读出的一致
        assert one.score is not None
        assert one.logprobs is not None
        assert abs(one.score - sum(one.logprobs)) < 1e-4
    # 「一」开头更常见（3/5），但后面三选一；「中」开头（2/5）之后再无悬念
    assert greedy[0].text.startswith("一")
    assert found[0].text == "中无。"
    assert (found[0].score or 0.0) > total
    print("「一」的概率更高，接着却要三选一；「中」之后没有悬念，整句反而更可能")


if __name__ == "__main__":
    run_demo(demo)
