"""`fromzero export`: files that other programs read."""

import gguf
import pytest
import torch

from fromzero.main import main
from gpt_model.config import preset
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer

EXPORT = ["export", "--format", "gguf"]


def keys_of(path):
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def test_gguf_with_a_named_split(capsys, tiny_model, tmp_path):
    path = tmp_path / "new" / "m.gguf"
    options = ["--to", str(path), "--type", "q8_0", "--pretokenizer", "qwen35"]
    assert main([*EXPORT, str(tiny_model), *options]) == 0
    captured = capsys.readouterr()
    size = path.stat().st_size / 2**20
    assert captured.out == f"{path}: gpt2, 16 tensors, {size:.1f} MiB\n"
    assert captured.err.splitlines() == [
        "note: text is split as 'qwen35' does; some token ids differ from training"
    ]
    keys = keys_of(path)
    assert keys["general.name"] == "tiny"
    assert keys["general.file_type"] == 7
    assert keys["tokenizer.ggml.pre"] == "qwen35"
    assert len(keys["tokenizer.ggml.tokens"]) == 300


def test_gguf_of_ids_only(capsys, tiny_model, tmp_path):
    path = tmp_path / "m.gguf"
    assert main([*EXPORT, str(tiny_model), "--to", str(path), "--without-tokenizer"]) == 0
    assert "note: no tokenizer" in capsys.readouterr().err
    keys = keys_of(path)
    assert keys["tokenizer.ggml.model"] == "none"
    assert keys["general.file_type"] == 1  # f16 unless told otherwise


def test_an_adapter_is_merged(tiny_model, tmp_path):
    from finetuning.adapter_files import save_adapter
    from finetuning.lora import LoRAConfig, apply_lora, merge_lora

    model = GPT.load(tiny_model)
    apply_lora(model, LoRAConfig(target=("up_proj",)))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter)
    save_adapter(model, tmp_path / "adapter")
    path = tmp_path / "m.gguf"
    options = ["--to", str(path), "--type", "f32", "--adapter", str(tmp_path / "adapter")]
    assert main([*EXPORT, str(tiny_model), *options, "--without-tokenizer"]) == 0
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    merged = merge_lora(model).get_parameter("blocks.0.feed_forward.up_proj.weight")
    assert torch.equal(torch.tensor(tensors["blk.0.ffn_up.weight"]), merged.detach())


def test_gguf_of_characters_names_what_is_not_as_asked(capsys, tmp_path):
    torch.manual_seed(0)
    tokenizer = Tokenizer.characters(["床前明月光"])
    config = preset("gpt-micro", vocab_size=tokenizer.vocab_size, ffn_dim=100)
    GPT(config).save(tmp_path / "model", tokenizer)
    path = tmp_path / "m.gguf"
    assert main([*EXPORT, str(tmp_path / "model"), "--to", str(path), "--type", "q8_0"]) == 0
    notes = capsys.readouterr().err.splitlines()
    assert notes[0].startswith("note: 4 tensors have rows that are no multiple of 32")
    assert notes[0].endswith(
        "as f16: " + ", ".join(f"blk.{i}.ffn_down.weight" for i in range(3)) + ", …"
    )
    assert "drops or misreads characters" in notes[1]
    assert keys_of(path)["tokenizer.ggml.tokens"][1:] == sorted("床前明月光")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["way of splitting text", "gpt-2, smollm, llama-bpe, qwen2, qwen35"]),
        (["--type", "q4_0"], ["weight_type", "f32, f16, q8_0", "'q4_0'"]),
        (["--format", "onnx"], ["format", "gguf", "'onnx'"]),
        (["--pretokenizer", "qwen3"], ["pretokenizer", "qwen2", "'qwen3'"]),
        (["--pretokenizer", "gpt-2", "--without-tokenizer"], ["--without-tokenizer", "one of"]),
    ],
)
def test_bad_options_name_value_and_limit(capsys, tiny_model, tmp_path, options, words):
    path = tmp_path / "m.gguf"
    assert main([*EXPORT, str(tiny_model), "--to", str(path), *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("fromzero: error: ")
    for word in words:
        assert word in lines[-1]
    assert not path.exists()


def test_a_model_that_llama_cpp_cannot_compute(capsys, tmp_path):
    tokenizer = Tokenizer.characters(["ab"])
    config = preset("modern-micro", vocab_size=tokenizer.vocab_size, n_layers=1)
    GPT(config).save(tmp_path / "model", tokenizer)
    assert main([*EXPORT, str(tmp_path / "model"), "--to", str(tmp_path / "m.gguf")]) == 2
    assert "arcee, needs qk_norm False (got True)" in capsys.readouterr().err


def test_to_and_model_must_be_given(capsys, tiny_model, tmp_path):
    assert main([*EXPORT, str(tiny_model)]) == 2
    assert "--to" in capsys.readouterr().err
    assert main([*EXPORT, "--to", str(tmp_path / "m.gguf")]) == 2
    assert "directory" in capsys.readouterr().err.lower()
    assert main([*EXPORT, str(tmp_path / "none"), "--to", str(tmp_path / "m.gguf")]) == 2
    assert "does not exist" in capsys.readouterr().err
    (folder := tmp_path / "new").mkdir()
    assert main([*EXPORT, str(tiny_model), "--to", str(folder), "--without-tokenizer"]) == 2
    assert "is a folder, a file name is needed" in capsys.readouterr().err
