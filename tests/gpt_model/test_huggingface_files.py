"""Folders of other people: whole, in pieces, damaged, hostile; and how much memory they take."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt_model.config import GPTConfig
from gpt_model.huggingface_files import import_huggingface, load_huggingface
from gpt_model.huggingface_writing import save_huggingface
from gpt_model.model import GPT

ROOT = Path(__file__).resolve().parents[2]
INDEX = "model.safetensors.index.json"
SHAPE = {"vocab_size": 37, "max_seq_len": 16, "dim": 12, "n_layers": 2, "n_heads": 3}


def edit_json(path, **changes):
    path.write_text(
        json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8"
    )


def edit_weights(path, change):
    tensors = load_file(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture
def folder(tmp_path):
    """A whole GPT-2 checkpoint in one file."""
    torch.manual_seed(0)
    save_huggingface(GPT(GPTConfig(**SHAPE)), tmp_path / "theirs")
    return tmp_path / "theirs"


@pytest.fixture
def shards(tmp_path):
    """The same in several files."""
    torch.manual_seed(0)
    save_huggingface(GPT(GPTConfig(**SHAPE)), tmp_path / "shards", max_shard_bytes=4000)
    return tmp_path / "shards"


def refused(folder, tmp_path, message):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=message):
        import_huggingface(folder, out, None)
    assert not out.exists()
    assert not list(tmp_path.glob("*.tmp-*"))


def test_one_file_and_several_hold_the_same(folder, shards):
    one, several = load_huggingface(folder).state_dict(), load_huggingface(shards).state_dict()
    assert all(torch.equal(one[name], several[name]) for name in one)


def test_shards_are_filled_and_only_a_bigger_tensor_exceeds_them(shards):
    contents = [load_file(path) for path in sorted(shards.glob("model-*.safetensors"))]
    sizes = [sum(tensor.nbytes for tensor in part.values()) for part in contents]
    assert all(size <= 4000 or len(part) == 1 for size, part in zip(sizes, contents, strict=True))
    assert len(sizes) < sum(map(len, contents)) / 2  # small ones travel together


def test_every_missing_shard_is_named(shards, tmp_path):
    names = sorted(path.name for path in shards.glob("model-*.safetensors"))
    for name in (names[0], names[2]):
        (shards / name).unlink()
    message = f"2 of {len(names)} shards are missing: {names[0]}, {names[2]}$"
    refused(shards, tmp_path, message)


@pytest.mark.parametrize(
    "name",
    ["../a.safetensors", "/etc/a.safetensors", "sub/a.safetensors", "..\\a.safetensors"]
    + ["C:a.safetensors", "..", "", 7, None],
)
def test_an_index_that_points_outside_its_folder_is_refused(shards, tmp_path, name):
    places = json.loads((shards / INDEX).read_text(encoding="utf-8"))["weight_map"]
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors")
    edit_json(shards / INDEX, weight_map={**places, "transformer.wte.weight": name})
    refused(shards, tmp_path, "transformer.wte.weight in .*, outside its folder")


def test_other_damage_of_an_index(shards, tmp_path):
    places = json.loads((shards / INDEX).read_text(encoding="utf-8"))["weight_map"]
    edit_json(shards / INDEX, weight_map={**places, "wte": "pytorch_model.bin"})
    refused(shards, tmp_path, "'pytorch_model.bin' is not a .safetensors file")
    edit_json(
        shards / INDEX, weight_map={**places, "transformer.ghost": places[next(iter(places))]}
    )
    refused(shards, tmp_path, f"lacks transformer.ghost, which {INDEX} lists")
    edit_json(shards / INDEX, weight_map=[])
    refused(shards, tmp_path, "damaged: it has no weight_map")


def test_a_tensor_in_two_shards_is_refused(shards, tmp_path):
    first, second, *_ = sorted(shards.glob("model-*.safetensors"))
    name = next(iter(load_file(first)))
    edit_weights(second, lambda tensors: tensors.update({name: torch.zeros(2)}))
    refused(shards, tmp_path, "repeats tensors of another shard: transformer")


def test_missing_extra_and_misshapen_tensors_are_all_listed(folder, tmp_path):
    def damage(tensors):
        del tensors["transformer.h.1.ln_2.bias"]
        tensors["transformer.h.2.ln_2.bias"] = torch.zeros(12)
        tensors["transformer.wte.weight"] = torch.zeros(38, 12)

    edit_weights(folder / "model.safetensors", damage)
    refused(
        folder,
        tmp_path,
        r"missing blocks.1.ffn_norm.bias; unexpected h.2.ln_2.bias; "
        r"token_embedding.weight has shape \(38, 12\), expected \(37, 12\)",
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused(folder, tmp_path, value):
    edit_weights(
        folder / "model.safetensors",
        lambda tensors: tensors["transformer.h.0.ln_1.weight"].__setitem__(3, value),
    )
    refused(folder, tmp_path, "blocks.0.attention_norm.weight holds NaN or infinite values")


def test_integers_are_no_weights(folder, tmp_path):
    name = "transformer.h.0.mlp.c_fc.weight"
    edit_weights(
        folder / "model.safetensors", lambda tensors: tensors.update({name: tensors[name].char()})
    )
    refused(folder, tmp_path, r"up_proj.weight \(torch.int8\); quantized checkpoints are not")


def test_a_truncated_file_is_named(folder, tmp_path):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    refused(folder, tmp_path, "model.safetensors is damaged")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mixtral"}, "model_type must be one of gpt2, llama, mistral, qwen2, qwen3"),
        ({"auto_map": {"AutoModel": "modeling.Evil"}}, "auto_map must be None for a gpt2 model"),
        ({"quantization_config": {"bits": 4}}, "quantization_config must be None"),
        ({"n_layer": None}, "n_layers must be an integer"),
        ({"embedding_multiplier": 2.0}, "unknown keys: embedding_multiplier"),
    ],
)
def test_configurations_that_we_cannot_compute_are_refused(folder, tmp_path, changes, message):
    edit_json(folder / "config.json", **changes)
    (folder / "modeling.py").write_text("raise SystemExit('executed')", encoding="utf-8")
    refused(folder, tmp_path, message)


def test_a_size_that_is_not_written_is_named(folder, tmp_path):
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for key in ("n_layer", "vocab_size"):
        del values[key]
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    refused(folder, tmp_path, "config.json of a gpt2 model lacks vocab_size, n_layer")


def test_only_pickled_weights_are_refused_with_advice(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, tmp_path, "pytorch_model.bin is a pickle, which can run code .* convert it")
    (folder / "pytorch_model.bin").unlink()
    refused(folder, tmp_path, f"holds no weights: neither model.safetensors nor {INDEX}")


def test_what_is_no_checkpoint_says_what_it_is(folder, tmp_path):
    import_huggingface(folder, tmp_path / "ours", None)
    refused(tmp_path / "ours", tmp_path, "is a model directory of this project already")
    refused(tmp_path / "nowhere", tmp_path, "is not a folder with a Hugging Face checkpoint")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path, "config.json is missing")
    with pytest.raises(ValueError, match="is a Hugging Face checkpoint; .*fromzero import"):
        GPT.load(folder)


def test_nothing_is_overwritten(folder, tmp_path):
    precious = tmp_path / "documents"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(ValueError, match="documents already exists; give another name"):
        import_huggingface(folder, precious, None)
    with pytest.raises(ValueError, match="documents already exists; give another name"):
        save_huggingface(GPT(GPTConfig(**SHAPE)), precious)
    assert [path.name for path in precious.iterdir()] == ["thesis.txt"]


def test_a_broken_model_is_not_exported(tmp_path):
    model = GPT(GPTConfig(**SHAPE))
    model.blocks[1].attention.out_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="h.1.attn.c_proj.weight holds NaN"):
        save_huggingface(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_small_files_travel_along(folder, tmp_path):
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}', encoding="utf-8")
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    (folder / "modeling_evil.py").write_text("raise SystemExit", encoding="utf-8")
    model = import_huggingface(folder, tmp_path / "ours", None)
    save_huggingface(model, tmp_path / "again", carried_from=tmp_path / "ours")
    for name in ("generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert not (tmp_path / "ours" / "modeling_evil.py").exists()


PEAK = """
import re, sys
from pathlib import Path
from gpt_model.huggingface_files import import_huggingface
from gpt_model.huggingface_writing import save_huggingface
from gpt_model.model import GPT
def kilobytes(name):
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(name + r":\\s+(\\d+)", status)[1])
def peak(work):
    before = kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget earlier peaks
    work()
    return (kilobytes("VmHWM") - before) * 1024
folder = Path(sys.argv[1])
for name in ("tiny", "llama", "gpt2"):  # the first shows what torch needs for itself, once
    ours, again = folder / f"{name}-ours", folder / f"{name}-again"
    imported = peak(lambda: import_huggingface(folder / name, ours, None))
    exported = peak(lambda: save_huggingface(GPT.load(ours), again, max_shard_bytes=10_000_000))
    print(imported, exported)
"""
LLAMA = {"norm": "rmsnorm", "position": "rope", "gated_ffn": True, "activation": "silu"}
LLAMA |= {"qkv_bias": False, "proj_bias": False}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
def test_a_big_model_is_never_in_memory_twice(tmp_path):
    """In sizes of the file. The mapped file counts, although its pages can be taken back."""
    big = {**SHAPE, "vocab_size": 999, "dim": 576, "n_layers": 5}
    for name, shape in {"tiny": SHAPE, "gpt2": big, "llama": {**big, **LLAMA}}.items():
        save_huggingface(GPT(GPTConfig(**shape)), tmp_path / name)
    size = (tmp_path / "llama" / "model.safetensors").stat().st_size
    assert size > 78_000_000
    done = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    _, llama, gpt2 = ([int(n) / size for n in line.split()] for line in done.stdout.splitlines())
    assert 0.8 < llama[0] < 1.3  # what is mapped, and nothing else
    assert 0.8 < llama[1] < 1.3
    assert 1.5 < gpt2[0] < 2.3  # what is mapped, and its matrices turned round
    assert 0.8 < gpt2[1] < 1.5  # a shard at a time is turned round
