"""Models of the transformers library with random weights are the oracle: odd shapes on purpose."""

import pytest
import torch
import transformers

from gpt_model.config import GPTConfig
from gpt_model.huggingface import (
    model_from_huggingface,
    weights_from_huggingface,
    weights_to_huggingface,
)
from gpt_model.huggingface_config import config_from_huggingface
from gpt_model.model import GPT
from gpt_model.sizes import count_parameters

LLAMA = {
    "vocab_size": 37,
    "hidden_size": 30,
    "intermediate_size": 41,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "head_dim": 6,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}
ROPE = {"rope_theta": 5000.0, "rope_type": "default"}
CASES = {
    "gpt2": transformers.GPT2Config(
        vocab_size=37, n_positions=40, n_embd=30, n_layer=3, n_head=5, initializer_range=0.3
    ),
    "gpt2 wide ffn, exact gelu": transformers.GPT2Config(
        vocab_size=37,
        n_positions=40,
        n_embd=30,
        n_layer=2,
        n_head=3,
        n_inner=31,
        activation_function="gelu",
        layer_norm_epsilon=1e-3,
        initializer_range=0.3,
    ),
    "llama": transformers.LlamaConfig(**LLAMA, rope_parameters=ROPE),
    "llama tied": transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "llama3 scaling": transformers.LlamaConfig(
        **LLAMA,
        rope_parameters={
            "rope_theta": 500.0,
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "linear scaling": transformers.LlamaConfig(
        **LLAMA, rope_parameters={**ROPE, "rope_type": "linear", "factor": 2.0}
    ),
    "yarn scaling": transformers.LlamaConfig(
        **LLAMA,
        rope_parameters={
            "rope_theta": 500.0,
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 10,
        },
    ),
    "mistral window": transformers.MistralConfig(**{**LLAMA, "sliding_window": 7}),
    "qwen2 biases": transformers.Qwen2Config(
        **{**LLAMA, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 24}
    ),
    "qwen3 q/k norm, head_dim": transformers.Qwen3Config(**{**LLAMA, "head_dim": 8}),
}


def theirs(name):
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(CASES[name])
    with torch.no_grad():  # biases and norms start at 0 and 1: a mistake there would not show
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def convert(model):
    return model_from_huggingface(model.config.to_dict(), model.state_dict())


@pytest.mark.parametrize("name", CASES)
def test_logits_and_loss_equal(name):
    reference = theirs(name)
    ours = convert(reference)
    ids = torch.randint(37, (2, 33))
    with torch.no_grad():
        expected = reference(input_ids=ids, labels=ids)
        logits, _ = ours(ids)
        loss = ours(ids[:, :-1], ids[:, 1:]).loss
    assert (logits - expected.logits).abs().max() <= 1e-5 * max(1, expected.logits.abs().max())
    assert loss.item() == pytest.approx(expected.loss.item(), abs=1e-6, rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal(name):
    reference = theirs(name)
    ours = convert(reference)
    ids = torch.randint(37, (2, 20))
    reference(input_ids=ids, labels=ids).loss.backward()
    ours(ids[:, :-1], ids[:, 1:]).loss.backward()
    expected = weights_from_huggingface(
        {n: p.grad for n, p in reference.named_parameters()},
        reference.config.model_type,
        ours.config,
    )
    for parameter_name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[parameter_name], atol=2e-5, rtol=1e-3, msg=parameter_name
        )


@pytest.mark.parametrize("name", CASES)
def test_left_padded_batches_equal(name):
    reference = theirs(name)
    ours = convert(reference)
    ids = torch.randint(37, (2, 12))
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = reference(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        logits = ours(ids, attention_mask=mask.bool()).logits
    torch.testing.assert_close(logits[0, 5:], expected[0, 5:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits[1], expected[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_there_and_back_is_the_same_bits_and_loads_strictly(name):
    reference = theirs(name)
    ours = convert(reference)
    back = weights_to_huggingface(ours, reference.config.model_type)
    state = reference.state_dict()
    assert set(back) == set(state)
    assert all(torch.equal(back[key], state[key]) for key in state)
    other = transformers.AutoModelForCausalLM.from_config(CASES[name])
    other.load_state_dict(back, strict=True)


def test_a_saved_directory_of_theirs_is_read(tmp_path):
    """Single safetensors file: tied weights are stored once, GPT-2 without its prefix too."""
    from safetensors.torch import load_file

    reference = theirs("gpt2")
    reference.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    ours = model_from_huggingface(reference.config.to_dict(), stored)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 40, 40)  # the causal mask of old files
    again = model_from_huggingface(reference.config.to_dict(), bare)
    ids = torch.randint(37, (1, 9))
    assert torch.equal(ours(ids).logits, again(ids).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type must be one of gpt2, llama.*; got 'mamba'"),
        ({"model_type": None}, "model_type must be one of gpt2"),
        (
            {"attention_bias": True},
            "attention_bias and mlp_bias must be false .* or both true; got",
        ),
        ({"attn_logit_softcapping": 30.0}, "unknown keys: attn_logit_softcapping"),
        ({"hidden_act": "mish"}, "activation must be one of .*; got 'mish'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "same in every layer"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "rope_type must be one of"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "short": 1}},
            "of kind 'linear' has unknown keys: short",
        ),
    ],
)
def test_what_would_change_the_arithmetic_is_refused(changes, message):
    values = {**CASES["llama"].to_dict(), **changes}
    with pytest.raises(ValueError, match=message):
        config_from_huggingface(values)


def test_gpt2_switches_that_change_scores_are_refused():
    values = CASES["gpt2"].to_dict()
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        with pytest.raises(ValueError, match=f"{key} must be False for a gpt2 model, got True"):
            config_from_huggingface({**values, key: True})
    assert config_from_huggingface(values).activation == "gelu_tanh"


def test_weights_that_do_not_fit_are_listed():
    reference = theirs("gpt2")
    state = reference.state_dict()
    del state["transformer.h.1.ln_2.bias"]
    state["transformer.h.9.ln_2.bias"] = torch.zeros(30)
    with pytest.raises(ValueError, match=r"missing blocks.1.ffn_norm.bias; unexpected h.9.ln_2"):
        model_from_huggingface(reference.config.to_dict(), state)


def test_a_model_with_parts_of_no_family_is_not_exported():
    config = GPTConfig(vocab_size=5, max_seq_len=4, dim=4, n_layers=1, n_heads=1, norm="rmsnorm")
    with pytest.raises(ValueError, match="llama model has no place for position_embedding.weight"):
        weights_to_huggingface(GPT(config), "llama")


COMMON = {"use_cache": True, "torch_dtype": "bfloat16", "transformers_version": "4.43.1"}
COMMON |= {"initializer_range": 0.02, "attention_dropout": 0.0, "hidden_act": "silu"}
REAL = {  # the configurations as they are published, and how many parameters that makes
    "gpt2-xl": (
        {"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"]}
        | {"attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256}
        | {"initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2"}
        | {"n_ctx": 1024, "n_embd": 1600, "n_head": 25, "n_layer": 48, "n_positions": 1024}
        | {"output_past": True, "resid_pdrop": 0.1, "summary_activation": None}
        | {"summary_first_dropout": 0.1, "summary_proj_to_labels": True, "n_special": 0}
        | {"summary_type": "cls_index", "summary_use_proj": True, "predict_special_tokens": True}
        | {"task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}}
        | {"vocab_size": 50257},
        1_557_611_200,
    ),
    "Llama-2-7b": (
        {**COMMON, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
        | {"bos_token_id": 1, "eos_token_id": 2, "hidden_size": 4096, "intermediate_size": 11008}
        | {"max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 32}
        | {"num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05}
        | {"rope_scaling": None, "tie_word_embeddings": False, "vocab_size": 32000},
        6_738_415_616,
    ),
    "Llama-3.2-1B": (
        {**COMMON, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "head_dim": 64}
        | {"attention_bias": False, "bos_token_id": 128000, "eos_token_id": [128001, 128008]}
        | {"hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072}
        | {"mlp_bias": False, "num_attention_heads": 32, "num_hidden_layers": 16}
        | {"num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05}
        | {
            "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0}
            | {"original_max_position_embeddings": 8192, "rope_type": "llama3"}
        }
        | {"rope_theta": 500000.0, "tie_word_embeddings": True, "vocab_size": 128256},
        1_235_814_400,
    ),
    "Mistral-7B-v0.1": (
        {**COMMON, "architectures": ["MistralForCausalLM"], "model_type": "mistral"}
        | {"bos_token_id": 1, "eos_token_id": 2, "hidden_size": 4096, "intermediate_size": 14336}
        | {"max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 32}
        | {"num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0}
        | {"sliding_window": 4096, "tie_word_embeddings": False, "vocab_size": 32000},
        7_241_732_096,
    ),
    "Qwen2.5-0.5B": (
        {**COMMON, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
        | {"bos_token_id": 151643, "eos_token_id": 151643, "hidden_size": 896}
        | {"intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24}
        | {"num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2}
        | {"rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768}
        | {"tie_word_embeddings": True, "use_mrope": False, "use_sliding_window": False}
        | {"vocab_size": 151936},
        494_032_768,
    ),
    "Qwen3-0.6B": (
        {**COMMON, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128}
        | {"attention_bias": False, "bos_token_id": 151643, "eos_token_id": 151645}
        | {"hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960}
        | {"max_window_layers": 28, "num_attention_heads": 16, "num_hidden_layers": 28}
        | {"num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None}
        | {"rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True}
        | {"use_sliding_window": False, "vocab_size": 151936},
        596_049_920,
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_published_configurations_are_understood(name):
    values, total = REAL[name]
    ours = config_from_huggingface(values)
    assert count_parameters(ours).total == total
    if name.startswith("Mistral"):
        assert ours.sliding_window == 4096
    else:
        assert ours.sliding_window is None
