"""A GGUF file read back with the gguf package, tensor by tensor and key by key."""

import sys

import gguf
import numpy as np
import pytest
import torch

from gpt_model.config import GPTConfig, preset
from gpt_model.gguf_architecture import ARCHITECTURES, architecture_of
from gpt_model.gguf_export import export_gguf
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer
from transformer_basics.rotary import RopeScaling

SHAPE = {
    "vocab_size": 37,
    "max_seq_len": 40,
    "dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "ffn_dim": 96,
}
CONFIGS = {name: GPTConfig(**SHAPE, **fields) for name, fields in ARCHITECTURES.items()}
CONFIGS["gpt2"] = GPTConfig(**{**SHAPE, "n_kv_heads": None})
LLAMA = CONFIGS["llama"]


def random_model(config):
    torch.manual_seed(0)
    model = GPT(config).eval()
    for parameter in model.parameters():  # norms and biases too: ones and zeros hide a swap
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def read(path):
    """Every tensor of the file (name → kind, shape as we write it, array) and every key."""
    reader = gguf.GGUFReader(path)
    tensors = {
        tensor.name: (
            tensor.tensor_type.name,
            tuple(int(n) for n in reversed(tensor.shape)),
            np.array(tensor.data),
        )
        for tensor in reader.tensors
    }
    return tensors, {name: field.contents() for name, field in reader.fields.items()}


def neighbours(matrix, n_heads):
    """The order of llama's rows, said once more: head by head, a_i then b_i."""
    size = len(matrix) // n_heads
    rows = [
        head * size + half * size // 2 + pair
        for head in range(n_heads)
        for pair in range(size // 2)
        for half in range(2)
    ]
    return matrix[rows]


def expected(model, architecture):
    """What must be in the file, in float32, named by hand."""
    ours = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    config = model.config
    names = {"token_embd": "token_embedding", "output_norm": "final_norm"}
    if config.position == "learned":
        names["position_embd"] = "position_embedding"
    if not config.tie_embeddings:
        names["output"] = "lm_head"
    for i in range(config.n_layers):
        pieces = {
            "attn_norm": "attention_norm",
            "attn_q": "attention.q_proj",
            "attn_k": "attention.k_proj",
            "attn_v": "attention.v_proj",
            "attn_q_norm": "attention.q_norm",
            "attn_k_norm": "attention.k_norm",
            "attn_output": "attention.out_proj",
            "ffn_norm": "ffn_norm",
            "ffn_gate": "feed_forward.gate_proj",
            "ffn_up": "feed_forward.up_proj",
            "ffn_down": "feed_forward.down_proj",
        }
        names |= {f"blk.{i}.{theirs}": f"blocks.{i}.{mine}" for theirs, mine in pieces.items()}
    found = {
        f"{theirs}.{ending}": ours[f"{mine}.{ending}"]
        for theirs, mine in names.items()
        for ending in ("weight", "bias")
        if f"{mine}.{ending}" in ours
    }
    for i in range(config.n_layers):
        if architecture == "gpt2":
            for ending in ("weight", "bias"):
                parts = [found.pop(f"blk.{i}.attn_{part}.{ending}") for part in "qkv"]
                found[f"blk.{i}.attn_qkv.{ending}"] = np.concatenate(parts)
        if architecture in ("llama", "arcee"):
            for part, heads in (("q", config.n_heads), ("k", config.kv_heads)):
                name = f"blk.{i}.attn_{part}.weight"
                found[name] = neighbours(found[name], heads)
    return found


@pytest.mark.parametrize("weight_type", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_reads_back(tmp_path, name, tied, weight_type):
    model = random_model(CONFIGS[name].replace(tie_embeddings=tied))
    summary = export_gguf(model, tmp_path / "m.gguf", weight_type=weight_type)
    tensors, keys = read(tmp_path / "m.gguf")
    wanted = expected(model, name)
    assert summary.architecture == keys["general.architecture"] == name
    assert tensors.keys() == wanted.keys()
    for tensor, (kind, shape, data) in tensors.items():
        whole = wanted[tensor]
        assert shape == whole.shape, tensor
        small = whole.ndim == 1 or tensor == "position_embd.weight"
        assert kind == ("F32" if small else weight_type.upper()), tensor
        oracle = gguf.quants.quantize(whole, gguf.GGMLQuantizationType[kind])
        np.testing.assert_array_equal(data, oracle, err_msg=tensor)
    assert summary.n_tensors == len(wanted)
    assert summary.n_bytes == (tmp_path / "m.gguf").stat().st_size


def test_metadata_is_complete(tmp_path):
    config = CONFIGS["qwen3"].replace(head_dim=8, rope_theta=5e5, norm_eps=1e-6)
    export_gguf(random_model(config), tmp_path / "my.gguf", weight_type="q8_0")
    keys = read(tmp_path / "my.gguf")[1]
    wanted = {
        "general.name": "my",
        "general.type": "model",
        "general.file_type": 7,
        "general.quantization_version": 2,
        "qwen3.context_length": 40,
        "qwen3.embedding_length": 64,
        "qwen3.block_count": 2,
        "qwen3.feed_forward_length": 96,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 8,
        "qwen3.attention.value_length": 8,
        "qwen3.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "qwen3.rope.dimension_count": 8,
        "qwen3.rope.freq_base": 5e5,
        "qwen3.vocab_size": 37,
        "tokenizer.ggml.model": "none",
    }
    assert {name: keys[name] for name in wanted} == wanted
    export_gguf(random_model(CONFIGS["gpt2"]), tmp_path / "g.gguf", name="a name")
    keys = read(tmp_path / "g.gguf")[1]
    assert keys["general.name"] == "a name"
    assert keys["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    assert not [name for name in keys if "rope" in name or "rms" in name]


def test_rope_scalings_have_their_keys(tmp_path):
    def keys_of(scaling):
        config = LLAMA.replace(rope_scaling=scaling.to_dict(), rope_theta=500.0)
        export_gguf(random_model(config), tmp_path / "m.gguf")
        tensors, keys = read(tmp_path / "m.gguf")
        found = {k.partition("rope.")[2]: v for k, v in keys.items() if ".rope." in k}
        return found, tensors

    plain = {"dimension_count": 16, "freq_base": 500.0}
    found, _ = keys_of(RopeScaling("linear", 4.0))
    assert found == {**plain, "scaling.type": "linear", "scaling.factor": 4.0}
    found, _ = keys_of(RopeScaling("ntk", 4.0))
    assert found == {**plain, "freq_base": pytest.approx(500.0 * 4 ** (16 / 14))}
    length = LLAMA.max_seq_len  # dynamic: nothing up to the trained length, then as ntk
    assert keys_of(RopeScaling("dynamic", 2.0, length))[0] == plain
    found, _ = keys_of(RopeScaling("dynamic", 1.0, length // 4))
    assert found == {**plain, "freq_base": pytest.approx(500.0 * 4 ** (16 / 14))}
    found, _ = keys_of(RopeScaling("yarn", 4.0, 16, attention_factor=2.0))
    assert found == {
        **plain,
        "scaling.type": "yarn",
        "scaling.factor": 4.0,
        "scaling.original_context_length": 16,
        "scaling.yarn_beta_fast": 32.0,
        "scaling.yarn_beta_slow": 1.0,
        "scaling.attn_factor": pytest.approx(2.0 / (0.1 * np.log(4.0) + 1.0)),
    }
    found, tensors = keys_of(RopeScaling("llama3", 8.0, 64))
    assert found == plain
    kind, shape, ratio = tensors["rope_freqs.weight"]
    assert (kind, shape) == ("F32", (8,))
    assert ratio[0] == 1.0
    assert ratio[-1] == 8.0


def test_gpt2_without_biases_gets_zeros(tmp_path):
    model = random_model(CONFIGS["gpt2"].replace(qkv_bias=False, proj_bias=False))
    export_gguf(model, tmp_path / "m.gguf", weight_type="f32")
    tensors = read(tmp_path / "m.gguf")[0]
    biases = {name: data for name, (_, _, data) in tensors.items() if name.endswith(".bias")}
    assert {name.rpartition("blk.0.")[2] for name in biases if "blk.1" not in name} == {
        *("attn_norm.bias", "attn_qkv.bias", "attn_output.bias"),
        *("ffn_norm.bias", "ffn_up.bias", "ffn_down.bias", "output_norm.bias"),
    }
    assert not any(data.any() for data in biases.values())


def test_rows_that_are_no_multiple_of_32_stay_f16_and_are_named(tmp_path):
    model = random_model(LLAMA.replace(ffn_dim=41))
    summary = export_gguf(model, tmp_path / "m.gguf", weight_type="q8_0")
    kinds = {name: kind for name, (kind, _, _) in read(tmp_path / "m.gguf")[0].items()}
    assert summary.fallbacks == ("blk.0.ffn_down.weight", "blk.1.ffn_down.weight")
    assert {name for name, kind in kinds.items() if kind == "F16"} == set(summary.fallbacks)
    assert kinds["token_embd.weight"] == "Q8_0"  # 37 rows, of 64 numbers each
    assert export_gguf(model, tmp_path / "m.gguf", weight_type="f16").fallbacks == ()


def test_bfloat16_weights_lose_nothing_as_f32(tmp_path):
    model = random_model(LLAMA).to(torch.bfloat16)
    export_gguf(model, tmp_path / "m.gguf", weight_type="f32")
    data = read(tmp_path / "m.gguf")[0]["token_embd.weight"][2]
    np.testing.assert_array_equal(data, model.token_embedding.weight.detach().float().numpy())


@pytest.mark.parametrize(
    ("base", "changes", "words"),
    [
        ("llama", {"qk_norm": True, "activation": "gelu"}, ["activation 'silu' (got 'gelu')"]),
        ("llama", {"logit_softcap": 30.0}, ["llama, needs logit_softcap None (got 30.0)"]),
        ("llama", {"norm_position": "post"}, ["norm_position 'pre' (got 'post')"]),
        ("llama", {"sliding_window": 39}, ["sliding_window None or >= max_seq_len 40 (got 39)"]),
        ("llama", {"bigram_rows": 5}, ["bigram_rows None (got 5)"]),
        ("llama", {"token_shift": True}, ["token_shift False (got True)"]),
        ("llama", {"position": "none"}, ["position 'rope' (got 'none')"]),
        ("llama", {"proj_bias": True}, ["proj_bias False (got True)"]),
        ("gpt2", {"activation": "gelu"}, ["gpt2, needs activation 'gelu_tanh' (got 'gelu')"]),
        ("gpt2", {"position": "sinusoidal"}, ["position 'learned' (got 'sinusoidal')"]),
        ("gpt2", {"head_dim": 10}, ["head_dim 16 (got 10)"]),
        ("qwen2", {"head_dim": 10}, ["head_dim 16 (got 10)"]),
        ("qwen3", {"qkv_bias": True}, ["(got True)"]),
        (
            "qwen3",
            {"rope_scaling": RopeScaling("llama3", 8.0, 16).to_dict()},
            ["rope_scaling linear, ntk or yarn (got llama3)"],
        ),
    ],
)
def test_what_llama_cpp_cannot_compute_is_refused_by_field(tmp_path, base, changes, words):
    with pytest.raises(ValueError, match="no architecture") as caught:
        export_gguf(random_model(CONFIGS[base].replace(**changes)), tmp_path / "m.gguf")
    for word in words:
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_window_as_long_as_the_context_is_no_window():
    assert architecture_of(LLAMA.replace(sliding_window=40)) == "llama"
    assert architecture_of(preset("gpt2-xl")) == "gpt2"


def test_bad_values_leave_the_old_file(tmp_path):
    path = tmp_path / "m.gguf"
    model = random_model(LLAMA)
    export_gguf(model, path)
    before = path.read_bytes()
    norm = "blocks.1.ffn_norm.weight"
    for value, weight_type, word in ((float("nan"), "f32", "NaN"), (1e30, "q8_0", "does not fit")):
        broken = random_model(LLAMA)
        name = norm if word == "NaN" else "blocks.1.feed_forward.up_proj.weight"
        broken.get_parameter(name).data.view(-1)[3] = value
        gguf_name = "blk.1.ffn_norm" if word == "NaN" else "blk.1.ffn_up"
        with pytest.raises(ValueError, match=f"{gguf_name}.weight.*{word}"):
            export_gguf(broken, path, weight_type=weight_type)
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]


def test_a_changed_model_a_bad_type_and_a_big_tokenizer_are_refused(tmp_path):
    model = random_model(LLAMA)
    with pytest.raises(ValueError, match="weight_type must be one of.*q8_0.*'q4_0'"):
        export_gguf(model, tmp_path / "m.gguf", weight_type="q4_0")
    tokenizer = Tokenizer.characters([bytes(range(33, 127)).decode()])
    with pytest.raises(ValueError, match="the tokenizer has 95 tokens.*vocab_size is 37"):
        export_gguf(model, tmp_path / "m.gguf", tokenizer=tokenizer)
    model.blocks[0].extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"no place for blocks.0.extra.bias, .*merge LoRA"):
        export_gguf(model, tmp_path / "m.gguf")


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install 'llm-from-zero\[gguf\]'"):
        export_gguf(random_model(LLAMA), tmp_path / "m.gguf")


def test_memory_holds_one_tensor_not_the_model(tmp_path):
    """Numpy's memory is what tracemalloc sees: the encoded tensors."""
    import tracemalloc

    model = random_model(LLAMA.replace(n_layers=12, dim=256, ffn_dim=512)).to(torch.bfloat16)
    total = sum(p.numel() for p in model.parameters()) * 2
    tracemalloc.start()
    export_gguf(model, tmp_path / "m.gguf", weight_type="f16")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "m.gguf").stat().st_size > total
    assert peak < total / 8
