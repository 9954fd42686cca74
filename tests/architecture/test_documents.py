"""What the documents say is true: commands, links, numbers, snippets, experiments, the tree.

Commands of the documents are run, or parsed by the program's own parser, or found in the test that
runs them; one that is none of these fails here. Output shown below a snippet or an experiment is
compared with what is printed; `...` stands for anything.
"""

import ast
import contextlib
import doctest
import importlib.util
import io
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[2]
READMES = [ROOT / "README.md", ROOT / "README.en.md"]
DOCUMENTS = [*READMES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELLS = ("bash", "sh", "console", "powershell", "bat")
LANGUAGES = {*SHELLS, "python", "diff", "text", "json"}
# Written in the documents as what `pip install` gives; found in the Makefile that .ci/run runs.
INSTALLERS = {"-m venv", "-m pip install"}
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
SETUPTOOLS = PROJECT.split("[tool.setuptools]")[1]
PACKAGES = re.findall(r'"(\w+)"', re.search(r"packages = \[(.*?)\]", SETUPTOOLS, flags=re.S)[1])
CHECKER = doctest.OutputChecker()
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """One fenced block: where it stands, its language, its lines."""

    path: Path
    line: int
    language: str
    text: str

    @property
    def name(self):
        return f"{self.path.relative_to(ROOT).as_posix()}:{self.line}"


def blocks(path):
    """The fenced blocks of a document, in order; an indented fence takes its indent along."""
    found, fence, indent, language, start, body = [], "", "", "", 0, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        mark = re.match(r"^(\s*)(`{3,})\s*(\S*)\s*$", line)
        if fence and mark and mark[2] == fence and not mark[3]:
            found.append(Block(path, start, language, "\n".join(body) + "\n"))
            fence = ""
        elif fence:
            body.append(line.removeprefix(indent))
        elif mark:
            indent, fence, language = mark.groups()
            start, body = number, []
    assert not fence, f"{path.name}: the fence of line {start} is never closed"
    return found


def prose(path):
    """A document without its fenced blocks."""
    return re.sub(r"(?ms)^\s*(`{3,}).*?^\s*\1\s*$", "", path.read_text(encoding="utf-8"))


BLOCKS = [block for path in DOCUMENTS for block in blocks(path)]


def commands(block):
    """The commands of a shell block: comments gone, continued lines joined."""
    lines = re.sub(r"\\\n\s*", " ", block.text).splitlines()
    return [line for line in (re.sub(r"(^|\s)#\s.*$", "", raw).strip() for raw in lines) if line]


def all_commands(path):
    return [
        c
        for block in BLOCKS
        if block.path == path and block.language in SHELLS
        for c in commands(block)
    ]


COMMANDS = sorted({command for path in DOCUMENTS for command in all_commands(path)})


def load_test_module(name):
    path = ROOT / "tests" / "architecture" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"documents_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mentioned_in_tests(text):
    return [
        path
        for path in (ROOT / "tests").rglob("test_*.py")
        if text in path.read_text(encoding="utf-8") and path != Path(__file__).resolve()
    ]


@pytest.fixture
def run_script(fresh_python):
    """Run a script of a folder, which is the house or a copy of it."""

    def run(folder, *arguments):
        return fresh_python(*arguments, cwd=folder, timeout=60, PYTHONPATH=str(folder))

    return run


# ── commands ─────────────────────────────────────────────────────────────────────────────────────


def words_of(command):
    """Split a command; the ways to name a program of the virtual environment become one."""
    words = shlex.split(command.replace("\\", "/"))
    program = words[0].rsplit("/", 1)[-1] if ".venv/" in words[0] else words[0]
    program = {"python3": "python", "py": "python", "python.exe": "python"}.get(program, program)
    return [program, *words[1:]]


def check_command(command):
    """Raise AssertionError unless the command is right and something runs it."""
    program, *arguments = words_of(command)
    checks = {
        "python": check_python,
        "pip": lambda words: check_installer(["-m", "pip", *words]),
        "make": check_make,
        "fromzero": check_fromzero,
        "torchrun": check_torchrun,
        "pytest": check_pytest,
        "ruff": lambda words: check_tool("ruff", words),
        "mypy": lambda words: check_tool("mypy", words),
        "lint-imports": lambda words: check_tool("lint-imports", words),
    }
    assert program in checks, f"no test runs {command!r}, and no check knows {program!r}"
    checks[program](arguments)


def check_python(arguments):
    if arguments[0] == "-m":
        module, rest = arguments[1], arguments[2:]
        if module in ("venv", "pip"):
            check_installer(arguments)
        elif module == "pytest":
            check_pytest(rest)
        elif module == "fromzero":
            check_fromzero(rest)
        else:
            check_tool(module, rest)
        return
    script, *options = arguments
    assert (ROOT / script).is_file(), f"{script} does not exist"
    architecture = load_test_module("test_demonstrations")
    if script in architecture.LESSONS:
        assert options == [] or (options[0] == "--plot" and len(options) == 2), options
        assert not options or script in architecture.PLOTS, f"{script} draws nothing"
        return
    if script == "verify_setup.py":  # run below, without its slow parts
        check_fromzero(["doctor", *options])
        return
    assert mentioned_in_tests(Path(script).name), f"no test runs {script}"
    given = [option.split("=")[0] for option in options if option.startswith("--")]
    source = (ROOT / script).read_text(encoding="utf-8").replace("_", "-")
    for option in given:
        assert option.removeprefix("--") in source, f"{script} has no {option}"


def check_installer(arguments):
    text = " ".join(arguments)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert any(text.startswith(known) and known in makefile for known in INSTALLERS), text
    assert "install" not in arguments or {"-r", "-e"} & set(arguments), f"no test runs {text}"
    for previous, word in zip(arguments, arguments[1:], strict=False):
        if previous == "-r":
            assert (ROOT / word).is_file(), word
        if previous == "-e":
            for extra in re.findall(r"\[(.*)\]", word):
                assert re.search(rf"^{extra} = \[", PROJECT, flags=re.M), extra


def check_make(arguments):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    continuous = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for target in arguments:
        recipe = re.search(rf"(?m)^{target}:.*\n((?:\t.*\n)+)", makefile)
        assert recipe, f"the Makefile has no target {target!r}"
        if f"make {target}\n" in continuous:
            continue
        for line in recipe[1].replace("$(BIN)/", "").splitlines():
            if not line.startswith("\trm -rf"):
                check_command(line.strip())


def check_fromzero(arguments):
    """Let the command line's own parser read the options; nothing is run but the help."""
    from fromzero.arguments import parse_options
    from fromzero.main import command_name, module_name, overview

    if not arguments or arguments == ["--help"]:
        assert "commands:" in overview()
        return
    name, options = command_name([word for word in arguments if word != "--traceback"])
    module = importlib.import_module(module_name(name))
    file = module.__name__.removeprefix("fromzero.").rstrip("_")
    runs = (ROOT / "tests" / "fromzero" / f"test_{file}.py").is_file()
    assert runs or mentioned_in_tests(f'"{name}"'), f"no test runs fromzero {name}"
    with contextlib.redirect_stdout(io.StringIO()):
        parsed = parse_options(module.Options, options, program=f"fromzero {name}")
    if hasattr(parsed, "sampling"):
        parsed.sampling.to_params()  # the library's own checks of each value
    for option, value in zip(options, options[1:], strict=False):
        if option == "--preset":
            from gpt_model.config import PRESETS

            assert value in PRESETS, value


def check_torchrun(arguments):
    """torchrun's own options, then `-m fromzero` with the command; tests/parallelism runs such."""
    from torch.distributed.run import get_args_parser

    try:
        parsed = get_args_parser().parse_args(arguments)
    except SystemExit:
        raise AssertionError(f"torchrun does not understand {arguments}") from None
    assert parsed.module, "only `torchrun -m fromzero` is run by a test"
    assert parsed.training_script == "fromzero"
    assert mentioned_in_tests('"--parallel"')
    check_fromzero(parsed.training_script_args)
    name, *options = parsed.training_script_args
    options = importlib.import_module(f"fromzero.{name}").parse(options, program=name)
    config = options.training.to_config()
    assert config.parallel != "none"
    assert config.grad_accumulation % int(parsed.nproc_per_node) == 0


def check_pytest(arguments):
    markers = re.findall(r'^    "(\w+): ', PROJECT, flags=re.M)
    rest = iter(arguments)
    for word in rest:
        if word == "-m":
            for name in set(re.findall(r"\w+", next(rest))) - {"not", "and", "or"}:
                assert name in markers, f"pytest marker {name!r} is not declared"
        elif word in ("-n", "-k"):
            next(rest)
        elif not word.startswith("-"):
            assert (ROOT / word).exists(), f"pytest is given {word}, which does not exist"


def check_tool(module, arguments):
    """A linter is run with these very words by test_tooling."""
    tools = [words[1:] for words in load_test_module("test_tooling").COMMANDS.values()]
    known = [module, *arguments] in tools
    known |= module == "lint-imports" and any("lint_imports" in words[0] for words in tools)
    assert known, f"no test runs {' '.join([module, *arguments])}"


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_run_or_parsed(command):
    check_command(command)


def test_verify_setup_runs(run_script):
    result = run_script(ROOT, "verify_setup.py", "--no-compile", "--no-speed")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "ready" in result.stdout


@pytest.mark.parametrize(
    "wrong",
    [
        *("frmzero train", "fromzero trian", "fromzero train --stepz 3", "make tests"),
        *("python gpt_model/modle.py", "python gpt_model/config.py --plot a.png"),
        *("python -m pytest tests/nowhere", "python -m pytest -m slowly", "curl https://a.b"),
        *("pip install -r requirement.txt", 'pip install -e ".[devel]"', "pip install torch"),
        "torchrun --nproc-per-node 2 -m fromzero train --parallel ddp",
        "torchrun --nproc-per-node 2 -m fromzero trian --parallel ddp --grad-accumulation 2",
        "torchrun --nproc-per-node 2 --parallel ddp train.py",
        *("python verify_setup.py --quik", "fromzero train --preset gpt-mirco"),
    ],
)
def test_a_wrong_command_is_noticed(wrong):
    with pytest.raises((AssertionError, ValueError, StopIteration)):
        check_command(wrong)


def test_the_readmes_show_the_same_commands_and_sections():
    chinese, english = READMES
    assert all_commands(chinese) == all_commands(english)
    assert len(all_commands(chinese)) >= 20
    headings = [re.findall(r"(?m)^(#{1,6}) ", prose(path)) for path in READMES]
    assert headings[0] == headings[1]
    languages = [[b.language for b in BLOCKS if b.path == path] for path in READMES]
    assert languages[0] == languages[1]
    snippets = [[b.text for b in BLOCKS if b.path == p and b.language == "python"] for p in READMES]
    assert snippets[0] == snippets[1]


def test_the_specified_commands_are_in_both_readmes():
    wanted = {
        *("make demo", "make test", "pip install -r requirements.txt", "python verify_setup.py"),
        *("python transformer_basics/attention.py", "python gpt_model/model.py"),
        *("python inference/sampling.py", "python examples/train_small_gpt.py"),
        "python examples/finetune_with_lora.py",
    }
    for path in READMES:
        assert wanted <= set(all_commands(path))


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_every_block_has_a_language_that_some_test_reads(block):
    assert block.language in LANGUAGES


# ── links ────────────────────────────────────────────────────────────────────────────────────────


def anchors(path):
    """The anchors of a Markdown file's headings, as GitHub forms them."""
    found = []
    for heading in re.findall(r"(?m)^#{1,6} (.+?)\s*$", prose(path)):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        found.append(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-"))
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_resolve(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"(https?|mailto):", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        destination = (path.parent / name).resolve() if name else path
        assert destination.exists(), f"{target} does not exist"
        assert destination.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(destination), f"{target}: no such heading"


def test_every_page_is_reached_from_each_readme():
    """In each language by itself: a page with a twin counts in its own language only."""
    twins = {
        path.with_name(path.name.replace(".en.md", ".md")): path
        for path in DOCUMENTS
        if path.name.endswith(".en.md")
    }
    for start, others in zip(READMES, (set(twins.values()), set(twins)), strict=True):
        seen, waiting = set(), [start]
        while waiting:
            path = waiting.pop()
            if path in seen or path in others or path not in DOCUMENTS:
                continue
            seen.add(path)
            for target in re.findall(r"\]\(([^)\s#]+\.md)", prose(path)):
                if "://" not in target:
                    waiting.append((path.parent / target).resolve())
        assert set(DOCUMENTS) - others == seen


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_named_files_exist(path):
    """`folder/file.py` in backticks is a promise too."""
    for name in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|md|toml|txt))`", prose(path)):
        assert (ROOT / name).exists() or (path.parent / name).exists(), name


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.name)
def test_the_configuration_table_is_the_code(path):
    from gpt_model.config import PRESETS
    from gpt_model.sizes import count_parameters

    rows = re.findall(r"(?m)^\| `([\w-]+)` \| ([\d, |]+)\|", prose(path))
    table = {
        name: [int(cell.replace(",", "")) for cell in cells.strip(" |").split("|")]
        for name, cells in rows
    }
    assert table == {
        name: [
            *(config.n_layers, config.dim, config.n_heads, config.max_seq_len, config.vocab_size),
            count_parameters(config).total,
        ]
        for name, config in PRESETS.items()
    }


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.name)
def test_the_lora_table_is_the_code(path):
    from torch import nn

    from finetuning.lora import LoRAConfig, apply_lora, count_trainable

    rows = re.findall(r"(?m)^\| r = (\d+) \| ([\d,]+) \| ([\d.]+) % \|", prose(path))
    assert len(rows) == 3
    for rank, shown, saved in rows:
        model = nn.Sequential(nn.Linear(768, 768, bias=False))
        full = sum(parameter.numel() for parameter in model.parameters())
        apply_lora(model, LoRAConfig(r=int(rank), target=("0",)))
        trainable, _ = count_trainable(model)
        assert shown == f"{trainable:,}"
        assert float(saved) == round(100 * (1 - trainable / full), 1)
        assert f"{full:,}" in prose(path)


# ── the tree ─────────────────────────────────────────────────────────────────────────────────────


def tree_paths(text):
    """The paths of a drawn tree: depth from the column of the branch."""
    found, parents = [], []
    for line in text.splitlines():
        branch = re.match(r"^((?:[│ ]   )*)[├└]── (\S+)", line)
        if not branch:
            continue
        depth = len(branch[1]) // 4
        parents[depth:] = [branch[2].rstrip("/")]
        found.append("/".join(parents))
    return found


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.name)
def test_the_tree_names_what_exists(path):
    drawn = [block for block in blocks(path) if "├──" in block.text]
    assert len(drawn) == 1
    paths = tree_paths(drawn[0].text)
    missing = [name for name in paths if not (ROOT / name).exists()]
    assert missing == []
    assert {*PACKAGES, "examples", "docs", "tests"} <= set(paths)
    assert len(paths) == len(set(paths)) > 30


# ── snippets and experiments ─────────────────────────────────────────────────────────────────────


def followed_by(block, language):
    """The next block of the same document, if it has this language."""
    own = [other for other in BLOCKS if other.path == block.path]
    rest = own[own.index(block) + 1 :]
    return rest[0] if rest and rest[0].language == language else None


def expect(wanted, printed):
    assert CHECKER.check_output(wanted, printed, FLAGS), f"printed:\n{printed}\nwanted:\n{wanted}"


SNIPPETS = [block for block in BLOCKS if block.language == "python"]
EXPERIMENTS = [block for block in BLOCKS if block.language == "diff"]


@pytest.mark.parametrize("block", SNIPPETS, ids=lambda block: block.name)
def test_snippet_runs_and_prints_what_is_shown(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    code = compile(ast.parse(block.text), block.name, "exec")
    with contextlib.redirect_stdout(printed):
        exec(code, {"__name__": "snippet"})
    shown = followed_by(block, "text")
    if shown is not None:
        expect(shown.text, printed.getvalue())


def apply_change(root, text):
    """Apply the lines of a diff block: each removed run must occur exactly once in its file."""
    path, old, new = None, [], []
    changes = []
    for line in [*text.splitlines(), " "]:
        if line.startswith("--- "):
            path = root / line[4:].strip().removeprefix("a/")
        elif line.startswith("+++ "):
            continue
        elif line.startswith("-"):
            old.append(line[1:])
        elif line.startswith("+"):
            new.append(line[1:])
        elif old or new:
            changes.append(("\n".join(old), "\n".join(new)))
            old, new = [], []
    assert path is not None, "a diff block begins with `--- path`"
    assert changes, "a diff block changes something"
    source = path.read_text(encoding="utf-8")
    for before, after in changes:
        assert source.count(before + "\n") == 1, f"{path.name} has not exactly one:\n{before}"
        source = source.replace(before + "\n", after + "\n" if after else "")
    path.write_text(source, encoding="utf-8", newline="\n")


@pytest.mark.parametrize("block", EXPERIMENTS, ids=lambda block: block.name)
def test_experiment_shows_what_is_promised(block, run_script, tmp_path):
    """Change the line in a copy of the house, run the command below it, look for the output."""
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    apply_change(tmp_path, block.text)
    command = followed_by(block, "bash")
    assert command is not None, "an experiment is a diff, a command, an observation"
    shown = followed_by(command, "text")
    assert shown is not None, "an experiment is a diff, a command, an observation"
    (line,) = commands(command)
    result = run_script(tmp_path, *words_of(line)[1:])
    expect(f"...{shown.text.strip()}...", result.stdout + result.stderr)


def test_an_experiment_whose_line_is_gone_is_noticed(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\ny = 2\n", encoding="utf-8", newline="\n")
    apply_change(tmp_path, "--- a.py\n-x = 1\n+x = 3\n")
    assert (tmp_path / "a.py").read_text(encoding="utf-8") == "x = 3\ny = 2\n"
    with pytest.raises(AssertionError, match="exactly one"):
        apply_change(tmp_path, "--- a.py\n-x = 1\n+x = 3\n")
