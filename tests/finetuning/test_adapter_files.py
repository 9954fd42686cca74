"""Adapter directories: round trip, damage, other bases, nothing overwritten by mistake."""

import json
import shutil
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from finetuning.adapter_files import AdapterHook, base_fingerprint, load_adapter, save_adapter
from finetuning.adapters import adapted_layers
from finetuning.lora import LoRAConfig, adapter_names, apply_lora, lora_parameters
from training.train_config import TrainConfig
from training.trainer import Trainer


def build(seed=0, hidden=7):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, hidden), nn.GELU(), nn.Linear(hidden, 3))


def tuned(name="default", **config):
    model = apply_lora(build(), LoRAConfig(**{"r": 2, "target": ("0", "2"), **config}), name)
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.add_(torch.randn_like(parameter))
    return model


def edit_config(directory, **changes):
    (directory / "manifest.json").unlink(missing_ok=True)
    path = directory / "adapter_config.json"
    values = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(
        json.dumps({k: v for k, v in values.items() if v != "absent"}), encoding="utf-8"
    )


def edit_weights(directory, change):
    (directory / "manifest.json").unlink(missing_ok=True)
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.fixture
def saved(tmp_path):
    save_adapter(tuned(), tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True, "dropout": 0.25},
        {"use_dora": True, "alpha": 3.5},
        {"rank_pattern": {"2": 3}, "alpha_pattern": {"0": 5.0}},
        {"target": ("2",)},
    ],
)
def test_round_trip_is_exact(tmp_path, config):
    model, x = tuned(**config), torch.randn(4, 5)
    save_adapter(model, tmp_path / "adapter")
    again = load_adapter(build(), tmp_path / "adapter", "loaded")
    assert torch.equal(again.eval()(x), model.eval()(x))
    assert adapter_names(again) == ["loaded"]
    ours, theirs = (next(iter(adapted_layers(m).values())).current.config for m in (model, again))
    for field in ("r", "alpha", "dropout", "use_rslora", "use_dora"):
        assert getattr(ours, field) == getattr(theirs, field)
    assert all(parameter.requires_grad for parameter in lora_parameters(again))


def test_the_same_adapter_is_the_same_file_each_time(tmp_path):
    """The library orders metadata at random: half of all pairs would differ."""
    model = tuned()
    for number in range(12):
        save_adapter(model, tmp_path / f"{number}")
    files = tmp_path.glob("*/adapter_model.safetensors")
    assert len({path.read_bytes() for path in files}) == 1


def test_the_named_adapter_is_saved_not_the_active_one(tmp_path):
    model = tuned("first")
    first = [parameter.clone() for parameter in lora_parameters(model)]
    apply_lora(model, LoRAConfig(r=3, target=("0",)), "second")
    save_adapter(model, tmp_path / "first", "first")
    save_adapter(model, tmp_path / "second")
    again = lora_parameters(load_adapter(build(), tmp_path / "first"))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert list(adapted_layers(load_adapter(build(), tmp_path / "second"))) == ["0"]
    with pytest.raises(ValueError, match="no adapter 'third'; there are: first, second"):
        save_adapter(model, tmp_path / "third", "third")


def test_saving_again_replaces_and_saving_over_anything_else_is_refused(saved, tmp_path):
    save_adapter(tuned(), saved)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(ValueError, match=r"not an adapter directory: it holds chapter\.txt"):
        save_adapter(tuned(), tmp_path / "thesis")
    with pytest.raises(ValueError, match="is a file"):
        save_adapter(tuned(), tmp_path / "thesis" / "chapter.txt")
    assert (tmp_path / "thesis" / "chapter.txt").read_text(encoding="utf-8") == "years of work"


def test_a_broken_adapter_is_not_saved(tmp_path):
    model = tuned()
    with torch.no_grad():
        lora_parameters(model)[0][0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"0\.lora_A\.weight holds NaN"):
        save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_fingerprint_knows_the_base_and_nothing_else():
    plain = base_fingerprint(build())
    assert plain == base_fingerprint(tuned()) == base_fingerprint(build().to(torch.bfloat16))
    assert plain != base_fingerprint(build(1))
    changed = build()
    with torch.no_grad():
        changed[2].bias[1] += 0.01
    assert plain != base_fingerprint(changed)


def test_another_base_of_the_same_shape_is_refused_unless_asked(saved):
    model = build(1)
    with pytest.raises(ValueError, match=r"trained on another base: its fingerprint is \w{12}…"):
        load_adapter(model, saved)
    assert not adapted_layers(model)
    assert adapted_layers(load_adapter(model, saved, allow_other_base=True))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (build(hidden=8), r"another base: 0 needs .*'B': \(8, 2\).*the file has .*\(7, 2\)"),
        (nn.Sequential(nn.Linear(5, 7)), r"another base: it changes 2, this model has 0"),
        (nn.Sequential(nn.GELU()), r"another base: it changes 0, 2"),
    ],
)
def test_another_shape_is_refused_even_if_asked(saved, model, message):
    with pytest.raises(ValueError, match=message):
        load_adapter(model, saved, allow_other_base=True)
    assert not adapted_layers(model)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_every_flipped_bit_and_every_missing_file_is_noticed(saved, name):
    path = saved / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name} is damaged: SHA-256"):
        load_adapter(build(), saved)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing"):
        load_adapter(build(), saved)


def test_truncated_weights_without_a_manifest_are_noticed(saved):
    (saved / "manifest.json").unlink()
    path = saved / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is damaged"):
        load_adapter(build(), saved)


def test_pickled_weights_are_not_opened(saved):
    (saved / "adapter_model.safetensors").rename(saved / "adapter_model.bin")
    with pytest.raises(ValueError, match="pickle that can run code"):
        load_adapter(build(), saved)


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_adapter(build(), tmp_path / "nothing")


def make_nan(tensors):
    tensors["base_model.model.2.lora_B.weight"][0, 0] = float("inf")


def drop_layer(tensors):
    for part in ("lora_A.weight", "lora_B.weight"):
        del tensors[f"base_model.model.2.{part}"]


def drop_half(tensors):
    del tensors["base_model.model.2.lora_B.weight"]


def add_foreign(tensors):
    tensors["base_model.model.lm_head.weight"] = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (make_nan, r"2\.lora_B\.weight holds NaN or infinite"),
        (drop_layer, "incomplete: no tensors for 2"),
        (drop_half, r"2 needs .*the file has \{'A'"),
        (add_foreign, r"lm_head\.weight is not supported"),
        (dict.clear, "it changes no layer"),
    ],
)
def test_wrong_tensors_are_refused(saved, change, message):
    edit_weights(saved, change)
    with pytest.raises(ValueError, match=message):
        load_adapter(build(), saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type must be 'LORA', got 'IA3'"),
        ({"r": "absent"}, "r missing"),
        ({"target_modules": None}, "target_modules missing"),
        ({"r": 4}, r"0 needs .*'A': \(4, 5\)"),
        ({"r": "8"}, r"adapter_config\.json: r must be an integer >= 1, got '8'"),
        ({"rank_pattern": [1]}, r"adapter_config\.json: "),
        ({"lora_bias": True}, "the option lora_bias = True is not supported"),
        ({"bias": "all"}, "the option bias = 'all' is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\] is not supported"),
        ({"a_future_option": 3}, "a_future_option = 3 is not supported"),
        ({"init_lora_weights": "pissa"}, "'pissa' rewrites the base"),
        ({"use_dora": True}, r"needs .*'magnitude': \(7,\)"),
    ],
)
def test_wrong_settings_are_refused(saved, change, message):
    edit_config(saved, **change)
    with pytest.raises(ValueError, match=message):
        load_adapter(build(), saved)


def test_harmless_settings_are_accepted(saved):
    edit_config(
        saved,
        init_lora_weights="gaussian",
        rank_pattern={"matches_nothing": 3},
        modules_to_save=None,
        loftq_config={},
        target_modules=r"(0|2)",
        peft_version="99.0",
    )
    assert list(adapted_layers(load_adapter(build(), saved))) == ["0", "2"]


def test_settings_that_only_narrow_leave_the_choice_to_the_tensors(saved):
    edit_config(saved, layers_to_transform=[0])
    edit_weights(saved, drop_layer)
    assert list(adapted_layers(load_adapter(build(), saved))) == ["0"]


def test_bad_json_names_file_and_line(saved):
    (saved / "manifest.json").unlink()
    (saved / "adapter_config.json").write_text('{\n "r": }', encoding="utf-8")
    with pytest.raises(ValueError, match=r"adapter_config\.json is not valid JSON.* line 2"):
        load_adapter(build(), saved)
    (saved / "adapter_config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="must hold a JSON object, got list"):
        load_adapter(build(), saved)


@dataclass
class Numbers:
    inputs: torch.Tensor

    def to(self, device):
        return Numbers(self.inputs.to(device))


def square_loss(model, batch):
    return model(batch.inputs).square().sum(), batch.inputs.shape[0]


def test_a_training_run_stores_the_adapter_and_resumes_bit_for_bit(tmp_path):
    def trainer(steps, folder):
        torch.manual_seed(1)
        model = apply_lora(build(), LoRAConfig(r=2, target=("0", "2"), dropout=0.5))
        config = TrainConfig(steps=steps, save_every=2, learning_rate=0.01, schedule="constant")
        batches = lambda index: Numbers(torch.full((4, 5), 1.0 + index))  # noqa: E731
        hooks = [AdapterHook("my-base")]
        return Trainer(model, batches, square_loss, config, hooks, run_dir=tmp_path / folder)

    straight = trainer(4, "straight")
    straight.fit()
    step = tmp_path / "straight" / "step-000002"
    assert {path.name for path in step.iterdir()} >= {"adapter_config.json", "trainer.json"}
    assert "model.safetensors" not in {path.name for path in step.iterdir()}
    for name in ("step-000002", "step-000004"):
        assert adapted_layers(load_adapter(build(), tmp_path / "straight" / name))
    final = load_adapter(build(), tmp_path / "straight" / "step-000004")
    x = torch.randn(3, 5)
    assert torch.equal(final.eval()(x), straight.model.eval()(x))
    resumed = trainer(4, "straight")
    shutil.rmtree(tmp_path / "straight" / "step-000004")
    resumed.fit(resume=True)
    assert torch.equal(resumed.model.eval()(x), straight.model(x))
    assert torch.equal(resumed.model[0].base_layer.weight, build()[0].weight)
