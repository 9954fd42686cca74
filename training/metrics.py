r"""怎样把每一步的数字留下来，又不怕半路断电？——一行一个 JSON，写一行、刷一行（JSON Lines）。

    {"step": 1, "loss": 7.62, "learning_rate": 3e-05, "grad_norm": 2.41, "tokens": 4096, …}
    {"step": 200, "val_loss": 3.91, "bits_per_byte": 2.13}
    {"step": 207, "skipped": "the loss is nan", "window_ids": [81920, 4096]}
    {"step": 250, "loss": 2.9, …, "window_ids": [512], "spikes": [{"what": "gradient norm", …}]}
    {"step": 300, "warning": "the loss has not fallen: …"}

为什么不用一个大 JSON：它要到最后才合上括号，断在半路就整个读不了；一行一个，断了至多丢半行。
为什么不用表格（CSV）：各行的栏目不同；以后多记一个数，旧文件照样能读。

续训时要先截断：存档是第 200 步的，断电却在第 237 步，那么 201 … 237 的几行是「没有发生过」的，
接着练会再写一遍。不截断，图上就有一段来回。

    文件   1 … 200 │ 201 … 237 │ 半行        存档：第 200 步
                   └── 截掉 ──────┘
    续训           │ 201 …

    写的一边   字典 ─ encode_line ─▶ 一行 ─ flush ─▶ 操作系统 ─▶ 磁盘
    读的一边   磁盘 ─▶ 逐行 json.loads ─▶ 认得的留下，认不得的（半行）跳过

进程被杀，交给操作系统的行都还在；整台机器断电，最后几行也可能没到磁盘。每行都等磁盘（fsync）
太慢，而丢的只是记录，权重由存档保护，续训会把那几步重走、重写。

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

METRICS_FILE = "metrics.jsonl"  # 画图与续训也按这个名字找


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """读回各行；最后的半行（断电时没写完的）与坏行跳过。

    类型：每行一个字典，至少有整数的 step；其余的键看这一行记的是什么
    错误：文件不在 → FileNotFoundError
    """
    records = []
    # 断在一个汉字中间时，末尾不是完整的 UTF-8：换成替代字符，别让整个文件读不了
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # 半行不是完整的 JSON，认得出来
        # 没有步数的行，截断与画图时都不知道放在哪里
        # 手改过的文件里，也可能有不是字典的行
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def encode_line(facts: dict[str, Any]) -> str:
    """一行；NaN 与无穷大写成 null。

    约定：只看最外面一层的浮点数；末尾带换行，接着写就是下一行
    错误：里层藏着 NaN → json 抛 ValueError，不会写出别人读不了的文件
    """
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in facts.items()
    }
    # 不转义汉字：用文本编辑器打开也读得懂
    return json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n"


def spike_facts(report: StepReport) -> dict[str, Any]:
    """跳高的一步多记一栏：什么、多大、平常多大、多大算高；没有跳高就不占地方。"""
    return {"spikes": [spike.to_dict() for spike in report.spikes]} if report.spikes else {}


class MetricsHook(Hook):
    """把每一步、每次评估、每句警告写进 metrics.jsonl。

    参数：path 默认是训练目录里的 metrics.jsonl；every 隔多少步记一行（评估与警告总是记）
    约定：on_start 打开、on_end 关上；没开始就来的话不记，也不报错
    """

    silent = True  # 写进文件不算有人看见，警告还要另说一遍

    def __init__(self, path: Path | str | None = None, *, every: int = 1) -> None:
        self.path = None if path is None else Path(path)
        self.every = every  # 步
        self._file: TextIO | None = None  # 一直开着：每步都开一次文件太慢

    def on_start(self, trainer: Trainer) -> None:
        """打开文件：从头练就清空，续训就截到存档的那一步。

        错误：没有给 path，Trainer 也没有 run_dir → ValueError：没有地方写
        """
        if self.path is None:
            if trainer.run_dir is None:
                raise ValueError("MetricsHook needs a path, or a Trainer with a run_dir")
            self.path = trainer.run_dir / METRICS_FILE
        # ① 留下存档之前的：之后的几步还会再走一遍，再写一遍
        done, kept = trainer.state.step, []  # done = 0 就是从头练，什么也不留
        if done and self.path.is_file():
            kept = [record for record in read_metrics(self.path) if record["step"] <= done]
        # ② 先写在旁边再换上：截断到一半断电，旧的还在
        write_text(self.path, "".join(map(encode_line, kept)))
        # ③ 换行一律用 \n：在 Windows 上写的文件，拿到别处也逐字节相同
        self._file = open(self.path, "a", encoding="utf-8", newline="\n")

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """一步一行；跳过的步写明原因与窗口。

        约定：坏的步总是记，不管 every；少见，却正是事后要找的
        """
        if report.skipped:
            self._write(
                {
                    "step": report.step,
                    "skipped": report.problem,  # 例如损失是 NaN
                    "window_ids": list(report.window_ids),  # 凭它回到原文，看是哪一段
                    **spike_facts(report),
                }
            )
        elif report.step % self.every == 0 or report.spikes:
            self._write(
                {
                    "step": report.step,
                    "loss": report.loss,  # 更新之前，每道题的平均
                    "learning_rate": report.learning_rate,
                    "grad_norm": report.grad_norm,  # 裁剪之前
                    "tokens": trainer.state.tokens_seen,  # 累计，含续训之前的
                    "seconds": round(report.seconds, 6),  # 这一步；到微秒就够了
                    **({"window_ids": list(report.window_ids)} if report.spikes else {}),
                    **spike_facts(report),
                }
            )

    def on_evaluate(self, trainer: Trainer, report: EvaluationReport) -> None:
        """一次评估一行；与那一步的训练行分开写，读的时候按键区分。"""
        self._write(
            {"step": report.step, "val_loss": report.loss, "bits_per_byte": report.bits_per_byte}
        )

    def on_warning(self, trainer: Trainer, message: str) -> None:
        """警告也留下来：屏幕上的会滚走。"""
        self._write({"step": trainer.state.step, "warning": message})

    def on_end(self, trainer: Trainer, result: TrainResult | None) -> None:
        """关好文件；出了错也会走到这里，写过的行一行不少。"""
        if self._file is not None:
            self._file.close()
            self._file = None  # 再来的话不记

    def _write(self, facts: dict[str, Any]) -> None:
        """写一行，立刻交出去；整行一次写，不会两半之间插进别的。"""
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
        # 损失编成 3/步数：一眼看出哪一行是哪一步的
        for step in range(first, last + 1):
            hook.on_step(trainer_at(step), StepReport(step, 3.0 / step, 1e-3, 0.5, 64, 0.01))

    with tempfile.TemporaryDirectory() as name:
        path = Path(name, METRICS_FILE)
        # 第一次训练：七步好的，第八步损失是 NaN
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

        # 第 6 … 8 步写过，却没有存档：续训会重走，旧的几行必须先截掉
        print("③ 存档是第 5 步的，从那里续训，走到第 9 步")
        hook = MetricsHook()
        hook.on_start(trainer_at(5))  # 截断就发生在这里
        steps(hook, 6, 9)
        hook.on_end(trainer_at(9), None)
        found = [record["step"] for record in read_metrics(path)]
        print(f"   文件里的步数 {found}：没有缺的，也没有来回")
        assert found == list(range(1, 10))


if __name__ == "__main__":
    run_demo(demo)
