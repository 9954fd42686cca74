import pytest
import torch

from gpt_model.config import PRESETS
from gpt_model.memory import (
    inference_memory,
    kept_bytes_per_token,
    muon_working,
    score_values_per_token,
    training_memory,
)
from gpt_model.model import GPT
from gpt_model.sizes import kv_bytes_per_token
from training.optimizer import build_optimizer
from transformer_basics.recomputation import KINDS

N = 124_439_808  # gpt2's parameters
D = 768
GPT2 = PRESETS["gpt2"]
TABLE = 4 * 50257 * D  # bytes of the gradient of the output table


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
    estimate = 4 * 128 * kept_bytes_per_token(config, "none", half=False, scores=0)
    logits_kept = 4 * 128 * 65 * 4
    assert loss is not None
    assert saved == pytest.approx(estimate + logits_kept, rel=0.25)


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
    half = precision == "bf16"
    scores = score_values_per_token(config, 128) if half else 0
    estimate = 8 * 128 * kept_bytes_per_token(config, kind, half=half, scores=scores)
    assert saved == pytest.approx(estimate, rel=0.1)


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
    # adapters only: the moments of what is trained, by Adam
    assert training_memory(config, 1, optimizer=optimizer, n_trainable=10).optimizer == 80


def test_recomputation_by_hand_where_activations_are_most():
    # a block: 4D of norms, 2D of q and the output, 2D of k and v, 4D before GELU, 4D after
    tokens = 32 * 1024
    kept = {"none": 12 * 16 + 2, "selective": 12 * 12 + 2, "block": 12 + 2}
    # of one block in the backward pass: what is computed again, and 4D of GELU's gradient
    again = {"none": 4, "selective": 8, "block": 20}
    totals = []
    for kind in KINDS:
        run = training_memory(GPT2, 32, checkpointing=kind)
        assert (run.weights, run.optimizer) == (4 * N, 8 * N)
        # only the output table has its gradient while the activations are there
        assert run.gradients == TABLE
        assert run.activations == tokens * 4 * kept[kind] * D
        if run.logits == 0:
            assert run.working == tokens * 4 * again[kind] * D
        totals.append(run.total)
    assert totals == sorted(totals, reverse=True)


def test_the_loss_holds_one_piece_of_scores():
    # 50257 scores of 4 bytes: 667 rows are 128 MiB; Mx D of gradient; 2 MiB hold 10 rows
    run = training_memory(GPT2, 8)
    assert run.logits == 667 * 50257 * 4 + 8 * 1024 * D * 4 + 10 * 50257 * 4
    # in 16 bits twice the rows; copies of x and the table; two tables of 10 rows
    half = training_memory(GPT2, 8, precision="bf16", device="cpu")
    pieces = (1335 * 2 + 10 * 4 * 2) * 50257
    assert half.logits == pieces + 8 * 1024 * D * (4 + 2) + 50257 * D * 2


def test_small_batches_are_fullest_at_the_end_of_the_backward_pass():
    run = training_memory(GPT2, 1, 64)
    assert (run.weights, run.gradients, run.optimizer) == (4 * N, 4 * N, 8 * N)
    # the gradients of the token embedding and of the output table meet
    assert (run.working, run.activations, run.logits) == (TABLE, 0, 0)
    muon = training_memory(GPT2, 1, 64, optimizer="muon")
    assert muon.working == muon_working(GPT2)
    # 12 D² L directions; of the second stack 10 · 8 D² L, two products 2 · 2 · 2 D² L, and
    # what the first stack of 4 D² L gave
    assert muon_working(GPT2) == (4 * 12 + 4 * 4 + 10 * 8 + 4 * 2) * 12 * D * D


def test_gradients_that_stay_are_added_to_the_activations():
    once = training_memory(GPT2, 8)
    assert training_memory(GPT2, 8, grad_accumulation=2).total == once.total + 4 * N
    ddp = {"parallel": "ddp", "processes": 4}
    assert training_memory(GPT2, 8, grad_accumulation=4, **ddp).total == once.total + 4 * N
    assert training_memory(GPT2, 8, parallel="fsdp") == once


@pytest.mark.parametrize("kind", KINDS)
def test_sharding_divides_the_states_and_gathers_a_block(kind):
    run = training_memory(GPT2, 32, checkpointing=kind)
    fsdp = {"checkpointing": kind, "parallel": "fsdp", "processes": 4}
    sharded = training_memory(GPT2, 32, **fsdp)
    assert (sharded.weights, sharded.optimizer) == (N, 2 * N)
    assert (sharded.activations, sharded.logits) == (run.activations, run.logits)
    # a block (12 D² + 13 D, norms aside) three times, the rest twice
    block = 4 * D * D + 4 * D + 8 * D * D + 5 * D
    assert sharded.working == run.working + 4 * (2 * (N - 12 * block) + 3 * block)
    # without communication until the last micro batch, gradients are kept whole
    more = training_memory(GPT2, 32, **fsdp, grad_accumulation=8)
    assert more.total == sharded.total + 4 * N


def test_sixteen_bits_copy_the_matrices_on_a_gpu_only():
    gpu = training_memory(GPT2, 8, precision="bf16")
    cpu = training_memory(GPT2, 8, precision="bf16", device="cpu")
    assert gpu.weights == cpu.weights + 2 * 12 * 12 * D * D
    # 16 bits halve all but the residual stream, which the 25 norms read
    full = training_memory(GPT2, 8)
    assert cpu.activations == gpu.activations == full.activations // 2 + 8 * 1024 * 25 * D * 2
    # up to 512 tokens the CPU keeps the softmax: 10/16 of the square
    short = [training_memory(GPT2, 8, 512, precision="bf16", device=d) for d in ("cuda", "cpu")]
    assert short[1].activations - short[0].activations == 8 * 512 * 12 * 12 * 320 * 2
    assert score_values_per_token(GPT2.replace(sliding_window=128), 512) == 0


def test_frozen_parameters_have_no_gradient_and_no_moments():
    lora = training_memory(GPT2, 8, n_trainable=300_000)
    full = training_memory(GPT2, 8)
    assert lora.optimizer == 8 * 300_000
    assert full.total - lora.total == pytest.approx(8 * N + TABLE, rel=0.01)


def test_what_makes_no_sense_is_refused():
    for wrong in ("checkpointing", "parallel", "optimizer"):
        with pytest.raises(ValueError, match=f"{wrong} must be one of .*; got 'all'"):
            training_memory(GPT2, 8, **{wrong: "all"})
    for wrong in ("processes", "grad_accumulation"):
        with pytest.raises(ValueError, match=f"{wrong} must be an integer >= 1, got 0"):
            training_memory(GPT2, 8, **{wrong: 0})
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1, got 0"):
        training_memory(GPT2, 0)


def test_kv_cache_bytes_equal_a_real_cache():
    config = PRESETS["gpt-micro"].replace(n_kv_heads=2)
    cache = GPT(config).make_cache(3, capacity=5)
    key = torch.zeros(3, 2, 5, 32)
    bytes_held = sum(2 * key.numel() * 4 for layer in cache.layers if layer.append(key, key))
    assert bytes_held == 3 * 5 * kv_bytes_per_token(config, 4)
    assert inference_memory(config, 3, 5, bytes_per_value=4).kv_cache == bytes_held
