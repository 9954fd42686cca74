r"""内存有限，怎样一直写下去？——滑动窗口的缓存，外加留住开头几个（attention sink）。

只留最近 W 个词元的键与值，内存就不再增长。可是模型会突然胡言乱语：softmax 的权重之和必须是 1，
没有谁值得看的时候，训练好的模型习惯把多余的权重倒给最开头的几个词元（人人都看得见它们）。
它们一被丢掉，分母少了一大块，所有的权重都变了样。StreamingLLM 的办法是永远留着开头 n 个，
叫作「汇」：

$$\text{看得见 } j \iff j < n \;\lor\; p - W < j \le p, \qquad
  \text{距离} = \begin{cases} p - j & \text{窗口里的} \\ \min(p,\, n + W - 1) - j & \text{汇}
  \end{cases}$$

    位置    0 1 2 3 │ 4 5 6 7 8 │ 9 10 11 12 13       p = 13，n = 4，W = 5
            汇      │ 忘掉的    │ 窗口
    当作    0 1 2 3              4  5  6  7  8          在缓存里的位置：紧挨着数

距离要按「在缓存里的位置」算：写到第一百万个词元时，汇与它的真实距离是一百万，模型从没见过；
当作紧挨着窗口，任何距离都不超过 n + W − 1，在训练过的长度之内。

键按哪个位置转？RoPE 只认距离，所以窗口里的按先后转好存着就对，一个也不用重转；只有汇要跟着
窗口走，它们存成没转过的，每步转到窗口跟前：每步 n 个，而不是 n + W 个。

    缓冲区   ┌──────────┬───┬──────────────┬───────┐
             │ 用不着了 │汇 │  窗口 W 个   │ 空位  │   每步：窗口右移一格，汇抄到它的左边
             └──────────┴───┴──────────────┴───────┘   （盖掉刚忘掉的），合起来是一段视图，不必拼接
    空位用完，就把窗口搬回最左边，键整体往回转同样的角度；每隔 W/2 步才搬一次。

一次来 T 个（预填）：每个查询有自己的窗口，结果与一个一个来相同，切在哪里都一样。这时一个查询
对汇与对窗口的距离不是同一个平移，于是查询转两次，拼成两倍宽，汇的键只占前一半、窗口的只占后一半：

$$[\,q' \mid q\,] \cdot [\,k_{\text{汇}} \mid 0\,] = q' \cdot k_{\text{汇}}, \qquad
  [\,q' \mid q\,] \cdot [\,0 \mid k\,] = q \cdot k$$

常见疑问：
    留几个汇才够？      4 个：权重倒给的是最开头那几个；换了位置编码、换了模型，也差不多是这个数
    汇要是什么词元？    什么都行，重要的是训练时人人都看得见它们，不是它们的内容
    为什么不干脆重读？  丢掉旧的一半、剩下的当新提示从头读（inference/decoder.py 的 sliding），
                        结果更「干净」，但每过 C/2 步要重读 C/2 个；这里每步都一样快
    汇也算在窗口里吗？  不算：看得见的至多 n + W 个；窗口盖得到汇的时候，它只算一次
    距离跳了怎么办？    汇与窗口之间忘掉的那一段，距离上直接接起来；RoPE 本来就只认距离，不认文章

不是什么都能用它：位置加在词向量里的模型（GPT-2），键里已经混进了真实位置，挪不动。
训练时就带窗口的模型（Mistral）从没见过更远的开头，n 取 0、W 取它的窗口，便与不用缓存完全相同。
忘掉的就真的忘了：它能一直写，不等于能读懂更长的文章（evaluation/needle.py 量给你看）。

论文：Xiao 等 2023《StreamingLLM》(arXiv:2309.17453)；Beltagy 等 2020 滑动窗口 (arXiv:2004.05150)

改哪里：
  · 留几个汇、窗口多宽——构造时的 n_sinks、window；命令行是 `--sinks`、`--window`。
  · 隔多久搬一次——SPARE；大则少搬，多占内存。
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from foundation.checks import check_int
from foundation.demonstration import run_demo
from transformer_basics.kv_cache import KVCache
from transformer_basics.masks import attention_mask
from transformer_basics.rotary import RotaryEmbedding, rotate

__all__ = ["SlidingCache", "sliding_capacity"]

SPARE = 2  # 空位是窗口的几分之一


def sliding_capacity(n_sinks: int, window: int) -> int:
    """缓冲区有几格：汇、窗口，外加免得每步都搬的空位；内存的公式也用它。"""
    return n_sinks + window + max(1, window // SPARE)


class SlidingCache(KVCache):
    """开头 n 个与最近 W 个；存多久都是这么大。

    形状：缓冲区 (B, G, n + W + W/2, d)，汇另存一份没转过的 (B, G, n, d)
    约定：length 照数全文；收的是没转过的 q、k（place），返回的已转好；
          左填充的行，汇是它自己的头几个真词元，见 note_padding
    错误：行数不符、带着梯度 → ValueError；忘掉了的截不回去 → ValueError，写明最短能到几
    """

    def __init__(
        self,
        batch_size: int,
        n_kv_heads: int,
        window: int,
        head_dim: int,
        *,
        n_sinks: int = 4,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        self.batch_size = check_int("batch_size", batch_size, 1)
        self.window = check_int("window", window, 1)
        self.n_sinks = check_int("n_sinks", n_sinks, 0)
        # 全文不超过 n + W 时，一个也不用忘
        self.reach = self._whole = n_sinks + window
        self.capacity = sliding_capacity(n_sinks, window)
        # 一次占好，以后再也不申请：写到第一百万个也是这么大
        shape = (batch_size, n_kv_heads, self.capacity, head_dim)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)  # 转好的
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        self._sink_keys = self._keys[:, :, :n_sinks].clone()  # 没转过的
        self._sink_values = self._values[:, :, :n_sinks].clone()
        self._forget()

    def _forget(self) -> None:
        """回到空缓存；第 slot 格放的是第 slot + base 列，列把左填充也数在内。"""
        # 缓冲区里的旧数不必抹：用不着的格子从不返回
        self.length = 0
        self._base = 0
        self._intact = 0  # 从这一列起还完整：更早的已被汇盖掉，或没有搬过来
        self._padding: Tensor | None = None  # (B,) 每行左边几个填充；没有就是 None
        self._most_padding = 0

    def note_padding(self, padding: Tensor) -> None:
        """每行左边有几个填充；提示分几段喂时，每段之前再说一次。"""
        # 最多的那个取成 Python 整数：以后每步只比一次大小，不必问 GPU
        self._most_padding = int(padding.max())
        self._padding = padding if self._most_padding else None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """没有位置可转时（position 为 none）的存与取：(B, G, T, d) → (B, G, S, d)。"""
        _, keys, values, _ = self.place(key, key, value, None)
        return keys, values

    def place(
        self, query: Tensor, key: Tensor, value: Tensor, rotary: RotaryEmbedding | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """存下 T 个，返回这 T 个查询要看的：转好的 q、k、v 与掩码（None 即普通的因果）。

        形状：q (B, H, T, d)，k、v (B, G, T, d) → k、v (B, G, S, d)，掩码 (B 或 1, 1, T, S)；
              一次来好几个而有的已忘掉时，q、k 是两倍宽
        """
        if key.shape[0] != self.batch_size or key.requires_grad:
            self._refuse(key)
        start, end = self.length, self.length + key.shape[2]
        # 混合精度下 k、v 可能与缓冲区不同类型：以缓冲区为准
        key, value = key.to(self._keys.dtype), value.to(self._keys.dtype)
        self._catch_sinks(key, value, start)
        # ① 还没有谁被忘掉：与普通的缓存一样，位置就是列号
        if end <= self._whole:
            placed = self._place_plainly(query, key, value, rotary)
        # ② 一个一个写：快路
        elif key.shape[2] == 1:
            placed = self._place_one(query, key, value, rotary)
        # ③ 好几个一起来：各有各的窗口
        else:
            placed = self._place_many(query, key, value, rotary)
        self.length = end
        return placed

    def _place_plainly(
        self, query: Tensor, key: Tensor, value: Tensor, rotary: RotaryEmbedding | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """谁都看得见：写进缓冲区，返回从头到尾的视图；有填充才要掩码。"""
        start, end = self.length, self.length + key.shape[2]
        # 这时格号、列号、位置三者是同一个数
        query, key = turned(query, start, rotary), turned(key, start, rotary)
        self._keys[:, :, start:end], self._values[:, :, start:end] = key, value
        mask = None
        if self._padding is not None:
            columns = torch.arange(end, device=key.device)
            real = columns >= self._padding[:, None]  # (B, S)
            mask = attention_mask(end - start, end, key_padding=real)  # (B, 1, T, S)
        return query, self._keys[:, :, :end], self._values[:, :, :end], mask

    def _place_one(
        self, query: Tensor, key: Tensor, value: Tensor, rotary: RotaryEmbedding | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """只来一个：右移一格，把汇抄到窗口的左边，返回连成一段的 n + W 个。"""
        n, column = self.n_sinks, self.length
        # ① 没有空位了，先搬家：窗口的前 W − 1 个搬到第 n 格起，左边正好留给汇
        if column - self._base == self.capacity:
            self._move(self._keys, self._values, rotary)
        #    格号就是转的位置，最大不过容量，所以角度的表不会越长越大
        slot = column - self._base
        self._keys[:, :, slot] = turned(key, slot, rotary)[:, :, 0]
        self._values[:, :, slot] = value[:, :, 0]
        # ② 汇转到离查询 min(p, n + W − 1) − j 步的地方；各行填充不同，p 也就不同
        first = slot - self.window + 1  # 窗口的第一格
        mask = None
        if n:
            self._keys[:, :, first - n : first] = self._moved_sinks(column, slot, rotary)
            self._values[:, :, first - n : first] = self._sink_values
            #    它们盖掉的那几格再也要不回来，退回时要知道
            self._intact = max(self._intact, column - self.window + 1)
        # ③ 填充多的行可能还没有忘掉谁：它的汇还在窗口里，不能算两遍
        if self._padding is not None and column - self._most_padding < self._whole - 1:
            mask = self._mask(column, 1, column - self.window + 1)
        #    n + W 个连成一段：一份也不用抄
        seen = slice(first - n, slot + 1)
        query = turned(query, slot, rotary)
        return query, self._keys[:, :, seen], self._values[:, :, seen], mask

    def _moved_sinks(self, column: int, slot: int, rotary: RotaryEmbedding | None) -> Tensor:
        """转到窗口跟前的汇 (B, G, n, d)：查询在第 slot 格，它是全文的第 column 列。"""
        if rotary is None:
            return self._sink_keys
        if self._padding is None:  # 各行相同，连续的一段，不必查表
            return turned(self._sink_keys, slot - min(column, self._whole - 1), rotary)
        return rotary(self._sink_keys, slot - self._distance(column, 1)[:, 0])  # type: ignore[no-any-return]

    def _place_many(
        self, query: Tensor, key: Tensor, value: Tensor, rotary: RotaryEmbedding | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """来了 T 个：前 W − 1 个旧的接上新的，画好每个查询的窗口；最后 W − 1 个留下。"""
        # 预填走这里，一段一次，所以可以抄；一步一个词元时不走这里
        start, n_new = self.length, key.shape[2]
        first = max(0, start - self.window + 1)  # 第一个查询的窗口从这一列起
        slot = start - self._base
        # ① 旧的已经转好，新的接着往后数；这里要抄一份，因为缓冲区未必放得下 T 个
        old = slice(first - self._base, slot)
        keys = torch.cat((self._keys[:, :, old], turned(key, slot, rotary)), dim=2)
        values = torch.cat((self._values[:, :, old], value), dim=2)  # (B, G, W − 1 + T, d)
        # ② 留下后来用得着的
        #    放得下就接在后面；放不下就只留最后 W − 1 个，下一个查询的窗口里正好是它们
        if slot + n_new <= self.capacity:
            self._keys[:, :, slot : slot + n_new] = keys[:, :, -n_new:]
            self._values[:, :, slot : slot + n_new] = value
        else:
            self.length = start + n_new  # 搬的是新的结尾
            self._move(keys, values, rotary, first)
        # ③ 汇在最前面；没有位置可转时，汇与窗口不分先后，不必拼成两倍宽
        mask = self._mask(start, n_new, first)
        values = torch.cat((self._sink_values, values), dim=2)  # (B, G, n + W − 1 + T, d)
        if rotary is None or not self.n_sinks:
            keys = torch.cat((self._sink_keys, keys), dim=2)
            return turned(query, slot, rotary), keys, values, mask
        # ④ 对汇，查询在 min(p, n + W − 1)；对窗口，查询在自己的格子里。√2 抵消宽了一倍的 √d
        near = self._distance(start, n_new)[..., 0]  # (B 或 1, T)，与第 0 个汇的距离就是位置
        both = torch.cat((rotary(query, near), turned(query, slot, rotary)), dim=-1)
        #    汇还是没转过的，位置就是 0 … n − 1
        width = key.shape[-1]
        sinks = F.pad(rotary(self._sink_keys), (0, width))  # [k | 0]
        keys = torch.cat((sinks, F.pad(keys, (width, 0))), dim=2)  # [0 | k]
        return both * math.sqrt(2.0), keys, values, mask

    def _move(
        self, keys: Tensor, values: Tensor, rotary: RotaryEmbedding | None, base: int | None = None
    ) -> None:
        """最后 W − 1 个搬到第 n 格起，键往回转同样的步数；keys 的第 0 个是第 base 列。"""
        base, n, kept = self._base if base is None else base, self.n_sinks, self.window - 1
        # 走几步、从哪里取，都由「全文到 length 为止」推出
        source = slice(self.length - kept - base, self.length - base)
        moved, steps = keys[:, :, source], self.length - kept - n - self._base
        # 转的是整段，一个角度：窗口里的先后不变，彼此的距离也不变
        # 先转好（没有 rotary 就抄一份）再写：新旧两段可能重叠
        moved = moved.clone() if rotary is None else rotary.turn_back(moved, steps)
        self._values[:, :, n : n + kept] = values[:, :, source].clone()
        self._keys[:, :, n : n + kept] = moved
        # 此后第 n 格是第 length − W + 1 列；更早的没有搬过来
        self._base += steps
        self._intact = self.length - kept

    def _catch_sinks(self, key: Tensor, value: Tensor, start: int) -> None:
        """新来的里有没有汇：第 b 行的第 j 个汇在第 padding_b + j 列。"""
        n, n_new = self.n_sinks, key.shape[2]
        if start >= n + self._most_padding:
            return  # 早就齐了：平时只有这一次比较
        # 它在这一段里的第几个；不在这一段里的，留着原来的
        offset = self._padding if self._padding is not None else key.new_zeros(1, dtype=torch.long)
        index = offset[:, None] + torch.arange(n, device=key.device) - start  # (B 或 1, n)
        inside = ((index >= 0) & (index < n_new))[:, None, :, None]
        index = index.clamp(0, n_new - 1)[:, None, :, None].expand(*key.shape[:2], n, key.shape[3])
        self._sink_keys = torch.where(inside, key.gather(2, index), self._sink_keys)
        self._sink_values = torch.where(inside, value.gather(2, index), self._sink_values)

    def _positions(self, start: int, n_new: int) -> Tensor:
        """各行从自己的第一个真词元数起的位置 p；填充是负的：(B 或 1, T)。"""
        columns = torch.arange(start, start + n_new, device=self._keys.device)
        return columns[None] if self._padding is None else columns - self._padding[:, None]

    def _distance(self, start: int, n_new: int) -> Tensor:
        """T 个查询与 n 个汇的距离 min(p, n + W − 1) − j：(B 或 1, T, n)。"""
        # 满了以后 p 不再往上数：这一格钳住了「写得再长，距离也不变」
        places = self._positions(start, n_new).clamp(0, self._whole - 1)  # 填充算 0，反正不用
        return places[..., None] - torch.arange(self.n_sinks, device=places.device)

    def _mask(self, start: int, n_new: int, first: int) -> Tensor:
        """汇在前、第 first 列起的窗口在后，谁看得见谁：(B 或 1, 1, T, n + S)。"""
        # 三条规则：汇要在自己之前；窗口里的不含汇与填充；填充只看自己
        device = self._keys.device
        place = self._positions(start, n_new)[..., None]  # (B 或 1, T, 1)
        sinks = torch.arange(self.n_sinks, device=device) <= place  # 自己之前的汇
        # 窗口里的汇不算：前面已经算过；填充的位置是负的，也就不在其中
        columns = torch.arange(first, start + n_new, device=device)  # (S,)
        near = self._positions(first, start + n_new - first)[:, None] >= self.n_sinks
        distance = torch.arange(start, start + n_new, device=device)[:, None] - columns  # (T, S)
        recent = near & (distance >= 0) & (distance < self.window)
        recent = recent | ((place < 0) & (distance == 0))  # 填充看自己，免得一行全空
        return torch.cat((sinks, recent), dim=-1)[:, None]

    def rewrite(self, change: Callable[[Tensor], Tensor]) -> None:
        """缓冲区、汇与填充一起改；行数可以变，列不行：格号与列号不是一回事。"""
        # 束搜索的复制、写完的行退出，都走这里
        for name in ("_keys", "_values", "_sink_keys", "_sink_values"):
            setattr(self, name, change(getattr(self, name)))
        if self._padding is not None:  # (B,)，看成 (B, 1, 1, 1)
            self._padding = change(self._padding[:, None, None, None])[:, 0, 0, 0]
        self.batch_size = len(self._keys)

    def truncate(self, length: int) -> None:
        """退回几个；退过了头，窗口里就缺了已经忘掉的，不能假装还在。"""
        self.check_truncation(length)
        if length == 0:
            self._forget()
            return
        # 退到 length 之后，下一个查询要看第 length − W + 1 列起的
        if self._intact and length - self.window + 1 < self._intact:
            raise ValueError(
                f"a sliding cache cannot go back to {length} of {self.length} tokens: it keeps"
                f" {self.n_sinks} sinks and a window of {self.window}, so the shortest it can"
                f" become is {self._intact + self.window - 1}, or 0"
            )
        self.length = length

    def _refuse(self, key: Tensor) -> None:
        """行数不符或带着梯度，与 StaticCache 同样的两种错。"""
        if key.shape[0] != self.batch_size:
            raise ValueError(
                f"the cache was made for {self.batch_size} rows, got {key.shape[0]};"
                " make a new one for a batch of another size"
            )
        raise ValueError(
            "SlidingCache keeps no gradients: use torch.no_grad() or torch.inference_mode()"
        )


def turned(x: Tensor, start: int, rotary: RotaryEmbedding | None) -> Tensor:
    """从位置 start 数起地转；没有位置可转就原样。"""
    # 没有位置的模型（position 为 none），什么也不做
    if rotary is None:
        return x
    # 连续的位置只是表的一段视图，不必查表
    return rotate(x, *rotary.cos_sin(x.shape[2], start, None, x.device))


def demo() -> None:
    """切在哪里都一样；写一千个内存不变；窗口够大时与不用缓存相同。"""
    from transformer_basics.attention import CausalSelfAttention  # 它不依赖本课，用时才取

    # 训练长度当作 16：4 个汇加 12 个窗口，写到 1000 个也没有一个距离超过它
    rotary = RotaryEmbedding(8, max_seq_len=16)
    attention, x = CausalSelfAttention(32, 4, rotary=rotary), torch.randn(1, 1000, 32)
    with torch.no_grad():
        found = []
        # 三种切法：一次喂完、长短不一的四段、一个一个
        for pieces in ([1000], [3, 30, 200, 767], [1] * 1000):
            cache = SlidingCache(1, 4, 12, 8, n_sinks=4)
            outputs = [attention(piece, cache=cache) for piece in x.split(pieces, dim=1)]
            found.append(torch.cat(outputs, dim=1))
            error = float((found[-1] - found[0]).abs().max())
            print(f"① 切成 {len(pieces):4d} 段：与一次喂完相差 {error:.0e}，缓冲区", end="")
            print(f" {cache.capacity} 格，读过 {cache.length} 个")
            assert error < 1e-4
            assert cache.capacity == 4 + 12 + 6
        # 缓冲区只看 n 与 W，与读过多少无关
        # 一个汇也不留、窗口大过全文：就是普通的缓存
        wide = attention(x[:, :40], cache=SlidingCache(1, 4, 40, 8, n_sinks=0))
        error = float((wide - attention(x[:, :40])).abs().max())
        print(f"② 窗口大过全文，与不用缓存相差 {error:.0e}")
        assert error < 1e-5
        # 前 16 个谁也没忘，第 17 个起忘掉一个：汇还在，所以只差一点
        #   每个位置最大的差，(1000,)
        gap = (found[0] - attention(x)).abs().amax(dim=(0, 2))
        print(f"③ 与看得见全文的差：前 16 个 {float(gap[:16].max()):.0e}，", end="")
        print(f"第 17 个起平均 {float(gap[16:].mean()):.2f}：忘掉的，就真的忘了")
        assert gap[:16].max() < 1e-5 < gap[16:].min()
    # 第 500 个前面的窗口早已忘掉，退回去也接不上
    try:
        cache.truncate(500)
    except ValueError as error_message:
        print(f"④ 退回 500：{error_message}")
    cache.truncate(cache.length - 1)  # 刚写的一个还退得掉


if __name__ == "__main__":
    run_demo(demo)
