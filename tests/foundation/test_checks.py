import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.checks import (
    check_bool,
    check_choice,
    check_float,
    check_int,
    nearest,
    unknown_key_message,
)


@pytest.mark.parametrize("value", [True, 3.0, "3", None])
def test_integers_refuse_other_types_and_name_the_value(value):
    with pytest.raises(ValueError, match=r"n_layers must be an integer >= 1, got") as caught:
        check_int("n_layers", value, 1)
    assert repr(value) in str(caught.value)


@given(st.integers(-10, 10))
def test_integer_limits_are_inclusive(value):
    if 0 <= value <= 5:
        assert check_int("k", value, 0, 5) == value
    else:
        with pytest.raises(ValueError, match=rf"k must be an integer >= 0 and <= 5, got {value}"):
            check_int("k", value, 0, 5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e999, "1", True, None])
def test_floats_refuse_what_is_not_a_finite_number(value):
    with pytest.raises(ValueError, match="lr must be a finite number, got"):
        check_float("lr", value)


def test_float_limits_inclusive_and_exclusive():
    assert check_float("p", 1, 0.0, 1.0) == 1.0
    assert check_float("p", 0, 0.0, 1.0) == 0.0
    with pytest.raises(ValueError, match=r"p must be a finite number > 0.0, got 0.0"):
        check_float("p", 0.0, exclusive_minimum=0.0)
    with pytest.raises(ValueError, match=r"p must be a finite number < 1.0, got 1.0"):
        check_float("p", 1.0, exclusive_maximum=1.0)


def test_only_true_and_false_are_switches():
    assert check_bool("tie", False) is False
    for value in (0, 1, "true", None):
        with pytest.raises(ValueError, match="tie must be true or false"):
            check_bool("tie", value)


def test_choices_list_all_and_name_the_nearest():
    assert check_choice("norm", "rmsnorm", ["layernorm", "rmsnorm"]) == "rmsnorm"
    with pytest.raises(
        ValueError, match="layernorm, rmsnorm; got 'RMSNrom'; did you mean 'rmsnorm'"
    ):
        check_choice("norm", "RMSNrom", ["layernorm", "rmsnorm"])
    with pytest.raises(ValueError, match="got 3$"):
        check_choice("norm", 3, ["layernorm"])


def test_unknown_keys_get_the_nearest_field():
    assert nearest("n_layer", ["n_layers", "dim"]) == "n_layers"
    assert nearest("zzz", ["n_layers", "dim"]) is None
    message = unknown_key_message("n_layer", ["n_layers", "dim"], "config.json")
    assert "'n_layer' in config.json; did you mean 'n_layers'? allowed: dim, n_layers" in message
