"""The command line itself: help, commands, errors on one line, exit codes."""

import dataclasses
import importlib
import inspect
import json
import os
import subprocess
import sys
import types
import typing
from pathlib import Path

import pytest
import tyro

from fromzero import main as main_module
from fromzero.main import COMMANDS, main, module_name, one_line, overview

ROOT = Path(__file__).resolve().parents[2]


def run_python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


@pytest.fixture
def command(monkeypatch):
    """Make `fromzero fake` run a function of the test."""

    def install(function):
        from dataclasses import dataclass

        @dataclass(frozen=True)
        class Options:
            """A command of the test."""

            word: str = ""
            """any word"""

        module = types.ModuleType("fromzero.fake")
        module.Options, module.run = Options, lambda options: function(options)
        monkeypatch.setitem(sys.modules, "fromzero.fake", module)
        monkeypatch.setitem(COMMANDS, "fake", "a command of the test")

    return install


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_lists_every_command(capsys, arguments):
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == overview()
    assert captured.err == ""
    for name, summary in COMMANDS.items():
        assert name in captured.out
        assert summary in captured.out


def test_every_command_has_its_file_and_no_file_is_forgotten():
    files = {path.stem for path in (ROOT / "fromzero").glob("*.py")}
    helpers = {"__init__", "__main__", "main", "arguments", "option_types"}
    helpers |= {
        "training_options",
        "train_report",
        "train_data",
        "starting_points",
        "finetune_result",
        "many_prompts",
    }
    assert files - helpers == {module_name(name).removeprefix("fromzero.") for name in COMMANDS}


def test_help_is_fast_and_imports_nothing_heavy():
    """Seconds for `fromzero --help` would teach people not to ask."""
    code = (
        "import json, sys\n"
        "from fromzero.main import main\n"
        "main(sys.argv[1:])\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'tokenizers'} & set(sys.modules)\n"
        "sys.stderr.write(json.dumps(sorted(heavy)))\n"
    )
    before = os.times()
    result = run_python("-c", code, "--help")
    after = os.times()  # the processor's seconds, where the system tells: others use this machine
    seconds = after.children_user - before.children_user
    seconds += after.children_system - before.children_system
    assert seconds < 3  # 0.1 s on a free machine
    assert json.loads(result.stderr) == []
    for name in COMMANDS:
        result = run_python("-c", code, *name.split(), "--help")
        assert json.loads(result.stderr) == [], name
        assert result.stdout.startswith(f"usage: fromzero {name} ")
        assert f"\n    fromzero {name}" in result.stdout, "an example"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_explains_itself(name):
    """A field without a docstring below it would show up in --help as a bare name."""
    unexplained = []

    def look(options_type):
        hints = typing.get_type_hints(options_type)
        lines = inspect.getsource(options_type).splitlines()
        for field in dataclasses.fields(options_type):
            if dataclasses.is_dataclass(hints[field.name]):
                look(hints[field.name])
                continue
            start = next(i for i, x in enumerate(lines) if x.startswith(f"    {field.name}: "))
            if not lines[start + 1].lstrip("r ").startswith('"""'):
                unexplained.append(field.name)

    look(importlib.import_module(module_name(name)).Options)
    assert unexplained == []


def test_module_and_version():
    result = run_python("-m", "fromzero", "--version")
    assert result.returncode == 0
    assert result.stdout.startswith("fromzero ")


def check_error(capsys, arguments, *words):
    """The rule for every mistake: exit code 2, nothing on stdout, one line that says it all."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fromzero: error: ")
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("\n")
    for word in words:
        assert word in captured.err


def test_an_unknown_command_gets_the_nearest(capsys):
    check_error(capsys, ["trian"], "'trian'", "did you mean 'train'?", "doctor", "models")


def install_words(monkeypatch, name, options_type, run):
    module = types.ModuleType(module_name(name))
    module.Options, module.run = options_type, run
    monkeypatch.setitem(sys.modules, module_name(name), module)
    monkeypatch.setitem(COMMANDS, name, "a command of the test")


def test_a_command_may_have_two_words_and_words_of_its_own(capsys, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Options:
        """A command of the test."""

        file: tyro.conf.Positional[Path]
        """any file"""
        level: int = 1
        """any number"""

    seen = []
    install_words(monkeypatch, "fake prepare", Options, seen.append)
    install_words(monkeypatch, "import", Options, seen.append)
    assert main(["fake", "prepare", "a.txt", "--level", "3"]) == 0
    assert main(["import", "b"]) == 0
    assert seen == [Options(Path("a.txt"), 3), Options(Path("b"))]
    assert "fake prepare" in overview()
    check_error(capsys, ["fake", "prepair"], "'fake prepair'", "did you mean 'fake prepare'?")
    check_error(capsys, ["fake"], "'fake'", "commands: fake prepare")
    check_error(capsys, ["fake", "prepare"], "FILE must be given", "fake prepare --help")
    check_error(capsys, ["fake", "prepare", "--level", "3"], "any file (required)")
    check_error(capsys, ["fake", "prepare", "--file", "a.txt"], "unknown option '--file'")


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_refused_by_every_command(capsys, name):
    check_error(
        capsys, [*name.split(), "--helpp"], "'--helpp'", "did you mean --help?", f"{name} --help"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--compile-limit", "soon"], ["--compile-limit", "'soon'"]),
        (["--compile-limit"], ["--compile-limit"]),
        (["stray"], ["stray"]),
        (["--sped"], ["did you mean --speed?"]),
        (["--no-sped"], ["did you mean --no-speed?"]),
    ],
)
def test_misused_options_are_one_line(capsys, arguments, words):
    check_error(capsys, ["doctor", *arguments], *words)


def test_options_reach_the_command_and_its_code_comes_back(command):
    seen = []

    def run(options):
        seen.append(options.word)
        return 7

    command(run)
    assert main(["fake", "--word=--strange"]) == 7
    assert main(["fake", "--word", "x"]) == 7
    assert seen == ["--strange", "x"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a must be >= 1,\n  got 0"), "a must be >= 1, got 0"),
        (ValueError(), "ValueError"),
        (FileNotFoundError(2, "No such file or directory", "x.txt"), "x.txt: No such file"),
        (PermissionError(13, "Permission denied", "/root/x"), "/root/x: Permission denied"),
        (ModuleNotFoundError("No module named 'tyro'"), "pip install -r requirements.txt"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "--batch-size"),
        (type("SafetensorError", (Exception,), {})("disk full"), "disk full"),
    ],
)
def test_what_the_user_can_mend_is_one_line(capsys, command, error, text):
    def run(options):
        raise error

    command(run)
    check_error(capsys, ["fake"], text)


def test_a_fault_of_ours_keeps_its_traceback(command):
    def run(options):
        raise RuntimeError("shapes do not match")

    command(run)
    with pytest.raises(RuntimeError, match="shapes"):
        main(["fake"])


@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_traceback_can_be_asked_for(capsys, command, monkeypatch, how):
    def run(options):
        raise ValueError("bad value")

    command(run)
    if how == "environment":
        monkeypatch.setenv("FROMZERO_TRACEBACK", "1")
    assert main(["fake", *(["--traceback"] if how == "option" else [])]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.endswith("fromzero: error: bad value\n")


def test_ctrl_c_is_one_line_and_130(capsys, command):
    def run(options):
        raise KeyboardInterrupt

    command(run)
    assert main(["fake"]) == 130
    assert capsys.readouterr().err == "fromzero: interrupted\n"


def test_warnings_are_one_line_without_source(capsys, command):
    import warnings

    def run(options):
        warnings.warn("the corpus is\nshort", stacklevel=1)

    command(run)
    assert main(["fake"]) == 0
    assert capsys.readouterr().err == "fromzero: warning: the corpus is short\n"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes")
def test_a_closed_pipe_ends_quietly():
    code = "import sys; from fromzero.main import main; sys.exit(main(['models']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 0


def test_chinese_prints_whatever_the_locale():
    result = run_python("-m", "fromzero", "models", "gpt-micro", LC_ALL="C", PYTHONUTF8="0")
    assert result.returncode == 0
    assert "笔记本" in result.stdout


def test_an_asked_for_encoding_is_kept():
    result = run_python("-m", "fromzero", "models", "gpt-micro", PYTHONIOENCODING="ascii")
    assert result.returncode == 0
    assert result.stdout.isascii()


def test_no_color_codes_in_a_pipe(capsys):
    main(["doctor", "--help"])
    assert "\x1b" not in capsys.readouterr().out


def test_one_line_shortens_nothing_of_a_users_message():
    long = "x" * 3000
    assert one_line(ValueError(long)) == long
    assert main_module.USER_ERROR == 2
