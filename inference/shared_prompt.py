r"""一批提示开头相同，为什么不必各读一遍？——前文相同，K、V 就相同：读一遍，抄给每一行。

因果注意力里，第 j 个位置的键和值只由前 j 个词元决定。两行的前 P 个词元相同，两行的前 P 列缓存
就是同样的数，不管后面接什么。读（算）一列要把整个模型走一遍，抄一列只是搬几个数：

$$\text{各读各的：}\; B \cdot n \text{ 个词元} \qquad
  \text{共用：}\; P + D\,(n - P) \text{ 个}$$

n 是最长的一条，P 是共同的开头，D 是互不相同的提示有几条（D ≤ B）。三步：

    ① 一模一样的只留一条     春、春、春、日 ──▶ 春、日；读完再按行号复制成四行
    ② 共同的开头用一行读     例题例题例题……                     (1, P)
    ③ 抄成 D 行，各读自己的  例题例题│问甲                       (D, n − P)
                             ···例题例题│乙     「·」是填充

长短不一时怎样抄？每行仍要左填充，短的那行整个靠右：它的前文从第 p 列开始，不是第 0 列。所以抄的
时候往右挪 p 格，挤出去的几个词元留给第 ③ 步重读。挪动不改变任何数：位置是按真实的词元数的
（RoPE 转的角度、学出来的位置都是），存进缓存的键里没有列号。挪完之后，缓存与「每行从头读到
第 P 列」的逐格相同，后面的步子于是一概不必知道前文是抄来的。

    第 0 列                     P 列
    例 题 例 题 例 题 例 题     │  问 甲 的 题      填充 0
    ·  ·  ·  例 题 例 题 例     │  题 例 题 乙      填充 3：重读 3 个
    └────── 抄来的 ──────┘     └── 一起读 ──┘

哪里会遇到：
    一条提示写 n 份            num_return：D = 1，整条提示只读一遍，连第一步的分数也共用
    几个例子加一道题           few-shot：例子全相同，题不同
    同样的吩咐、不同的问话     system prompt
    滑动之后从头再读           sliding=True 丢掉旧的一半：多半已经各写各的，就各读各的

什么时候不共用：没有缓存（每步从头读，它是标准答案）；滑动的缓存（自己定位置，挪不动）；
省得太少。多读一遍要多搬一遍权重，省下的词元不到 WORTH 个就不值得。

常见疑问：
    结果真的相同吗？      同样的公式、同样的数。PyTorch 的矩阵核对一行与几行的加法次序不同，末位
                          可能差一点；准备好的核（prepared.py）一行的结果与旁边有谁无关，逐比特相同
    只有一半的行开头相同？这里只找所有行共同的开头；几组各自共用，要把前文排成一棵树
    两次调用之间呢？      见 prefix_cache.py：上一次读过的，下一次抄来

论文：Zheng 等 2024, SGLang 的 RadixAttention（arXiv:2312.07104）把前文排成树，跨请求共用；
     Kwon 等 2023, PagedAttention（arXiv:2309.06180）连抄也省了：几行指向同一页。

改哪里：几组各自的开头 → share 返回一棵树，Decoder._read_all 逐层读；
       多短就不值得 → WORTH。
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from foundation.demonstration import run_demo

if TYPE_CHECKING:
    from transformer_basics.kv_cache import ModelCache

__all__ = ["SharedPrompt", "share", "spread"]

WORTH = 32  # 至少省下这么多个词元，才值得为共同的开头多走一遍模型


class SharedPrompt(NamedTuple):
    """一批提示里真正要读的：D 条互不相同的，与它们共同的开头。"""

    rows: list[list[int]]  # D 条，按第一次出现的次序
    which: list[int]  # (B,) 原来的第 b 行是 rows[which[b]]
    length: int  # P：共同的开头有几个词元；0 就是不共用


def share(prompts: Sequence[Sequence[int]]) -> SharedPrompt:
    """找出重复的与共同的开头。

    形状：B 条 → D 条，D ≤ B；P < 最长的一条，所以总还有要读的
    公式：P = max{p : 所有行的前 p 个相同}；(D − 1)·P < WORTH 时取 0
    """
    # ① 一模一样的只留一条；字典记得住先后，编号就是它第几个出现
    numbers: dict[tuple[int, ...], int] = {}
    which = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts]
    rows = [list(row) for row in numbers]
    # ② 逐列往右看，直到有一行不同；zip 到最短的一行为止。
    #    只有一条时没有别人可共用：整条就是它自己的
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
    length = sum(1 for _ in columns) if len(rows) > 1 else 0
    return SharedPrompt(rows, which, length if (len(rows) - 1) * length >= WORTH else 0)


def spread(cache: ModelCache, padding: Sequence[int]) -> None:
    """一行的缓存抄成 D 行，第 b 行往右挪 padding[b] 格。

    形状：每层 (1, G, P, d) → (D, G, P, d)；空出来的列是填充，谁也看不见
    挤出右边的绕回左边，恰好落在填充里：填充的数不要紧，只要不是 NaN
    错误：滑动的缓存，列在哪里由它自己定 → ValueError
    """
    if cache.reach is not None:
        raise ValueError("a sliding cache places its columns itself: its prompts cannot be shared")

    def moved(stored: Tensor) -> Tensor:
        # 第 2 维是列；填充比前文还长的，整行都是填充
        return torch.cat([stored.roll(shift, dims=2) for shift in padding])

    cache.rewrite(moved)


def demo() -> None:
    """八个例子加一道题，四道题长短不一：读了几个词元，写的一样不一样；再看一条提示写四份。"""
    from gpt_model.config import preset
    from gpt_model.model import GPT
    from inference.decoder import Decoder, greedy

    # 随机权重的小模型；init_std 取大，前文错一个词元，写的就全变样
    model = GPT(preset("modern-micro", vocab_size=50, init_std=0.1)).eval()
    examples = torch.randint(50, (80,)).tolist()
    questions = [examples + torch.randint(50, (n,)).tolist() for n in (6, 2, 9, 9)]
    # 数一数：每次前向，真正进了模型的格子有几个（填充也要算，也算在内）
    fed: list[int] = []
    model.register_forward_pre_hook(lambda _, given: fed.append(given[0].numel()))
    for name, prompts in (
        ("80 个词元的例子，四道题", questions),
        ("一条提示，写四份", [questions[0]] * 4),
    ):
        found = share(prompts)
        print(f"{name}：{len(found.rows)} 条不同，共同的开头 {found.length} 个")
        counts, texts, n = [], [], max(map(len, prompts))
        for sharing in (False, True):
            fed.clear()
            decoder = Decoder(model, prompts, max_new_tokens=20, sharing=sharing)
            # 推理模式：缓存就地写，不能带着梯度
            with torch.inference_mode():
                texts.append(greedy(decoder, 20))
            # 写 20 个：第一个来自预填，后面每步每行一个
            counts.append(sum(fed) - 19 * len(prompts))
            print(
                f"   {'共用' if sharing else '各读'}　预填 {counts[-1]:3} 个　{texts[-1][1][:6]}…"
            )
        # 预填的个数与公式相符，写的一个也不差
        distinct = len(found.rows)
        assert counts == [4 * n, found.length + distinct * (n - found.length)]
        assert texts[0] == texts[1]


if __name__ == "__main__":
    run_demo(demo)
