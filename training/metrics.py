r"""怎样把每一步的数字留下来，又不怕半路断电？——一行一个 JSON，写一行、刷一行（JSON Lines）。

    {"step": 1, "loss": 7.62, "learning_rate": 3e-05, "grad_norm": 2.41, "tokens": 4096, …}
    {"step": 200, "val_loss": 3.91, "bits_per_byte": 2.13}
    {"step": 207, "skipped": "the loss is nan", "window_ids": [81920, 4096]}
    {"step": 300, "warning": "the loss has not fallen: …"}

为什么不用一个大 JSON：它要到最后才合上括号，断在半路就整个读不了；一行一个，断了至多丢半行。
为什么不用表格（CSV）：各行的栏目不同；以后多记一个数，旧文件照样能读。

续训时要先截断：存档是第 200 步的，断电却在第 237 步，那么 201 … 237 的几行是「没有发生过」的，
接着练会再写一遍。不截断，图上就有一段来回。

    文件   1 … 200 │ 201 … 237 │ 半行        存档：第 200 步
                   └── 截掉 ──────┘
    续训           │ 201 …

NaN 写成 null：JSON 里没有 NaN，写进去别的语言就读不了。

用法：import json; [json.loads(line) for line in open("runs/a/metrics.jsonl")]，或 read_metrics。

改哪里：一步多记一个数 → MetricsHook.on_step；换成别的格式 → 另写一个钩子，仿照 hooks.py。
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from foundation.demonstration import run_demo
from foundation.files import write_text
from training.hook_base import EvaluationReport, Hook, StepReport, TrainResult

if TYPE_CHECKING:
    from training.trainer import Trainer

__all__ = ["METRICS_FILE", "MetricsHook", "read_metrics"]

METRICS_FILE = "metrics.jsonl"


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """读回各行；最后的半行（断电时没写完的）与坏行跳过。

    错误：文件不在 → FileNotFoundError
    """
    records = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def encode_line(facts: dict[str, Any]) -> str:
    """一行；NaN 与无穷大写成 null。"""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in facts.items()
    }
    return json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n"


class MetricsHook(Hook):
    """把每一步、每次评估、每句警告写进 metrics.jsonl。

    参数：path 默认是训练目录里的 metrics.jsonl；every 隔多少步记一行（评估与警告总是记）
    """

    def __init__(self, path: Path | str | None = None, *, every: int = 1) -> None:
        self.path = None if path is None else Path(path)
        self.every = every
        self._file: TextIO | None = None

    def on_start(self, trainer: Trainer) -> None:
        """打开文件：从头练就清空，续训就截到存档的那一步。"""
        if self.path is None:
            if trainer.run_dir is None:
                raise ValueError("MetricsHook needs a path, or a Trainer with a run_dir")
            self.path = trainer.run_dir / METRICS_FILE
        done, kept = trainer.state.step, []
        if done and self.path.is_file():
            kept = [record for record in read_metrics(self.path) if record["step"] <= done]
        # 先写在旁边再换上：截断到一半断电，旧的还在
        write_text(self.path, "".join(map(encode_line, kept)))
        self._file = open(self.path, "a", encoding="utf-8", newline="\n")

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """一步一行；跳过的步写明原因与窗口。"""
        if report.skipped:
            self._write(
                {
                    "step": report.step,
                    "skipped": report.problem,
                    "window_ids": list(report.window_ids),
                }
            )
        elif report.step % self.every == 0:
            self._write(
                {
                    "step": report.step,
                    "loss": report.loss,
                    "learning_rate": report.learning_rate,
                    "grad_norm": report.grad_norm,
                    "tokens": trainer.state.tokens_seen,
                    "seconds": round(report.seconds, 6),
                }
            )

    def on_evaluate(self, trainer: Trainer, report: EvaluationReport) -> None:
        """一次评估一行。"""
        self._write(
            {"step": report.step, "val_loss": report.loss, "bits_per_byte": report.bits_per_byte}
        )

    def on_warning(self, trainer: Trainer, message: str) -> None:
        """警告也留下来：屏幕上的会滚走。"""
        self._write({"step": trainer.state.step, "warning": message})

    def on_end(self, trainer: Trainer, result: TrainResult | None) -> None:
        """关好文件。"""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, facts: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(encode_line(facts))
            # 交给操作系统：进程被杀，写过的行还在
            self._file.flush()


def demo() -> None:
    """写几行、断在半路、续训截断：文件始终读得了，也没有「来回」。"""
    from types import SimpleNamespace

    def trainer_at(step: int) -> Any:
        # 钩子只看 run_dir 与 state，给个有这两样的东西就行
        return SimpleNamespace(run_dir=Path(name), state=SimpleNamespace(step=step, tokens_seen=0))

    def steps(hook: MetricsHook, first: int, last: int) -> None:
        for step in range(first, last + 1):
            hook.on_step(trainer_at(step), StepReport(step, 3.0 / step, 1e-3, 0.5, 64, 0.01))

    with tempfile.TemporaryDirectory() as name:
        path = Path(name, METRICS_FILE)
        hook = MetricsHook()
        hook.on_start(trainer_at(0))
        steps(hook, 1, 7)
        hook.on_step(
            trainer_at(8),
            StepReport(8, math.nan, 1e-3, math.nan, 64, 0.01, "the loss is nan", (96,)),
        )
        hook.on_end(trainer_at(8), None)
        print("① 写了八行；最后一步是坏的")
        for line in path.read_text(encoding="utf-8").splitlines()[-2:]:
            print(f"   {line}")

        with open(path, "a", encoding="utf-8", newline="\n") as file:
            file.write('{"step": 9, "lo')  # 断电：只写出半行
        print(f"② 断电留下半行；读得到的还有 {len(read_metrics(path))} 行")
        assert len(read_metrics(path)) == 8

        print("③ 存档是第 5 步的，从那里续训，走到第 9 步")
        hook = MetricsHook()
        hook.on_start(trainer_at(5))
        steps(hook, 6, 9)
        hook.on_end(trainer_at(9), None)
        found = [record["step"] for record in read_metrics(path)]
        print(f"   文件里的步数 {found}：没有缺的，也没有来回")
        assert found == list(range(1, 10))


if __name__ == "__main__":
    run_demo(demo)
