r"""演示用的小诗人：怎样在一两秒里得到一个「会写字」的模型？——让它把三首诗背下来。

没有训练过的模型只会写乱码，看不出采样策略的好坏；真正训练一个又要几分钟。折中的办法是过拟合
（overfitting）：语料只有三首诗，反复学几十遍，损失降到接近 0

$$L = -\frac{1}{T}\sum_t \log p(x_t \mid x_{<t}) \;\to\; 0$$

    三首诗 ──字符级分词──▶ (3, T) ──反复学同一批──▶ 背熟了，但不牢
    每首之后接「文章结束」，它也就学会了背完就停

「不牢」正合用：贪心时背得出来，温度一高就串到别的诗里去，几种策略的差别一目了然。
三首诗恰好一样长，所以不必填充；长短不一时，短的要补齐，补的地方不算损失（见 sft.py）。

背诵靠的是什么？注意力在前文里找「此刻像哪一处」，前馈层记着「那里的下一个字」。
给它诗的开头，它一路对得上；从诗的半中间开始，前文不够，就可能认错地方。

这也是检验整条链路最快的办法：背不下三首诗，就是哪里写错了，不必去训练大语料。
反过来，背得下来不等于学会了语言：换一个没见过的开头，它只会往这三首诗上靠。

改哪里：换成自己的诗 → POEMS；想背得更熟 → STEPS 加大。正式的训练循环在 training/ 里，
       那里有学习率的升降、梯度裁剪、断点续训，这里一样也没有。
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from foundation.demonstration import run_demo

if TYPE_CHECKING:
    from gpt_model.model import GPT
    from tokenization.tokenizer import Tokenizer

__all__ = ["POEMS", "learn_poems"]

# 李白《静夜思》、王之涣《登鹳雀楼》、孟浩然《春晓》
POEMS = """床前明月光，疑是地上霜。举头望明月，低头思故乡。
白日依山尽，黄河入海流。欲穷千里目，更上一层楼。
春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。
"""
STEPS = 60  # 少了背不下来，多了就太熟：温度再高也不出错


def learn_poems(n_steps: int = STEPS) -> tuple[GPT, Tokenizer, float]:
    """背诗，返回（模型，分词器，最后的损失）；随机数来自 torch 的全局随机源。

    模型留在训练模式：用的人应当自己关掉 dropout，生成器正是这样做的
    """
    from gpt_model.config import preset
    from gpt_model.model import GPT
    from tokenization.tokenizer import Tokenizer

    tokenizer = Tokenizer.characters([POEMS])
    # 两层、64 维就够：参数比要背的字多得多。
    # 现代的零件（RMSNorm、RoPE）学得快，几十步就背下来了
    model = GPT(preset("modern-micro", vocab_size=tokenizer.vocab_size, dim=64, n_layers=2))
    # 一首一行，末尾接「文章结束」：忘了它，模型背完一首会接着胡编
    end = [0 if tokenizer.end_id is None else tokenizer.end_id]
    ids = torch.tensor([tokenizer.encode(poem) + end for poem in POEMS.splitlines()])  # (3, T)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(n_steps):
        # 输入少最后一个，标签少第一个：每个位置都要猜出下一个字
        loss = model(ids[:, :-1], ids[:, 1:]).loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, tokenizer, loss.item()


def demo() -> None:
    """学几步、学够、贪心地背一遍：看损失怎样降，字怎样对上。"""
    from inference.generator import SamplingParams, TextGenerator

    wanted = POEMS.splitlines()[0]
    # 字的种类就是词表的大小（再加一个「文章结束」）
    print(f"语料 {len(POEMS)} 个字，{len(set(POEMS))} 种")
    # 同样的初始权重，学的步数不同：损失降到哪里，字才对得上
    for n_steps in (4, 8, 12, STEPS):
        torch.manual_seed(0)
        model, tokenizer, loss = learn_poems(n_steps)
        params = SamplingParams(temperature=0, max_new_tokens=30)
        (found,) = TextGenerator(model, tokenizer).generate(["床前"], params)
        print(f"学 {n_steps:2} 步　损失 {loss:.3f}　床前{found.text}　（{found.finish_reason}）")
    # 一字不差，背完就停
    assert loss < 0.2
    assert "床前" + found.text == wanted
    assert found.finish_reason == "end"


if __name__ == "__main__":
    run_demo(demo)
