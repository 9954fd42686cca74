"""Models in integers on disk: the same bits come back, of the size that the formula says."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from foundation.files import write_json, write_manifest
from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from gpt_model.model_directory import load_config
from gpt_model.quantized_directory import describe, expected_bytes
from inference.quantization import dequantize, quantize
from transformer_basics.integer_weights import WeightFormat
from transformer_basics.quantized_linear import quantized_parts

CONFIG = GPTConfig(vocab_size=50, max_seq_len=16, dim=64, n_layers=2, n_heads=2)
MODERN = CONFIG.replace(
    position="rope", norm="rmsnorm", gated_ffn=True, activation="silu", n_kv_heads=1, head_dim=64
)
IDS = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))


def build(config=CONFIG, dtype=torch.float32, **options):
    torch.manual_seed(0)
    return quantize(GPT(config).to(dtype).eval(), **options)


@pytest.fixture
def saved(tmp_path):
    build(embeddings=8).save(tmp_path / "m")
    return tmp_path / "m"


def rewrite(directory, change):
    """Change what config.json says of the quantization, and renew the manifest."""
    values = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    change(values["quantization"])
    write_json(directory / "config.json", values)
    write_manifest(directory, "model")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {"bits": 4, "embeddings": 8},
        {"bits": 8, "group_size": None},
        {"bits": 4, "group_size": 16, "zero_points": True, "embeddings": 4},
        {"bits": 8, "skip": ("lm_head", "q_proj")},
    ],
)
def test_a_loaded_model_computes_the_same_bits(tmp_path, tied, dtype, options):
    model = build(MODERN.replace(tie_embeddings=tied), dtype, **options)
    model.save(tmp_path / "m")
    again = GPT.load(tmp_path / "m")
    assert (again.dtype, again.config) == (dtype, model.config)
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert describe(again) == describe(model)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert again.num_parameters() == model.num_parameters()
    if tied and "embeddings" in options:
        assert again.lm_head.packed is again.token_embedding.packed
    # saved once more, the file is the same
    again.save(tmp_path / "n")
    names = ("config.json", "model.safetensors")
    assert all(
        (tmp_path / "m" / n).read_bytes() == (tmp_path / "n" / n).read_bytes() for n in names
    )
    # opened in another type, only what is not an integer changes
    other = GPT.load(tmp_path / "m", dtype=torch.bfloat16)
    assert other(IDS).logits.dtype == torch.bfloat16
    assert all(part.scale.dtype == torch.bfloat16 for part in quantized_parts(other).values())


def test_the_description_says_what_was_done(saved):
    values = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    tables, blocks = values["quantization"]["parts"]
    assert tables == {
        "bits": 8, "group_size": 64, "zero_points": False, "method": "rtn",
        "modules": ["token_embedding", "lm_head"],
    }  # fmt: skip
    assert len(blocks.pop("modules")) == 12
    assert blocks == {"bits": 4, "group_size": 64, "zero_points": False, "method": "rtn"}
    # what only looks at shapes is not disturbed
    assert load_config(saved) == CONFIG
    assert "lm_head.packed" not in load_file(saved / "model.safetensors")


def test_a_reader_that_knows_of_no_quantization_refuses(saved):
    values = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match="unknown key 'quantization'"):
        GPTConfig.from_dict(values)


def test_a_plain_model_says_nothing_of_it(tmp_path):
    GPT(CONFIG).save(tmp_path / "m")
    values = json.loads((tmp_path / "m" / "config.json").read_text(encoding="utf-8"))
    assert values == CONFIG.to_dict()
    dequantize(build()).save(tmp_path / "n")
    assert (tmp_path / "n" / "config.json").read_bytes() == (
        tmp_path / "m" / "config.json"
    ).read_bytes()


@pytest.mark.parametrize("config", [CONFIG, MODERN, MODERN.replace(tie_embeddings=False)])
@pytest.mark.parametrize(
    ("form", "table"),
    [
        (WeightFormat(4, 64), None),
        (WeightFormat(8, 32), WeightFormat(8, 32)),
        (WeightFormat(4, 16, True), WeightFormat(8, 16)),
    ],
)
def test_the_size_on_disk_and_in_memory_is_the_formulas(tmp_path, config, form, table):
    config = config.replace(dim=128, n_layers=3)
    options = {"bits": form.bits, "group_size": form.group_size, "zero_points": form.zero_points}
    model = build(config, embeddings=None if table is None else table.bits, **options)
    theory = expected_bytes(config, form, table)
    model.save(tmp_path / "m")
    size = (tmp_path / "m" / "model.safetensors").stat().st_size
    assert theory <= size <= 1.03 * theory
    again = GPT.load(tmp_path / "m")
    kept = {id(t): t.nbytes for t in (*again.parameters(), *again.buffers())}
    rotary = sum(t.nbytes for n, t in again.named_buffers() if "rotary" in n)
    assert sum(kept.values()) - rotary == theory
    assert theory < 0.5 * 4 * again.num_parameters()


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="Linux lists its mappings")
def test_the_integers_are_mapped_not_copied(saved):
    model = GPT.load(saved)
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    ranges = [line.split()[0].split("-") for line in maps if line.endswith("model.safetensors")]
    for part in quantized_parts(model).values():
        for tensor in (part.packed, part.scale):
            place = tensor.data_ptr()
            assert any(int(start, 16) <= place < int(end, 16) for start, end in ranges)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q: q.update(version=2), "version 2; this program reads 1. Update the program"),
        (lambda q: q.pop("version"), "version None; this program reads 1"),
        (lambda q: q.update(partz=[]), "unknown key 'partz' in .*; did you mean 'parts'"),
        (lambda q: q["parts"][1].update(bits=3), "bits must be one of 4, 8; got '3'"),
        (lambda q: q["parts"][1].update(group_size=7), "group_size must be even, got 7"),
        (lambda q: q["parts"][1].update(nf4=True), "unknown key 'nf4'"),
        (lambda q: q["parts"][1].pop("bits"), "config.json: quantization: 'bits'"),
        (lambda q: q["parts"][1].update(modules="all"), "an object with a list of modules"),
        (lambda q: q["parts"][1]["modules"].append("final_norm"), "no layer 'final_norm'"),
        (lambda q: q["parts"][1]["modules"].append("a.b"), "no layer 'a.b' to hold integers"),
        (lambda q: q["parts"][1]["modules"].append(""), "no layer '' to hold integers"),
        (lambda q: q["parts"][1]["modules"].append(["x"]), "no layer .*to hold integers"),
        (lambda q: q["parts"][1]["modules"].append("token_embedding"), "no layer 'token_emb"),
        (lambda q: q["parts"][1]["modules"].pop(), "missing .*down_proj.weight; unexpected"),
        (lambda q: q["parts"][1].update(bits=8), "packed has shape .*expected"),
        (lambda q: q["parts"][1].update(zero_points=True), "missing .*zero"),
    ],
)  # fmt: skip
def test_a_description_that_does_not_fit_is_refused(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(ValueError, match=message):
        GPT.load(saved)


def test_a_description_of_another_kind_is_refused(saved):
    values = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    for value in (4, "int4", []):
        write_json(saved / "config.json", {**values, "quantization": value})
        write_manifest(saved, "model")
        with pytest.raises(ValueError, match="quantization must be an object, got"):
            GPT.load(saved)


def test_integers_stored_as_another_type_are_refused(saved, tmp_path):
    name = "blocks.1.attention.v_proj"
    for tail, dtype in (("packed", torch.float32), ("scale", torch.float32)):
        shutil.copytree(saved, tmp_path / tail)
        weights = load_file(saved / "model.safetensors")
        weights[f"{name}.{tail}"] = weights[f"{name}.{tail}"].to(dtype)
        save_file(weights, tmp_path / tail / "model.safetensors")
        write_manifest(tmp_path / tail, "model")
        with pytest.raises(ValueError, match=rf"{name}.{tail} has type torch.float32, expected"):
            GPT.load(tmp_path / tail)


def test_a_damaged_scale_is_named(saved):
    weights = load_file(saved / "model.safetensors")
    weights["token_embedding.scale"][3, 0] = float("inf")
    save_file(weights, saved / "model.safetensors")
    write_manifest(saved, "model")
    with pytest.raises(ValueError, match="token_embedding.scale holds NaN or infinite"):
        GPT.load(saved)
