"""Bad input on the command line: exit code 2 and ONE line on stderr with the value and the limit.

Nothing is half done afterwards: no run directory with a checkpoint, no silent fresh start.
"""

import json
import os
import shutil
import sys

import pytest
import torch

from fromzero.main import main
from gpt_model.config import preset
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer

TEXT = "the quick brown fox jumps over the lazy dog; 明月几时有？把酒问青天。\n" * 30
TINY = ["--n-layers", "1", "--dim", "16", "--n-heads", "2", "--max-seq-len", "16", "--no-plot"]
SMALL = [*TINY, "--vocab-size", "280", "--steps", "4", "--batch-size", "2"]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    config = preset("gpt-micro", vocab_size=300, max_seq_len=64, n_layers=1, dim=32, n_heads=2)
    directory = tmp_path_factory.mktemp("faults") / "tiny"
    GPT(config).save(directory, tokenizer)
    return directory


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_model):
    """A folder with good and bad files; commands are run inside it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model, "model")
    write("text.txt", TEXT)
    write("empty.txt", "")
    write("blank.txt", " \n\n ")
    write("short.txt", "abc")
    write("notes.doc", "text")
    write("typo.json", '{"n_layer": 2}')
    write("bool.json", '{"n_layers": true}')
    write("broken.json", '{"dim": 64,\n "n_heads" 4}')
    write("list.json", "[1, 2]")
    write("bad.jsonl", '{"text": "fine"}\n{"text": \n')
    write("nokey.jsonl", '{"content": "fine"}\n')
    write("null.jsonl", '{"text": null}\n')
    write("pairs.jsonl", '{"prompt": "a", "answer": "b"}\n{"prompt": "c"}\n')
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1") * 9)
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty_run").mkdir()
    return tmp_path


def write(name, text):
    with open(name, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def complaint(capsys, arguments):
    """Run a command that must fail; return its one line."""
    code = main(arguments)
    captured = capsys.readouterr()
    assert code == 2, captured
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("fromzero: error: ")
    assert "Traceback" not in captured.err
    return captured.err


TRAIN = ["train", "--data", "text.txt", *SMALL]
GENERATE = ["generate", "--model", "model", "--prompt", "the fox"]

CASES = {
    # options and numbers
    "unknown option": ([*TRAIN, "--learning-rat", "1"], "--learning-rat|--learning-rate"),
    "lr nan": ([*TRAIN, "--learning-rate", "nan"], "learning_rate|> 0|nan"),
    "lr negative": ([*TRAIN, "--learning-rate", "-1"], "learning_rate|> 0|-1"),
    "lr zero": ([*TRAIN, "--learning-rate", "0"], "learning_rate|> 0|got 0"),
    "lr beyond float": ([*TRAIN, "--learning-rate", "1e999"], "learning_rate|finite|inf"),
    "lr a word": ([*TRAIN, "--learning-rate", "fast"], "--learning-rate|'fast'"),
    "true for an integer": ([*TRAIN, "--n-layers", "true"], "--n-layers|INT|'true'"),
    "fraction for an integer": ([*TRAIN, "--steps", "1.5"], "--steps|INT|'1.5'"),
    "steps zero": ([*TRAIN, "--steps", "0"], "steps|>= 1|got 0"),
    "batch zero": ([*TRAIN, "--batch-size", "0"], "batch_size|>= 1|got 0"),
    "betas": ([*TRAIN, "--betas", "0.9", "1.0"], "betas[1]|< 1|got 1"),
    "dropout": ([*TRAIN, "--dropout", "1"], "dropout|< 1|got 1"),
    "negative seed": ([*TRAIN, "--seed", "-3"], "seed|>= 0|got -3"),
    "schedule": ([*TRAIN, "--schedule", "cosin"], "schedule|'cosin'|did you mean 'cosine'"),
    "val fraction": ([*TRAIN, "--val-fraction", "1"], "val_fraction|< 1|got 1"),
    "minutes": (["train", "--data", "text.txt", *TINY, "--minutes", "-5"], "minutes|> 0|-5"),
    "epochs": (["train", "--data", "text.txt", *TINY, "--max-epochs", "0"], "max_epochs|> 0|0"),
    "device": ([*TRAIN, "--device", "cuda:99"], "cuda:99|CUDA devices"),
    "fp16 on a cpu": ([*TRAIN, "--device", "cpu", "--precision", "fp16"], "fp16|CUDA|cpu"),
    # the model
    "dim % heads": ([*TRAIN, "--n-heads", "3"], "dim|n_heads|16 % 3 = 1"),
    "heads % groups": ([*TRAIN, "--n-kv-heads", "3"], "n_kv_heads|2 % 3"),
    "preset": ([*TRAIN, "--preset", "gpt-mirco"], "gpt-mirco|did you mean 'gpt-micro'"),
    "norm": ([*TRAIN, "--norm", "batchnorm"], "norm|layernorm|rmsnorm|'batchnorm'"),
    "block size": ([*TRAIN, "--block-size", "17"], "block_size|<= 16|got 17"),
    "unknown key in a file": ([*TRAIN, "--config", "typo.json"], "n_layer|typo.json|'n_layers'"),
    "true in a file": ([*TRAIN, "--config", "bool.json"], "n_layers|integer|True"),
    "broken json": ([*TRAIN, "--config", "broken.json"], "broken.json|line 2"),
    "a list for a configuration": ([*TRAIN, "--config", "list.json"], "list.json|object|list"),
    "no such configuration": ([*TRAIN, "--config", "no.json"], "no.json"),
    "rope scaling": ([*TRAIN, "--rope-scaling", "{"], "rope_scaling|JSON"),
    "cannot fit": (
        ["train", "--data", "text.txt", "--preset", "gpt2-xl", "--batch-size", "4096"],
        "training needs about|are free|it cannot fit",
    ),
    # data
    "empty file": (["train", "--data", "empty.txt", *SMALL], "empty.txt"),
    "blank file": (["train", "--data", "blank.txt", *SMALL], "blank.txt"),
    "shorter than a block": (["train", "--data", "short.txt", *SMALL], "tokens"),
    "unknown corpus": (["train", "--data", "python-doc", *SMALL], "python-doc|'python-docs'"),
    "folder without texts": (["train", "--data", "folder", *SMALL], "folder|.txt"),
    "another kind of file": (["train", "--data", "notes.doc", *SMALL], "notes.doc|.doc|.txt"),
    "pattern without match": (["train", "--data", "x*.txt", *SMALL], "x*.txt|matches no"),
    "bad utf-8": (["train", "--data", "latin.txt", *SMALL], "latin.txt|0xef|offset 2"),
    "bad json line": (["train", "--data", "bad.jsonl", *SMALL], "bad.jsonl|2"),
    "json without text": (["train", "--data", "nokey.jsonl", *SMALL], "nokey.jsonl|text|content"),
    "null text": (["train", "--data", "null.jsonl", *SMALL], "null.jsonl|text"),
    "empty validation": ([*TRAIN, "--validation", "empty.txt"], "empty.txt"),
    "evaluate an empty file": (["evaluate", "--model", "model", "--data", "empty.txt"], "empty"),
    # tokenizers
    "unknown tokenizer": ([*TRAIN, "--tokenizer", "character"], "'character'|'characters'"),
    "vocabulary too small for bytes": ([*TRAIN, "--vocab-size", "100"], "vocab_size|257|100"),
    "vocabulary below the tokenizer": (
        [*TRAIN, "--tokenizer", "model", "--vocab-size", "299"],
        "vocab_size|>= 300|got 299",
    ),
    "folder without a tokenizer": ([*TRAIN, "--tokenizer", "folder"], "folder|tokenizer.json"),
    # runs
    "resume nothing": (["train", "--resume", "absent"], "cannot resume|absent|does not exist"),
    "resume an empty folder": (["train", "--resume", "empty_run"], "cannot resume|empty_run"),
    # models
    "no such model": (["generate", "--model", "absent", "--prompt", "a"], "absent|not exist"),
    "no model in a folder": (
        ["generate", "--model", "folder", "--prompt", "a"],
        "folder|config.json",
    ),
    "no model at all": (["generate", "--prompt", "a"], "no model|runs|fromzero train"),
    "no adapter": ([*GENERATE, "--adapter", "folder"], "folder|adapter_config.json"),
    "an unknown task": (["evaluate", "--model", "model", "--task", "clozze"], "'clozze'|'cloze'"),
    "programs unasked": (["evaluate", "--model", "model", "--task", "programs"], "--run-code"),
    # sampling
    "temperature": ([*GENERATE, "--temperature", "-1"], "temperature|>= 0|got -1"),
    "temperature nan": ([*GENERATE, "--temperature", "nan"], "temperature|finite|nan"),
    "temperature infinite": ([*GENERATE, "--temperature", "inf"], "temperature|finite|inf"),
    "top p": ([*GENERATE, "--top-p", "1.5"], "top_p|<= 1|got 1.5"),
    "top p zero": ([*GENERATE, "--top-p", "0"], "top_p|> 0|got 0"),
    "top k": ([*GENERATE, "--top-k", "-3"], "top_k|>= 0|got -3"),
    "min p": ([*GENERATE, "--min-p", "2"], "min_p|<= 1|got 2"),
    "repetition penalty": ([*GENERATE, "--repetition-penalty", "0"], "repetition_penalty|> 0|0"),
    "empty stop text": ([*GENERATE, "--stop", ""], "stop|at least 1 character|''"),
    "beams": ([*GENERATE, "--num-beams", "301"], "num_beams|<= 300|got 301"),
    "beams and top k": ([*GENERATE, "--num-beams", "2", "--top-k", "4"], "top_k=4|num_beams=2"),
    "bias": ([*GENERATE, "--logit-bias", "5"], "logit_bias|ID=BIAS|'5'"),
    "bias beyond the vocabulary": ([*GENERATE, "--logit-bias", "300=1"], "logit_bias|<= 299|300"),
    "empty prompt": (["generate", "--model", "model", "--prompt", ""], "prompt|empty"),
    "two prompts": ([*GENERATE, "--prompt-file", "text.txt"], "--prompt|--prompt-file|not both"),
    "no such prompt file": (
        ["generate", "--model", "model", "--prompt-file", "absent.txt"],
        "absent.txt|not exist",
    ),
    "folder for a prompt": (["generate", "--model", "model", "--prompt-file", "folder"], "folder"),
    "chat beyond the context": (
        ["chat", "--model", "model", "--max-new-tokens", "64"],
        "max_new_tokens|<= 63|got 64",
    ),
    "chat with beams": (["chat", "--model", "model", "--num-beams", "2"], "num_beams|1|got 2"),
    # pairs
    "pair without an answer": (
        ["finetune", "--model", "model", "--data", "pairs.jsonl"],
        "line 2|'response'",
    ),
    "folder for pairs": (["finetune", "--model", "model", "--data", "folder"], "folder"),
    "empty pairs": (
        ["finetune", "--model", "model", "--data", "empty.txt"],
        "empty.txt|no conversations",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_names_the_value_and_the_limit(capsys, monkeypatch, place, name):
    if name == "no model at all":
        shutil.rmtree("model")
    arguments, words = CASES[name]
    # a test that must fail early may not spend three seconds measuring speed first
    from evaluation import throughput

    monkeypatch.setattr(throughput, "measure_training_speed", lambda *_, **__: 1e5)
    error = complaint(capsys, arguments)
    for word in words.split("|"):
        assert word in error, error
    assert not list(place.glob("runs/*/step-*")), "nothing was trained"


def test_a_prompt_longer_than_the_context(capsys, place):
    n_tokens = len(Tokenizer.load("model").encode(TEXT))
    error = complaint(capsys, ["generate", "--model", "model", "--prompt-file", "text.txt"])
    assert f"{n_tokens} tokens" in error
    assert "64" in error


def test_a_flipped_byte_names_the_file(capsys, place):
    path = place / "model" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "model.safetensors is damaged" in complaint(capsys, GENERATE)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_missing_or_truncated_file_is_named(capsys, place, name):
    path = place / "model" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert name in complaint(capsys, GENERATE)
    path.unlink()
    assert name.split(".")[0] in complaint(capsys, GENERATE)


def test_the_tokenizer_of_another_vocabulary(capsys, place):
    """Somebody copied another tokenizer over it, manifest and all."""
    tokenizer = Tokenizer.train_bpe([TEXT], 310)
    model = GPT.load("model")
    shutil.rmtree("model")
    model.save("model")
    tokenizer.save("model")
    error = complaint(capsys, GENERATE)
    assert "310" in error
    assert "300" in error


def test_a_model_without_a_tokenizer(capsys, place):
    model = GPT.load("model")
    shutil.rmtree("model")
    model.save("model")
    assert "tokenizer.json" in complaint(capsys, GENERATE)


def test_an_adapter_of_another_base(capsys, place, tiny_model):
    from finetuning.adapter_files import save_adapter
    from finetuning.lora import LoRAConfig, apply_lora

    other = GPT.load("model")
    with torch.no_grad():
        other.blocks[0].feed_forward.up_proj.weight.add_(1.0)
    save_adapter(apply_lora(other, LoRAConfig()), "adapter")
    error = complaint(capsys, [*GENERATE, "--adapter", "adapter"])
    assert "adapter" in error
    assert "base" in error


@pytest.mark.skipif(
    sys.platform == "win32" or not hasattr(os, "geteuid") or os.geteuid() == 0,
    reason="root may write everywhere",
)
def test_an_output_directory_that_cannot_be_written(capsys, place):
    (place / "locked").mkdir()
    (place / "locked").chmod(0o500)
    assert "locked" in complaint(capsys, [*TRAIN, "--out", "locked/run"])


def test_an_output_that_is_a_file(capsys, place):
    """Also what root, who may write everywhere, cannot do: found before the data is read."""
    error = complaint(capsys, [*TRAIN, "--out", "text.txt"])
    assert "text.txt" in error
    assert "cannot be written" in error
    assert not (place / "data").exists()
    assert "text.txt" in complaint(capsys, [*TRAIN, "--out", "text.txt/run"])


def test_two_runs_in_one_directory(capsys, place):
    from training.run_directory import RunDirectory

    with RunDirectory("runs/a").claimed():
        error = complaint(capsys, [*TRAIN, "--out", "runs/a"])
    assert "runs" in error
    assert f"process {os.getpid()}" in error
    assert not (place / "data").exists()


def test_a_run_is_not_overwritten_without_being_told(capsys, place):
    assert main([*TRAIN, "--out", "runs/a"]) == 0
    before = sorted(path.name for path in (place / "runs" / "a").iterdir())
    capsys.readouterr()
    assert "overwrite" in complaint(capsys, [*TRAIN, "--out", "runs/a"])
    assert sorted(path.name for path in (place / "runs" / "a").iterdir()) == before


def test_a_damaged_checkpoint_falls_back_and_says_so(capsys, place):
    assert main([*TRAIN, "--out", "runs/a", "--save-every", "2"]) == 0
    for step, answer in (("step-000004", 0), ("step-000002", 2)):
        path = place / "runs" / "a" / step / "optimizer.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        capsys.readouterr()
        code = main(["train", "--resume", "runs/a", "--steps", "4"])
        captured = capsys.readouterr()
        assert code == answer
        if code == 0:
            assert "step-000004" in captured.out + captured.err
            # step 4 was trained again and saved again; damage it for the next round
            again = place / "runs" / "a" / "step-000004" / "optimizer.safetensors"
            again.write_bytes(data)
        else:
            assert "damaged" in captured.err.splitlines()[-1]


def test_options_of_a_run_that_somebody_edited(capsys, place):
    assert main([*TRAIN, "--out", "runs/a"]) == 0
    capsys.readouterr()
    path = place / "runs" / "a" / "options.json"
    options = json.loads(path.read_text(encoding="utf-8"))
    options["datta"] = options.pop("data")
    path.write_text(json.dumps(options), encoding="utf-8")
    error = complaint(capsys, ["train", "--resume", "runs/a"])
    assert "'datta'" in error
    assert "'data'" in error


def test_data_that_changed_since_the_checkpoint(capsys, place):
    assert main([*TRAIN, "--out", "runs/a"]) == 0
    capsys.readouterr()
    write("text.txt", TEXT.replace("fox", "cat"))
    assert main(["train", "--resume", "runs/a"]) == 2
    assert "data" in capsys.readouterr().err.splitlines()[-1]
