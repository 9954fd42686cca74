r"""怎样让许多进程一起干活，又按交出去的次序收回来，谁也不掉队、谁也不变成孤儿？

    主进程                              工作进程（各有一份分词器，各用一个核）
    读文档、装箱 ──第 0 份──▶ ┌───┐
                 ──第 1 份──▶ │队列│ ──▶ 甲：第 0 份 ── 写文件 ──▶ 各篇的长短
                 ──第 2 份──▶ └───┘ ──▶ 乙：第 1 份 ── 写文件 ──▶ 各篇的长短
    等第 0 份，再等第 1 份……（不管谁先做完）

一次交出多少？少了，进程会闲着等；多了，语料就全读进了内存。手里一份、门口一份：

$$\text{在途} \le 2W, \qquad \text{主进程的内存} \le (2W+1) \cdot \text{一份文本}$$

收回来的只有各篇的长短与哈希，词元留在文件里，所以管道里走的东西很少。

四件容易出错的事：
    fork         Windows 没有；用过线程的进程 fork 出来会卡死。用 spawn：重新启动一个 Python
    Ctrl-C       终端把信号发给每个进程；工作进程不理它，由主进程收场，才不会写到一半
    kill -9      主进程来不及收场；工作进程守着它的句柄（sentinel），它一走就一起走
    内存不够     系统杀死一个工作进程；它的活永远没有结果，所以要认出来，说出该怎么办

一步一步看，W = 2，第 0 份特别慢：

    交出      0 1 2 3 │ 4 │ 5 …          手里与门口的 4 份交完，就停下来等第 0 份
    乙做完      1 2 3 │   │              已经做完，但还没轮到它们
    取回            0 │ 1 │ 2 …          第 0 份一好，1、2、3 立刻就有

代价是一份特别慢的会让别人等；份的大小差不多（见 token_parts.py），所以等不了多久。

常见疑问：
    为什么不用 multiprocessing.Pool？  它的工作进程被系统杀死时会悄悄另开一个，那份活永远等不到。
    几个进程合适？                     分词是纯计算，等于核数；再多只是互相抢，还多占内存。
    笔记本（notebook）里能用吗？       能：要做的函数在模块里，不在笔记本里。

为什么用 spawn 的程序要写 if __name__ == "__main__"：新进程会重新导入主模块，不写就会再开新进程。

论文：任务队列与有界的在途量 — Dean & Ghemawat, *MapReduce*, OSDI 2004。

改哪里：几个进程 → prepare.py 的 _choose_workers；每一份做什么 → token_parts.py 的 make_part。
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar

from foundation.demonstration import run_demo

__all__ = ["available_cores", "in_order"]

Result = TypeVar("Result")


def available_cores() -> int:
    """本进程可用的核数；容器里常比机器的少。"""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(
    work: Callable[..., Result],  # 模块里的函数：要能按名字在另一个进程里找到
    jobs: Iterable[tuple[Any, ...]],  # 每份活的参数；只走一遍，随用随取
    shared: Any,  # 每份活的最后一个参数，只在进程启动时送一次
    workers: int,
) -> Iterator[Result]:
    """work(*job, shared)，交给 workers 个进程做，按 jobs 的次序产生结果。

    错误：work 抛出的原样抛出；一个进程意外死掉 → ValueError
    约定：不再要结果（出错、Ctrl-C、生成器被关掉）时，没开始的取消，正在做的等它做完
    """
    # ① spawn 在三种系统上行为相同；shared 随启动送过去，不必每份活都带着
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (work, shared))
    waiting: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(_work, job))
            # ② 攒够了才等最早交出的那一份；别的可能早已做完，也要等它
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        # ③ 没有新的活了，把手里与门口的收完
        while waiting:
            yield waiting.popleft().result()
    # 系统在内存不够时会直接杀死一个进程；它的活没有结果，也没有别的话可说
    except BrokenProcessPool:
        raise ValueError(
            f"one of {workers} worker processes died (out of memory?); "
            "run again with fewer workers: what is finished is kept"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# 每个工作进程一份，启动时收到；主进程里一直是空的。
_job: tuple[Callable[..., Any], Any] | None = None


def _start_worker(work: Callable[..., Any], shared: Any) -> None:
    """工作进程的开头：记下要做什么；库不再另开线程；Ctrl-C 由主进程管。"""
    global _job
    _job = (work, shared)
    # 环境变量要赶在库第一次用到之前设好
    # 每个进程一个核，分词库再开线程只会互相抢
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # 主进程收到 Ctrl-C 会取消其余的活；这里若也死在半路，主进程就只看到「意外死掉」
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """主进程一消失就退出；否则它会永远等着下一份活。"""
    # 句柄由操作系统维护：主进程不论怎样消失，它都会变成「可读」
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])  # 阻塞到主进程消失
    # 不走收尾：主进程已经不在，没有谁在等
    os._exit(1)


def _work(job: tuple[Any, ...]) -> Any:
    """在工作进程里做一份。"""
    assert _job is not None
    work, shared = _job
    # 结果要送回主进程，所以小才好：这里只送各篇的长短，不送词元
    return work(*job, shared)


def _square_slowly(number: int, folder: Path) -> tuple[int, int]:
    """演示用的活：前面的做得慢，后面的做得快；返回平方与是谁做的。"""
    # 空转着等就好，只是几毫秒
    # 第 0 份要等第 3 份做完才做完：若按完成的先后收，次序一定会乱
    if number == 0:
        while not (folder / "3").exists():
            pass
    (folder / str(number)).touch()
    return number * number, os.getpid()


def demo() -> None:
    """两个进程，第 0 份偏要等第 3 份；收回来的次序照样是 0、1、2……"""
    taken: list[int] = []  # 主进程已经取出了哪些活

    def jobs() -> Iterator[tuple[int]]:
        for number in range(12):
            taken.append(number)
            yield (number,)

    print(f"① 这台机器给本进程 {available_cores()} 个核；演示用两个工作进程")
    # 惰性：结果一个一个地要，活才一份一份地取
    with tempfile.TemporaryDirectory() as name:
        results = in_order(_square_slowly, jobs(), Path(name), workers=2)
        first = next(results)
        print(f"② 拿到第一个结果时，交出去了 {len(taken)} 份：至多 2W = 4")
        assert len(taken) == 4
        found = [first, *results]
    print(f"③ 按交出的次序收回：{[square for square, _ in found]}")
    assert [square for square, _ in found] == [number * number for number in range(12)]
    owners = {owner for _, owner in found}
    print(f"④ 一共 {len(owners)} 个进程动过手，主进程不在其中")
    assert len(owners) == 2
    assert os.getpid() not in owners
    print("⑤ 一份活出了错：原样抛给主进程，其余取消")
    # 工作进程里的异常随结果一起送回来，类型不变，用户看到的还是那句话
    try:
        list(in_order(_square_slowly, [(1, "多给了一个")], Path("."), workers=1))
    except TypeError as error:
        print(f"   TypeError: {error}")
    else:
        raise AssertionError("a job that fails must raise")


if __name__ == "__main__":
    run_demo(demo)
