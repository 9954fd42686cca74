r"""训练一个语言模型要写多少循环？——一个。预训练、LoRA、指令微调、DPO，差别只在数据与损失。

    Trainer(model, batches, loss_fn, config, hooks)
            │      │        │        │       └─ 看：进度条、日志、画图、写样例
            │      │        │        └──────── 数字：步数、学习率、裁剪……（train_config.py）
            │      │        └───────────────── (model, 一批) → (损失之和, 题数)
            │      └────────────────────────── 编号 → 一批，纯函数（dataset.py）
            └───────────────────────────────── 任何 nn.Module；训练哪些参数，看 requires_grad

    fit()
     ├ 占住目录，放回存档（续训）或播下种子（从头）
     ├ 到评估的时候了？──▶ 留出集上量一次，记下是不是最好（evaluating.py）
     ├ 到存档的时候了？──▶ 写在旁边、改名、核对、删旧（checkpoint.py）
     ├ 走够了、有人请停、许久没有进步？──▶ 结束
     └ 走一步（train_step.py），回到第二行

$$\theta_{s+1} = \text{step}(\theta_s,\ \text{batches}(s),\ \eta(s)), \qquad s = 0, 1, …$$

右边只有 θ、步数 s 与随机数的状态：存下这三样，就能从任何一步接着走，一个比特也不差。

循环的骨架就是 _loop 那十来行：该评估就评估，该存就存，该停就停，否则走一步。把「到没到时候」
放在一步之前问，续训便不必特殊对待：断在评估之前的，续上之后第一件事就是补上它。

参考：同样小而全的循环 — Karpathy, *nanoGPT*、*minGPT*（循环不认识模型，看的事交给回调）。

改哪里：一步里做什么 → train_step.py；何时评估、存、停 → _loop；怎样判好坏 → evaluating.py；
        换任务 → 给别的 batches 与 loss_fn；
        想看点什么 → 写一个钩子（hook_base.py），不改这里。
"""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foundation.allocator import keep_freed_memory, return_freed_memory
from foundation.demonstration import run_demo
from foundation.devices import pick_device, resolve_precision, seed_everything
from tokenization.tokenizer import Tokenizer
from training.accumulation import LossFunction, language_model_loss
from training.determinism import deterministic_mode
from training.distributed import connect, own_device
from training.divergence import TrainingDivergedError, react_to_skipped_step, react_to_spike
from training.evaluating import conclude, judge, measure
from training.hook_base import EvaluationReport, Hook, HookList, StepReport, TrainResult
from training.interrupt import GracefulStop
from training.preflight import check_before_training
from training.restart import resumes_by_itself
from training.resume import check_agreement, restore_run, save_run
from training.run_directory import RunDirectory
from training.sharding import wrap
from training.train_config import TrainConfig
from training.train_state import TrainState
from training.train_step import TrainStep
from transformer_basics.recomputation import use_checkpointing

__all__ = ["Trainer", "TrainingDivergedError", "language_model_loss"]


class Trainer:
    """训练循环；建好之后 fit()。

    model            任何 nn.Module；训练哪些参数，看 requires_grad
    batches          编号 → 一批，同一编号总是同一批，续训才接得上
    loss_fn          (model, 一批) → (损失之和, 题数)
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
        # ① 配置里的 "auto" 在这里定下来，后面的人只看到真正用的值
        self.config = config = config or TrainConfig()
        self.processes = connect(config.parallel)  # torchrun 里有几个；直接运行就只有自己
        self.device = own_device(pick_device(config.device), self.processes)
        if self.device.type == "cpu":
            # 每步要的内存一样多：留着用，省下几十万次缺页
            # 要重算的，缺的是内存而不是时间：用完就还，不然留着的碎片比省下的激活还多
            # 设置管到进程结束；用户自己设过的不动
            recomputes = config.gradient_checkpointing != "none"
            return_freed_memory() if recomputes else keep_freed_memory()
        self.precision = resolve_precision(config.precision, self.device)  # fp32、bf16 或 fp16
        if config.gradient_checkpointing != "none":
            use_checkpointing(model, config.gradient_checkpointing)
        # ② 先搬模型，再建优化器：优化器认的是搬过去之后的参数
        self.model = model.to(self.device)
        self.batches, self.loss_fn = batches, loss_fn
        mine = hooks if self.processes.is_main else ()  # 只有一个说话
        # FSDP 切开的模型，rank 0 独自算不了：要整个模型的钩子不能用
        split = self.processes.size > 1 and config.parallel == "fsdp"
        self.hooks = HookList(self, mine, split=split)
        self.val_batches, self.bytes_per_token = val_batches, bytes_per_token
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.tokenizer = tokenizer  # 训练用不着，存档用得着
        # ③ 一步怎样走，全归它；循环只管何时走
        self.take_step = TrainStep(
            wrap(self.model, config.parallel, self.processes, self.device),  # 一个进程时不包
            batches,
            loss_fn,
            config,
            device=self.device,
            precision=self.precision,
            processes=self.processes,
        )
        self.state = TrainState()  # 循环自己记得的一切，随存档来去
        self._saved_step: int | None = None  # 哪一步已经存好，免得存两遍
        self._stop: GracefulStop | None = None  # 只在 fit() 里面有
        self._agreed = False  # 几个进程说好了要停，见 _agree_on_stop
        self._began = 0.0  # 这次 fit() 从何时算起

    # ── 从头走到尾 ──────────────────────────────────────────────────────

    def fit(
        self, *, resume: bool = False, overwrite: bool = False, allow_changes: bool = False
    ) -> TrainResult:
        """训练到 config.steps。resume 从最新的好存档接着走，overwrite 丢掉旧的重来。

        公式：θ_{s+1} = step(θ_s, batches(s), η(s))，s 从现在的步数到 config.steps
        约定：Ctrl-C 走完这一步、存好再返回（interrupted 为真）；再按一次立即中断
        约定：allow_changes 只管续训：配置与存档不同时，照新的接着走，差别变成警告
        约定：没有 run_dir 也能练，只是什么也不存；再调用一次，从内存里的步数接着走
        错误：目录里有存档却没说怎么办、没有存档却要续训、配置与存档不同 → ValueError；
              连着 max_skipped_steps 步出现 NaN → TrainingDivergedError；存不下 → OSError
        """
        # 有人被杀、torchrun 重来的一遍：人没有说 resume，也从自己存下的接着走；见 restart.py
        # 练过一次的不算重来，由下面那一句去拒绝
        fresh = not (resume or self.state.step)
        if fresh and resumes_by_itself(self.run_dir, self.processes):
            resume, overwrite = True, False
            self.warn(f"restarted by torchrun: going on from the checkpoints in {self.run_dir}")
        # 练过一次的再从头练，目录里的存档与内存里的权重就对不上了
        if self.state.step and self.run_dir is not None and not resume:
            raise ValueError(
                f"this trainer has already taken {self.state.step} steps; "
                "continue with fit(resume=True), or build a new one"
            )
        began, result = time.perf_counter(), None  # 出了错，结论就是 None
        # ExitStack：占住的目录、换掉的信号，无论怎样结束都按相反的次序放回
        with ExitStack() as stack:
            # ① 占住目录、放回存档或播下种子；任何毛病都在第 0 步之前说清
            check_agreement(self, resume=resume, overwrite=overwrite, allow_changes=allow_changes)
            if self.run_dir is not None:
                claim = RunDirectory(self.run_dir).claimed(resume=resume, overwrite=overwrite)
                self.processes.on_main(lambda: stack.enter_context(claim))
            elif resume:
                raise ValueError("resume needs a run_dir to resume from")  # 绝不悄悄从头练
            stack.enter_context(deterministic_mode(self.config.deterministic))
            self._began = began  # 连同检查与放回存档的时间
            self._begin(resume, allow_changes)
            # ② 训练；无论怎样结束，钩子都能关好自己的文件
            self._stop = stack.enter_context(GracefulStop())
            try:
                self.hooks.start()  # 攒下的警告这时才说
                self._loop()
                result = self._result()
                self.state.total_seconds = result.total_seconds  # 下次接着加
            finally:
                self.tell("on_end", result)  # None = 中途出错
                self._stop, self._agreed = None, False  # 旗只属于这一次
        return result

    def _begin(self, resume: bool, allow_changes: bool) -> None:
        """放回存档，或从种子开始；顺便看一眼数据与说好的是否一样。

        错误：不是同一次训练、批的大小与配置不符、词表太小 → ValueError；一步也还没走
        """
        if resume:
            restore_run(self, allow_changes=allow_changes)  # 随机数也放回
            self._saved_step = self.state.step  # 刚读出来的，不必再存
        elif self.state.step == 0:
            # 从头：dropout 也可重现；各进程抹掉的位置不同，才像一个大批
            seed_everything((self.config.seed + self.processes.rank) % 2**63)
        check_before_training(self)
        self.model.train()  # 打开 dropout

    def _loop(self) -> None:
        """整个训练；每一轮先问「到时候了吗」，再走一步。

        次序有讲究：评估在存之前，存档才带着这一步的验证损失；存在停之前，停下的那一步才不丢
        问与做都只看 self.state：续训放回的也是它，所以断在哪里，都从下一个问题接着问
        """
        while True:
            self._agree_on_stop()
            # ① 量：也许就此成了最好的一次，或许久没有进步的最后一次
            if self._evaluation_is_due():
                self._evaluate_and_judge()
            # ② 存：最好的、到时候的、要结束的
            if self._save_is_due():
                directory = save_run(self, self._total_seconds())  # 核对过了才返回
                self._saved_step = self.state.step
                self.tell("on_save", directory)
            # ③ 停：续训一个早已走完的训练，一步不走就从这里回去
            if self._is_over():
                return
            # ④ 走：先记账再告诉钩子，钩子看到的步数才是走完的
            report = self.take_step(self.state.step)
            self.state.after_step(report, counts_as_fault=self.take_step.scaler.exhausted)
            self.tell("on_step", report)
            react_to_spike(self, report)  # 有限却大得离谱：说一句
            react_to_skipped_step(self, report)  # 连着太多步坏，就在这里停

    def _evaluation_is_due(self) -> bool:
        """到了评估的时候、这一步还没评估过、也没有人在等着退出。

        第 0 步也评估：没练过时是多少，曲线才有起点
        过拟合一批时不评估：那是在查代码，不是在学，留出集上的好坏没有意义
        """
        if self.val_batches is None or self.config.overfit_one_batch or self._stopping:
            return False
        step = self.state.step
        due = step % self.config.eval_every == 0 or step >= self.config.steps  # 最后一步总要量
        return due and self.state.last_evaluated != step  # 续训不重复量

    def _save_is_due(self) -> bool:
        """到了存档的时候、评估出了最好的一次，或训练就要结束。

        第 0 步不存：从种子就能重来；同一步不存两遍，除非又量出了损失
        """
        step = self.state.step
        if self.run_dir is None or step == 0 or self._saved_step == step:
            return False
        return (
            step % self.config.saving_interval == 0  # 断电最多丢这么多步
            or self.state.best_step == step  # 不存，以后就取不回最好的
            or self._is_over()
        )

    def _is_over(self) -> bool:
        """走够了、有人请停，或许久没有进步。"""
        return self.state.step >= self.config.steps or self._stopping or self._stale

    @property
    def _stopping(self) -> bool:
        # 在 fit() 之外没有人接管信号，也就没有人能请停
        # 几个进程：自己的旗不算，说好了的才算，否则有人走、有人停
        asked = self._stop is not None and self._stop.requested
        return asked if self.processes.size == 1 else self._agreed

    def _agree_on_stop(self) -> bool:
        """有一个进程收到 Ctrl-C，大家就在同一处停；集体的，只在说好的地方问。"""
        if self._stop is not None:
            self._agreed = self.processes.any(self._stop.requested)
        return self._stopping

    @property
    def _stale(self) -> bool:
        # 计数随存档来去，所以提前停过的，续训也还是停着
        patience = self.config.patience
        return patience is not None and self.state.evaluations_without_gain >= patience

    # ── 评估 ────────────────────────────────────────────────────────────

    def evaluate(self) -> EvaluationReport:
        """在留出的数据上量平均损失；不用 dropout，不动训练的随机数。

        约定：随时可以调用，不改计数：不影响「最好的」，也不影响提前停
        错误：没有给 val_batches，或里面一道题也没有 → ValueError
        """
        report = measure(self, self._agree_on_stop)
        assert report is not None, "only a stop inside fit() cuts an evaluation short"
        return report

    def _evaluate_and_judge(self) -> None:
        """评估一次，记下好坏；这一步若已存过，就要带着损失重新存。"""
        report = measure(self, self._agree_on_stop)
        # 半路请停：没量完的不算数，续训之后第一件事就是补上它
        if report is None:
            return
        self._saved_step = None  # 存档里该有这次的验证损失
        judge(self, report)

    # ── 说话与结论 ──────────────────────────────────────────────────────

    def warn(self, message: str) -> None:
        """有什么不对劲：说给听警告的钩子；没有人听，就走 Python 的 warnings。"""
        if self.processes.is_main:  # 一句话不必说 W 遍
            self.hooks.warn(message)

    def message(self, text: str) -> None:
        """给人看的一段话，例如写出来的样例；怎样显示由钩子定。"""
        self.tell("on_message", text)

    def tell(self, event: str, *facts: Any) -> None:
        """在一个时刻逐个调用钩子。"""
        self.hooks.tell(event, *facts)

    def _total_seconds(self) -> float:
        # 以前各次的，加上这一次到现在的；存档时也要，所以不等结束就能问
        return self.state.total_seconds + time.perf_counter() - self._began

    def _result(self) -> TrainResult:
        """这次训练的结论；计数之外，只有循环知道用了多久、是怎样结束的。"""
        return conclude(
            self,
            seconds=time.perf_counter() - self._began,  # 只算这一次
            total_seconds=self._total_seconds(),
            interrupted=self._stopping,  # 有人按了 Ctrl-C
            # 走够了的那一步碰巧也没有进步，算走完，不算提前停
            stopped_early=self._stale and self.state.step < self.config.steps,
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
        torch.manual_seed(1)  # 各次从同样的权重出发
        batches = TokenBatches(tokens[:500], 8, 16, seed=0)  # 8 行，每行 16 个词元
        return Trainer(
            GPT(tiny),
            batches,
            config=config.replace(**changes),
            hooks=[hook],
            val_batches=lambda: sequential_batches(tokens[500:], 8, 16),  # 没练过的一段
            run_dir=run_dir,
        )

    with tempfile.TemporaryDirectory() as name:
        straight = Losses()  # 没停过的
        trainer = make(straight, Path(name, "a"))
        result = trainer.fit()
        print("① 从头练 60 步：0, 2, 6, 12, 7, … 这条数列")
        for step in (1, 20, 40, 60):
            print(f"   第 {step:2d} 步  训练损失 {straight.losses[step - 1]:.3f}")
        saved = sorted(path.name for path in Path(name, "a").glob("step-*"))
        print(f"   验证损失 {result.val_loss:.3f}；存档 {saved}")
        assert straight.losses[-1] < 0.5 * straight.losses[0]  # 真的学到了

        print("② 第 33 步时按 Ctrl-C，再续训")
        first, second = Losses(stop_after=33), Losses()  # 停之前的、续上之后的
        stopped = make(first, Path(name, "b")).fit()
        assert stopped.interrupted  # 是请停的，不是走够了
        resumed = make(second, Path(name, "b"))  # 像是新开的进程
        resumed.fit(resume=True)
        pairs = zip(trainer.model.parameters(), resumed.model.parameters(), strict=True)
        same = first.losses + second.losses == straight.losses  # 接起来就是没停过的
        same = same and all(torch.equal(one, other) for one, other in pairs)
        print(f"   停在第 {stopped.step} 步；60 个损失与全部权重逐比特相同：{same}")
        assert same  # 逐比特，不是接近

        print("③ 换了学习率还说是接着练：拒绝")
        try:
            make(Losses(), Path(name, "b"), learning_rate=1e-3).fit(resume=True)
        except ValueError as error:
            print("   …" + str(error).split("saved one. ")[1].split(". Give")[0])
        else:
            raise AssertionError("another learning rate must be refused")


if __name__ == "__main__":
    run_demo(demo)
