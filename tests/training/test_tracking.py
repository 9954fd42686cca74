"""One interface, four tools: TensorBoard for real, the others with the signatures of theirs."""

import importlib.util
import inspect
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from training.hooks import TrackingHook
from training.trackers import TRACKERS, make_trackers
from training.tracking import ListTracker

STEP = {"train/loss", "train/learning_rate", "train/grad_norm", "train/tokens_per_second"}


def scalars(directory, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(directory / "tensorboard")).Reload().Scalars(name)


def test_tensorboard_holds_the_same_numbers(make_trainer, recorder, tmp_path):
    pytest.importorskip("tensorboard")
    hook = TrackingHook(make_trackers("tensorboard"), directory=tmp_path)
    make_trainer(hooks=[recorder, hook], bytes_per_token=2.0).fit()
    losses = scalars(tmp_path, "train/loss")
    assert [point.step for point in losses] == list(range(1, 13))
    assert [point.value for point in losses] == pytest.approx(recorder.losses)
    found = [point.value for point in scalars(tmp_path, "validation/loss")]
    assert found == pytest.approx([report.loss for report in recorder.evaluations])
    assert len(scalars(tmp_path, "validation/bits_per_byte")) == 4
    assert len(scalars(tmp_path, "train/grad_norm")) == 12


def test_a_resumed_tensorboard_has_no_way_back(make_trainer, recorder, tmp_path):
    pytest.importorskip("tensorboard")

    class Cut(ListTracker):
        def log(self, step, metrics):
            if step == 11:
                raise KeyboardInterrupt

    def train(*trackers, resume=False):
        hook = TrackingHook([*make_trackers("tensorboard"), *trackers])
        trainer = make_trainer(hooks=[recorder, hook], run_dir=tmp_path, save_every=4)
        trainer.fit(resume=resume)

    with pytest.raises(KeyboardInterrupt):
        train(Cut())  # saved at step 8, gone at step 11
    train(resume=True)
    losses = scalars(tmp_path, "train/loss")
    assert [point.step for point in losses] == list(range(1, 13))


def test_a_run_that_replaces_another_has_only_its_own_points(make_trainer, tmp_path):
    pytest.importorskip("tensorboard")
    for overwrite, steps in ((False, 12), (True, 5)):
        hook = TrackingHook(make_trackers("tensorboard"))
        trainer = make_trainer(hooks=[hook], run_dir=tmp_path, steps=steps)
        trainer.fit(overwrite=overwrite)
    losses = scalars(tmp_path, "train/loss")
    assert [point.step for point in losses] == [1, 2, 3, 4, 5]


# ── the others: fakes that take exactly what the real ones take ─────────────────────────────────


class Calls:
    """Records method calls whose arguments must fit the signature given for them."""

    def __init__(self, **signatures):
        self.record = []
        for name, signature in signatures.items():
            setattr(self, name, self.method(name, signature))

    def method(self, name, signature):
        def call(*args, **kwargs):
            bound = inspect.signature(signature).bind(*args, **kwargs)
            self.record.append((name, dict(bound.arguments)))

        return call

    def named(self, name):
        return [arguments for called, arguments in self.record if called == name]


def install(monkeypatch, name, **functions):
    module = ModuleType(name)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def wandb(monkeypatch):
    """wandb 0.31: `init(…) -> Run`, `Run.log(data, step, commit)`, `Run.finish(exit_code)`."""
    runs = []

    def init(
        *, entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None,
        config=None, group=None, job_type=None, mode=None, resume=None, settings=None,
    ):  # fmt: skip
        assert resume in (None, True, False, "allow", "never", "must", "auto")
        run = Calls(
            log=lambda data, step=None, commit=None: None, finish=lambda exit_code=None: None
        )
        run.given = dict(project=project, dir=dir, id=id, name=name, config=config, resume=resume)
        runs.append(run)
        return run

    install(monkeypatch, "wandb", init=init)
    return runs


@pytest.fixture
def swanlab(monkeypatch):
    """swanlab 0.10: keywords only; `Run.log(data, step)`, `Run.finish(state, error)`."""
    runs = []

    def init(
        *, reinit=None, log_dir=None, mode=None, workspace=None, project=None, public=None,
        name=None, description=None, tags=None, id=None, resume=None, config=None, settings=None,
    ):  # fmt: skip
        assert resume in (None, True, False, "must", "allow", "never")
        run = Calls(
            log=lambda data, step=None: None,
            finish=lambda state="success", error=None, async_log_timeout=None: None,
        )
        run.given = dict(project=project, dir=log_dir, id=id, name=name, config=config)
        runs.append(run)
        return run

    install(monkeypatch, "swanlab", init=init)
    return runs


@pytest.fixture
def mlflow(monkeypatch):
    """mlflow 3.17's fluent functions; a parameter may be logged once."""
    calls = Calls(
        set_experiment=lambda experiment_name=None, experiment_id=None: None,
        log_params=lambda params, synchronous=None, run_id=None: None,
        log_metrics=lambda metrics, step=None, synchronous=None, run_id=None: None,
        flush_async_logging=lambda: None,
        end_run=lambda status="FINISHED": None,
    )
    calls.started = []

    def start_run(run_id=None, experiment_id=None, run_name=None, nested=False, tags=None):
        calls.started.append((run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or f"run{len(calls.started)}"))

    functions = {name: value for name, value in vars(calls).items() if callable(value)}
    install(monkeypatch, "mlflow", start_run=start_run, **functions)
    return calls


CONFIG = {"seed": 3, "model": {"dim": 16}}


def run_twice(make_trainer, name, tmp_path):
    """Twelve steps, then a resumed run to sixteen."""
    for steps, resume in ((12, False), (16, True)):
        hook = TrackingHook(make_trackers(name), config=CONFIG)
        trainer = make_trainer(hooks=[hook], run_dir=tmp_path / "a-run", steps=steps, save_every=4)
        trainer.fit(resume=resume, allow_changes=resume)


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_runs_go_to_the_web(make_trainer, request, tmp_path, name):
    runs = request.getfixturevalue(name)
    run_twice(make_trainer, name, tmp_path)
    first, second = runs
    assert first.given["project"] == "llm-from-zero"
    assert first.given["name"] == "a-run"
    assert first.given["config"] == CONFIG
    assert str(tmp_path / "a-run") in first.given["dir"]
    assert first.given["id"] == second.given["id"]
    assert len(first.given["id"]) == 8
    steps = [call["step"] for call in first.named("log") if STEP <= set(call["data"])]
    assert steps == list(range(1, 13))
    assert [call["step"] for call in second.named("log") if STEP <= set(call["data"])] == [
        *range(13, 17)
    ]
    losses = [call["data"] for call in first.named("log") if "validation/loss" in call["data"]]
    assert len(losses) == 4
    ended = {"wandb": {"exit_code": 0}, "swanlab": {"state": "success"}}[name]
    assert first.record[-1] == ("finish", ended)


def test_mlflow_keeps_its_own_number_and_logs_parameters_once(make_trainer, mlflow, tmp_path):
    run_twice(make_trainer, "mlflow", tmp_path)
    assert mlflow.started == [(None, "a-run"), ("run1", None)]
    assert mlflow.named("set_experiment") == [{"experiment_name": "llm-from-zero"}]
    assert mlflow.named("log_params") == [{"params": {"seed": "3", "model.dim": "16"}}]
    logged = [call for call in mlflow.named("log_metrics") if STEP <= set(call["metrics"])]
    assert [call["step"] for call in logged] == list(range(1, 17))
    assert all(call["synchronous"] is False for call in logged)
    assert [name for name, _ in mlflow.record[-2:]] == ["flush_async_logging", "end_run"]
    assert mlflow.record[-1][1] == {"status": "FINISHED"}
    assert json.loads((tmp_path / "a-run" / "tracking.json").read_text(encoding="utf-8")) == {
        "mlflow": "run1"
    }


def test_a_fresh_run_gets_a_fresh_number(make_trainer, wandb, tmp_path):
    for overwrite in (False, True):
        hook = TrackingHook(make_trackers("wandb"))
        trainer = make_trainer(hooks=[hook], run_dir=tmp_path, steps=2)
        trainer.fit(overwrite=overwrite)
    assert wandb[0].given["id"] != wandb[1].given["id"]
    assert wandb[0].given["config"]["steps"] == 2  # without a config: that of the trainer


@pytest.mark.parametrize("name", ["wandb", "swanlab", "mlflow"])
def test_a_failed_run_is_marked(make_trainer, request, tmp_path, name):
    runs = request.getfixturevalue(name)

    def broken(model, batch):
        raise RuntimeError("stop")

    hook = TrackingHook(make_trackers(name), directory=tmp_path)
    with pytest.raises(RuntimeError, match="stop"):
        make_trainer(hooks=[hook], loss_fn=broken, val_batches=None).fit()
    calls = runs if name == "mlflow" else runs[0]
    ended = {
        "wandb": {"exit_code": 1},
        "swanlab": {"state": "crashed", "error": "training stopped with an error"},
        "mlflow": {"status": "FAILED"},
    }
    assert calls.record[-1][1] == ended[name]


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────────


class Fragile(ListTracker):
    def __init__(self, **errors):
        super().__init__()
        self.errors = errors

    def start(self, config, directory, done):
        super().start(config, directory, done)
        if "start" in self.errors:
            raise self.errors["start"]

    def log(self, step, metrics):
        super().log(step, metrics)
        if "log" in self.errors and step == 3:
            raise self.errors["log"]

    def finish(self, ok):
        super().finish(ok)
        if "finish" in self.errors:
            raise self.errors["finish"]


def test_a_tool_that_fails_on_the_way_is_left_behind(
    make_trainer, recorder, tmp_path, same_weights
):
    good, bad = ListTracker(), Fragile(log=ConnectionError("no route"))
    hook = TrackingHook([bad, good], directory=tmp_path)
    trainer = make_trainer(hooks=[recorder, hook])
    result = trainer.fit()
    assert result.step == 12
    assert [call[1] for call in good.calls if call[0] == "log" and "train/loss" in call[2]] == [
        *range(1, 13)
    ]
    assert good.calls[-1] == ("finish", True)
    assert max(call[1] for call in bad.calls if call[0] == "log") == 3
    assert recorder.warnings == [
        "tracking with list stopped at step 3: no route; training goes on, and metrics.jsonl has "
        "every number"
    ]
    alone = make_trainer()
    alone.fit()
    assert same_weights(trainer.model, alone.model)


def test_a_tool_that_cannot_start_stops_the_run_at_once(make_trainer, recorder, tmp_path):
    good, bad = ListTracker(), Fragile(start=RuntimeError("No API key\nconfigured"))
    hook = TrackingHook([good, bad], directory=tmp_path)
    with pytest.raises(ValueError, match=r"list could not start: No API key configured; set it up"):
        make_trainer(hooks=[recorder, hook]).fit()
    assert recorder.steps == []
    assert good.calls == [("start", 0), ("finish", False)]
    assert bad.calls == [("start", 0)]


def test_a_tool_that_cannot_finish_hides_nothing(make_trainer, recorder, tmp_path):
    tools = [ListTracker(), Fragile(finish=OSError("disk full"))]
    make_trainer(hooks=[recorder, TrackingHook(tools, directory=tmp_path)]).fit()
    assert recorder.warnings == ["list could not finish: disk full"]
    assert tools[0].calls[-1] == ("finish", True)


def test_a_skipped_step_has_no_loss_to_draw(make_trainer, tmp_path):
    def loss_fn(model, batch):
        loss = model(batch.inputs, batch.targets, reduction="sum").loss
        bad = loss_fn.calls == 2
        loss_fn.calls += 1
        return loss * (float("nan") if bad else 1.0), batch.targets.numel()

    loss_fn.calls = 0
    tool = ListTracker()
    trainer = make_trainer(
        hooks=[TrackingHook([tool], directory=tmp_path)], loss_fn=loss_fn, val_batches=None
    )
    trainer.fit()
    assert [call[1] for call in tool.calls[1:-1]] == [step for step in range(1, 13) if step != 3]


@pytest.mark.parametrize("name", TRACKERS)
def test_what_is_not_installed_is_said_with_the_remedy(monkeypatch, name):
    for module in (name, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"{name} is not installed; pip install {name}, or leave"):
        make_trackers(name)
    assert make_trackers("auto") == []


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tensorbord", "did you mean 'tensorboard'"),
        ("", "track must be one of tensorboard, wandb, swanlab, mlflow, auto, none; got ''"),
        ("auto,wandb", "track must be one of tensorboard, wandb, swanlab, mlflow; got 'auto'"),
        ("tensorboard, tensorboard", "track names 'tensorboard' twice"),
    ],
)
def test_wrong_names_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        make_trackers(spec)


def test_names_are_joined_by_commas(wandb):
    pytest.importorskip("tensorboard")
    found = [tracker.name for tracker in make_trackers("tensorboard, wandb")]
    assert found == ["tensorboard", "wandb"]
    assert [tracker.name for tracker in make_trackers("auto")] == ["tensorboard"]
    assert make_trackers("none") == []


@pytest.mark.parametrize("damage", ["[]", '{"wandb": 3}'])
def test_a_file_of_numbers_that_somebody_changed_is_as_if_absent(
    make_trainer, wandb, tmp_path, damage
):
    (tmp_path / "tracking.json").write_text(damage, encoding="utf-8")
    trainer = SimpleNamespace(run_dir=tmp_path, state=SimpleNamespace(step=5), config=None)
    TrackingHook(make_trackers("wandb"), config={}).on_start(trainer)
    assert len(wandb[0].given["id"]) == 8


# ── the real packages, where they are installed ──────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["wandb", "swanlab", "mlflow"])
def test_the_real_package_offline(monkeypatch, make_trainer, recorder, tmp_path, name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    store = tmp_path / "store"
    variables = {
        "WANDB_MODE": "offline",
        "SWANLAB_MODE": "offline",
        "MLFLOW_TRACKING_URI": store.as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    for steps, resume in ((12, False), (16, True)):
        hook = TrackingHook(make_trackers(name), config=CONFIG)
        trainer = make_trainer(
            hooks=[recorder, hook], run_dir=tmp_path / "run", steps=steps, save_every=4
        )
        trainer.fit(resume=resume, allow_changes=resume)
    warnings = [text for text in recorder.warnings if name in text]
    assert warnings == []
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    if name == "mlflow":
        (losses,) = [path for path in files if path.as_posix().endswith("metrics/train/loss")]
        steps = [int(line.split()[2]) for line in losses.read_text(encoding="utf-8").splitlines()]
        assert steps == list(range(1, 17))
    else:
        kind = {"wandb": ".wandb", "swanlab": ".swanlab"}[name]
        assert sum(path.stat().st_size for path in files if path.suffix == kind) > 500
