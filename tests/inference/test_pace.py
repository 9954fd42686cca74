"""How much to guess: as much as pays, and never slower than 0.9 x, on a clock of our own."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from inference import session
from inference.generator import SamplingParams, TextGenerator
from inference.guessing import DraftModel, PromptLookup
from inference.pace import Pace
from inference.speculative import Speculation
from tokenization.tokenizer import Tokenizer


def run(pace, n_tokens, extra, alpha, noise=0.0, seed=0):
    """Write n tokens at one second each; return (seconds, sizes)."""
    chance, written, seconds, sizes = random.Random(seed), 0, 0.0, []
    while written < n_tokens:
        k = pace.size(n_tokens - written - 1)
        rate = alpha(written) if callable(alpha) else alpha
        right = next((i for i in range(k) if chance.random() >= rate), k)
        spent = (1.0 + k * extra) * (1 + noise * chance.random())
        pace.after(k, right, spent)
        seconds, written = seconds + spent, written + right + 1
        sizes.append(k)
    return seconds, sizes


@settings(max_examples=150)
@given(
    alpha=st.floats(0, 1),
    extra=st.floats(0, 4),
    noise=st.floats(0, 0.3),
    seed=st.integers(0, 999),
    n=st.integers(60, 400),
)
def test_never_slower_than_nine_tenths(alpha, extra, noise, seed, n):
    seconds, sizes = run(Pace(), n, extra, alpha, noise, seed)
    # beside the allowance, one guess of two tokens that nobody could know the price of
    assert seconds <= (n * (1 + noise / 2) * 1.02 + 2 * extra) / 0.93
    assert max(sizes) <= 8


def test_a_guesser_that_turns_bad_is_left_alone():
    """Right for long, then never: the gains of before are not spent on being wrong."""
    seconds, sizes = run(Pace(), 2_000, 0.3, lambda written: 0.9 if written < 1_000 else 0.0)
    assert seconds < 0.56 * 1_000 + 1_000 / 0.93
    assert sum(sizes[-400:]) < 60
    again, sizes = run(Pace(), 2_000, 0.1, lambda written: 0.0 if written < 1_000 else 0.9)
    assert sum(sizes[-50:]) > 100  # it noticed


@pytest.mark.parametrize(
    ("alpha", "extra", "low", "high"), [(0.95, 0.05, 7, 8), (0.6, 0.1, 2, 4), (0.5, 0.6, 0, 1)]
)
def test_it_settles_on_the_best_number(alpha, extra, low, high):
    best = max(range(9), key=lambda k: sum(alpha**i for i in range(k + 1)) / (1 + k * extra))
    assert low <= best <= high
    _, sizes = run(Pace(), 3_000, extra, alpha)
    usual = sorted(sizes)[len(sizes) // 2]
    assert low <= usual <= high


def test_no_guess_before_two_plain_steps_and_one_now_and_then():
    pace = Pace()
    assert pace.size(8) == 0
    pace.after(0, 0, 1.0)
    assert pace.size(8) == 0
    pace.after(0, 0, 1.0)
    assert pace.size(8) == 2
    assert pace.size(1) == 1
    assert pace.size(0) == 0
    _, sizes = run(Pace(), 2_000, 0.0, 1.0)
    assert sizes[:3] == [0, 0, 2]
    assert 0 in sizes[10:]  # measured again


def test_a_useless_and_dear_draft_on_a_clock(monkeypatch):
    """The whole engine: a draft that costs twice the model and is never right."""
    tokenizer = Tokenizer.characters(["abcdefgh"])
    sizes = {"max_seq_len": 300, "dim": 8, "n_layers": 1, "n_heads": 2, "init_std": 0.5}
    model, draft = (GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **sizes)) for _ in range(2))
    clock = [0.0]
    monkeypatch.setattr(session.time, "perf_counter", lambda: clock[0])

    def ticks(seconds):
        return lambda module, args, output: clock.__setitem__(0, clock[0] + seconds)

    model.token_embedding.register_forward_hook(ticks(1.0))
    draft.token_embedding.register_forward_hook(ticks(2.0))
    torch.nn.init.zeros_(draft.lm_head.weight)
    with torch.no_grad():
        draft.lm_head.weight[1] = 1.0
    generator = TextGenerator(model, tokenizer)
    params = SamplingParams(max_new_tokens=200, seed=0, logit_bias={0: -9e9})
    plain = generator.generate("a", params)
    without, clock[0] = clock[0], 0.0
    found = Speculation(DraftModel(draft, tokenizer))
    assert generator.generate("a", params, speculation=found) == plain
    assert without / clock[0] > 0.9
    assert found.guessed > 0
    assert found.speed_up == pytest.approx(without / clock[0], abs=0.01)


def test_the_reported_speed_up_is_not_made_of_stalls():
    """Slow plain steps at the end, as on a machine that got busy: one guess is no gain."""
    found = Speculation(PromptLookup())
    for seconds in [0.01] * 40 + [0.2] * 19:
        found.after(0, 0, 1, seconds)
    found.after(1, 1, 2, 0.01)
    assert found.written == 61
    # the median of the last nine steps would say 61 * 0.2 / 4.21 = 2.9 times
    assert found.speed_up == pytest.approx(61 * (4.2 / 59) / 4.21)
    assert found.speed_up < 1.05
