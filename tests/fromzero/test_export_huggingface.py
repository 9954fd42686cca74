"""`fromzero export`: a folder that transformers reads, or a refusal that names the field."""

import json
import shutil

import pytest
import torch
import transformers

from finetuning.adapter_files import save_adapter
from finetuning.lora import LoRAConfig, apply_lora
from fromzero.main import main
from gpt_model.config import preset
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer
from tokenization.tokenizer_settings import TokenizerSettings

TEXTS = ["the quick brown fox", "  two  spaces", "明月几时有？", "a\n\nb\t<|endoftext|> 🌕", ""]


def run(capsys, *words):
    code = main([*map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_transformers_reads_the_folder_model_and_tokenizer(tiny_model, tmp_path, capsys):
    code, out, err = run(capsys, "export", tiny_model, "--to", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "family     gpt2, float32" in out
    model, ours = GPT.load(tiny_model), Tokenizer.load(tiny_model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        ids = ours.encode(text, allow_special=True)
        assert tokenizer(text).input_ids == ids
        assert tokenizer.decode(ids) == ours.decode(ids) == text
    assert tokenizer.eos_token_id == ours.end_id == theirs.generation_config.eos_token_id
    ids = torch.tensor([ours.encode("the quick")])
    torch.testing.assert_close(theirs(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_character_tokenizer_travels_too(tmp_path, capsys):
    tokenizer = Tokenizer.characters(["".join(TEXTS)])
    torch.manual_seed(0)
    config = preset("gpt-micro", vocab_size=tokenizer.vocab_size, n_layers=1, dim=32)
    GPT(config).save(tmp_path / "ours", tokenizer)
    assert run(capsys, "export", tmp_path / "ours", "--to", tmp_path / "out")[0] == 0
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        ids = tokenizer.encode(text, allow_special=True)
        assert theirs(text).input_ids == ids
        assert theirs.decode(ids) == text


def test_what_was_imported_leaves_with_its_template_and_ends(tiny_model, tmp_path, capsys):
    """A chat model of theirs, in and out: the same rendering, the same ids, the same ends."""
    run(capsys, "export", tiny_model, "--to", tmp_path / "theirs")
    template = "{% for m in messages %}<|endoftext|>{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "theirs")
    ends = json.dumps({"eos_token_id": [0, 5], "do_sample": True, "temperature": 0.6})
    (tmp_path / "theirs" / "generation_config.json").write_text(ends, encoding="utf-8")
    settings = tmp_path / "theirs" / "tokenizer_config.json"
    values = json.loads(settings.read_text(encoding="utf-8"))
    evil = {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "model_max_length": 77}
    settings.write_text(json.dumps({**values, **evil}), encoding="utf-8")
    extra = tmp_path / "theirs" / "additional_chat_templates"
    extra.mkdir()
    (extra / "tool_use.jinja").write_text("{{ tools }}", encoding="utf-8")
    assert run(capsys, "import", tmp_path / "theirs", "--out", tmp_path / "ours")[0] == 0
    assert Tokenizer.load(tmp_path / "ours").settings.template() == template
    assert run(capsys, "export", tmp_path / "ours", "--to", tmp_path / "again")[0] == 0
    assert (tmp_path / "again" / "additional_chat_templates" / "tool_use.jinja").is_file()
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    talk = [{"role": "user", "content": "明月 fox"}]
    ids = again.apply_chat_template(talk)["input_ids"]
    assert ids == tokenizer.apply_chat_template(talk)["input_ids"]
    rendered = again.apply_chat_template(talk, tokenize=False)
    assert Tokenizer.load(tmp_path / "ours").encode(rendered, allow_special=True) == ids
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert model.generation_config.eos_token_id == [0, 5]
    assert model.config.eos_token_id == [0, 5]
    settings = (tmp_path / "again" / "tokenizer_config.json").read_text(encoding="utf-8")
    assert "auto_map" not in settings
    assert again.model_max_length == 77


def test_the_template_of_a_model_of_ours_leaves_too(tiny_model, tmp_path, capsys):
    plain = Tokenizer.load(tiny_model)
    tokens = {"eos_token": "<|endoftext|>"}
    template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    settings = TokenizerSettings(tokens, {"default": template})
    tokenizer = Tokenizer(plain.to_json(), settings=settings)
    GPT.load(tiny_model).save(tmp_path / "ours", tokenizer)
    assert run(capsys, "export", tmp_path / "ours", "--to", tmp_path / "out")[0] == 0
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    talk = [{"role": "user", "content": "明月"}, {"role": "assistant", "content": "fox"}]
    rendered = theirs.apply_chat_template(talk, tokenize=False)
    assert rendered == "明月<|endoftext|>fox<|endoftext|>"
    assert theirs.apply_chat_template(talk)["input_ids"] == plain.encode(
        rendered, allow_special=True
    )


def test_dtype_and_shard_size(tiny_model, tmp_path, capsys):
    code, out, _ = run(
        capsys,
        *("export", tiny_model, "--to", tmp_path / "out"),
        *("--dtype", "bf16", "--max-shard-size", "20kB"),
    )
    assert code == 0
    assert "bfloat16" in out
    files = list((tmp_path / "out").glob("model-*.safetensors"))
    assert len(files) > 1
    assert f"in {len(files)} files" in out
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert theirs.dtype == torch.bfloat16


def test_a_model_of_no_family_is_refused_in_one_line(tmp_path, capsys):
    tokenizer = Tokenizer.characters(["ab"])
    config = preset("modern-micro", vocab_size=tokenizer.vocab_size, n_layers=1, dim=32)
    GPT(config).save(tmp_path / "ours", tokenizer)
    code, out, err = run(capsys, "export", tmp_path / "ours", "--to", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "gated_ffn is False, not True; activation is 'relu2', not one of" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--format", "onnx"), "format must be one of huggingface"),
        (("--max-shard-size", "5 apples"), "max_shard_size must be a positive number"),
        (("--dtype", "int4"), "dtype must be one of auto, fp32, bf16"),
        (("--type", "q8_0"), "--type is of no use with --format huggingface; leave it out"),
        (("--format", "gguf", "--dtype", "bf16"), "--dtype is of no use with --format gguf"),
        (("--base", "{model}", "--adapter", "a"), "--adapter is of no use with --base"),
        (("--base", "{model}", "--without-tokenizer"), "--without-tokenizer is of no use with --b"),
        (("--base", "{model}"), "is not an adapter directory: adapter_config.json is missing"),
    ],
)
def test_mistakes_are_one_line(tiny_model, tmp_path, capsys, words, message):
    words = [word.format(model=tiny_model) for word in words]
    code, _, err = run(capsys, "export", tiny_model, "--to", tmp_path / "out", *words)
    assert code == 2
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_the_target_must_be_given_and_free(tiny_model, tmp_path, capsys):
    assert "--to must be given" in run(capsys, "export", tiny_model)[2]
    (tmp_path / "thesis.txt").write_text("years", encoding="utf-8")
    code, _, err = run(capsys, "export", tiny_model, "--to", tmp_path)
    assert code == 2
    assert "already exists" in err
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("layout", ["adapter", "run/adapter", "run/step-000010"])
def test_an_adapter_alone_asks_for_its_base(tmp_path, capsys, layout):
    """An adapter directory, a finished run, and one that was stopped."""
    (tmp_path / layout).mkdir(parents=True)
    (tmp_path / layout / "adapter_config.json").touch()
    given = tmp_path / layout.split("/")[0]
    code, _, err = run(capsys, "export", given, "--to", tmp_path / "out")
    assert code == 2
    assert f"{given} is a LoRA adapter, not a model; export the model it was trained on" in err
    assert "give that model with --base" in err
    words = ("--to", tmp_path / "out.gguf", "--format", "gguf")
    code, _, err = run(capsys, "export", given, *words)
    assert code == 2
    assert f"{given} is a LoRA adapter, not a model; export the model it was trained on" in err
    assert "--base" not in err
    code, _, err = run(capsys, "generate", "--model", given, "--prompt", "a")
    assert code == 2
    assert "is a LoRA adapter, not a model; give it with --adapter" in err


def test_the_target_is_asked_for_before_the_model_is_read(tiny_model, tmp_path, capsys):
    """Both formats: a damaged model would be noticed later."""
    shutil.copytree(tiny_model, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("years", encoding="utf-8")
    (tmp_path / "old.gguf").write_text("years", encoding="utf-8")
    for words in (("taken",), ("old.gguf", "--format", "gguf", "--without-tokenizer")):
        target = tmp_path / words[0]
        code, _, err = run(capsys, "export", tmp_path / "damaged", "--to", target, *words[1:])
        assert code == 2
        assert f"{target} already exists" in err
    assert (tmp_path / "old.gguf").read_text(encoding="utf-8") == "years"


def test_without_a_tokenizer_in_another_type(tiny_model, tmp_path, capsys):
    """A directory that has no tokenizer, and is changed on the way out."""
    shutil.copytree(tiny_model, tmp_path / "bare")
    model = GPT.load(tiny_model)
    model.save(tmp_path / "bare")
    assert not (tmp_path / "bare" / "tokenizer.json").exists()
    adapted = apply_lora(model, LoRAConfig(target=("up_proj",)))
    save_adapter(adapted, tmp_path / "adapter")
    words = ("export", tmp_path / "bare", "--to", tmp_path / "out", "--dtype", "bf16")
    assert run(capsys, *words)[0] == 2  # the tokenizer is asked for
    words += ("--adapter", tmp_path / "adapter", "--without-tokenizer")
    code, _, err = run(capsys, *words)
    assert (code, err) == (0, "")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert theirs.dtype == torch.bfloat16
    assert not (tmp_path / "out" / "tokenizer.json").exists()
