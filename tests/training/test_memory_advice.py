import pytest

from gpt_model.config import preset
from gpt_model.memory import training_memory
from gpt_model.sizes import count_parameters
from training.memory_advice import Plan, check_memory, memory_needed, suggest_changes

GPT2 = preset("gpt2")
NEEDED = training_memory(GPT2, 8, 1024).total


def test_enough_memory_is_no_news():
    assert check_memory(GPT2, batch_size=8, available=2 * NEEDED) is None


def test_little_memory_is_a_warning_with_both_numbers_and_the_parts():
    said = check_memory(GPT2, batch_size=8, available=int(1.1 * NEEDED))
    assert "needs about 6.69GB" in said
    assert "7.36GB are free" in said
    for part in ("weights", "gradients", "optimizer", "activations", "logits"):
        assert part in said
    assert "it may not fit" in said


def test_too_little_memory_is_refused_with_what_to_change():
    with pytest.raises(ValueError, match="it cannot fit. What would fit: ") as caught:
        check_memory(GPT2, batch_size=8, available=int(0.75 * NEEDED))
    message = str(caught.value)
    assert "batch_size 2 with grad_accumulation 4" in message
    assert "gradient_checkpointing block" in message
    assert "sequence length 256" in message


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
    plan = Plan(batch_size=64, grad_accumulation=1, seq_len=64, precision="fp32")
    one_row = memory_needed(GPT2, Plan(1, 64, 64, "fp32"))
    # fewer rows mean accumulation, and gradients that stay: recomputation alone takes less
    ((suggested, needed),) = suggest_changes(GPT2, plan, one_row - 1)
    assert needed == memory_needed(GPT2, suggested) < one_row
    assert suggested.changes_from(plan) == "gradient_checkpointing block"
    plan = Plan(batch_size=8, grad_accumulation=1, seq_len=1024, precision="fp32")
    # all of it at once: nothing is smaller than this
    smallest = Plan(1, 8, 64, "fp32", "block")
    room = memory_needed(GPT2, smallest)
    ((suggested, needed),) = suggest_changes(GPT2, plan, room)
    assert needed <= room
    assert suggested.seq_len == 64
    assert suggested.batch_size * suggested.grad_accumulation == 8
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
    # 16 bytes of each, and the output table's gradient once more; 4 and 12 of the trained half
    assert full == 16 * total + 4 * 50257 * 768
    assert half == pytest.approx(10 * total, rel=0.05)
    # frozen: the weights, and what 64 tokens keep
    assert 4 * total < none < 4.6 * total


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


def test_recomputation_is_offered_before_fewer_bits_and_more_gpus_only_on_demand():
    plan = Plan(8, 8, 1024, "fp32", parallel="ddp", processes=8)
    room = 0.7 * memory_needed(GPT2, plan)
    changes = [p.changes(plan) for p, _ in suggest_changes(GPT2, plan, room)]
    assert changes == [
        {"batch_size": 4, "grad_accumulation": 16},
        {"checkpointing": "block"},
        {"seq_len": 512},
    ]
    # a little less room is needed for the weights only: sharding is enough
    room = 0.95 * memory_needed(GPT2, plan)
    changes = [p.changes(plan) for p, _ in suggest_changes(GPT2, plan, room)]
    assert {"parallel": "fsdp"} in changes
    assert {"checkpointing": "selective"} in changes
    assert {"precision": "bf16"} in changes
    # the same on one GPU: more of them are offered where they can be had
    alone = Plan(8, 1, 1024, "fp32")
    room = 0.95 * memory_needed(GPT2, alone)
    more = {"grad_accumulation": 2, "parallel": "fsdp", "processes": 2}
    for asked in (False, True):
        found = suggest_changes(GPT2, alone, room, more_processes=asked)
        assert (more in [p.changes(alone) for p, _ in found]) == asked


def test_muon_is_never_told_to_split_its_matrices():
    plan = Plan(1, 8, 64, "fp32", parallel="ddp", processes=8, optimizer="muon")
    for share in (0.99, 0.9, 0.5):
        room = share * memory_needed(GPT2, plan)
        for suggested, _ in suggest_changes(GPT2, plan, room, more_processes=True):
            assert suggested.parallel == "ddp"


def test_accumulation_stays_a_multiple_of_the_processes():
    plan = Plan(7, 4, 64, "bf16", parallel="ddp", processes=4)
    for batch_size, processes in ((3, 4), (1, 4), (7, 8), (2, 16)):
        resized = plan.resized(batch_size, processes)
        assert resized.grad_accumulation % processes == 0
        assert resized.batch_size * resized.grad_accumulation >= 28
        fewer = resized.grad_accumulation - processes
        assert resized.batch_size * fewer < 28


def test_what_is_switched_on_already_counts():
    """A run that recomputes and shards is not refused for memory that it does not need."""
    plan = Plan(8, 4, 1024, "fp32", "block", "fsdp", 4)
    room = int(1.3 * memory_needed(GPT2, plan))
    common = {"batch_size": 8, "grad_accumulation": 4, "available": room}
    with pytest.raises(ValueError, match="cannot fit"):
        check_memory(GPT2, **common)
    assert check_memory(GPT2, **common, checkpointing="block", parallel="fsdp", processes=4) is None
