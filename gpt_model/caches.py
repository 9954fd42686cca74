r"""生成时用哪一种缓存？——名字对到 KVCache，一张表。

    名字       存什么                        能写多长          与不用缓存相比
    none       不存，每步从头读              上下文 C          它就是标准答案
    static     全部，一次占好，就地写        上下文 C          相同
    growing    全部，每次拼接                上下文 C          相同
    int8       全部，一个字节一个数          上下文 C          误差有界，见 quantized_cache.py
    sliding    开头 n 个与最近 W 个          没有上限          n + W 之内相同，以后忘掉中间的

每个词元、每层、每个键值头要存的字节，d 是每头维数、b 是一个数的字节：

$$\text{static: } 2bd, \qquad \text{int8: } 2(d + 4), \qquad
  \text{sliding: 与长度无关，共 } 2bd\,(2n + W + \lfloor W/2 \rfloor)$$

选哪一种：装得下就用 static；长到装不下，而每个字都要紧，用 int8；要一直写下去、远处的忘了也罢，
用 sliding。growing 只为读懂。

怎样核对：none 每步从头读，是所有缓存的标准答案；tests/gpt_model/test_caches.py 把每一种与它（或与
逐个查询写出来的定义）对照，提示切成任意几段、批里长短不一、换一句话重来，都要相同。

常见疑问：
    缓存满了会怎样？        static、int8 报错，说出两个数；sliding 不会满
    int8 快还是慢？         慢一些：每步要把全部编码乘回浮点数；它省的是内存
    sliding 比全看快多少？  每步只看 n + W 个，与写到第几个无关；全看则越写越慢
    能中途换一种吗？        不能：缓存里的数已经存成那种样子；从头再读一遍即可

容易写错的地方，各有一个测试守着：位置从头数起（该接着缓存往后数）；只来一个查询时误用
is_causal；长度走得太早（第一层走了，后面的层还没有）；换了一句话，旧的还在；窗口多看或少看一个。

sliding 只给位置不在键里（none）或可以转动（rope）的模型；学出来的与正弦的位置加在词向量里，
键里已经混进了真实的位置，挪不动。n + W 不能超过训练时的上下文：缓存里的位置不该比见过的更远。

论文：见 kv_cache.py、quantized_cache.py、sliding_cache.py 各自的开头。

改哪里：
  · 加一种缓存——写一个 KVCache，在 CACHES 里加一行；命令行 `--cache` 立刻认得它。
    要能跨请求接着读，再到 copy_columns 里说清它的数存在哪里。
  · 默认留几个汇——DEFAULT_SINKS。
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from foundation.checks import check_choice, check_int
from foundation.demonstration import run_demo
from gpt_model.config import GPTConfig
from transformer_basics.kv_cache import GrowingCache, KVCache, ModelCache, StaticCache
from transformer_basics.quantized_cache import QuantizedCache
from transformer_basics.sliding_cache import SlidingCache

__all__ = ["CACHES", "CacheSettings", "build_cache", "copy_columns"]

DEFAULT_SINKS = 4  # StreamingLLM 的取法：再多也没有好处


@dataclass(frozen=True)
class CacheSettings:
    """哪一种缓存，外加滑动的两个数。

    命令行的 `--cache`、`--sinks`、`--window` 就是这三个字段。
    n_sinks 与 window 只给 sliding，None 即按模型的上下文取。

    不可变，所以可以当默认参数，也可以放进请求里一路传下去
    错误：名字不认识 → ValueError，给出最接近的；两个数给了别的缓存 → ValueError
    """

    kind: str = "static"
    n_sinks: int | None = None  # n：永远留着的开头几个
    window: int | None = None  # W：最近几个

    def __post_init__(self) -> None:
        """名字不认识、给错了人，当场就说。"""
        check_choice("cache", self.kind, ("none", *CACHES))
        if self.kind == "sliding":
            return
        # 静静忽略，用户会以为窗口生效了
        for name, value in (("sinks", self.n_sinks), ("window", self.window)):
            if value is not None:
                raise ValueError(
                    f"{name} {value} needs the cache 'sliding'; the cache is {self.kind!r}"
                )

    @classmethod
    def of(cls, given: CacheSettings | str) -> CacheSettings:
        """只给名字也行。"""
        return cls(given) if isinstance(given, str) else given

    @property
    def is_endless(self) -> bool:
        """真：文本可以超过上下文，缓存不会满。

        提示太长要不要拒绝、写到哪里为止，都问它
        """
        return self.kind == "sliding"

    def resolved(self, config: GPTConfig) -> CacheSettings:
        """对照模型检查，并把 None 换成数；不是 sliding 的原样返回。

        检查放在建缓存之前：读一段很长的提示，读完才说放不下，就晚了
        取法：n 默认 4，训练时就带窗口的模型取 0；W 默认占满上下文或模型自己的窗口
        错误：位置挪不动、n + W 超过上下文、W 超过模型的窗口 → ValueError，写明给的值与上限
        """
        if not self.is_endless:
            return self
        # ① 位置挪得动吗
        if config.position not in ("rope", "none"):
            # 学出来的、正弦的：K = W(x + P)，P 已经乘进去了，分不出来
            raise ValueError(
                f"the cache 'sliding' needs position 'rope' or 'none', got {config.position!r}: "
                "its keys already contain their true positions; use another cache, "
                "or sliding=True (--sliding), which reads the newest half again"
            )
        #    转动的与不给的不同：K = W·x，角度是存的时候才转的
        # ② 模型自己的窗口之外，它什么也没见过，汇也不例外
        own = config.sliding_window
        default = 0 if own is not None else min(DEFAULT_SINKS, config.max_seq_len - 1)
        # 给了数就照给的，但要是个合理的数
        n_sinks = default if self.n_sinks is None else check_int("sinks", self.n_sinks, 0)
        # 留了汇，它就会看见窗口之外的东西
        if own is not None and n_sinks:
            raise ValueError(
                f"sinks must be 0 for a model trained with a sliding_window of {own}, got {n_sinks}"
            )
        # ③ 缓存里的位置从 0 到 n + W − 1，不能超过训练过的
        room = config.max_seq_len - n_sinks
        # 汇再多，至少也要留一格给自己
        if room < 1:
            raise ValueError(
                f"sinks must be < max_seq_len {config.max_seq_len}, got {n_sinks}: "
                "no room is left for the window"
            )
        # 模型自己的窗口更窄，就以它为准
        most = room if own is None else min(own, room)
        window = most if self.window is None else check_int("window", self.window, 1)
        # 说清是谁限住了：上下文，还是模型的窗口
        if window > most:
            limit = f"max_seq_len {config.max_seq_len}" if most == room else f"sliding_window {own}"
            raise ValueError(
                f"{n_sinks} sinks and a window of {window} do not fit into {limit}: "
                f"the window must be <= {most}"
            )
        # 从此两个数都有了，后面的人不必再猜
        return replace(self, n_sinks=n_sinks, window=window)


# 名字 → 一层缓存；加一种，就是加一行
# 前两个参数总是批大小与键值头数；growing 不必先知道形状，所以什么也不要
CACHES: dict[str, Callable[..., KVCache]] = {
    "static": StaticCache,
    "growing": GrowingCache,
    "int8": QuantizedCache,
    "sliding": SlidingCache,
}


def build_cache(
    config: GPTConfig,
    settings: CacheSettings | str,
    batch_size: int,
    *,
    capacity: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> ModelCache:
    """每层一份，一起进退。

    形状：每层 K、V 各 (B, G, C, d)，C = capacity，缺省为 max_seq_len；sliding 的大小由 n 与 W 定
    类型：dtype、device 与模型的权重相同，免得每步转换
    错误：kind 是 none、与模型不合 → ValueError
    """
    settings = CacheSettings.of(settings).resolved(config)
    if settings.kind == "none":
        raise ValueError(f"a cache must be one of {', '.join(CACHES)}, got 'none'")
    # 知道要写多长，就不必占满上下文
    length = config.max_seq_len if capacity is None else check_int("capacity", capacity, 1)
    # 先是大家都要的，再是各自要的。各种缓存要的东西不同，差别只在这里
    arguments: dict[str, Any] = {}
    if settings.kind != "growing":
        arguments = {"dtype": dtype, "device": device, "head_dim": config.head_size}
        arguments |= {"batch_size": batch_size, "n_kv_heads": config.kv_heads}
    # 一次占好的，要知道占多少
    if settings.kind in ("static", "int8"):
        arguments["capacity"] = length
    # 上面已对照模型补齐，所以不会是 None
    if settings.kind == "sliding":
        arguments |= {"n_sinks": settings.n_sinks, "window": settings.window}
    # 每层一样大；第一层也不例外，它存的是第一层的 K、V 而不是词向量
    return ModelCache([CACHES[settings.kind](**arguments) for _ in range(config.n_layers)])


def copy_columns(source: ModelCache, target: ModelCache, row: int, begin: int, end: int) -> None:
    """第 row 行、[begin, end) 列，抄进还空着的 target；source 一个数也不动，还能接着写。

    形状：每层 (B, G, S, d) → (1, G, end − begin, d)；两边的容量可以不同
    用处：前后两次请求的开头相同，后一次就不必重读，见 inference/prefix_cache.py
    错误：滑动的缓存把位置转进了键里、又自己定位置，抄来的位置不对 → NotImplementedError
    """
    place = slice(row, row + 1), slice(None), slice(begin, end)
    # 有的模型要知道前一个是谁；空着的时候记，才不会接在别人后面
    if source._ids is not None:
        target.remember_ids(source._ids[row : row + 1, begin:end])
    for old, new in zip(source.layers, target.layers, strict=True):
        # INT8 抄的是编码与尺度，不取出来，所以不会再舍入一次
        pairs = [(old, new)]
        if isinstance(old, QuantizedCache) and isinstance(new, QuantizedCache):
            pairs = [(old._codes, new._codes), (old._scales, new._scales)]
        for one, other in pairs:
            # growing 从不就地改，所以取视图就够；static 写进自己的缓冲区
            if not isinstance(one, StaticCache | GrowingCache):
                raise NotImplementedError(f"{type(one).__name__} cannot be copied column by column")
            assert one._keys is not None
            assert one._values is not None
            other.append(one._keys[place], one._values[place])
        # 编码与尺度各记各的长度；它们合起来的那个，也要说一声
        new.length = end - begin


def demo() -> None:
    """同一个模型、同一段文本，四种缓存并排：占多少、与不用缓存差多少。"""
    from gpt_model.config import preset
    from gpt_model.memory import cache_memory  # 那一课要用本课的 CacheSettings
    from gpt_model.model import GPT

    # 随机权重就够：要看的是两种算法差多少，不是写得好不好；init_std 取大，差别才看得清
    model = GPT(preset("modern-micro", vocab_size=50, init_std=0.1)).eval()
    ids = torch.randint(50, (1, 256))
    print("一段 256 个词元，分三段喂；与不用缓存比最后一个位置的分数：")
    gaps = {}
    with torch.no_grad():
        exact = model(ids, last_only=True).logits
        # 滑动的留 4 个汇、60 个窗口，缓冲区比全文小
        for name in CACHES:
            settings = CacheSettings(name, 4, 60) if name == "sliding" else CacheSettings(name)
            cache = build_cache(model.config, settings, 1)
            # 一大段、一大段、最后一个：预填与解码两种路都走到
            for piece in ids.split([100, 155, 1], dim=1):
                logits = model(piece, cache=cache, last_only=True).logits
            gaps[name] = float((logits - exact).abs().max())
            size = cache_memory(model.config, 256, settings) / 1024
            print(f"   {name:8} {size:7.1f} KiB　相差 {gaps[name]:.0e}")
    # 前两种只差舍入；INT8 差一点；滑动忘掉了 192 个，差得多
    assert max(gaps["static"], gaps["growing"]) < 1e-4 < gaps["int8"] < gaps["sliding"]

    # 三种错误都在跑模型之前就说
    print("给错了会怎样：")
    # 名字拼错、给错了人、放不下，各说各的
    for kind, n_sinks, window in (("slide", None, None), ("int8", 4, None), ("sliding", 4, 300)):
        try:
            CacheSettings(kind, n_sinks, window).resolved(model.config)
        except ValueError as error:
            print(f"   {error}")


if __name__ == "__main__":
    run_demo(demo)
