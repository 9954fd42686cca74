"""`fromzero train`: one command from text to a model that writes."""

import dataclasses
import json
import re

import pytest

from foundation.files import write_json
from fromzero.main import main
from fromzero.train import Options, parse
from fromzero.training_options import (
    ModelOptions,
    TrainingOptions,
    load_options,
    options_as_json,
)
from gpt_model.config import GPTConfig, preset
from gpt_model.model import GPT
from gpt_model.model_directory import find_model_directory
from tokenization.tokenizer import Tokenizer
from training.depth_dial import from_depth
from training.recipes import RECIPES
from training.train_config import ARITHMETIC_FIELDS, TrainConfig

TINY = ["--n-layers", "1", "--dim", "16", "--n-heads", "2", "--max-seq-len", "16"]
SHORT = ["--steps", "6", "--batch-size", "2", "--eval-every", "3", "--sample-every", "6"]


@pytest.fixture
def workplace(tmp_path, monkeypatch, text_file):
    """A folder of its own, with a corpus of two hundred lines in four files."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(12):
        text = "".join(f"line {number} says {i * number % 97} 你好\n" for i in range(60))
        (folder / f"{number}.txt").write_text(text, encoding="utf-8", newline="\n")
    return tmp_path


@pytest.fixture
def train(workplace, capsys):
    """Train a tiny model; nothing is drawn unless asked for, which takes most of the time."""

    def run(*options, expect=0):
        code = main(
            [
                "train",
                "--data",
                "texts",
                "--vocab-size",
                "280",
                *TINY,
                *SHORT,
                "--no-plot",
                *options,
            ]
        )
        captured = capsys.readouterr()
        assert code == expect, captured.err
        return captured.out, captured.err

    return run


def test_text_becomes_a_model_that_writes(train, workplace):
    out, err = train("--out", "runs/first", "--plot")
    run = workplace / "runs" / "first"
    assert err == ""
    for word in (
        "280 tokens",
        "parameters",
        "memory",
        "6 steps of 32 tokens",
        "shifted by one: yes",
    ):
        assert word in out
    assert re.search(r"loss [\d.]+, perplexity [\d.]+, [\d.]+ bits per byte", out)
    assert out.count("--- sample ") == 4  # one while training, three at the end
    assert "fromzero chat --model" in out
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert len((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) >= 6
    directory = find_model_directory(run)
    assert Tokenizer.load(directory).vocab_size == GPT.load(directory).config.vocab_size == 280


def test_two_runs_are_the_same_to_the_bit_and_another_seed_is_not(train, same_models):
    train("--out", "runs/a")
    train("--out", "runs/b")
    train("--out", "runs/c", "--seed", "1")
    assert same_models("runs/a", "runs/b")
    assert not same_models("runs/a", "runs/c")


def test_every_option_is_kept_and_a_resumed_run_is_the_same_run(
    train, workplace, monkeypatch, same_models
):
    train("--out", "runs/whole", "--steps", "9", "--dropout", "0.1")
    from training.trainer import Trainer

    monkeypatch.setattr(Trainer, "_stopping", property(lambda self: self.state.step >= 4))
    out, _ = train("--out", "runs/cut", "--steps", "9", "--dropout", "0.1", expect=130)
    assert "fromzero train --resume" in out
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    assert main(["train", "--resume", "runs/cut"]) == 0
    assert same_models("runs/whole", "runs/cut")


def test_resuming_with_another_learning_rate_is_refused_unless_allowed(train, workplace, capsys):
    train("--out", "runs/a")
    assert main(["train", "--resume", "runs/a", "--learning-rate", "0.5"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "learning_rate: 0.003 in the checkpoint, 0.5 now" in error
    assert main(["train", "--resume", "runs/a", "--steps", "8", "--allow-changes"]) == 0
    assert (workplace / "runs" / "a" / "step-000008").is_dir()


def test_without_a_name_every_run_gets_a_directory_of_its_own(train, workplace):
    train()
    train()
    assert sorted(path.name for path in (workplace / "runs").iterdir()) == [
        "gpt-micro",
        "gpt-micro-2",
    ]


def test_an_earlier_run_is_replaced_only_when_told(train):
    train("--out", "runs/a")
    _, err = train("--out", "runs/a", expect=2)
    assert "runs" in err
    assert "overwrite" in err
    train("--out", "runs/a", "--overwrite", "--seed", "5")


def test_tokens_are_prepared_once(train, workplace):
    train()
    manifests = list((workplace / "data").glob("*/manifest.json"))
    before = manifests[0].stat().st_mtime_ns
    train("--seed", "3")
    assert [path.stat().st_mtime_ns for path in manifests] == [before]
    train("--tokenizer", "characters")
    assert len(list((workplace / "data").iterdir())) == 2


def test_a_given_tokenizer_is_used(train, tiny_model):
    train("--tokenizer", str(tiny_model), "--vocab-size", "320", "--out", "runs/a")
    directory = find_model_directory("runs/a")
    assert Tokenizer.load(directory).fingerprint == Tokenizer.load(tiny_model).fingerprint
    assert GPT.load(directory).config.vocab_size == 320  # room for more
    # a run is a model too, as everywhere: a draft needs the tokenizer of the model it guesses for
    train("--tokenizer", "runs/a", "--vocab-size", "320", "--out", "runs/b")
    again = Tokenizer.load(find_model_directory("runs/b"))
    assert again.fingerprint == Tokenizer.load(tiny_model).fingerprint


def test_presets_files_and_options_make_one_configuration(workplace):
    (workplace / "c.json").write_text('{"dim": 32, "n_heads": 2}', encoding="utf-8")
    given = ModelOptions(n_heads=4, qk_norm=True, rope_scaling=None)
    config = given.to_config("modern-micro", workplace / "c.json")
    assert (config.dim, config.n_heads, config.norm) == (32, 4, "rmsnorm")
    scaled = ModelOptions(position="rope", rope_scaling='{"kind": "linear", "factor": 2}')
    assert scaled.to_config("gpt-micro", None).rope_scaling.factor == 2


def test_the_time_decides_the_steps_but_not_beyond_the_epochs(train, monkeypatch):
    from evaluation import throughput

    monkeypatch.setattr(throughput, "measure_training_speed", lambda *_, **__: 32.0 * 100)
    out, _ = train("--steps", "None", "--minutes", "0.002", "--max-epochs", "100")
    assert "12 steps of 32 tokens" in out  # 0.12 s at 100 steps/s
    out, _ = train("--steps", "None", "--minutes", "9", "--max-epochs", "0.05")
    assert re.search(r", 0\.\d times the data|, 0\.1 times the data", out)
    saved = json.loads(open("runs/gpt-micro/options.json", encoding="utf-8").read())
    assert saved["training"]["steps"] == 12


def test_one_batch_is_learned_by_heart(train):
    out, _ = train(
        "--overfit-one-batch", "--steps", "150", "--learning-rate", "0.02", "--out", "runs/a"
    )
    losses = [float(x) for x in re.findall(r"step \d+/150 loss ([\d.]+)", out)]
    assert losses[-1] < 0.5 < losses[0]
    assert "held-out" not in out


def test_documents_can_be_kept_apart_and_plots_left_out(train, workplace):
    train("--document-mask", "--out", "runs/a", "--prompt", "line 1", "你")
    assert not (workplace / "runs" / "a" / "loss.png").exists()


@pytest.mark.parametrize(
    ("options", "library", "missing"),
    [
        (ModelOptions, GPTConfig, set()),
        (TrainingOptions, TrainConfig, set()),
    ],
)
def test_every_field_of_the_library_has_its_option(options, library, missing):
    names = {field.name for field in dataclasses.fields(options)}
    assert names == {field.name for field in dataclasses.fields(library)} - missing


def test_options_survive_json(tmp_path):
    options = parse(
        ["--dim", "8", "--betas", "0.8", "0.9", "--prompt", "a", "--out", "x"], program=""
    )
    (tmp_path / "options.json").write_text(json.dumps(options_as_json(options)), encoding="utf-8")
    assert load_options(Options, tmp_path) == options
    (tmp_path / "options.json").write_text('{"dat": 1}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"unknown key 'dat' .* did you mean 'data'"):
        load_options(Options, tmp_path)


def test_a_recipe_gives_defaults_that_options_change():
    words = ["--recipe", "sprint", "--batch-size", "3", "--token-shift", "False"]
    options = parse(words, program="")
    assert (options.tokenizer, options.preset) == ("characters", "modern-micro")
    assert (options.model.bigram_rows, options.model.token_shift) == (1600, False)
    training = options.training.to_config()
    assert (training.optimizer, training.batch_size) == ("muon", 3)
    assert training.steps == RECIPES["sprint"].train_config().steps
    assert options.recipe == "sprint"
    with pytest.raises(ValueError, match="recipe must be one of .*; did you mean 'speedrun'"):
        parse(["--recipe", "speedrn"], program="")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_on_the_command_line_is_the_librarys(name):
    """The command's own defaults must not shine through where a recipe decides the result."""
    options, chosen = parse(["--recipe", name], program=""), RECIPES[name]
    assert options.model.to_config(options.preset, None) == chosen.model_config(
        preset(chosen.preset).vocab_size
    )
    ours, theirs = options.training.to_config().to_dict(), chosen.train_config().to_dict()
    assert {key: ours[key] for key in ARITHMETIC_FIELDS} == {
        key: theirs[key] for key in ARITHMETIC_FIELDS
    }


def test_a_depth_decides_everything_that_options_do_not():
    options, chosen = parse(["--depth", "3"], program=""), from_depth(3)
    assert (options.depth, options.tokenizer) == (3, "bpe")
    assert options.model.to_config(options.preset, None) == chosen.model_config(
        preset(chosen.preset).vocab_size
    )
    ours, theirs = options.training.to_config().to_dict(), chosen.train_config().to_dict()
    assert {key: ours[key] for key in ARITHMETIC_FIELDS} == {
        key: theirs[key] for key in ARITHMETIC_FIELDS
    }
    changed = parse(["--depth", "3", "--dim", "96", "--learning-rate", "0.5"], program="")
    assert (changed.model.dim, changed.training.learning_rate) == (96, 0.5)
    assert changed.training.steps == options.training.steps
    for words in (["--recipe", "sprint"], ["--preset", "gpt-mini"]):
        with pytest.raises(ValueError, match=f"--depth 3 and {' '.join(words)} both decide"):
            parse(["--depth", "3", *words], program="")
    with pytest.raises(ValueError, match="depth must be .*got 0"):
        parse(["--depth", "0"], program="")


def test_a_depth_trains_and_says_what_it_chose(train, workplace):
    few = ["--warmup-steps", "1", "--decay-steps", "3", "--batch-size", "2"]
    printed, errors = train("--depth", "1", *few, "--max-epochs", "0.01", "--out", "runs/d")
    assert "depth 1: " in printed
    assert "learning rate" in printed
    assert "--max-epochs 0.01" in errors  # more passes over the data than are of use
    saved = GPT.load(find_model_directory("runs/d")).config
    assert (saved.norm, saved.zero_init, saved.token_shift) == ("rmsnorm", True, True)


def test_a_recipe_trains_and_resumes(train, workplace):
    short = ["--recipe", "sprint", "--warmup-steps", "1", "--decay-steps", "3", "--out", "runs/r"]
    train(*short)
    saved = GPT.load(find_model_directory("runs/r"))
    assert saved.previous_token is not None
    assert saved.previous_token.pairs.weight.abs().max() > 0
    assert main(["train", "--resume", "runs/r"]) == 0


def test_curves_go_where_they_are_sent(train, workplace, capsys):
    pytest.importorskip("tensorboard")
    train("--out", "runs/board", "--track", "tensorboard")
    assert list((workplace / "runs/board/tensorboard").glob("events.*"))
    train("--out", "runs/bare", "--track", "none")
    assert not (workplace / "runs/bare/tensorboard").exists()
    assert Options().track == "auto"


@pytest.mark.parametrize(("old", "track"), [(True, "tensorboard"), (False, "none")])
def test_options_of_an_earlier_version_are_read(tmp_path, old, track):
    values = options_as_json(Options())
    del values["track"]
    write_json(tmp_path / "options.json", {**values, "tensorboard": old})
    assert load_options(Options, tmp_path) == Options(track=track)


def test_an_unknown_tracker_is_refused_before_anything_is_made(train, workplace, capsys):
    assert main(["train", "--data", "texts", "--out", "runs/x", "--track", "tensorbord"]) == 2
    assert "did you mean 'tensorboard'" in capsys.readouterr().err
    assert not (workplace / "runs").exists()
