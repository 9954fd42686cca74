"""Beam search on real models: against trying every text, cached and not, with stop strings."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from inference.generator import SamplingParams, TextGenerator
from tokenization.tokenizer import Tokenizer

TOKENIZER = Tokenizer.characters(["abc"])  # <end> a b c
END = TOKENIZER.end_id
MODELS = {
    "learned": {},
    "rope": {"position": "rope", "qk_norm": True, "n_heads": 2, "n_kv_heads": 1},
    "window": {"position": "rope", "sliding_window": 2},
}


def writer(name, seed, **changes):
    torch.manual_seed(seed)
    small = {"vocab_size": 4, "max_seq_len": 12, "dim": 8, "n_layers": 2, "n_heads": 2}
    config = GPTConfig(**{**small, "init_std": 0.6, **MODELS[name], **changes})
    return TextGenerator(GPT(config).double(), TOKENIZER)  # rounding must not swap two texts


def every_text(generator, prompt, length, penalty):
    """All texts, best first, by running the model on each whole text."""
    ids = TOKENIZER.encode(prompt)
    cuts = {
        text[: text.index(END) + 1] if END in text else text
        for text in itertools.product(range(4), repeat=length)
    }
    found = []
    with torch.no_grad():
        for cut in cuts:
            log_probs = generator.model(torch.tensor([[*ids, *cut]])).logits[0].log_softmax(-1)
            total = sum(float(log_probs[len(ids) - 1 + i, t]) for i, t in enumerate(cut))
            found.append((total / len(cut) ** penalty, cut))
    return sorted(found, reverse=True)


@settings(max_examples=15)
@given(
    name=st.sampled_from(list(MODELS)),
    seed=st.integers(0, 999),
    penalty=st.sampled_from([-1.0, 0.0, 1.0, 2.0]),
)
def test_beams_as_wide_as_the_vocabulary_find_the_best_short_text(name, seed, penalty):
    """Two tokens: the first step keeps all four routes, so nothing is ever lost."""
    generator = writer(name, seed)
    params = SamplingParams(
        num_beams=4, num_return=4, max_new_tokens=2, length_penalty=penalty, logprobs=True
    )
    found = generator.generate("ab", params)
    wanted = every_text(generator, "ab", 2, penalty)
    assert found[0].ids == wanted[0][1]
    assert found[0].score == pytest.approx(wanted[0][0], abs=1e-4)
    for one in found:
        score = sum(one.logprobs) / len(one.ids) ** penalty
        assert one.score == pytest.approx(score, abs=1e-4)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert len({one.ids for one in found}) == 4


@settings(max_examples=25)
@given(
    name=st.sampled_from(list(MODELS)),
    seed=st.integers(0, 999),
    prompts=st.lists(st.text(alphabet="abc", min_size=1, max_size=9), min_size=1, max_size=3),
    num_beams=st.integers(2, 4),
    stop=st.sampled_from([(), ("ab",), ("c", "ba")]),
    penalty=st.sampled_from([1.0, 1.3]),
    sliding=st.booleans(),
)
def test_cached_or_not_alone_or_not(name, seed, prompts, num_beams, stop, penalty, sliding):
    """The cache must follow the routes when they are reordered, and when the window slides."""
    generator = writer(name, seed)
    params = SamplingParams(
        num_beams=num_beams,
        max_new_tokens=8,
        stop=stop,
        repetition_penalty=penalty,
        frequency_penalty=penalty - 1.0,
        length_penalty=0.5,
        logprobs=True,
    )
    together = generator.generate(prompts, params, sliding=sliding)
    for prompt, found in zip(prompts, together, strict=True):
        plain = generator.generate(prompt, params, cache="none", sliding=sliding)
        assert (found.ids, found.text) == (plain.ids, plain.text)
        assert found.finish_reason == plain.finish_reason
        assert found.score == pytest.approx(plain.score, abs=1e-3)
        assert found.logprobs == pytest.approx(plain.logprobs, abs=1e-3)
        assert not any(text in found.text for text in stop)
        if found.finish_reason == "context":
            assert len(prompt) + len(found.ids) == 12
            assert not sliding
        if found.finish_reason == "end":
            assert found.ids[-1] == END


def test_a_stop_string_across_tokens_finishes_a_beam():
    params = SamplingParams(
        num_beams=2,
        max_new_tokens=6,
        stop=("ab",),
        length_penalty=0.0,
        logit_bias={END: -math.inf, 3: -math.inf},
    )
    reasons = []
    for seed in range(8):
        found = writer("rope", seed, tie_embeddings=False).generate("c", params)
        reasons.append(found.finish_reason)
        assert TOKENIZER.decode(found.ids).endswith("ab") == (reasons[-1] == "stop")
        assert "ab" not in found.text
    assert {"stop", "length"} == set(reasons)


def test_one_best_text_is_more_probable_than_the_greedy_one():
    better = 0
    for seed in range(20):
        generator = writer("learned", seed)
        greedy = generator.generate(
            "ab", SamplingParams(temperature=0, max_new_tokens=5, logprobs=True)
        )
        params = SamplingParams(num_beams=4, max_new_tokens=5, length_penalty=0.0)
        found = generator.generate("ab", params)
        assert found.score >= sum(greedy.logprobs) - 1e-4
        better += found.score > sum(greedy.logprobs) + 1e-4
    assert better > 3


def test_fewer_texts_than_asked_for_is_an_error():
    bans = dict.fromkeys((END, 2, 3), -math.inf)
    params = SamplingParams(num_beams=3, num_return=2, max_new_tokens=2, logit_bias=bans)
    with pytest.raises(ValueError, match="only 1 different texts .* num_return is 2"):
        writer("rope", 0).generate("a", params)
    best = SamplingParams(num_beams=3, max_new_tokens=2, logit_bias=bans)
    assert writer("rope", 0).generate("a", best).ids == (1, 1)
