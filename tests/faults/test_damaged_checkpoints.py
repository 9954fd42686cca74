"""Damage is noticed: the file is named, and the step before is used."""

import json
import random
import shutil

import pytest
import torch

from training.checkpoint import latest_checkpoint, list_checkpoints, load_checkpoint
from training.checkpoint_list import verify_checkpoint


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, faults):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("damage") / "run"
    faults.make_run(path, steps=6).fit()
    assert [c.step for c in list_checkpoints(path)] == [3, 6]
    return path


def damage(data, numbers):
    """Flip one bit, cut the end off, or add a byte; return the new content."""
    kind = numbers.random()
    if kind < 0.8:
        place = numbers.randrange(8 * len(data))
        data[place // 8] ^= 1 << place % 8
    elif kind < 0.95:
        del data[numbers.randrange(len(data)) :]
    else:
        data.append(numbers.randrange(256))
    return data


def test_a_thousand_damages_are_all_noticed(run_dir):
    numbers = random.Random(7)
    newest = run_dir / "step-000006"
    files = sorted(newest.iterdir())
    # small files come up as often as large ones: the manifest must not be a blind spot
    for _ in range(1000):
        file = numbers.choice(files)
        before = file.read_bytes()
        file.write_bytes(damage(bytearray(before), numbers))
        heard = []
        found = latest_checkpoint(run_dir, heard.append)
        assert found is not None
        assert found.step == 3, file.name
        assert "step-000006" in heard[0]
        assert file.name in heard[0] or file.name == "manifest.json", heard[0]
        file.write_bytes(before)
    verify_checkpoint(newest)


def test_every_bit_of_the_manifest_matters(run_dir):
    """Either it is refused, or what it says is the same (a digit that rounds to the same)."""
    manifest = run_dir / "step-000006" / "manifest.json"
    before = manifest.read_bytes()
    facts = json.loads(before)
    unnoticed = []
    for place in range(8 * len(before)):
        data = bytearray(before)
        data[place // 8] ^= 1 << place % 8
        manifest.write_bytes(data)
        try:
            verify_checkpoint(manifest.parent)
        except ValueError:
            continue
        unnoticed.append(place)
        assert json.loads(data) == facts
    manifest.write_bytes(before)
    assert len(unnoticed) < 30


@pytest.mark.parametrize(
    "name",
    [
        *("manifest.json", "config.json", "model.safetensors"),
        *("optimizer.safetensors", "random.safetensors", "trainer.json"),
    ],
)
def test_a_missing_file_is_named(run_dir, tmp_path, name):
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    (copy / "step-000006" / name).unlink()
    heard = []
    assert latest_checkpoint(copy, heard.append).step == 3
    if name == "manifest.json":  # without it, it is no checkpoint at all
        assert heard == []
    else:
        assert f"{name} is missing" in heard[0]


def test_a_resume_says_that_it_fell_back_and_reaches_the_same_end(run_dir, tmp_path, faults):
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    file = copy / "step-000006" / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)

    class Listen(faults.Hook):
        warnings = []

        def on_warning(self, trainer, message):
            self.warnings.append(message)

    resumed = faults.make_run(copy, steps=6, hooks=[Listen()])
    resumed.fit(resume=True)
    assert "optimizer.safetensors is damaged" in Listen.warnings[0]
    whole = faults.make_run(tmp_path / "whole", steps=6)
    whole.fit()
    assert faults.digest(resumed) == faults.digest(whole)
    verify_checkpoint(copy / "step-000006")  # saved anew


def test_a_damaged_checkpoint_given_by_name_is_refused_before_anything_changes(run_dir, faults):
    file = run_dir / "step-000006" / "random.safetensors"
    before = file.read_bytes()
    file.write_bytes(before[:-1])
    trainer = faults.make_run(run_dir, steps=6)
    untouched = faults.digest(trainer)
    with pytest.raises(ValueError, match="random.safetensors is damaged"):
        load_checkpoint(run_dir / "step-000006", trainer.model, trainer.take_step.optimizer)
    assert faults.digest(trainer) == untouched
    file.write_bytes(before)
