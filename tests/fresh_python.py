"""Run a script in a Python of its own without loading PyTorch again each time.

Loading PyTorch takes longer than most scripts that the tests run. On Linux one process per worker
loads the libraries, and nothing of this house, and then forks for each script: the script finds
`sys.path`, `sys.argv`, `__main__`, the folder, the environment and the end of the process as
`python script.py` has them. On other systems it is started plainly; set FRESH_PYTHON=plain to do
so on Linux too. What a test wants to know of the start itself (an import's cost, the encoding of
a locale, variables that PyTorch reads as it loads) is no case for this.

FORK_CHILDREN=1 forks the Pythons that the script starts itself, too: for scripts that only start
others and compute nothing, so that no thread of theirs is missing in the fork.
"""

import atexit
import builtins
import contextlib
import gc
import importlib
import inspect
import io
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path

LIBRARIES = [
    *("torch", "torch.utils.checkpoint", "numpy", "numpy.random", "regex", "safetensors.torch"),
    *(
        "torch._dynamo",
        "tokenizers",
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
        "jinja2.sandbox",
    ),
]
# What Python and PyTorch read as they start; the process that forks has started with these.
AT_START = {"OMP_NUM_THREADS": "1", "PYTHONPATH": "", "PYTHONUTF8": "1"}


class FreshPython:
    """`run(*arguments)` is `python *arguments`, told of as `subprocess.run` does.

    What comes back has `seconds` too: the processor's on Linux, so that a busy machine does not
    count, the clock's elsewhere.
    """

    def __init__(self):
        self.template = None
        self.lock = threading.Lock()

    def run(self, *arguments, cwd, timeout=120, **environment):
        """One thread and UTF-8, whatever the variables given besides."""
        wanted = {**os.environ, **environment, **AT_START}
        wanted["PYTHONPATH"] = environment.get("PYTHONPATH", "")
        command = [sys.executable, *map(str, arguments)]
        if sys.platform != "linux" or os.environ.get("FRESH_PYTHON") == "plain":
            start = time.monotonic()
            done = subprocess.run(
                command,
                cwd=cwd,
                env=wanted,
                capture_output=True,
                encoding="utf-8",
                timeout=timeout,
                check=False,
            )
            done.seconds = time.monotonic() - start
            return done
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / name for name in ("out", "err")]
            code, seconds = self.ask(
                arguments=command[1:],
                cwd=str(cwd),
                environment=wanted,
                files=[str(file) for file in files],
                timeout=timeout,
            )
            out, err = (file.read_text(encoding="utf-8") for file in files)
        if code is None:
            raise subprocess.TimeoutExpired(command, timeout, out, err)
        done = subprocess.CompletedProcess(command, code, out, err)
        done.seconds = seconds
        return done

    def start(self, arguments, cwd, env):
        """A process that runs beside the test, with three pipes (Linux only)."""
        with tempfile.TemporaryDirectory() as folder:
            files = [str(Path(folder) / name) for name in ("in", "out", "err")]
            for file in files:
                os.mkfifo(file)
            words = [os.fspath(word) for word in arguments]
            pid = self.ask(arguments=words, cwd=cwd, environment=env, files=files, timeout=None)
            # in the same order there: each waits for the other
            pipes = [open(files[0], "wb"), open(files[1], "rb"), open(files[2], "rb")]
        return Started(self, pid, pipes)

    def ask(self, **request):
        """Let a fork run it; its exit code (None where it took too long) and its seconds."""
        with self.lock:
            if self.template is None:
                self.template = subprocess.Popen(
                    [sys.executable, __file__],
                    env={**os.environ, **AT_START},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            self.template.stdin.write(json.dumps(request).encode() + b"\n")
            self.template.stdin.flush()
            return json.loads(self.template.stdout.readline())

    def close(self):
        if self.template is not None:
            self.template.stdin.close()
            self.template.wait()
            self.template.stdout.close()


class Started:
    """As much of a `subprocess.Popen` as the tests need of a fork that runs beside them."""

    def __init__(self, python, pid, pipes):
        self.python, self.pid, self.returncode = python, pid, None
        self.stdin, self.stdout, self.stderr = pipes

    def poll(self):
        if self.returncode is None:
            self.returncode = self.python.ask(poll=self.pid)
        return self.returncode

    def wait(self, timeout=60):
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.005)
        return self.returncode

    def kill(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def serve():
    """Fork for each line of standard input; return in the child, with its arguments."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may get between the answers
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "poll" in request:
            child, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if child else None
        else:
            child = os.fork()
            if child == 0:
                answers.close()
                become(request)
                return request["arguments"]
            timeout = request["timeout"]
            answer = child if timeout is None else wait(child, timeout)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()
    os._exit(0)


def become(request):
    """Look like a process that has just been started as the request says."""
    os.setsid()
    *given, out, err = request["files"]
    for descriptor, path in enumerate((*(given or [os.devnull]), out, err)):
        mode = os.O_WRONLY | os.O_CREAT if descriptor else os.O_RDONLY
        opened = os.open(path, mode)
        os.dup2(opened, descriptor)
        os.close(opened)
    open_streams()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    random.seed()
    sys.modules["numpy.random"].seed()
    if os.environ.get("FORK_CHILDREN"):
        subprocess.Popen._execute_child = fork_python


def open_streams(unbuffered=False):
    """The three streams anew, as Python opens them in UTF-8 mode; -u keeps nothing back."""
    kept = {"encoding": "utf-8", "errors": "surrogateescape"}
    raw = [io.FileIO(number, "rww"[number], closefd=False) for number in range(3)]
    sys.stdin = io.TextIOWrapper(io.BufferedReader(raw[0]), **kept)
    out = raw[1] if unbuffered else io.BufferedWriter(raw[1])
    sys.stdout = io.TextIOWrapper(out, **kept, write_through=unbuffered)
    kept["errors"] = "backslashreplace"
    sys.stderr = io.TextIOWrapper(io.BufferedWriter(raw[2]), **kept, line_buffering=True)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr


START = subprocess.Popen._execute_child


def fork_python(popen, arguments, *more):
    """What `subprocess.Popen` does to start a program, but a Python is forked."""
    first, *words = [arguments] if isinstance(arguments, (str, bytes)) else arguments
    unbuffered = words[:1] == ["-u"]
    words = [os.fspath(word) for word in words[unbuffered:]]
    if first != sys.executable or (words[0].startswith("-") and words[0] not in ("-c", "-m")):
        return START(popen, arguments, *more)
    asked = inspect.signature(START).bind(popen, arguments, *more).arguments
    environment = asked["env"]
    # of each of the three: the reader's end, the writer's end
    pipes = [
        asked[n] for n in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
    ]
    sys.stdout.flush()  # what waits here would be written twice
    sys.stderr.flush()
    popen.pid = os.fork()
    if popen.pid == 0:
        if asked["start_new_session"]:
            os.setsid()
        for descriptor, end in enumerate((pipes[0], pipes[3], pipes[5])):
            if end != -1:
                os.dup2(end, descriptor)
        os.closerange(3, 4096)  # a pipe ends when nobody else has its other end
        open_streams(unbuffered)
        os.chdir(asked["cwd"] or ".")
        if environment is not None:
            os.environ.clear()
            os.environ.update(environment)
        os._exit(run_to_the_end(words))
    popen._child_created = True
    popen._close_pipe_fds(*pipes)
    return None


def wait(child, timeout):
    """The child's exit code as `subprocess` counts, None if it took too long; its seconds."""
    deadline = time.monotonic() + timeout
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None, timeout
        time.sleep(0.005)


def execute(arguments):
    """What `python *arguments` does once Python is there."""
    path = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    isolated = arguments[0] == "-I"  # and nothing else that begins with a dash
    if isolated:
        arguments = arguments[next(i for i, word in enumerate(arguments) if word[0] == "/") :]
    first, *rest = arguments
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __spec__=None)
    # multiprocessing names it so too, for what comes back from its processes
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    if first == "-m":
        sys.path[:1] = [os.getcwd(), *path]
        sys.argv = ["-m", *rest[1:]]
        runpy._run_module_as_main(rest[0])
        return
    if first == "-c":
        sys.path[:1] = ["", *path]
        sys.argv = ["-c", *rest[1:]]
        code = compile(rest[0], "<string>", "exec")
    else:
        main.__file__ = str(Path(first).absolute())
        sys.path[:1] = [] if isolated else [str(Path(first).resolve().parent), *path]
        sys.argv = [first, *rest]
        code = compile(Path(first).read_bytes(), main.__file__, "exec")
    exec(code, main.__dict__)


def run_to_the_end(arguments):
    """Execute, and end as Python does, short of taking every library apart; the exit code."""
    code = 0
    try:
        execute(arguments)
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # these objects stay: collecting must not look at, and so copy, them again
    os._exit(run_to_the_end(serve()))
