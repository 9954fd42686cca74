r"""还没花钱，怎么知道要多少卡、几天、多少钱、练得多好？——四个数都算得出来，先算再租。

    配置 N、L、D ─┬─▶ 一块 GPU 上的内存   最挤的那一刻，与显存比           gpt_model/memory.py
    练法 B、T、W ─┤
    词元数 D ─────┼─▶ 时间 ─▶ 花费        计算量 ÷ 真正的速度              本课
                  └─▶ 练完的损失          缩放定律                          scaling_law.py

时间：D 个词元，每个要 c 次浮点运算（训练，见 sizes.py），重算的再加 r 次；W 块 GPU，每块的
标称是 P 次/秒，真正用上的只有几成 η（利用率）：

$$t = \frac{D\,(c + r)}{W\,P\,\eta}, \qquad
  \text{花费} = W \cdot t \cdot \text{每卡时的价钱}, \qquad
  \mathrm{MFU} = \eta\,\frac{c}{c + r}$$

MFU（model FLOPs utilization）只数模型本来要的 c，重算的 r 是为省内存多做的，不算功劳。

重算多做多少？常说「多一次前向，三分之四倍」，那是上限。PyTorch 的重算够用就停（early stop）：

    none        r = 0
    selective   r = 4·L·Hd·T                      注意力里的 QKᵀ 与 AV；激活是逐元素的，不计
    block       r = 2·(N_块 − N_down) + 4·L·Hd·T  块的前向，去掉最后的 down_proj：
                                                  反向要的是它的输入，不是它的输出；
                                                  输出词表在块外，也不重算

（N_块 是块里的矩阵的参数，N_down 是其中 down_proj 的。测试用 torch 的计数器数真正的一步来核对。）

常见疑问：
    η 取多少？        不算在内的有读数据、评估、存档、失败重来，以及通信，都只能从 η 里扣，
                      所以取实测的，不要取 1。默认的是假设，不是承诺：先短短地练一段，
                      词元/秒 × c ÷ P 就是自己的 MFU。
    GPU 加倍，时间减半？ 公式里是；真的做不到：卡越多，通信占的越多，η 就越小。花费因此不是不变，
                      而是变大。跨机器时尤其如此，按每台的实测另估。
    批大小影响时间吗？ 公式里不影响；但批太小时矩阵乘法喂不饱，η 会掉下来。
    80GB 是多少？      厂商的 GB 是 1000³；驱动与框架自己还要占一两个 GB，所以留两成余地。
    损失能信几分？     形状与量级能信，小数点后第二位不能：语料与分词器都不是他们的，
                      见 scaling_law.py。数据重复几遍，也不当新的算。

装不下怎么办？memory_advice.py 一种种改、一次次代回公式，只有装得下的才说出来；这里再添两样
训练前才能选的：多租几块，换小一号的模型。

论文：计算量与 MFU — Chowdhery et al., *PaLM*, arXiv:2204.02311 附录 B；
      重算 — Korthikanti et al., arXiv:2205.05198；损失 — arXiv:2203.15556、arXiv:2404.10102。

改哪里：添一种 GPU → GPUS；另有更好的损失公式 → scaling_law.py 的 LAWS；
        算上通信（每步 2×4 字节 × 参数 ÷ 带宽）→ RunPlan.seconds；先建议什么 → memory_advice.py。
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from foundation.checks import check_choice, check_float, check_int
from foundation.demonstration import run_demo
from gpt_model.config import PRESETS, GPTConfig, preset
from gpt_model.memory import MemoryEstimate
from gpt_model.sizes import (
    count_parameters,
    flops_per_token,
    human,
    matmul_parameters,
)
from training.distributed import PARALLEL_KINDS
from training.memory_advice import WARN_SHARE, Plan, estimate_memory, memory_needed, suggest_changes
from training.optimizer import OPTIMIZERS
from training.scaling_law import LAWS, ScalingLaw
from transformer_basics.recomputation import KINDS

__all__ = ["GPUS", "Gpu", "RunPlan", "recomputed_flops_per_token"]


@dataclass(frozen=True)
class Gpu:
    """一种 GPU 的标称：显存，以及两种精度下每秒多少次运算。"""

    memory: int  # 字节
    bf16: float  # 次/秒，稠密：不算 2:4 稀疏的那一倍，累加在 float32 里
    fp32: float  # 次/秒，普通的 float32：不是 TF32

    def peak(self, precision: str) -> float:
        """这种精度下的标称 P；fp16 与 bf16 一样快。"""
        return self.fp32 if precision == "fp32" else self.bf16


# 厂商公布的数，单位是 T = 10¹² 次/秒；「稠密」要紧：宣传页上常是稀疏的，大一倍
GPUS = {
    # NVIDIA A100 80GB SXM datasheet：BF16 312（稀疏 624），FP32 19.5
    "a100": Gpu(80 * 10**9, 312e12, 19.5e12),
    # NVIDIA H100 SXM datasheet：BF16 1979 是稀疏的，折半；FP32 67
    "h100": Gpu(80 * 10**9, 989e12, 67e12),
    # NVIDIA H200 SXM datasheet：算力与 H100 SXM 相同，显存 141 GB
    "h200": Gpu(141 * 10**9, 989e12, 67e12),
    # NVIDIA L40S datasheet：BF16 362（稀疏 733），FP32 91.6
    "l40s": Gpu(48 * 10**9, 362e12, 91.6e12),
    # NVIDIA L4 datasheet：BF16 242 是稀疏的，折半；FP32 30.3
    "l4": Gpu(24 * 10**9, 121e12, 30.3e12),
    # NVIDIA Ada GPU architecture whitepaper，附录：FP32 累加时 165.2，FP32 82.6
    "rtx4090": Gpu(24 * 10**9, 165.2e12, 82.6e12),
    # NVIDIA Ampere GA102 whitepaper，附录：FP32 累加时 71，FP32 35.6
    "rtx3090": Gpu(24 * 10**9, 71e12, 35.6e12),
}


def recomputed_flops_per_token(config: GPTConfig, context: int, checkpointing: str) -> int:
    """重算时，每个词元在反向里多做的运算次数 r。

    公式：见本课开头；flash 与 fast 的注意力是一整个核，两个乘法都要重做
    """
    check_choice("checkpointing", checkpointing, KINDS)
    if checkpointing == "none":
        return 0
    # ① 注意力的两个乘法：整个前向减去 2·N_matmul，剩下的就是它（滑动窗口也已算进去）
    forward = flops_per_token(config, context, training=False)
    scores = forward - 2 * matmul_parameters(config)  # 4·L·Hd·T
    if checkpointing == "selective":
        return scores
    # ② 块里的矩阵：N_matmul 去掉输出词表，再去掉每块最后的 down_proj：
    #    求它的权重的梯度要它的输入，输入一凑齐，重算就停了
    inside = matmul_parameters(config) - config.vocab_size * config.dim
    last = config.n_layers * config.ffn_size * config.dim
    return 2 * (inside - last) + scores


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """一次还没开始的训练：什么模型、怎样练、在什么 GPU 上、练多少词元。

    约定：冻结的；换一种练法用 replace，各个数都随之重算，没有一个是存下来的
    约定：不建模型、不碰 GPU：没有 GPU 的笔记本上也能替一千块 GPU 算账
    错误：任何一项不合理 → ValueError，写明是哪一项、给的值与允许的范围
    """

    config: GPTConfig
    plan: Plan  # 批、长度、精度、重算、几块 GPU：与内存有关的都在这里
    tokens: int  # 一共练几个词元
    gpu_memory: int  # 每块 GPU 的显存（字节）
    flops_per_second: float  # P：每块 GPU 标称每秒几次
    efficiency: float = 0.4  # η：真正用上几成
    price_per_hour: float | None = None  # 每块 GPU 每小时的价钱；单位随你

    def __post_init__(self) -> None:
        """逐项检查；互相矛盾的也在这里拦下。"""
        plan = self.plan
        # ① 个数与名字；一块 GPU 一个进程，报错时按命令行的叫法说 gpus
        check_int("batch_size", plan.batch_size, 1)
        check_int("gpus", plan.processes, 1)
        check_int("grad_accumulation", plan.grad_accumulation, 1)
        check_int("seq_len", plan.seq_len, 1, self.config.max_seq_len)
        check_choice("precision", plan.precision, ("fp32", "bf16", "fp16"))
        check_choice("checkpointing", plan.checkpointing, KINDS)
        check_choice("parallel", plan.parallel, PARALLEL_KINDS)
        check_choice("optimizer", plan.optimizer, OPTIMIZERS)
        # ② 几块 GPU 分几个微批次，要分得匀，否则有人在等（见 distributed.py）；
        #    不合梯度，就是几次各不相干的训练
        if plan.grad_accumulation % plan.processes:
            raise ValueError(
                f"grad_accumulation must be a multiple of the {plan.processes} gpus, which share "
                f"it, got {plan.grad_accumulation}"
            )
        if plan.processes > 1 and plan.parallel == "none":
            raise ValueError(f"parallel must be ddp or fsdp with {plan.processes} gpus, got 'none'")
        #    与 train_config.py 的规矩相同
        if plan.parallel == "fsdp" and plan.optimizer == "muon":
            raise ValueError("optimizer 'muon' needs whole matrices, parallel 'fsdp' splits them")
        # ③ 词元、显存、速度、价钱
        check_int("tokens", self.tokens, 1)
        check_int("gpu_memory", self.gpu_memory, 1)
        check_float("flops_per_second", self.flops_per_second, exclusive_minimum=0)
        check_float("efficiency", self.efficiency, maximum=1, exclusive_minimum=0)
        if self.price_per_hour is not None:
            check_float("price_per_hour", self.price_per_hour, 0)

    # ── 内存 ────────────────────────────────────────────────────────────

    @property
    def memory(self) -> MemoryEstimate:
        """一块 GPU 上各部分的字节。"""
        return estimate_memory(self.config, self.plan)

    @property
    def verdict(self) -> str:
        """装得下（fits）、有点紧（tight）、装不下（does not fit）。"""
        # 比的是峰值：一步里最挤的那一刻
        share = self.memory.total / self.gpu_memory
        # 分配器的碎片没有算，所以留两成余地；分界与 memory_advice.py 相同
        return "fits" if share <= WARN_SHARE else ("tight" if share <= 1 else "does not fit")

    # ── 时间与花费 ──────────────────────────────────────────────────────

    @property
    def tokens_per_step(self) -> int:
        """一次更新看几个词元：B·A·T。"""
        # 全体 A 个微批次，每个 B 行、每行 T 个；几块 GPU 分着算，总数不变
        plan = self.plan
        return plan.batch_size * plan.grad_accumulation * plan.seq_len

    @property
    def steps(self) -> int:
        """更新多少次；末尾不足一步的也算一步。"""
        return -(-self.tokens // self.tokens_per_step)

    @property
    def flops(self) -> float:
        """全程的运算次数，重算的也在内：D·(c + r)。

        约定：按整条序列算；批怎样分、累积几次，次数都一样
        """
        length = self.plan.seq_len
        again = recomputed_flops_per_token(self.config, length, self.plan.checkpointing)
        return float(self.tokens * (flops_per_token(self.config, length) + again))

    @property
    def seconds(self) -> float:
        """从头到尾几秒。

        公式：t = D·(c + r) / (W·P·η)
        """
        return self.flops / (self.plan.processes * self.flops_per_second * self.efficiency)

    @property
    def mfu(self) -> float:
        """模型本来要的运算占标称的几成：η·c/(c + r)；与别人的数比，比的是它。"""
        # 重算把分母变大：省下了内存，功劳却变小了
        wanted = self.tokens * flops_per_token(self.config, self.plan.seq_len)
        return self.efficiency * wanted / self.flops

    @property
    def gpu_hours(self) -> float:
        """卡时：几块 × 几小时；租卡按它算钱，与用几块无关（η 不变时）。"""
        return self.plan.processes * self.seconds / 3600

    @property
    def cost(self) -> float | None:
        """花费；没有给价钱就是 None。"""
        return None if self.price_per_hour is None else self.gpu_hours * self.price_per_hour

    # ── 练完大约多好 ────────────────────────────────────────────────────

    def expected_loss(self, law: ScalingLaw) -> float:
        """按这条定律，练完的损失（nats/词元）；N 取全部参数，与论文相同。"""
        return law.loss(count_parameters(self.config).total, self.tokens)

    def best_split(self, law: ScalingLaw) -> tuple[float, float]:
        """同样的 6·N·D，参数与词元怎样分损失最低：(N*, D*)。

        约定：用论文的近似 6·N·D 而不是精确的 c：那些常数就是这样拟合出来的
        """
        return law.optimal(6.0 * count_parameters(self.config).total * self.tokens)

    # ── 别的练法 ────────────────────────────────────────────────────────

    def alternatives(self) -> list[RunPlan]:
        """三种重算 × 两种合法，其余不变：一张表看清内存与时间怎样互换。"""
        # 一块 GPU 没有什么可分的；几块的，两种合法各三行
        kinds = [self.plan.parallel] if self.plan.processes == 1 else ["ddp", "fsdp"]
        if self.plan.optimizer == "muon":
            kinds = [kind for kind in kinds if kind != "fsdp"]  # Muon 要整个矩阵
        return [
            replace(self, plan=replace(self.plan, checkpointing=checkpointing, parallel=parallel))
            for parallel in kinds
            for checkpointing in KINDS
        ]

    def advice(self) -> list[RunPlan]:
        """装得下的改法，代价小的在前；先按留两成余地的找，一个也没有才按刚好装下的找。

        返回：一个也没有就是空的；最后一个可能是换了模型的（config 不同）
        """
        # 照改法做了却又收到「有点紧」，就白改了
        for room in (WARN_SHARE * self.gpu_memory, float(self.gpu_memory)):
            found = suggest_changes(self.config, self.plan, room, more_processes=True)
            runs = [replace(self, plan=plan) for plan, _ in found]
            # 换模型是另一回事：练法不动，练出来的却不是同一个东西，所以放在最后
            smaller = self._largest_preset_within(room)
            runs += [] if smaller is None else [replace(self, config=smaller)]
            if runs:
                return runs
        return []

    def _largest_preset_within(self, room: float) -> GPTConfig | None:
        """比现在小、词表与长度都合用、照现在的练法装得下的预设里，最大的一个。"""
        # 预设只看、不改：照着 --model 的名字就能再算一遍，得到同样的数
        now = count_parameters(self.config).total
        found = [
            (count_parameters(config).total, name)
            for name, config in PRESETS.items()
            if count_parameters(config).total < now
            and config.vocab_size == self.config.vocab_size  # 换词表就要换分词器、换数据
            and config.max_seq_len >= self.plan.seq_len
            and memory_needed(config, self.plan) <= room
        ]
        return preset(max(found)[1]) if found else None


def demo() -> None:
    """gpt2-xl 在八块 A100 上练一百亿词元：装得下吗、几天、多好；一块 3090 上呢？"""
    # 全是公式：这一页从头到尾不建一个张量
    config, gpu = preset("gpt2-xl"), GPUS["a100"]
    plan = Plan(8, 8, 1024, "bf16", parallel="ddp", processes=8)
    run = RunPlan(
        config=config,
        plan=plan,
        tokens=10**10,
        gpu_memory=gpu.memory,
        flops_per_second=gpu.bf16,
        price_per_hour=2.0,
    )
    print("① gpt2-xl，八块 A100 80GB，每块批 8、长 1024、bf16，练 100 亿词元")
    for part, size in run.memory.by_part().items():
        print(f"   {part:<12}{human(size, 'B'):>8}  " + "█" * round(40 * size / run.memory.total))
    # 与 RTX 4090 的 24 GB、A100 的 80 GB 比一比，就知道该租哪一种
    print(f"   一块上共 {human(run.memory.total, 'B')}：{run.verdict}")

    # 重算省的是激活，分片省的是权重、梯度、优化器：各管一头，可以同时用
    print("② 重算与分片：内存与时间互换")
    for other in run.alternatives():
        told = f"{other.plan.parallel:<5}{other.plan.checkpointing:<10}"
        hours = other.seconds / 3600
        print(f"   {told}{human(other.memory.total, 'B'):>7}  {hours:5.1f} 小时  {other.verdict}")
        # 重算的上限是多一次前向：4/3
        assert run.seconds <= other.seconds < 4 / 3 * run.seconds

    # 六倍参数乘词元的近似也差不多：6 × 1.56e9 × 1e10 = 0.93e20，差的是注意力的打分
    assert 0.85 < 6 * 1.5576e9 * 1e10 / run.flops < 1
    print("③ 时间、花费、损失")
    assert run.cost is not None
    print(f"   {run.flops:.2e} 次 ÷ (8 × 312T × 0.4) = {run.seconds / 3600:.1f} 小时", end="")
    print(f"，{run.gpu_hours:.0f} 卡时，每卡时 2 元就是 {run.cost:.0f} 元")
    for name, law in LAWS.items():
        n, d = run.best_split(law)
        print(f"   {name:<12}损失约 {run.expected_loss(law):.2f}，", end="")
        print(f"同样的算力最好练 {human(n)} 参数、{human(d)} 词元：{law.loss(n, d):.2f}")
        assert law.loss(n, d) <= run.expected_loss(law)

    print("④ 换成一块 24 GB 的卡：装不下，能改什么？每一种都代回公式算过")
    small = replace(run, plan=replace(plan, processes=1, parallel="none"), gpu_memory=24 * 10**9)
    assert small.verdict == "does not fit"
    for advised in small.advice():
        # 换模型的那一种，练法没变；两块 GPU 的卡时相同，时间减半
        words = advised.plan.changes_from(small.plan) or f"换成 {advised.config.n_layers} 层的"
        print(f"   {words}：{human(advised.memory.total, 'B')}，{advised.seconds / 3600:.0f} 小时")
        assert advised.verdict == "fits"


if __name__ == "__main__":
    run_demo(demo)
