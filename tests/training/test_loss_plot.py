import pytest

from training.hook_base import Hook
from training.loss_plot import Curves, PlotHook, draw_curves, example_curves, smooth
from training.metrics import MetricsHook

PNG = b"\x89PNG"


def test_the_picture_is_drawn_whole(tmp_path):
    path = tmp_path / "loss.png"
    draw_curves(example_curves(), path, grad_clip=1.0)
    assert path.read_bytes().startswith(PNG)
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]


@pytest.mark.parametrize(
    "curves",
    [
        Curves(train=[(1, 2.0)]),
        Curves(val=[(1, 2.0)]),
        Curves(train=[(1, 2.0)], grad_norm=[(1, 0.0)]),
    ],
)
def test_few_points_are_no_problem(tmp_path, curves):
    draw_curves(curves, tmp_path / "loss.png", grad_clip=None)
    assert (tmp_path / "loss.png").stat().st_size > 5000


def test_smoothing_begins_at_the_first_value():
    assert smooth([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    assert smooth([4.0, 2.0])[1] < 4.0


def test_the_hook_draws_the_runs_own_numbers(make_trainer, recorder, tmp_path):
    hook = PlotHook()
    make_trainer(hooks=[recorder, hook], run_dir=tmp_path).fit()
    assert (tmp_path / "loss.png").read_bytes().startswith(PNG)
    assert [value for _, value in hook.curves.train] == recorder.losses
    assert hook.curves.val == [(e.step, e.loss) for e in recorder.evaluations]
    assert [r for _, r in hook.curves.learning_rate] == [s.learning_rate for s in recorder.steps]
    assert [n for _, n in hook.curves.grad_norm] == [s.grad_norm for s in recorder.steps]


def test_a_resumed_run_draws_from_its_beginning(make_trainer, tmp_path):
    class Crash(Hook):
        def on_step(self, trainer, report):
            if report.step == 7:
                raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        make_trainer(hooks=[MetricsHook(), Crash()], run_dir=tmp_path).fit()
    hook = PlotHook()
    make_trainer(hooks=[MetricsHook(), hook], run_dir=tmp_path).fit(resume=True)
    assert [step for step, _ in hook.curves.train] == list(range(1, 13))
    assert [step for step, _ in hook.curves.val] == [0, 4, 8, 12]


def test_drawing_is_rare_but_sure_at_the_end(make_trainer, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("training.loss_plot.draw_curves", lambda *a, **k: drawn.append(len(drawn)))
    make_trainer(hooks=[PlotHook(tmp_path / "a.png")], eval_every=1).fit()
    assert len(drawn) == 1  # the end
    drawn.clear()
    make_trainer(hooks=[PlotHook(tmp_path / "a.png", min_seconds=0.0)], eval_every=4).fit()
    assert len(drawn) == 5


def test_a_failing_picture_does_not_hide_the_error_that_ended_the_run(
    make_trainer, tmp_path, monkeypatch
):
    class Crash(Hook):
        def on_step(self, trainer, report):
            raise RuntimeError("the real reason")

    def failing(*arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr("training.loss_plot.draw_curves", failing)
    hooks = [PlotHook(tmp_path / "a.png", min_seconds=1e9), Crash()]
    with pytest.raises(RuntimeError, match="the real reason"):
        make_trainer(hooks=hooks, val_batches=None).fit()


def test_a_place_is_needed(make_trainer):
    with pytest.raises(ValueError, match="PlotHook needs a path, or a Trainer with a run_dir"):
        make_trainer(hooks=[PlotHook()]).fit()
