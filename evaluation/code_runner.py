r"""模型写的程序，怎样跑一跑而不让它拖垮这台机器？——放进一个管得住的子进程。

    本进程                                子进程（自己的进程组、自己的临时文件夹）
    ──────                                ─────────────────────────────────────
    暗号 = 128 位随机数 ──── stdin ─────▶ 读走暗号，换上空的 stdin
                                          设限：内存、处理器时间、文件大小
                                          program.py = 题目 + 模型写的 + 测试
    限时等它  ◀──── stderr，只留开头 ──── 它打印的一切
              ◀──── stdout ────────────── 跑到最后一行、没有出错，才交出暗号
    连同它的子孙一起结束，删掉文件夹

怎样才算通过：收到暗号。不看退出码，也不看它打印了什么——

    os._exit(0)、sys.exit()    退出码是 0，却没有跑到测试     没有暗号，不通过
    print("PASS")              打印的去了 stderr              没有暗号，不通过
    input()                    stdin 是空的，EOFError         不通过
    while True: pass           到时候整组结束                 不通过
    bytearray(10**10)          超出内存上限，MemoryError      不通过
    不停地打印                 只留开头一段，其余读过就扔     看它最后跑没跑完

**这不是沙箱（sandbox）。** 它防的是写坏了的程序，防不住存心的：子进程能读写这个用户能读写的
一切文件、能联网、能翻自己的栈去找暗号。不认识的模型、不认识的题，请放到容器或虚拟机里跑。
Windows 没有 POSIX 的那些限制，只有限时；macOS 不管内存的上限。

环境变量只留几个必要的：里面常有密钥，不该给模型写的程序看。

几道防线，各防什么：
    自己的进程组        它再生的子孙，一并结束；它自己结束了，子孙也不许留下
    墙上的钟            睡着不动的、等锁的：处理器时间管不到它们
    处理器时间          万一我们先没了，系统也会替我们结束它
    内存的上限          写错一个数，占满内存，整台机器都会卡住
    单个文件的大小      同上，占满的是磁盘
    管子只读不留        停不住的打印，占的是我们自己的内存
    隔离模式 -I         它当前的文件夹里有个 random.py，不会被当成标准库

常见疑问：
    为什么不在本进程里 exec？  停不下来就一起停不下来，崩了就一起崩；状态也会互相弄脏
    为什么不看退出码？         程序可以自己定退出码；它定不了暗号
    暗号真的偷不到吗？         偷得到，翻栈就行；所以说它不是沙箱。模型不会碰巧写出这样的程序
    起一个进程不慢吗？         几十毫秒；比模型写一个程序快得多
    能不能几个一起跑？         可以，它们互不相干；这里一个一个来，计时才公平

论文：HumanEval (Chen et al. 2021), arXiv:2107.03374, §2.3。
改哪里：限多少 → `run_program` 的参数；子进程里做什么 → `code_driver.py`。
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from foundation.checks import check_float, check_int
from foundation.demonstration import run_demo

__all__ = ["Outcome", "run_program"]

DRIVER = Path(__file__).with_name("code_driver.py")
# 找得到程序、装得下临时文件、打得出各国文字，就够了
KEPT_VARIABLES = ("PATH", "SYSTEMROOT", "LANG", "LC_ALL")


@dataclass(frozen=True)
class Outcome:
    """一个程序跑得怎样。

    passed  跑到了最后一行
    reason  没有通过的原因：一行；通过了是空的
    output  它打印的开头一段，含错误的经过
    """

    passed: bool
    reason: str
    output: str


class Reader(threading.Thread):
    """把一根管子读到底，只留开头；不读的话，管子满了，对方就停在那里。

    两根管子各要一个：只读一根时，另一根满了，两边就互相等着
    """

    def __init__(self, pipe: IO[bytes], limit: int) -> None:
        # daemon：万一有漏网的子孙还拿着管子，也不会拖住我们退出
        super().__init__(daemon=True)
        self.pipe, self.limit, self.kept = pipe, limit, b""
        self.start()

    def run(self) -> None:
        """读一段、留一段，留够了就只读不留。"""
        while piece := self.pipe.read1(65536):  # type: ignore[attr-defined]
            self.kept += piece[: self.limit - len(self.kept)]


def run_program(
    source: str, *, timeout: float = 10.0, memory: int = 2**30, output_limit: int = 20_000
) -> Outcome:
    """运行一段 Python；跑到最后一行、没有异常才算通过。

    参数：timeout 秒；memory 字节（系统支持时）；output_limit 留下的字节数
    类型：source 里有孤立的代理码位（写不成 UTF-8）也不抛异常，算它不通过
    约定：返回之后，它与它的子孙都已结束，临时文件夹也删了
    """
    check_float("timeout", timeout, exclusive_minimum=0.0)
    check_int("memory", memory, 2**26)  # Python 自己也要几十 MB
    check_int("output_limit", output_limit, 0)
    # 每次都换：上一个程序记下了也没有用
    token = secrets.token_hex(16).encode()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            # 模型写得出任何字符，写不成文件的也有
            data = source.encode("utf-8")
        except UnicodeEncodeError:
            return Outcome(False, "the program is not valid Unicode", "")
        Path(folder, "program.py").write_bytes(data)
        # 从这里起，无论怎样都要把它结束
        # 处理器时间多给一秒：先到的应当是墙上的钟，原因才说得清
        process = start(folder, str(memory), str(int(timeout) + 1))
        try:
            found, output, late = talk(process, token, timeout, output_limit)
        finally:
            end_all(process)
    # 只留开头，可能断在一个字中间：换成 �
    text = output.decode("utf-8", errors="replace")
    if late:
        return Outcome(False, f"not finished after {timeout:g} s", text)
    # 恰好相等才算：多一个字节也不行
    if found == token:
        return Outcome(True, "", text)
    return Outcome(False, reason_of(text, len(output) >= output_limit, process.returncode), text)


def reason_of(text: str, cut: bool, code: int) -> str:
    """没有通过的原因：错误的最后一行；什么也没说就走了，或说得太多看不到最后，就说退出码。

    Python 的错误，最后一行是「异常的名字: 说明」，比前面的经过更有用
    """
    lines = text.strip().splitlines()
    if lines and not cut:
        return lines[-1][:200]
    return f"it ended early, with exit code {code}" + (", and printed too much" if cut else "")


def start(folder: str, *arguments: str, driver: Path = DRIVER) -> subprocess.Popen[bytes]:
    """在自己的进程组里启动；-I 是隔离模式：不看环境变量，也不从当前文件夹导入。

    参数：arguments 给 driver 的；driver 是子进程里的一侧，课程另有自己的
    """
    options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    # 临时文件也写进那个文件夹，一起删掉
    environment |= {name: folder for name in ("HOME", "TMPDIR", "TEMP", "TMP")}
    return subprocess.Popen(
        [sys.executable, "-I", "-B", "-X", "utf8", str(driver), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env=environment,
        **options,
    )


def talk(
    process: subprocess.Popen[bytes], token: bytes, timeout: float, output_limit: int
) -> tuple[bytes, bytes, bool]:
    """给暗号，限时等；返回 (它交出的, 它打印的, 超时了吗)。

    次序要紧：先开始读，再给暗号，再等；反过来，它打印得快就会堵住
    """
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    # 多读一点，好看出有没有多余的
    answer = Reader(process.stdout, 2 * len(token))
    output = Reader(process.stderr, output_limit)
    try:
        process.stdin.write(token)
        # 关上，它才知道暗号读完了
        process.stdin.close()
    except OSError:
        pass  # 它还没读就没了；下面自然收不到暗号
    late = False
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        late = True
    # 先结束全组，管子才会关上；漏网的（自己另立了门户）也只多等一秒
    end_all(process)
    for reader in (answer, output):
        reader.join(1.0)
    return answer.kept, output.kept, late


def end_all(process: subprocess.Popen[bytes]) -> None:
    """结束它与同组的子孙，并收尸；已经没了也不要紧，可以调用几次。

    SIGKILL 谁也拦不住；SIGTERM 可以不理，坏程序就真的不理
    """
    if sys.platform == "win32":
        if process.poll() is None:
            # /T 连同子孙；taskkill 自己的话没人要看
            command = ["taskkill", "/F", "/T", "/PID", str(process.pid)]
            subprocess.run(command, capture_output=True, check=False)
    else:
        try:
            # 它是组长，组号就是它的进程号
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # 组里已经没有人（macOS 上只剩僵尸时是后者）
    # 组没有结束成，至少结束它自己：绝不能在这里等一个停不下来的程序
    process.kill()
    process.wait()


def demo() -> None:
    """一个好程序，几个坏程序：只有好的通过，坏的都在限时内结束。"""
    import time

    programs = {
        "对的": "def add(a, b):\n    return a + b\n\nassert add(2, 3) == 5",
        "错的": "def add(a, b):\n    return a - b\n\nassert add(2, 3) == 5",
        "提前退出": "import os\nos._exit(0)\nassert False",
        "喊通过": "print('PASS')\nraise SystemExit(0)",
        "等人打字": "input()",
        "停不下来": "while True:\n    pass",
        "说个不停": "for _ in range(200_000):\n    print('la' * 50)\nassert False",
    }
    # 内存的上限只有 Linux 认真执行；别处真去占十个 G，会拖慢整台机器
    if sys.platform == "linux":
        # 上限缺省 1 GB
        programs["占 10 GB"] = "x = bytearray(10**10)"
    for name, source in programs.items():
        # 连起进程的时间也算在内
        began = time.perf_counter()
        # 限时 1.5 秒，好让演示快些
        outcome = run_program(source, timeout=1.5)
        seconds = time.perf_counter() - began
        verdict = "通过" if outcome.passed else f"不通过：{outcome.reason[:60]}"
        print(f"   {name}\t{seconds:.1f} 秒\t留下 {len(outcome.output):5} 字\t{verdict}")
        assert outcome.passed == (name == "对的")
        assert seconds < 6
        # 说个不停的也只留下这么多
        assert len(outcome.output) <= 20_000


if __name__ == "__main__":
    run_demo(demo)
