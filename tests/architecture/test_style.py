"""The rules of the house that a machine can check."""

import ast
import io
import re
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LESSONS = ["transformer_basics", "tokenization", "gpt_model", "inference", "training", "finetuning"]
PACKAGES = [*LESSONS, "foundation", "evaluation", "course", "fromzero"]
COMMENT_SHARE = 0.40
LONGEST_FILE = 400
LONGEST_FUNCTION = 70


def modules(folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def ids(paths):
    return [path.relative_to(ROOT).as_posix() for path in paths]


def demonstrates(path):
    return "run_demo(demo" in path.read_text(encoding="utf-8")


LESSON_FILES = [path for path in modules(LESSONS) if path.name != "__init__.py"]
# the measures are lessons; the tools beside them (doctor, adapter, table) are not
LESSON_FILES += [path for path in modules(["evaluation"]) if demonstrates(path)]
ALL_FILES = modules([*PACKAGES, "examples", "benchmarks", "tests"])


def explained_lines(source):
    """Line numbers that hold a comment or belong to a docstring."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines.add(token.start[0])
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if node.body and isinstance(node.body[0], ast.Expr):
            value = node.body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                lines.update(range(value.lineno, value.end_lineno + 1))
    return lines


def comment_share(source):
    filled = {n for n, line in enumerate(source.splitlines(), 1) if line.strip()}
    return len(explained_lines(source) & filled) / max(1, len(filled))


def test_the_measure_itself():
    source = '"""一行。\n\n第三行。"""\nx = 1  # 说明\ny = "# 不是"\n\n# 注\n'
    assert explained_lines(source) == {1, 2, 3, 4, 7}
    assert comment_share(source) == 4 / 5


@pytest.mark.parametrize("path", LESSON_FILES, ids=ids(LESSON_FILES))
def test_lesson_modules_explain_themselves(path):
    share = comment_share(path.read_text(encoding="utf-8"))
    assert share >= COMMENT_SHARE, f"{share:.1%} of the lines are comments or docstrings"


@pytest.mark.parametrize("path", LESSON_FILES, ids=ids(LESSON_FILES))
def test_lesson_modules_open_with_a_question_and_say_where_to_change_what(path):
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring, "no module docstring"
    assert "改哪里" in docstring
    assert re.search("[一-鿿]", docstring)


@pytest.mark.parametrize("path", ALL_FILES, ids=ids(ALL_FILES))
def test_files_and_functions_fit_one_sitting(path):
    source = path.read_text(encoding="utf-8")
    limit = LONGEST_FILE if "tests" not in path.parts else 600
    assert len(source.splitlines()) <= limit
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines"


def test_no_file_shadows_a_module_on_a_direct_run():
    """`python inference/x.py` puts inference/ first on sys.path: its names must be nobody's."""
    third_party = {
        *("torch", "numpy", "safetensors", "tokenizers", "regex", "rich", "tyro", "matplotlib"),
        *("filelock", "transformers", "peft", "datasets", "tensorboard", "pytest", "hypothesis"),
        *("wandb", "swanlab", "mlflow", "lm_eval"),
    }
    taken = (set(sys.stdlib_module_names) - {"__main__"}) | third_party
    shadowing = [
        path.relative_to(ROOT).as_posix()
        for path in modules([*PACKAGES, "examples", "benchmarks"])
        if path.stem in taken
    ]
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    assert shadowing == []
    assert not folders & taken


@pytest.mark.parametrize("path", ALL_FILES, ids=ids(ALL_FILES))
def test_text_files_are_opened_with_an_encoding(path):
    """Windows reads text in the local code page unless told otherwise."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else None
        name = node.func.id if isinstance(node.func, ast.Name) else name
        given = {keyword.arg for keyword in node.keywords}
        if name in ("read_text", "write_text") and isinstance(node.func, ast.Attribute):
            assert "encoding" in given, f"line {node.lineno}: {name} without encoding"
        if name == "open" and isinstance(node.func, ast.Name):
            mode = next((k.value for k in node.keywords if k.arg == "mode"), None)
            mode = node.args[1] if len(node.args) > 1 else mode
            binary = isinstance(mode, ast.Constant) and "b" in mode.value
            assert binary or "encoding" in given, f"line {node.lineno}: open without encoding"


def test_no_pickle_and_no_code_from_files():
    """`model.eval()` and the word eval() in prose are fine: neither evaluates anything."""
    # running a learner's answer is what the course is for; it does so in a process of its own
    runs_answers = ROOT / "course" / "running.py"
    forbidden = re.compile(
        r"torch\.(save|load)\(|pickle\.|(?<![\w.])(eval|exec)\([^)]|trust_remote_code=True"
    )
    found = [
        f"{path.relative_to(ROOT).as_posix()}: {line.strip()}"
        for path in modules([*PACKAGES, "examples"])
        if path != runs_answers
        for line in path.read_text(encoding="utf-8").splitlines()
        if forbidden.search(line.split("#")[0])
    ]
    assert found == []


def test_every_dependency_has_its_reason():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.findall(r'^    "[A-Za-z].*[<>=].*$', text, flags=re.M)
    assert len(listed) >= 15
    for line in listed:
        assert re.search(r"#\s+\S+", line), line
