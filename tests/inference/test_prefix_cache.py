"""What an earlier call has read is not read again, and nothing that is written changes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetuning.adapters import adapters_disabled
from finetuning.lora import LoRAConfig, apply_lora
from foundation.compiled_code import CodeUnavailable
from gpt_model.caches import copy_columns
from gpt_model.config import GPTConfig
from gpt_model.longer_context import extend_context
from gpt_model.model import GPT
from inference import shared_prompt
from inference.conversation import Conversation
from inference.decoder import Decoder
from inference.generator import SamplingParams, TextGenerator
from inference.guessing import PromptLookup
from inference.kernel_interface import load_kernels
from inference.prefix_cache import PrefixCache
from inference.prepared import PreparedModel, prepare_for_inference
from inference.shared_prompt import share
from inference.speculative import Speculation
from tokenization.tokenizer import Tokenizer

LETTERS = Tokenizer.characters(["abcdefghijklmnopqrstuvwxyz \n"])
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


class Counter:
    """The shapes of what runs through the model inside the block."""

    def __init__(self, model):
        self.model, self.shapes = model, []

    def __enter__(self):
        self.handle = self.model.register_forward_pre_hook(
            lambda _, given: self.shapes.append(tuple(given[0].shape))
        )
        return self

    def __exit__(self, *_):
        self.handle.remove()

    @property
    def n_tokens(self):
        return sum(rows * columns for rows, columns in self.shapes)


def first_read(model, prompts, prefixes, **how):
    """How many tokens run through the model until every row's first scores are known."""
    with Counter(model) as counter, torch.inference_mode():
        decoder = Decoder(model, prompts, max_new_tokens=4, prefixes=prefixes, **how)
        scores = decoder.next_logits()
    return counter.n_tokens, scores, decoder


tokens = st.integers(0, 2)  # few, so that beginnings are often shared
texts = st.lists(tokens, min_size=1, max_size=12)


def common(a, b):
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(list(MODELS)),
    cache=st.sampled_from(["static", "growing", "int8"]),
    size=st.integers(1, 3),
    worth=st.sampled_from([1, 32]),
    calls=st.lists(st.lists(texts, min_size=1, max_size=3), min_size=2, max_size=5),
    data=st.data(),
)
def test_calls_one_after_the_other_score_as_if_alone(name, cache, size, worth, calls, data):
    """Unequal rows are written, doubled and dropped; the next call may go on from them."""
    model, prefixes, fed = EXACT[name], PrefixCache(size), []
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(shared_prompt, "WORTH", worth)
        for prompts in calls:
            if fed and data.draw(st.booleans()):
                beginning = data.draw(st.sampled_from(data.draw(st.sampled_from(fed))))
                prompts = [beginning[:40] + prompt for prompt in prompts]
            n, scores, decoder = first_read(model, prompts, prefixes, cache=cache)
            _, expected, plain = first_read(model, prompts, None, cache=cache)
            torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
            # counted: what the rows have in common, less what the last calls had in their caches
            rows, _, shared = share(prompts)
            alone = rows[0][:-1] if len(rows) == 1 else rows[0][:shared]
            known = max((common(alone, row) for call in fed[-size:] for row in call), default=0)
            assert n == shared - known + len(rows) * (max(map(len, rows)) - shared)
            for _ in range(data.draw(st.integers(0, 3))):
                choice = st.sampled_from(range(len(plain.windows)))
                kept = data.draw(st.lists(choice, min_size=1, max_size=3))
                new = data.draw(st.lists(tokens, min_size=len(kept), max_size=len(kept)))
                for one in (decoder, plain):
                    one.keep(kept)
                    one.append(new)
                found, expected = decoder.next_logits(), plain.next_logits()
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
            fed.append([list(window) for window in decoder.windows])


@pytest.mark.parametrize("cache", ["static", "growing", "int8"])
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_a_chat_reads_only_what_is_new(cache, temperature):
    model = EXACT["grouped"]
    params = SamplingParams(temperature=temperature, max_new_tokens=6, seed=3)
    plain = TextGenerator(model, LETTERS)
    writer = TextGenerator(model, LETTERS, prefixes=PrefixCache())
    talk = Conversation(LETTERS, 64, 6)
    for turn, question in enumerate(["the quick ", "brown fox", "jumps", "over"]):
        prompt, dropped = talk.prompt(question)
        assert not dropped
        expected = plain.generate(prompt, params, cache=cache)
        with Counter(model) as counter:
            answer = "".join(writer.stream(prompt, params, cache=cache))
        assert answer == expected.text
        # the last token of an answer was written, never fed; then a newline and the question
        new = len(question) + 2 if turn else len(question)
        assert counter.shapes == [(1, new)] + [(1, 1)] * (len(expected.ids) - 1)
        talk.remember(question, answer)


@pytest.mark.parametrize("cache", ["static", "growing", "int8"])
def test_the_next_batch_begins_where_the_last_one_did(cache):
    """A system prompt of 20 letters; unequal questions, two texts each, then beams."""
    model, beginning = EXACT["previous"], "answer in one word  "
    batches = [["what is it", "who"], ["where to", "when", "why so late"]]
    params = [
        SamplingParams(temperature=1.2, max_new_tokens=5, seed=2, num_return=2),
        SamplingParams(temperature=0, max_new_tokens=5, num_beams=2),
    ]
    writer = TextGenerator(model, LETTERS, prefixes=PrefixCache())
    for turn, questions in enumerate(batches):
        for one in params:
            prompts = [beginning + question for question in questions]
            expected = TextGenerator(model, LETTERS).generate(prompts, one, cache=cache)
            with Counter(model) as counter:
                found = writer.generate(prompts, one, cache=cache)
            assert [text.ids for text in found] == [text.ids for text in expected]
            # 20 letters and «wh», the last of them from «who»: only the rests are read
            if turn and one.num_beams == 1:
                assert counter.shapes[0] == (3, 9)


def test_a_stream_left_in_the_middle_and_two_at_once():
    model, params = EXACT["grouped"], SamplingParams(temperature=0.9, max_new_tokens=8, seed=4)
    plain = TextGenerator(model, LETTERS)
    writer = TextGenerator(model, LETTERS, prefixes=PrefixCache())
    first, second = "the quick brown fox ", "the quick brown dog "
    one = writer.stream(first, params)
    begun = [next(one), next(one)]
    other = writer.stream(second, params)
    begun_other = [next(other)]
    assert "".join(begun + list(one)) == plain.generate(first, params).text
    assert "".join(begun_other + list(other)) == plain.generate(second, params).text
    assert writer.prefixes.n_reused == len("the quick brown ")


def test_an_interrupt_in_the_middle_of_a_layer_leaves_nothing_wrong():
    model, prefixes = build("previous"), PrefixCache()
    prompt = list(range(9))
    _, _, decoder = first_read(model, [prompt], prefixes)
    decoder.append([3])

    def interrupt(*_):
        raise KeyboardInterrupt

    layer = model.blocks[1]
    handle = layer.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), torch.inference_mode():
        decoder.next_logits()
    handle.remove()
    # layer 0 has ten tokens, layer 1 nine
    assert [one.length for one in decoder.cache.layers] == [10, 9]
    n, scores, _ = first_read(model, [[*prompt, 3, 4]], prefixes)
    assert n == 2
    torch.testing.assert_close(scores, first_read(model, [[*prompt, 3, 4]], None)[1])


def test_speculation_and_wrong_guesses():
    model, params = EXACT["grouped"], SamplingParams(temperature=0, max_new_tokens=12)
    writer = TextGenerator(model, LETTERS, prefixes=PrefixCache())
    text = "abc abc abc abc "
    for _ in range(3):
        expected = TextGenerator(model, LETTERS).generate(text, params)
        with Counter(model) as counter:
            found = writer.generate(text, params, speculation=Speculation(PromptLookup()))
        assert found.ids == expected.ids
        text += found.text[:8]
    assert counter.shapes[0][1] <= 9


def changes(model):
    """Ways to make another model of this one, each of which leaves the next different."""
    yield "a step", lambda: add(model)
    yield (
        "loaded",
        lambda: model.load_state_dict(
            {name: value * 1.01 for name, value in model.state_dict().items()}
        ),
    )
    yield "rounded", lambda: model.bfloat16().float()
    yield "longer", lambda: extend_context(model, 128, "linear")


@torch.no_grad()
def add(model):
    for parameter in model.parameters():
        parameter.add_(0.01)


@pytest.mark.parametrize("index", range(4))
def test_another_model_reads_again(index):
    model = build("grouped", torch.float32)
    prefixes, prompt = PrefixCache(), list(range(12))
    first_read(model, [prompt], prefixes)
    assert first_read(model, [[*prompt, 1]], prefixes)[0] == 1
    change_name, change = list(changes(model))[index]
    change()
    n, scores, _ = first_read(model, [[*prompt, 1]], prefixes)
    assert n == 13
    assert torch.equal(scores, first_read(model, [[*prompt, 1]], None)[1])
    assert first_read(model, [[*prompt, 1, 2]], prefixes)[0] == 1
    if change_name == "longer":  # the same length, other angles
        extend_context(model, 128, "yarn")
        assert first_read(model, [[*prompt, 1]], prefixes)[0] == 13
    # a twin with the same numbers is another model
    twin = build("grouped", torch.float32)
    assert first_read(twin, [[*prompt, 1]], prefixes)[0] == 13


def test_adapters_switched_on_and_off_read_again():
    model, prefixes, prompt = build("grouped", torch.float32), PrefixCache(), list(range(12))
    apply_lora(model, LoRAConfig(r=2, alpha=4))
    add(model)
    model.eval()
    first_read(model, [prompt], prefixes)
    assert first_read(model, [[*prompt, 1]], prefixes)[0] == 1
    with adapters_disabled(model):
        n, off, _ = first_read(model, [[*prompt, 1]], prefixes)
        assert n == 13
    n, on, _ = first_read(model, [[*prompt, 1]], prefixes)
    assert n == 13
    assert not torch.equal(on, off)


def test_another_kind_of_cache_a_slid_window_and_clear():
    model, prefixes, prompt = EXACT["grouped"], PrefixCache(2), [1] * 12
    first_read(model, [prompt], prefixes)
    assert first_read(model, [prompt], prefixes, cache="int8")[0] == 12
    assert first_read(model, [prompt], prefixes)[0] == 1
    prefixes.clear()
    assert first_read(model, [prompt], prefixes)[0] == 12
    # a window of 64 that slides counts its positions from its new beginning
    long = [i % V for i in range(64)]
    _, _, decoder = first_read(model, [long], prefixes, sliding=True)
    decoder.append([5])
    window = list(decoder.windows[0])
    assert len(window) == 33
    assert first_read(model, [[*window, 1]], prefixes)[0] == 34
    with torch.inference_mode():
        decoder.next_logits()
    assert first_read(model, [decoder.windows[0]], prefixes)[0] == 1


@pytest.mark.parametrize("kind", ["none", "sliding"])
def test_caches_that_cannot_be_copied_are_refused(kind):
    writer = TextGenerator(EXACT["grouped"], LETTERS, prefixes=PrefixCache())
    with pytest.raises(ValueError, match=f"must be static, growing or int8, got '{kind}'"):
        writer.generate("abc", cache=kind)


def test_a_sliding_cache_says_that_it_cannot_be_copied():
    model = EXACT["grouped"]
    source, target = (model.make_cache(1, kind="sliding") for _ in range(2))
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]), cache=source)
    with pytest.raises(NotImplementedError, match="SlidingCache cannot be copied"):
        copy_columns(source, target, 0, 0, 2)


@pytest.mark.parametrize("size", [0, -1, True, 1.5])
def test_odd_sizes(size):
    with pytest.raises(ValueError, match="size"):
        PrefixCache(size)


@pytest.fixture
def kernels():
    try:
        return load_kernels()
    except CodeUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("split", [1, 7, 19])
@pytest.mark.parametrize("bits", [None, 8, 4])
def test_prepared_kernels_agree_to_the_last_bit(kernels, bits, split):
    if bits is None:
        model = PreparedModel(build("grouped", torch.float32), kernels)
    else:
        wide = build("grouped", torch.float32, dim=32, n_heads=4, head_dim=8)
        model = prepare_for_inference(wide, bits=bits, group_size=32)
    torch.manual_seed(2)
    prompt, prefixes = torch.randint(V, (20,)).tolist(), PrefixCache()
    first_read(model, [prompt[:split]], prefixes)
    n, scores, decoder = first_read(model, [prompt], prefixes)
    _, expected, plain = first_read(model, [prompt], None)
    assert n == 20 - split
    assert torch.equal(scores, expected)
    with torch.inference_mode():
        for token in (1, 2, 3):
            decoder.append([token])
            plain.append([token])
            assert torch.equal(decoder.next_logits(), plain.next_logits())
