"""A run that has not begun: figures worked out by hand, operations counted, advice put back."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from gpt_model.config import PRESETS, preset
from gpt_model.model import GPT
from gpt_model.sizes import flops_per_token
from training.memory_advice import Plan, memory_needed
from training.run_plan import GPUS, RunPlan, recomputed_flops_per_token
from training.scaling_law import CHINCHILLA, REPLICATION
from transformer_basics.recomputation import KINDS

N = 124_439_808  # parameters of gpt2


def planned(name="gpt2", **changes):
    """A plan of gpt2 on one A100, with some things changed."""
    setup = {field.name for field in dataclasses.fields(Plan)}
    plan = Plan(8, changes.get("processes", 1), 1024, "bf16")
    plan = dataclasses.replace(plan, **{k: v for k, v in changes.items() if k in setup})
    others = {k: v for k, v in changes.items() if k not in setup}
    values = {
        "config": preset(name),
        "plan": plan,
        "tokens": 10**9,
        "gpu_memory": 80 * 10**9,
        "flops_per_second": 312e12,
    }
    return RunPlan(**{**values, **others})


def test_gpt2_by_hand():
    run = planned(price_per_hour=2.0)
    # per token 6 · (12·12·768² + 50257·768) + 12·12·768·1024 operations
    per_token = 6 * (84_934_656 + 38_597_376) + 113_246_208
    assert run.flops == per_token * 1e9 == 854_438_400e9
    assert run.seconds == pytest.approx(854_438_400e9 / (312e12 * 0.4))
    assert run.seconds == pytest.approx(6846, abs=1)
    assert run.gpu_hours == pytest.approx(1.902, abs=1e-3)
    assert run.cost == pytest.approx(3.80, abs=0.01)
    assert run.mfu == 0.4
    assert run.tokens_per_step == 8192
    assert run.steps == 122_071  # 122,070.3 rounded up
    # 16-bit copies of the matrices in the blocks; the output table is the first to have a gradient
    assert run.memory.weights == 4 * N + 2 * 84_934_656
    assert run.memory.gradients == 4 * 38_597_376
    assert run.memory.optimizer == 8 * N
    assert run.verdict == "fits"
    # 406.4 / N^0.34 = 0.7206, 410.7 / (1e9)^0.28 = 1.2405
    assert run.expected_loss(CHINCHILLA) == pytest.approx(1.69 + 0.7206 + 1.2405, abs=2e-3)
    n, d = run.best_split(REPLICATION)
    assert n * d == pytest.approx(N * 1e9)
    assert REPLICATION.loss(n, d) <= run.expected_loss(REPLICATION)


def test_eight_gpus_take_an_eighth_of_the_time_and_cost_the_same():
    one = planned(price_per_hour=1.5, optimizer="adamw")
    eight = planned(price_per_hour=1.5, processes=8, parallel="ddp")
    assert eight.seconds == pytest.approx(one.seconds / 8)
    assert eight.cost == pytest.approx(one.cost)
    assert eight.steps == pytest.approx(one.steps / 8, abs=1)
    assert planned().cost is None


def test_recomputation_by_hand():
    run = {kind: planned(checkpointing=kind) for kind in KINDS}
    # attention: 4·12·768·1024; blocks: 2·(12·12 − 12·4)·768² more
    assert run["selective"].flops - run["none"].flops == 37_748_736 * 1e9
    assert run["block"].flops - run["none"].flops == (37_748_736 + 113_246_208) * 1e9
    assert run["block"].seconds / run["none"].seconds == pytest.approx(1.177, abs=1e-3)
    assert run["block"].mfu == pytest.approx(0.4 / 1.177, abs=1e-3)


@pytest.mark.parametrize("name", ["gpt-micro", "modern-micro"])
@pytest.mark.parametrize("kind", KINDS)
def test_operations_are_those_that_torch_counts(name, kind):
    """The written-out attention needs QKᵀ only: AV comes last, and recomputation stops early."""
    length = 48
    config = preset(name, vocab_size=300, max_seq_len=length)
    model = GPT(config)
    model.use_checkpointing(kind)
    for module in model.modules():
        if hasattr(module, "implementation"):
            module.implementation = "lesson"
    with FlopCounterMode(display=False) as counter:
        model(torch.randint(300, (2, length)))[0].square().mean().backward()
    counted = counter.get_total_flops() / (2 * length)
    again = counted - flops_per_token(config, length)
    expected = recomputed_flops_per_token(config, length, kind)
    assert again == pytest.approx(expected / 2 if kind == "selective" else expected)


def test_a_sliding_window_is_recomputed_as_far_as_it_reaches():
    config = preset("gpt-micro").replace(sliding_window=16)
    assert recomputed_flops_per_token(config, 256, "selective") == 4 * 4 * 128 * 16


SETUP = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["gpt-micro", "gpt2", "gpt2-xl", "modern-small"]),
        "batch_size": st.integers(1, 64),
        "seq_len": st.sampled_from([64, 128, 256]),
        "precision": st.sampled_from(["fp32", "bf16", "fp16"]),
        "tokens": st.integers(1, 10**13),
    }
)


@given(SETUP, st.integers(2, 512), st.integers(1, 4), st.sampled_from(["ddp", "fsdp"]))
def test_more_gpus_never_take_more_memory_each_nor_more_time(setup, gpus, times, parallel):
    few = planned(**setup, parallel=parallel, processes=gpus)
    many = planned(**setup, parallel=parallel, processes=gpus * times)
    assert many.memory.total <= few.memory.total
    assert many.seconds <= few.seconds
    assert many.gpu_hours == pytest.approx(few.gpu_hours)
    assert few.seconds < planned(**setup).seconds


@given(SETUP)
def test_recomputation_saves_memory_and_costs_time_and_sharding_only_saves(setup):
    runs = [planned(**setup, checkpointing=k, processes=8, parallel="ddp") for k in KINDS]
    for less, more in zip(runs, runs[1:], strict=False):
        assert more.memory.total <= less.memory.total
        assert less.seconds < more.seconds < 4 / 3 * runs[0].seconds
    for run in runs:
        sharded = dataclasses.replace(run, plan=dataclasses.replace(run.plan, parallel="fsdp"))
        assert sharded.memory.total < run.memory.total
        assert sharded.seconds == run.seconds


def test_the_alternatives_are_all_that_is_allowed():
    pairs = [(run.plan.parallel, run.plan.checkpointing) for run in planned().alternatives()]
    assert pairs == [("none", kind) for kind in KINDS]
    runs = planned(processes=4, parallel="fsdp", checkpointing="block").alternatives()
    assert [(r.plan.parallel, r.plan.checkpointing) for r in runs] == [
        (parallel, kind) for parallel in ("ddp", "fsdp") for kind in KINDS
    ]
    muon = planned(processes=4, parallel="ddp", optimizer="muon").alternatives()
    assert {run.plan.parallel for run in muon} == {"ddp"}


def test_the_verdict_leaves_a_fifth_for_what_is_not_counted():
    needed = planned().memory.total
    verdicts = [planned(gpu_memory=int(needed * share)).verdict for share in (1.3, 1.2, 1.0, 0.9)]
    assert verdicts == ["fits", "tight", "tight", "does not fit"]


@settings(max_examples=60, deadline=None)
@given(SETUP, st.integers(1, 16), st.floats(0.02, 1.2), st.sampled_from(["adamw", "muon"]))
def test_advice_fits_when_it_is_put_back(setup, gpus, share, optimizer):
    parallel = "ddp" if gpus > 1 else "none"
    changes = {**setup, "processes": gpus, "parallel": parallel, "optimizer": optimizer}
    run = planned(**changes)
    run = dataclasses.replace(run, gpu_memory=max(1, int(share * run.memory.total)))
    for advised in run.advice():
        assert advised.memory.total <= run.gpu_memory
        assert advised != run
        assert advised.tokens == run.tokens
        # an update still sees at least as many sequences
        before, after = run.plan, advised.plan
        assert (
            after.batch_size * after.grad_accumulation
            >= before.batch_size * before.grad_accumulation
        )
    if run.verdict == "tight":
        assert run.advice()


def test_the_kinds_of_advice():
    run = planned("gpt2-xl", processes=4, parallel="ddp", precision="fp32", gpu_memory=64 * 10**9)
    assert run.verdict == "does not fit"
    found = run.advice()
    changed = [set(advised.plan.changes(run.plan)) for advised in found]
    for kind in ({"batch_size", "grad_accumulation"}, {"checkpointing"}, {"seq_len"}):
        assert kind in changed, kind
    assert found[-1].config == PRESETS["gpt2-large"]
    # one change of each kind, and each the smallest that is enough
    assert len({tuple(sorted(kind)) for kind in changed}) == len(changed)
    (batch,) = (a.plan for a in found if a.plan.batch_size != 8)
    twice = dataclasses.replace(batch, batch_size=2 * batch.batch_size)
    assert batch.batch_size == 4 or memory_needed(run.config, twice) > 0.8 * run.gpu_memory


def test_where_nothing_helps_there_is_no_advice():
    assert planned("gpt-micro", seq_len=64, gpu_memory=1000).advice() == []


def test_published_peaks():
    assert GPUS["a100"].peak("bf16") == GPUS["a100"].peak("fp16") == 312e12
    assert GPUS["a100"].peak("fp32") == 19.5e12
    assert GPUS["h100"].bf16 == GPUS["h200"].bf16 == 989e12
    for gpu in GPUS.values():
        assert 1e13 < gpu.fp32 < gpu.bf16 < 1e16
        assert 10**10 < gpu.memory < 10**12


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"processes": 0}, "gpus must be an integer >= 1, got 0"),
        ({"seq_len": 1025}, "seq_len must be an integer >= 1 and <= 1024, got 1025"),
        ({"precision": "int8"}, "precision must be one of fp32, bf16, fp16; got 'int8'"),
        ({"checkpointing": "blok"}, "did you mean 'block'"),
        ({"parallel": "dp"}, "parallel must be one of none, ddp, fsdp"),
        ({"optimizer": "lion"}, "optimizer must be one of"),
        ({"processes": 2}, "parallel must be ddp or fsdp with 2 gpus, got 'none'"),
        (
            {"processes": 4, "parallel": "ddp", "grad_accumulation": 6},
            "grad_accumulation must be a multiple of the 4 gpus, which share it, got 6",
        ),
        ({"parallel": "fsdp", "optimizer": "muon"}, "needs whole matrices"),
        ({"tokens": 0}, "tokens must be an integer >= 1, got 0"),
        ({"gpu_memory": 0}, "gpu_memory must be an integer >= 1, got 0"),
        ({"efficiency": 1.5}, "efficiency must be a finite number > 0 and <= 1, got 1.5"),
        ({"efficiency": 0.0}, "efficiency must be"),
        ({"flops_per_second": 0.0}, "flops_per_second must be"),
        ({"price_per_hour": -1.0}, "price_per_hour must be a finite number >= 0, got -1.0"),
    ],
)
def test_what_cannot_be_is_refused(changes, words):
    with pytest.raises(ValueError, match="must|needs") as caught:
        planned(**changes)
    assert words in str(caught.value).replace("<= 1 and > 0", "> 0 and <= 1")
