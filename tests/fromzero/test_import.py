"""`fromzero import`: from a folder, for every command that follows, or a clear refusal."""

import json
import shutil
import sys

import pytest
import torch
import transformers

from foundation.hub import is_hub_name
from fromzero.main import main
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer

TEXT = "the quick brown fox jumps over the lazy dog; 明月几时有？把酒问青天。\n" * 30


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A folder of theirs: a small Llama saved by transformers, with a tokenizer.json."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    folder = tmp_path_factory.mktemp("theirs") / "tiny-llama"
    config = transformers.LlamaConfig(
        **{"vocab_size": 301, "hidden_size": 30, "intermediate_size": 41, "num_hidden_layers": 2},
        **{"num_attention_heads": 5, "num_key_value_heads": 1, "max_position_embeddings": 64},
        **{"initializer_range": 0.3, "eos_token_id": 0, "bos_token_id": 0},
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def run(capsys, *words):
    code = main([*map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_folder_becomes_a_model_for_every_command(checkpoint, tmp_path, capsys, text_file):
    code, out, err = run(capsys, "import", checkpoint, "--out", tmp_path / "ours")
    assert (code, err) == (0, "")
    assert f"saved      {tmp_path / 'ours'}" in out
    assert "tokenizer  bpe, 300 tokens" in out

    prompt = ("--model", tmp_path / "ours", "--prompt", "the quick", "--max-new-tokens", 12)
    code, text, _ = run(capsys, "generate", *prompt, "--temperature", 0)
    assert code == 0
    tokenizer = Tokenizer.load(checkpoint)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    ids = torch.tensor([tokenizer.encode("the quick")])
    written = theirs.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert text == tokenizer.decode(written[0].tolist(), skip_special=True) + "\n"

    code, table, _ = run(capsys, "evaluate", "--model", tmp_path / "ours", "--data", text_file)
    assert code == 0
    assert "bits per byte" in table
    pairs = tmp_path / "pairs.jsonl"
    lines = [json.dumps({"prompt": f"the {n}", "answer": " fox"}) for n in range(12)]
    pairs.write_text("\n".join(lines), encoding="utf-8")
    words = ("--data", pairs, "--steps", 2, "--device", "cpu", "--out", tmp_path / "adapter")
    code, _, _ = run(capsys, "finetune", "--model", tmp_path / "ours", *words)
    assert code == 0
    # out again, with the adapter merged, and the adapter alone
    merged = ("--adapter", tmp_path / "adapter", "--to", tmp_path / "merged")
    assert run(capsys, "export", tmp_path / "ours", *merged)[0] == 0
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    alone = ("--base", tmp_path / "ours", "--to", tmp_path / "alone")
    code, out, _ = run(capsys, "export", tmp_path / "adapter", *alone)
    assert code == 0
    assert "adapter    8 layers" in out  # four in each of the two
    code, out, _ = run(
        capsys, "import", tmp_path / "alone", "--base", tmp_path / "ours", "--out", tmp_path / "b"
    )
    assert code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("/nowhere/at/all",), "/nowhere/at/all does not exist; give a folder, or a name on the"),
        (("../up",), "../up does not exist"),
        ((), "SOURCE must be given"),
        (("{checkpoint}", "--revision", "main"), "--revision is for the hub"),
        (("{checkpoint}", "--base", "x", "--without-tokenizer"), "is of no use with --base"),
        (("{checkpoint}", "--base", "{checkpoint}"), "is a Hugging Face checkpoint; make a"),
    ],
)
def test_mistakes_are_one_line(checkpoint, tmp_path, capsys, words, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word.format(checkpoint=checkpoint) for word in words]
    code, out, err = run(capsys, "import", *words)
    assert code == 2
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_tokenizer_is_said_and_can_be_imported(checkpoint, tmp_path, capsys):
    shutil.copytree(checkpoint, tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").unlink()
    words = ("import", tmp_path / "bare", "--out", tmp_path / "ours")
    code, _, err = run(capsys, *words)
    assert code == 2
    assert "bare has no tokenizer.json" in err
    assert "--without-tokenizer" in err
    assert run(capsys, *words, "--without-tokenizer")[0] == 0
    assert GPT.load(tmp_path / "ours").config.n_heads == 5


def test_a_pickled_folder_is_refused_with_advice(checkpoint, tmp_path, capsys):
    shutil.copytree(checkpoint, tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").rename(tmp_path / "old" / "pytorch_model.bin")
    code, _, err = run(capsys, "import", tmp_path / "old", "--out", tmp_path / "ours")
    assert code == 2
    assert "pytorch_model.bin is a pickle, which can run code" in err


def test_names_of_the_hub():
    assert all(map(is_hub_name, ("gpt2", "Qwen/Qwen3-0.6B", "meta-llama/Llama-3.2-1B")))
    paths = ("./gpt2", "a/b/c", "C:\\models", "../x", "~/x", "", "a/..", "x//y", "models--x")
    assert not any(map(is_hub_name, paths))


def test_without_the_client_the_remedy_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "import", "someone/model")
    assert code == 2
    assert "pip install 'llm-from-zero[hub]'" in err
