"""Whatever the model, the temperature and the sampler: only valid text comes out."""

import itertools
import math
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from inference.constraints import Constraint, restrict
from inference.generator import SamplingParams, TextGenerator
from tokenization.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent))
from random_regexes import patterns

BPE = Tokenizer.train_bpe(["ab ba aab bba 春天 春眠 abba 月 春春 a1 b2 12 🌕"] * 3, 300)
CHARACTERS = Tokenizer.characters(["ab春1_"])
ENDLESS = Tokenizer.characters(["ab春1_"], special_tokens=())
TOKENIZERS = {"bpe": BPE, "characters": CHARACTERS, "endless": ENDLESS}
CACHE = {}


def writer(name="bpe", seed=0):
    if (name, seed) not in CACHE:
        torch.manual_seed(seed)
        # more rows than the tokenizer has: those must never be chosen either
        size = TOKENIZERS[name].vocab_size + 5
        config = GPTConfig(vocab_size=size, max_seq_len=32, dim=8, n_layers=1, n_heads=2)
        model = GPT(config.replace(init_std=1.0)).double()
        CACHE[name, seed] = TextGenerator(model, TOKENIZERS[name])
    return CACHE[name, seed]


def check(found, pattern, params, tokenizer):
    assert re.compile(pattern, re.ASCII).fullmatch(found.text), (pattern, found)
    assert len(found.ids) <= params.max_new_tokens
    assert found.finish_reason in ("end", "complete", "length", "context")
    special = set(tokenizer.special_tokens.values())
    body = found.ids[:-1] if found.finish_reason == "end" else found.ids
    assert not special & set(body)
    assert (found.finish_reason == "end") == bool(special & set(found.ids[-1:]))


parameters = st.builds(
    SamplingParams,
    max_new_tokens=st.integers(0, 30),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 3]),
    top_p=st.sampled_from([0.3, 1.0]),
    min_p=st.sampled_from([0.0, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 2.0]),
    seed=st.integers(0, 5),
    logprobs=st.booleans(),
)


@settings(max_examples=70)
@given(
    pattern=patterns(),
    params=parameters,
    name=st.sampled_from(list(TOKENIZERS)),
    seed=st.integers(0, 3),
    sliding=st.booleans(),
)
def test_only_matching_text_is_written_or_the_request_is_refused(
    pattern, params, name, seed, sliding
):
    generator, rule = writer(name, seed), Constraint.regex(pattern)
    prompts = ["a", "ab春1" * 6]
    try:
        together = generator.generate(prompts, params, constraint=rule, sliding=sliding)
    except ValueError as error:
        if not re.search("leaves room for|cannot spell", str(error)):
            raise
        return
    for prompt, found in zip(prompts, together, strict=True):
        check(found, pattern, params, TOKENIZERS[name])
        pieces = generator.stream(prompt, params, constraint=rule, sliding=sliding)
        assert "".join(pieces) == found.text


@settings(max_examples=40)
@given(
    pattern=patterns(),
    name=st.sampled_from(list(TOKENIZERS)),
    beams=st.integers(2, 4),
    room=st.integers(1, 8),
    penalty=st.sampled_from([0.0, 1.0]),
)
def test_beam_search_keeps_the_rule_too(pattern, name, beams, room, penalty):
    params = SamplingParams(num_beams=beams, max_new_tokens=room, length_penalty=penalty)
    try:
        found = writer(name).generate(["a"], params, constraint=Constraint.regex(pattern))
    except ValueError as error:
        if not re.search("leaves room for|cannot spell", str(error)):
            raise
        return
    check(found[0], pattern, params, TOKENIZERS[name])


def test_wide_beams_find_the_likeliest_valid_text():
    """Against scoring every sequence of tokens that spells a match."""
    generator, texts = writer("characters"), ["ab", "ba", "a春1", "bb", "b"]
    model, end = generator.model.eval(), CHARACTERS.end_id
    prompt = CHARACTERS.encode("a")
    scores = {}
    with torch.inference_mode():
        for text in texts:
            # «b» alone goes on, so it is whole only with the end
            ids = CHARACTERS.encode(text) + ([end] if text == "b" else [])
            state, total = list(prompt), 0.0
            for token in ids:
                logits = model(torch.tensor([state])).logits[0, -1, : CHARACTERS.vocab_size]
                written = CHARACTERS.decode(state[1:])
                allowed = {
                    CHARACTERS.encode(t[len(written)])[0]
                    for t in texts
                    if t.startswith(written) and t != written
                }
                allowed |= {end} if written in texts else set()
                kept = torch.tensor(sorted(allowed))
                total += float(logits[token] - logits[kept].logsumexp(0))
                state.append(token)
            scores[text] = total
    params = SamplingParams(num_beams=5, num_return=5, length_penalty=0.0, max_new_tokens=6)
    found = generator.generate("a", params, constraint=Constraint.choices(texts))
    assert {one.text: one.score for one in found} == pytest.approx(scores, abs=1e-3)
    assert [one.text for one in found] == sorted(texts, key=lambda text: -scores[text])


def test_the_distribution_is_the_softmax_over_what_is_allowed():
    generator, texts = writer("characters"), ["a", "b", "1春"]
    ids = torch.tensor([CHARACTERS.encode("春")])
    with torch.inference_mode():
        logits = generator.model.eval()(ids).logits[0, -1].float()
    first = torch.tensor([CHARACTERS.encode(text)[0] for text in texts])
    expected = logits[first].softmax(0)
    n = 4000
    params = SamplingParams(num_return=n, seed=0, max_new_tokens=3)
    found = generator.generate("春", params, constraint=Constraint.choices(texts))
    counted = Counter(one.text for one in found)
    assert set(counted) == set(texts)
    for text, p in zip(texts, expected.tolist(), strict=True):
        assert abs(counted[text] / n - p) <= 4 * math.sqrt(p * (1 - p) / n)


def test_logprobs_are_the_models_own():
    generator = writer("characters")
    params = SamplingParams(temperature=0, logprobs=True, max_new_tokens=4)
    found = generator.generate("春", params, constraint=Constraint.choices(["1"]))
    with torch.inference_mode():
        logits = generator.model.eval()(torch.tensor([CHARACTERS.encode("春")])).logits[0, -1]
    own = logits[: CHARACTERS.vocab_size].log_softmax(0)[CHARACTERS.encode("1")[0]]
    assert found.logprobs == pytest.approx([float(own)], abs=1e-4)


def test_each_prompt_may_have_its_own_rule():
    generator = writer()
    rules = [Constraint.choices(["月", "春天"]), None, Constraint.regex("[ab]{3}")]
    params = SamplingParams(max_new_tokens=9, temperature=3, num_return=3, seed=1)
    found = generator.generate(["a", "b", "春"], params, constraint=rules)
    assert {one.text for one in found[:3]} <= {"月", "春天"}
    assert all(re.fullmatch("[ab]{3}", one.text) for one in found[6:])
    free = generator.generate("b", params)
    assert [one.ids for one in found[3:6]] == [one.ids for one in free]
    beams = SamplingParams(max_new_tokens=6, num_beams=2)
    found = generator.generate(["a", "b", "春"], beams, constraint=rules)
    assert found[0].text in ("月", "春天")
    assert re.fullmatch("[ab]{3}", found[2].text)


def test_banned_tokens_never_lead_into_a_dead_end():
    """«b» is banned and would be needed after «aa»: so only «a1» is left."""
    b, end = CHARACTERS.encode("b")[0], CHARACTERS.end_id
    rule = Constraint.regex("aab|a1")
    params = SamplingParams(temperature=5, num_return=20, seed=0, logit_bias={b: -math.inf})
    found = writer("characters").generate("a", params, constraint=rule)
    assert {one.text for one in found} == {"a1"}
    # without an end to choose, a text stops when nothing may follow, or when it is full
    params = SamplingParams(max_new_tokens=5, num_return=9, seed=0, logit_bias={end: -math.inf})
    found = writer("characters").generate("a", params, constraint=Constraint.regex("a*|b"))
    assert {one.finish_reason for one in found} <= {"complete", "length"}
    assert {one.text for one in found} <= {"b", "aaaaa"}


def test_a_rule_that_only_the_empty_text_keeps():
    for params in (SamplingParams(), SamplingParams(num_beams=2), SamplingParams(max_new_tokens=0)):
        found = writer().generate("a", params, constraint=Constraint.regex(""))
        assert (found.text, found.ids) == ("", ())
        assert found.finish_reason == "complete"


def test_restrict_leaves_free_rows_alone():
    logits = torch.randn(2, 3)
    assert restrict(logits, [None, None]) is logits
    rows = restrict(logits, [None, torch.tensor([True, False, True])])
    assert torch.equal(rows[0], logits[0])
    assert rows[1].tolist() == [logits[1, 0].item(), -math.inf, logits[1, 2].item()]


def refused(message, prompts="a", params=None, **constraint):
    with pytest.raises(ValueError, match=message):
        writer("characters").generate(prompts, params or SamplingParams(), **constraint)


def test_bad_requests_are_refused_before_the_model_runs(monkeypatch):
    monkeypatch.setattr(GPT, "forward", lambda *_: pytest.fail("the model ran"))
    rule = Constraint.choices(["aaaa"])
    short = SamplingParams(max_new_tokens=3)
    refused(
        r"prompt leaves room for 3 new tokens, .*'aaaa'.* needs 4", params=short, constraint=rule
    )
    refused("prompt 1 leaves room for 2 new", ["a", "a" * 30], constraint=rule)
    refused("cannot spell any text that matches choices", constraint=Constraint.choices(["xyz"]))
    refused("stop=.*would cut the text", params=SamplingParams(stop=("b",)), constraint=rule)
    refused("must be a Constraint, such as", constraint="a*")
    refused("must be a Constraint or None, got 'a'", constraint=["a"])
    refused("2 prompts, got 1 constraints", ["a", "b"], constraint=[rule])
    for bad in ("yes", [], [""], ["a", 5], None):
        with pytest.raises(ValueError, match=r"choices(\[\d\])? must be a"):
            Constraint.choices(bad)
    with pytest.raises(ValueError, match="half a character"):
        Constraint.choices(["\ud800"])


def test_the_same_rule_gives_the_same_text_again_and_in_any_order():
    """Masks are cached between requests; a cache that mixed rows up would show here."""
    generator = writer()
    rules = [Constraint.regex(p) for p in ("[ab]{2,9}", "(春|天){2,5}", r"\d+", "a|b|1")]
    params = SamplingParams(max_new_tokens=8, temperature=2, seed=4)
    first = [generator.generate("a", params, constraint=rule).ids for rule in rules]
    for order in itertools.permutations(range(4)):
        found = generator.generate(["a"] * 4, params, constraint=[rules[i] for i in order])
        assert [one.ids for one in found] == [first[i] for i in order]


def test_a_text_stops_where_too_little_room_is_left_to_finish_again():
    """«aa» needs two tokens and one is left; without an end to choose, nothing could be drawn."""
    params = SamplingParams(max_new_tokens=1)
    found = writer("endless").generate("b", params, constraint=Constraint.regex("(aa)?"))
    assert (found.text, found.finish_reason) == ("", "length")
    params = SamplingParams(max_new_tokens=3, num_return=5, seed=0)
    found = writer("endless").generate("b", params, constraint=Constraint.regex("(aa)+"))
    assert {(one.text, one.finish_reason) for one in found} == {("aa", "length")}


def test_each_beam_counts_the_room_that_it_has_left():
    """b, ab and aab fit into three tokens; aaa would be a fourth that never finished."""
    rule = Constraint.regex("a*b")
    three = SamplingParams(num_beams=4, num_return=3, max_new_tokens=3)
    found = writer("endless").generate("1", three, constraint=rule)
    assert {one.text for one in found} == {"b", "ab", "aab"}
    four = SamplingParams(num_beams=4, num_return=4, max_new_tokens=3)
    with pytest.raises(ValueError, match="only 3 different texts can be written"):
        writer("endless").generate("1", four, constraint=rule)
