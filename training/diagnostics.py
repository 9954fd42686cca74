r"""损失不降，先看哪里？——看一批、看梯度、看注意力、先背下一批；不对劲时，自己会说。

调试模型与调试程序不同：写错了也不崩溃，只是学得差。所以要有几样东西，一眼就能看出毛病：

    看什么                           看出什么
    look_at_batch      解码一批       编号对不对得上文字、目标有没有错开一位（data_check.py）
    gradient_norms     每层的梯度     全是 0（断了）、比别的大几百倍（要炸）、NaN（坏在哪层）
    attention_row_sums 注意力每行之和 不是 1 的那一层，掩码或 softmax 写错了
    LossWatch          损失的走势     走了很久还没降：给出该试的几件事
    overfit_one_batch  背下一批       背不下来，就是代码错了；背得下来，再去看数据与超参数

刚初始化的模型什么也不知道，给每个词元的概率差不多，损失应当在

$$L_0 \approx \log V, \qquad V \text{ 是词表大小}$$

远高于它，说明模型一上来就很「自信」却全是错的：初始化太大，或目标与输入对不上。

损失的走势看窗口的平均，不看单步：单步抖得厉害。窗口不收 NaN：收了一个，平均就永远是 NaN。

    窗口 0          窗口 1          窗口 2
    ├─ 平均 4.61 ─┤ ├─ 平均 4.60 ─┤ ├─ 平均 4.62 ─┤ ─▶ 一直没有比开头低百分之一：说

梯度看每个参数的长度，按层合起来；断了的地方一目了然：

    损失 ◀── 块 1 ◀── 块 0 ◀── 词向量        反向从左往右传
              │        │
              ├ 前馈    ├ 前馈                 前馈有、注意力是 0：那一支断了
              └ 注意力  └ 注意力                往右全是 0：主路断了

先后有讲究：先看数据（最便宜，错得最多），再背下一批（排除代码错误），然后才调学习率。

论文：Karpathy, *A Recipe for Training Neural Networks*, 2019；梯度消失与爆炸 — Pascanu et al.,
      arXiv:1211.5063。

改哪里：多看一样东西 → 写一个函数，在 DiagnosticsHook 里调用；提醒的话 → ADVICE；
        看数据 → data_check.py；内存够不够 → memory_advice.py。
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foundation.demonstration import run_demo
from gpt_model.config import GPTConfig
from tokenization.tokenizer import Tokenizer
from training.batch import Batch
from training.data_check import check_data, look_at_batch
from training.hook_base import Hook, StepReport, TrainResult
from training.memory_advice import check_memory

if TYPE_CHECKING:
    from training.trainer import Trainer

__all__ = [
    "DiagnosticsHook",
    "LossWatch",
    "attention_row_sums",
    "check_data",
    "gradient_norms",
    "gradient_table",
    "look_at_batch",
]

# 按先后：先改最省事的，再去找错；括号里的名字可以照着去查
ADVICE = (
    "try a learning rate between 1e-4 and 1e-3 (now {rate:g}); look at a batch (look_at_batch); "
    "look at the gradient norm of each layer (GradientNormHook); learn one batch by heart first "
    "(overfit_one_batch)"
)


# ── 看梯度 ──────────────────────────────────────────────────────────────────────────


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """每个要训练的参数，它的梯度有多长；没有梯度的算 0。

    公式：‖g‖ = √Σg²，逐个参数
    约定：冻结的参数不列；NaN 原样留着，正好看出坏在哪里
    """
    # 0 与「没有梯度」不分：对权重来说都是不动
    return {
        name: 0.0 if parameter.grad is None else float(parameter.grad.norm())
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def gradient_table(model: nn.Module) -> str:
    """按层合起来的一张表，附一条长短；0、NaN、特别长的标出来。

    形状：每层一行：名字、长度、以最长的一层为满格的条
    公式：一层的长度 = √(层内各参数长度的平方和)；特别长 = 超过各层中位数的一百倍
    """
    # ① 合并：一层里任何一个不是有限数，整层就不是，盖不住
    layers: dict[str, float] = {}  # 层名 → 长度
    for name, norm in gradient_norms(model).items():
        # blocks.3.attention.q_proj.weight → blocks.3.attention；太细了反而看不出
        layer = ".".join(name.split(".")[:3]) if name.count(".") > 2 else name
        layers[layer] = math.hypot(layers.get(layer, 0.0), norm)
    # ② 拿什么比：中位数不会被那一个特别长的带偏，平均会
    finite = sorted(value for value in layers.values() if math.isfinite(value))
    middle, longest = (finite[len(finite) // 2], finite[-1]) if finite else (0.0, 0.0)
    width = max((len(layer) for layer in layers), default=0)
    # ③ 一层一行；全是 0 时没有最长的，条就空着
    lines = []
    for layer, value in layers.items():  # 次序与模型里的相同：从输入到输出
        bar = "█" * round(20 * value / longest) if math.isfinite(value) and longest else ""
        note = "  ← zero" if value == 0 else ""
        if not math.isfinite(value):
            note = "  ← not finite"
        elif middle and value > 100 * middle:
            note = "  ← 100 times the median"
        lines.append(f"{layer:<{width}} {value:9.2e} {bar}{note}")
    return "\n".join(lines)


# ── 看注意力 ────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def attention_row_sums(model: nn.Module, *inputs: Any, **options: Any) -> dict[str, float]:
    """每个注意力模块，权重各行之和离 1 最远差多少。

    公式：误差 = max_{b,h,t} |Σ_s A[b,h,t,s] − 1|；softmax 的每一行都该恰好是 1
    做法：前向时截下每个注意力模块收到的参数，再让它照同样的参数把权重算出来
    认得的：有 attention_weights 方法的模块（CausalSelfAttention）；它返回 (B, H, T, S)
    """
    errors: dict[str, float] = {}  # 模块名 → 误差
    handles, was_training = [], model.training

    def watch(name: str) -> Any:
        """给名为 name 的模块做一个「看一眼」：多包一层，各记各的名字。"""

        def look(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            # 缓存不给：看一眼就会把它弄脏
            wanted = {key: named.get(key) for key in ("positions", "mask")}
            weights = module.attention_weights(*given, **wanted)  # (B, H, T, S)
            # 先转 float32 再求和：16 位加几百个数，误差自己就不小
            errors[name] = float((weights.float().sum(-1) - 1).abs().max())

        return look

    for name, module in model.named_modules():
        if callable(getattr(module, "attention_weights", None)):
            # pre_hook：在模块算之前拿到它将收到的参数，不改动它们
            handles.append(module.register_forward_pre_hook(watch(name), with_kwargs=True))
    try:
        model.eval()(*inputs, **options)  # 不用 dropout：看的是模型，不是运气
    finally:
        # 截取的钩子一定要摘掉，否则以后每次前向都多算一遍
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return errors


# ── 看损失 ──────────────────────────────────────────────────────────────────────────


class LossWatch:
    """盯着损失：过了几个窗口还没有比开头低，就说一次该试什么。

    参数：window 是一个窗口几步；n_windows 是看几个窗口才下结论；gain 是至少该降几成
    公式：min(后面各窗口的平均) < 第一个窗口的平均 × (1 − gain) 就算降了
    约定：降过一次，或说过一次，就不再看；后来的停滞由验证损失与提前停去管
    """

    def __init__(self, window: int = 50, n_windows: int = 4, gain: float = 0.01) -> None:
        self.window, self.n_windows, self.gain = window, n_windows, gain
        self._recent: list[float] = []  # 还没满的这个窗口
        self._means: list[float] = []  # 满了的各窗口的平均
        self._said = False  # 有了结论：降了，或已经说过

    def update(self, loss: float, learning_rate: float) -> str | None:
        """记下一步的损失；该说的时候返回一句话，只说一次。

        约定：返回 None 就是没话说；learning_rate 只写进那句话里
        """
        # ① NaN 由别处管（跳过、停）；收进来，平均就永远是 NaN
        if not math.isfinite(loss) or self._said:
            return None
        # ② 攒满一个窗口才算一次平均
        self._recent.append(loss)
        if len(self._recent) < self.window:
            return None
        self._means.append(sum(self._recent) / self.window)
        self._recent = []
        # 与第一个窗口比，不与上一个比：慢慢在降的，相邻两个几乎一样
        first, later = self._means[0], self._means[1:]
        # ③ 降过就不必再盯；已经很低的（例如接着练）也没有多少可降
        if later and min(later) < first * (1 - self.gain):
            self._said = True
            return None
        if len(self._means) < self.n_windows:
            return None  # 还太早：预热里的头几步本来就慢
        # ④ 说清看了几步、从多少到多少，人才好判断该不该信
        self._said = True
        steps = self.window * len(self._means)  # 不算 NaN 的步
        return (
            f"the loss has not fallen in {steps} steps: {first:.3f} over the first {self.window}, "
            f"{later[-1]:.3f} over the last; " + ADVICE.format(rate=learning_rate)
        )


class DiagnosticsHook(Hook):
    """训练时替人盯着：内存够不够、开头的损失对不对、损失降没降、一批背不背得下来。

    参数：check_memory_first=False 时不估内存；watch 可以换成别的窗口
    约定：除了内存装不下，只提醒，不停下训练：它可能看错
    错误：估出来内存装不下 → ValueError，写明要多少、有多少、改什么
    """

    def __init__(self, *, check_memory_first: bool = True, watch: LossWatch | None = None) -> None:
        self.check_memory_first = check_memory_first
        self.watch = watch or LossWatch()
        self._fresh = True  # 从头练的；续训的第一步损失已经低了，不能拿来比
        self._first_loss = math.nan  # 第一步的损失；「背下来没有」要与它比

    def on_start(self, trainer: Trainer) -> None:
        """估内存：只有认得的模型（GPT）才估得出。

        错误：装不下 → ValueError，在第一步之前
        """
        self._fresh = trainer.state.step == 0
        config = getattr(trainer.model, "config", None)
        if not self.check_memory_first or not isinstance(config, GPTConfig):
            return
        # 批多大、多长，看真的一批，不看配置：配置里可以不写
        inputs = getattr(trainer.batches(0), "inputs", None)
        if not isinstance(inputs, Tensor) or inputs.ndim != 2:
            return  # 别的任务的批，形状没有「行 × 长度」的意思
        # 用与 memory_advice.py 同一套公式；这里只是替人去问
        warning = check_memory(
            config,
            batch_size=inputs.shape[0],  # B
            seq_len=inputs.shape[1],  # T
            grad_accumulation=trainer.config.grad_accumulation,
            precision=trainer.precision,
            checkpointing=trainer.config.gradient_checkpointing,
            parallel=trainer.config.parallel,
            processes=trainer.processes.size,
            optimizer=trainer.config.optimizer,
            device=trainer.device,
            # LoRA 只训练一小部分，梯度与优化器就少
            n_trainable=sum(p.numel() for p in trainer.take_step.parameters),
            model_is_loaded=True,  # 这时权重已在设备上
        )
        if warning:  # 有点紧：说一句，照练
            trainer.warn(warning)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """第一步看开头的损失，以后看走势。

        公式：L₀ ≈ log V；留出余地，明显高于它才说
        """
        if report.step == 1 and self._fresh:
            self._first_loss = report.loss
            # 没有词表的模型（别的任务）没有「乱猜」的损失可比
            vocab_size = getattr(getattr(trainer.model, "config", None), "vocab_size", None)
            if vocab_size and report.loss > 1.5 * math.log(vocab_size) + 0.5:
                trainer.warn(
                    f"the first loss is {report.loss:.2f}, but guessing gives log({vocab_size}) = "
                    f"{math.log(vocab_size):.2f}: look at the initialization and at a batch"
                )
        # 走势每步都记，续训的也一样
        advice = self.watch.update(report.loss, report.learning_rate)
        if advice:  # 只会有一次
            trainer.warn(advice)

    def on_end(self, trainer: Trainer, result: TrainResult | None) -> None:
        """背一批的，看背下来没有。

        约定：出了错、被人请停的不下结论：没走完，背不下来不奇怪
        """
        if result is None or not trainer.config.overfit_one_batch or result.loss is None:
            return
        if result.interrupted or not result.loss > 0.2 * self._first_loss:
            return
        # 也可能只是步数不够，所以先说这个，再说去找错
        trainer.warn(
            f"one batch was not learned by heart: the loss went from {self._first_loss:.3f} to "
            f"{result.loss:.3f} in {result.step} steps. More steps or a higher learning rate "
            f"(now {trainer.config.learning_rate:g}) may do; else look for a mistake in the "
            "model, the targets or the loss"
        )


def demo() -> None:
    """看一批、看注意力、看梯度、盯损失：各给一个好的与一个坏的。"""
    from gpt_model.config import preset
    from gpt_model.model import GPT

    # 一首诗就够：看的是工具，不是模型学得怎样
    text = "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"
    tokenizer = Tokenizer.characters([text])
    ids = torch.tensor([tokenizer.encode(text)])
    good = Batch(ids[:, :-1], ids[:, 1:], window_ids=(0,))
    bad = Batch(ids[:, :-1], ids[:, :-1])  # 忘了错开：模型只要照抄
    print("① 看一批：好的，与忘了错开的")
    for line in look_at_batch(good, tokenizer).splitlines():
        print(f"   {line}")
    assert "shifted by one: yes" in look_at_batch(good, tokenizer)
    assert "shifted by one: NO" in look_at_batch(bad, tokenizer)
    print(f"   {look_at_batch(bad, tokenizer).splitlines()[1]}")

    # 随机的权重也行：每行之和是 1，与学没学会无关
    model = GPT(preset("gpt-micro", vocab_size=tokenizer.vocab_size, n_layers=2, dim=32))
    print("② 注意力每行之和离 1 最远差多少")
    for name, error in attention_row_sums(model, good.inputs).items():
        print(f"   {name:<20} {error:.1e}")
        assert error < 1e-5

    print("③ 各层的梯度；后一个故意把第 1 层的注意力断开")
    torch.autograd.backward(model(good.inputs, good.targets).loss)
    for line in gradient_table(model).splitlines()[:7]:
        print(f"   {line}")
    model.zero_grad()
    # 输出投影是 0：前向照常（残差还在），反向却传不回 q、k、v
    model.blocks[1].attention.out_proj.weight.data.zero_()  # type: ignore[union-attr, operator]
    torch.autograd.backward(model(good.inputs, good.targets).loss)
    assert gradient_norms(model)["blocks.1.attention.q_proj.weight"] == 0.0
    print("   断开之后 blocks.1.attention.q_proj.weight 的梯度是 0.0：前面没有路传回来")

    print("④ 损失不降时说的话")
    watch, advice = LossWatch(window=5, n_windows=3), None
    # 在 4.6 上下摆动，从不下降；每步之后再塞一个 NaN
    for step in range(40):
        advice = watch.update(4.6 + 0.01 * math.sin(step), 0.1) or advice
        watch.update(math.nan, 0.1)  # NaN 进不来
    assert advice is not None  # 若收了 NaN，比较永远为假，降没降就说不准了
    print(f"   {advice[:92]}…")
    # 真在降的，一句话也不说
    falling = LossWatch(window=5, n_windows=3)
    assert not any(falling.update(4.6 - 0.05 * step, 1e-3) for step in range(40))


if __name__ == "__main__":
    run_demo(demo)
