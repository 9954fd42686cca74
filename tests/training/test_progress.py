import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from training.progress import ProgressHook, Smoothed, clock, short, summary


def plain(width=100):
    return Console(file=io.StringIO(), width=width, force_terminal=False)


def text_of(console):
    return console.file.getvalue()


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30), st.floats(0.0, 0.99))
def test_smoothing_is_the_weighted_mean(values, beta):
    smoothed = Smoothed(beta)
    for value in values:
        smoothed.add(value)
        smoothed.add(math.nan)
        smoothed.add(-math.inf)
    weights = [beta ** (len(values) - 1 - i) for i in range(len(values))]
    expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert smoothed.value == pytest.approx(expected, abs=1e-9)


def test_without_values_there_is_no_mean():
    assert math.isnan(Smoothed().value)


def test_away_from_a_terminal_a_few_plain_lines(make_trainer):
    console = plain()
    make_trainer(steps=60, eval_every=30, hooks=[ProgressHook(console=console)]).fit()
    lines = text_of(console).splitlines()
    assert "\x1b" not in text_of(console)
    assert len([line for line in lines if line.startswith("step ") and "tokens/s" in line]) == 21
    assert lines[1].startswith("step 1/60 loss 2.")
    assert lines[1].count("avg") == lines[1].count("ETA") == 1
    assert [line.split(":")[0] for line in lines if "validation loss" in line] == [
        *("step 0", "step 30", "step 60"),
    ]
    assert lines[-1].startswith("done: 60 of 60 steps, 1.92k tokens; 0:00:0")


def test_on_a_terminal_a_bar_that_goes_away(make_trainer):
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    hook = ProgressHook(console=console)
    make_trainer(hooks=[hook]).fit()
    assert "step 1/12" in text_of(console)
    assert "ETA" in text_of(console)
    assert "done: 12 of 12 steps" in text_of(console).splitlines()[-1]
    assert hook.bar is None


def test_the_bar_is_taken_down_when_training_fails(make_trainer):
    from training.hook_base import Hook

    class Crash(Hook):
        def on_step(self, trainer, report):
            raise RuntimeError("boom")

    console = Console(file=io.StringIO(), force_terminal=True)
    hook = ProgressHook(console=console)
    with pytest.raises(RuntimeError):
        make_trainer(hooks=[hook, Crash()]).fit()
    assert hook.bar is None
    assert "done" not in text_of(console)


def test_evaluations_warnings_and_messages_are_said_as_they_are(make_trainer):
    console = plain(width=30)  # narrow: nothing may be wrapped or read as markup
    hook = ProgressHook(console=console)
    trainer = make_trainer(hooks=[hook], bytes_per_token=2.0, steps=4)
    trainer.fit()
    trainer.warn("look at [bold]windows[/bold] 1, 2, 3, 4, 5, 6, 7, 8, 9, 10")
    trainer.message("def f(x): return x[0] [red]")
    lines = text_of(console).splitlines()
    assert "warning: look at [bold]windows[/bold] 1, 2, 3, 4, 5, 6, 7, 8, 9, 10" in lines
    assert "def f(x): return x[0] [red]" in lines
    assert any("bits/byte (best)" in line for line in lines if line.startswith("step 4:"))
    assert not any("(best)" in line for line in lines if line.startswith("step 0:"))


def test_a_resumed_run_says_so_and_measures_its_own_speed(make_trainer, tmp_path):
    make_trainer(run_dir=tmp_path, steps=8).fit()
    console = plain()
    trainer = make_trainer(run_dir=tmp_path, steps=12, hooks=[ProgressHook(console=console)])
    trainer.fit(resume=True, allow_changes=True)
    assert "resumed at step 8 of 12" in text_of(console)
    assert f"saved in {tmp_path}" in text_of(console)


def test_the_summary_says_why_it_ended(make_trainer, tmp_path):
    result = make_trainer(steps=3, patience=1).fit()
    changed = {"interrupted": True}
    from dataclasses import replace

    assert summary(replace(result, **changed), 3).startswith("interrupted, resume to continue: ")
    early = replace(result, stopped_early=True, skipped_steps=2, best_loss=1.0, best_step=2)
    assert summary(early, 9).startswith("stopped early, no progress: 3 of 9 steps")
    assert "best 1.0000 at step 2; 2 steps skipped" in summary(early, 9)


def test_short_numbers_and_clocks():
    numbers = {0: "0", 999: "999", 1000: "1k", 18234: "18.2k", 1.3e6: "1.3M", 2e13: "2e+04G"}
    numbers[2e13] = "20T"
    assert {number: short(number) for number in numbers} == numbers
    assert [clock(s) for s in (0, 59.6, 3725, -3)] == ["0:00:00", "0:01:00", "1:02:05", "0:00:00"]
