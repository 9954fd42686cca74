"""Every prompt with its own parameters: what stands beside a text never changes it."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from inference.constraints import Constraint
from inference.generator import SamplingParams, TextGenerator
from tokenization.tokenizer import Tokenizer

ALPHABET = "春眠不觉晓ab,"
TOKENIZER = Tokenizer.characters([ALPHABET])
RULE = Constraint.regex("[ab]{2,5},春*")


def writer(dtype, **changes):
    torch.manual_seed(3)
    sizes = {"max_seq_len": 24, "dim": 8, "n_layers": 2, "n_heads": 2, "init_std": 0.5}
    config = GPTConfig(vocab_size=TOKENIZER.vocab_size, **{**sizes, "position": "rope", **changes})
    return TextGenerator(GPT(config).to(dtype), TOKENIZER)


EXACT = writer(torch.float64)
requests = st.lists(
    st.tuples(
        st.text(alphabet=ALPHABET, min_size=1, max_size=20),
        st.builds(
            SamplingParams,
            max_new_tokens=st.integers(0, 12),
            temperature=st.sampled_from([0.0, 0.7, 1.5]),
            top_k=st.sampled_from([0, 3]),
            top_p=st.sampled_from([0.6, 1.0]),
            min_p=st.sampled_from([0.0, 0.2]),
            repetition_penalty=st.sampled_from([1.0, 1.3]),
            frequency_penalty=st.sampled_from([0.0, 0.4]),
            logit_bias=st.sampled_from([None, {2: 1.5}]),
            stop=st.sampled_from([(), ("ab",), ("春",)]),
            seed=st.integers(0, 3),
            logprobs=st.booleans(),
        ),
    ),
    min_size=1,
    max_size=5,
)


def plain(found):
    return found.text, found.ids, found.finish_reason


@settings(max_examples=80)
@given(
    several=requests,
    data=st.data(),
    sliding=st.booleans(),
    cache=st.sampled_from(["static", "growing", "none"]),
)
def test_each_text_is_the_one_written_alone(several, data, sliding, cache):
    several = data.draw(st.permutations(several))
    prompts, params = zip(*several, strict=True)
    how = {"sliding": sliding, "cache": cache}
    together = EXACT.generate(prompts, params, **how)
    for (prompt, one), found in zip(several, together, strict=True):
        alone = EXACT.generate(prompt, one, sliding=sliding)
        assert plain(alone) == plain(found)
        assert (found.logprobs is None) == (not one.logprobs)
        if one.logprobs:
            assert found.logprobs == pytest.approx(alone.logprobs, abs=1e-6)


def test_float32_too_over_hundreds_of_mixes():
    """Rounding differs with the batch's size; a million to one that it decides a token."""
    generator, choose = writer(torch.float32), random.Random(0)
    pool = [
        (
            "".join(choose.choices(ALPHABET, k=choose.randint(1, 12))),
            SamplingParams(
                max_new_tokens=8,
                temperature=choose.choice([0.0, 0.8, 1.2]),
                top_k=choose.choice([0, 4]),
                top_p=choose.choice([0.8, 1.0]),
                seed=choose.randrange(100),
            ),
        )
        for _ in range(40)
    ]
    alone = {index: plain(generator.generate(*request)) for index, request in enumerate(pool)}
    for _ in range(60):
        chosen = choose.sample(range(40), choose.randint(2, 12))
        prompts, params = zip(*(pool[index] for index in chosen), strict=True)
        for index, found in zip(chosen, generator.generate(prompts, params), strict=True):
            assert plain(found) == alone[index]


def test_beams_several_samples_and_rules_side_by_side():
    params = [
        SamplingParams(num_beams=3, num_return=2, max_new_tokens=5),
        SamplingParams(num_return=3, seed=1, max_new_tokens=6),
        SamplingParams(temperature=0, max_new_tokens=8, logprobs=True, top_logprobs=1),
        SamplingParams(seed=2, max_new_tokens=8, logprobs=True, top_logprobs=3),
    ]
    rules, prompts = [None, None, RULE, None], ["春", "眠不", "觉", "晓ab"]
    found = EXACT.generate(prompts, params, constraint=rules)
    expected = [
        text
        for prompt, one, rule in zip(prompts, params, rules, strict=True)
        for text in EXACT.generate([prompt], one, constraint=rule)
    ]
    assert [plain(text) for text in found] == [plain(text) for text in expected]
    assert [len(text.top_logprobs[0]) for text in found[-2:]] == [1, 3]
    assert found[0].score is not None
    assert found[2].score is None


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 100])
def test_many_prompts_are_written_batch_by_batch(batch):
    prompts = ["春", "眠不", "觉", "晓ab", "a" * 20, ",", "b"]
    params = [SamplingParams(max_new_tokens=3 + i, seed=i, num_return=1 + i % 2) for i in range(7)]
    rules = [RULE if i == 3 else None for i in range(7)]
    whole = EXACT.generate(prompts, params, constraint=rules)
    sizes = []
    hook = EXACT.model.token_embedding.register_forward_pre_hook(
        lambda module, args: sizes.append(len(args[0]))
    )
    each = list(EXACT.each(prompts, params, batch=batch, constraint=rules))
    hook.remove()
    assert [len(texts) for texts in each] == [1, 2, 1, 2, 1, 2, 1]
    assert [plain(text) for texts in each for text in texts] == [plain(text) for text in whole]
    assert max(sizes) <= 2 * batch
    assert EXACT.model.training


def test_everything_is_checked_before_the_first_batch():
    with pytest.raises(ValueError, match="prompt 4 has 30 tokens"):
        EXACT.each(["a"] * 4 + ["b" * 30], batch=1)
    with pytest.raises(ValueError, match="batch must be an integer >= 1, got 0"):
        EXACT.each(["a"], batch=0)
    assert list(EXACT.each([])) == []


def test_the_number_of_parameter_sets_is_that_of_the_prompts():
    with pytest.raises(ValueError, match="one for each prompt: 2 prompts, got 3 params"):
        EXACT.generate(["a", "b"], [SamplingParams()] * 3)
    with pytest.raises(ValueError, match="params must be SamplingParams, or a list of them, got 7"):
        EXACT.generate(["a"], 7)
    with pytest.raises(ValueError, match="stop=.* would cut the text"):
        EXACT.generate(["a", "b"], [SamplingParams(), SamplingParams(stop=("a",))], constraint=RULE)
    (found,) = EXACT.generate(["a"], [SamplingParams(max_new_tokens=1)])
    assert len(found.ids) == 1
