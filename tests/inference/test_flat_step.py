"""The flat step against the model it stands for: same scores, same cache, or it says None."""

import pytest
import torch

from gpt_model.config import GPTConfig, preset
from gpt_model.model import GPT
from inference.flat_step import FlatStep, fuse
from inference.generator import SamplingParams, TextGenerator
from inference.prepared import PreparedModel
from inference.quantization import quantize
from tokenization.tokenizer import Tokenizer
from transformer_basics.linear import Linear

LETTERS = Tokenizer.characters(["abcdefghijklmnopqrstuvwxyz "])
V = LETTERS.vocab_size
KINDS = {
    "gpt": {},
    "modern": {"position": "rope", "norm": "rmsnorm", "gated_ffn": True, "n_kv_heads": 2},
    "qk_norm": {"position": "rope", "qk_norm": True, "n_kv_heads": 1, "activation": "silu"},
    "window": {"position": "sinusoidal", "sliding_window": 3, "activation": "relu2"},
    "no bias": {"position": "none", "qkv_bias": False, "proj_bias": False, "logit_softcap": 2.0},
    "some bias": {"qkv_bias": True, "proj_bias": False, "tie_embeddings": False},
}


def make(seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {"vocab_size": V, "max_seq_len": 24, "dim": 32, "n_layers": 2, "n_heads": 4}
    model = GPT(GPTConfig(**{**sizes, "init_std": 0.2, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_step_by_step_it_is_the_model(kind, padded, dtype):
    model = make(**KINDS[kind]).to(dtype)
    oracle = make(**KINDS[kind]).to(dtype)
    ready = PreparedModel(model, None)
    assert ready.flat is not None
    ids = torch.randint(V, (3, 12))
    real = torch.arange(12) >= torch.tensor([[0], [4], [2]]) if padded else None
    caches = ready.make_cache(3), oracle.make_cache(3)
    allowed = 0.05 if dtype == torch.bfloat16 else 1e-4
    for begin, end in [(0, 6), *((t, t + 1) for t in range(6, 12))]:
        piece, mask = ids[:, begin:end], None if real is None else real[:, :end]
        found = ready(piece, attention_mask=mask, cache=caches[0], last_only=True).logits
        wanted = oracle(piece, attention_mask=mask, cache=caches[1], last_only=True).logits
        assert found.shape == wanted.shape == (3, 1, V)
        gap = float((found - wanted).abs().max())
        assert gap <= allowed * (1.0 + float(wanted.abs().max()))
        assert caches[0].length == end
    for mine, theirs in zip(caches[0].layers, caches[1].layers, strict=True):
        for got, want in zip(mine.buffers, theirs.buffers, strict=True):
            gap = float((got - want)[:, :, 4:].abs().max())
            assert gap <= allowed * (1.0 + float(want.abs().max()))


@torch.no_grad()
def test_given_positions_are_used_and_bad_ones_handed_back():
    for position in ("rope", "learned"):
        model = make(position=position)
        flat, cache = FlatStep.of(model), model.make_cache(2)
        new = torch.tensor([[3], [4]])
        for places in (torch.tensor([9]), torch.tensor([[9], [2]])):
            found = flat.run(new, places, None, cache)
            cache.truncate(0)
            wanted = model(new, positions=places).logits
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        for places in (torch.tensor([24]), torch.tensor([[-1], [0]])):
            assert flat.run(new, places, None, cache) is None
        assert cache.length == 0


@torch.no_grad()
def test_what_it_does_not_know_it_hands_back_untouched():
    model = make()
    flat, cache = FlatStep.of(model), model.make_cache(2)
    padding_last = torch.tensor([[True], [False]])
    assert flat.run(torch.tensor([[1, 2], [3, 4]]), None, None, cache) is None
    assert flat.run(torch.tensor([[1], [V]]), None, None, cache) is None
    assert flat.run(torch.tensor([[1], [2]]), None, padding_last, cache) is None
    assert cache.length == 0
    assert not any(buffer.any() for layer in cache.layers for buffer in layer.buffers)
    ready = PreparedModel(model, None)
    with pytest.raises(ValueError, match=f"{V}"):
        ready(torch.tensor([[1], [V]]), cache=ready.make_cache(2))
    # the longest text, and one more
    cache = ready.make_cache(1)
    for _ in range(24):
        ready(torch.tensor([[1]]), cache=cache)
    with pytest.raises(ValueError, match="24"):
        ready(torch.tensor([[1]]), cache=cache)
    assert cache.length == 24


def test_models_it_must_not_take():
    class Doubled(Linear):
        def forward(self, x):
            return 2.0 * super().forward(x)

    model = make()
    model.blocks[1].feed_forward.down_proj = Doubled(128, 32)
    assert FlatStep.of(model) is None
    assert FlatStep.of(make(norm_position="post")) is None
    assert FlatStep.of(make(token_shift=True)) is None
    assert FlatStep.of(quantize(make(), 8, 32)) is None
    mixed = make()
    mixed.blocks[0].to(torch.bfloat16)
    assert FlatStep.of(mixed) is None


def test_weights_are_moved_not_copied():
    model = make(n_kv_heads=2, gated_ffn=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    FlatStep.of(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    attention = model.blocks[0].attention
    q, k, v = (getattr(attention, name).weight for name in ("q_proj", "k_proj", "v_proj"))
    assert k.data_ptr() == q.data_ptr() + q.nbytes
    assert v.data_ptr() == k.data_ptr() + k.nbytes
    # a change through the parameter is seen: it is the same memory
    product = fuse(attention.q_proj, attention.k_proj)
    with torch.no_grad():
        attention.k_proj.weight.fill_(7.0)
    assert (product.weight[:, -16:] == 7.0).all()


@pytest.mark.parametrize("name", ["gpt-micro", "modern-micro"])
def test_the_generator_writes_the_same(name):
    sizes = {"vocab_size": V, "max_seq_len": 48, "dim": 32, "n_heads": 4, "init_std": 0.2}
    torch.manual_seed(0)
    model = GPT(preset(name, **sizes)).eval()
    prompts = ["the quick", "a", "brown fox jumps over it"]
    for params in (
        SamplingParams(temperature=0, max_new_tokens=20),
        SamplingParams(temperature=1.2, max_new_tokens=20, seed=4, num_return=3),
        SamplingParams(num_beams=3, temperature=0, max_new_tokens=12),
    ):
        wanted = TextGenerator(model, LETTERS).generate(prompts, params)
        found = TextGenerator(PreparedModel(model, None), LETTERS).generate(prompts, params)
        assert [text.ids for text in found] == [text.ids for text in wanted]
