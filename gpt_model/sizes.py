r"""一个 GPT 有多少参数、要算多少次、占多少内存？不必建出来，先在纸上算清楚。

记 D = dim，L = n_layers，H 个查询头，G 个键值头，每头 d 维，前馈宽 F，词表 V，上下文 T。

参数（一个块，不计偏置与归一化）：

    注意力  W_Q: D·Hd   W_K, W_V: 2·D·Gd   W_O: Hd·D      通常 Hd = Gd = D  →  4D²
    前馈    W_up: D·F   W_down: F·D   (W_gate: D·F)        通常 F = 4D       →  8D²

计算（floating-point operations，一次乘加算 2）：每个参与矩阵乘法的参数，对每个词元乘加一次，
前向 2 次运算；反向要算对输入与对权重两份梯度，再加 4 次。注意力的 QKᵀ 与 AV 另算：

    前向     2·N_matmul +  4·L·Hd·T
    训练     6·N_matmul + 12·L·Hd·T        （PaLM 论文附录 B 的记法）

N_matmul 不含查表的词向量，但含输出词表：查表不是乘法，lm_head 是。

内存（训练，字节/参数，float32 与 Adam）：

    权重 4  +  梯度 4  +  一阶矩 4  +  二阶矩 4  =  16
    另加为反向留着的激活（activations），与 batch·T 成正比
    重算（checkpointing）   block：每块只留输入 D 个数；selective：前馈拐弯之后的不留
    分片（FSDP，W 个进程）  16 字节都除以 W；用到的块临时凑齐（working）

KV 缓存：每个词元留下 K 与 V，共 2·L·G·d 个数。

论文：Kaplan et al. 2020, arXiv:2001.08361（6N）；PaLM, arXiv:2204.02311；
      激活内存：Korthikanti et al. 2022, arXiv:2205.05198；分片：ZeRO, arXiv:1910.02054。

改哪里：配置多了一种带参数的零件 → count_parameters 里加一项（测试会与真正建出的模型逐项核对）；
       反向多留了张量 → activation_values_per_token。
"""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass

from foundation.checks import check_choice, check_int
from foundation.demonstration import run_demo
from gpt_model.config import PRESET_PURPOSES, PRESETS, GPTConfig
from transformer_basics.recomputation import KINDS

__all__ = [
    "MemoryEstimate",
    "ParameterCount",
    "count_parameters",
    "flops_per_token",
    "inference_memory",
    "kv_bytes_per_token",
    "preset_table",
    "training_memory",
]

# 混合精度也不省这两份：动量太小的增量在 16 位里会被舍掉
ADAM_STATES = 2  # 每个参数的一阶矩与二阶矩


@dataclass(frozen=True)
class ParameterCount:
    """一个模型的参数，按部分列出；embedding 是查表用的，其余参与计算。"""

    token_embedding: int  # V·D
    position_embedding: int  # T·D，只有学出来的位置才有
    previous_token: int  # 前一个词元：token_shift 的 D 个，bigram 表的 R·D 个
    attention: int  # 四个投影、偏置、q/k 归一化
    feed_forward: int  # 两个或三个矩阵、偏置
    norms: int  # 归一化的缩放与偏移
    lm_head: int  # 与词向量共用（tied）时为 0

    @property
    def total(self) -> int:
        """全部参数；共用的矩阵只数一次。"""
        return sum(asdict(self).values())

    @property
    def embedding(self) -> int:
        """词、位置与前一个词元的查表参数。"""
        return self.token_embedding + self.position_embedding + self.previous_token

    @property
    def non_embedding(self) -> int:
        """除查表以外的参数，缩放定律（scaling laws）里的 N。"""
        return self.total - self.embedding

    def by_part(self) -> dict[str, int]:
        """部分名 → 参数个数，不列出为 0 的部分。"""
        return {part: number for part, number in asdict(self).items() if number}


def count_parameters(config: GPTConfig) -> ParameterCount:
    """由配置算出每一部分的参数个数，与真正建出的模型分毫不差。

    公式：见本课开头；偏置与归一化也计入
    """
    wide_q = config.n_heads * config.head_size  # H·d
    wide_kv = config.kv_heads * config.head_size  # G·d
    # ① 注意力：四个投影；qk_norm 给 q、k 各一个 d 维的缩放
    attention = config.dim * (wide_q + 2 * wide_kv) + wide_q * config.dim
    attention += (wide_q + 2 * wide_kv) if config.qkv_bias else 0
    attention += config.dim if config.proj_bias else 0
    attention += 2 * config.head_size if config.qk_norm else 0
    # ② 前馈：门控时多一个与 up 同样大小的 gate
    n_in = 2 if config.gated_ffn else 1
    feed_forward = (n_in + 1) * config.dim * config.ffn_size
    feed_forward += n_in * config.ffn_size + config.dim if config.proj_bias else 0
    #    每块两个；Pre-LN 在最后还有一个
    per_norm = config.dim * (2 if config.norm == "layernorm" and config.proj_bias else 1)
    n_norms = 2 * config.n_layers + (1 if config.norm_position == "pre" else 0)
    return ParameterCount(
        # ③ 查表与收尾：共用词表时 lm_head 不另算
        token_embedding=config.vocab_size * config.dim,
        position_embedding=config.max_seq_len * config.dim if config.position == "learned" else 0,
        previous_token=config.dim * (config.token_shift + (config.bigram_rows or 0)),
        attention=config.n_layers * attention,
        feed_forward=config.n_layers * feed_forward,
        norms=n_norms * per_norm,
        lm_head=0 if config.tie_embeddings else config.vocab_size * config.dim,
    )


def matmul_parameters(config: GPTConfig) -> int:
    """每个词元都要乘一遍的参数个数 N_matmul：块里的矩阵，加上输出词表（共用也要乘）。"""
    wide_q = config.n_heads * config.head_size  # W_Q 与 W_O 各 D·Hd
    wide_kv = config.kv_heads * config.head_size  # W_K 与 W_V 各 D·Gd
    n_matrices = 3 if config.gated_ffn else 2  # up、down，门控时再加 gate
    per_block = 2 * config.dim * (wide_q + wide_kv) + n_matrices * config.dim * config.ffn_size
    return config.n_layers * per_block + config.vocab_size * config.dim


def flops_per_token(config: GPTConfig, context: int | None = None, *, training: bool = True) -> int:
    """处理一个词元的浮点运算次数（FLOPs）。

    公式：训练 6·N_matmul + 12·L·H·d·T；前向取其三分之一。T 不超过滑动窗口
    """
    length = config.max_seq_len if context is None else check_int("context", context, 1)
    # QKᵀ：每个词元对 T 个键各做 d 次乘加；AV 同样多。因果掩码省下的一半通常不计
    if config.sliding_window is not None:
        length = min(length, config.sliding_window)
    scores = config.n_layers * config.n_heads * config.head_size * length  # L·H·d·T
    forward = 2 * matmul_parameters(config) + 4 * scores  # 一次乘加是 2 次运算
    return 3 * forward if training else forward


def kv_bytes_per_token(config: GPTConfig, bytes_per_value: int = 2) -> int:
    """KV 缓存里每个词元的字节数。

    公式：2·L·G·d·字节，2 是 K 与 V 各一份；少用键值头（G < H）就按比例省
    """
    return 2 * config.n_layers * config.kv_heads * config.head_size * bytes_per_value


@dataclass(frozen=True)
class MemoryEstimate:
    """一次训练或推理各部分占用的字节数。"""

    weights: int  # 权重；混合精度时含 16 位的拷贝
    gradients: int = 0  # 与权重同样多
    optimizer: int = 0  # Adam 的两份矩；Muon 的矩阵只有一份动量
    activations: int = 0  # 为反向留着的中间结果
    logits: int = 0  # 词表大时不可忽略
    working: int = 0  # 临时的：重算出来的一块、FSDP 凑齐的参数
    kv_cache: int = 0  # 只在生成时有

    @property
    def total(self) -> int:
        """各部分之和。"""
        return sum(asdict(self).values())

    def by_part(self) -> dict[str, int]:
        """部分名 → 字节，不列出为 0 的部分。"""
        return {part: number for part, number in asdict(self).items() if number}


def activation_values_per_token(config: GPTConfig, checkpointing: str = "none") -> int:
    """反向传播前，每个词元在所有块里留下多少个数（快路径，不存 T×T 的权重）。

    公式：每块约 4D + 2Hd + 2Gd + 2F，即两次归一化的输入与输出、q、k、v 与注意力的输出、
         前馈激活前后各一份；测试用 autograd 真正留下的张量核对，相差不到四分之一
         selective 每块少留拐弯之后的 F；block 每块只留输入的 D
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


def block_activations(config: GPTConfig) -> tuple[int, int]:
    """一个块、一个词元：（总要留的, selective 不留的）各多少个数。

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
) -> MemoryEstimate:
    """估计训练一步的内存峰值（字节），训练前就知道装不装得下；几个进程时是每个进程的。

    公式：权重、梯度、Adam 状态共 16 字节/参数；激活与 batch·T 成正比；
         logits 与它的梯度、log-softmax 各一份 float32，词表大时往往是最大的一块
    参数：checkpointing 见 recomputation.py；parallel、processes、optimizer 见 training/
    """
    check_int("batch_size", batch_size, 1)
    check_int("processes", processes, 1)
    check_choice("precision", precision, ("fp32", "bf16", "fp16"))
    check_choice("parallel", parallel, ("none", "ddp", "fsdp"))
    check_choice("optimizer", optimizer, ("adamw", "muon"))
    length = config.max_seq_len if seq_len is None else check_int("seq_len", seq_len, 1)
    n_parameters = count_parameters(config).total
    tokens = batch_size * length  # 激活只看词元总数，怎样分成行与列不要紧
    half = precision != "fp32"
    value_bytes = 2 if half else 4
    # Muon 的矩阵（块里的线性层）只有动量，别的仍是 Adam
    # 只是状态少了；更新那一刻另有几个矩阵大的中间结果，用完就放，不计
    n_states = ADAM_STATES * n_parameters
    n_states -= matrices_in_blocks(config) if optimizer == "muon" else 0
    # DDP 人手一份，一个字节也不少；FSDP 每个进程只拿一片，向下取整差的不到 W 个字节
    share = processes if parallel == "fsdp" else 1
    kept = activation_values_per_token(config, checkpointing) * value_bytes
    kept += stream_values_per_token(config, checkpointing) * (4 - value_bytes)
    return MemoryEstimate(
        # 混合精度保留 float32 的主权重，另留一份 16 位的拷贝用于计算
        weights=n_parameters * (6 if half else 4) // share,
        gradients=n_parameters * 4 // share,
        optimizer=n_states * 4 // share,
        activations=tokens * kept,
        # 三份：logits 本身、float32 的 log-softmax、它们的梯度
        logits=tokens * config.vocab_size * (value_bytes + 4 + 4),
        # 反向走到哪一块，哪一块才占；别的块的同样地方早已放掉
        working=tokens * recomputed_values(config, checkpointing) * value_bytes
        + (gathered_bytes(config) if share > 1 else 0),
    )


def matrices_in_blocks(config: GPTConfig) -> int:
    """块里所有线性层的权重的个数：参与矩阵乘法的，去掉输出词表。"""
    return matmul_parameters(config) - config.vocab_size * config.dim


def recomputed_values(config: GPTConfig, checkpointing: str) -> int:
    """反向走到一块时，临时算回来的每词元几个数；走过就放，所以只算一块。"""
    kept, recomputed = block_activations(config)
    return {"none": 0, "selective": recomputed, "block": kept + recomputed}[checkpointing]


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


# ── 总表：`fromzero models` 与 `python gpt_model/config.py` 打印的就是它 ──────────────


def human(number: float, unit: str = "") -> str:
    """把大数写短：1234567 → 1.23M。

    字节也按 1000 进位（MB 而非 MiB），与硬盘、显卡的标称一致
    """
    for suffix in ("", "k", "M", "G", "T"):
        if abs(number) < 999.5:
            return f"{number:.3g}{suffix}{unit}"
        number /= 1000
    return f"{number:.3g}P{unit}"


def preset_table() -> str:
    """全部预设一张表：参数、计算量、训练与运行的内存、KV 缓存，以及用途。

    返回文字而不直接打印：命令行、演示与文档的测试用的是同一份
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title="预设 presets（训练内存按 batch 8、float32、Adam；运行按 16 位权重）")
    for heading in ("名字", "层×宽×头", "上下文", "词表"):
        table.add_column(heading, no_wrap=True)
    for heading in ("参数", "其中查表", "训练FLOPs/词元", "训练内存", "运行内存", "KV/词元"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("用途")
    for name, config in PRESETS.items():
        count = count_parameters(config)
        table.add_row(
            name,
            f"{config.n_layers}×{config.dim}×{config.n_heads}",
            str(config.max_seq_len),
            str(config.vocab_size),
            f"{count.total:,}",
            f"{count.embedding / count.total:.0%}",
            human(flops_per_token(config)),
            human(training_memory(config, 8).total, "B"),
            human(inference_memory(config).total, "B"),
            human(kv_bytes_per_token(config), "B"),
            PRESET_PURPOSES[name],
        )
    # 宽度写死，管道里与窄终端里也不会被截断
    text = io.StringIO()
    Console(width=168, file=text, color_system=None).print(table)
    return text.getvalue()


def demo() -> None:
    """手算 gpt2 的一个块，再与公式对照。"""
    config = PRESETS["gpt2"]
    # 768² 是一个方阵；偏置与输出同宽
    attention, feed_forward = 4 * 768**2 + 4 * 768, 8 * 768**2 + 4 * 768 + 768
    count = count_parameters(config)
    # ① 参数：注意力四个 D×D 矩阵加四个偏置，前馈两个 D×4D 矩阵加两个偏置
    print("gpt2 的一个块，手算：")
    print(f"  注意力 4·768² + 4·768        = {attention:>10,}")
    print(f"  前馈   8·768² + 4·768 + 768  = {feed_forward:>10,}")
    assert count.attention == 12 * attention  # 公式与手算一致
    assert count.feed_forward == 12 * feed_forward
    # 词表 50257·768、位置 1024·768、二十五个归一化，都不难补上
    print(f"  十二块，加词表、位置、归一化  = {count.total:>10,}\n")
    assert count.total == 124_439_808

    # ② 计算：反向对输入、对权重各算一份梯度，是前向的两倍
    forward, train = (flops_per_token(config, 1024, training=flag) for flag in (False, True))
    assert train == 3 * forward
    print(f"每个词元：前向 {human(forward)}FLOPs，训练 {human(train)}FLOPs（三倍：反向算两份梯度）")
    print(f"一台每秒 100G 次的笔记本，训练 100 万词元要 {train * 1e6 / 100e9 / 60:.0f} 分钟\n")

    # ③ 内存：词表五万时，logits 比权重还大
    print("batch 8、上下文 1024 的训练内存：")
    memory = training_memory(config, 8)  # 默认 float32
    # 最大的一块该先动：减小 batch 或上下文，激活与 logits 同比例地少
    for part, number in memory.by_part().items():
        print(f"  {part:<12}{human(number, 'B'):>8}  {number / memory.total:5.0%}")
    smaller = training_memory(config, 1, 256, precision="bf16")
    assert smaller.total < memory.total / 4
    print(f"  合计 {human(memory.total, 'B')}")
    print(f"  改成 batch 1、上下文 256、bf16，只要 {human(smaller.total, 'B')}")


if __name__ == "__main__":
    run_demo(demo)
