"""A common beginning runs through the model once, and nothing that is written changes."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from inference import decoder as decoder_module
from inference import request, shared_prompt
from inference.decoder import Decoder
from inference.generator import SamplingParams, TextGenerator
from inference.prepared import MOST_ROWS, PreparedModel, prepare_for_inference
from inference.shared_prompt import share, spread
from tokenization.tokenizer import Tokenizer

LETTERS = Tokenizer.characters(["abcdefghijklmnopqrstuvwxyz "])
V = LETTERS.vocab_size
SMALL = {"vocab_size": V, "max_seq_len": 64, "dim": 8, "n_layers": 2, "n_heads": 2}
MODELS = {
    "learned": {},
    "grouped": {"position": "rope", "n_heads": 4, "n_kv_heads": 2, "head_dim": 4},
    "previous": {"position": "rope", "token_shift": True, "bigram_rows": 17},
    "window": {"position": "rope", "sliding_window": 5},
}


def build(name, dtype=torch.float64, **changes):
    torch.manual_seed(1)
    config = GPTConfig(**{**SMALL, "init_std": 0.5, **MODELS[name], **changes})
    model = GPT(config).to(dtype).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.startswith("previous_token."):  # these begin at zero
            torch.nn.init.normal_(parameter)
    return model


EXACT = {name: build(name) for name in MODELS}


def counted(model):
    """The shapes of what runs through the model, in order, and how to stop counting."""
    shapes = []
    handle = model.register_forward_pre_hook(lambda _, given: shapes.append(tuple(given[0].shape)))
    return shapes, handle.remove


def n_tokens(shapes):
    return sum(rows * columns for rows, columns in shapes)


def expected_tokens(prompts, worth):
    """Counted from the definition: what no two rows have in common, and what they have, once."""
    rows = {tuple(prompt) for prompt in prompts}
    longest, shortest = max(map(len, rows)), min(map(len, rows))
    common = 0
    while len(rows) > 1 and common < shortest and len({row[common] for row in rows}) == 1:
        common += 1
    if (len(rows) - 1) * common < worth:
        common = 0
    return common + len(rows) * (longest - common)


tokens = st.integers(0, V - 1)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(list(MODELS)),
    prefix=st.lists(tokens, max_size=25),
    rests=st.lists(st.lists(tokens, min_size=1, max_size=12), min_size=1, max_size=4),
    cache=st.sampled_from(["static", "growing", "int8"]),
    worth=st.sampled_from([1, 32]),
    piece=st.sampled_from([3, 512]),
    data=st.data(),
)
def test_scores_are_those_of_reading_every_row(name, prefix, rests, cache, worth, piece, data):
    model = EXACT[name]
    copies = data.draw(st.lists(st.sampled_from(rests), max_size=3))
    prompts = [prefix + rest for rest in data.draw(st.permutations(rests + copies))]
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(shared_prompt, "WORTH", worth)
        patch.setattr(decoder_module, "PREFILL", piece)
        shared = Decoder(model, prompts, max_new_tokens=5, cache=cache)
        plain = Decoder(model, prompts, max_new_tokens=5, cache=cache, sharing=False)
        for step in range(5):
            shapes, stop = counted(model)
            found = shared.next_logits()
            stop()
            torch.testing.assert_close(found, plain.next_logits(), atol=1e-5, rtol=1e-5)
            n = len(shared.windows)
            assert n_tokens(shapes) == (expected_tokens(prompts, worth) if not step else n)
            rows = range(n)
            if data.draw(st.booleans()):
                rows = data.draw(st.lists(st.sampled_from(rows), min_size=1, max_size=n))
            new = data.draw(st.lists(tokens, min_size=len(rows), max_size=len(rows)))
            for one in (shared, plain):
                one.keep(list(rows))
                one.append(new)
            assert shared.windows == plain.windows


@pytest.mark.parametrize("cache", ["static", "growing", "int8"])
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_texts_are_the_same_and_each_prompt_is_read_once(monkeypatch, cache, temperature):
    """Few-shot prompts with several texts each; and again with every row read by itself."""
    model = EXACT["grouped"]
    writer = TextGenerator(model, LETTERS)
    prompts = ["the quick brown fox jumps " + rest for rest in ("over", "in a", "out of")]
    copies = 2 if temperature else 1  # greedy ones would all be alike
    params = [
        SamplingParams(
            temperature=temperature, max_new_tokens=n, num_return=copies, seed=n, logprobs=True
        )
        for n in (9, 14, 5)
    ]
    shapes, stop = counted(model)
    shared = writer.generate(prompts, params, cache=cache)
    stop()
    # 26 shared letters in one row; the three prompts' rests, 6 columns; then every row a step
    assert shapes[:3] == [(1, 26), (3, 6), (3 * copies, 1)]
    monkeypatch.setattr(request, "Decoder", partial(Decoder, sharing=False))
    shapes, stop = counted(model)
    plain = writer.generate(prompts, params, cache=cache)
    stop()
    assert shapes[0] == (3 * copies, 32)
    for one, other in zip(shared, plain, strict=True):
        assert (one.ids, one.finish_reason) == (other.ids, other.finish_reason)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    if temperature:
        assert shared[0].ids != shared[1].ids


@pytest.mark.parametrize("cache", ["none", "sliding"])
def test_without_a_cache_that_can_be_copied_every_row_is_read(cache):
    model = EXACT["grouped"]
    shapes, stop = counted(model)
    with torch.no_grad():
        Decoder(model, [[1] * 20] * 4, max_new_tokens=3, cache=cache).next_logits()
    stop()
    assert shapes == [(4, 20)]


@pytest.mark.parametrize(
    ("prompts", "length", "which"),
    [
        ([[1, 2, 3]], 0, [0]),  # nobody to share with
        ([[1, 2], [1, 2], [1, 2]], 0, [0, 0, 0]),  # one row to read: all of it is its own
        ([[1] * 40, [2] * 40, [1] * 40], 0, [0, 1, 0]),
        ([[1] * 31 + [2], [1] * 31 + [3]], 0, [0, 1]),  # 31 saved: not worth another pass
        ([[1] * 32 + [2], [1] * 32 + [3]], 32, [0, 1]),
        ([[1] * 32, [1] * 40], 32, [0, 1]),  # one prompt begins another
        ([[1] * 16 + [2], [1] * 16 + [3], [1] * 16], 16, [0, 1, 2]),
    ],
)
def test_what_is_shared(prompts, length, which):
    found = share(prompts)
    assert (found.length, found.which) == (length, which)
    assert [found.rows[row] for row in which] == prompts


@pytest.mark.parametrize("kind", ["static", "growing", "int8"])
def test_spreading_moves_every_stored_number_and_no_other(kind):
    """Padding longer than what is stored leaves padding only, and no NaN."""
    model = build("previous", torch.float32)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    cache = model.make_cache(1, capacity=8, kind=kind)
    with torch.no_grad():
        model(ids, cache=cache)
        before = [tuple(t.clone() for t in peek(layer)) for layer in cache.layers]
        spread(cache, [0, 2, 7])
        assert cache.length == 5
        for layer, stored in zip(cache.layers, before, strict=True):
            for found, one in zip(peek(layer), stored, strict=True):
                assert torch.equal(found[0], one[0])
                assert torch.equal(found[1, :, 2:], one[0, :, :3])
                assert bool(found.isfinite().all())
        assert cache.last_ids()[:2].tolist() == [[5], [4]]


def peek(layer):
    """All keys and values: appending nothing returns them."""
    keys = layer._codes.buffers[0] if hasattr(layer, "_codes") else None
    if keys is None:
        keys = layer.buffers[0] if hasattr(layer, "buffers") else layer._keys
    nothing = keys.new_zeros(len(keys), keys.shape[1], 0, keys.shape[3])
    return layer.append(nothing.float(), nothing.float())


def test_a_cache_that_cannot_be_moved_says_so():
    cache = EXACT["grouped"].make_cache(1, kind="sliding")
    with pytest.raises(ValueError, match="a sliding cache places its columns itself"):
        spread(cache, [0, 1])


@pytest.mark.parametrize("name", ["learned", "grouped", "window"])
@pytest.mark.parametrize("rests", [(1, 1, 1), (3, 1, 2), (2, 2, 0)])
def test_prepared_kernels_agree_to_the_last_bit(monkeypatch, kernels, name, rests):
    """A prefill of at most 32 tokens runs in the kernels, as every later step does."""
    monkeypatch.setattr(shared_prompt, "WORTH", 1)
    model = PreparedModel(build(name, torch.float32), kernels)
    torch.manual_seed(5)
    prefix = torch.randint(V, (6,)).tolist()
    prompts = [prefix + torch.randint(V, (n,)).tolist() for n in rests]
    assert sum(map(len, prompts)) <= MOST_ROWS
    same_bits(model, prompts)


@pytest.mark.parametrize("bits", [8, 4])
def test_integer_weights_agree_to_the_last_bit_at_any_length(kernels, bits):
    model = build("grouped", torch.float32, dim=32, n_heads=4, head_dim=8)
    ready = prepare_for_inference(model, bits=bits, group_size=32)
    torch.manual_seed(6)
    prefix = torch.randint(V, (40,)).tolist()
    same_bits(ready, [prefix + torch.randint(V, (n,)).tolist() for n in (3, 9, 1)])
    same_bits(ready, [prefix] * 3)


def same_bits(model, prompts):
    with torch.inference_mode():
        shared = Decoder(model, prompts, max_new_tokens=4)
        plain = Decoder(model, prompts, max_new_tokens=4, sharing=False)
        for step in range(4):
            shapes, stop = counted(model)
            found = shared.next_logits()
            stop()
            if not step:
                assert n_tokens(shapes) < len(prompts) * max(map(len, prompts))
            assert torch.equal(found, plain.next_logits())
            new = found.argmax(dim=-1).tolist()
            shared.append(new)
            plain.append(new)
