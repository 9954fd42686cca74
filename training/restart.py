r"""一个进程半夜被杀了，谁来接着练？——torchrun 把大家重新启动，同一条命令自己从最后一个好存档接上。

    torchrun --nproc-per-node 2 --max-restarts 3 -m fromzero train --parallel ddp …

    rank 0  ── 步 1 … 步 40 ──┐                      ┌─ 读 step-000030 ── 步 31 … 完
    rank 1  ── 步 1 … ✗ 被杀 ─┴─▶ torchrun 结束全体 ─┴─ 读 step-000030 ── 步 31 … 完
            存 10、20、30           再启动一遍          丢的只是最后一个存档之后的

重来一遍的程序看到的命令与头一遍一字不差：没有写「接着练」，目录里却已有存档，照平时的规矩要拒绝。
所以要分得清两种「已有存档」：

    这一趟 torchrun 自己存下的    接着练，不必人来说
    以前别的训练存下的            照旧拒绝；头一遍拒绝了的，重来几遍也还是拒绝

凭一张条子分：占住目录之后写下这一趟的名字（torchrun 的编号与它的进程号）与自己的进程号。
这一趟的名字对得上、进程却换了，就是重来的；对不上的，是别人的存档。
光看「是第几次重来」不够：头一遍因为目录里有旧存档而报错退出，torchrun 一样会重来，
那时若接上，接的就是别人的训练；几台机器一起练时，各台数的次数也可能不同。

丢掉的步数，平均是存档间隔的一半；存得太勤，时间又花在存上。两头一加，最好的间隔是

$$\Delta^{*} = \sqrt{2\,C\,M} \qquad C\ \text{存一次的时间},\quad M\ \text{平均多久坏一次}$$

接上之后与没断过的逐比特相同：几个进程的随机数都在存档里，见 random_state.py。

论文：存档的间隔 — Young, *A First Order Approximation to the Optimum Checkpoint Interval*, 1974。

改哪里：怎样算同一趟（换成 Slurm 的作业号）→ this_job；接上之后做什么 → trainer.py 的 fit。
"""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

from foundation.demonstration import run_demo
from foundation.files import MANIFEST, read_json, write_json
from training.checkpoint_list import list_checkpoints
from training.distributed import ALONE, Processes

__all__ = ["earlier_attempt", "leave_note", "resumes_by_itself"]

NOTE_FILE = ".attempt.json"  # 条子；与锁一样，点开头，不算训练的产物


def this_job() -> str | None:
    """这一趟 torchrun 的名字；不在 torchrun 里就是 None。

    为什么带上父进程号：--standalone 以外，编号可能人人都叫 none；而重来几遍，torchrun 还是那一个
    """
    number = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if number is None else f"{number}/{os.getppid()}"


def leave_note(run_dir: Path) -> None:
    """在占住的目录里留下这一趟的名字；不在 torchrun 里，就把以前的条子擦掉。"""
    job = this_job()
    if job is None:
        # 条子里的进程号日后会被别的程序重用
        (run_dir / NOTE_FILE).unlink(missing_ok=True)  # 留着，就可能认错
    else:
        write_json(run_dir / NOTE_FILE, {"job": job, "pid": os.getpid()})


def begun_before(run_dir: Path) -> bool:
    """目录里的条子是不是这一趟的上一遍留下的；条子没有、坏了，都算不是。

    为什么看进程号：同一个程序里练两次（第二次说了 overwrite），不是重来
    """
    try:
        # 写条子用的是「写在旁边再改名」，所以只会没有，不会只有一半
        note = read_json(run_dir / NOTE_FILE)
        return bool(note["job"] == this_job() and note["pid"] != os.getpid())
    except (ValueError, OSError, KeyError, TypeError):
        return False


def earlier_attempt(parent: Path, processes: Processes = ALONE) -> Path | None:
    """parent 自己、或它下面的哪个目录，是这一趟 torchrun 上一遍用的；没有就是 None。

    约定：集体的；人人得到 rank 0 看到的那个
    用处：没有写 --out 时目录是自动取名的，重来一遍不能再取一个新的
    """
    found = None
    if this_job() is not None and processes.is_main:
        # 一趟只占一个目录；排好序只为每次都一样
        candidates = [parent, *sorted(parent.glob(f"*/{NOTE_FILE}"))]
        folders = [path.parent if path.name == NOTE_FILE else path for path in candidates]
        found = next((str(folder) for folder in folders if begun_before(folder)), None)
    found = processes.broadcast(found)
    return None if found is None else Path(found)


def resumes_by_itself(run_dir: Path | None, processes: Processes = ALONE) -> bool:
    """要不要不等人说就接着练：torchrun 重来的，而且存档是这一趟自己存的。

    约定：集体的；rank 0 看，人人照办：几台机器的时钟与文件缓存可能差一点
    """
    mine = False
    if run_dir is not None and processes.is_main:
        # 存第一个之前就被杀了：没有可接的，从头练就是
        mine = begun_before(run_dir) and bool(list_checkpoints(run_dir))
    return bool(processes.broadcast(mine))


def demo() -> None:
    """扮演 torchrun 的几遍启动：哪一遍接着练，哪一遍不接；隔多久存一次。"""
    before = os.environ.get("TORCHELASTIC_RUN_ID")
    with tempfile.TemporaryDirectory() as name:
        run, checkpoint = Path(name), Path(name, "step-000030")
        os.environ["TORCHELASTIC_RUN_ID"] = "night-1"
        leave_note(run)  # 头一遍：占住目录，留下条子
        again = resumes_by_itself(run)
        # 扮演重来：条子还在，写它的进程已经不在了
        note = read_json(run / NOTE_FILE)
        write_json(run / NOTE_FILE, {**note, "pid": note["pid"] + 1})
        found = [("同一个进程再练一次　　　　", again)]
        # 头一遍死得早：条子留下了，存档还没有
        found += [("重来，可是还没有存过　　　", resumes_by_itself(run))]
        checkpoint.mkdir()  # 有清单的才算存档
        (checkpoint / MANIFEST).write_text("{}", encoding="utf-8")
        found += [("重来，存过第 30 步　　　　", resumes_by_itself(run))]
        os.environ["TORCHELASTIC_RUN_ID"] = "night-2"
        # 第二天又启动一趟，目录写的还是这个
        found += [("另一趟，存档是别人的　　　", resumes_by_itself(run))]
        del os.environ["TORCHELASTIC_RUN_ID"]
        found += [("不在 torchrun 里　　　　　", resumes_by_itself(run))]
    if before is not None:
        os.environ["TORCHELASTIC_RUN_ID"] = before  # 演完放回
    print("① 同一条命令，几种情形：自己接着练吗？")
    for what, answer in found:
        print(f"   {what} → {'接着练' if answer else '不接'}")
    assert [answer for _, answer in found] == [False, False, True, False, False]

    print("② 存一次 20 秒、平均一天坏一次：隔多久存一次，白花的时间最少")
    cost, between = 20.0, 24 * 3600.0

    def wasted(interval: float) -> float:
        """每秒白花多少：存的，加上坏了要重走的（平均半个间隔）。"""
        return cost / interval + interval / 2 / between

    # 对间隔求导，令它为 0
    best = math.sqrt(2 * cost * between)
    for interval in (best / 10, best, best * 10):
        print(f"   每 {interval / 60:6.1f} 分钟  白花 {100 * wasted(interval):5.2f} %")
        assert wasted(interval) >= wasted(best)


if __name__ == "__main__":
    run_demo(demo)
