"""Two processes that train together equal one process that trains alone."""

from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).parent / "worker.py"
KINDS = ["ddp", "fsdp"]


@pytest.fixture(scope="module")
def together(run_worker, tmp_path_factory):
    """Everything that needs no second launch, in one: starting torch takes longest."""
    names = ["ddp", "fsdp", "clipped_fsdp", "count_ddp", "count_fsdp", "poisoned"]
    names += ["poisoned_fsdp", "stopped", "no_room", "indivisible", "bf16"]
    return run_worker(tmp_path_factory.mktemp("together"), *names)


@pytest.fixture(scope="module")
def alone(task):
    """Train in this process; what comes out, as the workers report it."""

    def train(**options):
        hook = task.Recorder()
        trainer = task.make_trainer(hook, **options)
        trainer.fit()
        return trainer, hook

    return train


def apart(found, trainer):
    """The largest difference of any weight, and of the parameters' names."""
    expected = {name: p.detach().flatten() for name, p in trainer.model.named_parameters()}
    names = {name.removeprefix("module.") for name in found["weights"]}
    assert names == set(expected)
    return max(
        float((torch.tensor(found["weights"][name]) - tensor).abs().max())
        for name, tensor in expected.items()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_weights_equal_those_of_one_process(together, alone, kind):
    trainer, hook = alone()
    for found in together[kind]:
        assert apart(found, trainer) < 1e-6
        assert found["val_loss"] == pytest.approx(trainer.state.val_loss, abs=1e-6)
    first = together[kind][0]
    assert first["losses"] == pytest.approx(hook.losses, abs=1e-6)
    assert first["norms"] == pytest.approx([r.grad_norm for r in hook.steps], rel=1e-5)
    assert first["tokens"] == [report.n_tokens for report in hook.steps]


def test_bf16_is_close(together, alone):
    trainer, hook = alone(precision="bf16")
    exact = alone()[1].losses
    assert hook.losses != pytest.approx(exact, abs=1e-5), "bf16 rounds"
    for found in together["bf16"]:
        assert apart(found, trainer) < 2e-3
    assert together["bf16"][0]["losses"] == pytest.approx(hook.losses, abs=5e-3)


def test_the_task_would_notice_averages_of_averages(task):
    """The batches of a step have unequal numbers of targets, also when two share them."""
    counts = [task.Padded()(index).n_targets for index in range(4)]
    assert counts[0] + counts[2] != counts[1] + counts[3]


def test_sharded_gradients_are_clipped_by_their_whole_length(together, alone):
    trainer, hook = alone(grad_clip=0.05)
    assert min(report.grad_norm for report in hook.steps) > 0.1
    assert apart(together["clipped_fsdp"][0], trainer) < 1e-6


def test_gradients_travel_once_per_step(together):
    steps, blocks_and_root = 6, 3
    for rank in range(2):
        # DDP: all parameters fit into its first, small bucket
        assert together["count_ddp"][rank]["calls"] == steps
        assert together["count_fsdp"][rank]["calls"] == steps * blocks_and_root


@pytest.mark.parametrize("name", ["poisoned", "poisoned_fsdp"])
def test_nan_in_one_process_skips_the_step_in_all(together, alone, name):
    trainer, hook = alone(poison=9)
    for found in together[name]:
        assert found["skipped"] == 1
        assert found["step"] == 6
        assert apart(found, trainer) < 1e-6
    first = together[name][0]
    assert first["problems"][2] == hook.steps[2].problem == "the loss is nan"
    assert first["windows"][2] == [-1], "the main process names a window of the other one"
    assert first["weights"] == together[name][1]["weights"]


def test_only_the_main_process_reports(together):
    first, second = together["poisoned"]
    assert len(first["losses"]) == 6
    assert any("step 3 skipped" in warning for warning in first["warnings"])
    assert second["losses"] == second["warnings"] == []


def test_a_signal_in_one_process_stops_all_at_the_same_step(together):
    for found in together["stopped"]:
        assert found["interrupted"]
        assert found["step"] == 3


def test_all_hear_that_a_checkpoint_could_not_be_saved(together):
    for found in together["no_room"]:
        assert "No space left on device" in found["error"]


def test_a_step_that_cannot_be_shared_out_evenly_is_refused(together):
    for found in together["indivisible"]:
        assert "grad_accumulation is 3" in found["error"]
        assert "2 processes" in found["error"]


def test_different_options_stop_every_process(launch, tmp_path):
    done = launch(WORKER, tmp_path, "different")
    assert done.returncode != 0
    for rank in range(2):
        error = (tmp_path / f"error-{rank}.txt").read_text(encoding="utf-8")
        assert "differ in config.learning_rate: 0.001 in rank 0, 0.002 in rank 1" in error


def test_several_processes_without_a_way_to_agree_are_refused(launch, tmp_path):
    done = launch(WORKER, tmp_path, "separate")
    assert done.returncode != 0
    assert "parallel is 'none'" in done.stderr
