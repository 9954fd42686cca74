"""Compiling once, keeping the result, and living without a compiler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from foundation import compiled_code
from foundation.compiled_code import CodeUnavailable, cache_folder, compile_code, load_code

ROOT = Path(__file__).resolve().parents[2]
ANSWER = '#include "number.h"\nextern "C" int answer() { return NUMBER; }\n'
QUICK = ("-O0",)


def compiler_or_skip():
    try:
        compiled_code.find_compiler()
    except CodeUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def source(tmp_path):
    """A program of one number, which stands in the file beside it."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "answer.cpp").write_text(ANSWER, encoding="utf-8")
    (folder / "number.h").write_text("#define NUMBER 42\n", encoding="utf-8")
    return folder / "answer.cpp"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache of the test's own; nothing loaded before is remembered."""
    monkeypatch.setenv("FROMZERO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FROMZERO_KERNELS", raising=False)
    load_code.cache_clear()
    yield tmp_path / "cache"
    load_code.cache_clear()


def test_compiled_once_and_announced_once(cache, source, capsys):
    compiler_or_skip()
    path = compile_code(source, QUICK)
    said = capsys.readouterr()
    assert said.out == ""
    assert [line.split()[0] for line in said.err.splitlines()] == ["compiling", "compiled"]
    assert path.parent == cache
    stamp = path.stat().st_mtime_ns
    assert compile_code(source, QUICK) == path
    assert path.stat().st_mtime_ns == stamp
    assert capsys.readouterr().err == ""
    assert list(cache.iterdir()) == [path], "temporary files were left behind"
    assert load_code(source, QUICK).answer() == 42


def test_a_changed_header_means_a_new_library(cache, source):
    compiler_or_skip()
    assert load_code(source, QUICK).answer() == 42
    source.with_name("number.h").write_text("#define NUMBER 43\n", encoding="utf-8")
    load_code.cache_clear()
    assert load_code(source, QUICK).answer() == 43


def test_other_flags_and_another_processor_mean_another_file(cache, source, monkeypatch):
    """The name is taken before anything is compiled: pretend that compiling is easy."""
    compiler_or_skip()

    def copy(command, source, folder):
        made = folder / "made.so"
        made.write_bytes(b"")
        return made

    monkeypatch.setattr(compiled_code, "compile_to_temporary", copy)
    names = {compile_code(source, flags).name for flags in (QUICK, ("-O1",), None)}
    monkeypatch.setattr(compiled_code, "machine_flags", lambda compiler: ((), "#define __AVX9__ 1"))
    names.add(compile_code(source, QUICK).name)
    assert len(names) == 4


def test_two_processes_at_once_both_get_a_whole_library(cache, source):
    compiler_or_skip()
    code = (
        "from pathlib import Path; from foundation.compiled_code import load_code; "
        f"assert load_code(Path({str(source)!r}), {QUICK}).answer() == 42"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT) for _ in range(2)
    ]
    assert [process.wait(timeout=200) for process in both] == [0, 0]
    assert len(list(cache.iterdir())) == 1


def test_a_damaged_library_is_made_again(cache, source):
    """Loading it would not raise but end the process: a bus error."""
    compiler_or_skip()
    path = compile_code(source, QUICK)
    whole = path.read_bytes()
    for damage in (whole[: len(whole) // 3], b"", whole[:-40] + b"\0" + whole[-39:]):
        path.write_bytes(damage)
        assert compile_code(source, QUICK) == path
        assert len(path.read_bytes()) == len(whole)
    assert load_code(source, QUICK).answer() == 42


def test_a_cache_that_cannot_be_written_is_no_obstacle(cache, source, monkeypatch, tmp_path):
    """A file stands where the folder should be: a private folder serves this process."""
    compiler_or_skip()
    cache.write_text("in the way", encoding="utf-8")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    made = compile_code(source, QUICK)
    assert made.parent.parent == tmp_path / "temporary"
    if os.name == "posix":
        assert made.parent.stat().st_mode & 0o077 == 0, "others could put a library there"
    assert load_code(source, QUICK).answer() == 42


def test_no_compiler_says_what_to_install(cache, source, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(CodeUnavailable, match=r"no C\+\+ compiler .* install one"):
        load_code(source)


@pytest.mark.skipif(os.name != "posix", reason="the false compilers are shell scripts")
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'disk is full' >&2; exit 1", "does not work: disk is full"),
        ("exit 1", "does not work: it said nothing"),
        ('case "$*" in *-dM*) exit 0;; *) echo no >&2; exit 1;; esac', "failed: no"),
        ('case "$*" in *-dM*) exit 0;; *-o*) exit 0;; esac', "does not load"),
    ],
)
def test_a_compiler_that_fails_is_quoted(cache, source, monkeypatch, tmp_path, script, message):
    false = tmp_path / "c++"
    false.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    false.chmod(0o755)
    monkeypatch.setenv("CXX", str(false))
    with pytest.raises(CodeUnavailable, match=message):
        load_code(source)


def test_a_compiler_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(compiled_code, "LONGEST", 0.05)
    with pytest.raises(CodeUnavailable, match="could not be run: .* timed out"):
        compiled_code.run_compiler([sys.executable, "-c", "import time; time.sleep(20)"])


def test_turned_off(cache, source, monkeypatch):
    monkeypatch.setenv("FROMZERO_KERNELS", "0")
    with pytest.raises(CodeUnavailable, match="FROMZERO_KERNELS=0"):
        load_code(source)


def test_the_cache_is_where_each_system_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.delenv("FROMZERO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    found = {}
    for system in ("linux", "darwin", "win32"):
        monkeypatch.setattr(sys, "platform", system)
        found[system] = cache_folder()
    assert found["linux"] == tmp_path / "fromzero"
    assert found["win32"] == tmp_path / "local" / "fromzero"
    assert found["darwin"].parts[-3:] == ("Library", "Caches", "fromzero")
