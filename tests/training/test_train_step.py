import copy
import math

import pytest
import torch
from torch import nn

from training.accumulation import language_model_loss
from training.batch import IGNORE_INDEX, Batch
from training.train_config import TrainConfig
from training.train_step import TrainStep, count_tokens, fetch

CPU = torch.device("cpu")
# Adam divides by the gradient's own size: with the usual eps, a gradient that is zero but for
# rounding would still move its weight by a whole step, in either direction.
SETTINGS = {
    **{"steps": 100, "learning_rate": 1e-2, "schedule": "constant", "warmup_steps": 0},
    "eps": 1e-3,
}


def make_step(model, batches, loss_fn=language_model_loss, precision="fp32", **changes):
    config = TrainConfig(**{**SETTINGS, **changes})
    return TrainStep(model, batches, loss_fn, config, device=CPU, precision=precision)


def padded_rows(n_rows, seed=0):
    """Rows whose numbers of targets differ wildly: 8, 1, 4, 2, 8, 1 …"""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(13, (n_rows, 9), generator=generator)
    targets = ids[:, 1:].clone()
    for row in range(n_rows):
        targets[row, (8, 1, 4, 2)[row % 4] :] = IGNORE_INDEX
    return ids[:, :-1], targets


def pieces_of(rows, size):
    """Micro-batch a holds rows a·size … a·size + size - 1."""
    inputs, targets = rows
    return lambda a: Batch(
        inputs[a * size : (a + 1) * size],
        targets[a * size : (a + 1) * size],
        window_ids=tuple(range(a * size, (a + 1) * size)),
    )


@pytest.mark.parametrize("n_pieces", [2, 4, 8])
def test_accumulation_is_the_large_batch_with_unequal_counts(tiny_model, n_pieces):
    """Mean of means, clipping before the division, a forgotten division: all fail here."""
    rows = padded_rows(8)
    models = tiny_model(dropout=0.0), tiny_model(dropout=0.0)
    large = make_step(models[0], pieces_of(rows, 8), overfit_one_batch=True)
    small = make_step(
        models[1],
        pieces_of(rows, 8 // n_pieces),
        grad_accumulation=n_pieces,
        overfit_one_batch=True,
    )
    for step in range(5):
        one, many = large(step), small(step)
        assert many.loss == pytest.approx(one.loss, abs=1e-6)
        assert many.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
        assert many.n_tokens == one.n_tokens == 64
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def reference_step(model, batch, rate, max_norm):
    """What a step must do, written with the library's own parts on the mean loss."""
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=rate,
        betas=(0.9, 0.95),
        eps=1e-3,
    )
    loss = model(batch.inputs, batch.targets).loss
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return loss.item(), norm.item()


@pytest.mark.parametrize("max_norm", [1e9, 0.05])
def test_one_step_is_the_textbook_step(tiny_model, max_norm):
    """The mean's gradient is clipped, not the sum's, and the unclipped norm is reported."""
    mine, theirs = tiny_model(dropout=0.0), tiny_model(dropout=0.0)
    batches = pieces_of(padded_rows(8), 8)
    report = make_step(mine, batches, grad_clip=max_norm)(0)
    loss, norm = reference_step(theirs, batches(0), 1e-2, max_norm)
    assert report.loss == pytest.approx(loss, rel=1e-6)
    assert report.grad_norm == pytest.approx(norm, rel=1e-5)
    assert norm > 0.1  # so that 0.05 really clips
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_without_clipping_the_norm_is_still_reported(tiny_model):
    batches = pieces_of(padded_rows(8), 8)
    free = make_step(tiny_model(), batches, grad_clip=None)(0)
    clipped = make_step(tiny_model(), batches, grad_clip=1e-3)
    report = clipped(0)
    assert report.grad_norm == pytest.approx(free.grad_norm, rel=1e-5)
    assert free.grad_norm > 0.1  # so that the limit matters
    left = torch.cat([p.grad.flatten() for p in clipped.model.parameters()])
    assert float(left.norm()) == pytest.approx(1e-3, rel=1e-2)


def test_step_s_uses_the_micro_batches_s_a_and_on(tiny_model):
    asked = []

    def batches(index):
        asked.append(index)
        return pieces_of(padded_rows(8), 1)(index % 8)

    step = make_step(tiny_model(), batches, grad_accumulation=3)
    step(0), step(1), step(7)
    assert asked == [0, 1, 2, 3, 4, 5, 21, 22, 23]
    asked.clear()
    step = make_step(tiny_model(), batches, grad_accumulation=2, overfit_one_batch=True)
    step(0), step(9)
    assert asked == [0, 1, 0, 1]


def test_the_learning_rate_follows_the_step(tiny_model):
    step = make_step(
        tiny_model(), pieces_of(padded_rows(8), 1), schedule="cosine", steps=8, warmup_steps=2
    )
    rates = [step(number).learning_rate for number in range(8)]
    assert rates == [step.config.learning_rate_at(number) for number in range(8)]
    assert (rates[2], rates[7]) == (1e-2, pytest.approx(1e-3))
    assert step.optimizer.param_groups[0]["lr"] == rates[7]


def poisoned(value, bad, where="loss"):
    """A loss that is `value` in micro-batch `bad`, or whose gradient is."""

    def loss_fn(model, batch):
        loss, count = language_model_loss(model, batch)
        if bad in batch.window_ids:
            if where == "loss":
                return loss * value, count
            # sqrt'(0) is infinite: the loss is fine, its gradient is not
            hidden = (model.token_embedding.weight.sum() * 0.0).abs().sqrt()
            return loss + hidden * (1.0 if math.isinf(value) else 0.0 * value), count
        return loss, count

    return loss_fn


@pytest.mark.parametrize(
    ("value", "where"), [(math.nan, "loss"), (math.inf, "loss"), (math.inf, "gradient")]
)
def test_a_bad_step_touches_nothing(tiny_model, same_weights, same_optimizer, value, where):
    rows = padded_rows(8)
    step = make_step(
        tiny_model(dropout=0.0), pieces_of(rows, 2), poisoned(value, 6, where), grad_accumulation=2
    )
    assert not step(0).skipped  # so that Adam has a memory to poison
    before = copy.deepcopy(step.model), copy.deepcopy(step.optimizer)
    report = step(1)
    assert report.skipped
    assert where in report.problem
    assert report.step == 2
    # micro-batch 3 holds rows 6 and 7; a bad gradient cannot be traced to one micro-batch
    assert report.window_ids == ((6, 7) if where == "loss" else (4, 5, 6, 7))
    assert same_weights(step.model, before[0])
    assert same_optimizer(step.optimizer, before[1])
    healthy = step(0)
    assert not healthy.skipped
    assert math.isfinite(healthy.loss)


def test_a_step_without_any_target_is_skipped(tiny_model, same_weights):
    ids = torch.zeros(2, 8, dtype=torch.long)
    masked = Batch(ids, torch.full_like(ids, IGNORE_INDEX), window_ids=(3, 4))
    step = make_step(tiny_model(), lambda index: masked)
    before = copy.deepcopy(step.model)
    report = step(0)
    assert "no targets" in report.problem
    assert report.window_ids == (3, 4)
    assert same_weights(step.model, before)


def test_counts_may_be_tensors(tiny_model, same_weights):
    def loss_fn(model, batch):
        loss, count = language_model_loss(model, batch)
        return loss, torch.tensor(count)

    models = tiny_model(dropout=0.0), tiny_model(dropout=0.0)
    rows = pieces_of(padded_rows(8), 4)
    reports = [
        make_step(models[0], rows, grad_accumulation=2)(0),
        make_step(models[1], rows, loss_fn, grad_accumulation=2)(0),
    ]
    assert reports[0].loss == reports[1].loss
    assert same_weights(*models)


def test_bf16_keeps_the_weights_in_fp32_and_learns(tiny_model):
    model = tiny_model(dropout=0.0)
    seen = []
    model.blocks[0].attention.out_proj.register_forward_hook(
        lambda *args: seen.append(args[2].dtype)
    )
    step = make_step(model, pieces_of(padded_rows(8), 8), precision="bf16", overfit_one_batch=True)
    losses = [step(number).loss for number in range(40)]
    assert losses[-1] < 0.7 * losses[0]
    assert seen[0] == torch.bfloat16
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_loss_scaling_leaves_the_update_as_it_is(tiny_model):
    """fp16's scaler, driven in fp32: the scale must cancel, clipping and norm included."""
    models = tiny_model(dropout=0.0), tiny_model(dropout=0.0)
    rows = pieces_of(padded_rows(8), 4)
    plain = make_step(models[0], rows, grad_accumulation=2, grad_clip=0.3)
    scaled = make_step(models[1], rows, grad_accumulation=2, grad_clip=0.3)
    scaled.scaler.enabled, scaled.scaler.scale = True, 2.0**12
    for number in range(3):
        one, other = plain(0), scaled(0)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
        assert other.loss == pytest.approx(one.loss, rel=1e-6), number
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_an_overflow_of_the_scale_lowers_it_until_it_fits(tiny_model):
    step = make_step(tiny_model(), pieces_of(padded_rows(8), 8), overfit_one_batch=True)
    step.scaler.enabled, step.scaler.scale = True, 2.0**90  # beyond float32
    reports = [step(number) for number in range(40)]
    skipped = [report.skipped for report in reports]
    assert skipped[0] > skipped[-1]
    assert skipped == sorted(skipped, reverse=True)  # first all overflow, then none
    assert not step.scaler.exhausted
    assert reports[-1].loss < reports[0].loss


def test_gradients_stay_visible_until_the_next_step(tiny_model):
    step = make_step(tiny_model(), pieces_of(padded_rows(8), 8), grad_clip=None)
    report = step(0)
    flat = torch.cat([p.grad.flatten() for p in step.model.parameters()])
    assert float(flat.norm()) == pytest.approx(report.grad_norm, rel=1e-5)


def test_any_batch_and_any_module_will_do():
    """No GPT, no Batch: a tensor has .to, and that is all the loop asks for."""

    def loss_fn(model, x):
        return (model(x) - 1.0).square().sum(), x.shape[0]

    step = make_step(nn.Linear(3, 1), lambda i: torch.ones(5, 3), loss_fn, learning_rate=0.1)
    losses = [step(number).loss for number in range(50)]
    assert losses[-1] < 1e-2 * losses[0]


def test_tokens_are_counted():
    ids = torch.zeros(3, 8, dtype=torch.long)
    assert count_tokens(Batch(ids, ids)) == 24
    assert count_tokens(ids[:2]) == 16

    class PairBatch:
        def __init__(self):
            self.chosen, self.rejected, self.name = torch.zeros(2, 5), torch.zeros(2, 4), "x"

    assert count_tokens(PairBatch()) == 10


def test_fetch_mixes_numbers_and_tensors_in_order():
    losses = [torch.tensor(1.5), torch.tensor(2.5), torch.tensor(3.5)]
    sums, counts, norm = fetch(losses, [4, torch.tensor(5), 6], torch.tensor(9.0))
    assert (sums, counts, norm) == ([1.5, 2.5, 3.5], [4.0, 5.0, 6.0], 9.0)
    assert fetch(losses[:1], [torch.tensor(7)], None) == ([1.5], [7.0], 0.0)
    assert fetch([], [], None) == ([], [], 0.0)
