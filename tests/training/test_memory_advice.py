import pytest

from gpt_model.config import preset
from gpt_model.sizes import count_parameters, training_memory
from training.memory_advice import Plan, check_memory, memory_needed, suggest_changes

GPT2 = preset("gpt2")
NEEDED = training_memory(GPT2, 8, 1024).total


def test_enough_memory_is_no_news():
    assert check_memory(GPT2, batch_size=8, available=2 * NEEDED) is None


def test_little_memory_is_a_warning_with_both_numbers_and_the_parts():
    said = check_memory(GPT2, batch_size=8, available=int(1.1 * NEEDED))
    assert "needs about 11.8GB" in said
    assert "13GB are free" in said
    for part in ("weights", "gradients", "optimizer", "activations", "logits"):
        assert part in said
    assert "it may not fit" in said


def test_too_little_memory_is_refused_with_what_to_change():
    with pytest.raises(ValueError, match="it cannot fit. What would fit: ") as caught:
        check_memory(GPT2, batch_size=8, available=int(0.75 * NEEDED))
    message = str(caught.value)
    assert "batch_size 4 with grad_accumulation 2" in message
    assert "sequence length 512" in message


def test_suggestions_are_computed_and_keep_the_samples_per_step():
    plan = Plan(batch_size=12, grad_accumulation=3, seq_len=1024, precision="fp32")
    room = 0.6 * memory_needed(GPT2, plan)
    found = suggest_changes(GPT2, plan, room)
    assert found
    for suggested, needed in found:
        assert needed == memory_needed(GPT2, suggested) <= room
        assert suggested.batch_size * suggested.grad_accumulation >= 36
        assert suggested != plan
    # the first changes nothing but time
    assert found[0][0].seq_len == 1024
    assert found[0][0].precision == "fp32"


def test_one_change_is_enough_or_several_are_made_together():
    plan = Plan(batch_size=8, grad_accumulation=1, seq_len=1024, precision="fp32")
    smallest = memory_needed(GPT2, Plan(1, 8, 64, "bf16"))
    ((suggested, needed),) = suggest_changes(GPT2, plan, 1.02 * smallest)
    assert needed <= 1.02 * smallest
    assert (suggested.batch_size, suggested.precision) == (1, "bf16")
    assert suggested.changes_from(plan) == (
        f"batch_size 1 with grad_accumulation 8 and precision bf16 and sequence length "
        f"{suggested.seq_len}"
    )
    assert suggest_changes(GPT2, plan, 10**9) == []
    with pytest.raises(ValueError, match=r"smaller model, or train adapters only \(LoRA\)"):
        check_memory(GPT2, batch_size=8, available=10**9)


def test_frozen_parameters_need_no_gradient_and_no_moments():
    plan = Plan(batch_size=1, grad_accumulation=1, seq_len=64, precision="fp32")
    total = count_parameters(GPT2).total
    full, half, none = (
        memory_needed(GPT2, plan, n_trainable=share) for share in (total, total // 2, 0)
    )
    assert full == memory_needed(GPT2, plan)
    assert full - none == pytest.approx(12 * total, rel=1e-6)
    assert half - none == pytest.approx(6 * total, rel=1e-3)


def test_weights_that_are_loaded_already_are_not_asked_for_again():
    available = NEEDED - 4 * count_parameters(GPT2).total
    with pytest.raises(ValueError, match="cannot fit"):
        check_memory(GPT2, batch_size=8, available=available)
    said = check_memory(GPT2, batch_size=8, available=available, model_is_loaded=True)
    assert "may not fit" in said


def test_a_system_that_cannot_tell_is_not_guessed_at(monkeypatch):
    monkeypatch.setattr("training.memory_advice.available_memory_bytes", lambda device: None)
    assert check_memory(GPT2, batch_size=10**6) is None


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, fp16; got 'auto'"):
        check_memory(GPT2, batch_size=1, precision="auto")
