"""What the user says wins over what a recipe or a depth has chosen, and the rest follows."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation import throughput
from fromzero.main import main
from fromzero.starting_points import keep_shares
from fromzero.train import parse, run_name
from fromzero.training_options import TrainingOptions
from training.depth_dial import from_depth
from training.recipes import RECIPES


def read(*words):
    return parse([str(word) for word in words], program="")


@pytest.mark.parametrize(
    "words", [("--preset", "gpt-micro"), ("--preset=gpt-micro",), ("--recipe", "sprint")]
)
def test_two_answers_to_one_question_are_refused(words):
    """Also where the second answer happens to be the default."""
    with pytest.raises(ValueError, match="--depth 2 and --(preset|recipe) .* both decide"):
        read("--depth", "2", *words)


@given(name=st.sampled_from(sorted(RECIPES)), steps=st.integers(1, 5000))
def test_the_schedule_keeps_its_shares_of_any_number_of_steps(name, steps):
    chosen = RECIPES[name]
    nothing = {"warmup_steps": None, "decay_steps": None}
    options = TrainingOptions(**{**chosen.training, **nothing})
    training = keep_shares(options, steps, chosen).to_config()
    before = chosen.train_config()
    assert training.steps == steps
    for field in ("warmup_steps", "decay_steps"):
        was, now = getattr(before, field), getattr(training, field)
        assert (was is None) == (now is None)
        if was is not None:
            assert abs(now * before.steps - was * steps) <= before.steps / 2  # to a whole step


def test_what_is_given_of_the_schedule_stays_as_it_is():
    training = read("--recipe", "sprint", "--steps", 440).training
    assert (training.warmup_steps, training.decay_steps) == (20, 330)
    training = read("--recipe", "sprint", "--steps", 440, "--warmup-steps", 33).training
    assert (training.warmup_steps, training.decay_steps) == (33, 330)
    with pytest.raises(ValueError, match="warmup_steps"):
        read("--recipe", "sprint", "--steps", 20, "--warmup-steps", 33).training.to_config()


@pytest.mark.parametrize(
    ("words", "per_step"),
    [
        (("--batch-size", 2), 2 * 256),
        (("--block-size", 64), 4 * 64),
        (("--max-seq-len", 64, "--grad-accumulation", 3), 4 * 64 * 3),
    ],
)
def test_a_depth_sees_the_tokens_it_promises_in_any_cut(words, per_step):
    training = read("--depth", 1, *words).training
    promised = from_depth(1).n_tokens
    assert abs(training.steps * per_step - promised) <= per_step / 2
    assert training.decay_steps == pytest.approx(training.steps / 2, abs=1)
    # a given number of steps is not second-guessed
    assert read("--depth", 1, *words, "--steps", 7).training.steps == 7


@pytest.mark.parametrize("base", [("--depth", 1), ("--recipe", "steady")])
def test_minutes_choose_the_steps_and_the_schedule_follows(base, tmp_path, monkeypatch, capsys):
    options = read(*base, "--minutes", 2)
    assert options.training.steps is None
    monkeypatch.chdir(tmp_path)
    text = "".join(f"line {i} says {i * i % 97}\n" for i in range(900))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    # the speed need not be known well, as three seconds would tell it
    real = throughput.measure_training_speed
    monkeypatch.setattr(
        throughput,
        "measure_training_speed",
        lambda *about, seconds: real(*about, seconds=seconds / 20),
    )
    # a run of a hundredth of a minute, with the schedule of the whole
    small = ["--n-layers", 1, "--dim", 16, "--n-heads", 1, "--max-seq-len", 32, "--no-plot"]
    words = ["--data", "a.txt", "--vocab-size", 280, *base, "--minutes", 0.01, *small]
    assert main(["train", *map(str, words), "--out", "run", "--eval-batches", "1"]) == 0, (
        capsys.readouterr().err
    )
    written = json.loads((tmp_path / "run/options.json").read_text(encoding="utf-8"))["training"]
    assert written["steps"] >= 1
    assert abs(written["decay_steps"] - written["steps"] / 2) <= 1


def test_a_file_of_fields_wins_over_the_choice_and_loses_to_an_option(tmp_path):
    file = tmp_path / "fields.json"
    file.write_text(json.dumps({"dim": 96, "n_heads": 3, "dropout": 0.25}), encoding="utf-8")
    for base in (("--depth", 2), ("--recipe", "speedrun")):
        options = read(*base, "--config", file)
        config = options.model.to_config(options.preset, options.config)
        assert (config.dim, config.n_heads, config.dropout) == (96, 3, 0.25)
        assert config.zero_init, "what the file does not name stays chosen"
        options = read(*base, "--config", file, "--dim", 48)
        assert options.model.to_config(options.preset, options.config).dim == 48


def test_a_resumed_run_keeps_what_decided_its_size(tmp_path):
    for words in (("--depth", 3), ("--recipe", "sprint"), ("--preset", "gpt-mini")):
        with pytest.raises(ValueError, match=f"--resume goes on .*{words[0]} {words[1]} cannot"):
            read("--resume", tmp_path, *words)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("--depth", 3), "depth-3"),
        (("--recipe", "sprint"), "sprint"),
        (("--preset", "gpt-mini"), "gpt-mini"),
        ((), "gpt-micro"),
    ],
)
def test_a_run_is_called_after_what_decided_its_size(words, name):
    assert run_name(read(*words)) == name
