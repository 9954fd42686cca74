r"""一次训练的目录归谁用、能不能写、里面已有的东西怎么办？——都在第 0 步说清，而不是一小时之后。

    runs/my-run/
    ├── step-000200/      存档，见 checkpoint.py
    ├── metrics.jsonl     每一步的数字，见 hooks.py
    ├── loss.png          曲线，见 loss_plot.py
    ├── .lock             锁：开着它的进程才算占着；进程一死，操作系统自动放开
    ├── .owner.json       占着的人是谁：只为出错时好说话
    └── .attempt.json     torchrun 的哪一趟在用，见 restart.py

进门的四道检查，次序不能换：

    能写吗 ──▶ 占得住吗 ──▶ 扫掉断电留下的半成品 ──▶ 已有的存档怎么办
    不能就说    别人占着      （占住之后才扫：别人         从头练 → 拒绝，除非说了 overwrite
    是什么毛病  就说是谁       可能正写着它）              接着练 → 没有存档就拒绝，绝不悄悄从头来

两个「绝不悄悄」：说了接着练而没有存档，不许从头练（几天的训练也许只是路径写错了）；
没说 overwrite 而已有存档，不许盖掉。

为什么用锁而不看 .owner.json 里的进程号：进程号会被别的程序重用，机器重启之后更不可信；
文件锁由操作系统看管，进程怎么死的都会放开，不会留下一个谁也打不开的门。

论文：*The Twelve-Factor App* 的「快速失败」；锁文件的毛病 — `man 2 flock`。

改哪里：训练目录里多了一种自己的文件 → OWN_FILES（overwrite 时一并清掉）。
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from foundation.checks import check_bool
from foundation.demonstration import run_demo
from foundation.files import read_json, sweep_temporaries, write_json
from training.checkpoint_list import Checkpoint, list_checkpoints, remove_checkpoint
from training.restart import leave_note

__all__ = ["RunDirectory"]

LOCK_FILE = ".lock"  # 留着空文件也不碍事：算数的是锁，不是文件
OWNER_FILE = ".owner.json"  # 写给人看的，不拿它做判断
# 重新开始时，除了存档还要清掉的：都是上一次训练留下的
OWN_FILES = ("metrics.jsonl", "loss.png", "samples.txt")


class RunDirectory:
    """一次训练的目录；用 claimed() 占住它，出来时自动放开。

    约定：建这个对象什么也不做，目录也不碰；一切检查都在 claimed() 里
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @contextmanager
    def claimed(self, *, resume: bool = False, overwrite: bool = False) -> Iterator[Path]:
        """占住目录；里面的检查都过了才进得来。

        约定：出来时（包括出错）锁一定放开；存档与日志都留着
        约定：overwrite 只删自己认得的文件，目录里别人的东西不动；查过才删
        错误：不能写、别人占着、要续训而没有存档、要从头练而已有存档 → ValueError
        """
        with self._locked(resume=resume, overwrite=overwrite) as found:
            # 从头开始：上一次的曲线也不该留在这一次的图里
            if not resume:
                for checkpoint in found:  # 先改名再删，死在半路也不留残骸
                    remove_checkpoint(checkpoint.directory)
                for name in OWN_FILES:
                    (self.path / name).unlink(missing_ok=True)  # 没有也不要紧
            leave_note(self.path)  # 旧的已经处置好：从此存下的都是这一趟的
            yield self.path  # 训练就在这里面

    def check(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """占得住吗？查的与 claimed 一样多，却什么也不删。

        用法：读数据、建模型之前先问一句；写错的文件名不该要等旧的存档删光了才发现
        错误：同 claimed
        """
        with self._locked(resume=resume, overwrite=overwrite):
            pass

    @contextmanager
    def _locked(self, *, resume: bool, overwrite: bool) -> Iterator[list[Checkpoint]]:
        """拿住锁，查过旧的存档可不可以动；交出找到的存档。"""
        # 用 & 而不用 and：前一个为假，后一个的类型也要查到
        if check_bool("resume", resume) & check_bool("overwrite", overwrite):
            raise ValueError("resume and overwrite contradict each other; choose one")
        # ① 续训一个不存在的目录：先查，免得顺手把它建了出来
        if resume and not self.path.is_dir():
            raise ValueError(f"cannot resume: the run directory {self.path} does not exist")
        self._check_writable()  # 锁也是文件，写不了就占不住
        lock = FileLock(str(self.path / LOCK_FILE))  # 还没有占，只是备好
        try:
            lock.acquire(timeout=0)  # 不等：人还在屏幕前，马上告诉他
        except Timeout:
            raise ValueError(
                f"{self.path} is in use by another run ({self._owner()}); "
                "wait until it ends, or choose another directory"
            ) from None  # 锁库自己的错误帮不上人
        try:
            # ② 占住了，留下名字
            now = time.strftime("%Y-%m-%d %H:%M:%S")  # 本地时间，给人看
            owner = {"pid": os.getpid(), "host": platform.node(), "since": now}
            write_json(self.path / OWNER_FILE, owner)
            sweep_temporaries(self.path)  # 占住之后，半成品一定没有主人
            yield self._old_checkpoints(resume=resume, overwrite=overwrite)
        finally:
            # ③ 先擦掉名字再放锁：反过来，会擦掉下一个人的
            (self.path / OWNER_FILE).unlink(missing_ok=True)
            lock.release()

    def _check_writable(self) -> None:
        """真的写一个临时文件试试；只看权限位是不够的（只读的磁盘、配额、网络盘）。

        约定：临时文件用完即无；目录没有就建
        错误：建不了、写不进 → ValueError，带上操作系统说的原因
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path) as file:  # 写在同一块盘上才算数
                file.write(b"probe")  # 建得了不等于写得进
        except OSError as error:
            raise ValueError(
                f"the run directory {self.path} cannot be written to: {error.strerror or error}; "
                "choose another directory"
            ) from None

    def _owner(self) -> str:
        """占着的人是谁；名字还没写好、或刚擦掉，就说不知道。"""
        try:
            owner = read_json(self.path / OWNER_FILE)
            return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
        except (ValueError, KeyError, TypeError, OSError):  # 说明文字坏了不该挡路
            return "unknown process"  # 照样拒绝，只是说不出是谁

    def _old_checkpoints(self, *, resume: bool, overwrite: bool) -> list[Checkpoint]:
        """已有的存档怎么办：三种情况，没有一种是悄悄的。

        有存档吗    resume          overwrite       都没说
        有          接着练          删掉，从头练    拒绝
        没有        拒绝            从头练          从头练
        """
        found = list_checkpoints(self.path)
        if resume:
            # ① 续训：至少要有一个；坏没坏，由 resume.py 核对
            if not found:
                raise ValueError(
                    f"cannot resume: {self.path} holds no checkpoint (step-*/manifest.json); "
                    "check the path, or start without resume"
                )
            return found
        # ② 从头练：练好的东西不许不声不响地没了
        if found and not overwrite:
            raise ValueError(
                f"{self.path} already holds checkpoints, the latest is "
                f"{found[-1].directory.name}; resume it, choose another directory, or say "
                "overwrite to delete them and start again"
            )
        return found


def demo() -> None:
    """占住、别人再来、续训空目录、写不进去：每一种都在第 0 步说清。"""

    def attempt(what: str, directory: Path, **how: bool) -> None:
        try:
            with RunDirectory(directory).claimed(**how):
                print(f"   {what} → 可以开始")
        except ValueError as error:
            print(f"   {what} → {str(error).replace(name, '…').split(';')[0]}")

    with tempfile.TemporaryDirectory() as name:
        run = Path(name, "my-run")  # 还不存在
        print("① 进门的检查")
        attempt("从头练，目录还没有", run)
        assert run.is_dir()  # 从头练：目录顺手建好了
        attempt("续训，可是没有存档", run, resume=True)
        attempt("续训，目录写错了　", Path(name, "my-rnu"), resume=True)
        # 写错的目录不会被顺手建出来
        assert not Path(name, "my-rnu").exists()
        Path(name, "file").write_text("", encoding="utf-8")
        attempt("目录其实是个文件　", Path(name, "file"))

        print("② 两次训练用同一个目录，后来的要等")
        with RunDirectory(run).claimed():  # 先来的占着
            try:
                with RunDirectory(run).claimed():
                    raise AssertionError("two runs must not share a directory")
            except ValueError as error:
                message = str(error)
        assert str(os.getpid()) in message  # 占着的就是本进程
        print(f"   后来的知道是谁占着：进程号在那句话里吗？{str(os.getpid()) in message}")
        # 放开之后就能用了；断电留下的半成品，进门时已扫掉
        (run / "step-000100.tmp-0a1b").mkdir()
        with RunDirectory(run).claimed():
            left = sorted(path.name for path in run.iterdir() if not path.name.startswith("."))
        print(f"   放开之后又能用；断电留下的 step-000100.tmp-0a1b 还在吗？{bool(left)}")
        assert left == []  # 半成品扫掉了


if __name__ == "__main__":
    run_demo(demo)
