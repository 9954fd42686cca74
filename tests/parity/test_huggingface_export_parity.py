"""What we write, transformers reads: the same logits, the same greedy tokens, the same bits."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from gpt_model.config import GPTConfig
from gpt_model.huggingface import model_from_huggingface
from gpt_model.huggingface_config import config_from_huggingface
from gpt_model.huggingface_export import config_to_huggingface, family_of
from gpt_model.huggingface_files import import_huggingface, load_huggingface
from gpt_model.huggingface_writing import save_huggingface
from gpt_model.model import GPT
from inference.generator import SamplingParams, TextGenerator
from tokenization.tokenizer import Tokenizer
from transformer_basics.rotary import RopeScaling

TOKENIZER = Tokenizer.characters(["abcdefghijklmnopqrstuvwxyzABCDEFGHIJ"])  # 37 tokens
SHAPE = {"vocab_size": 37, "max_seq_len": 40, "dim": 30, "n_layers": 3, "n_heads": 5}
BARE = {"qkv_bias": False, "proj_bias": False}
MODERN = {**SHAPE, "n_kv_heads": 1, "norm": "rmsnorm", "position": "rope", "gated_ffn": True}
MODERN |= {"activation": "silu", "tie_embeddings": False, "ffn_dim": 41, **BARE}
YARN = RopeScaling("yarn", 4.0, 10, beta_fast=20.0, attention_factor=1.3)
CASES = {
    "gpt2": SHAPE,
    "gpt2 untied": {**SHAPE, "activation": "gelu", "ffn_dim": 31, "tie_embeddings": False},
    "llama": MODERN,
    "llama, wide heads": {**MODERN, "head_dim": 8, "norm_eps": 1e-3, "tie_embeddings": True},
    "llama, biases everywhere": {**MODERN, "qkv_bias": True, "proj_bias": True},
    "llama, linear": {**MODERN, "rope_scaling": RopeScaling("linear", 2.0)},
    "llama, yarn": {**MODERN, "rope_theta": 500.0, "rope_scaling": YARN},
    "llama, yarn's own factor": {**MODERN, "rope_scaling": RopeScaling("yarn", 4.0, 10)},
    "llama, llama3": {**MODERN, "rope_scaling": RopeScaling("llama3", 8.0, 16)},
    "llama, tanh gelu": {**MODERN, "activation": "gelu_tanh", "rope_theta": 500.0},
    "mistral": {**MODERN, "sliding_window": 7},
    "qwen2": {**MODERN, "qkv_bias": True},
    "qwen2, window": {**MODERN, "qkv_bias": True, "sliding_window": 7, "head_dim": 8},
    "qwen3": {**MODERN, "qk_norm": True, "head_dim": 8, "n_layers": 2},
    "qwen3, window": {**MODERN, "qk_norm": True, "sliding_window": 6, "n_layers": 2},
}


def model(name):
    torch.manual_seed(1)
    ours = GPT(GPTConfig(**{**CASES[name], "init_std": 0.3}))
    with torch.no_grad():  # biases and norms start at 0 and 1: a mistake there would not show
        for parameter in ours.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return ours.eval()


@pytest.mark.parametrize("name", CASES)
def test_transformers_computes_what_we_compute(name, tmp_path):
    ours = model(name)
    assert save_huggingface(ours, tmp_path / "out", TOKENIZER) == name.split(",")[0].split()[0]
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.randint(37, (2, 33))
    with torch.no_grad():
        expected, found = theirs(ids).logits, ours(ids).logits
    assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())

    # greedy, with their cache and ours; a batch of unequal prompts, padded on the left by both
    prompts = ["abc", "hello", "z", "GHIJabcdefgh"]
    encoded = [TOKENIZER.encode(prompt) for prompt in prompts]
    longest = max(map(len, encoded))
    rows = torch.tensor([[0] * (longest - len(one)) + one for one in encoded])
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in encoded])
    written = theirs.generate(
        rows, attention_mask=mask, pad_token_id=0, do_sample=False, max_new_tokens=20
    )
    greedy = SamplingParams(temperature=0, max_new_tokens=20)
    for one, row in zip(
        TextGenerator(ours, TOKENIZER).generate(prompts, greedy), written, strict=True
    ):
        new = row[longest:].tolist()
        assert list(one.ids) == (new[: new.index(0) + 1] if 0 in new else new)


@pytest.mark.parametrize("name", ["gpt2", "gpt2 untied", "llama, wide heads", "qwen3, window"])
def test_there_and_back_are_the_same_bits_and_choices(name, tmp_path):
    ours = model(name)
    save_huggingface(ours, tmp_path / "first")
    again = import_huggingface(tmp_path / "first", tmp_path / "ours", None)
    kept = {"head_dim": ours.config.head_size, "ffn_dim": ours.config.ffn_size}
    kept["n_kv_heads"] = ours.config.kv_heads
    assert again.config.replace(**kept) == ours.config.replace(**kept)
    loaded = GPT.load(tmp_path / "ours")
    for key, tensor in ours.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    save_huggingface(loaded, tmp_path / "second", max_shard_bytes=9_000)
    first = load_file(tmp_path / "first" / "model.safetensors")
    index = json.loads(
        (tmp_path / "second" / "model.safetensors.index.json").read_text(encoding="utf-8")
    )
    assert len(set(index["weight_map"].values())) > 2
    assert set(index["weight_map"]) == set(first)
    for key, shard in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "second" / shard)[key], first[key]), key
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in first.values())
    sharded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "second")
    ids = torch.randint(37, (1, 9))
    expected = ours(ids).logits
    torch.testing.assert_close(sharded(ids).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_type_of_the_weights_is_kept(dtype, tmp_path):
    ours = model("llama").to(dtype)
    save_huggingface(ours, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert theirs.dtype == dtype
    assert import_huggingface(tmp_path / "out", tmp_path / "ours", None).dtype == dtype
    assert GPT.load(tmp_path / "ours").dtype == dtype


@pytest.mark.parametrize("spelling", ["old", "new"])
@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
def test_both_spellings_of_rope_are_the_same_function(kind, spelling, tmp_path):
    """A folder of theirs, its config rewritten in the spelling of transformers 4 or 5."""
    numbers = {"factor": 4.0}
    if kind in ("yarn", "llama3"):
        numbers["original_max_position_embeddings"] = 10
    if kind == "llama3":
        numbers |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    torch.manual_seed(1)
    shape = {"vocab_size": 37, "hidden_size": 30, "intermediate_size": 41, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(
        **{**shape, "num_attention_heads": 5, "num_key_value_heads": 1, "initializer_range": 0.3},
        max_position_embeddings=40,
        rope_parameters={"rope_type": kind, "rope_theta": 500.0, **numbers},
    )
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    if spelling == "old":
        del values["rope_parameters"]
        values |= {"rope_theta": 500.0, "rope_scaling": {"type": kind, **numbers}}
        (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    ours = load_huggingface(tmp_path)
    ids = torch.randint(37, (2, 40))  # all of the context
    with torch.no_grad():
        expected, found = theirs(ids).logits, ours(ids).logits
    assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())
    # written again, theirs is the same function once more
    save_huggingface(ours, tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, expected, atol=1e-5, rtol=1e-4)


QWEN = {"model_type": "qwen2", "vocab_size": 37, "hidden_size": 24, "intermediate_size": 41}
QWEN |= {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
QWEN |= {"max_position_embeddings": 40, "sliding_window": 7}


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({}, None),  # written, not switched on
        ({"max_window_layers": 2}, None),
        ({"use_sliding_window": True}, None),  # from layer 28, which is not there
        ({"use_sliding_window": True, "max_window_layers": 3}, None),
        ({"use_sliding_window": True, "max_window_layers": 0}, 7),
        ({"use_sliding_window": True, "max_window_layers": 2}, "refused"),
        ({"use_sliding_window": True, "layer_types": ["sliding_attention"] * 3}, 7),
        ({"use_sliding_window": False, "layer_types": ["full_attention"] * 3}, None),
        ({"model_type": "mistral"}, 7),
        ({"model_type": "mistral", "layer_types": ["full_attention"] * 3}, "refused"),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "llama"}, "refused"),
    ],
)
def test_windows_are_theirs_or_refused(changes, window):
    values = {**QWEN, **changes}
    if window == "refused":
        with pytest.raises(ValueError, match="same in every layer|sliding_window must be null"):
            config_from_huggingface(values)
        return
    ours = config_from_huggingface(values)
    assert ours.sliding_window == window
    torch.manual_seed(2)
    config = transformers.AutoConfig.for_model(**{**values, "initializer_range": 0.3})
    config._attn_implementation = "eager"
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    loaded = model_from_huggingface(values, theirs.state_dict())
    ids = torch.randint(37, (1, 20))
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "qwen2", "qwen3"])
def test_keys_that_are_not_written_have_the_defaults_of_transformers(family):
    """Only the sizes are given; every other choice is the family's own."""
    if family == "gpt2":
        given = {"vocab_size": 37, "n_positions": 40, "n_embd": 30, "n_layer": 2, "n_head": 5}
    else:
        given = {k: v for k, v in QWEN.items() if k not in ("model_type", "sliding_window")}
    given = {**given, "model_type": family}
    full = transformers.AutoConfig.for_model(**given).to_dict()
    ours, wanted = config_from_huggingface(given), config_from_huggingface(full)
    assert ours.replace(head_dim=ours.head_size) == wanted.replace(head_dim=wanted.head_size)


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        ("gpt2", {"token_shift": True}, "token_shift is True, not False"),
        ("gpt2", {"bigram_rows": 64}, "bigram_rows is 64, not None"),
        ("llama", {"logit_softcap": 15.0}, "logit_softcap is 15.0, not None"),
        ("llama", {"activation": "relu2"}, "activation is 'relu2', not one of gelu, gelu_tanh"),
        ("gpt2", {"norm_position": "post"}, "norm_position is 'post', not 'pre'"),
        ("gpt2", {"n_kv_heads": 1}, "n_kv_heads is 1, not n_heads = 5"),
        ("gpt2", {"head_dim": 8}, "head_dim is 8"),
        ("gpt2", {"gated_ffn": True}, "gated_ffn is True, not False"),
        ("gpt2", {"position": "rope"}, "position is 'rope', not 'learned'"),
        ("gpt2", {"sliding_window": 4}, "sliding_window is 4, not None"),
        ("gpt2", {"qkv_bias": False}, "qkv_bias is False, not True"),
        ("llama", {"position": "none"}, "position is 'none', not 'rope'"),
        ("llama", {"gated_ffn": False}, "gated_ffn is False, not True"),
        ("llama", {"proj_bias": True}, "qk_norm is False, qkv_bias is False, proj_bias is True"),
        ("llama", {"qk_norm": True, "qkv_bias": True}, "qk_norm is True, qkv_bias is True"),
        ("llama, biases everywhere", {"sliding_window": 5}, "sliding_window is 5 together with"),
        ("llama", {"rope_scaling": RopeScaling("ntk", 2.0)}, "rope_scaling is 'ntk'"),
        (
            "llama",
            {"rope_scaling": RopeScaling("dynamic", 1.0, 4)},
            r"max_seq_len is \d+, not the 4 of 'dynamic'",
        ),
        (
            "llama",
            {"rope_scaling": RopeScaling("linear", 2.0, attention_factor=2.0)},
            "attention_factor is 2.0 for 'linear'",
        ),
    ],
)
def test_a_model_of_no_family_is_refused_by_field_and_value(base, changes, message, tmp_path):
    config = GPTConfig(**{**CASES[base], **changes})
    with pytest.raises(ValueError, match=f"no Hugging Face family .*{message}"):
        family_of(config)
    with pytest.raises(ValueError, match=message):
        config_to_huggingface(config)
    with pytest.raises(ValueError, match=message):
        save_huggingface(GPT(config), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
