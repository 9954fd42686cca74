"""`fromzero finetune`: pairs in, an adapter out; the base stays as it was."""

import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import fromzero
from finetuning.adapter_files import load_adapter
from finetuning.lora_config import LoRAConfig
from foundation.files import sha256_file
from fromzero.finetune import LoRAOptions, Options, parse, read
from fromzero.main import main
from fromzero.option_types import open_model
from gpt_model.huggingface import model_from_huggingface
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer
from training import loss_plot

QUICK = ["--steps", "30", "--batch-size", "4", "--eval-every", "15", "--learning-rate", "0.02"]


@pytest.fixture
def pairs(tmp_path):
    """Thirty questions with one kind of answer: easy to learn."""
    path = tmp_path / "pairs.jsonl"
    lines = [{"prompt": f"the {n}?\n", "answer": "the lazy dog"} for n in range(30)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


@pytest.fixture
def finetune(tmp_path, monkeypatch, capsys, tiny_model, pairs):
    """Finetune the tiny model; the picture takes longest, so only the first test has it drawn."""
    monkeypatch.chdir(tmp_path)
    real = loss_plot.draw_curves

    def run(*options, expect=0, draw=False):
        monkeypatch.setattr(loss_plot, "draw_curves", real if draw else lambda *_, **__: None)
        code = main(
            ["finetune", "--data", str(pairs), "--model", str(tiny_model), *QUICK, *options]
        )
        captured = capsys.readouterr()
        assert code == expect, captured.err
        return captured.out, captured.err

    return run


def test_an_adapter_is_learned_saved_merged_and_used(finetune, tiny_model, tmp_path, capsys):
    before = sha256_file(tiny_model / "model.safetensors")
    out, err = finetune("--out", "runs/ad", "--merge", "runs/merged", draw=True)
    assert err == ""
    assert (tmp_path / "runs" / "ad" / "loss.png").read_bytes().startswith(b"\x89PNG")
    first, last = map(float, re.search(r"loss ([\d.]+) -> ([\d.]+)", out).groups())
    assert last < first - 0.3
    assert "27 to learn from, 3 held out" in out
    assert re.search(r"^the \d+\?\n⟦the lazy dog<\|endoftext\|>⟧$", out, flags=re.M)
    assert "the model's answer" in out
    assert sha256_file(tiny_model / "model.safetensors") == before
    adapter = tmp_path / "runs" / "ad" / "adapter"
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        p.name for p in adapter.iterdir()
    }
    # the adapter beside the base writes what the merged model writes
    greedy = ["--prompt", "the 7?\n", "--temperature", "0", "--max-new-tokens", "8"]
    assert main(["generate", "--model", "runs/merged", *greedy]) == 0
    merged = capsys.readouterr().out
    for given in ("runs/ad", "runs/ad/adapter"):
        assert main(["generate", "--model", str(tiny_model), "--adapter", given, *greedy]) == 0
        assert capsys.readouterr().out == merged
    assert main(["generate", "--model", str(tiny_model), *greedy]) == 0
    assert capsys.readouterr().out != merged


def test_a_killed_run_goes_on_to_the_same_adapter(finetune, tiny_model, pairs, tmp_path):
    """Killed without warning after its first checkpoint; the options are the run's own."""
    words = ["--steps", "200", "--save-every", "10", "--eval-every", "50", "--dropout", "0.1"]
    command = ["finetune", "--data", str(pairs), "--model", str(tiny_model), *QUICK, *words]
    child = subprocess.Popen(
        [sys.executable, "-m", "fromzero", *command, "--out", "runs/killed"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(fromzero.__file__).parents[1])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    first = tmp_path / "runs" / "killed" / "step-000010"
    deadline = time.monotonic() + 60
    while not first.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    child.kill()
    assert child.wait() not in (0, 2)
    assert not (first.parent / "adapter").exists()
    assert main(["finetune", "--resume", "runs/killed"]) == 0
    finetune(*words, "--out", "runs/straight")
    files = [f"runs/{name}/adapter/adapter_model.safetensors" for name in ("killed", "straight")]
    assert sha256_file(Path(files[0])) == sha256_file(Path(files[1]))


def test_a_resumed_run_refuses_other_options(finetune):
    finetune("--out", "runs/a", "--steps", "4")
    _, err = finetune("--resume", "runs/a", "--learning-rate", "0.5", expect=2)
    assert "learning_rate" in err
    _, err = finetune("--resume", "runs/none", expect=2)
    assert "the run directory runs/none does not exist" in err.replace("\\", "/")


def test_only_the_chosen_layers_are_trained(finetune):
    out, _ = finetune("--out", "runs/a", "--target", "q_proj", "--r", "1", "--steps", "1")
    assert "trainable  64 of" in out  # 32 x 1 + 1 x 32


def test_the_best_step_is_kept_not_the_last(finetune, tiny_model):
    # so high a rate that the second half ruins what the first has learned
    out, _ = finetune("--learning-rate", "0.5", "--schedule", "constant", "--out", "runs/a")
    best = float(re.search(r"-> ([\d.]+)", out)[1])
    seen = [float(x) for x in re.findall(r"validation loss ([\d.]+)", out)]
    assert best == pytest.approx(min(seen), abs=1e-3)


def test_pairs_that_do_not_fit_are_left_out_and_it_says_so(finetune, pairs):
    with open(pairs, "a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps({"prompt": "the " * 30, "answer": "dog"}) + "\n")
    out, err = finetune("--max-length", "30", "--steps", "1", "--out", "runs/a")
    assert "27 to learn from" in out
    assert err == "fromzero: warning: 1 conversations are longer than 30 tokens and are left out\n"


def test_pairs_are_split_without_overlap(tmp_path):
    path = tmp_path / "p.jsonl"
    lines = [json.dumps({"q": f"{n % 20}", "a": "x"}) for n in range(40)]
    path.write_text("\n".join(lines), encoding="utf-8")
    options = Options(data=path, prompt_key="q", answer_key="a", held_out=0.2)
    training, held_out = read(options)
    assert held_out
    assert not set(training) & set(held_out)


@pytest.mark.parametrize(
    ("given", "total", "expected"),
    [(0.1, 30, 3), (0.7, 30, 21), (0.95, 30, 28), (0.3, 10, 3), (0.99, 3, 2), (0.001, 5, 1)],
)
def test_the_share_held_out_is_the_one_asked_for(tmp_path, given, total, expected):
    path = tmp_path / "p.jsonl"
    lines = [json.dumps({"prompt": f"{n}", "answer": "x"}) for n in range(total)]
    path.write_text("\n".join(lines), encoding="utf-8")
    training, held_out = read(Options(data=path, held_out=given))
    assert (len(training), len(held_out)) == (total - expected, expected)
    # spread over the whole file: no gap is much wider than another
    places = [int(one.messages[0].content) for one in held_out]
    gaps = [b - a for a, b in itertools.pairwise([-1, *places, total])]
    assert max(gaps) <= total / expected + 1


def test_pairs_that_are_all_the_same_cannot_be_split(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n' * 5, encoding="utf-8")
    with pytest.raises(ValueError, match="all 5 conversations are the same"):
        read(Options(data=path))


def test_without_data_the_pairs_are_functions_and_docstrings():
    training, held_out = read(Options())
    assert len(training) > 1000
    assert held_out
    assert training[0].prompt.endswith("# Summary:\n")


def test_every_field_of_lora_config_has_its_option():
    names = {field.name for field in dataclasses.fields(LoRAOptions)}
    left_out = {"rank_pattern", "alpha_pattern"}  # mappings, for programs
    assert names == {field.name for field in dataclasses.fields(LoRAConfig)} - left_out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--r", "0"], ["r must be", ">= 1", "got 0"]),
        (["--alpha", "nan"], ["alpha", "nan"]),
        (["--target", "qproj"], ["qproj", "q_proj"]),
        (["--held-out", "1"], ["held_out", "< 1", "got 1"]),
        (["--prompt-key", "promt"], ["'promt'", "line 1", "did you mean 'prompt'"]),
        (["--max-length", "65"], ["max_length", "<= 64", "got 65"]),
        (["--max-length", "0"], ["max_length", ">= 1", "got 0"]),
        (["--data", "absent.jsonl"], ["absent.jsonl"]),
        (["--adapter", "x"], ["'--adapter'"]),
    ],
)
def test_mistakes_are_one_line(finetune, options, words):
    out, err = finetune(*options, expect=2)
    assert err.splitlines()[-1].startswith("fromzero: error: ")
    for word in words:
        assert word in err.splitlines()[-1]


def test_merged_model_is_a_plain_model(finetune):
    finetune("--steps", "1", "--merge", "merged", "--out", "runs/a")
    names = GPT.load("merged").state_dict()
    assert not any("lora" in name or "base_layer" in name for name in names)
    assert all(torch.isfinite(tensor).all() for tensor in names.values())


@pytest.fixture
def talks(tmp_path):
    """Two turns each, as messages and as ShareGPT, in one list."""
    path = tmp_path / "talks.json"
    listed = []
    for n in range(24):
        said = [("user", f"fox {n}?"), ("assistant", "the"), ("user", "and?"), ("assistant", "dog")]
        messages = [{"role": role, "content": text} for role, text in said]
        gpt = {"user": "human", "assistant": "gpt"}
        turns = [{"from": gpt[role], "value": text} for role, text in said]
        listed.append({"messages": messages} if n % 2 else {"conversations": turns})
    path.write_text(json.dumps(listed, indent=1), encoding="utf-8")
    return path


def losses(out):
    return tuple(map(float, re.search(r"held out +loss ([\d.]+) -> ([\d.]+)", out).groups()))


@pytest.mark.parametrize("layout", ["right", "left", "packed"])
def test_conversations_are_learned_in_every_layout(finetune, talks, layout):
    out, err = finetune("--data", str(talks), "--layout", layout, "--out", "runs/a")
    first, last = losses(out)
    assert last < first - 0.3
    assert err == ""
    assert re.search(r"^fox \d+\?⟦the<\|endoftext\|>⟧\nand\?⟦dog<\|endoftext\|>⟧$", out, flags=re.M)


def test_full_finetuning_ends_in_a_model_directory(finetune, tiny_model, talks, tmp_path):
    before = sha256_file(tiny_model / "model.safetensors")
    words = ["--data", str(talks), "--method", "full", "--out", "runs/f", "--save-every", "10"]
    out, err = finetune(*words, "--learning-rate", "0.003")
    assert err == ""
    first, last = losses(out)
    assert last < first - 0.3
    assert sha256_file(tiny_model / "model.safetensors") == before
    assert not (tmp_path / "runs/f/adapter").exists()
    model = GPT.load(tmp_path / "runs/f/model")
    base = GPT.load(tiny_model)
    changed = [
        name
        for name, tensor in model.state_dict().items()
        if not torch.equal(tensor, base.state_dict()[name])
    ]
    assert len(changed) == len(base.state_dict())
    greedy = ["--prompt", "fox 7?", "--temperature", "0", "--max-new-tokens", "4"]
    assert main(["generate", "--model", "runs/f/model", *greedy]) == 0
    # resumed from the middle: the same model
    for step in sorted((tmp_path / "runs/f").glob("step-*"))[1:]:
        shutil.rmtree(step)
    shutil.move(tmp_path / "runs/f/model", tmp_path / "first")
    assert main(["finetune", "--resume", "runs/f"]) == 0
    names = [tmp_path / "first", tmp_path / "runs/f/model"]
    assert len({sha256_file(name / "model.safetensors") for name in names}) == 1


def test_full_finetuning_has_a_smaller_learning_rate_of_its_own():
    full = parse(["--method", "full"], program="p")
    assert full.training.learning_rate == 1e-4
    assert full.training.steps == Options().training.steps
    given = parse(["--method", "full", "--learning-rate", "0.5"], program="p")
    assert given.training.learning_rate == 0.5
    assert parse([], program="p") == Options()


def test_qlora_learns_beside_four_bits_and_is_used_beside_them(finetune, tiny_model, talks, capsys):
    out, err = finetune(
        "--data", str(talks), "--method", "qlora", "--merge", "m", "--out", "runs/q"
    )
    assert err == ""
    first, last = losses(out)
    assert last < first - 0.3
    # the merged model is plain, and the adapter beside the (rounded) base is the same model
    plain = GPT.load("m")
    assert not any("packed" in name for name in plain.state_dict())
    opened, _, _ = open_model(tiny_model, adapter=Path("runs/q"))
    ids = torch.arange(12)[None]
    torch.testing.assert_close(opened(ids).logits, plain(ids).logits)
    unrounded = load_adapter(GPT.load(tiny_model), "runs/q/adapter", allow_other_base=True)
    assert (unrounded(ids).logits - plain(ids).logits).abs().max() > 1e-3
    # resumed from the middle: the same adapter
    steps = sorted(Path("runs/q").glob("step-*"))
    before = sha256_file(Path("runs/q/adapter/adapter_model.safetensors"))
    shutil.rmtree(steps[-1])
    assert main(["finetune", "--resume", "runs/q"]) == 0
    assert sha256_file(Path("runs/q/adapter/adapter_model.safetensors")) == before


def test_an_imported_model_is_finetuned(finetune, tmp_path, talks, tiny_model):
    """GPT-2 from Hugging Face, with random weights."""
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer.load(tiny_model)
    config = transformers.GPT2Config(
        vocab_size=tokenizer.vocab_size, n_positions=64, n_embd=32, n_layer=2, n_head=2
    )
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(config)
    model = model_from_huggingface(theirs.config.to_dict(), theirs.state_dict())
    model.save(tmp_path / "gpt2", tokenizer)
    for method in ("lora", "qlora", "full"):
        words = ["--model", str(tmp_path / "gpt2"), "--method", method, "--learning-rate", "0.01"]
        out, _ = finetune("--data", str(talks), *words, "--out", f"runs/{method}")
        first, last = losses(out)
        assert last < first - 0.3, method


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "lor"], ["method must be one of lora, qlora, full", "'lor'"]),
        (["--method", "full", "--r", "4"], ["--method full", "no r, got 4"]),
        (["--method", "full", "--merge", "m"], ["--merge", "plain model"]),
        (["--layout", "middle"], ["layout must be one of right, left, packed"]),
    ],
)
def test_mistakes_of_method_and_layout_are_one_line(finetune, options, words):
    out, err = finetune(*options, expect=2)
    assert err.splitlines()[-1].startswith("fromzero: error: ")
    for word in words:
        assert word in err.splitlines()[-1]


def contents(directory):
    """Every file below a directory, with its hash."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory): sha256_file(path) for path in files}


def refusal(finetune, *options):
    _, err = finetune(*options, expect=2)
    return err.splitlines()[-1].replace("\\", "/")


def test_merging_replaces_nothing_but_an_earlier_model(finetune, tiny_model, tmp_path):
    """Refused before anything is trained: no run directory is made either."""
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter-1.txt").write_text("years of work", encoding="utf-8")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    shutil.copytree(tiny_model, tmp_path / "base")
    shutil.copytree(tiny_model, tmp_path / "other")
    shutil.copytree(tiny_model, tmp_path / "theirs")
    (tmp_path / "theirs" / "manifest.json").unlink()
    before = contents(tmp_path)
    words = ("--model", "base", "--out", "runs/new", "--overwrite", "--merge")
    for place, message in [
        ("thesis", "thesis is not a model directory: it holds chapter-1.txt"),
        ("file", "file is a file, a directory is needed"),
        ("base", "--merge base would replace base"),
        (".", "--merge . would replace "),
        ("runs/new", "--merge runs/new would replace runs/new"),
        ("runs", "--merge runs would replace runs/new"),
        ("runs/new/adapter", "is where the adapter goes"),
        ("theirs", "theirs holds a model that is not from here"),
    ]:
        assert message in refusal(finetune, *words, place)
    assert "other already holds a model" in refusal(finetune, *(*words[:4], "--merge", "other"))
    assert contents(tmp_path) == before
    assert not (tmp_path / "runs").exists()
    # an earlier merge is replaced on demand, and by the run that made it
    finetune(*words, "other", "--steps", "1")
    first = contents(tmp_path / "other")
    assert first != before
    assert main(["finetune", "--resume", "runs/new"]) == 0
    assert main(["finetune", "--resume", "runs/new", "--merge", "base"]) == 2
    assert contents(tmp_path / "other") == first
    assert contents(tmp_path / "base") == contents(tiny_model)


def test_a_mistake_leaves_the_old_run_whole(finetune, tmp_path):
    finetune("--out", "runs/a", "--steps", "2")
    before = contents(tmp_path / "runs/a")
    for options, message in [
        (["--data", "absent.jsonl"], "absent.jsonl"),
        (["--model", "absent"], "absent"),
        (["--target", "qproj"], "qproj"),
        (["--max-length", "3"], "no conversation is left"),
        (["--device", "cuda:77"], "cuda"),
    ]:
        assert message in refusal(finetune, "--out", "runs/a", "--overwrite", *options)
        assert contents(tmp_path / "runs/a") == before
    assert "already holds checkpoints" in refusal(finetune, "--out", "runs/a")


def test_overwriting_takes_the_old_result_away_too(finetune, tmp_path):
    """Another method: the old adapter must not stay beside the new model."""
    finetune("--out", "runs/a", "--steps", "1")
    assert (tmp_path / "runs/a/adapter").is_dir()
    finetune("--out", "runs/a", "--steps", "1", "--overwrite", "--method", "full")
    assert (tmp_path / "runs/a/model").is_dir()
    assert not (tmp_path / "runs/a/adapter").exists()


def test_the_base_is_not_where_the_run_goes(finetune, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "runs/model")
    for out in ("runs", "runs/model"):
        for method in ("lora", "full"):
            words = ("--model", "runs/model", "--out", out, "--overwrite", "--method", method)
            assert "lies in --out" in refusal(finetune, *words)
    # a model that somebody else put where the result would go
    words = ("--out", "runs", "--method", "full")
    assert "already exists; give another --out" in refusal(finetune, *words)
    assert contents(tmp_path / "runs/model") == contents(tiny_model)


def test_curves_go_where_they_are_sent(finetune, tmp_path):
    pytest.importorskip("tensorboard")
    finetune("--steps", "1", "--out", "runs/board", "--track", "tensorboard")
    assert list((tmp_path / "runs/board/tensorboard").glob("events.*"))
    finetune("--steps", "1", "--out", "runs/bare", "--track", "none")
    assert not (tmp_path / "runs/bare/tensorboard").exists()
    assert "did you mean 'tensorboard'" in refusal(finetune, "--track", "tensorbord")


def test_a_folder_is_not_a_file_of_conversations(finetune, tmp_path):
    (tmp_path / "prepared").mkdir()
    message = refusal(finetune, "--data", "prepared")
    assert "prepared is a folder; finetuning wants one json or jsonl file" in message
