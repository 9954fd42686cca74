r"""写一个词元，时间花在哪里？——读权重；于是把其余的都省掉：准备一次，写许多步。

每写一个词元，每个权重恰好用一次。乘加只有 2N 次，处理器一眨眼就做完；从内存读 N 个数却省不掉：

$$\text{每秒词元数} \le \frac{\text{内存每秒读的字节}}{\text{权重的字节}}, \qquad
  \text{例：}\ \frac{31\ \text{GB/s}}{4 \cdot 124\text{M}} \approx 62$$

普通的路离这个数还差几倍，差在三处，各有一个办法：

    Python 一步派发几百个小算子            一步只进一次 C++（kernels/forward.cpp）
    PyTorch 的矩阵核是给几百行准备的，     为一行写的核：从头读到尾，边读边乘
      一行也照样摆开架势                     （kernels/products.h）
    权重散在各处，处理器的预取常常断       挨着摆，用大页（foundation/large_pages.py）

    GPT ──prepare_for_inference──▶ PreparedModel     同样的 forward、make_cache，
                                     │               TextGenerator、束搜索都不必知道
            ┌────────────────────────┼─────────────────────────┐
        认得的块，新词元不多     不认得的块               在训练、GPU……
        kernels/forward.cpp     那一块走 PyTorch          整个走原来的模型
        没有编译器：flat_step.py

结果相同：float32 只差加法的次序；bfloat16 的权重一位不动，激活却不再舍入成 16 位，反而更准。
而且一行的结果与旁边有谁无关：单独写、成批写、用几个线程，逐比特相同；PyTorch 的核做不到这一点。

什么时候没有用：
    提示很长        那时是乘法多，不是读得多，PyTorch 的矩阵乘法正合适，浮点的照旧用它
    一批很多行      权重读一次给许多行用，也成了乘法的事；十几行之内仍然快
    GPU             CUDA 有自己的核；这里只管 CPU

快了多少，怎样才算快？不与别人比秒数，而与上面那个上限比：同一次运行里，把同样多的字节读一遍，
量出这台机器每秒能读多少，再看写词元用上了它的几成（benchmarks/decode_speed.py）。到了八九成，
再快就只有一条路：让权重的字节少一些，也就是量化。

一步里还剩什么不是读权重？
    注意力          读缓存里的 K、V：每个词元、每层 2·G·d 个数，前文长了才看得出来
    归一化、激活    几百到几千个数，都在处理器的缓存里，每个核各算一遍也不费什么
    等齐            一块五段，段与段之间各个核要等活都做完；做得快的帮做得慢的（kernels/sharing.h）
    选词            五万个分数里挑一个，在 PyTorch 里，几十到几百微秒

准备与不准备，哪些相同，哪些不同：

                        GPT                          PreparedModel
    forward             缓存、掩码、位置、损失        相同；损失与打包的文档交给原来的模型
    分数的类型          与权重相同                    float32（走快路时）
    梯度                有                            没有
    权重                各在各处                      同样的参数，搬进了一整块
    错误                ValueError，写明两个数        同一句话：快路看见不对的就交还

常见疑问：
    整数的权重，激活呢？        取成 16 位整数再乘，误差在十万分之几，比权重自己的舍入小两三个数量级
    整数的模型为什么 K、V 存 16 位？  权重只剩几十兆，float32 的缓存会占去读的两三成
    能与投机解码合用吗？        能：一次验证几个词元，就是 T 大于 1 的一步，权重仍只读一遍
    为什么不用 torch.compile？  它省掉派发，省不掉那些核；第一次要编译半分钟，形状一变再来一次
    为什么整步都在 C++ 里？     一步几毫秒，几百次来回就占去一成；小模型一步几十微秒，来回就是全部
    改了权重要重新准备吗？      大矩阵就在原处，改了立刻看得见；偏置与归一化的副本看不见。别猜，重来

论文：Pope 等 2022 (arXiv:2211.05102) 解码受限于带宽；Williams 等 2009, Roofline（性能上限的画法）。

改哪里：多少个新词元以内用 C++ → MOST_ROWS；一步里的次序 → kernels/forward.cpp；
       哪些零件认得 → kernel_plan.py；编译与缓存 → foundation/compiled_code.py。
"""

from __future__ import annotations

import copy
import ctypes
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from foundation.compiled_code import CodeUnavailable
from foundation.demonstration import run_demo
from gpt_model.caches import CacheSettings, build_cache
from gpt_model.config import GPTConfig
from gpt_model.inputs import build_mask, real_positions
from gpt_model.model import GPT, GPTOutput
from inference.flat_step import FlatStep
from inference.kernel_interface import KINDS, StepStruct, code_shape, fits, load_kernels
from inference.kernel_plan import KernelPlan
from inference.quantization import quantize
from transformer_basics.kv_cache import ModelCache, StaticCache
from transformer_basics.quantized_linear import quantized_parts

__all__ = ["PreparedModel", "prepare_for_inference"]

MOST_ROWS = 32  # 浮点的权重，一次这么多个新词元以内走 C++；再多，PyTorch 的矩阵乘法更快
MOST_PATIENT_ROWS = 4096  # 整数的，PyTorch 要先还原；16 位的，处理器不会乘就慢：长的提示也走 C++
SMALL_WORK = 1 << 20  # 一步的乘加不到这么多，就只用一个线程：分工比做还久


class Asked(NamedTuple):
    """一次 forward 要的东西，一路传下去；张量由它留着，C++ 用的时候不会被回收。"""

    ids: Tensor  # (B, T)
    positions: Tensor | None  # (T,) 或 (B, T)
    mask: Tensor | None  # (B, S)，真 = 不是填充
    cache: ModelCache
    last_only: bool


def prepare_for_inference(
    model: GPT, *, bits: int | None = None, group_size: int | None = 64, announce: bool = True
) -> PreparedModel:
    """准备好的模型：只用来推理，与原来的用法相同，写得快。

    用法：TextGenerator(prepare_for_inference(model), tokenizer)；命令行默认就这样做
    bits：8 或 4，顺手量化成整数（词表也是），给的模型不动；已经量化过的模型直接给，不必写
    第一次用时要编译几秒（说一声），以后从缓存里取；没有编译器就说一句原因，仍可用，只是不快
    约定：权重搬了家，所以准备之后不要再训练、再 model.to(…)；要改，就改完再准备一次
    """
    # ⓪ 量化：换一棵新的模块树，归一化、偏置仍是原来的那些张量，不抄
    if bits is not None:
        shared: dict[int, Any] = {id(p): p for p in model.parameters()}
        copied = quantize(copy.deepcopy(model, shared), bits, group_size, embeddings=bits)
        assert isinstance(copied, GPT)
        model = copied
    kernels, reason = None, f"they are for the CPU, the model is on {model.device}"
    # ① 编译好的核：缓存里有就取，没有就编译
    if model.device.type == "cpu":
        try:
            kernels = load_kernels()
        except CodeUnavailable as error:
            reason = str(error)
    # ② 没有也不是错：说清原因，好让人知道装什么
    if kernels is None and announce:
        print(f"decoding without compiled kernels: {reason}", file=sys.stderr)
    return PreparedModel(model, kernels)


class PreparedModel(nn.Module):
    """GPT 的替身：同样的 forward 与 make_cache；能快的快，不能的照旧。

    kernels：编译好的库；None 就全走原来的模型
    状态：没有。缓存由调用者拿着，所以几段文本可以轮流写，几个线程可以同时用
    约定：从不记梯度；用 make_cache 的缓存（static）才有快路；原来的模型在 .model 里
    """

    def __init__(self, model: GPT, kernels: ctypes.CDLL | None) -> None:
        super().__init__()
        self.model = model
        self.kernels = kernels
        # 哪些零件归 C++，一次定好；一个也不认得，就不必绕这一圈
        plan = None if kernels is None else KernelPlan(model, *code_shape(kernels))
        self.plan = plan if plan is not None and (any(plan.known) or plan.scores) else None
        self.stretches = [] if self.plan is None else list(self.plan.stretches())
        # 没有编译器：写一个词元的那一步少叫几个算子，见 flat_step.py
        self.flat = FlatStep.of(model) if kernels is None else None
        # 整个归 C++、权重是整数：K、V 也存 16 位，长的提示也归它
        whole = self.plan is not None and all((*self.plan.known, self.plan.scores))
        self.integers = whole and bool(quantized_parts(model))
        self.cache_dtype = torch.bfloat16 if self.integers else model.dtype
        # 处理器不会乘 16 位的数时，PyTorch 读 bfloat16 的提示要慢两倍半
        slow = kernels and model.dtype == torch.bfloat16 and not kernels.has_bfloat16()
        self.most_rows = MOST_PATIENT_ROWS if self.integers or (whole and slow) else MOST_ROWS
        # 不认得的块要把 K、V 读回来，类型得与它的激活相同，所以有一块不认得就不换
        # 一个词元要做多少次乘加：太少就不值得分给几个线程
        self.n_multiplied = model.num_parameters()

    # ── 与 GPT 相同的门面 ───────────────────────────────────────────────
    @property
    def config(self) -> GPTConfig:
        """原来模型的配置。"""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """权重所在的设备；快路只在 CPU 上。"""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """权重的类型。"""
        return self.model.dtype

    def make_cache(
        self, batch_size: int, *, capacity: int | None = None, kind: CacheSettings | str = "static"
    ) -> ModelCache:
        """见 GPT.make_cache；别的种类也能用，只是走原来的路。

        类型与权重相同；bfloat16 与整数的模型，K、V 存 16 位，读的字节少一半
        """
        # 只有 static 归 C++；别的仍是模型的类型
        settings = CacheSettings.of(kind)
        dtype = self.cache_dtype if settings.kind == "static" else self.dtype
        sizes = {"capacity": capacity, "dtype": dtype, "device": self.device}
        return build_cache(self.config, settings, batch_size, **sizes)  # type: ignore[arg-type]

    @torch.no_grad()
    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: ModelCache | None = None,
        last_only: bool = False,
    ) -> GPTOutput:
        """与 GPT.forward 相同：ids (B, T) → logits (B, T, V)，last_only 时 (B, 1, V)。

        类型：分数由 C++ 算时是 float32
        错误：与 GPT.forward 相同——凡是不合规矩的，都交给它去说
        """
        # 快慢两条路可以随时交替：两边读写的是同一个缓存，长度也记在同一处
        # ① 快路只管续写：有缓存，不算损失，不是打包的文档
        fast = self.plan or self.flat
        if fast is not None and cache is not None and targets is None is document_ids:
            asked = Asked(ids, positions, attention_mask, cache, last_only)
            step = self._step(asked)
            logits = None if step is None else self._run(asked, step)
            if logits is not None:
                return GPTOutput(logits, None)
        # ② 其余的一切：原来的模型；缓存若比模型窄，注意力就在 16 位里算
        rest: dict[str, Any] = {"positions": positions, "attention_mask": attention_mask}
        rest |= {"document_ids": document_ids, "cache": cache, "last_only": last_only}
        narrow = cache is not None and self.cache_dtype != self.dtype
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            return self.model(ids, targets, **rest)  # type: ignore[no-any-return]

    # ── 快路 ────────────────────────────────────────────────────────────
    def _step(self, asked: Asked) -> StepStruct | None:
        """这一步归 C++ 管吗？归，就填好大小；有一样不合就是 None。

        约定：只看形状与类型，不改任何东西；None 之后走原来的路，一切如常
        """
        config, ids, layers = self.model.config, asked.ids, asked.cache.layers
        if ids.ndim != 2 or ids.dtype != torch.int64 or ids.device.type != "cpu":
            return None
        (n_rows, n_new), start = ids.shape, asked.cache.length
        # ① 新词元太多的、放不下的不管；dropout 还开着的，不是推理
        end = start + n_new
        if not 0 < n_rows * n_new <= self.most_rows or end > config.max_seq_len:
            return None
        if self.model.training and config.dropout > 0:
            return None
        # ② 缓存：每层都是 StaticCache，一样大，装得下，行数对
        for layer in layers:
            if type(layer) is not StaticCache or layer.capacity < end:
                return None
            if layer.capacity != layers[0].capacity or layer.batch_size != n_rows:  # type: ignore[attr-defined]
                return None
        dtype = layers[0].buffers[0].dtype  # type: ignore[attr-defined]
        if dtype not in KINDS or len(layers) != len(self.model.blocks):
            return None
        #    各层一样大，才只用递一个容量；滑动的、量化的缓存各有各的存法，都走原来的路
        # ③ 位置与掩码：形状对才敢把地址递过去
        shapes = [(n_rows, n_new), (n_new,)]
        if asked.positions is not None and not fits(asked.positions, torch.int64, shapes):
            return None
        if asked.mask is not None and not fits(asked.mask, torch.bool, [(n_rows, end)]):
            return None
        # ④ 都合：要给几个位置打分、用几个线程
        #    线程数不影响结果，只影响快慢；torch.set_num_threads 也管着这里
        step = StepStruct(n_rows, n_new, start)
        step.score = 1 if asked.last_only else n_new
        busy = self.n_multiplied * n_rows * n_new >= SMALL_WORK
        step.n_threads = torch.get_num_threads() if busy else 1
        step.cache_kind, step.capacity = KINDS[dtype], layers[0].capacity  # type: ignore[attr-defined]
        return step

    def _run(self, asked: Asked, step: StepStruct) -> Tensor | None:
        """一段一段地跑：归 C++ 的进 C++，别的一块一块走 PyTorch；C++ 不肯（掩码有洞）就是 None。

        形状：→ (B, 1 或 T, V)
        """
        # 没有编译器：大小与类型已由同一套检查看过；
        # 一行一个新词元的归它，别的它也给 None
        if self.flat is not None:
            return self.flat.run(asked.ids, asked.positions, asked.mask, asked.cache)
        assert self.plan is not None
        assert self.kernels is not None
        model, layers = self.model, asked.cache.layers
        # ① 残差流与分数：两边都读写；x 一律 float32，加了几十次也不丢位
        #    不必清零：每个数都会被写到
        x = torch.empty(*asked.ids.shape, model.config.dim)  # (B, T, D)
        logits = torch.empty(len(x), step.score, model.config.vocab_size)
        kept = self._lend(asked, step, x, logits)
        # ② 先看一遍输入：掩码有洞、位置越界、编号不对的，一样也不动，交给原来的路
        whole, this = ctypes.addressof(self.plan.struct), ctypes.addressof(step)
        if self.kernels.inspect(whole, this):
            return None
        # ③ PyTorch 的块用得着位置与掩码；全归 C++ 时不必算
        positions, seen = asked.positions, None
        if not all(self.plan.known) or not self.plan.embeds:
            if positions is None and asked.mask is not None:
                positions = real_positions(asked.mask, step.n_new)
            seen = build_mask(step.n_new, step.start, asked.mask, None, model.config.sliding_window)
        #    查表：C++ 认得就由它做；第一块若归 PyTorch，就先只查表，一块也不跑
        want, step.score = int(step.score), 0
        step.embed = self.plan.embeds
        if not self.plan.embeds:
            x.copy_(model._embed(asked.ids, positions, step.start, asked.cache, asked.mask, None))
        elif not self.plan.known[0]:
            self.kernels.forward(whole, this)
        # ④ 一段一段；打分跟着最后一段，若它归 C++
        #    x 在两边之间传：C++ 读写的是 float32，PyTorch 的块用模型自己的类型
        for step.first_block, step.last_block, native in self.stretches:
            if native:
                ends = step.last_block == len(layers) and self.plan.scores
                step.score = want if ends else 0
                self.kernels.forward(whole, this)
                # C++ 已经把 K、V 写进缓冲区，这里只把长度记上
                for layer in layers[step.first_block : step.last_block]:
                    layer.length += step.n_new
            else:
                stream = x.to(model.dtype)
                for index in range(step.first_block, step.last_block):
                    block = model.blocks[index]
                    stream = block(stream, positions=positions, mask=seen, cache=layers[index])
                x.copy_(stream)
            step.embed = 0
        del kept  # 到这里 C++ 才不再用它们
        return logits if step.score else self._score(x[:, -want:])

    def _lend(self, asked: Asked, step: StepStruct, x: Tensor, logits: Tensor) -> list[Any]:
        """把地址填进结构；返回要一直留到用完的东西。

        contiguous 可能造出新的张量，地址数组也是新的：没有人留着，当场就会被回收
        """
        ids, positions, mask = asked.ids.contiguous(), asked.positions, asked.mask
        step.ids, step.x, step.logits = ids.data_ptr(), x.data_ptr(), logits.data_ptr()
        if positions is not None:
            positions = positions.contiguous()
            step.positions = positions.data_ptr()
            # 一维的各行相同：行与行之间不挪动
            step.position_stride = step.n_new if positions.ndim == 2 else 0
        if mask is not None:
            step.real, step.real_stride = mask.data_ptr(), mask.stride(0)
        # 各层的 K、V 从哪里开始：每步现取，因为重排可能换了缓冲区
        buffers = [layer.buffers for layer in asked.cache.layers]  # type: ignore[attr-defined]
        array = ctypes.c_void_p * len(buffers)
        keys = array(*[key.data_ptr() for key, _ in buffers])
        values = array(*[value.data_ptr() for _, value in buffers])
        step.keys, step.values = ctypes.addressof(keys), ctypes.addressof(values)
        return [ids, positions, mask, keys, values]

    def _score(self, x: Tensor) -> Tensor:
        """最后一段归 PyTorch 时，打分也归它：与 GPT.forward 的第 ④ 步相同。

        形状：(B, 1 或 T, D) → (B, 1 或 T, V)
        """
        model, cap = self.model, self.model.config.logit_softcap
        scores: Tensor = model.lm_head(model.final_norm(x.to(model.dtype)))
        return scores if cap is None else cap * torch.tanh(scores / cap)


def demo() -> None:
    """同一个模型，准备与不准备：写出的词元相同，快多少；再看与谁逐比特相同。"""
    from gpt_model.config import preset

    torch.manual_seed(0)
    model = GPT(preset("gpt-mini", init_std=0.05)).eval()
    ready = prepare_for_inference(model)
    print(f"① C++ 认得 {sum(ready.plan.known) if ready.plan else 0} 块，共 {len(model.blocks)} 块")
    # 贪心写 100 个，两种各自计时；先各写几个热一热
    prompt = torch.randint(4096, (16,)).tolist()
    found, seconds = zip(*(write(one, prompt) for one in (model, ready)), strict=True)
    for name, row, spent in zip(("原来的", "准备好"), found, seconds, strict=True):
        print(f"② {name}：{100 / spent:6.0f} 词元/秒　…{row[-6:]}")
    assert found[0] == found[1]
    # 秒数每台机器不同，只打印；
    # 词元必须相同
    print(f"   快 {seconds[0] / seconds[1]:.1f} 倍，词元一个不差")
    if ready.plan is None:
        return
    # 缓存各用各的，结果却要一样
    # 成批与单独：逐比特相同，因为每个输出的加法次序与旁边有几行无关
    ids = torch.randint(4096, (4, 5))
    together = ready(ids, cache=ready.make_cache(4)).logits
    alone = torch.cat([ready(row[None], cache=ready.make_cache(1)).logits for row in ids])
    print(f"③ 四行一起与各自单独，分数相差 {(together - alone).abs().max():.0e}")
    assert torch.equal(together, alone)
    # 同样的权重，走 PyTorch 的核
    plain = model(ids).logits.detach()
    gap = float((together - plain).abs().max() / together.abs().max())
    print(f"④ 与 PyTorch 的路相比，分数相对差 {gap:.0e}：只差加法的次序")
    assert gap < 1e-5


def write(model: Any, prompt: list[int]) -> tuple[list[int], float]:
    """贪心写 100 个词元：编号，与用了几秒；每步都等上一步选出来。

    先写 4 个不计时：第一次要申请内存、叫醒线程
    """
    import time

    from inference.decoder import Decoder, greedy

    with torch.inference_mode():
        greedy(Decoder(model, [prompt], max_new_tokens=4), 4)
        began = time.perf_counter()
        (row,) = greedy(Decoder(model, [prompt], max_new_tokens=100), 100)
        return row, time.perf_counter() - began


if __name__ == "__main__":
    run_demo(demo)
