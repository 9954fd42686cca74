"""Cached, batched, re-packed, slid: the scores are those of reading the window afresh."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_model.caches import CacheSettings
from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from inference.decoder import Decoder

SMALL = {"vocab_size": 11, "max_seq_len": 12, "dim": 8, "n_layers": 2, "n_heads": 2}
MODELS = {
    "learned": {},
    "sinusoidal": {"position": "sinusoidal"},
    "none": {"position": "none"},
    "rope": {"position": "rope", "norm": "rmsnorm", "qk_norm": True},
    "grouped": {"position": "rope", "n_heads": 4, "n_kv_heads": 2, "head_dim": 4},
    "previous": {"position": "rope", "token_shift": True, "bigram_rows": 17},
    "window": {"position": "rope", "sliding_window": 3},
    "post, softcap": {"norm_position": "post", "logit_softcap": 5.0},
}
CACHE = {}


def build(name, **changes):
    key = (name, *sorted(changes.items()))
    if key not in CACHE:
        torch.manual_seed(1)
        config = GPTConfig(**{**SMALL, "init_std": 0.5, **MODELS[name], **changes})
        CACHE[key] = model = GPT(config).eval()
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.startswith("previous_token."):  # these begin at zero
                torch.nn.init.normal_(parameter)
    return CACHE[key]


def fresh(model, window):
    """The definition: read the whole window, take the last scores."""
    with torch.no_grad():
        return model(torch.tensor([window])).logits[0, -1]


prompts = st.lists(st.lists(st.integers(0, 10), min_size=1, max_size=12), min_size=1, max_size=4)


@settings(max_examples=80)
@given(
    name=st.sampled_from(list(MODELS)),
    prompts=prompts,
    cache=st.sampled_from(["static", "growing", "none"]),
    data=st.data(),
)
def test_scores_are_those_of_reading_every_window_afresh(name, prompts, cache, data):
    """Random tokens, random moments at which rows leave or are doubled; full rows leave."""
    model = build(name)
    with torch.no_grad():
        decoder = Decoder(model, prompts, max_new_tokens=12, cache=cache)
        windows = [list(prompt) for prompt in prompts]
        for _ in range(12):
            scores = decoder.next_logits()
            for row, window in enumerate(windows):
                torch.testing.assert_close(scores[row], fresh(model, window), atol=2e-4, rtol=1e-4)
            alive = [row for row, window in enumerate(windows) if len(window) < 12]
            if not alive:
                break
            if data.draw(st.booleans()):
                alive = data.draw(st.lists(st.sampled_from(alive), min_size=1, max_size=4))
            tokens = data.draw(
                st.lists(st.integers(0, 10), min_size=len(alive), max_size=len(alive))
            )
            windows = [[*windows[row], t] for row, t in zip(alive, tokens, strict=True)]
            decoder.keep(alive)
            decoder.append(tokens)
            assert decoder.windows == windows


@settings(max_examples=40)
@given(
    name=st.sampled_from(list(MODELS)),
    prompts=prompts,
    cache=st.sampled_from(["static", "growing", "none"]),
    data=st.data(),
)
def test_sliding_keeps_the_newest_half_and_reads_it_afresh(name, prompts, cache, data):
    model = build(name)
    with torch.no_grad():
        decoder = Decoder(
            model,
            [[3] * 20 + prompt for prompt in prompts],
            max_new_tokens=30,
            cache=cache,
            sliding=True,
        )
        windows = [([3] * 20 + prompt)[-12:] for prompt in prompts]
        for _ in range(16):
            scores = decoder.next_logits()
            for row, window in enumerate(windows):
                torch.testing.assert_close(scores[row], fresh(model, window), atol=2e-4, rtol=1e-4)
            n = len(windows)
            tokens = data.draw(st.lists(st.integers(0, 10), min_size=n, max_size=n))
            windows = [
                [*(window[6:] if len(window) == 12 else window), token]
                for window, token in zip(windows, tokens, strict=True)
            ]
            decoder.append(tokens)


@pytest.mark.parametrize("context", [1, 2, 3])
def test_sliding_in_the_smallest_contexts(context):
    model = build("learned", max_seq_len=context)
    with torch.no_grad():
        decoder = Decoder(model, [[1, 2, 3]], max_new_tokens=9, sliding=True)
        for token in range(9):
            torch.testing.assert_close(
                decoder.next_logits()[0], fresh(model, decoder.windows[0]), atol=1e-4, rtol=1e-4
            )
            decoder.append([token])
            assert 1 <= len(decoder.windows[0]) <= context
            assert decoder.windows[0][-1] == token


def test_the_cache_is_used_and_padding_costs_one_more_reading():
    model = build("rope")
    with torch.no_grad():
        alone = Decoder(model, [[1, 2]], max_new_tokens=10)
        for _ in range(10):
            alone.next_logits()
            alone.append([5])
        assert alone.n_reads == 1
        # 11 + 3 tokens do not fit into the context of 12 side by side with the padding
        together = Decoder(model, [[1] * 11, [1, 2]], max_new_tokens=10)
        together.next_logits()
        together.append([4, 4])
        together.next_logits()
        together.keep([1])  # the long one is full
        for _ in range(9):
            together.append([4])
            together.next_logits()
        assert len(together.windows[0]) == 12
        assert together.n_reads == 2


@settings(max_examples=40)
@given(
    name=st.sampled_from(["rope", "grouped", "previous", "window", "none"]),
    prompts=st.lists(st.lists(st.integers(0, 10), min_size=1, max_size=40), min_size=1, max_size=4),
    n_sinks=st.integers(0, 3),
    window=st.integers(1, 8),
    data=st.data(),
)
def test_a_sliding_cache_never_reads_again_and_each_row_is_as_if_alone(
    name, prompts, n_sinks, window, data
):
    """Prompts longer than the context, rows that leave or are doubled, far past the context."""
    model = build(name)
    own = model.config.sliding_window
    chosen = CacheSettings("sliding", 0 if own else n_sinks, min(window, own or window))

    def alone(text):
        cache = model.make_cache(1, kind=chosen)
        return model(torch.tensor([text]), cache=cache, last_only=True).logits[0, -1]

    with torch.no_grad():
        decoder = Decoder(model, prompts, max_new_tokens=20, cache=chosen)
        texts = [list(prompt) for prompt in prompts]
        for _ in range(20):
            scores = decoder.next_logits()
            rows = list(range(len(texts)))
            for row in rows:
                torch.testing.assert_close(scores[row], alone(texts[row]), atol=2e-4, rtol=1e-4)
            if data.draw(st.booleans()):
                rows = data.draw(st.lists(st.sampled_from(rows), min_size=1, max_size=4))
            tokens = data.draw(st.lists(st.integers(0, 10), min_size=len(rows), max_size=len(rows)))
            texts = [[*texts[row], t] for row, t in zip(rows, tokens, strict=True)]
            decoder.keep(rows)
            decoder.append(tokens)
            assert max(map(len, decoder.windows)) <= 1  # the ids do not grow with the text
        assert decoder.n_reads == 1


@pytest.mark.parametrize("cache", ["static", "growing", "int8", "sliding"])
def test_a_long_prompt_read_in_pieces_is_the_same(cache, monkeypatch):
    model = build("previous")
    prompts = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1], [4, 5], [9, 8, 7, 6]]
    expected = torch.cat([fresh(model, prompt)[None] for prompt in prompts])
    monkeypatch.setattr("inference.decoder.PREFILL", 3)
    sizes, forward = [], model.forward
    monkeypatch.setattr(
        model, "forward", lambda ids, **k: sizes.append(ids.shape[1]) or forward(ids, **k)
    )
    settings = CacheSettings("sliding", 0, 12) if cache == "sliding" else cache
    with torch.no_grad():
        found = Decoder(model, prompts, max_new_tokens=1, cache=settings).next_logits()
    close = {"atol": 0.2, "rtol": 0.1} if cache == "int8" else {"atol": 2e-4, "rtol": 1e-4}
    torch.testing.assert_close(found, expected, **close)
    assert sizes == [3, 3, 3, 2]


def test_a_full_row_is_refused_with_the_length():
    model = build("rope")
    with torch.no_grad():
        decoder = Decoder(model, [[1] * 12], max_new_tokens=3)
        decoder.next_logits()
        with pytest.raises(ValueError, match=r"12 tokens already fills the context.*sliding=True"):
            decoder.append([1])


def test_a_cache_is_no_longer_than_what_will_be_written():
    model = build("rope", max_seq_len=4096)
    with torch.no_grad():
        decoder = Decoder(model, [[1, 2, 3]], max_new_tokens=5)
        decoder.next_logits()
    assert decoder.cache[0].capacity == 8


def test_larger_model_vocabulary_and_gaps_are_never_offered():
    model = build("rope")
    decoder = Decoder(
        model, [[1, 2]], max_new_tokens=2, vocab_size=8, forbidden=torch.tensor([0, 5])
    )
    with torch.no_grad():
        scores = decoder.next_logits()
    assert scores.shape == (1, 8)
    assert scores.dtype == torch.float32
    assert (scores == -torch.inf).nonzero()[:, 1].tolist() == [0, 5]
    finite = [1, 2, 3, 4, 6, 7]
    torch.testing.assert_close(scores[0, finite], fresh(model, [1, 2])[finite])


def test_keeping_after_appending_is_our_own_mistake():
    model = build("rope")
    with torch.no_grad():
        decoder = Decoder(model, [[1], [2]], max_new_tokens=3)
        decoder.next_logits()
        decoder.append([1, 1])
        with pytest.raises(AssertionError, match="keep comes before append"):
            decoder.keep([0])
