import math

import pytest
import torch
from torch import nn

from training.accumulation import (
    clip_factor,
    gradient_norm,
    gradients_of,
    language_model_loss,
    scale_gradients,
)
from training.batch import IGNORE_INDEX, Batch


def test_the_loss_is_a_sum_with_the_number_of_targets(tiny_model):
    model = tiny_model().eval()
    ids = torch.randint(13, (3, 9))
    targets = ids[:, 1:].clone()
    targets[0, :5] = IGNORE_INDEX
    batch = Batch(ids[:, :-1], targets)
    with torch.no_grad():
        total, count = language_model_loss(model, batch)
        mean = model(ids[:, :-1], targets).loss
    assert count == 24 - 5
    assert float(total) / count == pytest.approx(float(mean), rel=1e-6)


def test_the_loss_keeps_documents_apart(tiny_model):
    model = tiny_model().eval()
    ids = torch.randint(13, (2, 9))
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2]]).expand(2, -1)
    with torch.no_grad():
        together, _ = language_model_loss(model, Batch(ids[:, :-1], ids[:, 1:]))
        apart, _ = language_model_loss(model, Batch(ids[:, :-1], ids[:, 1:], documents))
    assert float(together) != pytest.approx(float(apart), rel=1e-6)


def test_the_norm_is_that_of_one_long_vector():
    gradients = [torch.randn(3, 4), torch.randn(5), torch.randn(2, 2).to(torch.bfloat16)]
    long = torch.cat([g.float().flatten() for g in gradients])
    assert float(gradient_norm(gradients)) == pytest.approx(float(long.norm()), rel=1e-6)
    assert float(gradient_norm([])) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_number_makes_the_norm_bad(bad):
    gradients = [torch.randn(100), torch.randn(100)]
    gradients[1][57] = bad
    assert not math.isfinite(float(gradient_norm(gradients)))


def test_sixteen_bit_gradients_do_not_overflow():
    gradients = [torch.full((1000,), 3e4, dtype=torch.float16)]
    assert float(gradient_norm(gradients)) == pytest.approx(3e4 * math.sqrt(1000), rel=1e-3)


@pytest.mark.parametrize(
    ("norm", "limit", "expected"),
    [(0.5, 1.0, 1.0), (4.0, 1.0, 0.25), (4.0, None, 1.0), (0.0, 1.0, 1.0), (1e-30, 1e-6, 1.0)],
)
def test_clipping_only_shortens(norm, limit, expected):
    assert clip_factor(norm, limit) == pytest.approx(expected, rel=1e-5)


def test_scaling_is_in_place_and_skips_parameters_without_gradient():
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    used.grad = torch.tensor([1.0, 2.0, 3.0])
    gradients = gradients_of([used, unused])
    scale_gradients(gradients, 0.5)
    assert used.grad.tolist() == [0.5, 1.0, 1.5]
    assert unused.grad is None
    scale_gradients([], 0.5)
