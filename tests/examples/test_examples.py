"""The examples run as a learner runs them, in an empty folder, and refuse nonsense in one line."""

import json
import re
from pathlib import Path

import pytest

from finetuning.adapter_files import load_adapter
from gpt_model.model import GPT
from gpt_model.model_directory import find_model_directory

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(fresh_python):
    def start(folder, name, *arguments):
        script = ROOT / "examples" / name
        paths = {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}
        return fresh_python(script, *arguments, cwd=folder, timeout=280, **paths)

    return start


def numbers(pattern, text):
    return [float(group) for group in re.search(pattern, text).groups()]


@pytest.fixture(scope="module")
def workplace(run, tmp_path_factory):
    """An empty folder in which the second example had to train its own model."""
    folder = tmp_path_factory.mktemp("learner")
    result = run(folder, "finetune_with_lora.py", "--quick")
    assert result.returncode == 0, result.stderr[-3000:]
    return folder, result.stdout


def test_training_says_what_it_did_and_gets_better(workplace):
    _, output = workplace
    before, after = numbers(r"验证损失 ([\d.]+) → ([\d.]+)，每字节", output)
    assert 5.5 < before < 7  # log 512 = 6.2
    assert after < before - 1.5
    bits_before, bits_after = numbers(r"每字节 ([\d.]+) → ([\d.]+) 比特", output)
    assert bits_after < bits_before * 0.8
    assert output.index("训练之前") < output.index("训练之后")
    assert output.count("--- 样例 1 ---") == 2


def test_training_leaves_a_model_and_a_picture(workplace):
    folder, _ = workplace
    step = find_model_directory(folder / "runs" / "quick-gpt")
    assert GPT.load(step).config.max_seq_len == 128
    assert (folder / "runs" / "quick-gpt" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in folder.iterdir()} == {"runs"}  # git ignores it


def test_finetuning_says_that_it_trains_a_model_first(workplace):
    _, output = workplace
    assert "没有训练好的模型" in output
    assert "先训练一个快的" in output


def test_finetuning_lowers_the_held_out_loss(workplace):
    _, output = workplace
    before, after = numbers(r"留出损失 ([\d.]+) → ([\d.]+)", output)
    assert after < before - 0.1
    share = numbers(r"= ([\d.]+)%", output)[0]
    assert 0 < share < 30
    assert numbers(r"最大差 ([\de.-]+)", output)[0] < 1e-3
    assert output.count("模型：") == output.count("原文：") == 3


def test_the_adapter_loads_onto_the_base_it_was_trained_on(workplace):
    folder, output = workplace
    model = GPT.load(find_model_directory(folder / "runs" / "quick-gpt"))
    load_adapter(model, folder / "runs" / "docstring-adapter")
    size = sum(path.stat().st_size for path in (folder / "runs" / "docstring-adapter").iterdir())
    assert round(numbers(r"：(\d+) KiB", output)[0]) == round(size / 1024)


def test_own_pairs_and_an_existing_model(run, workplace):
    folder, _ = workplace
    lines = [json.dumps({"prompt": f"{n}+1=", "answer": f"{n + 1}"}) for n in range(20)]
    (folder / "runs" / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    options = ("--pairs", "runs/pairs.jsonl", "--model", "runs/quick-gpt", "--steps", "2")
    result = run(folder, "finetune_with_lora.py", *options, "--adapter", "runs/sums")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "训练 18 题，留出 2 题" in result.stdout
    assert (folder / "runs" / "sums" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train_small_gpt.py", ["--steps", "0"], "steps must be an integer >= 1, got 0"),
        ("train_small_gpt.py", ["--data", "no-such.txt"], "no-such.txt"),
        ("train_small_gpt.py", ["--preset", "gpt-mikro"], "did you mean 'gpt-micro'"),
        ("train_small_gpt.py", [], "quick-gpt"),  # an earlier run is not replaced silently
        ("finetune_with_lora.py", ["--model", "nowhere"], "model directory nowhere does not exist"),
        ("finetune_with_lora.py", ["--rank", "0"], "r must be an integer >= 1, got 0"),
        ("finetune_with_lora.py", ["--learning-rate", "nan"], "learning_rate must be"),
        ("finetune_with_lora.py", ["--adapter", "runs"], "runs is not an adapter directory"),
    ],
)
def test_nonsense_is_refused_in_one_line_with_exit_code_2(run, workplace, name, arguments, message):
    folder, _ = workplace
    result = run(folder, name, "--quick", *arguments)
    assert result.returncode == 2, result.stderr[-2000:]
    assert "Traceback" not in result.stderr
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 or "usage:" in result.stderr
