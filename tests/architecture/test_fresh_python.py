"""A script run by the tests finds what it finds when a learner runs it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PACKAGES = re.findall(r'^    "(\w+)",$', PROJECT, flags=re.M)
SEEN = """
import json, os, random, sys
print(json.dumps({
    "argv": sys.argv, "path": sys.path, "name": __name__, "file": globals().get("__file__"),
    "doc": __doc__, "spec": __spec__ and __spec__.name, "folder": os.getcwd(),
    "input": sys.stdin.read(),
    "main": sys.modules["__main__"].__dict__ is globals(), "builtins": print is __builtins__.print,
    "variables": {k: v for k, v in os.environ.items() if k not in ("LC_CTYPE", "_")},
    "encodings": [sys.stdout.encoding, sys.stderr.encoding, sys.stdin.encoding],
}))
"""


@pytest.fixture
def both(fresh_python, monkeypatch):
    """Run it forked and plainly."""

    def run(*arguments, **options):
        forked = fresh_python(*arguments, **options)
        with monkeypatch.context() as patch:
            patch.setenv("FRESH_PYTHON", "plain")
            return forked, fresh_python(*arguments, **options)

    return run


@pytest.mark.parametrize("variables", [{}, {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}])
@pytest.mark.parametrize("how", ["script", "-c", "-m"])
def test_a_script_finds_the_same_world(both, tmp_path, how, variables):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "seen.py").write_text(f'"""Its docstring."""{SEEN}', encoding="utf-8")
    first, cwd = {
        "script": (("folder/seen.py",), tmp_path),
        "-c": (("-c", SEEN), tmp_path),
        "-m": (("-m", "seen"), folder),
    }[how]
    seen = []
    for result in both(*first, "--an", "argument", cwd=cwd, **variables):
        assert (result.returncode, result.stderr) == (0, "")
        seen.append(json.loads(result.stdout))
        seen[-1]["variables"].pop("FRESH_PYTHON", None)
    assert seen[0] == seen[1]
    assert seen[0]["argv"][1:] == ["--an", "argument"]
    assert seen[0]["folder"] == str(cwd)


@pytest.mark.parametrize(
    ("code", "status", "out", "err"),
    [
        ("raise SystemExit", 0, "", ""),
        ("raise SystemExit(3)", 3, "", ""),
        ("raise SystemExit('no such model')", 1, "", "no such model\n"),
        ("import os; print(1, flush=True); os._exit(7)", 7, "1\n", ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, "", ""),
        ("import atexit; atexit.register(print, 'last'); print('明月')", 0, "明月\nlast\n", ""),
        ("import threading; threading.Timer(0.2, print, ['late']).start()", 0, "late\n", ""),
        ("import subprocess; subprocess.run(['echo', 'a child'])", 0, "a child\n", ""),
    ],
)
def test_it_ends_the_same(both, tmp_path, code, status, out, err):
    for result in both("-c", code, cwd=tmp_path):
        assert (result.returncode, result.stdout, result.stderr) == (status, out, err)


def test_an_error_ends_in_its_traceback(both, tmp_path):
    for result in both("-c", "print(1)\n1 / 0", cwd=tmp_path):
        assert (result.returncode, result.stdout) == (1, "1\n")
        assert result.stderr.startswith("Traceback")
        assert result.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_what_its_own_processes_send_back_is_of_its_kind(both, tmp_path):
    script = """
import multiprocessing
class Own: pass
def make(queue): queue.put(Own())
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=make, args=(queue,))
    process.start()
    print(isinstance(queue.get(), Own))
    process.join()
"""
    (tmp_path / "own.py").write_text(script, encoding="utf-8")
    for result in both("own.py", cwd=tmp_path):
        assert (result.returncode, result.stdout, result.stderr) == (0, "True\n", "")


def test_nothing_of_this_house_is_loaded_before_the_script(fresh_python):
    assert "gpt_model" in PACKAGES
    result = fresh_python("-c", "import sys; print(*sys.modules)", cwd=ROOT)
    assert not {name.split(".")[0] for name in result.stdout.split()} & set(PACKAGES)


def test_one_script_knows_nothing_of_another(fresh_python, tmp_path):
    fresh_python("-c", "import sys, torch; torch.mine = sys.mine = 1", cwd=tmp_path)
    code = "import sys, torch; print(hasattr(torch, 'mine'), hasattr(sys, 'mine'))"
    assert fresh_python("-c", code, cwd=tmp_path).stdout == "False False\n"
    draw = "import random, numpy; print(random.random(), numpy.random.random())"
    first, second = (fresh_python("-c", draw, cwd=tmp_path).stdout.split() for _ in range(2))
    assert not set(first) & set(second)


def test_one_that_does_not_end_is_ended(fresh_python, tmp_path):
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        fresh_python("-c", "print(1, flush=True)\nwhile True: pass", cwd=tmp_path, timeout=1)
    assert caught.value.output in ("1\n", b"1\n")
    assert fresh_python("-c", "print(2)", cwd=tmp_path).stdout == "2\n"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every script is started plainly")
def test_seconds_are_the_processor_s(fresh_python, tmp_path):
    assert fresh_python("-c", "import time; time.sleep(1)", cwd=tmp_path).seconds < 0.5
    count = "import time\nwhile time.process_time() < 0.5: pass"
    assert fresh_python("-c", count, cwd=tmp_path).seconds > 0.25


PARENT = """
import json, os, subprocess, sys
child = [sys.executable, "child.py"]
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
running = [subprocess.Popen([*child, name], **pipes) for name in ("first", "second")]
for process in reversed(running):
    process.stdin.write("明月\\n")
    process.stdin.flush()
print([process.stdout.readline() for process in running])
for process in running:
    process.stdin.close()
    print(process.wait(timeout=20), process.stdout.read())
failing = [sys.executable, "-c", "import sys; print(1); sys.exit('no')"]
done = subprocess.run(failing, capture_output=True, text=True, cwd="/", env={"A": "b"})
print(done.returncode, [done.stdout, done.stderr])
where = "import os; print(os.getcwd(), os.environ.get('A'), 'HOME' in os.environ)"
where = [sys.executable, "-c", where]
print(subprocess.check_output(where, cwd="/", env={"A": "b", "PYTHONPATH": ""}, text=True))
endless = subprocess.Popen([sys.executable, "-c", "while True: pass"])
endless.kill()
print(endless.wait(), subprocess.check_output(["echo", "another program"], text=True))
"""
CHILD = """
import sys
for line in sys.stdin:
    print(sys.argv[1:], line.strip(), flush=True)
print(__name__, "mine" in dir(sys.modules["__main__"]))
sys.exit(3)
"""


def test_the_pythons_that_a_script_starts_can_be_forked_too(both, tmp_path):
    (tmp_path / "parent.py").write_text(f"mine = 1{PARENT}", encoding="utf-8")
    (tmp_path / "child.py").write_text(CHILD, encoding="utf-8")
    forked, plain = both("parent.py", cwd=tmp_path, FORK_CHILDREN="1")
    assert (forked.returncode, forked.stderr) == (plain.returncode, plain.stderr) == (0, "")
    assert forked.stdout == plain.stdout
    assert "3 __main__ False" in plain.stdout


def test_what_can_be_forked_is_forked(fresh_python, tmp_path):
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', {!r}])"
    code = code.format("import sys; print('torch' in sys.modules)")
    loaded = [
        fresh_python("-c", code, cwd=tmp_path, **variables).stdout
        for variables in ({}, {"FORK_CHILDREN": "1"})
    ]
    assert loaded == ["False\n", "True\n" if sys.platform == "linux" else "False\n"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")
def test_one_can_run_beside_the_test(template, tmp_path):
    """Isolated, with the variables it is given and no others, and pipes that end with it."""
    script = tmp_path / "beside.py"
    script.write_text(
        "import os, sys\n"
        "print(sorted(os.environ), sys.path[0] == os.path.dirname(__file__), sys.argv[1:])\n"
        "print(sys.stdin.read(), file=sys.stderr)\n"
        "sys.exit(4)\n",
        encoding="utf-8",
    )
    words = ["-I", "-B", "-X", "utf8", str(script), "an argument"]
    running = [template.start(words, str(tmp_path), {"SHELL": "none"}) for _ in range(2)]
    assert [process.poll() for process in running] == [None, None]
    for process in running:
        process.stdin.write("明月".encode())
        process.stdin.close()
        assert process.stdout.read() == b"['SHELL'] False ['an argument']\n"
        assert process.stderr.read().decode() == "明月\n"
        assert process.wait() == process.poll() == 4
    endless = template.start(["-c", "while True: pass"], str(tmp_path), {})
    with pytest.raises(subprocess.TimeoutExpired):
        endless.wait(timeout=0.1)
    endless.kill()
    assert endless.wait() == -9
    endless.kill()  # once more, when it is gone
