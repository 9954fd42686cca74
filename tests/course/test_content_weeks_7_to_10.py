"""The reference solutions of weeks 7 to 10 against this repository's own functions, and torch's."""

import random
from types import SimpleNamespace

import pytest
import torch

from course.exercise import find, without_marks
from training.schedule import learning_rate


def solution(name):
    space = {"__name__": "answer"}
    exec(compile(without_marks(find(name).solution), name, "exec"), space)
    return SimpleNamespace(**space)


@pytest.fixture(autouse=True)
def double_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(7)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize(("warmup", "total"), [(0, 9), (3, 20), (7, 8 + 1)])
def test_the_schedule_is_ours(warmup, total):
    first, second = solution("schedule.01"), solution("schedule.02")
    for step in range(total + 5):
        ours = learning_rate(
            step,
            kind="cosine",
            max_lr=3e-3,
            min_lr=4e-4,
            warmup_steps=warmup,
            total_steps=total,
            decay_steps=0,
        )
        theirs = second.learning_rate(step, 3e-3, 4e-4, warmup, total)
        assert theirs == pytest.approx(ours, rel=1e-12)
        if step <= warmup:
            assert first.warmup_rate(step, 3e-3, warmup) == pytest.approx(ours, rel=1e-12)


def test_the_predicted_rates_are_those_of_our_schedule():
    answer = solution("schedule.03")
    settings = {"kind": "cosine", "max_lr": 1e-3, "min_lr": 2e-4, "warmup_steps": 9}
    rates = [
        learning_rate(step, total_steps=answer.updates, decay_steps=0, **settings)
        for step in range(answer.updates)
    ]
    assert answer.first_rate == pytest.approx(rates[0])
    assert answer.top_step == rates.index(max(rates))
    assert answer.middle_rate == pytest.approx(rates[(9 + answer.updates - 1) // 2])
    assert (9 + answer.updates - 1) % 2 == 0
    assert answer.last_rate == pytest.approx(rates[-1])


def test_groups_get_the_rate_that_our_optimizer_gives_them():
    from training.optimizer import set_learning_rate

    generator = random.Random(3)
    mine = [{"lr": 1.0}, {"lr": 2.0, "scale": 3.0}]
    ours = SimpleNamespace(param_groups=[{"lr": 1.0}, {"lr": 2.0, "lr_scale": 3.0}])
    for _ in range(3):
        rate = generator.random()
        solution("schedule.04").set_learning_rate(mine, rate)
        set_learning_rate(ours, rate)
        assert [g["lr"] for g in mine] == [g["lr"] for g in ours.param_groups]


def some_gradients():
    return [torch.randn(4, 3), 3 * torch.randn(2, 5), torch.randn(6)]


@pytest.mark.parametrize("max_norm", [0.7, 1e3])
def test_clipping_is_torchs(max_norm):
    gradients = some_gradients()
    parameters = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    clipped, length = solution("optimization.01").clip_gradients(gradients, max_norm)
    torch.testing.assert_close(length, norm)
    for parameter, gradient in zip(parameters, clipped, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=0)


def test_adamw_is_torchs_and_ours():
    from training.optimizer import adamw_written_out

    parameter = torch.nn.Parameter(torch.randn(4, 3))
    optimizer = torch.optim.AdamW([parameter], 0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.3)
    theirs, ours = parameter.detach().clone(), parameter.detach().clone()
    m, v = torch.zeros(2, 4, 3)
    own_m, own_v = torch.zeros(2, 4, 3)
    for step in range(1, 6):
        gradient = parameter.grad = torch.randn(4, 3)
        optimizer.step()
        theirs, m, v = solution("optimization.02").adamw_step(
            theirs, gradient, m, v, step, 0.02, 0.8, 0.95, 1e-3, 0.3
        )
        adamw_written_out(
            ours, gradient, own_m, own_v, step,
            learning_rate=0.02, weight_decay=0.3, betas=(0.8, 0.95), eps=1e-3,
        )  # fmt: skip
    torch.testing.assert_close(theirs, parameter.detach())
    torch.testing.assert_close(theirs, ours)
    torch.testing.assert_close(v, own_v)


def bytes_in_training(frozen, trained, make_optimizer):
    """What really lies in memory after one step: weights, gradients, the optimizer's state."""
    frozen, trained = (torch.nn.Parameter(torch.randn(n).float()) for n in (frozen, trained))
    frozen.requires_grad_(False)
    optimizer = make_optimizer([trained])
    (trained**2).sum().backward()
    optimizer.step()
    state = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    everything = [frozen, trained, trained.grad, *(t for t in state if t.numel() > 1)]
    return sum(t.numel() * t.element_size() for t in everything)


def test_the_predicted_memory_is_what_training_takes():
    answer = solution("optimization.03")
    small = 100_000  # a thousandth of the model in the exercise
    adamw = bytes_in_training(0, small, torch.optim.AdamW)
    assert answer.total_mb == pytest.approx(adamw * 1000 / 1e6)
    sgd = bytes_in_training(0, small, lambda p: torch.optim.SGD(p, lr=0.1))
    assert answer.sgd_mb == pytest.approx(sgd * 1000 / 1e6)
    lora = bytes_in_training(small, small // 100, torch.optim.AdamW)
    assert answer.lora_mb == pytest.approx(lora * 1000 / 1e6)
    assert answer.weights_mb + answer.weights_mb + answer.optimizer_mb == answer.total_mb


def test_accumulation_equals_one_large_batch():
    model = torch.nn.Linear(3, 1)
    x, y = torch.randn(10, 3), torch.randn(10, 1)

    def model_loss(rows):
        return ((model(x[rows]) - y[rows]) ** 2).sum(), len(rows)

    pieces = [list(range(6)), [6], [7, 8, 9]]
    loss, gradients = solution("optimization.04").accumulate(
        model_loss, pieces, list(model.parameters())
    )
    whole = ((model(x) - y) ** 2).mean()
    assert loss == pytest.approx(float(whole.detach()))
    for mine, expected in zip(
        gradients, torch.autograd.grad(whole, model.parameters()), strict=True
    ):
        torch.testing.assert_close(mine, expected)


def test_the_scale_is_our_loss_scalers():
    from training.mixed_precision import LossScaler

    scaler = LossScaler(enabled=True, scale=64.0, growth_interval=3)
    scale, good = 64.0, 0
    generator = random.Random(1)
    for _ in range(60):
        overflowed = generator.random() < 0.2
        scaler.update(overflowed)
        scale, good = solution("optimization.05").next_scale(scale, good, overflowed, 3)
        assert {"scale": scale, "good_steps": good} == scaler.state_dict()


@pytest.mark.parametrize("max_norm", [1.5, 1e3])
def test_a_scaled_update_is_the_plain_one(max_norm):
    answer = solution("optimization.06")
    gradients = some_gradients()
    parameters = [torch.randn_like(g) for g in gradients]
    scaled = [64.0 * g for g in gradients]
    updated, skipped = answer.scaled_update(parameters, scaled, 64.0, max_norm, 0.1)
    clipped, _ = solution("optimization.01").clip_gradients(gradients, max_norm)
    assert not skipped
    for new, old, gradient in zip(updated, parameters, clipped, strict=True):
        torch.testing.assert_close(new, old - 0.1 * gradient)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_an_overflow_anywhere_skips_the_whole_update(place, bad):
    gradients = some_gradients()
    gradients[place].flatten()[1] = bad
    parameters = [torch.randn_like(g) for g in gradients]
    updated, skipped = solution("optimization.06").scaled_update(
        parameters, gradients, 64.0, 1.5, 0.1
    )
    assert skipped
    assert all(map(torch.equal, updated, parameters))


def a_model():
    return torch.nn.Sequential(
        torch.nn.Embedding(7, 5), torch.nn.Dropout(0.3), torch.nn.Linear(5, 7)
    )


def sum_loss(model, places):
    targets = (places * 3 + 1) % 7
    return torch.nn.functional.cross_entropy(model(places), targets, reduction="sum"), len(places)


def mean_loss(model, places):
    total, count = sum_loss(model, places)
    return total / count


def our_training(model, data, steps):
    from training.train_config import TrainConfig
    from training.train_step import TrainStep

    config = TrainConfig(
        steps=steps, learning_rate=0.05, schedule="constant", warmup_steps=2, grad_clip=0.3
    )
    cpu = torch.device("cpu")
    take = TrainStep(model, data, sum_loss, config, device=cpu, precision="fp32")
    torch.manual_seed(5)
    return [take(step) for step in range(steps)], take


def test_the_loop_and_the_step_train_as_our_trainer_does():
    batches = [torch.randint(7, (n,)) for n in (9, 4, 6)]
    ours, step_by_step, whole = a_model(), a_model(), a_model()
    step_by_step.load_state_dict(ours.state_dict())
    whole.load_state_dict(ours.state_dict())
    reports, take = our_training(ours, lambda i: batches[i % 3], 7)
    rates = [report.learning_rate for report in reports]

    def optimizer_of(model):
        groups = [
            {**group, "params": [], "lr": 9.0}
            for group in take.optimizer.state_dict()["param_groups"]
        ]
        where = {id(p): name for name, p in ours.named_parameters()}
        mine = dict(model.named_parameters())
        for group, theirs in zip(groups, take.optimizer.param_groups, strict=True):
            group["params"] = [mine[where[id(p)]] for p in theirs["params"]]
        return torch.optim.AdamW(groups)

    torch.manual_seed(5)
    optimizer = optimizer_of(step_by_step)
    losses = [
        solution("training.01").train_step(
            step_by_step, mean_loss, batches[step % 3], optimizer, rate, 0.3
        )
        for step, rate in enumerate(rates)
    ]
    assert losses == pytest.approx([report.loss for report in reports], rel=1e-6)
    torch.manual_seed(5)
    losses = solution("training.06").train(
        whole, mean_loss, batches, 7, optimizer_of(whole), lambda step: rates[step], 0.3
    )
    assert losses == pytest.approx([report.loss for report in reports], rel=1e-6)
    for a, b, c in zip(*(m.parameters() for m in (ours, step_by_step, whole)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-7)


def test_evaluation_is_ours():
    from training.held_out import held_out_loss

    model = a_model()
    batches = [torch.randint(7, (n,)) for n in (9, 2, 6)]
    ours = held_out_loss(model, sum_loss, batches, device=torch.device("cpu"), precision="fp32")
    loss = solution("training.02").evaluate(model.train(), sum_loss, batches)
    assert loss == pytest.approx(ours.loss, rel=1e-6)
    assert model.training


def test_the_predicted_numbers_are_those_of_an_untrained_model():
    from gpt_model.config import GPTConfig
    from gpt_model.sizes import flops_per_token, matmul_parameters

    answer = solution("training.03")
    logits = torch.zeros(8, 4096)
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(8))
    assert answer.first_loss == pytest.approx(loss.item())
    assert answer.first_perplexity == pytest.approx(loss.exp().item())
    assert answer.steps_per_epoch * answer.tokens_per_step == 2**20
    config = GPTConfig(vocab_size=99, max_seq_len=8, dim=32, n_layers=2, n_heads=2)
    n = matmul_parameters(config)
    # without the attention scores, which grow with the context and which the rule leaves out
    flops = 2 * flops_per_token(config, 1) - flops_per_token(config, 2)
    assert flops / n == pytest.approx(answer.training_flops / 1e8 / 1e9)


def test_resuming_from_the_saved_state_changes_nothing():
    answer = solution("training.04")
    torch.manual_seed(0)
    batches = [torch.randint(7, (6,)) for _ in range(8)]

    def train_on(model, optimizer, position):
        for batch in batches[position : position + 4]:
            solution("training.01").train_step(model, mean_loss, batch, optimizer, 0.05, 1.0)

    model = a_model()
    optimizer = torch.optim.AdamW(model.parameters())
    train_on(model, optimizer, 0)
    state = answer.save_state(model, optimizer, 4, 4)
    train_on(model, optimizer, 4)
    fresh = a_model()
    fresh_optimizer = torch.optim.AdamW(fresh.parameters())
    step, position = answer.load_state(state, fresh, fresh_optimizer)
    assert step == 4
    train_on(fresh, fresh_optimizer, position)
    for a, b in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)


def test_early_stopping_judges_as_our_state_does():
    from training.hook_base import EvaluationReport
    from training.train_state import TrainState

    generator = random.Random(4)
    for patience in (1, 2, 3):
        losses = [generator.choice([1.0, 2.0, 3.0, 4.0]) for _ in range(12)]
        state, epochs = TrainState(), 0
        for loss in losses:
            epochs = state.step = epochs + 1
            report = EvaluationReport(epochs, loss, None, 1, 0.0, state.is_better(loss))
            state.after_evaluation(report)
            if state.evaluations_without_gain >= patience:
                break
        seen = []
        model = torch.nn.Linear(1, 1)

        def train_epoch(model, seen=seen):
            seen.append(0)
            torch.nn.init.constant_(model.weight, len(seen))

        best, kept = solution("training.05").train_until_best(
            model, train_epoch, lambda m, s=seen, all_=losses: all_[len(s) - 1], 12, patience
        )
        assert (best, len(seen)) == (state.best_loss, epochs)
        # of several equally good ones ours keeps the latest, the exercise the first
        first = losses.index(best) + 1
        assert model.weight.item() == kept["weight"].item() == first


def our_lora(d_in, d_out, r, alpha):
    """One of our LoRA layers, with matrices that are not zero."""
    from finetuning.lora import LoRAConfig, apply_lora

    model = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(d_in, d_out, bias=False)})
    apply_lora(model, LoRAConfig(r=r, alpha=alpha, target=("q_proj",)))
    adapter = model["q_proj"].current
    fresh = adapter.A.detach().clone(), adapter.B.detach().clone()
    torch.nn.init.normal_(adapter.B)
    return model, adapter, fresh


def test_lora_is_ours_forward_and_merged():
    model, adapter, _ = our_lora(6, 5, 3, 7.0)
    layer = model["q_proj"]
    x, w = torch.randn(2, 4, 6), layer.base_layer.weight
    settings = (w, adapter.A, adapter.B, 7.0, 3)
    torch.testing.assert_close(solution("lora.01").lora_forward(x, *settings), layer(x))
    torch.testing.assert_close(solution("lora.03").merge(*settings), layer.effective_weight())
    answer = solution("lora.06")
    mine = {"w": w, "a": adapter.A, "b": adapter.B, "scale": 7.0 / 3, "merged": False}
    for change in (answer.merge_layer, answer.merge_layer, answer.unmerge_layer):
        change(mine)
        torch.testing.assert_close(answer.forward(x, mine), layer(x))


def test_lora_starts_as_ours_does():
    for _ in range(5):
        a, b = solution("lora.02").lora_init(600, 40, 8)
        _, _, (our_a, our_b) = our_lora(600, 40, 8, 16.0)
        assert (a.shape, b.shape) == (our_a.shape, our_b.shape)
        assert float(a.abs().max()) == pytest.approx(float(our_a.abs().max()), rel=0.02)
        assert float(a.std()) == pytest.approx(float(our_a.std()), rel=0.1)
        assert not b.any()
        assert not our_b.any()


def test_what_trains_is_what_ours_trains():
    model, _, _ = our_lora(6, 5, 3, 7.0)
    model["norm"] = torch.nn.LayerNorm(5).requires_grad_(False)
    renamed = {
        name.replace("adapters.default.A", "lora_a").replace("adapters.default.B", "lora_b"): p
        for name, p in model.named_parameters()
    }
    chosen = solution("lora.04").trainable(list(renamed))
    assert chosen == [name for name, p in renamed.items() if p.requires_grad]
    assert len(chosen) == 2


def test_the_predicted_counts_and_gradients_are_those_of_a_lora_layer():
    answer = solution("lora.05")
    layers = {f"{n}.{name}": torch.nn.Linear(768, 768, bias=False).float()
              for n in range(12) for name in ("q", "k", "v")}  # fmt: skip
    assert layers["0.q"].weight.numel() == answer.full_count
    pairs = [solution("lora.02").lora_init(768, 768, 8) for name in layers if name[-1] in "qv"]
    assert pairs[0][0].numel() + pairs[0][1].numel() == answer.lora_count
    assert sum(a.numel() + b.numel() for a, b in pairs) == answer.model_count
    a, b = (t.requires_grad_() for t in pairs[0])
    (torch.randn(4, 768) @ a @ b).square().sum().backward()
    (torch.randn(4, 768) @ a @ b).sum().backward()
    assert bool((a.grad == 0).all()) == answer.a_stays_first
    assert bool((b.grad == 0).all()) == answer.b_stays_first


def test_int8_rows_are_those_of_our_cache():
    from transformer_basics.quantized_cache import from_codes, to_codes

    answer = solution("quantization.01")
    w = torch.randn(6, 9)
    w[2] = 0
    codes, scale = to_codes(w)
    q, steps = answer.absmax_int8(w.float())
    assert torch.equal(q, codes)
    torch.testing.assert_close(steps, scale[:, 0])
    restored = from_codes(codes, scale, torch.float32)
    torch.testing.assert_close(answer.dequantize(q, steps), restored)


def test_four_bits_in_groups_are_ours():
    from transformer_basics.integer_weights import WeightFormat, encode, unpack

    w = torch.randn(5, 24)
    w[1, :8] = 0
    # largest values that bfloat16 holds exactly, so that our scale is not rounded
    w[:, ::8] = 5.0 + torch.randint(0, 32, (5, 3)) / 32
    w[1, 0], w[2, 8] = 0, -5.5
    stored = encode(w, WeightFormat(4, 8))
    q, scale = solution("quantization.04").group_quantize(w.float(), 8)
    torch.testing.assert_close(scale, stored.scale.float())
    assert torch.equal(q, unpack(stored.packed).flatten(1))


def test_zero_points_are_ours():
    from transformer_basics.integer_weights import WeightFormat, encode

    # rows whose range is a power of two: the scale is the same number in bfloat16
    w = torch.rand(4, 10) * 255 / 64
    w[:, 0], w[:, 1] = 0, 255 / 64
    w[1:] -= torch.tensor([1.0, 2.5, 255 / 64])[:, None]
    stored = encode(w, WeightFormat(8, None, zero_points=True))
    q, scale, zero = solution("quantization.02").zero_point_uint8(w)
    torch.testing.assert_close(scale, stored.scale[:, 0].double())
    assert torch.equal(zero.int() - 128, stored.zero[:, 0].int())
    assert torch.equal(q.int() - 128, stored.packed[:, 0].int())
    restored = solution("quantization.02").dequantize_uint8(q, scale, zero)
    assert (restored - w).abs().max() <= scale.max()


def test_packing_is_ours_up_to_the_order():
    from transformer_basics.integer_weights import pack, unpack

    answer = solution("quantization.03")
    q = torch.randint(-8, 8, (3, 10)).to(torch.int8)
    halves = torch.cat([q[:, 0::2], q[:, 1::2]], dim=1)
    assert torch.equal(answer.pack_int4(q), pack(halves, 4))
    packed = torch.randint(256, (3, 5)).to(torch.uint8)
    ours = unpack(packed)
    assert torch.equal(answer.unpack_int4(packed), torch.stack(ours.chunk(2, 1), -1).flatten(1))
    assert torch.equal(answer.unpack_int4(answer.pack_int4(q)), q)


def test_the_linear_layer_is_that_of_the_restored_weights():
    answer = solution("quantization.05")
    w, x, bias = torch.randn(5, 8), torch.randn(3, 8), torch.randn(5)
    q, scale = solution("quantization.01").absmax_int8(w)
    restored = solution("quantization.01").dequantize(q, scale)
    expected = torch.nn.functional.linear(x, restored, bias)
    torch.testing.assert_close(answer.quantized_linear(x, q, scale, bias), expected)
    whole = solution("quantization.07").int8_product(x, q, scale)
    gap = (whole - (expected - bias)).norm() / expected.norm()
    assert 1e-6 < gap < 0.02


def test_the_predicted_sizes_are_those_of_our_format():
    from transformer_basics.integer_weights import WeightFormat

    answer = solution("quantization.06")
    columns = 6400
    four = WeightFormat(4, 64).row_bytes(columns)
    assert answer.int4_bits == pytest.approx(8 * four / columns)
    assert answer.int4_gb == pytest.approx(7e9 * four / columns / 1e9)
    assert answer.int8_gb == pytest.approx(answer.fp16_gb / 2)
    w = torch.linspace(-12.7, 12.7, 10_001)[None]
    w[0, 0] = 12.7
    q, scale = solution("quantization.01").absmax_int8(w)
    errors = (solution("quantization.01").dequantize(q, scale) - w).abs()
    assert float(errors.max()) == pytest.approx(answer.worst_error, rel=0.01)


def test_answers_run_on_one_thread_and_leave_the_callers_as_they_were():
    from course.running import run_source

    source = (
        "import torch\n\ndef warmup_rate(*_, **__):\n    return float(torch.get_num_threads())\n"
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        outcomes = run_source(find("schedule.01"), source, 1)
        assert outcomes[0].values["rates"].unique().tolist() == [1.0]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
