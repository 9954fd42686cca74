import json

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from gpt_model.model import GPT
from gpt_model.model_directory import find_model_directory
from tokenization.tokenizer import Tokenizer
from training.checkpoint import (
    best_checkpoint,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from training.checkpoint_list import verify_checkpoint
from training.optimizer import build_optimizer
from training.random_state import random_state


def trained(model, steps=3):
    """A model with an optimizer that has moved: every state tensor is non-trivial."""
    optimizer = build_optimizer(model, learning_rate=1e-2)
    for step in range(steps):
        ids = torch.randint(13, (2, 9), generator=torch.Generator().manual_seed(step))
        model(ids[:, :-1], ids[:, 1:]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def save(run_dir, step, model, optimizer, **options):
    return save_checkpoint(run_dir, step, model, optimizer, {"note": "ok"}, **options)


@pytest.fixture
def saved(tiny_model, tmp_path):
    model = tiny_model()
    optimizer = trained(model)
    return model, optimizer, save(tmp_path, 3, model, optimizer, val_loss=2.5)


def test_everything_comes_back_bit_for_bit(saved, tiny_model, same_weights, same_optimizer):
    model, optimizer, directory = saved
    expected = torch.rand(5)  # what comes next
    again = tiny_model(seed=99)
    other = build_optimizer(again, learning_rate=1e-2)
    torch.manual_seed(12345)
    progress = load_checkpoint(directory, again, other)
    assert progress == {"note": "ok", "step": 3, "val_loss": 2.5}
    assert same_weights(model, again)
    assert same_optimizer(optimizer, other)
    assert again.lm_head.weight is again.token_embedding.weight  # still tied
    assert torch.equal(torch.rand(5), expected)


def test_the_directory_is_a_model_directory_without_pickle(saved, same_weights):
    model, _, directory = saved
    assert same_weights(model.eval(), GPT.load(directory))
    assert find_model_directory(directory.parent) == directory
    assert {path.name for path in directory.iterdir()} == {
        *("manifest.json", "config.json", "model.safetensors"),
        *("optimizer.safetensors", "random.safetensors", "trainer.json"),
    }
    names = set(load_file(directory / "optimizer.safetensors"))
    assert "blocks.0.attention.q_proj.weight/exp_avg" in names
    assert "final_norm.weight/step" in names


def test_the_tokenizer_goes_along(tiny_model, tmp_path):
    model = tiny_model()
    tokenizer = Tokenizer.characters(["abc"])
    directory = save(tmp_path, 1, model, build_optimizer(model), tokenizer=tokenizer)
    assert Tokenizer.load(directory).fingerprint == tokenizer.fingerprint


def test_more_files_may_be_added_and_are_verified(tiny_model, tmp_path):
    model = tiny_model()

    def write_more(directory):
        (directory / "extra.txt").write_text("hello", encoding="utf-8")

    directory = save(tmp_path, 1, model, build_optimizer(model), write_more=write_more)
    verify_checkpoint(directory)
    (directory / "extra.txt").write_text("hullo", encoding="utf-8")
    with pytest.raises(ValueError, match="extra.txt is damaged"):
        verify_checkpoint(directory)


def test_compiled_models_are_saved_under_their_plain_names(saved, tiny_model, same_weights):
    model, _, directory = saved

    class Shell(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self._orig_mod = inner

    again = tiny_model(seed=99)
    load_weights(directory, Shell(again))
    assert same_weights(model, again)


def test_only_the_trainable_part_of_a_frozen_model(tiny_model, tmp_path, same_optimizer):
    model = tiny_model()
    model.requires_grad_(False)
    model.blocks[0].feed_forward.requires_grad_(True)
    optimizer = trained(model)
    directory = save(tmp_path, 3, model, optimizer)
    assert set(load_file(directory / "trainable.safetensors")) == {
        name for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    again = tiny_model()  # the same base
    again.requires_grad_(False)
    again.blocks[0].feed_forward.requires_grad_(True)
    other = build_optimizer(again)
    load_checkpoint(directory, again, other)
    assert same_optimizer(optimizer, other)
    ids = torch.randint(13, (1, 8))
    assert torch.equal(model.eval()(ids).logits, again.eval()(ids).logits)


def test_buffers_are_part_of_the_state(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = build_optimizer(model)
    for _ in range(3):
        model(torch.randn(8, 4)).sum().backward()
        optimizer.step()
    directory = save(tmp_path, 3, model, optimizer)
    again = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    load_checkpoint(directory, again, build_optimizer(again))
    assert torch.equal(again[1].running_mean, model[1].running_mean)
    assert again[1].num_batches_tracked == 3


def test_parameters_that_never_had_a_gradient(tmp_path, same_optimizer):
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    optimizer = build_optimizer(model)
    model[0](torch.randn(1, 2)).sum().backward()
    optimizer.step()
    directory = save(tmp_path, 1, model, optimizer)
    again = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    other = build_optimizer(again)
    load_checkpoint(directory, again, other)
    assert same_optimizer(optimizer, other)


# ── keeping ──────────────────────────────────────────────────────────────────────────────────────


def test_the_last_two_and_the_best_are_kept(tiny_model, tmp_path):
    model = tiny_model()
    optimizer = build_optimizer(model)
    kept = []
    for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0), (40, None), (50, 1.5), (60, 1.0)):
        save(tmp_path, step, model, optimizer, val_loss=loss)
        kept.append([c.step for c in list_checkpoints(tmp_path)])
    assert kept == [[10], [10, 20], [20, 30], [20, 30, 40], [20, 40, 50], [50, 60]]
    assert best_checkpoint(tmp_path).step == 60  # as good as step 20, and later
    assert find_model_directory(tmp_path).name == "step-000060"
    assert latest_checkpoint(tmp_path).val_loss == 1.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000050", "step-000060"]


def test_a_step_is_saved_again_in_place(tiny_model, tmp_path):
    model = tiny_model()
    optimizer = build_optimizer(model)
    save(tmp_path, 10, model, optimizer)
    save(tmp_path, 10, model, optimizer, val_loss=0.5)
    assert [(c.step, c.val_loss) for c in list_checkpoints(tmp_path)] == [(10, 0.5)]


def test_steps_are_ordered_as_numbers(tiny_model, tmp_path):
    model = tiny_model()
    optimizer = build_optimizer(model)
    for step in (999_999, 1_000_000):
        save(tmp_path, step, model, optimizer)
    assert latest_checkpoint(tmp_path).step == 1_000_000


def test_what_is_not_a_checkpoint_is_not_listed(saved):
    run_dir = saved[2].parent
    (run_dir / "step-000009").mkdir()  # no manifest
    (run_dir / "step-000010.tmp-ab12").mkdir()
    (run_dir / "step-latest").mkdir()
    (run_dir / "metrics.jsonl").write_text("", encoding="utf-8")
    assert [c.step for c in list_checkpoints(run_dir)] == [3]
    assert list_checkpoints(run_dir / "nowhere") == []
    assert latest_checkpoint(run_dir / "nowhere") is None
    assert best_checkpoint(run_dir / "nowhere") is None


# ── refusing ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("where", ["weights", "moments"])
def test_nothing_non_finite_is_saved(saved, where):
    model, optimizer, directory = saved
    weight = model.final_norm.weight
    with torch.no_grad():
        if where == "weights":
            weight[0] = float("nan")
        else:
            optimizer.state[weight]["exp_avg_sq"][0] = float("inf")
    name = "final_norm.weight" + ("/exp_avg_sq" if where == "moments" else "")
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinite values; step-000004"):
        save(directory.parent, 4, model, optimizer)
    assert [path.name for path in directory.parent.iterdir()] == ["step-000003"]
    verify_checkpoint(directory)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file"),
        SafetensorError("I/O error: No space left on device"),
    ],
)
def test_a_full_disk_leaves_the_last_good_one_and_says_so(saved, monkeypatch, error):
    model, optimizer, directory = saved
    calls = []

    def failing(tensors, path, *args, **options):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half of it")
            raise error
        save_file(tensors, path, *args, **options)

    monkeypatch.setattr("training.sharded_files.save_file", failing)
    with pytest.raises(OSError, match="could not save .*step-000004.*last good one is") as caught:
        save(directory.parent, 4, model, optimizer)
    assert str(directory) in str(caught.value)
    assert str(error).split("]")[-1].strip() in str(caught.value)
    assert [path.name for path in directory.parent.iterdir()] == ["step-000003"]
    monkeypatch.undo()
    assert latest_checkpoint(directory.parent).step == 3


def test_the_first_save_failing_says_that_there_is_none(tiny_model, tmp_path, monkeypatch):
    model = tiny_model()

    def failing(*args, **options):
        raise OSError("disk full")

    monkeypatch.setattr("training.sharded_files.save_file", failing)
    with pytest.raises(OSError, match="disk full; there is no other one"):
        save(tmp_path, 1, model, build_optimizer(model))


def test_another_models_checkpoint_is_refused_with_a_list_and_changes_nothing(
    saved, tiny_model, same_weights
):
    directory = saved[2]
    for changes, message in (
        ({"dim": 32}, r"token_embedding.weight has shape \(13, 16\), the model has \(13, 32\)"),
        ({"n_layers": 2}, "missing blocks.1.attention.q_proj.weight; missing .* in all"),
        ({"qk_norm": True}, "missing blocks.0.attention.q_norm.weight"),
        ({"tie_embeddings": False}, "missing lm_head.weight"),
    ):
        other, untouched = tiny_model(**changes), tiny_model(**changes)
        optimizer = build_optimizer(other)
        with pytest.raises(ValueError, match=message):
            load_checkpoint(directory, other, optimizer)
        assert same_weights(other, untouched)
        assert not optimizer.state


def test_an_optimizer_state_of_another_model_is_refused(saved, tiny_model, same_weights):
    directory = saved[2]
    tensors = load_file(directory / "optimizer.safetensors")
    tensors["blocks.7.gone.weight/exp_avg"] = torch.zeros(3)
    save_file(tensors, directory / "optimizer.safetensors")
    from foundation.files import write_manifest

    write_manifest(directory, "checkpoint", {"step": 3, "val_loss": 2.5})
    other, untouched = tiny_model(seed=5), tiny_model(seed=5)
    with pytest.raises(ValueError, match=r"blocks.7.gone.weight/exp_avg \(3,\).*not there"):
        load_checkpoint(directory, other, build_optimizer(other))
    assert same_weights(other, untouched)


def test_a_damaged_latest_falls_back_and_says_so(saved, tiny_model):
    model, optimizer, directory = saved
    newest = save(directory.parent, 4, model, optimizer)
    file = newest / "random.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 8
    file.write_bytes(data)
    with pytest.warns(UserWarning, match="step-000004.random.safetensors is damaged.*falling back"):
        assert latest_checkpoint(directory.parent).step == 3
    with pytest.raises(ValueError, match="random.safetensors is damaged"):
        load_checkpoint(newest, model, optimizer)
    file.unlink()
    heard = []
    assert latest_checkpoint(directory.parent, heard.append).step == 3
    assert "random.safetensors is missing" in heard[0]


def test_when_all_are_damaged_all_are_named(saved):
    model, optimizer, directory = saved
    newest = save(directory.parent, 4, model, optimizer)
    (newest / "trainer.json").write_text("{}", encoding="utf-8")
    (directory / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="every checkpoint") as caught:
        latest_checkpoint(directory.parent, warn=lambda message: None)
    assert "step-000004" in str(caught.value)
    assert "trainer.json" in str(caught.value)
    assert "config.json" in str(caught.value)


def test_a_manifest_that_lies_and_a_renamed_directory_are_noticed(saved):
    directory = saved[2]
    manifest = directory / "manifest.json"
    facts = json.loads(manifest.read_text(encoding="utf-8"))
    for changes in ({"val_loss": 0.25}, {"step": 2}, {"extra": 1}):
        manifest.write_text(json.dumps({**facts, **changes}), encoding="utf-8")
        with pytest.raises(ValueError, match="manifest.json is damaged: it says"):
            verify_checkpoint(directory)
    manifest.write_text(json.dumps(facts), encoding="utf-8")
    verify_checkpoint(directory)
    moved = directory.rename(directory.with_name("step-000300"))
    with pytest.raises(ValueError, match="was renamed: it holds step 3"):
        verify_checkpoint(moved)


def test_saving_takes_no_random_number(tiny_model, tmp_path):
    model = tiny_model()
    optimizer = trained(model)
    before = random_state()
    save(tmp_path, 1, model, optimizer)
    after = random_state()
    assert all(torch.equal(before[name], after[name]) for name in before)
