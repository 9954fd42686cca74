r"""损失不降，先看哪里？——看一批、看梯度、看注意力、先背下一批；不对劲时，自己会说。

调试模型与调试程序不同：写错了也不崩溃，只是学得差。所以要有几样东西，一眼就能看出毛病：

    看什么                           看出什么
    look_at_batch      解码一批       编号对不对得上文字、目标有没有错开一位、盖住了哪些
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

论文：Karpathy, *A Recipe for Training Neural Networks*, 2019；梯度消失与爆炸 — Pascanu et al.,
      arXiv:1211.5063。

改哪里：多看一样东西 → 写一个函数，在 DiagnosticsHook 里调用；提醒的话 → ADVICE；
        内存够不够 → memory_advice.py。
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foundation.demonstration import run_demo
from gpt_model.config import GPTConfig
from tokenization.tokenizer import Tokenizer
from training.batch import IGNORE_INDEX, Batch
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

ADVICE = (
    "try a learning rate between 1e-4 and 1e-3 (now {rate:g}); look at a batch (look_at_batch); "
    "look at the gradient norm of each layer (GradientNormHook); learn one batch by heart first "
    "(overfit_one_batch)"
)


# ── 看一批 ──────────────────────────────────────────────────────────────────────────


def look_at_batch(batch: Batch, tokenizer: Tokenizer, *, rows: int = 2, columns: int = 60) -> str:
    """把一批解码成文字，给人看：输入、目标、盖住了几个、是不是错开一位。

    形状：inputs、targets (B, T)；至多显示 rows 行、每行 columns 个词元
    """
    n_rows, length = batch.inputs.shape
    masked = int((batch.targets == IGNORE_INDEX).sum())
    lines = [
        f"batch of {n_rows} × {length} tokens, {batch.n_targets} targets ({masked} masked); "
        f"ids {int(batch.inputs.min())}..{int(batch.inputs.max())} "
        f"of a vocabulary of {tokenizer.vocab_size}"
    ]
    # 错开一位：盖住的不算
    ahead, targets = batch.inputs[:, 1:], batch.targets[:, :-1]
    agree = (ahead == targets) | (targets == IGNORE_INDEX)
    lines.append(f"targets are the inputs shifted by one: {'yes' if bool(agree.all()) else 'NO'}")
    for row in range(min(rows, n_rows)):
        where = f" (window {batch.window_ids[row]})" if batch.window_ids else ""
        lines.append(f"row {row}{where}")
        lines.append(f"  input   {tokenizer.decode(batch.inputs[row, :columns].tolist())!r}")
        lines.append(f"  target  {_decode_masked(batch.targets[row, :columns], tokenizer)!r}")
    return "\n".join(lines)


def _decode_masked(targets: Tensor, tokenizer: Tokenizer) -> str:
    """解码目标；盖住的一段写成一个 ·，一眼看出哪些不算损失。"""
    pieces: list[str] = []
    run: list[int] = []
    for value in [*targets.tolist(), IGNORE_INDEX]:
        if value != IGNORE_INDEX:
            run.append(value)
            continue
        # 成段地解码：一个汉字可能由几个词元拼成，逐个解码会成乱码
        pieces += [tokenizer.decode(run)] if run else []
        if not pieces or pieces[-1] != "·":
            pieces.append("·")
        run = []
    text = "".join(pieces)
    # 末尾的 · 可能是我们自己添的哨兵
    return text if targets[-1] == IGNORE_INDEX else text.removesuffix("·")


# ── 看梯度 ──────────────────────────────────────────────────────────────────────────


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """每个要训练的参数，它的梯度有多长；没有梯度的算 0。

    公式：‖g‖ = √Σg²，逐个参数
    """
    return {
        name: 0.0 if parameter.grad is None else float(parameter.grad.norm())
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def gradient_table(model: nn.Module) -> str:
    """按层合起来的一张表，附一条长短；0、NaN、特别长的标出来。

    公式：一层的长度 = √(层内各参数长度的平方和)；特别长 = 超过各层中位数的一百倍
    """
    layers: dict[str, float] = {}
    for name, norm in gradient_norms(model).items():
        # blocks.3.attention.q_proj.weight → blocks.3.attention；太细了反而看不出
        layer = ".".join(name.split(".")[:3]) if name.count(".") > 2 else name
        layers[layer] = math.hypot(layers.get(layer, 0.0), norm)
    finite = sorted(value for value in layers.values() if math.isfinite(value))
    middle, longest = (finite[len(finite) // 2], finite[-1]) if finite else (0.0, 0.0)
    width = max((len(layer) for layer in layers), default=0)
    lines = []
    for layer, value in layers.items():
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

    做法：前向时截下每个注意力模块收到的参数，再让它照同样的参数把权重算出来
    认得的：有 attention_weights 方法的模块（CausalSelfAttention）；它返回 (B, H, T, S)
    """
    errors: dict[str, float] = {}
    handles, was_training = [], model.training

    def watch(name: str) -> Any:
        def look(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            # 缓存不给：看一眼就会把它弄脏
            wanted = {key: named.get(key) for key in ("positions", "mask")}
            weights = module.attention_weights(*given, **wanted)  # (B, H, T, S)
            errors[name] = float((weights.float().sum(-1) - 1).abs().max())

        return look

    for name, module in model.named_modules():
        if callable(getattr(module, "attention_weights", None)):
            handles.append(module.register_forward_pre_hook(watch(name), with_kwargs=True))
    try:
        model.eval()(*inputs, **options)
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
    """

    def __init__(self, window: int = 50, n_windows: int = 4, gain: float = 0.01) -> None:
        self.window, self.n_windows, self.gain = window, n_windows, gain
        self._recent: list[float] = []
        self._means: list[float] = []
        self._said = False

    def update(self, loss: float, learning_rate: float) -> str | None:
        """记下一步的损失；该说的时候返回一句话，只说一次。"""
        # NaN 由别处管（跳过、停）；收进来，平均就永远是 NaN
        if not math.isfinite(loss) or self._said:
            return None
        self._recent.append(loss)
        if len(self._recent) < self.window:
            return None
        self._means.append(sum(self._recent) / self.window)
        self._recent = []
        first, later = self._means[0], self._means[1:]
        # 降过就不必再盯；已经很低的（例如接着练）也没有多少可降
        if later and min(later) < first * (1 - self.gain):
            self._said = True
            return None
        if len(self._means) < self.n_windows:
            return None
        self._said = True
        steps = self.window * len(self._means)
        return (
            f"the loss has not fallen in {steps} steps: {first:.3f} over the first {self.window}, "
            f"{later[-1]:.3f} over the last; " + ADVICE.format(rate=learning_rate)
        )


def check_data(train: Any, val: Any, block_size: int) -> list[str]:
    """训练与验证的词元有没有毛病；每条毛病一句话，没有就是空的。

    参数：train、val 是 TokenShard 或一维数组；val 可以是 None
    """
    problems = []
    if len(train) < block_size + 1:
        problems.append(
            f"the training corpus has {len(train)} tokens, one block needs {block_size + 1}; "
            "give more text or a smaller block_size"
        )
    if val is None:
        return problems
    if len(val) < block_size + 1:
        problems.append(
            f"the validation corpus has {len(val)} tokens, less than one block of "
            f"{block_size + 1}: its loss will be noisy"
        )
    same = len(train) == len(val) and bool(torch.equal(_first_tokens(train), _first_tokens(val)))
    if same:
        problems.append(
            "training and validation hold the same tokens: the validation loss will only show how "
            "well the model learned them by heart; hold out other documents"
        )
    return problems


def _first_tokens(tokens: Any) -> Tensor:
    """开头的一百万个词元：够说明两份是不是同一份，又不必把几十 GB 读进来。"""
    array = getattr(tokens, "tokens", tokens)
    return torch.as_tensor([int(value) for value in array[:1_000_000]])


class DiagnosticsHook(Hook):
    """训练时替人盯着：内存够不够、开头的损失对不对、损失降没降、一批背不背得下来。

    参数：check_memory_first=False 时不估内存；watch 可以换成别的窗口
    错误：估出来内存装不下 → ValueError，写明要多少、有多少、改什么
    """

    def __init__(self, *, check_memory_first: bool = True, watch: LossWatch | None = None) -> None:
        self.check_memory_first = check_memory_first
        self.watch = watch or LossWatch()
        self._fresh = True
        self._first_loss = math.nan

    def on_start(self, trainer: Trainer) -> None:
        """估内存：只有认得的模型（GPT）才估得出。"""
        self._fresh = trainer.state.step == 0
        config = getattr(trainer.model, "config", None)
        if not self.check_memory_first or not isinstance(config, GPTConfig):
            return
        inputs = getattr(trainer.batches(0), "inputs", None)
        if not isinstance(inputs, Tensor) or inputs.ndim != 2:
            return
        warning = check_memory(
            config,
            batch_size=inputs.shape[0],
            seq_len=inputs.shape[1],
            grad_accumulation=trainer.config.grad_accumulation,
            precision=trainer.precision,
            device=trainer.device,
            n_trainable=sum(p.numel() for p in trainer.take_step.parameters),
            model_is_loaded=True,
        )
        if warning:
            trainer.warn(warning)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """第一步看开头的损失，以后看走势。"""
        if report.step == 1 and self._fresh:
            self._first_loss = report.loss
            vocab_size = getattr(getattr(trainer.model, "config", None), "vocab_size", None)
            if vocab_size and report.loss > 1.5 * math.log(vocab_size) + 0.5:
                trainer.warn(
                    f"the first loss is {report.loss:.2f}, but guessing gives log({vocab_size}) = "
                    f"{math.log(vocab_size):.2f}: look at the initialization and at a batch"
                )
        advice = self.watch.update(report.loss, report.learning_rate)
        if advice:
            trainer.warn(advice)

    def on_end(self, trainer: Trainer, result: TrainResult | None) -> None:
        """背一批的，看背下来没有。"""
        if result is None or not trainer.config.overfit_one_batch or result.loss is None:
            return
        if result.interrupted or not result.loss > 0.2 * self._first_loss:
            return
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
    model.blocks[1].attention.out_proj.weight.data.zero_()  # type: ignore[union-attr, operator]
    torch.autograd.backward(model(good.inputs, good.targets).loss)
    assert gradient_norms(model)["blocks.1.attention.q_proj.weight"] == 0.0
    print("   断开之后 blocks.1.attention.q_proj.weight 的梯度是 0.0：前面没有路传回来")

    print("④ 损失不降时说的话")
    watch, advice = LossWatch(window=5, n_windows=3), None
    for step in range(40):
        advice = watch.update(4.6 + 0.01 * math.sin(step), 0.1) or advice
        watch.update(math.nan, 0.1)  # NaN 进不来
    assert advice is not None
    print(f"   {advice[:92]}…")
    falling = LossWatch(window=5, n_windows=3)
    assert not any(falling.update(4.6 - 0.05 * step, 1e-3) for step in range(40))


if __name__ == "__main__":
    run_demo(demo)
