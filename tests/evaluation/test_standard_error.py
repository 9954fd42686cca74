"""The mean and how far it may be off."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.standard_error import Estimate, estimate


@given(st.lists(st.floats(0, 1), min_size=2, max_size=50))
def test_equals_the_textbook(values):
    found = estimate(values)
    assert math.isclose(found.value, statistics.fmean(values), abs_tol=1e-12)
    wanted = statistics.stdev(values) / math.sqrt(len(values))
    assert math.isclose(found.error, wanted, abs_tol=1e-9)
    assert found.n == len(values)


def test_one_score_has_no_error_and_none_is_refused():
    assert estimate([True]) == Estimate(1.0, None, 1)
    assert str(estimate([1])) == "100.0 %"
    assert str(estimate([1, 0, 0, 1])) == "50.0 ± 28.9 %"
    with pytest.raises(ValueError, match="0 scores"):
        estimate([])
