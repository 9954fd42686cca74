r"""生成下一个词元时，怎样不把前文重算一遍？——键值缓存（KV cache）。

因果注意力里，第 j 个位置的键 k_j 和值 v_j 只由前 j 个词元决定，后来的词元改变不了它们。
所以把它们存下来，每一步只算新词元的 q、k、v：

$$\text{不存：}\; \sum_{t=1}^{n} t = \frac{n(n+1)}{2} \text{ 次投影} \qquad
  \text{存：}\; \sum_{t=1}^{n} 1 = n \text{ 次投影}$$

    append(新 k, 新 v)                             返回（全部 k，全部 v）
    (B, G, T, d)  ──►  ┌───────────────┬─────┬───────┐  ──►  (B, G, S, d)
                       │  已缓存 S − T  │  T  │  空位  │
                       └───────────────┴─────┴───────┘
                       0             S−T     S    容量 C

只存 K、V 而不存 Q：旧的查询早已问完，不会再用。

两个阶段，快慢的原因不同：
  预填（prefill）  一次喂进整段提示，T 大，乘法多，算得满
  解码（decode）   一次一个词元，T = 1，每步都要把全部权重与缓存读一遍，慢在搬运
提示很长时，预填也可以切成几段依次 append，结果与一次喂进去相同。

代价是内存：每个词元、每一层要存 2·G·d 个数；句子长了，缓存会比模型还大。省法有三：
少一些键值头（GQA，见 heads.py）、只留最近的（sliding_cache.py）、存得粗一些
（quantized_cache.py）。后两种都只是另一个 KVCache，模型一行不改。

论文：Shazeer 2019《Fast Transformer Decoding》(arXiv:1911.02150)；
     Pope 等 2022《Efficiently Scaling Transformer Inference》(arXiv:2211.05102)

改哪里：
  · 想换一种存法（例如分页）——继承 KVCache，实现 append、rewrite、truncate，
    再到 gpt_model/caches.py 的表里登记名字。
  · 想看最简的版本——GrowingCache；真正用来跑的——StaticCache。
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foundation.checks import check_int
from foundation.demonstration import run_demo

if TYPE_CHECKING:
    from transformer_basics.rotary import RotaryEmbedding

__all__ = ["GrowingCache", "KVCache", "ModelCache", "StaticCache"]


class KVCache(ABC):
    """一层注意力的键值缓存；注意力只认得这几个方法，不管数据放在哪里、存成什么样。

    形状：键、值都是 (B, G, S, d)；B 批大小，G 键值头数，S 已缓存长度，d 每头维数
    约定：每次 append，length 恰好前进 T；返回的 S 可以小于 length（滑动窗口丢掉了旧的），
          但最后 T 个必须是刚接上的；存进去的键已经转过 RoPE，取出来不用再转
    """

    length: int = 0
    # 一个数：只记得这么多个，存多久都不满，位置由缓存自己定（滑动窗口）；
    # None：全记得，位置一直往后数，数到模型的上限为止
    reach: int | None = None

    @abstractmethod
    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """接上 T 个新位置，返回全部的键和值：(B, G, T, d) → (B, G, S, d)。"""

    @abstractmethod
    def rewrite(self, change: Callable[[Tensor], Tensor]) -> None:
        """存着的每个张量 (B, G, S, ·) 都换成 change 过的：可以增减行、挪列，长度 S 不变。

        重排、抄给几行（inference/shared_prompt.py）都只是不同的 change；缓存不必知道是哪一种。
        滑动的缓存自己定列，只许增减行
        """

    def reorder(self, row_indices: Tensor) -> None:
        """让第 i 行变成原来的第 row_indices[i] 行；行数可以变。

        束搜索（beam search）每步都有候选被淘汰、被复制，它们的前文要跟着走
        """
        self.rewrite(lambda stored: stored.index_select(0, row_indices))

    @abstractmethod
    def truncate(self, length: int) -> None:
        """只留下前 length 个位置。

        投机解码（speculative decoding）先猜几个词元，被拒绝的要从缓存里退掉
        """

    def reset(self) -> None:
        """忘掉一切，从空缓存重新开始。

        不清就换一句话，新句子会接在旧句子后面，看得见它，位置也从它的末尾数起
        """
        self.truncate(0)

    def place(
        self, query: Tensor, key: Tensor, value: Tensor, rotary: RotaryEmbedding | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """有 reach 的缓存才要写：收下没转过的 q、k，定好位置，返回转好的 q、k、v 与掩码。"""
        raise NotImplementedError(f"{type(self).__name__} leaves positions to the attention")

    def note_padding(self, padding: Tensor) -> None:
        """每行左边有几个填充 (B,)；有 reach 的缓存自己画掩码，所以要记。"""
        raise NotImplementedError(f"{type(self).__name__} leaves masks to the model")

    def check_truncation(self, length: int) -> None:
        """截断只能变短：更长的部分从来没有算过。"""
        check_int("the length to keep in the cache", length, 0, self.length)


class GrowingCache(KVCache):
    """最直白的缓存：每次用 torch.cat 接长。

    公式：K ← [K; k]，V ← [V; v]
    代价：第 t 步要把 t 个旧位置抄一遍，n 步共抄 O(n²) 个
    好处：没有容量上限，不必先知道批大小与 dtype，也不打断梯度
    """

    def __init__(self) -> None:
        # 空缓存没有形状，等第一次 append 才知道；所以用 None，而不是长度为零的张量
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """拼接新旧两段：(B, G, T, d) → (B, G, S, d)。"""
        # 沿第 2 维（词元）接；接错成第 1 维（头），形状有时也对得上，结果全错
        if self._keys is not None and self._values is not None:
            key = torch.cat((self._keys, key), dim=2)  # (B, G, S, d)
            value = torch.cat((self._values, value), dim=2)  # (B, G, S, d)
        self._keys, self._values = key, value
        self.length = key.shape[2]
        return key, value

    def rewrite(self, change: Callable[[Tensor], Tensor]) -> None:
        """换成新的张量；还没有形状的，没有什么可换。"""
        if self._keys is not None and self._values is not None:
            self._keys, self._values = change(self._keys), change(self._values)

    def truncate(self, length: int) -> None:
        """切掉尾部；切到零就回到「没有形状」的空缓存，下一句的批大小可以不同。"""
        self.check_truncation(length)
        if self._keys is not None and self._values is not None:
            self._keys = self._keys[:, :, :length] if length else None
            self._values = self._values[:, :, :length] if length else None
        self.length = length


class StaticCache(KVCache):
    """预先分配好的缓存：写入新位置、返回视图，从不抄旧内容。

    公式：K[:, :, S−T:S] ← k，V[:, :, S−T:S] ← v
    形状：缓冲区 (B, G, C, d)，C 是容量；返回 [:, :, :S] 的视图
    代价：一开始就占满 2·B·G·C·d 个数，以后每步只写 T 个位置，与已有多长无关
    类型：dtype 与 device 在构造时定下
    错误：S > C、行数不是 B、带着梯度来，都抛 ValueError，缓存保持原样
    """

    def __init__(
        self,
        batch_size: int,
        n_kv_heads: int,
        capacity: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        self.batch_size = check_int("batch_size", batch_size, 1)
        self.capacity = check_int("capacity", capacity, 1)
        shape = (batch_size, n_kv_heads, capacity, head_dim)
        # 一次要够：生成途中不再申请内存，也就不会在第一千个词元时才发现不够
        self._keys = torch.zeros(shape, dtype=dtype, device=device)  # (B, G, C, d)
        self._values = torch.zeros(shape, dtype=dtype, device=device)  # (B, G, C, d)

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """写进空位：(B, G, T, d) → (B, G, S, d) 的视图。"""
        start, end = self.length, self.length + key.shape[2]
        # ① 先检查再写：出错时一个数也没动，调用者可以换个大的再来
        if end > self.capacity or key.shape[0] != self.batch_size or key.requires_grad:
            self._refuse(key, end)
        # ② 只写 T 个新位置；旧的 S − T 个一个字节也不碰
        self._keys[:, :, start:end] = key
        self._values[:, :, start:end] = value
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]  # (B, G, S, d)

    @property
    def buffers(self) -> tuple[Tensor, Tensor]:
        """整块缓冲区，各 (B, G, C, d)。

        给自己会写的核用（inference/prepared.py）：写了 T 个，就把 length 加 T
        """
        return self._keys, self._values

    def _refuse(self, key: Tensor, end: int) -> None:
        """三种不能写的情形，各说各的原因与办法。"""
        if end > self.capacity:
            raise ValueError(
                f"the cache holds {self.capacity} tokens, but {self.length} cached +"
                f" {key.shape[2]} new = {end}; use a larger capacity or a shorter text"
            )
        # 不拦的话，1 行会被悄悄广播成 B 行
        if key.shape[0] != self.batch_size:
            raise ValueError(
                f"the cache was made for {self.batch_size} rows, got {key.shape[0]};"
                " make a new one for a batch of another size"
            )
        # 就地写入会把每一步的计算图都挂在缓冲区上，内存越用越多
        raise ValueError(
            "StaticCache keeps no gradients: use torch.no_grad(), torch.inference_mode() or"
            " a GrowingCache"
        )

    def rewrite(self, change: Callable[[Tensor], Tensor]) -> None:
        """只改已写的部分；行数变了，就换一块同容量的缓冲区。"""
        # change 给的是新的张量，不是视图：
        # 先取出来再写回去：行与行互相交换时，就地写会读到已被盖掉的数
        used = slice(0, self.length)
        keys = change(self._keys[:, :, used])  # (B', G, S, d)
        values = change(self._values[:, :, used])  # (B', G, S, d)
        if len(keys) != self.batch_size:
            self.batch_size = len(keys)
            shape = (self.batch_size, *self._keys.shape[1:])
            self._keys, self._values = self._keys.new_zeros(shape), self._values.new_zeros(shape)
        self._keys[:, :, used] = keys
        self._values[:, :, used] = values

    def truncate(self, length: int) -> None:
        """只把终点往回移：尾部的旧数还躺在缓冲区里，但不会再被返回，下次 append 就盖掉。"""
        self.check_truncation(length)
        self.length = length


class ModelCache:
    """整个模型的缓存：每层一个 KVCache，一起重排、一起截断。

    它自己不存数，只保证各层步调一致：少截一层，那一层就看得见已被退掉的词元。
    各层可以是不同的缓存，例如一层看全文、一层只看窗口。
    约定：一次前向里每层各 append 一次；length 是第 0 层的长度，要在前向开始之前读，
          因为第 0 层算完它就前进了，而后面的层还没有
    """

    def __init__(self, layers: Sequence[KVCache]) -> None:
        # 层数为零时没有「第 0 层的长度」可问
        if not layers:
            raise ValueError("a model cache needs at least one layer, got 0")
        self.layers = list(layers)
        self._ids: Tensor | None = None  # (B, S)，只有要知道「前一个是谁」的模型才记
        self._first_id = 0  # 记下的第一个是全文的第几个：有 reach 的缓存，旧编号也扔掉

    def last_ids(self) -> Tensor | None:
        """缓存里最后一个词元的编号 (B, 1)；缓存是空的就是 None。

        有的模型把前一个词元直接掺进词向量（见 previous_token.py），续写时要从这里取
        """
        if not self.length:
            return None
        # 别的模型填好的缓存没有编号：宁可停下，也不要当作「没有前一个」
        assert self._ids is not None, "the cache was filled by a model that keeps no ids"
        last = self.length - self._first_id
        return self._ids[:, last - 1 : last]

    def remember_ids(self, ids: Tensor) -> None:
        """记下就要喂进去的编号 (B, T)，接在已缓存的 S 个之后。

        全记而不只记最后一个：退回（truncate）之后，最后一个就是更早的那个；一个编号 8 字节，
        与它的 K、V 相比可以不计。退掉的、没喂成的，不必当时就删：下次照 length 切掉
        """
        if self._ids is None or not self.length:
            self._ids, self._first_id = ids, 0
            return
        # 退掉的不算
        old = self._ids[:, : self.length - self._first_id]
        if self.reach is not None:  # 更早的退不回去，也就用不着；不扔的话，内存随全文增长
            kept = old[:, -self.reach :]
            self._first_id += old.shape[1] - kept.shape[1]
            old = kept
        self._ids = torch.cat((old, ids), dim=1)

    @property
    def reach(self) -> int | None:
        """最多记得几个；有一层全记得就是 None，全文便不能超过它的容量与模型的上下文。"""
        # 只有各层都没有上限，全文才没有上限
        reaches = [layer.reach for layer in self.layers if layer.reach is not None]
        return max(reaches) if len(reaches) == len(self.layers) else None

    def note_padding(self, real: Tensor) -> None:
        """告诉各层每行左边有几个填充；real (B, S) 连已缓存的一起，真 = 不是填充。

        错误：填充夹在中间 → ValueError；这样的缓存只认得左边的
        """
        if bool((real[:, :-1] & ~real[:, 1:]).any()):
            raise ValueError("this cache takes padding on the left only, got padding after a token")
        padding = (~real).sum(dim=1)  # (B,)
        for layer in self.layers:
            layer.note_padding(padding)

    @property
    def length(self) -> int:
        """已缓存的词元数。"""
        return self.layers[0].length

    def __len__(self) -> int:
        # 层数，不是词元数；词元数是 length
        return len(self.layers)

    def __getitem__(self, index: int) -> KVCache:
        return self.layers[index]

    def rewrite(self, change: Callable[[Tensor], Tensor]) -> None:
        """每一层都照样改；记着的编号 (B, S) 也是，看成 (B, 1, S, 1)。"""
        for layer in self.layers:
            layer.rewrite(change)
        # 退空了的，编号是上一批的，行数未必相同；下次记时整个换掉
        if self._ids is not None and self.length:
            self._ids = change(self._ids[:, None, : self.length - self._first_id, None])[:, 0, :, 0]

    def reorder(self, row_indices: Tensor) -> None:
        """每一层都按同样的行号重排。"""
        self.rewrite(lambda stored: stored.index_select(0, row_indices))

    def truncate(self, length: int) -> None:
        """每一层都截到同样的长度。"""
        for layer in self.layers:
            layer.truncate(length)

    def reset(self) -> None:
        """清空每一层。"""
        for layer in self.layers:
            layer.reset()


def stepwise_equals_whole() -> None:
    """一句 12 个词元：一次算完，与「先 5 个、再一个一个来」比较。

    投影的次数是确定的，所以数次数而不计时间：计时每台机器、每次运行都不同
    """
    # 用到时才导入：attention.py 要用本页的 KVCache
    from transformer_basics.attention import CausalSelfAttention

    attention, x = CausalSelfAttention(32, 4, n_kv_heads=2), torch.randn(1, 12, 32)
    cache = StaticCache(1, 2, 16, 8)
    with torch.no_grad():
        whole = attention(x)
        pieces = [attention(piece, cache=cache) for piece in x.split([5] + [1] * 7, dim=1)]
    error = float((whole - torch.cat(pieces, dim=1)).abs().max())
    print(f"① 有缓存与一次算完最多差 {error:.1e}；缓存里有 {cache.length} 个词元")
    print(f"   有缓存投影 12 次；没有缓存，每步从头算，投影 {5 + sum(range(6, 13))} 次")
    assert error < 1e-5
    assert cache.length == 12


def how_much_memory() -> None:
    """GPT-2 的大小（12 层，每头 64 维），一句 1024 个词元，每个数 16 位：缓存有多大。

    公式：层数 · 2 · G · d · 词元数 · 2 字节；与批大小成正比，所以服务许多人时它是大头
    """
    for n_kv_heads in (12, 4, 1):
        cache = StaticCache(1, n_kv_heads, 1024, 64, torch.bfloat16)
        keys, values = cache.append(*torch.zeros(2, 1, n_kv_heads, 1024, 64))
        size = 12 * (keys.nbytes + values.nbytes)
        print(f"② {n_kv_heads:2d} 个键值头：{size / 2**20:5.1f} MiB，每词元 {size // 1024} 字节")
        assert size == 12 * 2 * n_kv_heads * 64 * 1024 * 2


def demo() -> None:
    """结果不变，次数变少；再看占多少内存、怎样重排与截断、满了说什么。"""
    stepwise_equals_whole()
    how_much_memory()

    # 两句话各三个词元；为了看得清，键就写成「句号.词号」
    cache = StaticCache(2, 1, 4, 1)
    # 容量 4、两行、一个键值头、一维：小到可以逐个数看
    numbered = torch.tensor([[0.1, 0.2, 0.3], [1.1, 1.2, 1.3]]).view(2, 1, 3, 1)
    cache.append(numbered, numbered)
    # 退回一个词元，再让第 1 句的前文顶替第 0 句：束搜索与投机解码各用到其中一样
    cache.truncate(2)
    cache.reorder(torch.tensor([1, 1]))
    new = torch.tensor([0.9, 1.9]).view(2, 1, 1, 1)
    keys, _ = cache.append(new, new)
    print("③ 截到 2 个，两行都改成第 1 句，再各接一个词元：")
    for row in keys[:, 0, :, 0].tolist():
        print("   " + "  ".join(f"{value:.1f}" for value in row))
    assert torch.equal(keys[0, 0, :2], keys[1, 0, :2])

    # 满了就说清楚两个长度，而不是悄悄丢掉最早的词元；
    # 被拒绝的这一次什么也没写，缓存还能接着用
    try:
        cache.append(numbered, numbered)
    except ValueError as error:
        print(f"④ 放不下：{error}")
    assert cache.length == 3


if __name__ == "__main__":
    run_demo(demo)
