"""Every lesson runs by itself, from the root, and is worth reading."""

import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [
    *("transformer_basics", "tokenization", "gpt_model", "inference", "training", "finetuning"),
    "evaluation",
]
LESSONS = [
    path.relative_to(ROOT).as_posix()
    for folder in FOLDERS
    for path in sorted((ROOT / folder).glob("*.py"))
    if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
    and path.name != "code_driver.py"  # what a child process runs, by its path
]
PLOTS = [
    lesson
    for lesson in LESSONS
    if "run_demo(demo, plot" in (ROOT / lesson).read_text(encoding="utf-8")
]
PROMISED = [
    *("transformer_basics/attention.py", "transformer_basics/layers.py"),
    *("transformer_basics/embeddings.py", "gpt_model/config.py", "gpt_model/model.py"),
    *("inference/sampling.py", "inference/generator.py", "training/dataset.py"),
    "finetuning/lora.py",
]


@pytest.fixture
def run(fresh_python):
    return functools.partial(fresh_python, cwd=ROOT)


def test_the_promised_lessons_are_there():
    assert set(PROMISED) <= set(LESSONS)


@pytest.mark.parametrize("lesson", LESSONS)
def test_demonstration_runs_and_says_something_in_numbers(lesson, run):
    result = run(lesson)
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(result.stdout.splitlines()) >= 5
    assert re.search(r"\d", result.stdout)
    assert re.search("[一-鿿]", result.stdout)
    assert result.seconds < 20  # the promise is 10 s on a free machine; this one is busy


@pytest.mark.parametrize("lesson", PLOTS)
def test_plot_is_a_picture(lesson, run, tmp_path):
    path = tmp_path / "plot.png"
    result = run(lesson, "--plot", str(path))
    assert result.returncode == 0, result.stderr[-2000:]
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 5_000
