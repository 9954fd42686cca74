r"""一批长短不一的文本，怎样一步一步地问模型「下一个是什么」？

    第 1 步（预填，prefill）          第 2、3、… 步（解码，decode）
    ·  ·  床 前                       月
    白 日 依 山          ──KV 缓存──▶ 尽          每行一个，只算新的
    └── 左填充，末列都是真词元 ──┘

左填充（left padding）使每一行的「最后一个词元」都在最后一列，一次就取出全部的下一步分数。
填充不占位置、谁也看不见，所以一行在批里与单独写，分数只差浮点舍入。

三种时候，缓存里的东西作废，要从头再读一遍（预填）：
  · 第一步；
  · 填充吃光了上下文：缓存的长度把填充也算在内，短的行还没写满，长的行已到头。
    此时长的行必已写完，剩下的行左边有公共的填充，重新排紧就又有了地方；
  · 滑动（sliding）：写满上下文 C 之后丢掉旧的一半，只留最近的

$$ C - \lfloor C/2 \rfloor \text{ 个} $$

    为什么一丢就丢一半？每丢一个，其余词元的位置全都变了，缓存整个作废。每步丢一个就每步
    重读 C 个；一次丢一半，每 C/2 步才重读一次，摊下来每步只多读一个。
    结果是精确的：等于把剩下的文本当作新提示重新开始，而不是拿旧位置上的缓存凑合。

不用缓存（cache="none"）就是每一步都从头读：慢，但最好懂，也是缓存的标准答案。

滑动的缓存（cache="sliding"，见 transformer_basics/sliding_cache.py）是另一种滑动：每步忘掉一个，
从不重读；提示比上下文长也读得进去。它没有上限，所以上面三种时候只剩第一种。

提示很长时分段预填，每段至多 512 个：注意力的临时内存是「段长 × 已读」，不是「全文 × 全文」。

各行相同的、共同的开头，预填时只读一遍，再抄给每一行，见 shared_prompt.py；结果相同。
从前的请求读过的开头，连这一遍也省了：抄过来就是，见 prefix_cache.py。

只有一行时还可以往前看（投机解码，见 speculative.py）：把猜的几个当作已经写了，一起喂进去，每个
位置的分数一次得到；猜错的用 rewind 退掉，缓存截短到对的为止。

常见疑问：
    为什么不右填充？    右填充时，各行的最后一个词元在不同的列，新词元要插在填充中间，
                        缓存里就留下了洞
    填充的编号用几？    用几都行，只要在词表里：掩码让谁也看不见它
    为什么要自己数位置？缓存的长度把填充也算在内；短的行若照它数，就像开头凭空多了几个字，
                        学出来的位置与 RoPE 都会错。错得不离谱，所以很难发现
    一直不滑动会怎样？  学出来的位置表只有 C 行，再写就没有位置可查；RoPE 算得出来，
                        但模型没有见过那么远的距离，多半开始胡说

论文：Pope 等 2022 (arXiv:2211.05102) 预填与解码；
     Xiao 等 2023 StreamingLLM (arXiv:2309.17453) 另一种滑动：留住开头几个词元。

改哪里：滑动时丢多少 → DROPPED；一段预填多少 → PREFILL；加一种缓存 → gpt_model/caches.py；
       共用开头的办法 → shared_prompt.py；跨请求的 → prefix_cache.py。
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foundation.demonstration import run_demo
from gpt_model.caches import CacheSettings
from inference.shared_prompt import SharedPrompt, share, spread

if TYPE_CHECKING:
    from gpt_model.model import GPT
    from inference.prefix_cache import PrefixCache
    from transformer_basics.kv_cache import ModelCache

__all__ = ["Decoder"]

DROPPED = 2  # 滑动时丢掉上下文的几分之一
PREFILL = 512  # 预填时一段至多几个词元


class Decoder:
    """一批正在变长的文本，每行是模型此刻能看到的窗口。

    用法：next_logits → 选词 → （keep）→ append → next_logits …
    往前看：next_logits(猜的) → 批改 → rewind(错了几个) → append …
    形状：B 行，第 b 行 windows[b] 有 n_b 个词元，n_b ≤ C = max_seq_len
    约定：不滑动时，写满 C 的行由调用者用 keep 去掉，否则 append 抛 ValueError
    """

    def __init__(
        self,
        model: GPT,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        cache: CacheSettings | str = "static",
        sliding: bool = False,
        vocab_size: int | None = None,
        forbidden: Tensor | None = None,
        sharing: bool = True,
        prefixes: PrefixCache | None = None,
    ) -> None:
        # 设备每步都要：问一次模型，就要从头翻一遍它的参数
        self.model, self.device = model, model.device
        # 模型的词表常比分词器的大一截（凑成 64 的倍数，算得快）：多出来的没有对应的文字
        self.vocab_size = model.config.vocab_size if vocab_size is None else vocab_size
        self.forbidden = forbidden  # (n,) 分词器词表中间的空缺，同样不能选
        self.context = model.config.max_seq_len  # C
        self.settings = CacheSettings.of(cache).resolved(model.config)
        self.sliding = sliding
        # 假：每行各读各的，用来核对。没有缓存就没有可抄的；滑动的缓存自己定位置，挪不动
        can_copy = self.settings.kind != "none" and not self.settings.is_endless
        self.sharing = sharing and can_copy
        self.prefixes = prefixes if can_copy else None  # 从前的请求读过的；None 就从头读
        self.windows = [list(prompt[-self.context :] if sliding else prompt) for prompt in prompts]
        self.to_write = max_new_tokens  # 还要写几步：缓存不必开得比这更长
        self.n_reads = 0  # 从头读过几遍，演示与测试要看
        self._forget()

    def _forget(self) -> None:
        """丢掉缓存；下一次 next_logits 会从头读。

        窗口（编号）一直留着，所以丢缓存从不丢内容，只是要多算一遍
        """
        self.cache: ModelCache | None = None
        self.real: Tensor | None = None  # (B, 容量) 布尔，真 = 不是填充；没有填充就是 None
        self.capacity = 0  # 缓存装得下几列
        self.pending = 0  # 每行末尾有几个词元还没喂进缓存；各行一样多

    @property
    def room(self) -> int:
        """此刻往前看得了几个：放得下、不超出上下文；不止一行、下一步要从头读，都是 0。"""
        if self.cache is None or len(self.windows) > 1 or self.settings.is_endless:
            return 0
        return self.capacity - self.cache.length - self.pending

    def next_logits(self, ahead: Sequence[int] = ()) -> Tensor:
        """每行的下一个词元的分数：(B, V)，float32。

        往前看：只有一行时，ahead 的 k ≤ room 个当作已经写了 → (k + 1, V)，每个位置一行
        错误：某行超出上下文 → 模型抛 ValueError，写明两个长度
        """
        if self.cache is None:
            logits = self._read_all()
        else:
            logits = self._read_new(self.cache, ahead)
        # 选词一律在 float32 里：bf16 只有 8 个有效二进制位，前几名常常并列
        scores = logits[:, -1 - len(ahead) :, : self.vocab_size].flatten(0, 1).float()  # (B, V)
        if self.forbidden is None:
            return scores
        return scores.index_fill(-1, self.forbidden, -math.inf)

    def _read_all(self) -> Tensor:
        """预填：左填充成方的，一段一段算完；用缓存的话顺便存下 K、V。"""
        self.n_reads += 1
        self.pending = 0
        model, device = self.model, self.device
        # ① 真正要读的：重复的只留一条，D ≤ B 行；共同的开头先用一行读
        whole = SharedPrompt(self.windows, list(range(len(self.windows))), 0)
        found = share(self.windows) if self.sharing else whole
        longest = max(map(len, found.rows))
        padding = [longest - len(row) for row in found.rows]
        # ② 左填充；填什么编号都行，反正谁也看不见
        padded = [[0] * n + row for n, row in zip(padding, found.rows, strict=True)]
        ids = torch.tensor(padded, device=device)  # (D, T)
        # ③ 缓存开多长：写完就够；掩码一次开好，以后每步只是切得长一点
        self.capacity = capacity = min(self.context, longest + max(self.to_write, 0))
        if self.settings.is_endless:
            capacity = longest  # 掩码只管提示；缓存多大由它自己定
        if self.settings.kind != "none":
            n_rows = 1 if found.length else len(padded)
            # 先按要读的行数开；抄成几行、复制成几行时，缓存自己换一块大的
            self.cache = model.make_cache(n_rows, capacity=capacity, kind=self.settings)
        self.real = None  # 一样长：不需要掩码，注意力走最快的路
        begin = 0  # 前几列已在缓存里
        #    从前读过的抄来，不再读；只有一行时，也留末一个来读，好得到分数
        if self.cache is not None and self.prefixes is not None:
            alone = found.rows[0][: longest - 1] if len(padded) == 1 else []
            begin = self.prefixes.fill(self, found.rows[0][: found.length] or alone)
        #    共同的开头：一行，没有填充；读完抄成 D 行，
        #    短的往右挪，与左填充的窗口对齐：挪完就与逐行读到这里的一样
        if self.cache is not None and found.length:
            if begin < found.length:
                self._feed(torch.tensor([found.rows[0][: found.length]], device=device), begin)
            spread(self.cache, padding)
            begin = found.length
        if any(padding):
            # 第 b 行开头有 longest − n_b 个填充；以后接上的列都是真的
            columns = torch.arange(capacity, device=device)  # (容量,)
            self.real = columns >= torch.tensor(padding, device=device)[:, None]  # (D, 容量)
        #    其余的各读各的：从共同的开头之后那一列起
        logits = self._feed(ids, begin)  # (D, 1, V)
        # ④ 滑动的缓存已记下填充，旧的编号也用不着了：从不从头再读
        if self.settings.is_endless:
            self.real = None
        #    一样的几行读了一遍，现在分开：从此各写各的。
        #    分数也一样，所以连第一步的打分都只算一次
        if len(padded) < len(self.windows):
            self._reorder(found.which)
            logits = logits[found.which]  # (B, 1, V)
        # ⑤ 读完整了才登记：半途被打断的，谁也抄不到
        if self.prefixes is not None:
            self.prefixes.keep(self)
        return logits

    def _feed(self, ids: Tensor, begin: int = 0) -> Tensor:
        """从第 begin 列读到末列，后一段接在前一段的缓存上；没有缓存就只能一次算完。

        形状：ids (D, T) → (D, 1, V)，末列的分数；掩码要连已缓存的一起说明，长 S = end
        约定：begin 之前的列已在缓存里；begin < T，总有要读的
        """
        n = ids.shape[1]
        size = n if self.cache is None else PREFILL
        for start in range(begin, n, size):
            end = min(start + size, n)
            mask = None if self.real is None else self.real[:, :end]  # (D, S)
            piece = ids[:, start:end]
            output = self.model(piece, attention_mask=mask, cache=self.cache, last_only=True)
        return output.logits  # type: ignore[no-any-return]

    def _read_new(self, cache: ModelCache, ahead: Sequence[int]) -> Tensor:
        """解码：只喂还没喂过的 n 列，多半是 1；往前看时，猜的几个也在内。

        形状：→ (B, 1, V)，往前看是 (1, n, V)；掩码要连缓存里的一起说明，长 S = 已缓存 + n
        """
        if ahead:
            self.windows[0].extend(ahead)
            self.to_write -= len(ahead)
        if not self.pending:  # 末尾那个已经喂过，分数却没有留着（刚退回到这里）：退一列，再喂一遍
            cache.truncate(cache.length - 1)
            self.pending = 1
        n = self.pending + len(ahead)
        self.pending = 0  # 喂过就清掉：同一列喂两遍，缓存里就有两份
        device, alone = self.device, not ahead
        new = torch.tensor([window[-n:] for window in self.windows], device=device)  # (B, n)
        if self.real is None:
            return self.model(new, cache=cache, last_only=alone).logits  # type: ignore[no-any-return]
        # 有填充时，位置按各行真实的长度数；没有填充时，模型自己接着缓存数就对
        places = [range(len(window) - n, len(window)) for window in self.windows]
        positions = torch.tensor([list(row) for row in places], device=device)  # (B, n)
        mask = self.real[:, : cache.length + n]  # (B, S)
        output = self.model(
            new, positions=positions, attention_mask=mask, cache=cache, last_only=alone
        )
        return output.logits  # type: ignore[no-any-return]

    def append(self, tokens: Sequence[int]) -> None:
        """每行接上一个词元；写满的行（若许滑动）丢掉旧的一半。

        错误：不许滑动而某行已满 → ValueError，写明上下文的长度
        """
        self.to_write -= 1
        # 两种时候会满：有一行写满了上下文（它滑动），或者短的行被填充顶到了尽头。
        # 满了就丢掉，大家一起从头读；先丢再动窗口，别人才不会拿旧的 K、V 配新的编号
        cache, fills = self.cache, False
        if cache is not None and not self.settings.is_endless:
            fills = cache.length + self.pending == self.context
        if fills:
            self._forget()
        for window, token in zip(self.windows, tokens, strict=True):
            if self.settings.is_endless and self.cache is not None:
                window.clear()  # 已在缓存里；不清的话，编号会随全文增长
            elif len(window) == self.context:
                if not self.sliding:
                    raise ValueError(
                        f"a text of {self.context} tokens already fills the context "
                        f"(max_seq_len {self.context}); stop here or use sliding=True"
                    )
                del window[: max(1, self.context // DROPPED)]
            window.append(token)
        # 缓存还有空位，就只记下新的一列
        if self.cache is not None:
            self.pending += 1

    def rewind(self, n: int) -> None:
        """只有一行时，退掉最后 n 个：猜错的，就当从来没有写过。

        约定：至少留一个词元，否则没有可以接着写的
        """
        if not n:
            return
        assert len(self.windows) == 1, "only a single row can be rewound"
        assert n < len(self.windows[0]), "at least one token must stay"
        del self.windows[0][-n:]
        self.to_write += n
        # 还没喂的先退；喂过的从缓存末尾截掉
        fed = max(0, n - self.pending)
        self.pending = max(0, self.pending - n)
        if self.cache is not None and fed:
            self.cache.truncate(self.cache.length - fed)

    def keep(self, rows: Sequence[int]) -> None:
        """第 i 行变成原来的第 rows[i] 行：写完的去掉，束搜索的复制；要在 append 之前调用。"""
        assert not self.pending, "keep comes before append"
        if list(rows) == list(range(len(self.windows))):
            return  # 没有变化，省去抄一遍缓存
        self.windows = [list(self.windows[row]) for row in rows]
        if self.cache is not None:
            self._reorder(rows)

    def _reorder(self, rows: Sequence[int]) -> None:
        """缓存与掩码的第 i 行变成原来的第 rows[i] 行，行数可增可减；二者必须一起动。"""
        # 先拿在手里：半途被打断的话，就像没有缓存，而不是有一份只排了几层的
        cache, self.cache = self.cache, None
        assert cache is not None
        index = torch.tensor(rows, device=self.device)
        cache.reorder(index)
        self.real = None if self.real is None else self.real[index]
        self.cache = cache


def demo() -> None:
    """长短不一的三行：成批与单独对照；写满之后滑动；缓存省下多少时间。"""
    from gpt_model.config import preset
    from gpt_model.model import GPT

    # 随机权重的小模型；init_std 取大，看错一个词元分数就变样
    model = GPT(preset("modern-micro", vocab_size=50, max_seq_len=16, init_std=0.1)).eval()
    prompts = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2], [7, 8, 9, 10]]

    print("1. 三行各写 6 个词元（贪心），成批与单独：")
    with torch.inference_mode():
        together = greedy(Decoder(model, prompts, max_new_tokens=6), 6)
        for prompt, row in zip(prompts, together, strict=True):
            (alone,) = greedy(Decoder(model, [prompt], max_new_tokens=6), 6)
            print(f"   提示 {len(prompt)} 个　成批 {row}")
            assert row == alone

        print("\n2. 滑动：上下文 16，写 40 个；窗口满了就留最近的 8 个，从头再读")
        for cache in ("static", "none"):
            decoder = Decoder(model, [[1, 2]], max_new_tokens=40, cache=cache, sliding=True)
            (row,) = greedy(decoder, 40)
            together.append(row)
            print(f"   缓存 {cache:6} 从头读了 {decoder.n_reads:2} 遍　…{row[-8:]}")
        assert together[-1] == together[-2]

        # 每步忘一个，汇一直留着：忘的东西不同，写的自然不同，但从头只读一遍
        decoder = Decoder(model, [[1, 2]], max_new_tokens=40, cache="sliding")
        (row,) = greedy(decoder, 40)
        print(f"   缓存 sliding 从头读了 {decoder.n_reads} 遍　…{row[-8:]}")
        assert decoder.n_reads == 1
        cache_speed(GPT(preset("modern-micro", vocab_size=50, init_std=0.1)).eval())


def cache_speed(model: GPT) -> None:
    """缓存省下的时间：没有缓存，第 t 步要读 t 个词元；有缓存只读一个。

    公式：n 步共读 n 个，对 n(n + 1)/2 个；小模型上每步还有固定的开销，所以差不到那么多倍
    """
    # 同样的一份，只改一个开关；每种从头写起
    seconds, rows = [], []
    for cache in ("static", "none"):
        decoder = Decoder(model, [[1, 2]], max_new_tokens=150, cache=cache)
        start = time.perf_counter()
        rows.append(greedy(decoder, 150))
        seconds.append(time.perf_counter() - start)
    # 秒数每台机器不同，只打印，不断言；
    # 快慢不同，词元一个也不差
    cached, plain = seconds
    print(f"\n3. 写 150 个：用缓存 {cached:.2f} 秒，不用 {plain:.2f} 秒，", end="")
    print(f"快 {plain / cached:.1f} 倍，词元一个也不差")
    assert rows[0] == rows[1]


def greedy(decoder: Decoder, n_steps: int) -> list[list[int]]:
    """演示用：每行都取分数最高的，写 n_steps 步。"""
    rows: list[list[int]] = [[] for _ in decoder.windows]
    for _ in range(n_steps):
        tokens = decoder.next_logits().argmax(dim=-1).tolist()
        for row, token in zip(rows, tokens, strict=True):
            row.append(token)
        decoder.append(tokens)
    return rows


if __name__ == "__main__":
    run_demo(demo)
