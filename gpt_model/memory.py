r"""训练要占多少内存？——看最挤的那一刻：一步里东西来来去去，峰值不是各样之和。

记 N 个参数，D = dim，L = n_layers，F = ffn 宽，V = 词表，M = B·T 是一批的词元数；S 是一直在的
权重与优化器状态，G 是梯度，A 是为反向留着的激活（activations）。

$$\text{peak} = S + \max(\text{损失那一刻},\ \text{反向刚开始},\ \text{反向到头},\ \text{更新})$$

    字节      前向 ──────▶ 损失 ─▶ 反向 ───────────────▶ 到头 ─▶ 更新
    S  权重、优化器   ████████████████████████████████████████   4N + 8N（Adam）
    A  激活           ▁▂▃▄▅▆▇ ███  ██▇▆▅▄▃▂▁                     反向走过一块放一块
    G  梯度                        ▁▂▃▄▅▆▇██████████████████     4N，走过一块多一块
                              ①      ②               ③      ④

    ① 损失     A + 一段打分（chunked_loss.py）+ 隐藏状态的梯度
    ② 反向刚开始  A + 词表的梯度 + 一块的临时值；重算的，这一块的激活先要算回来
    ③ 反向到头   G + 词向量的梯度（与 lm_head 共用时，两份要相加，先各占一份）
    ④ 更新     G；Muon 另有摆正时的几份矩阵

激活放掉一块，梯度才多一块，所以两样的峰值不在同一刻：不累积时不能相加。累积（accumulation）时
梯度从上一个微批次留到现在，DDP 的梯度一直住在通信的桶里：这两种情形要相加。

每个数都能与真的训练对照：benchmarks/plan_accuracy.py 一种种地跑，相差在一成五以内。
估的是张量：CUDA 自己的上下文、分配器的碎片（fragmentation）不在其中；CPU 上不重算时为了快，放掉的
内存不还给系统（foundation/allocator.py），看到的占用会更大。

论文：激活 — Korthikanti et al., arXiv:2205.05198；分片 — ZeRO, arXiv:1910.02054；
      混合精度 — Micikevicius et al., arXiv:1710.03740。

改哪里：反向多留了张量 → block_activations；多了一个拥挤的时刻 → training_memory 里添一项。
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from foundation.checks import check_choice, check_int
from foundation.demonstration import run_demo
from gpt_model.caches import CacheSettings
from gpt_model.chunked_loss import CHUNK_BYTES, SOFTMAX_BYTES
from gpt_model.config import PRESETS, GPTConfig
from gpt_model.sizes import count_parameters, human, kv_bytes_per_token, matmul_parameters
from transformer_basics.blocked_attention import KEEP_UP_TO, blocks_of
from transformer_basics.recomputation import KINDS
from transformer_basics.sliding_cache import sliding_capacity

__all__ = ["MemoryEstimate", "cache_memory", "inference_memory", "training_memory"]

# 混合精度也不省这两份：动量太小的增量在 16 位里会被舍掉
ADAM_STATES = 2  # 每个参数的一阶矩与二阶矩


@dataclass(frozen=True)
class MemoryEstimate:
    """最挤的那一刻，各部分占用的字节数。"""

    weights: int  # 权重；GPU 上混合精度时，含那一刻的 16 位拷贝
    gradients: int = 0  # 那一刻已有的；激活最多的时候，多半还没有几个
    optimizer: int = 0  # Adam 的两份矩；Muon 的矩阵只有一份动量
    activations: int = 0  # 为反向留着的中间结果
    logits: int = 0  # 算损失的那一段：打分、它的 softmax、隐藏状态的梯度
    working: int = 0  # 临时的：一块的反向、重算出来的、Muon 的摆正、FSDP 凑齐的参数
    kv_cache: int = 0  # 只在生成时有

    @property
    def total(self) -> int:
        """各部分之和，就是峰值。"""
        return sum(asdict(self).values())

    def by_part(self) -> dict[str, int]:
        """部分名 → 字节，不列出为 0 的部分。"""
        return {part: number for part, number in asdict(self).items() if number}


def training_memory(
    config: GPTConfig,
    batch_size: int,
    seq_len: int | None = None,
    *,
    precision: str = "fp32",
    checkpointing: str = "none",
    parallel: str = "none",
    processes: int = 1,
    optimizer: str = "adamw",
    grad_accumulation: int = 1,
    n_trainable: int | None = None,
    device: str = "cuda",
) -> MemoryEstimate:
    """估计训练一步的内存峰值（字节），训练前就知道装不装得下；几个进程时是每个进程的。

    公式：见本课开头：四个时刻各算一遍，取最大的
    参数：checkpointing 见 recomputation.py；parallel、processes、optimizer 见 training/；
         grad_accumulation 是全体的微批次；n_trainable 少于全部（LoRA）时，冻结的没有梯度与状态；
         device 只问是不是 "cpu"：那里 bf16 的路不同（linear.py、blocked_attention.py）
    """
    check_int("batch_size", batch_size, 1)
    check_int("processes", processes, 1)
    check_int("grad_accumulation", grad_accumulation, 1)
    check_choice("precision", precision, ("fp32", "bf16", "fp16"))
    check_choice("parallel", parallel, ("none", "ddp", "fsdp"))
    check_choice("optimizer", optimizer, ("adamw", "muon"))
    length = config.max_seq_len if seq_len is None else check_int("seq_len", seq_len, 1)
    tokens = batch_size * length
    half, on_cpu = precision != "fp32", device == "cpu"
    # ① 一直在的：权重与优化器状态；FSDP 每个进程只拿一片
    n_all = count_parameters(config).total
    n_trained = n_all if n_trainable is None else min(n_trainable, n_all)
    whole = n_trained == n_all  # 假：只练适配器，词表没有梯度，也没有归 Muon 的矩阵
    share = processes if parallel == "fsdp" else 1
    muon = optimizer == "muon" and whole
    states = ADAM_STATES * n_trained - (matrices_in_blocks(config) if muon else 0)
    always = MemoryEstimate(
        weights=n_all * 4 // share,
        optimizer=states * 4 // share,
        working=gathered_bytes(config) if share > 1 else 0,
    )
    # ② 梯度：前向时有没有，看是不是累积、是不是 DDP；FSDP 累积时先不通信，攒着的是整个的
    accumulates = grad_accumulation > processes
    stays = accumulates or (parallel == "ddp" and processes > 1)
    gradients = n_trained * 4 // (1 if accumulates else share)
    before = gradients if stays else 0
    #    lm_head 的梯度，算损失时就有了：前向反向一起做，见 chunked_loss.py
    table = config.vocab_size * config.dim * 4 if whole else 0
    # ③ 激活，与一块的反向临时要的
    scores = score_values_per_token(config, length) if half and on_cpu else 0
    activations = tokens * kept_bytes_per_token(config, checkpointing, half, scores)
    one_block = tokens * backward_bytes_per_token(config, checkpointing, half, scores)
    #    GPU 上 autocast 把块里的矩阵转成 16 位，反向还要用；CPU 上用时才转，见 linear.py
    copies = matrices_in_blocks(config) * 2 if half and not on_cpu else 0
    #    整块重算的，反向时只有正在算的那一块
    later = copies // config.n_layers if checkpointing == "block" else copies
    early, logits = loss_bytes(config, tokens, half, table)
    # ④ 四个时刻（第三个分两处）各算一遍
    moments = [
        added(always, copies, before + early, activations, logits),  # 损失
        added(always, later, before + table, activations, 0, one_block),  # 反向刚开始
        # 反向到头：词向量的梯度要与 lm_head 的相加；累积时，再加进原来的
        added(always, 0, gradients, 0, 0, table * (config.tie_embeddings + accumulates)),
        # 或者停在第一块：它的激活还在，别的块的梯度都有了
        added(always, 0, gradients, activations // config.n_layers, 0, one_block),
        # 更新：融合的 AdamW 就地改写，什么也不多占
        added(always, 0, gradients, 0, 0, muon_working(config) if muon else 0),
    ]
    return max(moments, key=lambda moment: moment.total)


def added(
    always: MemoryEstimate,
    copies: int,
    gradients: int,
    activations: int,
    logits: int,
    working: int = 0,
) -> MemoryEstimate:
    """一直在的，加上某一刻的；都是字节。"""
    return replace(
        always,
        weights=always.weights + copies,
        gradients=gradients,
        activations=activations,
        logits=logits,
        working=always.working + working,
    )


# ── 激活：为反向留下什么 ────────────────────────────────────────────


def block_activations(config: GPTConfig) -> tuple[int, int]:
    """一个块、一个词元：（总要留的, selective 不留的）各多少个数。

    公式：每块约 4D + 2Hd + 2Gd + 2F，即两次归一化的输入与输出、q、k、v 与注意力的输出、
         前馈激活前后各一份；测试用 autograd 真正留下的张量核对
    约定：按快路算：ReLU² 的反向由它的输入重算（activations.py），不留中间的 ReLU；
         融合的注意力不留 T×T 的权重，所以选着重算省下的只有前馈那一份
    """
    wide_q = config.n_heads * config.head_size  # Hd
    wide_kv = config.kv_heads * config.head_size  # Gd
    attention = 2 * wide_q + 2 * wide_kv  # q、输出；k、v
    attention += wide_q + wide_kv if config.qk_norm else 0  # 归一化前的 q、k
    # 拐弯之前：普通的一份，门控的 gate、up 两份；之后也是：普通的一份，门控的 act(gate)、乘积两份
    # 之前的总要留，之后的逐元素就能由之前的重算
    half = (2 if config.gated_ffn else 1) * config.ffn_size
    return 4 * config.dim + attention + half, half


def activation_values_per_token(config: GPTConfig, checkpointing: str = "none") -> int:
    """反向传播前，每个词元在所有块里留下多少个数。

    公式：L·a + 2D；selective 每块少留拐弯之后的 F；block 每块只留输入的 D
    为什么要留：d(x·W)/dW = xᵀ，求 W 的梯度要用到当时的 x
    """
    check_choice("checkpointing", checkpointing, KINDS)
    kept, recomputed = block_activations(config)
    per_block = {"none": kept + recomputed, "selective": kept, "block": config.dim}[checkpointing]
    # 末尾还有一次归一化；平移要留下前一个词元的向量，求 w 的梯度用
    return config.n_layers * per_block + (2 + config.token_shift) * config.dim


def stream_values_per_token(config: GPTConfig, checkpointing: str) -> int:
    """留下的数里，有多少是残差主路上的：混合精度时它们仍是 float32。

    公式：D·(2L + 1)：每个归一化的输入，末尾还有一个；block 每块只留一个
    为什么：几十层的和一直加在主路上，16 位加多了会停住；autocast 只把矩阵乘法换成 16 位
    """
    return config.dim * (config.n_layers * (1 if checkpointing == "block" else 2) + 1)


def score_values_per_token(config: GPTConfig, length: int) -> int:
    """CPU 上 bf16 的注意力：一块、一个词元，留下多少个 softmax 之后的权重 P。

    公式：H·Σ(行 × 看得见的键)/T；长的、带窗口的、有 dropout 的不留，见 blocked_attention.py
    """
    windowed = config.sliding_window is not None and config.sliding_window < length
    if length > KEEP_UP_TO or windowed or config.dropout:
        return 0
    # 短的留着，反向少乘一次；GPU 上融合的核从不留
    seen = sum((last - first) * last for first, last in blocks_of(length))  # 下三角，按块算
    return config.n_heads * seen // length


def kept_bytes_per_token(config: GPTConfig, checkpointing: str, half: bool, scores: int) -> int:
    """每个词元为反向留下的字节：矩阵乘法的输入随精度，主路总是 float32。"""
    kept = activation_values_per_token(config, checkpointing)
    if not half:
        return 4 * kept
    # 只有不重算时，P 才留到反向
    kept += config.n_layers * scores if checkpointing == "none" else 0
    return 2 * kept + 2 * stream_values_per_token(config, checkpointing)


def backward_bytes_per_token(config: GPTConfig, checkpointing: str, half: bool, scores: int) -> int:
    """反向走到一块时，每个词元临时要的字节；走过就放，所以只算一块。

    公式：重算出来的 + 拐弯处的梯度：进去的与出来的各 F，后者的激活刚放掉，净多一份
    """
    kept, recomputed = block_activations(config)
    again = {"none": 0, "selective": recomputed, "block": kept + recomputed + scores}[checkpointing]
    return (again + recomputed) * (2 if half else 4)


def loss_bytes(config: GPTConfig, tokens: int, half: bool, table: int) -> tuple[int, int]:
    """算损失那一刻：（词表的梯度, 其余的临时值），都是字节；table 是词表的梯度有多大。

    公式：m·V 的打分与它的 softmax + M·D 的梯度；16 位时另有 x 与词表的拷贝。m 由 CHUNK_BYTES 定
    """
    # ① 打分一段 m 行，外加隐藏状态的梯度；几段轮流用同一处内存
    size = 2 if half else 4
    rows = min(tokens, max(1, CHUNK_BYTES // (config.vocab_size * size)))  # m
    piece = rows * config.vocab_size * size + tokens * config.dim * 4
    piece += (tokens + config.vocab_size) * config.dim * 2 if half else 0
    # ② softmax 一小块一小块地算：float32 的分数（本来就是的，不另抄）与 log-softmax
    small = min(rows, max(1, SOFTMAX_BYTES // (4 * config.vocab_size)))
    tables = (2 if half else 1) + (config.logit_softcap is not None)
    softmax = small * config.vocab_size * 4 * tables
    # ③ 词表的梯度在第一段之后才有：只有一段时，softmax 的临时值已经放了，两样取大的
    if rows < tokens:
        return table, piece + softmax
    return (table, piece) if table > softmax else (0, piece + softmax)


# ── 权重一侧：Muon 与 FSDP ──────────────────────────────────────────


def matrices_in_blocks(config: GPTConfig) -> int:
    """块里所有线性层的权重的个数：参与矩阵乘法的，去掉输出词表。"""
    return matmul_parameters(config) - config.vocab_size * config.dim


def muon_working(config: GPTConfig) -> int:
    """Muon 更新时临时要的字节：每个矩阵的方向，加上正在摆正的一叠（training/muon.py）。

    公式：4·P + max(4·前一叠 + 10·这一叠 + 4·n·m²)：一叠里 float32 的进、出与 bf16 的 X，
         另有两个 (m, m)；前一叠的结果到下一叠算完才放
    """
    # 注意力四个、前馈两三个；偏置与增益是一维的，归 AdamW
    wide_q, wide_kv = config.n_heads * config.head_size, config.kv_heads * config.head_size
    widths = [wide_q, wide_kv, wide_kv, wide_q]  # q、k、v、o 的另一边，一边总是 D
    widths += [config.ffn_size] * (3 if config.gated_ffn else 2)
    # 同形状的一叠，转过来同形状的也算；次序是模型里的次序
    stacks: dict[tuple[int, int], int] = {}
    for width in widths:
        shape = min(width, config.dim), max(width, config.dim)
        stacks[shape] = stacks.get(shape, 0) + config.n_layers
    most = previous = 0
    # 动量之外，每个矩阵先有一份「再往前看一步」的方向
    # 一叠一叠地算：最挤的是大的那一叠，而且上一叠的结果还没放
    for (short, long), number in stacks.items():
        values = number * short * long
        most = max(most, 4 * previous + 10 * values + 4 * number * short**2)
        previous = values
    return 4 * matrices_in_blocks(config) + most


def gathered_bytes(config: GPTConfig) -> int:
    """FSDP 临时凑齐的参数与梯度（float32）：块外的一直凑着，块里的凑正在用的与预取的。

    公式：4·(2·P_外 + 3·P_块)；梯度在切开之前也是整个的，块里外各一份
    """
    # 块外的是词向量、位置、末尾的归一化与 lm_head，见 training/sharding.py 的分组
    count = count_parameters(config)
    block = (count.attention + count.feed_forward) // config.n_layers
    outside = count.total - config.n_layers * block
    return 4 * (2 * outside + 3 * block)


def inference_memory(
    config: GPTConfig, batch_size: int = 1, seq_len: int | None = None, *, bytes_per_value: int = 2
) -> MemoryEstimate:
    """估计生成文本时的内存（字节）：权重，加上写满上下文的 KV 缓存。

    没有梯度、没有优化器、也不为反向留激活，所以比训练小一个量级
    """
    check_int("batch_size", batch_size, 1)
    length = config.max_seq_len if seq_len is None else check_int("seq_len", seq_len, 1)
    return MemoryEstimate(
        weights=count_parameters(config).total * bytes_per_value,
        kv_cache=batch_size * length * kv_bytes_per_token(config, bytes_per_value),
        logits=batch_size * config.vocab_size * 4,
    )


def cache_memory(
    config: GPTConfig,
    length: int,
    cache: CacheSettings | str = "static",
    *,
    batch_size: int = 1,
    bytes_per_value: int = 4,
) -> int:
    """一种缓存写到 length 个词元时一直占着的字节；none 就是 0。

    公式：2·L·B·G × 每个头的字节：static、growing 是 b·d·T，int8 是 (d + 4)·T，
         sliding 是 b·d·(n + 缓冲区)，与 T 无关
    约定：按容量恰好是 length 算；临时的（growing 拼接时的一份、int8 乘回浮点的一层）不在其中
    """
    # 没给的数，按模型的上下文补上
    settings = CacheSettings.of(cache).resolved(config)
    check_int("length", length, 0)
    # 查询不存，所以只有键值头
    per_token = config.head_size * bytes_per_value  # 一个头、一个词元的键（或值）
    # 头越窄，尺度摊到每个数上越贵
    if settings.kind == "int8":
        per_token = config.head_size + 4  # 编码一个字节一个数，另有一个 float32 的尺度
    # 写多长都是这么多格
    if settings.kind == "sliding":
        assert settings.window is not None
        assert settings.n_sinks is not None
        # 汇存两份：没转过的，与缓冲区里转好的
        length = settings.n_sinks + sliding_capacity(settings.n_sinks, settings.window)
    # K 与 V、每层、每行、每个键值头，都是同样的一份；不用缓存就一份也没有
    n_heads = 0 if settings.kind == "none" else 2 * config.n_layers * batch_size * config.kv_heads
    return n_heads * length * per_token


def demo() -> None:
    """gpt2 在哪一刻最挤；换精度、重算、累积、Muon，各差多少。"""
    config = PRESETS["gpt2"]
    memory = training_memory(config, 8)  # 默认 float32
    print("① gpt2，batch 8、上下文 1024、float32：最挤的一刻")
    # 激活随 batch·T 增长，别的几样只看参数
    for part, number in memory.by_part().items():
        print(f"   {part:<12}{human(number, 'B'):>8}  {number / memory.total:5.0%}")
    print(f"   合计 {human(memory.total, 'B')}；梯度只有词表的那一份：别的还没算到")
    assert memory.gradients == config.vocab_size * config.dim * 4

    print("② 同一个模型，换一种练法")
    settings: dict[str, dict[str, str | int]] = {
        "累积 2 次：梯度一直在": {"grad_accumulation": 2},
        "bf16": {"precision": "bf16"},
        "bf16，选着重算": {"precision": "bf16", "checkpointing": "selective"},
        "bf16，整块重算": {"precision": "bf16", "checkpointing": "block"},
    }
    totals = {}
    for name, changed in settings.items():
        totals[name] = training_memory(config, 8, **changed).total  # type: ignore[arg-type]
        print(f"   {human(totals[name], 'B'):>8}  {name}")
    first, *rest = totals.values()
    assert first == memory.total + 4 * count_parameters(config).total
    assert rest == sorted(rest, reverse=True)  # 一种比一种省

    # 批很小时激活不多，最挤的是更新：Muon 的状态少一份，摆正却要好几份
    print("③ batch 1、上下文 256：最挤的一刻换成了反向到头与更新")
    for name in ("adamw", "muon"):
        small = training_memory(config, 1, 256, optimizer=name)
        held = small.weights + small.optimizer
        print(f"   {name:6} 一直在的 {human(held, 'B')}，峰值 {human(small.total, 'B')}")
        assert small.gradients == 4 * count_parameters(config).total


if __name__ == "__main__":
    run_demo(demo)
