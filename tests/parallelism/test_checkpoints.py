"""What some processes have saved, another number of them loads."""

import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file

from foundation.files import MANIFEST, read_json
from gpt_model.model import GPT
from training.checkpoint import load_checkpoint, load_weights
from training.checkpoint_list import latest_checkpoint, list_checkpoints, verify_checkpoint

WAYS = ["ddp", "fsdp", "shards"]
OPTIONS = {
    "ddp": {"parallel": "ddp"},
    "fsdp": {"parallel": "fsdp"},
    "shards": {"parallel": "fsdp", "sharded_checkpoints": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, task):
    """Where everything is saved; `one` holds the run of a single process."""
    folder = tmp_path_factory.mktemp("checkpoints")
    task.make_trainer(task.Recorder(), run_dir=folder / "one", save_every=3).fit()
    return folder


@pytest.fixture(scope="module")
def together(run_worker, folder):
    names = [f"saved_{way}" for way in WAYS]
    return run_worker(folder, *names, "from_one_ddp", "from_one_fsdp", "no_room_for_shards")


def weights_of(found):
    return {name: torch.tensor(values) for name, values in found["weights"].items()}


def apart(found, model):
    expected = {name: p.detach().flatten() for name, p in model.named_parameters()}
    assert found.keys() == expected.keys()
    return max(float((found[name].flatten() - expected[name]).abs().max()) for name in expected)


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_go_on_as_if_they_had_never_stopped(together, way):
    for found in together[f"saved_{way}"]:
        assert found["resumed"]["weights"] == found["straight"]["weights"]
    first = together[f"saved_{way}"][0]
    assert first["resumed"]["losses"] == first["straight"]["losses"][3:]


@pytest.mark.parametrize("way", WAYS)
def test_one_process_goes_on_where_two_stopped(together, folder, task, way, tmp_path):
    """Without dropout, whose masks differ: the same losses as one process from the start."""
    straight, alone = task.Recorder(), task.Recorder()
    task.make_trainer(straight, run_dir=tmp_path / "straight", save_every=3).fit()
    # what two processes would have saved of the very same run
    source = folder / f"plain-{way}"
    trainer = task.make_trainer(alone, run_dir=source)
    result = trainer.fit(resume=True)
    assert result.step == 6
    assert alone.losses == pytest.approx(straight.losses[3:], abs=1e-6)
    assert any("processes: 2" in warning for warning in alone.warnings)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_go_on_where_one_stopped(together, task, way):
    hook = task.Recorder()
    trainer = task.make_trainer(hook)
    trainer.fit()
    for found in together[f"from_one_{way}"]:
        assert found["step"] == 6
        assert apart(weights_of(found), trainer.model) < 1e-6
    assert together[f"from_one_{way}"][0]["losses"] == pytest.approx(hook.losses[3:], abs=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_each_checkpoint_is_a_model_directory(together, folder, way):
    last = list_checkpoints(folder / f"straight-{way}")[-1]
    model = GPT.load(last.directory)
    assert apart(weights_of(together[f"saved_{way}"][0]["straight"]), model) == 0
    # and saved again, it is one file
    model.save(folder / f"one-file-{way}")
    weights = load_file(folder / f"one-file-{way}" / "model.safetensors")
    assert apart(weights, model) == 0


def numbers_in(path):
    return sum(tensor.numel() for tensor in load_file(path).values())


def test_each_process_writes_its_part_and_nobody_the_whole(together, folder):
    directory = list_checkpoints(folder / "straight-shards")[-1].directory
    verify_checkpoint(directory)
    assert not (directory / "model.safetensors").exists()
    whole = list_checkpoints(folder / "straight-fsdp")[-1].directory
    for name in ("model", "optimizer"):
        counts = [numbers_in(path) for path in (directory / f"{name}-shards").iterdir()]
        assert len(counts) == 2
        assert sum(counts) == numbers_in(whole / f"{name}.safetensors")
        # not quite half each: some numbers of rows are odd
        assert max(counts) < 0.55 * sum(counts)


def test_no_file_of_a_checkpoint_is_a_pickle(together, folder, task, monkeypatch):
    """DCP's own format keeps its index as a pickle; ours has only safetensors and JSON."""
    directory = list_checkpoints(folder / "straight-shards")[-1].directory
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}

    def refuse(*_, **__):
        raise AssertionError("a pickle was opened")

    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    trainer = task.make_trainer(task.Recorder(), model={"dropout": 0.1})
    progress = load_checkpoint(directory, trainer.model, trainer.take_step.optimizer)
    assert progress["step"] == 6
    assert apart(weights_of(together["saved_shards"][0]["straight"]), trainer.model) == 0


@pytest.mark.parametrize("harm", ["flip", "remove"])
def test_a_damaged_shard_is_named_and_the_checkpoint_before_it_taken(
    together, folder, harm, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(folder / "straight-shards", run)
    last = list_checkpoints(run)[-1].directory
    victim = sorted((last / "optimizer-shards").iterdir())[1]
    if harm == "flip":
        data = bytearray(victim.read_bytes())
        data[-1] ^= 1
        victim.write_bytes(data)
    else:
        victim.unlink()
    heard = []
    assert latest_checkpoint(run, heard.append).step == 3
    assert victim.name in heard[0]


def test_shards_of_another_model_are_refused_before_anything_changes(together, folder, task):
    directory = list_checkpoints(folder / "straight-shards")[-1].directory
    trainer = task.make_trainer(task.Recorder(), model={"dim": 32})
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with pytest.raises(ValueError, match="model-shards was saved from another model"):
        load_weights(directory, trainer.model)
    assert all(map(torch.equal, before, trainer.model.parameters()))


def test_all_hear_that_one_could_not_write_its_shard(together):
    for found in together["no_room_for_shards"]:
        assert "process 1 could not write its shard" in found["error"]
        assert "No space left on device" in found["error"]
        assert "the last good one is" in found["error"]
        assert found["left"] == ["step-000003"], "what was half written is gone"


def test_the_ordinary_checkpoint_is_the_same_whatever_wrote_it(together, folder):
    """Not even the names differ: the manifest lists the same files as that of one process."""
    one = list_checkpoints(folder / "one")[-1].directory
    for way in ("ddp", "fsdp"):
        other = list_checkpoints(folder / f"straight-{way}")[-1].directory
        first, second = (read_json(directory / MANIFEST)["files"] for directory in (one, other))
        assert first.keys() == second.keys()
