import pytest
import torch

from foundation.devices import (
    autocast_context,
    available_memory_bytes,
    pick_device,
    resolve_precision,
    seed_everything,
)

CPU = torch.device("cpu")


def test_devices_that_are_not_there_are_refused_by_name():
    assert pick_device("cpu") == CPU
    for name in ("cuda:99", "xpu", "gpu!", "meta"):
        with pytest.raises(ValueError, match=name.split(":")[0].rstrip("!")):
            pick_device(name)


@pytest.mark.parametrize(("native", "chosen"), [(True, "bf16"), (False, "fp32"), (None, "fp32")])
def test_auto_precision_on_a_cpu_follows_its_instructions(native, chosen, monkeypatch):
    if native is None:  # a torch that cannot tell
        monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native, raising=False)
    assert resolve_precision("auto", CPU) == chosen


def test_precision_on_a_cpu():
    assert resolve_precision("bf16", CPU) == "bf16"
    with pytest.raises(ValueError, match="'fp16' needs a CUDA device, got cpu"):
        resolve_precision("fp16", CPU)
    with pytest.raises(ValueError, match="did you mean 'bf16'"):
        resolve_precision("bf61", CPU)


def test_autocast_changes_the_dtype_of_a_product_only_when_asked():
    a = torch.ones(2, 2)
    with autocast_context("bf16", CPU):
        assert (a @ a).dtype == torch.bfloat16
    with autocast_context("fp32", CPU):
        assert (a @ a).dtype == torch.float32


def test_seeding_repeats_and_refuses_negative_seeds():
    seed_everything(3)
    first = torch.rand(4)
    seed_everything(3)
    assert torch.equal(first, torch.rand(4))
    with pytest.raises(ValueError, match="seed must be an integer >= 0"):
        seed_everything(-1)


def test_memory_is_a_plausible_number_of_bytes():
    memory = available_memory_bytes()
    assert memory is None or 10**7 < memory < 10**14
