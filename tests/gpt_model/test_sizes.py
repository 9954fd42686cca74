import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_model.config import PRESETS, GPTConfig
from gpt_model.model import GPT
from gpt_model.sizes import (
    count_parameters,
    flops_per_token,
    human,
    inference_memory,
    kv_bytes_per_token,
    matmul_parameters,
    preset_table,
    training_memory,
)
from training.optimizer import build_optimizer
from transformer_basics.recomputation import KINDS

KNOWN = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}


@pytest.mark.parametrize("name", list(PRESETS))
def test_formula_equals_the_model_built_on_the_meta_device(name):
    config = PRESETS[name]
    model = GPT.on_meta(config)
    count = count_parameters(config)
    assert count.total == model.num_parameters() == KNOWN.get(name, count.total)
    parts = {"token_embedding": 0, "position_embedding": 0, "attention": 0, "feed_forward": 0}
    parts |= {"norms": 0, "lm_head": 0}
    for parameter_name, parameter in model.named_parameters():
        part = next(
            (
                p
                for p in ("attention.", "feed_forward.", "embedding", "lm_head")
                if p in parameter_name
            ),
            "norms",
        )
        part = parameter_name.split(".")[0] if part == "embedding" else part.rstrip(".")
        parts[part] += parameter.numel()
    assert count.by_part() == {part: number for part, number in parts.items() if number}


@given(
    st.builds(
        GPTConfig,
        vocab_size=st.integers(1, 40),
        max_seq_len=st.integers(1, 20),
        dim=st.sampled_from([12, 24]),
        n_layers=st.integers(1, 3),
        n_heads=st.sampled_from([2, 6]),
        n_kv_heads=st.sampled_from([None, 1, 2]),
        head_dim=st.sampled_from([None, 4, 10]),
        ffn_dim=st.sampled_from([None, 17]),
        norm=st.sampled_from(["layernorm", "rmsnorm"]),
        norm_position=st.sampled_from(["pre", "post"]),
        qk_norm=st.booleans(),
        position=st.sampled_from(["learned", "sinusoidal", "rope", "none"]),
        gated_ffn=st.booleans(),
        qkv_bias=st.booleans(),
        proj_bias=st.booleans(),
        tie_embeddings=st.booleans(),
        token_shift=st.booleans(),
        bigram_rows=st.sampled_from([None, 7]),
    )
)
def test_formula_equals_the_model_for_any_configuration(config):
    model = GPT.on_meta(config)
    assert count_parameters(config).total == model.num_parameters()
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert matmul_parameters(config) == sum(m.weight.numel() for m in linears)


def test_the_previous_token_is_counted_apart():
    config = PRESETS["gpt-micro"].replace(token_shift=True, bigram_rows=100)
    count, plain = count_parameters(config), count_parameters(PRESETS["gpt-micro"])
    assert count.by_part()["previous_token"] == 128 + 100 * 128
    assert count.non_embedding == plain.non_embedding
    assert flops_per_token(config) == flops_per_token(PRESETS["gpt-micro"])  # look-ups


def test_flops_agree_with_torch_counting_a_real_forward_and_backward():
    from torch.utils.flop_counter import FlopCounterMode

    config = PRESETS["gpt-micro"].replace(vocab_size=65, max_seq_len=64)
    model = GPT(config)
    model.use_implementation("lesson")  # its matrix products are visible to the counter
    ids = torch.randint(65, (2, 64))
    with FlopCounterMode(display=False) as counter:
        loss = model(ids, ids).loss
        forward = counter.get_total_flops()
        loss.backward()
    tokens = 2 * 64
    assert forward / tokens == flops_per_token(config, 64, training=False)
    assert counter.get_total_flops() / tokens == pytest.approx(
        flops_per_token(config, 64), rel=0.01
    )
    assert flops_per_token(config, 64) == 6 * matmul_parameters(config) + 12 * 4 * 128 * 64


def test_a_sliding_window_bounds_the_attention_flops():
    config = PRESETS["gpt2"]
    assert flops_per_token(config.replace(sliding_window=128), 1024) == flops_per_token(config, 128)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "relu2", "norm": "rmsnorm"},
        {"activation": "silu", "gated_ffn": True, "norm": "rmsnorm"},
        {"position": "rope", "n_kv_heads": 2},
    ],
)
def test_the_activation_estimate_is_near_what_autograd_keeps(changes):
    """The estimate must be within 25 % of the bytes that the backward pass really holds."""
    config = PRESETS["gpt-micro"].replace(vocab_size=65, max_seq_len=128, **changes)
    model = GPT(config)
    ids = torch.randint(65, (4, 128))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(ids, ids).loss
    saved = sum(size for size, _ in held.values())
    estimate = training_memory(config, 4, 128)
    logits_kept = 4 * 128 * 65 * 4
    assert loss is not None
    assert saved == pytest.approx(estimate.activations + logits_kept, rel=0.25)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["none", "selective", "block"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"gated_ffn": True, "activation": "silu"}, {"activation": "relu2", "n_kv_heads": 2}],
)
def test_recomputation_keeps_what_the_estimate_says(kind, changes, precision):
    config = PRESETS["gpt-micro"].replace(vocab_size=65, max_seq_len=128, **changes)
    model = GPT(config)
    model.use_checkpointing(kind)
    ids = torch.randint(65, (8, 128))
    held = {parameter.untyped_storage().data_ptr(): 0 for parameter in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        held.setdefault(storage.data_ptr(), storage.nbytes())
        alive.append(tensor)
        return tensor

    alive = []  # a storage that is freed would lend its address to another
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with mixed, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(ids, ids).loss
    assert loss is not None
    saved = sum(held.values()) - 8 * 128 * 65 * 4  # without the logits
    estimate = training_memory(config, 8, checkpointing=kind, precision=precision)
    # on a CPU the fast attention in 16 bits keeps its blocks of scores, which are not counted
    within = 0.25 if (kind, precision) == ("none", "bf16") else 0.1
    assert saved == pytest.approx(estimate.activations, rel=within)


def test_what_recomputation_and_sharding_do_to_each_part():
    config = PRESETS["gpt2"]
    full = training_memory(config, 8)
    runs = {kind: training_memory(config, 8, checkpointing=kind) for kind in KINDS}
    # a block: 4D of norms, 2D of q and the output, 2D of k and v, 4D before GELU, 4D after
    tokens, d = 8 * 1024, 768
    assert runs["none"].activations == tokens * 4 * (12 * 16 + 2) * d
    assert runs["selective"].activations == tokens * 4 * (12 * 12 + 2) * d
    assert runs["block"].activations == tokens * 4 * (12 + 2) * d
    # what comes back in the backward pass, one block at a time
    assert [run.working for run in runs.values()] == [0, tokens * 4 * 4 * d, tokens * 4 * 16 * d]
    assert full.total > runs["selective"].total > runs["block"].total
    for kind, run in runs.items():
        sharded = training_memory(config, 8, checkpointing=kind, parallel="fsdp", processes=4)
        assert (sharded.weights, sharded.optimizer) == (full.weights // 4, full.optimizer // 4)
        assert sharded.gradients == full.gradients // 4
        assert (sharded.activations, sharded.logits) == (run.activations, run.logits)
        # a block (12 D² + 13 D, norms aside) three times, the rest twice
        block = 4 * d * d + 4 * d + 8 * d * d + 5 * d
        outside = 124_439_808 - 12 * block
        assert sharded.working == run.working + 4 * (2 * outside + 3 * block)
        assert training_memory(config, 8, checkpointing=kind, parallel="ddp", processes=4) == run
        assert training_memory(config, 8, checkpointing=kind, parallel="fsdp") == run
    for wrong in ("checkpointing", "parallel", "optimizer"):
        with pytest.raises(ValueError, match=f"{wrong} must be one of .*; got 'all'"):
            training_memory(config, 8, **{wrong: "all"})
    with pytest.raises(ValueError, match="processes must be an integer >= 1, got 0"):
        training_memory(config, 8, processes=0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_optimizer_keeps_what_the_estimate_says(optimizer):
    config = PRESETS["gpt-micro"].replace(vocab_size=65, max_seq_len=16)
    model = GPT(config)
    stepping = build_optimizer(model, name=optimizer)
    ids = torch.randint(65, (1, 16))
    loss = model(ids, ids).loss
    assert loss is not None
    loss.backward()
    stepping.step()
    states = [value for state in stepping.state.values() for value in state.values()]
    kept = sum(4 * v.numel() for v in states if torch.is_tensor(v) and v.ndim > 0)
    assert kept == training_memory(config, 1, optimizer=optimizer).optimizer


def test_training_memory_parts():
    config = PRESETS["gpt2"]
    full = training_memory(config, 8, 1024)
    n = 124_439_808
    assert (full.weights, full.gradients, full.optimizer) == (4 * n, 4 * n, 8 * n)
    assert full.total == sum(full.by_part().values())
    assert full.activations == 8 * training_memory(config, 1, 1024).activations
    # 16 bits halve all but the residual stream, which the 25 norms read: 2 · 12 + 1 vectors
    half = training_memory(config, 8, 1024, precision="bf16")
    assert half.activations == full.activations // 2 + 8 * 1024 * 25 * 768 * 2
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1, got 0"):
        training_memory(config, 0)


def test_kv_cache_bytes_equal_a_real_cache():
    config = PRESETS["gpt-micro"].replace(n_kv_heads=2)
    cache = GPT(config).make_cache(3, capacity=5)
    key = torch.zeros(3, 2, 5, 32)
    bytes_held = sum(2 * key.numel() * 4 for layer in cache.layers if layer.append(key, key))
    assert bytes_held == 3 * 5 * kv_bytes_per_token(config, 4)
    assert inference_memory(config, 3, 5, bytes_per_value=4).kv_cache == bytes_held


def test_the_table_shows_every_preset_with_its_exact_count():
    text = preset_table()
    for name, config in PRESETS.items():
        line = next(line for line in text.splitlines() if f" {name} " in line)
        assert f"{count_parameters(config).total:,}" in line
    assert "…" not in text


def test_human_numbers():
    assert human(999) == "999"
    assert human(1234567) == "1.23M"
    assert human(5.16e6) == "5.16M"
    assert human(999_999, "B") == "1MB"
