import pytest

from training.mixed_precision import LossScaler


def test_without_fp16_nothing_is_scaled():
    scaler = LossScaler(enabled=False)
    scaler.update(overflowed=True)
    assert (scaler.scale, scaler.weight(4096), scaler.exhausted) == (1.0, 1.0, True)


def test_an_overflow_halves_and_long_peace_doubles():
    scaler = LossScaler(enabled=True, scale=8.0, growth_interval=3)
    seen = []
    for overflowed in (True, False, False, False, False, False, True, False, False, False):
        scaler.update(overflowed)
        seen.append(scaler.scale)
    assert seen == [4, 4, 4, 8, 8, 8, 4, 4, 4, 8]


def test_the_weight_does_not_depend_on_the_number_of_tokens():
    scaler = LossScaler(enabled=True)
    for n_tokens in (1, 512, 768, 4096, 5000):
        assert 0.7 < scaler.weight(n_tokens) * n_tokens / 2**16 < 1.42
    assert scaler.weight(4096) == 16.0  # a power of two: no rounding


def test_it_is_exhausted_only_when_the_scale_cannot_be_the_reason():
    scaler = LossScaler(enabled=True, scale=2.0)
    assert not scaler.exhausted
    scaler.update(overflowed=True)
    assert not scaler.exhausted
    scaler.update(overflowed=True)
    assert scaler.exhausted


def test_state_round_trip():
    scaler = LossScaler(enabled=True, growth_interval=10)
    for overflowed in (True, True, False, False, False):
        scaler.update(overflowed)
    again = LossScaler(enabled=True, growth_interval=10)
    again.load_state_dict(scaler.state_dict())
    assert (again.scale, again.good_steps) == (scaler.scale, scaler.good_steps) == (2**14, 3)


def test_the_state_of_another_precision_is_not_taken_over():
    plain = LossScaler(enabled=False)
    plain.load_state_dict(LossScaler(enabled=True).state_dict())
    assert plain.weight(7) == pytest.approx(1.0)
