import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from foundation.files import verify_manifest, write_json, write_manifest
from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from gpt_model.model_directory import find_model_directory
from tokenization.tokenizer import Tokenizer

CONFIG = GPTConfig(vocab_size=13, max_seq_len=8, dim=12, n_layers=1, n_heads=2)


@pytest.fixture
def saved(tmp_path):
    GPT(CONFIG).save(tmp_path / "m")
    return tmp_path / "m"


def rewrite(directory, change):
    """Change the tensors and renew the manifest, so that only the content is wrong."""
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors")
    write_manifest(directory, "model")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": False},
        {"position": "sinusoidal"},
        {"position": "rope", "qk_norm": True, "norm": "rmsnorm"},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_model_computes_the_same_bits(tmp_path, changes, dtype):
    model = GPT(CONFIG.replace(**changes)).to(dtype).eval()
    model.save(tmp_path / "m")
    again = GPT.load(tmp_path / "m")
    ids = torch.randint(13, (2, 8))
    assert again.dtype == dtype
    assert again.config == model.config
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert all(parameter.requires_grad for parameter in again.parameters())
    tied = again.lm_head.weight is again.token_embedding.weight
    assert tied == model.config.tie_embeddings
    assert again.num_parameters() == model.num_parameters()


def test_the_dtype_can_be_chosen_on_loading(saved):
    assert GPT.load(saved, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_the_directory_holds_the_tokenizer_and_refuses_one_too_large(tmp_path):
    tokenizer = Tokenizer.characters(["abc"])
    GPT(CONFIG).save(tmp_path / "m", tokenizer)
    manifest = verify_manifest(tmp_path / "m", kind="model")
    assert sorted(manifest["files"]) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert Tokenizer.load(tmp_path / "m").encode("cab") == tokenizer.encode("cab")
    large = Tokenizer.characters(["abcdefghijklmnop"])
    with pytest.raises(ValueError, match=r"tokenizer has 17 tokens, .* vocab_size is 13"):
        GPT(CONFIG).save(tmp_path / "n", large)
    assert not (tmp_path / "n").exists()


def test_tied_weights_are_stored_once(saved):
    assert "lm_head.weight" not in load_file(saved / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("final_norm.weight"), "missing final_norm.weight"),
        (lambda w: w.update(extra=torch.zeros(1)), "unexpected extra"),
        (
            lambda w: w.update({"final_norm.weight": torch.zeros(5)}),
            r"final_norm.weight has shape \(5,\), expected \(12,\)",
        ),
        (
            lambda w: w["final_norm.weight"].fill_(float("nan")),
            "final_norm.weight holds NaN or infinite",
        ),
        (lambda w: w.clear() or w.update(a=torch.zeros(1)), "in all"),
    ],
)
def test_tensors_that_do_not_fit_are_all_listed(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(ValueError, match=message):
        GPT.load(saved)


def test_truncated_weights_with_a_fresh_manifest_name_the_file(saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged: 100 bytes"):
        GPT.load(saved)
    write_manifest(saved, "model")
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        GPT.load(saved)


def test_a_config_with_an_unknown_key_names_file_and_nearest(saved):
    values = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    values["n_layer"] = values.pop("n_layers")
    write_json(saved / "config.json", values)
    write_manifest(saved, "model")
    with pytest.raises(ValueError, match=r"'n_layer' in .*config.json; did you mean 'n_layers'"):
        GPT.load(saved)


def test_broken_weights_are_not_saved_and_the_old_model_stays(saved):
    model = GPT(CONFIG)
    with torch.no_grad():
        model.final_norm.weight[3] = float("inf")
    with pytest.raises(ValueError, match=r"final_norm.weight holds NaN or infinite"):
        model.save(saved)
    GPT.load(saved)


def test_a_run_directory_resolves_to_its_best_whole_step(tmp_path, saved):
    run = tmp_path / "run"
    for step, loss in ((10, 2.0), (20, 1.5), (30, 1.7)):
        directory = run / f"step-{step:06d}"
        shutil.copytree(saved, directory)
        write_manifest(directory, "checkpoint", {"val_loss": loss})
    (run / "step-000040").mkdir()  # no manifest: not a checkpoint
    assert find_model_directory(run).name == "step-000020"
    assert find_model_directory(saved) == saved
    for step in (10, 20, 30):
        write_manifest(run / f"step-{step:06d}", "checkpoint")
    assert find_model_directory(run).name == "step-000030"  # no losses: the newest
    with pytest.raises(ValueError, match="none does not exist"):
        find_model_directory(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither a model directory"):
        find_model_directory(tmp_path / "empty")
