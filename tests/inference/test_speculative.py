"""Guessing ahead changes nothing but the number of times the model runs."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from inference.constraints import Constraint
from inference.drawing import draw
from inference.generator import SamplingParams, TextGenerator
from inference.guessing import DraftModel, PromptLookup
from inference.random_stream import RowRandom
from inference.speculative import Speculation, accept_or_again, n_right, same_choice
from tokenization.tokenizer import Tokenizer

ALPHABET = "春眠不觉晓ab,"
TOKENIZER = Tokenizer.characters([ALPHABET])
VOCAB = TOKENIZER.vocab_size
KINDS = {
    "learned": {},
    "rope": {"position": "rope", "norm": "rmsnorm", "qk_norm": True},
    "window": {"position": "rope", "n_heads": 4, "n_kv_heads": 2, "sliding_window": 5},
    "previous": {"position": "rope", "token_shift": True, "bigram_rows": 17},
}
CACHE = {}


def build(kind="rope", seed=0, **changes):
    """float64: two scores that rounding could swap are as good as impossible."""
    key = (kind, seed, *sorted(changes.items()))
    if key not in CACHE:
        torch.manual_seed(seed)
        sizes = {"max_seq_len": 24, "dim": 8, "n_layers": 2, "n_heads": 2, "init_std": 0.5}
        model = GPT(GPTConfig(**{"vocab_size": VOCAB, **sizes, **KINDS[kind], **changes})).double()
        for name, parameter in model.named_parameters():
            if name.startswith("previous_token."):  # these begin at zero
                torch.nn.init.normal_(parameter)
        CACHE[key] = model
    return CACHE[key]


class Knowing:
    """A guesser that knows the text and is wrong now and then."""

    def __init__(self, text, mistakes, seed=0):
        self.text, self.mistakes, self.random = list(text), mistakes, random.Random(seed)

    def check(self, tokenizer):
        pass

    def begin(self):
        return self

    def guess(self, ids, n, choose):
        found = self.text[len(ids) : len(ids) + n]
        wrong = [(token + 1) % VOCAB for token in found]
        is_wrong = [self.random.random() < self.mistakes for _ in found]
        return [w if bad else t for t, w, bad in zip(found, wrong, is_wrong, strict=True)]


parameters = st.builds(
    SamplingParams,
    max_new_tokens=st.integers(0, 30),
    temperature=st.sampled_from([0.0, 0.7, 1.3]),
    top_k=st.sampled_from([0, 4]),
    top_p=st.sampled_from([0.7, 1.0]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.4]),
    logit_bias=st.sampled_from([None, {0: -math.inf}, {3: 1.0}]),
    stop=st.sampled_from([(), ("ab",), ("春", "a,")]),
    seed=st.integers(0, 9),
    logprobs=st.booleans(),
)
sources = st.sampled_from(["lookup", "draft", "itself", "short draft", "knowing", "half knowing"])
prompts = st.text(alphabet=ALPHABET, min_size=1, max_size=20)


def source_of(name, kind, prompt, text):
    ids = [*TOKENIZER.encode(prompt), *text.ids]
    return {
        "lookup": lambda: PromptLookup(2, 1),
        "draft": lambda: DraftModel(build(kind, 1, n_layers=1), TOKENIZER),
        "itself": lambda: DraftModel(build(kind), TOKENIZER),
        "short draft": lambda: DraftModel(build(kind, 2, max_seq_len=6), TOKENIZER),
        "knowing": lambda: Knowing(ids, 0.0),
        "half knowing": lambda: Knowing(ids, 0.4),
    }[name]()


@settings(max_examples=200)
@given(
    kind=st.sampled_from(list(KINDS)),
    prompt=prompts,
    params=parameters,
    name=sources,
    most=st.integers(1, 6),
    sliding=st.booleans(),
)
def test_the_text_is_the_one_without(kind, prompt, params, name, most, sliding):
    generator = TextGenerator(build(kind), TOKENIZER)
    plain = generator.generate(prompt, params, sliding=sliding)
    found = Speculation(source_of(name, kind, prompt, plain), most, adaptive=False)
    text = generator.generate(prompt, params, sliding=sliding, speculation=found)
    assert (text.text, text.ids, text.finish_reason) == (
        plain.text,
        plain.ids,
        plain.finish_reason,
    )
    if params.logprobs:
        assert text.logprobs == pytest.approx(plain.logprobs, abs=1e-9)
    again = Speculation(source_of(name, kind, prompt, plain), most, adaptive=False)
    pieces = generator.stream(prompt, params, sliding=sliding, speculation=again)
    assert "".join(pieces) == plain.text


@settings(max_examples=60)
@given(
    several=st.lists(st.tuples(prompts, parameters), min_size=2, max_size=4),
    name=st.sampled_from(["lookup", "draft"]),
    adaptive=st.booleans(),
)
def test_in_a_batch_too(several, name, adaptive):
    """It begins when one row is left, which has padding on its left by then."""
    generator = TextGenerator(build(), TOKENIZER)
    texts, params = zip(*several, strict=True)
    found = Speculation(source_of(name, "rope", "a", generator.generate("a")), adaptive=adaptive)
    assert generator.generate(texts, params, speculation=found) == generator.generate(texts, params)


RULES = [
    Constraint.regex("[ab]{2,9},?春*"),
    Constraint.choices(["春眠不觉晓", "春眠不觉", "ab"]),
    Constraint.regex("(ab,){1,4}"),
]


@settings(max_examples=60)
@given(
    rule=st.sampled_from(RULES),
    seed=st.integers(0, 20),
    n=st.integers(5, 20),
    name=sources,
    most=st.integers(1, 5),
)
def test_rules_are_kept(rule, seed, n, name, most):
    generator = TextGenerator(build(), TOKENIZER)
    params = SamplingParams(max_new_tokens=n, temperature=1.5, seed=seed, frequency_penalty=0.2)
    plain = generator.generate("春", params, constraint=rule)
    found = Speculation(source_of(name, "rope", "春", plain), most, adaptive=False)
    assert generator.generate("春", params, constraint=rule, speculation=found) == plain


def runs_of(generator, *arguments, **options):
    """How many tokens the model reads at each run."""
    sizes = []
    hook = generator.model.token_embedding.register_forward_hook(
        lambda module, args, output: sizes.append(args[0].shape[1])
    )
    text = generator.generate(*arguments, **options)
    hook.remove()
    return text, sizes


def test_perfect_guesses_divide_the_number_of_runs():
    generator = TextGenerator(build(), TOKENIZER)
    params = SamplingParams(max_new_tokens=21, seed=1, logit_bias={0: -math.inf})
    plain, sizes = runs_of(generator, "春", params)
    assert sizes == [1] * 21
    found = Speculation(Knowing([*TOKENIZER.encode("春"), *plain.ids], 0.0), 4, adaptive=False)
    text, sizes = runs_of(generator, "春", params, speculation=found)
    assert text == plain
    # the prompt, then 20 tokens five at a time: four guesses and the one that comes free
    assert sizes == [1, 5, 5, 5, 5]
    assert (found.runs, found.written, found.guessed, found.right) == (4, 20, 16, 16)
    assert found.acceptance == 1.0


def test_it_never_reads_past_the_end_of_text_or_context():
    generator = TextGenerator(build(), TOKENIZER)
    for n in range(1, 12):
        params = SamplingParams(max_new_tokens=n, seed=1, logit_bias={0: -math.inf})
        plain = generator.generate("春眠", params)
        ids = [*TOKENIZER.encode("春眠"), *plain.ids, 1, 2, 3, 4, 5, 6, 7]
        found = Speculation(Knowing(ids, 0.0), 8, adaptive=False)
        text, sizes = runs_of(generator, "春眠", params, speculation=found)
        assert text == plain
        assert sum(sizes) <= 2 + n


# ── distributions, against brute force ──────────────────────────────────────────────────────────


def limit(degrees):
    """About one honest sample in 100,000 exceeds it (Wilson and Hilferty)."""
    return degrees * (1 - 2 / (9 * degrees) + 4.26 * math.sqrt(2 / (9 * degrees))) ** 3


def exact_distribution(model, prompt, params, n_tokens):
    """The probability of every text of n tokens, by walking all of them."""
    found = {(): 1.0}
    with torch.no_grad():
        for _ in range(n_tokens):
            longer = {}
            for ids, total in found.items():
                logits = model.eval()(torch.tensor([[*prompt, *ids]])).logits[:, -1]
                for process in params.processors():
                    logits = process(logits)
                for token, p in enumerate(logits.softmax(-1)[0].tolist()):
                    if p:
                        longer[(*ids, token)] = total * p
            found = longer
    return found


def chi_square(counts, expected, n):
    """Cells that expect less than five are put together."""
    rare = [ids for ids, p in expected.items() if n * p < 5]
    cells = [(counts.get(ids, 0), n * p) for ids, p in expected.items() if n * p >= 5]
    if rare:
        cells.append((sum(counts.get(i, 0) for i in rare), n * sum(expected[i] for i in rare)))
    assert sum(count for count, _ in cells) == n
    return sum((count - wanted) ** 2 / wanted for count, wanted in cells), len(cells) - 1


@pytest.mark.parametrize("name", ["lookup", "draft"])
def test_texts_come_as_often_as_their_probability_says(name):
    n = 800
    changes = {"logit_bias": {0: -math.inf}, "max_new_tokens": 4, "temperature": 1.2, "top_k": 4}
    params = SamplingParams(**changes)
    model, prompt = build(), "春眠春"
    expected = exact_distribution(model, TOKENIZER.encode(prompt), params, 4)
    assert sum(expected.values()) == pytest.approx(1.0)
    generator, counts = TextGenerator(model, TOKENIZER), {}
    found = Speculation(source_of(name, "rope", "a", generator.generate("a")), 3, adaptive=False)
    for seed in range(n):
        one = SamplingParams(seed=seed, **changes)
        ids = generator.generate(prompt, one, speculation=found).ids
        counts[ids] = counts.get(ids, 0) + 1
    assert 0.02 < found.acceptance < 0.98
    value, degrees = chi_square(counts, expected, n)
    assert degrees > 20
    assert value < limit(degrees)


@pytest.mark.parametrize("seed", range(3))
def test_the_papers_rule_keeps_the_distribution(seed):
    generator = torch.Generator().manual_seed(seed)
    p, q = torch.rand(2, 9, dtype=torch.float64, generator=generator).pow(3)
    p[2], q[3] = 0.0, 0.0  # never written; never guessed
    p, q, n = p / p.sum(), q / q.sum(), 20_000
    u, again = torch.rand(2, n, dtype=torch.float64, generator=generator).tolist()
    guesses = torch.multinomial(q, n, replacement=True, generator=generator).tolist()
    found = [accept_or_again(p, q, *three) for three in zip(guesses, u, again, strict=True)]
    counts = torch.bincount(torch.tensor([token for token, _ in found]), minlength=9)
    expected = {(token,): float(p[token]) for token in range(9) if p[token]}
    value, degrees = chi_square(
        {(token,): int(count) for token, count in enumerate(counts)}, expected, n
    )
    assert value < limit(degrees)
    rate = sum(kept for _, kept in found) / n
    assert rate == pytest.approx(float(torch.minimum(p, q).sum()), abs=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_the_chance_of_the_same_choice_is_what_happens(seed):
    generator = torch.Generator().manual_seed(seed)
    p, q = torch.rand(2, 9, dtype=torch.float64, generator=generator).pow(2)
    p[2], q[3] = 0.0, 0.0
    p, q, n, source = p / p.sum(), q / q.sum(), 20_000, RowRandom(seed)
    keys = [source.at(t) for t in range(n)]
    picks = [draw(x.log().expand(n, -1), keys) for x in (p, q)]
    share = float((picks[0] == picks[1]).double().mean())
    assert same_choice(p, q) == pytest.approx(share, abs=0.015)
    best = float(torch.minimum(p, q).sum())
    assert best / (2 - best) <= same_choice(p, q) <= best
    assert same_choice(p, p) == pytest.approx(1.0)


def test_counting_what_was_right():
    assert n_right([], [3]) == 0
    assert n_right([1, 2], [1, 2, 9]) == 2
    assert n_right([1, 2, 3], [1, 5, 3, 4]) == 1


# ── what is refused; what is reported ───────────────────────────────────────────────────────────


def test_what_cannot_be_speculated_is_refused():
    generator = TextGenerator(build(), TOKENIZER)
    other = Tokenizer.characters(["甲乙丙丁戊己庚辛"])
    assert other.vocab_size == VOCAB
    strange = Speculation(DraftModel(build(), other))
    with pytest.raises(ValueError, match=r"tokenizer differs.*9 tokens \(.*9 tokens \("):
        generator.generate("a", speculation=strange)
    mine = Speculation(PromptLookup())
    with pytest.raises(ValueError, match="must be static, growing or int8, got 'none'"):
        generator.stream("a", cache="none", speculation=mine)
    with pytest.raises(ValueError, match="got 'sliding'"):
        generator.generate("a", cache="sliding", speculation=mine)
    with pytest.raises(ValueError, match="num_beams must be 1, got 2"):
        generator.generate("a", SamplingParams(num_beams=2), speculation=mine)
    with pytest.raises(ValueError, match="shortest must be an integer >= 1, got 0"):
        PromptLookup(2, 0)
    with pytest.raises(ValueError, match="longest must be an integer >= 3, got 2"):
        PromptLookup(2, 3)


def test_the_report_counts():
    found = Speculation(PromptLookup())
    assert found.report() == "speculation: nothing was guessed"
    for _ in range(3):
        found.after(0, 0, 1, 1.0)
    found.after(4, 3, 4, 2.0)
    assert found.report() == (
        "speculation: 3 of 4 guesses were right (75%), 1.75 tokens a run of the model, "
        "about 1.40 x as fast as without"
    )
