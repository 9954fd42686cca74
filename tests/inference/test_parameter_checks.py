"""Every bad parameter is refused with its value and its limit."""

import dataclasses
import math

import pytest
import torch

from inference.parameter_checks import check_vocabulary
from inference.sampling import SamplingParams

BAD = [
    ({"temperature": math.nan}, r"temperature must be a finite number >= 0\.0, got nan"),
    ({"temperature": math.inf}, r"temperature must be a finite number >= 0\.0, got inf"),
    ({"temperature": -math.inf}, r"temperature must be .*, got -inf"),
    ({"temperature": -0.1}, r"temperature must be a finite number >= 0\.0, got -0\.1"),
    ({"temperature": "hot"}, r"temperature must be .*, got 'hot' \(str\)"),
    ({"temperature": True}, r"temperature must be .*, got True \(bool\)"),
    ({"top_p": 0.0}, r"top_p must be a finite number > 0\.0 and <= 1\.0|top_p must be"),
    ({"top_p": 1.01}, r"top_p must be a finite number .*<= 1\.0.*, got 1\.01"),
    ({"top_p": math.nan}, r"top_p must be .*, got nan"),
    ({"top_k": -1}, r"top_k must be an integer >= 0, got -1"),
    ({"top_k": 40.0}, r"top_k must be an integer >= 0, got 40\.0 \(float\)"),
    ({"min_p": -0.1}, r"min_p must be a finite number >= 0\.0 and <= 1\.0, got -0\.1"),
    ({"min_p": 1.5}, r"min_p must be .*, got 1\.5"),
    ({"repetition_penalty": 0}, r"repetition_penalty must be a finite number > 0\.0, got 0\.0"),
    ({"presence_penalty": math.inf}, r"presence_penalty must be a finite number, got inf"),
    ({"frequency_penalty": math.nan}, r"frequency_penalty must be a finite number, got nan"),
    ({"length_penalty": math.nan}, r"length_penalty must be a finite number, got nan"),
    ({"max_new_tokens": -1}, r"max_new_tokens must be an integer >= 0, got -1"),
    ({"num_beams": 0}, r"num_beams must be an integer >= 1, got 0"),
    ({"num_return": 0}, r"num_return must be an integer >= 1, got 0"),
    ({"seed": 1.5}, r"seed must be an integer, got 1\.5 \(float\)"),
    ({"logprobs": 1}, r"logprobs must be true or false, got 1 \(int\)"),
    ({"top_logprobs": -1}, r"top_logprobs must be an integer >= 0, got -1"),
    ({"top_logprobs": 2}, r"top_logprobs=2 needs logprobs=True"),
    ({"stop": ("a", "")}, r"stop\[1\] must be a text of at least 1 character, got ''"),
    ({"stop": (3,)}, r"stop\[0\] must be a text of at least 1 character, got 3"),
    ({"stop": "END"}, r"stop must be a list of texts, got one text; write stop=\('END',\)"),
    ({"logit_bias": {-1: 1.0}}, r"each token id in logit_bias must be an integer >= 0, got -1"),
    ({"logit_bias": {1: math.nan}}, r"logit_bias\[1\] must be a finite number, got nan"),
    ({"logit_bias": {1: math.inf}}, r"logit_bias\[1\] must be a finite number, got inf"),
    ({"num_beams": 2, "top_k": 40}, r"top_k=40 has no effect with num_beams=2"),
    ({"num_beams": 2, "top_p": 0.9}, r"top_p=0\.9 has no effect with num_beams=2"),
    ({"num_beams": 2, "min_p": 0.1}, r"min_p=0\.1 has no effect with num_beams=2"),
    ({"num_beams": 2, "num_return": 3}, r"num_return must be <= num_beams \(2\), got 3"),
    ({"temperature": 0, "num_return": 2}, r"temperature 0 always gives the same text.*got 2"),
]


@pytest.mark.parametrize(("given", "message"), BAD)
def test_bad_parameters_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0},
        {"temperature": 1e-40},
        {"top_k": 10**9},
        {"top_p": 5e-324},
        {"min_p": 1.0},
        {"max_new_tokens": 0},
        {"seed": -5},
        {"logit_bias": {3: -math.inf}},
        {"logit_bias": {}},
        {"num_beams": 4, "num_return": 4, "temperature": 0.8, "length_penalty": -1.0},
    ],
)
def test_extremes_that_mean_something_are_accepted(given):
    SamplingParams(**given)


def test_parameters_cannot_change_after_they_were_checked():
    bias, stop = {1: 2.0}, ["a"]
    params = SamplingParams(logit_bias=bias, stop=stop)
    bias[1], bias[-9] = math.nan, 1.0
    stop.append("")
    assert params.logit_bias == {1: 2.0}
    assert params.stop == ("a",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.top_k = 3
    with pytest.raises(TypeError):
        SamplingParams(50)  # keyword-only: a bare number could mean anything
    assert dataclasses.replace(params, top_k=3).logit_bias == {1: 2.0}
    assert dataclasses.asdict(params)["logit_bias"] == {1: 2.0}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 11}, r"num_beams must be an integer >= 1 and <= 10, got 11"),
        ({"logit_bias": {10: 1.0}}, r"each token id in logit_bias must be .* <= 9, got 10"),
        ({"logprobs": True, "top_logprobs": 11}, r"top_logprobs must be .* <= 10, got 11"),
    ],
)
def test_what_does_not_fit_the_vocabulary_is_refused(given, message):
    check_vocabulary(SamplingParams(**given), 20)
    with pytest.raises(ValueError, match=message):
        check_vocabulary(SamplingParams(**given), 10)


def test_history_is_kept_only_for_those_who_read_it():
    assert not SamplingParams(logit_bias={1: 1.0}, top_k=3, temperature=0.2).needs_history
    for name in ("presence_penalty", "frequency_penalty", "repetition_penalty"):
        params = SamplingParams(**{name: 0.5})
        assert params.needs_history
        (process,) = params.processors()
        with pytest.raises(ValueError, match="needs the history"):
            process(torch.zeros(1, 3))
