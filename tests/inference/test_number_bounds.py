"""Bounds on numbers: compared digit by digit, held against arithmetic on both sides."""

import json
import re
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from inference.automaton import START, ByteAutomaton
from inference.constraints import Constraint
from inference.generator import SamplingParams, TextGenerator
from inference.number_bounds import LIMITS, number_of
from tokenization.tokenizer import Tokenizer

MOST = 10**15 - 1  # the largest integer that is written
# as JSON writes them, at most 15 digits, without an exponent
WRITTEN = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?")


def machine_of(kind, limits):
    return ByteAutomaton(number_of(kind, limits), "bounds")


def accepted_among(kind, limits, texts, most_states):
    """The texts that are accepted; none where the bounds are refused as holding nothing."""
    try:
        machine = machine_of(kind, limits)
    except ValueError as error:
        if f"no {kind} of at most 15 digits has" not in str(error):
            raise
        return set()
    # a handful of states for each digit, however many numbers there are
    assert len(machine.table) <= most_states
    return {text for text in texts if machine.matches(text.encode())}


def keeps(value, limits):
    """Exact comparison with the bounds as the user wrote them."""
    # str of a float is its shortest spelling
    low, above, high, below = (
        Fraction(str(limits[name])) if name in limits else None for name in LIMITS
    )
    return (
        (low is None or value >= low)
        and (above is None or value > above)
        and (high is None or value <= high)
        and (below is None or value < below)
    )


def everything(machine):
    """All texts of a machine without loops."""
    found, waiting = set(), [(START, b"")]
    while waiting:
        state, text = waiting.pop()
        assert len(text) < 20
        if machine.accepting[state]:
            found.add(text.decode())
        for byte in machine.table[state].nonzero()[0]:
            waiting.append((int(machine.table[state, byte]), text + bytes([byte])))
    return found


sizes = st.integers(0, 15).flatmap(lambda n: st.integers(-(10**n), 10**n))
integer_bounds = st.one_of(sizes, sizes.map(lambda n: n + 0.5))
number_bounds = st.one_of(
    sizes,
    st.tuples(sizes, st.integers(0, 14)).map(lambda t: t[0] / 10 ** t[1]),
    st.floats(-1e16, 1e16),
    st.floats(-1, 1),
)


def some_of(bound):
    return st.dictionaries(st.sampled_from(LIMITS), bound, min_size=1, max_size=3)


@settings(max_examples=60)
@given(
    low=st.integers(-1200, 1200), width=st.integers(0, 300), strict=st.tuples(*[st.booleans()] * 2)
)
@example(low=0, width=0, strict=(False, False))
@example(low=-1, width=1, strict=(True, False))
@example(low=-1, width=1, strict=(False, True))
@example(low=-1, width=2, strict=(True, True))
def test_the_whole_language_of_an_integer_range(low, width, strict):
    """Nothing else is accepted: no leading zeros, no plus, no point; −0 beside 0 only."""
    high = low + width
    limits = {LIMITS[strict[0]]: low, LIMITS[2 + strict[1]]: high}
    inside = range(low + strict[0], high + 1 - strict[1])
    if not inside:
        with pytest.raises(ValueError, match="no integer of at most 15 digits"):
            number_of("integer", limits)
        return
    expected = {str(n) for n in inside} | ({"-0"} if low < 0 and 0 in inside else set())
    assert everything(machine_of("integer", limits)) == expected


@settings(max_examples=150)
@given(limits=some_of(integer_bounds))
def test_integers_around_every_border(limits):
    """Bounds of any size, also beyond what is written, one-sided or several on one side."""
    corners = {0, *(int(bound) for bound in limits.values()), *(10**n for n in range(17))}
    near = {sign * corner + step for corner in corners for sign in (1, -1) for step in range(-3, 4)}
    texts = {str(n): n for n in near}
    expected = {t for t, n in texts.items() if keeps(n, limits) and abs(n) <= MOST}
    assert accepted_among("integer", limits, texts, 6 * 15 + 10) == expected
    faults = ("0{}", "+{}", "{}.0", "{}.", "{}e0", "{} ", "--{}", " {}", "{}x")
    wrong = [fault.format(n) for n in near for fault in faults]
    assert not accepted_among("integer", limits, wrong, 6 * 15 + 10)


def spellings(value, places):
    """A decimal near `value`: cut to some places, with zeros after it, with faults."""
    scaled = value.numerator * 10**places // value.denominator
    for step in (-1, 0, 1):
        whole, part = divmod(abs(scaled + step), 10**places)
        sign = "-" if scaled + step < 0 else ""
        text = f"{sign}{whole}" + (f".{part:0{places}}" if places else "")
        yield from (text, f"{text}0", f"{text}.0", f"{text}.", f"0{text}", f"-{text}", f"{text}e0")


@settings(max_examples=200)
@given(limits=some_of(number_bounds), others=st.lists(number_bounds, max_size=4))
@example(limits={"exclusiveMinimum": 0.1, "maximum": 0.1 + 0.2}, others=[0.3, 0.1])
@example(limits={"exclusiveMinimum": 123456789012345}, others=[])
@example(limits={"minimum": 0, "exclusiveMaximum": 1e-13}, others=[1e-14])
@example(limits={"exclusiveMinimum": -1, "exclusiveMaximum": 0}, others=[-0.5])
@example(limits={"minimum": 5e-324}, others=[])
def test_decimals_around_every_border(limits, others):
    """Accepted exactly when well written and inside; and valid again once read as float64."""
    corners = [Fraction(0), *(Fraction(str(x)) for x in [*limits.values(), *others])]
    texts = {t for c in corners for places in (0, 1, 2, 7, 14, 15) for t in spellings(c, places)}
    good = {
        text
        for text in texts
        if WRITTEN.fullmatch(text)
        and sum(map(str.isdigit, text)) <= 15
        and keeps(Fraction(text), limits)
    }
    # no minus sign, so no −0 either, where a bound keeps negative numbers out
    if any(limits.get(name, -1) >= 0 for name in LIMITS[:2]):
        good = {text for text in good if text[0] != "-"}
    accepted = accepted_among("number", limits, texts, 12 * 15 + 10)
    assert accepted == good
    validator = Draft202012Validator({"type": "number", **limits})
    for text in accepted:
        validator.validate(json.loads(text))


def test_a_minus_sign_needs_a_negative_bound():
    for kind in ("integer", "number"):
        assert not machine_of(kind, {"minimum": 0}).table[START, ord("-")]
        assert machine_of(kind, {"minimum": -0.5}).table[START, ord("-")]
        assert machine_of(kind, {"maximum": 5}).matches(b"-0")
        assert not machine_of(kind, {"exclusiveMaximum": 0}).matches(b"-0")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"minimum": 3, "exclusiveMaximum": 3}, "has minimum 3 and exclusiveMaximum 3"),
        ({"minimum": 10**15}, "at most 15 digits has minimum 1000000000000000"),
        ({"maximum": -(10**400)}, "at most 15 digits has maximum -1000"),
        ({"exclusiveMinimum": 1, "exclusiveMaximum": 1.5}, "no integer"),
        ({"minimum": None}, "minimum must be a finite number, got None"),
        ({"maximum": float("inf")}, "maximum must be a finite number, got inf"),
        ({"minimum": float("nan")}, "minimum must be a finite number, got nan"),
        ({"exclusiveMaximum": True}, "exclusiveMaximum must be a finite number, got True"),
    ],
)
def test_bounds_that_hold_nothing(limits, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        number_of("integer", limits)


TOKENIZER = Tokenizer.train_bpe(["-10 007 3.14 99.99 120 1000000 0.0 -0 [1, 2] 12 34"] * 3, 290)
torch.manual_seed(0)
WRITER = TextGenerator(
    GPT(GPTConfig(vocab_size=290, max_seq_len=96, dim=8, n_layers=1, n_heads=2)), TOKENIZER
)
PERSON = {
    "type": "object",
    "properties": {
        "age": {"type": "integer", "minimum": 18, "maximum": 120},
        "score": {"type": "number", "exclusiveMinimum": -0.25, "exclusiveMaximum": 99.95},
        "years": {
            "type": "array",
            "items": {"type": ["integer", "null"], "exclusiveMinimum": -480, "maximum": 2026},
            "minItems": 1,
            "maxItems": 3,
        },
    },
    "required": ["age", "score", "years"],
}


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_a_random_model_stays_within_the_bounds(temperature):
    rule, validator = Constraint.json_schema(PERSON), Draft202012Validator(PERSON)
    found = set()
    for seed in range(25):
        params = SamplingParams(max_new_tokens=80, temperature=temperature, seed=seed)
        text = WRITER.generate("1", params, constraint=rule).text
        validator.validate(json.loads(text))
        found.add(text)
    # real choices were left to it
    assert len(found) == 25
