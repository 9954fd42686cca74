r"""训练一个语言模型要写多少循环？——一个。预训练、LoRA、指令微调、DPO，差别只在数据与损失。

    Trainer(model, batches, loss_fn, config, hooks)
            │      │        │        │       └─ 看：进度条、日志、画图、写样例
            │      │        │        └──────── 数字：步数、学习率、裁剪……（train_config.py）
            │      │        └───────────────── (model, 一批) → (损失之和, 题数)
            │      └────────────────────────── 编号 → 一批，纯函数（dataset.py）
            └───────────────────────────────── 任何 nn.Module；训练哪些参数，看 requires_grad

    fit()
     ├ 占住目录，放回存档（续训）或播下种子（从头）
     ├ 到评估的时候了？──▶ 留出集上量一次，记下是不是最好（held_out.py）
     ├ 到存档的时候了？──▶ 写在旁边、改名、核对、删旧（checkpoint.py）
     ├ 走够了、有人请停、许久没有进步？──▶ 结束
     └ 走一步（train_step.py），回到第二行

$$\theta_{s+1} = \text{step}(\theta_s,\ \text{batches}(s),\ \eta(s)), \qquad s = 0, 1, …$$

右边只有 θ、步数 s 与随机数的状态：存下这三样，就能从任何一步接着走，一个比特也不差。

循环的骨架就是 _loop 那十来行：该评估就评估，该存就存，该停就停，否则走一步。把「到没到时候」
放在一步之前问，续训便不必特殊对待：断在评估之前的，续上之后第一件事就是补上它。

参考：同样小而全的循环 — Karpathy, *nanoGPT*、*minGPT*（循环不认识模型，看的事交给回调）。

改哪里：一步里做什么 → train_step.py；何时评估、存、停 → _loop；换任务 → 给别的 batches 与 loss_fn；
        想看点什么 → 写一个钩子（hook_base.py），不改这里。
"""

from __future__ import annotations

import math
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foundation.demonstration import run_demo
from foundation.devices import pick_device, resolve_precision, seed_everything
from tokenization.tokenizer import Tokenizer
from training.accumulation import LossFunction, language_model_loss
from training.divergence import TrainingDivergedError, react_to_skipped_step
from training.held_out import held_out_loss
from training.hook_base import (
    EvaluationReport,
    Hook,
    HookList,
    StepReport,
    TrainResult,
    bits_per_byte,
)
from training.interrupt import GracefulStop
from training.preflight import check_before_training
from training.resume import restore_run, save_run
from training.run_directory import RunDirectory
from training.train_config import TrainConfig
from training.train_state import TrainState
from training.train_step import TrainStep

__all__ = ["Trainer", "TrainingDivergedError", "language_model_loss"]


class Trainer:
    """训练循环；建好之后 fit()。

    val_batches      () → 若干批；给了才有评估，才有「最好的存档」与提前停
    run_dir          给了才存档；同一目录同时只许一个训练
    tokenizer        随存档一起存，使存档成为完整的模型目录
    bytes_per_token  给了就同时报告每字节比特，换了分词器也能比较
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[int], Any],
        loss_fn: LossFunction = language_model_loss,
        config: TrainConfig | None = None,
        hooks: Sequence[Hook] = (),
        *,
        val_batches: Callable[[], Iterable[Any]] | None = None,
        run_dir: Path | str | None = None,
        tokenizer: Tokenizer | None = None,
        bytes_per_token: float | None = None,
    ) -> None:
        self.config = config = config or TrainConfig()
        self.device = pick_device(config.device)
        self.precision = resolve_precision(config.precision, self.device)
        # 先搬模型，再建优化器：优化器认的是搬过去之后的参数
        self.model = model.to(self.device)
        self.batches, self.loss_fn, self.hooks = batches, loss_fn, HookList(self, hooks)
        self.val_batches, self.bytes_per_token = val_batches, bytes_per_token
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.tokenizer = tokenizer
        self.take_step = TrainStep(
            self.model, batches, loss_fn, config, device=self.device, precision=self.precision
        )
        self.state = TrainState()
        self._saved_step: int | None = None
        self._stop: GracefulStop | None = None
        self._began = 0.0

    # ── 从头走到尾 ──────────────────────────────────────────────────────

    def fit(
        self, *, resume: bool = False, overwrite: bool = False, allow_changes: bool = False
    ) -> TrainResult:
        """训练到 config.steps。resume 从最新的好存档接着走，overwrite 丢掉旧的重来。

        约定：Ctrl-C 走完这一步、存好再返回（interrupted 为真）；再按一次立即中断
        错误：目录里有存档却没说怎么办、没有存档却要续训、配置与存档不同 → ValueError；
              连着 max_skipped_steps 步出现 NaN → TrainingDivergedError；存不下 → OSError
        """
        if self.state.step and self.run_dir is not None and not resume:
            raise ValueError(
                f"this trainer has already taken {self.state.step} steps; "
                "continue with fit(resume=True), or build a new one"
            )
        began, result = time.perf_counter(), None
        with ExitStack() as stack:
            # ① 占住目录、放回存档或播下种子；任何毛病都在第 0 步之前说清
            if self.run_dir is not None:
                directory = RunDirectory(self.run_dir)
                stack.enter_context(directory.claimed(resume=resume, overwrite=overwrite))
            elif resume:
                raise ValueError("resume needs a run_dir to resume from")
            self._began = began
            self._begin(resume, allow_changes)
            # ② 训练；无论怎样结束，钩子都能关好自己的文件
            self._stop = stack.enter_context(GracefulStop())
            try:
                self.hooks.start()
                self._loop()
                result = self._result()
                self.state.total_seconds = result.total_seconds
            finally:
                self.tell("on_end", result)
                self._stop = None
        return result

    def _begin(self, resume: bool, allow_changes: bool) -> None:
        """放回存档，或从种子开始；顺便看一眼数据与说好的是否一样。"""
        if resume:
            restore_run(self, allow_changes=allow_changes)
            self._saved_step = self.state.step
        elif self.state.step == 0:
            seed_everything(self.config.seed)
        check_before_training(self)
        self.model.train()

    def _loop(self) -> None:
        """整个训练；每一轮先问「到时候了吗」，再走一步。"""
        while True:
            if self._evaluation_is_due():
                self._evaluate_and_judge()
            if self._save_is_due():
                directory = save_run(self, self._total_seconds())
                self._saved_step = self.state.step
                self.tell("on_save", directory)
            if self._is_over():
                return
            report = self.take_step(self.state.step)
            self.state.after_step(report, counts_as_fault=self.take_step.scaler.exhausted)
            self.tell("on_step", report)
            react_to_skipped_step(self, report)

    def _evaluation_is_due(self) -> bool:
        """到了评估的时候、这一步还没评估过、也没有人在等着退出。"""
        if self.val_batches is None or self.config.overfit_one_batch or self._stopping:
            return False
        step = self.state.step
        due = step % self.config.eval_every == 0 or step >= self.config.steps
        return due and self.state.last_evaluated != step

    def _save_is_due(self) -> bool:
        """到了存档的时候、评估出了最好的一次，或训练就要结束。"""
        step = self.state.step
        if self.run_dir is None or step == 0 or self._saved_step == step:
            return False
        return (
            step % self.config.saving_interval == 0
            or self.state.best_step == step
            or self._is_over()
        )

    def _is_over(self) -> bool:
        """走够了、有人请停，或许久没有进步。"""
        return self.state.step >= self.config.steps or self._stopping or self._stale

    @property
    def _stopping(self) -> bool:
        return self._stop is not None and self._stop.requested

    @property
    def _stale(self) -> bool:
        patience = self.config.patience
        return patience is not None and self.state.evaluations_without_gain >= patience

    # ── 评估 ────────────────────────────────────────────────────────────

    def evaluate(self) -> EvaluationReport:
        """在留出的数据上量平均损失；不用 dropout，不动训练的随机数。

        错误：没有给 val_batches，或里面一道题也没有 → ValueError
        """
        report = self._measure()
        assert report is not None, "only a stop inside fit() cuts an evaluation short"
        return report

    def _measure(self) -> EvaluationReport | None:
        """评估的实处；半路有人请停就放弃，返回 None。"""
        if self.val_batches is None:
            raise ValueError("there is nothing to evaluate on: give the Trainer val_batches")
        began = time.perf_counter()
        found = held_out_loss(
            self.model,
            self.loss_fn,
            self.val_batches(),
            device=self.device,
            precision=self.precision,
            limit=self.config.eval_batches,
            should_stop=lambda: self._stopping,
        )
        if found is None:
            return None
        return EvaluationReport(
            step=self.state.step,
            loss=found.loss,
            bits_per_byte=bits_per_byte(found.loss, self.bytes_per_token),
            n_targets=found.n_targets,
            seconds=time.perf_counter() - began,
            improved=self.state.is_better(found.loss),
        )

    def _evaluate_and_judge(self) -> None:
        """评估一次，记下好坏；这一步若已存过，就要带着损失重新存。"""
        report = self._measure()
        if report is None:
            return
        self.state.after_evaluation(report)
        self._saved_step = None
        if not math.isfinite(report.loss):
            self.warn(f"the validation loss at step {report.step} is {report.loss}")
        self.tell("on_evaluate", report)

    # ── 说话与结论 ──────────────────────────────────────────────────────

    def warn(self, message: str) -> None:
        """有什么不对劲：说给听警告的钩子；没有人听，就走 Python 的 warnings。"""
        self.hooks.warn(message)

    def message(self, text: str) -> None:
        """给人看的一段话，例如写出来的样例。"""
        self.tell("on_message", text)

    def tell(self, event: str, *facts: Any) -> None:
        """在一个时刻逐个调用钩子。"""
        self.hooks.tell(event, *facts)

    def _total_seconds(self) -> float:
        return self.state.total_seconds + time.perf_counter() - self._began

    def _result(self) -> TrainResult:
        """这次训练的结论。"""
        state = self.state
        return TrainResult(
            step=state.step,
            loss=state.loss,
            val_loss=state.val_loss,
            best_loss=state.best_loss,
            best_step=state.best_step,
            bits_per_byte=(
                None
                if state.val_loss is None
                else bits_per_byte(state.val_loss, self.bytes_per_token)
            ),
            tokens_seen=state.tokens_seen,
            tokens_per_second=state.tokens_per_second,
            seconds=time.perf_counter() - self._began,
            total_seconds=self._total_seconds(),
            skipped_steps=state.skipped_steps,
            interrupted=self._stopping,
            stopped_early=self._stale and state.step < self.config.steps,
            directory=self.run_dir,
        )


def demo() -> None:
    """一条会重复的数列，一个极小的 GPT：损失下降；断了再接，与没断过的逐比特相同。"""
    from gpt_model.config import preset
    from gpt_model.model import GPT
    from training.dataset import TokenBatches, sequential_batches

    # 每个数由前一个决定，学会了损失就接近 0；dropout 使「随机数放回没有」看得出来
    tokens = [(step * step + step) % 13 for step in range(600)]
    tiny = preset("gpt-micro", vocab_size=13, max_seq_len=16, n_layers=1, dim=32, dropout=0.1)
    config = TrainConfig(steps=60, learning_rate=5e-3, eval_every=20, device="cpu")

    class Losses(Hook):
        """最小的钩子：只记下每一步的损失。"""

        def __init__(self, stop_after: int = 0) -> None:
            self.losses: list[float] = []
            self.stop_after = stop_after

        def on_step(self, trainer: Trainer, report: StepReport) -> None:
            self.losses.append(report.loss)
            if report.step == self.stop_after:
                signal.raise_signal(signal.SIGINT)  # 就像按了 Ctrl-C

    def make(hook: Hook, run_dir: Path, **changes: Any) -> Trainer:
        torch.manual_seed(1)
        batches = TokenBatches(tokens[:500], 8, 16, seed=0)
        return Trainer(
            GPT(tiny),
            batches,
            config=config.replace(**changes),
            hooks=[hook],
            val_batches=lambda: sequential_batches(tokens[500:], 8, 16),
            run_dir=run_dir,
        )

    with tempfile.TemporaryDirectory() as name:
        straight = Losses()
        trainer = make(straight, Path(name, "a"))
        result = trainer.fit()
        print("① 从头练 60 步：0, 2, 6, 12, 7, … 这条数列")
        for step in (1, 20, 40, 60):
            print(f"   第 {step:2d} 步  训练损失 {straight.losses[step - 1]:.3f}")
        saved = sorted(path.name for path in Path(name, "a").glob("step-*"))
        print(f"   验证损失 {result.val_loss:.3f}；存档 {saved}")
        assert straight.losses[-1] < 0.5 * straight.losses[0]

        print("② 第 33 步时按 Ctrl-C，再续训")
        first, second = Losses(stop_after=33), Losses()
        stopped = make(first, Path(name, "b")).fit()
        assert stopped.interrupted
        resumed = make(second, Path(name, "b"))
        resumed.fit(resume=True)
        pairs = zip(trainer.model.parameters(), resumed.model.parameters(), strict=True)
        same = first.losses + second.losses == straight.losses
        same = same and all(torch.equal(one, other) for one, other in pairs)
        print(f"   停在第 {stopped.step} 步；60 个损失与全部权重逐比特相同：{same}")
        assert same

        print("③ 换了学习率还说是接着练：拒绝")
        try:
            make(Losses(), Path(name, "b"), learning_rate=1e-3).fit(resume=True)
        except ValueError as error:
            print("   …" + str(error).split("saved one. ")[1].split(". Give")[0])
        else:
            raise AssertionError("another learning rate must be refused")


if __name__ == "__main__":
    run_demo(demo)
