"""Prompt to text: the same text alone, in a batch, cached, streamed; every bad request refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from inference.generator import Generation, SamplingParams, TextGenerator
from tokenization.tokenizer import Tokenizer

ALPHABET = "春眠不觉晓ab,"
CHARACTERS = Tokenizer.characters([ALPHABET])
BPE = Tokenizer.train_bpe(["春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"], 290)
MODELS = {
    "learned": {},
    "rope": {"position": "rope", "norm": "rmsnorm", "qk_norm": True},
    "grouped window": {
        "position": "rope",
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 4,
        "sliding_window": 5,
    },
}
GREEDY = SamplingParams(temperature=0, max_new_tokens=8)
CACHE = {}


def writer(name="rope", tokenizer=CHARACTERS, seed=0, **changes):
    key = (name, tokenizer.vocab_size, seed, *sorted(changes.items()))
    if key not in CACHE:
        torch.manual_seed(seed)
        config = GPTConfig(
            **{
                "vocab_size": tokenizer.vocab_size,
                **{"max_seq_len": 24, "dim": 8, "n_layers": 2, "n_heads": 2, "init_std": 0.5},
                **MODELS[name],
                **changes,
            }
        )
        # Left in training mode on purpose. float64, so that two scores which rounding could swap
        # are as good as impossible: thousands of random texts must agree token by token.
        CACHE[key] = TextGenerator(GPT(config).double(), tokenizer)
    return CACHE[key]


prompt_lists = st.lists(st.text(alphabet=ALPHABET, min_size=1, max_size=24), min_size=1, max_size=4)
parameters = st.builds(
    SamplingParams,
    max_new_tokens=st.integers(0, 30),
    temperature=st.sampled_from([0.0, 0.7, 1.0, 1.5]),
    top_k=st.sampled_from([0, 1, 4]),
    top_p=st.sampled_from([0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.4]),
    stop=st.sampled_from([(), ("ab",), ("春", "a,")]),
    seed=st.integers(0, 5),
    logprobs=st.booleans(),
)


def same(left, right):
    """Equal up to the rounding of the log-probabilities."""
    assert (left.text, left.ids, left.finish_reason) == (right.text, right.ids, right.finish_reason)
    if left.logprobs is not None:
        assert left.logprobs == pytest.approx(right.logprobs, abs=1e-3)


@settings(max_examples=80)
@given(
    name=st.sampled_from(list(MODELS)),
    prompts=prompt_lists,
    params=parameters,
    sliding=st.booleans(),
    cache=st.sampled_from(["static", "growing", "none"]),
)
def test_alone_in_a_batch_cached_or_not_streamed_or_not(name, prompts, params, sliding, cache):
    generator = writer(name)
    together = generator.generate(prompts, params, sliding=sliding, cache=cache)
    other = "none" if cache != "none" else "static"
    assert len(together) == len(prompts)
    for prompt, found in zip(prompts, together, strict=True):
        same(found, generator.generate(prompt, params, sliding=sliding))
        pieces = list(generator.stream(prompt, params, sliding=sliding, cache=other))
        assert "".join(pieces) == found.text
        assert all(pieces)
        assert not any(stop in found.text for stop in params.stop)
        assert len(found.ids) <= params.max_new_tokens
        if not sliding:
            assert len(prompt) + len(found.ids) <= 24
        if found.finish_reason == "length":
            assert len(found.ids) == params.max_new_tokens
        if found.finish_reason == "context":
            assert not sliding
            assert len(prompt) + len(found.ids) == 24


@settings(max_examples=30)
@given(
    name=st.sampled_from(list(MODELS)),
    prompts=st.lists(st.text(alphabet="春处闻x🌕", min_size=1, max_size=3), min_size=1, max_size=3),
    seed=st.integers(0, 9),
)
def test_bytes_that_are_no_characters_stream_like_they_decode(name, prompts, seed):
    """A random model writes random bytes: halves of characters everywhere."""
    generator = writer(name, BPE, max_seq_len=40)
    params = SamplingParams(seed=seed, max_new_tokens=20)
    for prompt, found in zip(prompts, generator.generate(prompts, params), strict=True):
        assert "".join(generator.stream(prompt, params)) == found.text
        ids = found.ids[:-1] if found.finish_reason == "end" else found.ids
        assert found.text == BPE.decode(ids)


def test_greedy_is_the_argmax_of_the_model():
    generator = writer()
    ids = CHARACTERS.encode("春眠")
    expected = []
    model = generator.model.eval()
    with torch.no_grad():
        for _ in range(8):
            expected.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            ids.append(expected[-1])
            if expected[-1] == CHARACTERS.end_id:
                break
    model.train()
    assert list(generator.generate("春眠", GREEDY).ids) == expected


def test_seed_fixes_the_text_and_samples_differ():
    generator = writer()
    params = SamplingParams(seed=3, num_return=4, max_new_tokens=12)
    first = generator.generate("春", params)
    torch.manual_seed(99)
    assert generator.generate("春", params) == first
    assert len({found.ids for found in first}) == 4
    # the i-th sample is the same whatever stands beside it, and however many there are
    assert generator.generate("春", SamplingParams(seed=3, max_new_tokens=12)) == first[0]
    beside = generator.generate(["眠觉", "春"], params)
    assert [found.ids for found in beside[4:]] == [found.ids for found in first]
    assert len({found.ids for found in generator.generate(["春"], SamplingParams(seed=4))}) == 1
    assert generator.generate("春", SamplingParams(seed=4, max_new_tokens=12)) != first[0]


def test_greedy_ignores_the_seed():
    generator = writer()
    for seed in (0, 1):
        seeded = SamplingParams(temperature=0, max_new_tokens=8, seed=seed)
        assert generator.generate("春眠", seeded) == generator.generate("春眠", GREEDY)


def test_what_was_written_is_remembered_by_the_penalties():
    """A huge price on every repetition: eight tokens of nine, none twice, in every row."""
    generator = writer()
    params = SamplingParams(
        temperature=0, max_new_tokens=8, frequency_penalty=1e6, logit_bias={0: -math.inf}
    )
    for found in generator.generate(["春", "眠觉", "ab"], params):
        assert len(set(found.ids)) == 8
    # rows that leave must not take another row's memory along
    early = generator.generate(["a" * 20, "春", "眠觉"], params)
    assert len(early[0].ids) == 4
    assert [len(set(found.ids)) for found in early[1:]] == [8, 8]
    assert early[1].ids == generator.generate("春", params).ids


def test_without_the_cache_there_is_none(monkeypatch):
    generator = writer()
    made = []
    original = generator.model.make_cache
    monkeypatch.setattr(
        generator.model, "make_cache", lambda *a, **k: made.append(1) or original(*a, **k)
    )
    for params in (GREEDY, SamplingParams(num_beams=2, max_new_tokens=3)):
        generator.generate("春", params, cache="none")
        list(generator.stream("春", GREEDY, cache="none"))
        assert made == []
        generator.generate("春", params)
        assert len(made) == 1
        made.clear()


def test_a_long_prompt_slides_and_keeps_its_end():
    generator = writer()
    params = SamplingParams(temperature=0, max_new_tokens=40, logit_bias={0: -math.inf})
    prompt = "春眠不觉晓ab," * 5
    found = generator.generate(prompt, params, sliding=True)
    assert len(found.ids) == 40
    assert found.finish_reason == "length"
    assert found == generator.generate(prompt[-24:], params, sliding=True)
    assert "".join(generator.stream(prompt, params, sliding=True)) == found.text


def test_without_a_seed_torch_decides():
    generator = writer()
    params = SamplingParams(max_new_tokens=12)
    torch.manual_seed(5)
    first = [generator.generate(["春", "春"], params) for _ in range(2)]
    torch.manual_seed(5)
    assert [generator.generate(["春", "春"], params) for _ in range(2)] == first
    assert len({found.ids for batch in first for found in batch}) == 4


def test_logprobs_are_the_models_own_whatever_the_sampling():
    generator = writer()
    params = SamplingParams(
        seed=1,
        temperature=0.5,
        top_k=3,
        repetition_penalty=1.4,
        logit_bias={3: -math.inf},
        max_new_tokens=10,
        logprobs=True,
        top_logprobs=3,
    )
    found = generator.generate("春眠", params)
    ids = torch.tensor([[*CHARACTERS.encode("春眠"), *found.ids]])
    with torch.no_grad():
        log_probs = generator.model.eval()(ids).logits[0].log_softmax(-1)
    generator.model.train()
    assert 3 not in found.ids
    assert len(found.logprobs) == len(found.top_logprobs) == len(found.ids)
    for step, token in enumerate(found.ids):
        at = log_probs[1 + step]
        assert found.logprobs[step] == pytest.approx(float(at[token]), abs=1e-4)
        values, tokens = at.topk(3)
        assert [i for i, _ in found.top_logprobs[step]] == tokens.tolist()
        assert [p for _, p in found.top_logprobs[step]] == pytest.approx(values.tolist(), abs=1e-4)
    plain = generator.generate("春眠", SamplingParams(seed=1))
    assert plain.logprobs is plain.top_logprobs is plain.score is None


def test_the_end_token_ends_the_text_and_is_not_shown():
    generator = writer()
    params = SamplingParams(temperature=0, logit_bias={CHARACTERS.end_id: 100.0})
    found = generator.generate("春", params)
    assert found == Generation(text="", ids=(CHARACTERS.end_id,), finish_reason="end")
    assert list(generator.stream("春", params)) == []


def test_finished_rows_cost_nothing_more():
    """Rows that ended leave the batch: the model sees ever fewer of them."""
    generator = writer()
    sizes = []
    hook = generator.model.token_embedding.register_forward_hook(
        lambda module, args, output: sizes.append(len(args[0]))
    )
    # one token is all that fits for the second prompt
    generator.generate(
        ["春", "a" * 23], SamplingParams(temperature=0, max_new_tokens=5, logit_bias={0: -9e9})
    )
    hook.remove()
    assert sizes == [2, 1, 1, 1, 1]


def test_ids_and_texts_are_both_prompts():
    generator = writer()
    ids = CHARACTERS.encode("春眠")
    by_text = generator.generate(["春眠", "觉"], GREEDY)
    assert generator.generate([ids, CHARACTERS.encode("觉")], GREEDY) == by_text
    assert "".join(generator.stream(ids, GREEDY)) == by_text[0].text
    assert generator.generate([], GREEDY) == []
    (begun,) = generator.generate([[CHARACTERS.end_id]], GREEDY)
    assert len(begun.ids) >= 1


def test_what_generate_returns():
    generator = writer()
    two = SamplingParams(num_return=2, max_new_tokens=2)
    assert isinstance(generator.generate("春"), Generation)
    assert len(generator.generate("春", two)) == 2
    assert len(generator.generate(["春"], GREEDY)) == 1
    assert len(generator.generate(["春", "眠"], two)) == 4


def test_zero_new_tokens_and_a_full_context_do_not_run_the_model():
    generator = writer()
    calls = []
    hook = generator.model.register_forward_pre_hook(lambda *_: calls.append(1))
    none = Generation(text="", ids=(), finish_reason="length")
    assert generator.generate("春", SamplingParams(max_new_tokens=0)) == none
    full = generator.generate("a" * 24, SamplingParams())
    assert full == Generation(text="", ids=(), finish_reason="context")
    beams = SamplingParams(num_beams=2, num_return=2, max_new_tokens=0)
    assert [found.text for found in generator.generate("春", beams)] == ["", ""]
    hook.remove()
    assert calls == []


REFUSED = [
    ("", {}, {}, r"the prompt is empty \(0 tokens\).*or pass the ids \[0\]"),
    ("a" * 25, {}, {}, r"the prompt has 25 tokens, .* context \(max_seq_len\) is 24; .*sliding"),
    (["a", ""], {}, {}, r"prompt 1 is empty"),
    (["a", "b" * 30], {}, {}, r"prompt 1 has 30 tokens"),
    ("é", {}, {}, r"U\+00E9.*offset 0.*vocabulary of 9 tokens"),
    ([[1, 9]], {}, {}, r"each token id in the prompt must be an integer >= 0 and <= 8, got 9"),
    ([[1, -1]], {}, {}, r"each token id .* got -1"),
    ([1, 2], {}, {}, r"prompt 0 is the number 1; for one prompt of ids write"),
    ("a", {"num_beams": 10}, {}, r"num_beams must be an integer >= 1 and <= 9, got 10"),
    ("a", {"logit_bias": {9: 1.0}}, {}, r"logit_bias must be .* <= 8, got 9"),
    (
        "a",
        {"logit_bias": dict.fromkeys(range(9), -math.inf)},
        {},
        r"row 0: every token is forbidden",
    ),
]


@pytest.mark.parametrize(("prompt", "params", "how", "message"), REFUSED)
def test_requests_that_cannot_be_served(prompt, params, how, message):
    with pytest.raises(ValueError, match=message):
        writer().generate(prompt, SamplingParams(**params), **how)


def test_streams_refuse_at_once_and_write_one_text_only():
    generator = writer()
    with pytest.raises(ValueError, match="the prompt is empty"):
        generator.stream("")
    with pytest.raises(ValueError, match="num_return must be 1, got 2; use generate"):
        generator.stream("a", SamplingParams(num_return=2))
    with pytest.raises(ValueError, match="num_beams must be 1, got 3; use generate"):
        generator.stream("a", SamplingParams(num_beams=3))


def test_tokenizer_larger_than_the_model_is_refused():
    model = writer().model
    with pytest.raises(ValueError, match=r"tokenizer has 290 tokens.*vocab_size is 9"):
        TextGenerator(model, BPE)


def test_a_padded_vocabulary_is_never_written():
    """The model has 64 rows, the tokenizer 9: the others must not be chosen, ever."""
    generator = writer(vocab_size=64, seed=3)
    with torch.no_grad():
        raw = generator.model.eval()(torch.tensor([CHARACTERS.encode("春")])).logits[0, -1]
    generator.model.train()
    assert int(raw.argmax()) >= 9  # it would like to
    for params in (GREEDY, SamplingParams(seed=0, num_return=9), SamplingParams(num_beams=3)):
        for found in generator.generate(["春"], params):
            assert max(found.ids) < 9


def test_gaps_in_the_vocabulary_are_never_written():
    class Gappy:
        """CHARACTERS without the token 4."""

        def __getattr__(self, name):
            return getattr(CHARACTERS, name)

        def token_bytes(self, token):
            if token == 4:
                raise ValueError("unused")
            return CHARACTERS.token_bytes(token)

    generator = TextGenerator(writer().model, Gappy())
    assert generator.forbidden.tolist() == [4]
    params = SamplingParams(seed=0, num_return=20, max_new_tokens=20)
    assert all(4 not in found.ids for found in generator.generate(["春"], params))


def test_the_model_is_left_as_it_was():
    generator = writer(dropout=0.5)
    model = generator.model
    model.blocks[0].eval()  # someone froze a part
    before = [module.training for module in model.modules()]
    assert True in before
    assert False in before
    first = generator.generate("春", GREEDY)
    assert generator.generate("春", GREEDY) == first  # no dropout while writing
    stream = generator.stream("春", GREEDY)
    text = next(stream)
    # between two pieces the caller may train: nothing of ours is in force
    assert [module.training for module in model.modules()] == before
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    assert text + "".join(stream) == first.text
    abandoned = generator.stream("春", GREEDY)
    next(abandoned)
    del abandoned
    assert [module.training for module in model.modules()] == before
    model.train()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interruption_leaves_everything_sane(error):
    generator = writer()
    calls = []

    def interrupt(module, args):
        calls.append(1)
        if len(calls) == 3:
            raise error

    hook = generator.model.final_norm.register_forward_pre_hook(interrupt)
    stream = generator.stream("春", SamplingParams(seed=0, logit_bias={0: -math.inf}))
    shown = [next(stream), next(stream)]
    with pytest.raises(error):
        next(stream)
    hook.remove()
    assert generator.model.training
    assert not torch.is_inference_mode_enabled()
    again = list(generator.stream("春", SamplingParams(seed=0, logit_bias={0: -math.inf})))
    assert again[:2] == shown


def test_generating_tracks_no_gradients():
    generator = writer()
    seen = []
    hook = generator.model.lm_head.register_forward_hook(
        lambda module, args, output: seen.append(output.requires_grad)
    )
    generator.generate("春", GREEDY)
    list(generator.stream("春", GREEDY))
    hook.remove()
    assert seen
    assert not any(seen)


def test_a_model_with_nan_weights_is_named():
    broken = writer(seed=7)
    with torch.no_grad():
        broken.model.lm_head.weight[3, 0] = math.nan
    CACHE.clear()
    with pytest.raises(ValueError, match="scores hold nan; its weights are damaged"):
        broken.generate(["春", "眠"], SamplingParams(top_k=2, top_p=0.5))
