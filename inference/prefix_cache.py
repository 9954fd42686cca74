r"""上一次读过的开头，这一次为什么不必再读？——前文、位置、权重都没变，K、V 就没变：抄过来。

聊天的第 n 轮要读前 n − 1 轮的全部，再加新的一句；接口的每次调用开头都是同样的吩咐。从头读，
n 轮共读 O(n²) 个词元；留着上一次的 K、V，每轮只读新来的：

    第 1 次   读 [吩咐 问₁]             写 [答₁]     缓存里有 [吩咐 问₁ 答₁]
    第 2 次   要读 [吩咐 问₁ 答₁ 问₂]
                   └─── 抄 ───┘ └读┘   写 [答₂]

$$\text{要读的} = n - P, \qquad
  P = \max\{\, p < n : x_1 \dots x_p = \text{某个旧文本的前 } p \text{ 个} \,\}$$

比的是编号，不是文字：同样的文字换个地方切，词元就不同。聊天把回答解码成字、再与新的话一起编码，
接缝处可能换一种切法，从那里起就重读，不会拿错。

怎样留？不另存一份，只记住上一次的 Decoder：它的窗口（编号）与缓存（K、V）一直对得上，写到哪里、
停在哪里、被 Ctrl-C 打断在哪里，都不必有人来收尾。要用时才抄一份，抄的是前 P 列；旧的若还在写，
它往后接，前 P 列不动，所以两边互不相干。抄一列是搬几个数，读一列要把整个模型走一遍。

什么时候作废？三样有一样变了，就当没有读过：

  · 权重      训练走了一步、换了适配器、换了设备或类型：看每个张量的存储与版本号
  · 设置      缓存的种类、模型的配置（拉长了上下文，旧的键转的是旧的角度）
  · 窗口      滑动之后从头数位置，缓存丢了，登记也就失效

看不出来的只有一种：绕过 PyTorch 的版本号改数（p.data.mul_(2)，或在推理模式里建的权重上就地改）。
那样改过之后，要自己 clear()。

常见疑问：
    占多少内存？          每记一份，就多留一份写完的缓存；抄的时候新旧同在。size 是记几份
    与 shared_prompt 何异？那是同一批之内、行与行之间；这是前后两次之间。两样可以叠用：
                          一批的共同开头若上次读过，连那一遍也省了
    结果真的相同吗？      同样的公式、同样的数。一次读几个，矩阵核的加法次序可能不同，末位差一点；
                          准备好的核（prepared.py）一行的结果与一起读的几个无关，逐比特相同
    几个线程同时用呢？    不行：一个线程一份

常见的错法：
    按文字比较            切法不同，编号就不同
    整段都抄              末一个词元要重读：它的分数没有留着
    左填充也抄            短的行缓存开头是填充，要从它真正的第一列抄起
    权重变了还在用        训练到一半看样文，写的是上一步的模型

论文：Gim 等 2024, Prompt Cache (arXiv:2311.04934)；
     Zheng 等 2024, SGLang (arXiv:2312.07104)：排成树，许多请求共用。

改哪里：记几份 → size；留哪几份（现在留最近的）→ keep；存到磁盘 → 把 fill 抄来的写成文件。
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import UntypedStorage, nn

from foundation.checks import check_int
from foundation.demonstration import run_demo
from gpt_model.caches import copy_columns

if TYPE_CHECKING:
    from inference.decoder import Decoder
    from transformer_basics.kv_cache import ModelCache

__all__ = ["PrefixCache"]


class Kept(NamedTuple):
    """登记的一份；cache 与 decoder 手里的不再是同一个，就作废。"""

    decoder: Decoder  # 窗口、填充、设置都看它的
    cache: ModelCache  # 登记时它手里的那一个
    state: State  # 那时的模型


class PrefixCache:
    """记住最近 size 份读过的文本，连同它们的键与值。

    用法：TextGenerator(model, tokenizer, prefixes=PrefixCache())，此后照常调用
    n_reused：至今省了几个词元不读
    约定：只给 static、growing、int8 的缓存；同时只在一个线程里用
    """

    def __init__(self, size: int = 1) -> None:
        # 满了就挤掉最旧的
        self._kept: deque[Kept] = deque(maxlen=check_int("size", size, 1))
        self.n_reused = 0

    def clear(self) -> None:
        """忘掉一切，放开内存；绕过版本号改了权重之后，也要叫它。"""
        self._kept.clear()

    def keep(self, decoder: Decoder) -> None:
        """登记一份刚读完提示的；以后它写到哪里，就留到哪里。"""
        assert decoder.cache is not None, "only what is in a cache can be kept"
        # 滑动之后重读的是同一份，不占两格
        for one in list(self._kept):
            if one.decoder is decoder:
                self._kept.remove(one)
        self._kept.append(Kept(decoder, decoder.cache, State(decoder.model)))

    def fill(self, decoder: Decoder, ids: Sequence[int]) -> int:
        """把 ids 的前 P 个的键与值抄进 decoder 空着的缓存（一行）；返回 P，没有就是 0。

        公式：P = max p，使 ids 的前 p 个等于登记过的某一行的前 p 个
        """
        if not ids or not self._kept:
            return 0
        # ① 作废的先放开：缓存已换过，或者权重变了
        now = State(decoder.model)
        for one in list(self._kept):
            stale = one.decoder.model is decoder.model and one.state != now
            if stale or one.decoder.cache is not one.cache:
                self._kept.remove(one)
        # ② 一份一份、一行一行地比，取最长的
        best, source, place = 0, None, (0, 0)
        #    几份一样长时取先登记的：反正是同样的数
        for one in self._kept:
            if one.decoder.model is decoder.model and one.decoder.settings == decoder.settings:
                for row, window, padding in rows_of(one):
                    n = n_common(ids, window)
                    if n > best:
                        best, source, place = n, one.cache, (row, padding)
        # ③ 抄。填充不抄，所以新的这一行从第 0 列起都是真的
        if source is not None:
            row, padding = place
            assert decoder.cache is not None
            copy_columns(source, decoder.cache, row, padding, padding + best)
            self.n_reused += best
        return best


def rows_of(one: Kept) -> list[tuple[int, list[int], int]]:
    """登记的这一份里有哪些行：（行号，已在缓存里的编号，左边几个填充）。

    猜了没批的、写了没喂的，都不在缓存里；被打断时各层长短不一，以最短的为准
    """
    decoder = one.decoder
    length = min(layer.length for layer in one.cache.layers)
    paddings = [0] * len(decoder.windows)
    if decoder.real is not None:
        paddings = (~decoder.real).sum(dim=1).tolist()  # (B,)
    return [
        (row, window[: max(0, length - padding)], padding)
        for row, (window, padding) in enumerate(zip(decoder.windows, paddings, strict=True))
    ]


def n_common(a: Sequence[int], b: Sequence[int]) -> int:
    """开头有几个相同。

    >>> n_common([1, 2, 3], [1, 2, 4, 5])
    2
    """
    same = takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    return sum(1 for _ in same)


class State:
    """模型此刻的样子：配置、每个模块的普通开关、每个张量的存储与版本号。

    不比较数：一亿多个权重，比一遍就够读几十个词元了。就地改会让版本号加一，换一块存储地址就不同。
    存储拿在手里不放，所以旧的地址不会又分给新的权重（16 位转一圈回来，数变了，地址可能没变）
    """

    def __init__(self, model: nn.Module) -> None:
        # 配置不可变，拉长上下文是换一份新的，所以记住它就够
        self.config: Any = model.config
        self.switches: list[tuple[str, object]] = []
        self.tensors: list[tuple[UntypedStorage, int]] = []
        for module in model.modules():
            # 适配器的开关、名字、倍数都是普通属性；推理不必认得适配器，也看得出它们变了。
            # training 除外：生成时反正关掉
            self.switches += [
                (name, value)
                for name, value in vars(module).items()
                if isinstance(value, bool | int | float | str) and name != "training"
            ]
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                # 推理模式里建的张量没有版本号
                version = 0 if tensor.is_inference() else tensor._version
                self.tensors.append((tensor.untyped_storage(), version))

    # 三样都同，才是同一个模型；少看一样，就可能拿别的模型的 K、V 来用
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, State):
            return NotImplemented
        return (self.config, self.switches, self.marks()) == (
            other.config,
            other.switches,
            other.marks(),
        )

    # 里面是列表，不能当字典的键；写明了，免得有人用它查表
    __hash__ = None  # type: ignore[assignment]

    def marks(self) -> list[tuple[int, int]]:
        """每个张量的地址与版本号。"""
        return [(storage.data_ptr(), version) for storage, version in self.tensors]


def demo() -> None:
    """聊四轮：每轮要读几个、真正读了几个，写的一样不一样；权重变了就重读。"""
    import torch

    from gpt_model.config import preset
    from gpt_model.model import GPT
    from inference.decoder import Decoder, greedy

    # 随机权重的小模型；init_std 取大，前文错一个词元，写的就全变样
    model = GPT(preset("modern-micro", vocab_size=50, init_std=0.1)).eval()
    fed: list[int] = []
    model.register_forward_pre_hook(lambda _, given: fed.append(given[0].numel()))

    def turn(prompt: list[int], prefixes: PrefixCache | None) -> tuple[int, list[int]]:
        # 写 8 个：第一个来自预填，后面每步喂一个
        fed.clear()
        with torch.inference_mode():
            decoder = Decoder(model, [prompt], max_new_tokens=8, prefixes=prefixes)
            (answer,) = greedy(decoder, 8)
        return sum(fed) - 7, answer

    # 每轮的提示是「此前的一切」加新的 6 个；用缓存与不用，各问一遍
    prefixes, said = PrefixCache(), torch.randint(50, (30,)).tolist()
    for number in range(1, 5):
        asked = said + torch.randint(50, (6,)).tolist()
        plain, expected = turn(asked, None)
        read, answer = turn(asked, prefixes)
        print(f"第 {number} 轮　要读 {plain:2} 个，真正读了 {read:2} 个　写 {answer}")
        # 上一轮的最后一个词元写了却没喂过，所以连新的 6 个共 7 个
        assert (plain, read) == (len(asked), len(asked) if number == 1 else 7)
        assert answer == expected
        said = asked + answer
    # 权重动了一下，旧的 K、V 就是别的模型的了
    with torch.no_grad():
        model.lm_head.weight.add_(0.01)
    read, _ = turn(said, prefixes)
    print(f"权重变了：{len(said)} 个全部重读，读了 {read} 个；四轮共省下 {prefixes.n_reused} 个")
    assert read == len(said)


if __name__ == "__main__":
    run_demo(demo)
