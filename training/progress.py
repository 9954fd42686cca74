r"""训练时屏幕上该看见什么？——走到哪里、损失多少、多快、还要多久；别的都不必刷屏。

    step 420/1000 ━━━━━━━━━━━━━━╺━━━━━━━━━━ loss 2.314 (avg 2.351) · 18.2k tokens/s · ETA 0:00:47

一步的损失抖得厉害：这一批恰好难，它就高。看趋势要看平滑过的（exponential moving average）：

$$a_t = \beta a_{t-1} + (1-\beta)L_t, \qquad \hat L_t = \frac{a_t}{1-\beta^t}$$

除以 1 − βᵗ 是偏差修正：a 从 0 起步，头几步偏小；与 Adam 的那一处是同一个道理。
NaN 不进平均：进了一次，以后就全是 NaN。

还要多久（ETA）按墙上的钟估：这次开始以来，平均每步用了多久（含评估与存档），乘以剩下的步数。
而 tokens/s 只算训练的步：它说的是机器多快，不是人等了多久。

    屏幕是终端        一行进度条，原地刷新，每秒至多几次：刷新也要时间
    不是（管道、文件） 隔一阵子打一行，整个训练几十行；日志里没有一堆回车

形状：每一步只收三个数（损失、词元数、秒），不碰张量；所以显示进度不会再让显卡停下来等。

    StepReport ─▶ 三个平均（损失、词元数、秒）─▶ _status 写成一句 ─┬▶ 进度条
                                                                  └▶ 或一行字

改哪里：进度条上多一栏 → _status；隔多久刷新 → REFRESH_SECONDS；日志隔多少步一行 → every。
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from foundation.demonstration import run_demo
from training.hook_base import EvaluationReport, Hook, StepReport, TrainResult

if TYPE_CHECKING:
    from training.trainer import Trainer

__all__ = ["ProgressHook", "Smoothed"]

REFRESH_SECONDS = 0.2  # 两次刷新至少隔这么久
PLAIN_LINES = 20  # 不是终端时，整个训练大约打几行
SMOOTHING = 0.95  # 大约是最近二十步的平均


class Smoothed:
    """指数滑动平均，带偏差修正；不是有限数的不进来。

    公式：a ← β·a + (1−β)·x，w ← β·w + (1−β)，平均 = a / w
    为什么不存最近几十个数再平均：那要一个队列，旧数离开时还会让平均突然一跳
    """

    def __init__(self, beta: float = SMOOTHING) -> None:
        self.beta, self._sum, self._weight = beta, 0.0, 0.0  # β、a、w

    def add(self, value: float) -> None:
        """记下一个新的数；旧的每一个都打一次 β 折，越旧说话越轻。"""
        if not math.isfinite(value):
            return  # NaN 乘多少折还是 NaN，永远洗不掉
        self._sum = self.beta * self._sum + (1 - self.beta) * value
        # 权重之和正好是 1 − βᵗ，一路累加就不必记 t
        self._weight = self.beta * self._weight + (1 - self.beta)

    @property
    def value(self) -> float:
        """现在的平均；还没有数时是 NaN。"""
        return self._sum / self._weight if self._weight else math.nan


class ProgressHook(Hook):
    """屏幕上的进度：终端上一行进度条，别处隔一阵子一行。

    参数：console 给别的输出（测试、文件）；every 是不在终端上时隔多少步一行，None 就自己定
    约定：on_start 与 on_end 成对；中途出错也会走 on_end，终端不会留着半条进度条
    """

    def __init__(self, *, console: Console | None = None, every: int | None = None) -> None:
        # 不让 rich 给数字上色：同一句话在终端与日志里长得一样
        self.console = console or Console(highlight=False)
        self.every = every  # 步
        self.bar: Progress | None = None  # 只在终端上才有
        self._task = TaskID(0)  # 占个位置；挂起进度条时换成真的
        self._reset(0)

    def _reset(self, step: int) -> None:
        """从第 step 步开始计时；续训时，以前的步不算进速度里。"""
        self.loss, self.tokens, self.seconds = Smoothed(), Smoothed(), Smoothed()
        self._first_step, self._began = step, time.perf_counter()  # 从哪里、何时开始
        self._refreshed = -math.inf  # 从没刷过：第一步一定刷出来

    def on_start(self, trainer: Trainer) -> None:
        """开始：终端上挂起进度条。

        约定：续训的先说一句从哪里接着走，人才知道它没有从头再来
        """
        steps, done = trainer.config.steps, trainer.state.step  # 一共几步、已走几步
        self._reset(done)
        if done:
            self._say(f"resumed at step {done} of {steps}")
        if not self.console.is_terminal:
            return  # 管道与文件里，原地刷新会变成一长串回车
        self.bar = Progress(
            TextColumn("step {task.completed}/{task.total}"),  # 左：走到哪里
            BarColumn(),  # 中：一根条
            TextColumn("{task.fields[status]}"),  # 右：_status 写的那一句
            console=self.console,
            # 自己决定何时刷新：后台线程每秒刷十次，小模型会被它拖慢
            auto_refresh=False,
            transient=True,  # 收起时擦掉自己，留下的只有一行行的字
        )
        self._task = self.bar.add_task("", total=steps, completed=done, status="")
        self.bar.start()

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """走完一步：到了该刷新的时候才刷新。

        约定：三个平均每步都记；刷不刷新只影响看，不影响数
        """
        self.loss.add(report.loss)  # 跳过的步可能是 NaN，Smoothed 自己会挡
        self.tokens.add(report.n_tokens)  # 这一步的词元数
        self.seconds.add(report.seconds)  # 不含评估与存档
        # ① 终端：按时间刷新，不按步数；一步是几毫秒还是几分钟，都一样看
        if self.bar is not None:
            now = time.perf_counter()
            if now - self._refreshed >= REFRESH_SECONDS:
                self._refreshed = now
                status = self._status(trainer, report)
                self.bar.update(self._task, completed=report.step, status=status, refresh=True)
            return
        # ② 日志：按步数打，行数与训练多久无关；第一步也打，好让人知道它动起来了
        every = self.every or max(1, trainer.config.steps // PLAIN_LINES)
        if report.step % every == 0 or report.step == self._first_step + 1:
            self._say(f"step {report.step}/{trainer.config.steps} {self._status(trainer, report)}")

    def _status(self, trainer: Trainer, report: StepReport) -> str:
        """进度条右边的字：这一步的损失、平滑的损失、速度、还要多久。

        公式：速度 = 平均词元数 / 平均秒数；ETA = 已用的钟点 / 已走的步 × 剩下的步
        """
        # 先除后平均会被偶尔的一步长停顿带偏，所以分别平均再相除
        speed = self.tokens.value / self.seconds.value if self.seconds.value else 0.0
        done = report.step - self._first_step  # 这次开始以来走了几步
        left = trainer.config.steps - report.step  # 还剩几步
        eta = (time.perf_counter() - self._began) / max(1, done) * left
        return (
            f"loss {report.loss:.3f} (avg {self.loss.value:.3f}) · "
            f"{short(speed)} tokens/s · ETA {clock(eta)}"
        )

    def on_evaluate(self, trainer: Trainer, report: EvaluationReport) -> None:
        """评估完：打一行，留在屏幕上。

        进度条会被刷掉，验证损失却是回头要比的数，所以单独成行
        """
        # 不知道每个词元合几个字节时，就没有每字节比特这一栏
        bits = "" if report.bits_per_byte is None else f", {report.bits_per_byte:.3f} bits/byte"
        best = " (best)" if report.improved else ""
        self._say(f"step {report.step}: validation loss {report.loss:.4f}{bits}{best}")

    def on_warning(self, trainer: Trainer, message: str) -> None:
        """警告要显眼：上颜色；不认颜色的地方，还有开头的 warning。"""
        self._say(f"warning: {message}", style="yellow")

    def on_message(self, trainer: Trainer, text: str) -> None:
        """给人看的话：样例、梯度的表。"""
        self._say(text)

    def on_end(self, trainer: Trainer, result: TrainResult | None) -> None:
        """结束：收起进度条，说一句结论；出了错就只收起，错误由抛出的异常去说。"""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None  # 之后再有话说，就按普通的一行打
        if result is not None:
            self._say(summary(result, trainer.config.steps))

    def _say(self, text: str, style: str | None = None) -> None:
        """打在进度条上方；方括号是文字，不是 rich 的记号。"""
        self.console.print(escape(text), style=style, soft_wrap=True)


def summary(result: TrainResult, steps: int) -> str:
    """一句话的结论：走了多远、用了多久、损失多少、存在哪里。

    约定：没有的（没评估、没跳过、没存）就不提，不写「无」；最好的正是最后一次时也不重复
    """
    # ① 走了多远、用了多久：速度只算训练，时间是全部，两个口径都写明
    parts = [f"{result.step} of {steps} steps, {short(result.tokens_seen)} tokens"]
    parts.append(
        f"{clock(result.total_seconds)} in all ({short(result.tokens_per_second)} tokens/s "
        "while training)"
    )
    # ② 损失：训练的、验证的、最好的
    if result.loss is not None:
        parts.append(f"loss {result.loss:.4f}")
    if result.val_loss is not None:
        bits = "" if result.bits_per_byte is None else f" = {result.bits_per_byte:.3f} bits/byte"
        parts.append(f"validation {result.val_loss:.4f}{bits}")
    if result.best_loss is not None and result.best_step != result.step:
        parts.append(f"best {result.best_loss:.4f} at step {result.best_step}")
    if result.skipped_steps:
        parts.append(f"{result.skipped_steps} steps skipped")
    # ③ 为什么停：放在句首，人先想知道的是「练完了吗」
    why = "done: "
    if result.interrupted:
        why = "interrupted, resume to continue: "
    elif result.stopped_early:
        why = "stopped early, no progress: "
    where = "" if result.directory is None else f"; saved in {Path(result.directory)}"
    return why + "; ".join(parts) + where


def short(number: float) -> str:
    """把大数写短：18234 → 18.2k。

    公式：每除一次 1000 换一个后缀，留三位有效数字
    """
    for suffix in ("", "k", "M", "G"):
        # 不是 1000：四舍五入到三位之后会变成 1e+03
        if abs(number) < 999.5:
            return f"{number:.3g}{suffix}"
        number /= 1000
    return f"{number:.3g}T"


def clock(seconds: float) -> str:
    """秒 → 时:分:秒；小时不进位成天，看着仍是一个数。"""
    whole = max(0, round(seconds))  # 负的时间没有意义，按 0 写
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def demo() -> None:
    """平滑的损失怎样跟上、怎样不被 NaN 毁掉；几个写短的数。"""
    print("① 真实的趋势是 4 → 2，叠上抖动；看单步与看平滑的")
    smoothed, wiggle = Smoothed(), 0.0
    for step in range(1, 101):
        wiggle = math.sin(step * 12.9898) * 0.5  # 看着像随机，其实每次都一样
        loss = 4 - 2 * step / 100 + wiggle  # 直线 + 抖动
        smoothed.add(loss)
        if step in (1, 2, 5, 20, 60, 100):
            print(f"   第 {step:3d} 步  这一步 {loss:.3f}  平滑 {smoothed.value:.3f}")
    # 平滑的滞后一点（平均的是最近二十步），但几乎不抖
    assert abs(smoothed.value - 2.4) < 0.15

    print("② 第一步就对：有偏差修正，不会从 0 慢慢爬上来")
    first = Smoothed()
    first.add(4.0)
    assert first.value == 4.0
    print(f"   第一个数是 4，平均就是 {first.value}；没有修正会是 {4 * (1 - SMOOTHING):.2f}")

    print("③ NaN 不进平均")
    before = smoothed.value
    # 训练里真会有：这一批的损失溢出了，那一步会被跳过
    smoothed.add(math.nan)
    smoothed.add(math.inf)
    assert smoothed.value == before
    print(f"   来了 NaN 与无穷大，仍是 {smoothed.value:.3f}")

    # 进位的边上最容易错：999 不该写成 1k
    print("④ 写短：" + "，".join(short(n) for n in (7, 999, 18234, 1.3e6)) + "；" + clock(3725))
    assert (short(18234), clock(3725)) == ("18.2k", "1:02:05")


if __name__ == "__main__":
    run_demo(demo)
