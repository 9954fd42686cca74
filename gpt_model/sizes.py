r"""一个 GPT 有多少参数、要算多少次？不必建出来，先在纸上算清楚。

记 D = dim，L = n_layers，H 个查询头，G 个键值头，每头 d 维，前馈宽 F，词表 V，上下文 T。

参数（一个块，不计偏置与归一化）：

    注意力  W_Q: D·Hd   W_K, W_V: 2·D·Gd   W_O: Hd·D      通常 Hd = Gd = D  →  4D²
    前馈    W_up: D·F   W_down: F·D   (W_gate: D·F)        通常 F = 4D       →  8D²

计算（floating-point operations，一次乘加算 2）：每个参与矩阵乘法的参数，对每个词元乘加一次，
前向 2 次运算；反向要算对输入与对权重两份梯度，再加 4 次。注意力的 QKᵀ 与 AV 另算：

    前向     2·N_matmul +  4·L·Hd·T
    训练     6·N_matmul + 12·L·Hd·T        （PaLM 论文附录 B 的记法）

N_matmul 不含查表的词向量，但含输出词表：查表不是乘法，lm_head 是。

KV 缓存：每个词元留下 K 与 V，共 2·L·G·d 个数。

训练与生成占多少内存另有一课：memory.py。

论文：Kaplan et al. 2020, arXiv:2001.08361（6N）；PaLM, arXiv:2204.02311。

改哪里：配置多了一种带参数的零件 → count_parameters 里加一项（测试会与真正建出的模型逐项核对）。
"""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass

from foundation.checks import check_int
from foundation.demonstration import run_demo
from gpt_model.config import PRESET_PURPOSES, PRESETS, GPTConfig

__all__ = [
    "ParameterCount",
    "count_parameters",
    "flops_per_token",
    "kv_bytes_per_token",
    "preset_table",
]


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
    #    Post-LN 的块以归一化收尾，最后不再需要
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
    # 偏置、归一化只做加法与逐元素的乘法，运算次数可以不计
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
    # 乘法里 H·d 是各个头合起来的宽度，与 D 不必相等
    scores = config.n_layers * config.n_heads * config.head_size * length  # L·H·d·T
    forward = 2 * matmul_parameters(config) + 4 * scores  # 一次乘加是 2 次运算
    return 3 * forward if training else forward


def kv_bytes_per_token(config: GPTConfig, bytes_per_value: int = 2) -> int:
    """KV 缓存里每个词元的字节数。

    公式：2·L·G·d·字节，2 是 K 与 V 各一份；少用键值头（G < H）就按比例省
    """
    # 查询不必留：以后的词元只看以前的键与值
    return 2 * config.n_layers * config.kv_heads * config.head_size * bytes_per_value


# ── 总表：`fromzero models` 与 `python gpt_model/config.py` 打印的就是它 ──────────────


def human(number: float, unit: str = "") -> str:
    """把大数写短：1234567 → 1.23M。

    字节也按 1000 进位（MB 而非 MiB），与硬盘、显卡的标称一致
    """
    # 999.5 起进位：四舍五入到三位有效数字之后，不会印出 1e+03
    for suffix in ("", "k", "M", "G", "T", "P"):
        if abs(number) < 999.5:
            return f"{number:.3g}{suffix}{unit}"
        number /= 1000
    return f"{number:.3g}E{unit}"


def preset_table() -> str:
    """全部预设一张表：参数、计算量、训练与运行的内存、KV 缓存，以及用途。

    返回文字而不直接打印：命令行、演示与文档的测试用的是同一份
    """
    from rich.console import Console
    from rich.table import Table

    from gpt_model.memory import inference_memory, training_memory  # 那一课要用本课

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
    # 一行一个预设；列的次序与表头相同
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
    # 百万个词元不过几兆文字；真的语料要乘上几千，所以要用 GPU
    print(f"一台每秒 100G 次的笔记本，训练 100 万词元要 {train * 1e6 / 100e9 / 60:.0f} 分钟\n")


if __name__ == "__main__":
    run_demo(demo)
