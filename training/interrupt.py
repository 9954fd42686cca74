r"""按下 Ctrl-C，怎样不浪费已经练好的？——记下「有人请停」，走完这一步，存好，再走。

Ctrl-C 是操作系统发来的一个信号（SIGINT）。Python 默认的反应是在随便哪一行抛出 KeyboardInterrupt：
也许权重更新到一半，也许存档写到一半。这里换一种反应：

    第一次   只举一面旗：requested = True；训练循环每步看一眼，走完、存好、正常返回
    第二次   立刻抛 KeyboardInterrupt：人等不及了，最后一个好存档还在

    时间 ──▶   步 41      步 42            存档     返回
              ├──────────┼──────┬─────────┼───────┤
                              Ctrl-C：旗举起来，第 42 步照常走完

SIGTERM（kill、集群回收机器时发的）同样处理：给几十秒的宽限，足够存好。kill -9 与停电没有信号
可接，靠的是存档本身「要么完整，要么不存在」。

信号只能由主线程接管；在别的线程里训练（例如笔记本的后台任务），就不接管，行为照旧。
用完放回原来的反应：训练之外的程序，Ctrl-C 该怎样还怎样。

用法：

    with GracefulStop() as stop:
        while not stop.requested:
            …一步…

改一面旗（requested = True）而不是当场存档，是因为信号可能来在任何两条字节码之间：
权重正更新到一半，这时存下的不是任何一步的状态。旗只是一个真假，什么时候改都安全。

改哪里：多接一种信号 → SIGNALS；请停之后做什么 → trainer.py 的 fit。
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from foundation.demonstration import run_demo

__all__ = ["GracefulStop"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C；kill 与集群回收


class GracefulStop:
    """上下文管理器：里面收到 SIGINT 或 SIGTERM，只把 requested 变成 True。

    约定：用它的循环每步看一眼 requested；不看，第一次 Ctrl-C 就像没按
    错误：收到第二次 → KeyboardInterrupt，从正在走的那一行抛出
    """

    def __init__(self) -> None:
        self.requested = False  # 有人请停；举起来就不再放下
        self._previous: dict[signal.Signals, Any] = {}  # 信号 → 原来的反应

    def __enter__(self) -> GracefulStop:
        """接管信号，记住原来的反应。"""
        # Python 只许主线程换信号的反应；别的线程里换会抛 ValueError
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # signal.signal 换上新的，交回旧的：一句话里又换又记
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,  # 三个都是 None = 正常离开
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """放回原来的反应；里面抛出的异常照常往外走，一个也不吞。"""
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """第一次举旗，第二次放手；两个参数是 Python 给的，用不着。"""
        if not self.requested:
            self.requested = True
            return  # 回到被打断的那一行，接着走完这一步
        # 先放回原来的反应：万一清理时又按，也不会再绕到这里
        self._restore()
        raise KeyboardInterrupt

    def _restore(self) -> None:
        """把每个信号原来的反应放回去；做两遍也无妨。"""
        while self._previous:
            number, previous = self._previous.popitem()
            # None 表示原来的反应不是 Python 设的，没法放回，只好用默认的
            signal.signal(number, signal.SIG_DFL if previous is None else previous)


def demo() -> None:
    """给自己发两次 Ctrl-C：第一次走完当前的步，第二次立刻停。"""
    before = signal.getsignal(signal.SIGINT)  # 进来之前的反应，出去时要还是它
    done = []  # 完整走完的步
    print("① 第 3 步走到一半时按 Ctrl-C")
    with GracefulStop() as stop:
        for step in range(1, 10):
            # 信号到的时候，第 3 步还有后半截没走
            if step == 3:
                signal.raise_signal(signal.SIGINT)
            done.append(step)  # 这一步的后半截
            if stop.requested:
                break  # 训练循环在这里存档再返回
    print(f"   走完的步 {done}，第 3 步没有断在中间")
    assert done == [1, 2, 3]
    # 出来之后，Ctrl-C 该怎样还怎样
    assert signal.getsignal(signal.SIGINT) is before

    print("② 等不及，再按一次")
    try:
        with GracefulStop() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.requested
            # 旗已经举着：人等不及了
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the second Ctrl-C must interrupt at once")
    except KeyboardInterrupt:
        print("   KeyboardInterrupt，立刻停下")
    assert signal.getsignal(signal.SIGINT) is before

    print("③ 不在主线程里：不接管，也不报错")
    heard: list[bool] = []  # 后台线程看到的旗

    def background() -> None:
        """笔记本里的后台训练就是这样跑的。"""
        with GracefulStop() as stop:
            heard.append(stop.requested)

    thread = threading.Thread(target=background)
    thread.start()
    thread.join()
    print(f"   后台线程里 requested = {heard[0]}，共 {len(heard)} 次")
    assert heard == [False]


if __name__ == "__main__":
    run_demo(demo)
