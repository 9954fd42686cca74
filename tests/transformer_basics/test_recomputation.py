"""Gradient checkpointing: the same numbers to the bit, fewer bytes, one more forward."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from gpt_model.config import preset
from gpt_model.model import GPT
from training.train_config import TrainConfig
from training.trainer import Trainer
from transformer_basics.recomputation import KINDS, kept_bytes, use_checkpointing

BASE = {"vocab_size": 19, "n_layers": 3, "dim": 32, "max_seq_len": 24}


def build(name="gpt-micro", **changes):
    torch.manual_seed(0)
    return GPT(preset(name, **{**BASE, **changes}))


def gradients(model, kind, precision=None, **arguments):
    model.use_checkpointing(kind)
    model.zero_grad()
    torch.manual_seed(5)
    ids = torch.arange(48).view(2, 24) % 19
    half = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
    with half:
        loss = model(ids, ids.roll(-1, 1), **arguments).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize(
    ("name", "changes", "options"),
    [
        ("gpt-micro", {"dropout": 0.3}, {}),
        ("gpt-micro", {"dropout": 0.3}, {"precision": "bf16"}),
        ("modern-micro", {"n_kv_heads": 2}, {"precision": "bf16"}),
        ("modern-micro", {"gated_ffn": True, "activation": "silu", "sliding_window": 5}, {}),
        ("gpt-micro", {"norm_position": "post"}, {}),
        ("modern-micro", {}, {"document_ids": (torch.arange(48) // 7).view(2, 24)}),
    ],
)
def test_gradients_are_those_without_it_to_the_bit(kind, name, changes, options):
    model = build(name, **changes)
    plain, saved = (gradients(model, k, **options) for k in ("none", kind))
    assert all(map(torch.equal, plain, saved))


def test_the_lesson_path_too():
    model = build(dropout=0.2)
    model.use_implementation("lesson")
    plain, saved = (gradients(model, kind) for kind in ("none", "block"))
    assert all(map(torch.equal, plain, saved))


@pytest.mark.parametrize(("kind", "calls"), [("none", 3), ("selective", 3), ("block", 6)])
def test_blocks_run_a_second_time_only_when_asked(kind, calls):
    model, seen = build(), []
    for block in model.blocks:
        block.attention_norm.register_forward_hook(lambda *a: seen.append(1))
    gradients(model, kind)
    assert len(seen) == calls
    with torch.no_grad():
        model(torch.zeros(1, 4, dtype=torch.long))
    assert len(seen) == calls + 3


def test_each_kind_keeps_less():
    model = build(n_layers=6, max_seq_len=96)
    ids = torch.zeros(4, 96, dtype=torch.long)
    sizes = []
    for kind in KINDS:
        model.use_checkpointing(kind)
        sizes.append(kept_bytes(lambda: model(ids, ids, need_logits=False).loss)[1])
    none, selective, block = sizes
    assert selective < 0.75 * none
    inputs = 6 * ids.numel() * 32 * 4
    assert inputs <= block < 2 * inputs


def test_a_cache_is_filled_once():
    model = build()
    model.use_checkpointing("block")
    cache = model.make_cache(1, kind="growing")
    model(torch.zeros(1, 4, dtype=torch.long), cache=cache)
    assert cache.length == 4


def test_what_is_refused():
    with pytest.raises(ValueError, match="did you mean 'block'"):
        build().use_checkpointing("blocks")
    with pytest.raises(ValueError, match="needs a model of Transformer blocks, got Linear"):
        use_checkpointing(nn.Linear(2, 2), "block")
    use_checkpointing(nn.Linear(2, 2), "none")
    with pytest.raises(ValueError, match="gradient_checkpointing"):
        TrainConfig(gradient_checkpointing="all")


def test_training_with_it_is_training_without_it():
    from training.dataset import TokenBatches

    weights = []
    for kind in KINDS:
        model = build(dropout=0.1)
        config = TrainConfig(
            steps=3, gradient_checkpointing=kind, device="cpu", precision="fp32", batch_size=2
        )
        batches = TokenBatches([i * i % 19 for i in range(300)], 2, 24, seed=0)
        Trainer(model, batches, config=config).fit()
        assert model.blocks[0].recompute == (kind == "block")
        assert model.blocks[0].feed_forward.recompute == (kind == "selective")
        weights.append([p.detach() for p in model.parameters()])
    for other in weights[1:]:
        assert all(map(torch.equal, weights[0], other))
