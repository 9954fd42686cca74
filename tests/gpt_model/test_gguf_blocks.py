"""Our written-out block quantization against the gguf package, byte for byte."""

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gpt_model import gguf_blocks
from gpt_model.gguf_blocks import ENCODERS, decode_q8_0, encode_f16, encode_q8_0

Q8_0 = gguf.GGMLQuantizationType.Q8_0
# 1 / d overflows for a block whose largest number is below 1e-36: nobody defines its bytes
numbers = st.floats(-1e6, 1e6, width=32).filter(lambda x: x == 0 or abs(x) > 1e-30)
matrices = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.sampled_from([32, 64, 96])), elements=numbers
)


@given(matrices)
def test_bytes_are_those_of_gguf(rows):
    ours = encode_q8_0(rows)
    assert ours.shape == (len(rows), rows.shape[1] // 32 * 34)
    np.testing.assert_array_equal(ours, gguf.quants.quantize(rows, Q8_0))
    np.testing.assert_array_equal(decode_q8_0(ours), gguf.quants.dequantize(ours, Q8_0))


def test_halves_round_away_from_zero():
    """Half to even, numpy's own way, would give other bytes."""
    rows = np.zeros((1, 32), dtype=np.float32)
    rows[0, :6] = [127, 0.5, -0.5, 1.5, 2.5, np.nextafter(np.float32(0.5), np.float32(0))]
    encoded = encode_q8_0(rows)
    assert encoded[0, 2:8].view(np.int8).tolist() == [127, 1, -1, 2, 3, 0]
    np.testing.assert_array_equal(encoded, gguf.quants.quantize(rows, Q8_0))


def test_numbers_in_the_middle_between_two_steps():
    """Here a division and a product with the reciprocal part ways."""
    largest = np.random.default_rng(0).uniform(0.01, 2, (3000, 1)).astype(np.float32)
    steps = np.concatenate([np.arange(31) * 4 + 0.5, [127]]).astype(np.float32)
    rows = (steps * largest / np.float32(127)).astype(np.float32)
    rows[:, -1:] = largest
    wanted = gguf.quants.quantize(rows, Q8_0)
    np.testing.assert_array_equal(encode_q8_0(rows), wanted)
    scale = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
    divided = np.trunc(rows / scale + np.float32(0.5)).astype(np.int8)
    assert (divided != wanted[:, 2:].view(np.int8)).any()


def test_a_block_of_zeros_and_one_too_small_for_a_scale_are_zeros():
    rows = np.zeros((2, 32), dtype=np.float32)
    rows[1] = 1e-44
    assert not encode_q8_0(rows).any()


def test_many_blocks_are_cut_into_pieces(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(7, 96)).astype(np.float32)
    whole = encode_q8_0(rows)
    monkeypatch.setattr(gguf_blocks, "BLOCKS_AT_ONCE", 4)
    np.testing.assert_array_equal(encode_q8_0(rows), whole)


def test_the_error_is_at_most_half_a_step():
    rows = np.random.default_rng(1).normal(size=(50, 320)).astype(np.float32)
    error = np.abs(decode_q8_0(encode_q8_0(rows)) - rows).reshape(-1, 32).max(axis=1)
    step = np.abs(rows).reshape(-1, 32).max(axis=1) / 127
    assert (error <= step * (0.5 + 127 * 2**-11)).all()
    assert (error > step * 0.4).any()


def test_f16_is_the_nearest_half():
    rows = np.random.default_rng(2).normal(size=(3, 5)).astype(np.float32)
    np.testing.assert_array_equal(encode_f16(rows), rows.astype(np.float16))
    assert encode_f16(np.float32([65504.0]))[0] == 65504


@pytest.mark.parametrize(("name", "value"), [("f16", 7e4), ("q8_0", 1e7)])
def test_what_does_not_fit_is_refused_with_its_value(name, value):
    rows = np.zeros((1, 32), dtype=np.float32)
    rows[0, 3] = value
    with pytest.raises(ValueError, match="does not fit.*export as f32"):
        ENCODERS[name](rows)
    assert ENCODERS["f32"](rows)[0, 3] == np.float32(value)
