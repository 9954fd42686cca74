r"""生成下一个词元时，怎样不把前文重算一遍？——键值缓存（KV cache）。

因果注意力里，第 j 个位置的键 k_j 和值 v_j 只由前 j 个词元决定：后来的词元改变不了它们。
所以把它们存下来，每一步只算新词元的 q、k、v：

    没有缓存，第 t 步重算 t 个词元：  $\sum_{t=1}^{n} t = O(n^2)$ 次投影
    有了缓存，第 t 步只算 1 个词元：  $\sum_{t=1}^{n} 1 = O(n)$ 次投影

    append(新 k, 新 v)                     返回（全部 k，全部 v）
    (B, G, T, d)  ──►  ┌───────────────┬─────┬───────┐  ──►  (B, G, S, d)
                       │ 已缓存 S−T 个  │ T 个 │ 空位  │        S = length
                       └───────────────┴─────┴───────┘
                       0             S−T     S    capacity

代价是内存：每个词元、每一层要存 2·G·d 个数，G 是键值头的个数。
分组查询注意力（grouped-query attention）让 G 小于查询头数 H，缓存随之缩小 H/G 倍。

论文：Shazeer 2019《Fast Transformer Decoding》(arXiv:1911.02150)；
     Ainslie 等 2023《GQA》(arXiv:2305.13245)

改哪里：
  · 想换一种存法（滑动窗口、INT8、分页）——继承 KVCache，实现五个方法；模型一行不改。
  · 想看「只增不减」的最简版本——GrowingCache；想看真正用来跑的版本——StaticCache。
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from foundation.checks import check_int
from foundation.demonstration import run_demo

__all__ = ["GrowingCache", "KVCache", "ModelCache", "StaticCache"]


class KVCache(ABC):
    """一层注意力的键值缓存：注意力只认得这五个方法，不管数据放在哪里。

    形状：键、值都是 (B, G, S, d)；B 批大小，G 键值头数，S 已缓存长度，d 每头维数
    约定：length 在一次 append 中恰好前进 T；append 之后旧内容不变
    """

    length: int = 0

    @abstractmethod
    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """接上 T 个新位置，返回全部的键和值：(B, G, T, d) → (B, G, S, d)。"""

    @abstractmethod
    def reorder(self, row_indices: Tensor) -> None:
        """让第 i 行变成原来的第 row_indices[i] 行：束搜索（beam search）淘汰与复制候选时用。"""

    @abstractmethod
    def truncate(self, length: int) -> None:
        """只留下前 length 个位置：投机解码（speculative decoding）退回被拒绝的词元时用。"""

    def reset(self) -> None:
        """忘掉一切，从空缓存重新开始。"""
        self.truncate(0)

    def check_truncation(self, length: int) -> None:
        """截断只能变短：比现有长度更长的部分从来没有算过。"""
        check_int("length to keep in the cache", length, 0, self.length)


class GrowingCache(KVCache):
    """最直白的缓存：每次用 torch.cat 接长。

    公式：K ← [K; k]，V ← [V; v]
    代价：第 t 步要复制 t 个旧位置，n 步共 O(n²) 次复制；好处是没有容量上限，也不打断梯度
    """

    def __init__(self) -> None:
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """拼接新旧两段：(B, G, T, d) → (B, G, S, d)。"""
        if self._keys is not None and self._values is not None:
            key = torch.cat((self._keys, key), dim=2)  # (B, G, S, d)
            value = torch.cat((self._values, value), dim=2)  # (B, G, S, d)
        self._keys, self._values = key, value
        self.length = key.shape[2]
        return key, value

    def reorder(self, row_indices: Tensor) -> None:
        """按行号重排；行数可以变，所以一条提示可以展开成多条候选。"""
        if self._keys is not None and self._values is not None:
            self._keys = self._keys.index_select(0, row_indices)
            self._values = self._values.index_select(0, row_indices)

    def truncate(self, length: int) -> None:
        """切掉尾部。"""
        self.check_truncation(length)
        if self._keys is not None and self._values is not None:
            self._keys = self._keys[:, :, :length] if length else None
            self._values = self._values[:, :, :length] if length else None
        self.length = length


class StaticCache(KVCache):
    """预先分配好的缓存：写入新位置、返回视图，从不复制旧内容。

    公式：K[:, :, S−T:S] ← k，V[:, :, S−T:S] ← v
    形状：缓冲区 (B, G, C, d)，C 为容量；返回的是 [:, :, :S] 视图，没有复制
    类型：dtype 与 device 由构造时决定
    错误：S 超过容量时抛 ValueError，给出两个长度；需要梯度时请用 GrowingCache
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
        self.capacity = check_int("capacity", capacity, 1)
        self.batch_size = check_int("batch_size", batch_size, 1)
        self.length = 0
        shape = (batch_size, n_kv_heads, capacity, head_dim)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """写进空位：(B, G, T, d) → (B, G, S, d) 的视图。"""
        start, end = self.length, self.length + key.shape[2]
        # ① 先检查再写：出错时缓存保持原样，length 也不动
        if end > self.capacity:
            raise ValueError(
                f"cache capacity is {self.capacity} tokens, but {start} cached + {end - start} new"
                f" = {end}; make a cache with more capacity, or shorten the text"
            )
        if key.shape[0] != self.batch_size:  # 否则 1 行会被悄悄广播成 B 行
            raise ValueError(
                f"cache was made for {self.batch_size} rows, got {key.shape[0]} rows of keys"
            )
        if key.requires_grad:  # 就地写入会把每一步的计算图都留在缓冲区里
            raise ValueError(
                "StaticCache does not keep gradients: use torch.no_grad(), torch.inference_mode()"
                " or a GrowingCache"
            )
        # ② 只写 T 个新位置；旧的 S−T 个一个字节也不碰
        self._keys[:, :, start:end] = key
        self._values[:, :, start:end] = value
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]  # (B, G, S, d)

    def reorder(self, row_indices: Tensor) -> None:
        """按行号重排已写部分；行数变化时换一块同容量的缓冲区。"""
        used = slice(0, self.length)
        keys = self._keys[:, :, used].index_select(0, row_indices)  # (B', G, S, d)
        values = self._values[:, :, used].index_select(0, row_indices)
        if keys.shape[0] != self.batch_size:
            self.batch_size = keys.shape[0]
            shape = (self.batch_size, *self._keys.shape[1:])
            self._keys = self._keys.new_zeros(shape)
            self._values = self._values.new_zeros(shape)
        self._keys[:, :, used] = keys
        self._values[:, :, used] = values

    def truncate(self, length: int) -> None:
        """只移动终点：尾部的旧数还在缓冲区里，但不会再被返回，下次 append 就把它覆盖。"""
        self.check_truncation(length)
        self.length = length


class ModelCache:
    """整个模型的缓存：每层一个 KVCache，一起重排、一起截断。

    约定：一次前向里每层各 append 一次；length 取第 0 层的长度，所以要在前向开始前读
    """

    def __init__(self, layers: Sequence[KVCache]) -> None:
        if not layers:
            raise ValueError("a model cache needs at least one layer, got 0")
        self.layers = list(layers)

    @property
    def length(self) -> int:
        """已缓存的词元数。"""
        return self.layers[0].length

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> KVCache:
        return self.layers[index]

    def reorder(self, row_indices: Tensor) -> None:
        """每一层都按同样的行号重排。"""
        for layer in self.layers:
            layer.reorder(row_indices)

    def truncate(self, length: int) -> None:
        """每一层都截到同样的长度。"""
        for layer in self.layers:
            layer.truncate(length)

    def reset(self) -> None:
        """清空每一层。"""
        for layer in self.layers:
            layer.reset()


def demo() -> None:
    """演示（稍后补全）。"""


if __name__ == "__main__":
    run_demo(demo)
