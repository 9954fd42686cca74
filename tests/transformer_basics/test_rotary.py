"""Rotation by definition, the relative-position property, and transformers as the oracle."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_basics.rotary import RotaryEmbedding, decay, rotate, rotate_half

CPU = torch.device("cpu")


def by_complex_numbers(x, positions, theta):
    """Pair i is the complex number a_i + b_i·j, multiplied by e^(j·t·ω_i)."""
    half = x.shape[-1] // 2
    frequencies = [theta ** (-2 * i / (2 * half)) for i in range(half)]
    frequencies = torch.tensor(frequencies, dtype=torch.float64)
    angles = positions.double()[..., None] * frequencies
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double())
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), dim=-1)


@given(
    st.integers(1, 8),
    st.lists(st.integers(0, 300), min_size=1, max_size=5),
    st.sampled_from([100.0, 10000.0, 5e5]),
)
@settings(max_examples=40)
def test_rotation_by_definition(half, positions, theta):
    torch.manual_seed(0)
    x = torch.randn(2, 3, len(positions), 2 * half)
    rotary = RotaryEmbedding(2 * half, theta=theta, max_seq_len=16)
    places = torch.tensor(positions)
    expected = by_complex_numbers(x, places, theta).float()
    torch.testing.assert_close(rotary(x, places), expected, atol=1e-5, rtol=1e-5)


def test_equals_transformers():
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = llama.LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=64)
    positions = torch.tensor([[0, 1, 2, 3, 4], [0, 0, 0, 30, 31]])
    query, key = torch.randn(2, 4, 5, 16), torch.randn(2, 2, 5, 16)
    cos, sin = llama.LlamaRotaryEmbedding(config)(query, positions)
    expected = llama.apply_rotary_pos_emb(query, key, cos, sin)
    rotary = RotaryEmbedding(16)
    torch.testing.assert_close(rotary(query, positions), expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rotary(key, positions), expected[1], atol=1e-5, rtol=1e-5)


def test_the_short_way_equals_rotate_half():
    x, cos, sin = torch.randn(2, 3, 5, 8), torch.randn(5, 4), torch.randn(5, 4)
    cos, plain = cos.repeat(1, 2), sin.repeat(1, 2)
    signed = torch.cat((-sin, sin), dim=-1)
    expected = x * cos + rotate_half(x) * plain
    torch.testing.assert_close(rotate(x, cos, signed), expected)


@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(0, 2000))
@settings(max_examples=40)
def test_scores_depend_on_the_distance_only(m, n, shift):
    torch.manual_seed(0)
    rotary = RotaryEmbedding(16)
    query, key = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def score(left, right):
        turned = rotary(query, torch.tensor([left])), rotary(key, torch.tensor([right]))
        return float((turned[0] * turned[1]).sum())

    assert abs(score(m, n) - score(m + shift, n + shift)) < 1e-4


def test_distance_and_direction_do_matter():
    rotary, x = RotaryEmbedding(16), torch.randn(1, 1, 1, 16)
    y = torch.randn(1, 1, 1, 16)
    scores = [float((rotary(x, torch.tensor([t])) * y).sum()) for t in range(4)]
    assert len({round(score, 3) for score in scores}) == 4
    backward = float((x * rotary(y, torch.tensor([1]))).sum())
    assert abs(backward - scores[1]) > 1e-3


def test_length_is_kept_and_position_zero_does_nothing():
    rotary, x = RotaryEmbedding(32), torch.randn(2, 4, 9, 32)
    torch.testing.assert_close(rotary(x).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(rotary(x)[:, :, 0], x[:, :, 0])


def test_no_positions_counts_from_the_offset():
    rotary, x = RotaryEmbedding(8, max_seq_len=4), torch.randn(1, 2, 3, 8)
    for offset in (0, 2, 50):
        places = torch.arange(offset, offset + 3)
        assert torch.equal(rotary(x, offset=offset), rotary(x, places))


def test_a_batch_of_positions_turns_each_row_by_its_own():
    rotary, x = RotaryEmbedding(8), torch.randn(2, 3, 4, 8)
    positions = torch.tensor([[0, 1, 2, 3], [9, 9, 4, 0]])
    turned = rotary(x, positions)
    for row in range(2):
        assert torch.equal(turned[row], rotary(x[row : row + 1], positions[row])[0])


def test_tables_grow_and_stay_the_same():
    rotary = RotaryEmbedding(8, max_seq_len=4)
    x = torch.randn(1, 1, 1, 8)
    before = rotary(x, torch.tensor([3]))
    far = rotary(x, torch.tensor([1000]))  # by positions
    assert torch.equal(far, rotary(x, offset=1000))
    rotary(x, offset=5000)  # by offset
    assert torch.equal(before, rotary(x, torch.tensor([3])))
    torch.testing.assert_close(far, by_complex_numbers(x, torch.tensor([1000]), 10000.0).float())


def test_far_positions_are_exact():
    """In float32 the angle itself would be off by thousandths of a radian."""
    cos, signed_sin = RotaryEmbedding(8).cos_sin(1, 123_457, None, CPU)
    angles = [123_457 * 10000 ** (-2 * i / 8) for i in range(4)]
    expected = torch.tensor([math.cos(a) for a in angles] * 2)
    torch.testing.assert_close(cos[0], expected, atol=1e-6, rtol=0)
    expected = torch.tensor([-math.sin(a) for a in angles] + [math.sin(a) for a in angles])
    torch.testing.assert_close(signed_sin[0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_turned_in_float32(dtype):
    rotary, x = RotaryEmbedding(16).to(dtype), torch.randn(2, 2, 40, 16).to(dtype)
    turned = rotary(x)
    assert turned.dtype == dtype
    assert torch.equal(turned, rotary(x.float()).to(dtype))  # rounded once, at the end


def test_tables_are_no_state_and_no_buffers():
    """They would be cast by .half() and left as garbage by .to_empty()."""
    rotary = RotaryEmbedding(8)
    rotary(torch.randn(1, 1, 3, 8))
    assert rotary.state_dict() == {}
    assert list(rotary.buffers()) == []
    assert torch.equal(
        copy.deepcopy(rotary)(torch.ones(1, 1, 3, 8)), rotary(torch.ones(1, 1, 3, 8))
    )


def test_tables_follow_the_device():
    rotary = RotaryEmbedding(8)
    assert rotary(torch.randn(1, 1, 3, 8, device="meta")).is_meta
    assert rotary(torch.randn(1, 1, 3, 8)).device.type == "cpu"


def test_tables_born_in_inference_mode_can_train():
    rotary, x = RotaryEmbedding(8, max_seq_len=2), torch.randn(1, 1, 3, 8, requires_grad=True)
    with torch.inference_mode():
        rotary(torch.randn(1, 1, 3, 8))
    rotary(x).sum().backward()
    assert x.grad.isfinite().all()


def test_decay_is_the_mean_cosine():
    ones = torch.ones(1, 1, 1, 128)
    rotary = RotaryEmbedding(128)
    for distance in (0, 1, 17):
        score = float((rotary(ones, torch.tensor([distance])) * ones).sum()) / 128
        assert abs(score - float(decay(torch.tensor([distance])))) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head_dim": 7}, r"even head_dim, got 7"),
        ({"head_dim": 0}, r"head_dim must be an integer >= 2, got 0"),
        ({"head_dim": 8, "theta": 1.0}, r"rope_theta must be .* > 1.0, got 1.0"),
        ({"head_dim": 8, "max_seq_len": 0}, r"max_seq_len must be .* got 0"),
    ],
)
def test_construction_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        RotaryEmbedding(**arguments)


def test_negative_positions_are_refused_with_advice():
    with pytest.raises(ValueError, match=r"positions must be >= 0, got -1; clamp"):
        RotaryEmbedding(8)(torch.randn(1, 1, 2, 8), torch.tensor([-1, 0]))
