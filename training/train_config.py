r"""一次训练由哪些数字决定？——全部写在一张单子上，检查过、冻结住、随检查点存下来。

训练循环里没有写死的数字：想知道一个模型是怎样练出来的，看这张单子就够了；
想再练一次，把它和数据再给一遍就行。

一步（step）是一次更新。它由 A 个微批次（micro-batch）的梯度合成，A 就是 grad_accumulation：

$$\text{每步的样本数} = B \times A, \qquad \text{每步的词元数} = B \times A \times T$$

    单子的三组              决定什么                     续训时改了会怎样
    ─ 算术与数据的次序      权重走哪条路                 拒绝：接上的已不是同一次训练
    ─ 看与存                什么时候评估、存、停         随便改：不影响权重
    ─ 机器                  设备                         警告：末几位会不同

第一组的名字列在 ARITHMETIC_FIELDS 里，续训时逐个比对（见 run_description.py）。

常见疑问：
    为什么 batch_size 可以是 None？  一批有多少行是 batches 说了算；写在这里只为核对与存档，
                                     写了而与实际不符，第 0 步就会报错。
    为什么没有 block_size？          长度是数据的事（一批的第二维）；循环不必知道。
    为什么要 frozen？                训练途中改超参数，存下来的单子就成了谎话。
    为什么默认值是这些？             3e-4、批 32、裁剪 1.0 是小模型的稳妥起点，不是最好的；
                                     最好的要靠试，先试学习率。

参考：超参数的取法 — Brown et al., *GPT-3*, arXiv:2005.14165 附录 B；
      Karpathy, *A Recipe for Training Neural Networks*, 2019。

改哪里：添一个超参数 → 加字段、在 __post_init__ 里检查；它若影响权重，名字也加进 ARITHMETIC_FIELDS。
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from foundation.checks import (
    check_bool,
    check_choice,
    check_float,
    check_int,
    unknown_key_message,
)
from foundation.demonstration import run_demo
from foundation.devices import PRECISIONS
from training.distributed import PARALLEL_KINDS
from training.optimizer import OPTIMIZERS
from training.schedule import SCHEDULES, learning_rate
from training.spike_watch import SPIKE_ACTIONS
from transformer_basics.recomputation import KINDS

__all__ = ["ARITHMETIC_FIELDS", "TrainConfig"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """训练的全部超参数（hyper-parameters）；建好就不再改，要改用 replace 另建一份。

    错误：任何一个值不合理 → ValueError，写明字段、给的值与允许的范围
    """

    # ── 走多远 ──────────────────────────────────────────────────────────
    steps: int = 1000  # 更新多少次
    batch_size: int | None = None  # 一个微批次有几行；None = 由 batches 决定
    grad_accumulation: int = 1  # 几个微批次合成一步；内存不够时减批次、加它；几个进程就大家分
    # ── 步子多大：见 schedule.py ────────────────────────────────────────
    learning_rate: float = 3e-4  # 最大的学习率
    min_lr_ratio: float = 0.1  # 末尾的学习率是最大的几成
    schedule: str = "cosine"  # cosine、wsd、constant
    warmup_steps: int | None = None  # None = 总步数的十分之一，至多 100
    decay_steps: int | None = None  # 只有 wsd 用；None = 总步数的五分之一
    # ── 怎样迈：见 optimizer.py ─────────────────────────────────────────
    optimizer: str = "adamw"  # 名字登记在 optimizer.py 的 OPTIMIZERS
    weight_decay: float = 0.1  # 只衰减矩阵，不衰减偏置与归一化
    betas: tuple[float, float] = (0.9, 0.95)  # 一阶矩、二阶矩的记性
    eps: float = 1e-8  # 免得除以 0
    muon_learning_rate: float | None = None  # 只有 muon 用；None = 与 learning_rate 相同
    muon_momentum: float = 0.95  # 只有 muon 用：动量记多久
    grad_clip: float | None = 1.0  # 梯度的总长度至多这么大；None = 不裁剪
    # ── 用什么算 ────────────────────────────────────────────────────────
    precision: str = "auto"  # auto、fp32、bf16、fp16（只在 CUDA 上），见 mixed_precision.py
    gradient_checkpointing: str = "none"  # selective、block：拿时间换内存，结果不变
    device: str = "auto"  # auto、cpu、cuda、cuda:1、mps
    parallel: str = "none"  # 几个进程怎样合：none、ddp、fsdp，见 sharding.py
    seed: int = 0  # dropout 等的随机数；数据的次序由 batches 自己的种子决定
    # ── 看与存：改这些不影响权重 ────────────────────────────────────────
    eval_every: int = 100  # 隔多少步评估一次
    eval_batches: int | None = None  # 评估用几批；None = 整个验证集
    save_every: int | None = None  # 隔多少步存一次；None = 与评估同步
    keep_last: int = 2  # 留最近几个检查点，至少 2：最新的可能坏；最好的那个总是留着
    sharded_checkpoints: bool = False  # 只有 fsdp：各进程写自己的一片，见 sharded_files.py
    patience: int | None = None  # 连续几次评估没有进步就停；None = 不提前停
    max_skipped_steps: int = 5  # 连续几步出现 NaN 就停
    # ── 出了岔子：跳高见 spike_watch.py，确定模式见 determinism.py ──────
    spike_action: str = "log"  # off、log（说一句）、skip（这一步不更新）
    spike_factor: float = 10.0  # 比平常高出几个「标准差」算跳高
    spike_window: int = 64  # 平常 = 最近几步
    deterministic: bool = False  # 只用确定的算子：GPU 上也逐比特可重现，慢一些
    # ── 调试 ────────────────────────────────────────────────────────────
    overfit_one_batch: bool = False  # 每步都用同一批：背不下来，就是哪里写错了

    def __post_init__(self) -> None:
        """逐项检查；给错的数在这里就拦下，而不是练了一小时之后。"""
        self._check_sizes()
        # ① 学习率等：NaN 与无穷大也在此拦下；写成 1e999 的会变成无穷大
        check_float("learning_rate", self.learning_rate, exclusive_minimum=0)
        check_float("min_lr_ratio", self.min_lr_ratio, 0, 1)
        check_float("weight_decay", self.weight_decay, 0)
        check_float("eps", self.eps, exclusive_minimum=0)
        check_float("muon_momentum", self.muon_momentum, 0, exclusive_maximum=1)
        if self.muon_learning_rate is not None:
            check_float("muon_learning_rate", self.muon_learning_rate, exclusive_minimum=0)
        if self.grad_clip is not None:
            check_float("grad_clip", self.grad_clip, exclusive_minimum=0)
        check_float("spike_factor", self.spike_factor, exclusive_minimum=0)
        # ② 名字：写错了给出最像的
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("parallel", self.parallel, PARALLEL_KINDS)
        # Muon 要对整个矩阵正交化，FSDP 的每个进程只有几行
        if self.parallel == "fsdp" and self.optimizer == "muon":
            raise ValueError(
                "optimizer 'muon' needs whole matrices, parallel 'fsdp' splits them; "
                "choose parallel 'ddp' or optimizer 'adamw'"
            )
        if check_bool("sharded_checkpoints", self.sharded_checkpoints) and self.parallel != "fsdp":
            raise ValueError(
                "sharded_checkpoints is for parallel 'fsdp', where each process holds a part; "
                f"parallel is {self.parallel!r}"
            )
        check_choice("gradient_checkpointing", self.gradient_checkpointing, KINDS)
        check_choice("spike_action", self.spike_action, SPIKE_ACTIONS)
        if not isinstance(self.device, str):
            raise ValueError(f"device must be a name such as 'auto' or 'cpu', got {self.device!r}")
        # ③ 从 JSON 读来的是列表，统一成元组，比较时才相等
        betas = tuple(self.betas) if isinstance(self.betas, (list, tuple)) else ()
        if len(betas) != 2:
            raise ValueError(f"betas must be two numbers such as (0.9, 0.95), got {self.betas!r}")
        for name, beta in zip(("betas[0]", "betas[1]"), betas, strict=True):
            check_float(name, beta, 0, exclusive_maximum=1)
        object.__setattr__(self, "betas", betas)  # frozen 的类只能这样改
        check_bool("overfit_one_batch", self.overfit_one_batch)
        check_bool("deterministic", self.deterministic)
        # ④ 预热、衰减、总步数要放得下：真的算一次学习率，由 schedule.py 检查
        self.learning_rate_at(0)

    def _check_sizes(self) -> None:
        """各种个数：整数，至少是 1（或 0）；可以不给的，None 就跳过。"""
        for name in ("steps", "grad_accumulation", "eval_every", "max_skipped_steps"):
            check_int(name, getattr(self, name), 1)
        # 只留一个，它坏了就什么也没有了；几个数的中位数说明不了平常
        check_int("keep_last", self.keep_last, 2)
        check_int("spike_window", self.spike_window, 8)
        for name in ("batch_size", "eval_batches", "save_every", "patience"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), 1)
        for name in ("warmup_steps", "decay_steps"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), 0)
        # torch 的随机数发生器收 64 位的种子
        check_int("seed", self.seed, 0, 2**63 - 1)

    @property
    def warmup(self) -> int:
        """真正用的预热步数：没有给就按总步数推，短的训练也就少预热。"""
        return min(100, self.steps // 10) if self.warmup_steps is None else self.warmup_steps

    @property
    def decay(self) -> int:
        """真正用的衰减步数，只有 WSD 用得着。"""
        return self.steps // 5 if self.decay_steps is None else self.decay_steps

    @property
    def saving_interval(self) -> int:
        """真正用的存档间隔；跟着评估存，存档里就有当时的验证损失。"""
        return self.eval_every if self.save_every is None else self.save_every

    def learning_rate_at(self, step: int) -> float:
        """第 step 次更新（从 0 数起）的学习率。

        公式：见 schedule.py；只由单子与 step 决定，续训时不必另存什么
        """
        return learning_rate(
            step,
            kind=self.schedule,
            max_lr=self.learning_rate,
            min_lr=self.learning_rate * self.min_lr_ratio,
            warmup_steps=self.warmup,
            total_steps=self.steps,
            decay_steps=self.decay,
        )

    def replace(self, **changes: Any) -> TrainConfig:
        """改几个字段，得到新的一份；名字写错会指出最像的。"""
        # dataclasses.replace 会重新检查每一项：改出来的也不会是坏的
        _refuse_unknown(changes, "TrainConfig")
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """变成可以写进 JSON 的字典。

        约定：存的是写下的值，None 仍是 None；推出来的不存，读回来再推一次就是了
        类型：JSON 没有元组，betas 写成列表；from_dict 会变回来
        """
        return {**asdict(self), "betas": list(self.betas)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "the configuration") -> TrainConfig:
        """从字典建；不认识的键不会悄悄丢掉。

        错误：不认识的键（给出最像的）、不合理的值 → ValueError
        """
        _refuse_unknown(values, where)
        return cls(**values)


# 改了其中任何一个，权重就会走上另一条路：续训时必须与检查点一致
ARITHMETIC_FIELDS = (
    *("steps", "batch_size", "grad_accumulation", "learning_rate", "min_lr_ratio", "schedule"),
    *("warmup_steps", "decay_steps", "optimizer", "weight_decay", "betas", "eps", "grad_clip"),
    *("muon_learning_rate", "muon_momentum"),
    *("precision", "seed", "overfit_one_batch"),
)


def _refuse_unknown(values: Mapping[str, Any], where: str) -> None:
    """拼错的字段名若被悄悄忽略，练出来的就不是想要的那个模型。"""
    allowed = [field.name for field in fields(TrainConfig)]
    for key in values:
        if key not in allowed:
            raise ValueError(unknown_key_message(key, allowed, where))


def demo() -> None:
    """一张单子，看它推出什么、拒绝什么、怎样存取。"""
    config = TrainConfig(steps=500, learning_rate=1e-3, batch_size=8, grad_accumulation=4)
    print("① 没有给的由别的推出来")
    print(f"   steps = {config.steps} → 预热 {config.warmup} 步，每 {config.saving_interval} 步存")
    print(f"   每步的样本数 B × A = {config.batch_size} × {config.grad_accumulation} = 32")
    for step in (0, config.warmup, 250, config.steps - 1):
        print(f"   第 {step:3d} 次更新的学习率 {config.learning_rate_at(step):.2e}")
    assert config.learning_rate_at(config.warmup) == 1e-3
    assert abs(config.learning_rate_at(499) - 1e-4) < 1e-12

    print("② 存成 JSON 的字典，读回来还是它")
    assert TrainConfig.from_dict(config.to_dict()) == config
    print(f"   {len(config.to_dict())} 个字段，其中 {len(ARITHMETIC_FIELDS)} 个影响权重")
    assert {field.name for field in fields(config)} >= set(ARITHMETIC_FIELDS)

    print("③ 错的当场拒绝，并说清给了什么、允许什么")
    wrong: tuple[dict[str, Any], ...] = (
        {"learning_rate": float("nan")},
        {"grad_accumulation": 0},
        {"overfit_one_batch": 1},  # 1 不是 True：多半是想写别的
        {"schedule": "cosin"},
        {"warmup_step": 10},  # 少一个 s
        {"steps": 10, "warmup_steps": 10},
    )
    for changes in wrong:
        try:
            TrainConfig().replace(**changes)
        except ValueError as error:
            print(f"   {str(error)[:96]}")
        else:
            raise AssertionError(f"{changes} must be refused")


if __name__ == "__main__":
    run_demo(demo)
