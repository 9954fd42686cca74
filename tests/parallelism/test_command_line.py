"""`fromzero train` under torchrun: one log, one run; killed, it goes on by itself."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from gpt_model.model import GPT
from gpt_model.model_directory import find_model_directory, read_weights
from training.checkpoint_list import list_checkpoints, verify_checkpoint

CLI = Path(__file__).parent / "cli.py"
FROMZERO = ("-m", "fromzero")
TINY = ["--n-layers", "1", "--dim", "16", "--n-heads", "2", "--max-seq-len", "16"]
TINY += ["--dropout", "0.1", "--vocab-size", "280", "--batch-size", "2", "--data", "texts"]
SHORT = ["--steps", "10", "--eval-every", "4", "--save-every", "3", "--sample-every", "5"]
OPTIONS = [*TINY, *SHORT, "--grad-accumulation", "2", "--no-plot", "--device", "cpu"]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "texts").mkdir()
    for number in range(12):
        text = "".join(f"line {number} says {i * number % 97}\n" for i in range(60))
        path = folder / "texts" / f"{number}.txt"
        path.write_text(text, encoding="utf-8", newline="\n")
    return folder


@pytest.fixture(scope="session")
def train(launch, workplace):
    """Start `fromzero train` in two processes."""

    def run(*options, program=FROMZERO, expect=0, **how):
        done = launch(*program, "train", *OPTIONS, *options, folder=workplace, **how)
        assert (done.returncode == 0) == (expect == 0), done.stdout + done.stderr[-4000:]
        return done

    return run


@pytest.fixture(scope="session", params=["ddp", "fsdp"])
def straight(request, train, workplace):
    """A run that nothing happens to: its kind, its directory, what was printed."""
    kind = request.param
    done = train("--parallel", kind, "--out", f"straight-{kind}")
    return kind, workplace / f"straight-{kind}", done


def final(run):
    """All numbers of the last checkpoint: weights, moments, generators."""
    last = list_checkpoints(run)[-1]
    verify_checkpoint(last.directory)
    names = ("model", "optimizer", "random")
    return last.step, {
        f"{name}/{key}": tensor
        for name in names
        for key, tensor in read_weights(last.directory / f"{name}.safetensors").items()
    }


def logged_losses(run):
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def test_the_command_trains_and_only_one_process_speaks(straight):
    kind, run, done = straight
    assert done.stdout.count("step 10/10") == 1
    assert done.stdout.count("tokens to learn from") == 1
    assert done.stdout.count("best checkpoint") == 1
    assert done.stdout.count("--- sample 1") == 1
    ours = [line for line in done.stderr.splitlines() if line.startswith("fromzero")]
    if kind == "ddp":
        assert done.stdout.count("--- sample at step 5 ---") == 1
        assert ours == []
    else:
        # a split model cannot write in one process alone: said once, not waited for
        assert (done.stdout + done.stderr).count("SampleHook needs the whole model") == 1
    assert [c.step for c in list_checkpoints(run)][-1] == 10
    assert GPT.load(find_model_directory(run)).config.n_layers == 1


def test_a_killed_process_is_replaced_and_nothing_is_lost(straight, train, workplace):
    """The same command, no directory named: torchrun starts all again, the run goes on."""
    kind, run, _ = straight
    rank = {"ddp": 1, "fsdp": 0}[kind]
    before = set(workplace.glob("runs/*"))
    done = train("--parallel", kind, program=(CLI,), restarts=2, FAULT=f"kill:{rank}:7")
    (found,) = set(workplace.glob("runs/*")) - before
    assert (done.stdout + done.stderr).count("restarted by torchrun: going on from") == 1
    # the last checkpoint was that of step 6: only step 7 is taken again
    counts = [done.stdout.count(f"step {step}/10") for step in (6, 7, 8, 10)]
    assert counts == [1, 2, 1, 1]
    step, numbers = final(found)
    expected_step, expected = final(run)
    assert step == expected_step == 10
    assert numbers.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(numbers[name], expected[name])] == []
    assert logged_losses(found) == logged_losses(run)


def test_checkpoints_of_another_run_are_refused_however_often_torchrun_tries(straight, train):
    kind, run, _ = straight
    if kind == "fsdp":
        pytest.skip("once is enough")
    before = sorted(path.name for path in run.iterdir())
    done = train("--parallel", kind, "--out", run.name, restarts=1, expect=2)
    assert "already holds checkpoints" in done.stderr
    assert "restarted by torchrun" not in done.stdout + done.stderr
    assert sorted(path.name for path in run.iterdir()) == before


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_ctrl_c_stops_all_and_saves(launch_plainly, workplace):
    run = workplace / "interrupted"
    command = [*FROMZERO, "train", *OPTIONS, "--parallel", "ddp", "--out", run.name]
    command += ["--steps", "100000", "--save-every", "100000", "--eval-every", "100000"]
    process = launch_plainly(*command, folder=workplace, restarts=2)
    deadline = time.monotonic() + 60
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert out.count("to go on: fromzero train --resume interrupted") == 1, out + err
    (saved,) = list_checkpoints(run)
    assert saved.step > 0
    verify_checkpoint(saved.directory)
