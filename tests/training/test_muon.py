import math

import pytest
import torch
from torch import nn

from training.muon import Muon, muon_written_out, orthogonalize, update_scale
from training.optimizer import adamw_written_out, build_optimizer, set_learning_rate


def with_singular_values(rows, columns, values):
    """A matrix with known singular values, and the orthogonal matrix nearest to it."""
    left, _ = torch.linalg.qr(torch.randn(rows, len(values), dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(columns, len(values), dtype=torch.float64))
    return left @ torch.diag(values) @ right.mT, left @ right.mT


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (12, 40), (40, 12), (64, 64)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_singular_values_land_in_the_known_band(rows, columns, dtype):
    values = torch.logspace(0, -2, min(rows, columns), dtype=torch.float64) * 37.0
    matrix, exact = with_singular_values(rows, columns, values)
    found = orthogonalize(matrix.to(dtype))
    assert found.dtype == dtype
    sizes = torch.linalg.svdvals(found.double())
    assert 0.6 < sizes.min()
    assert sizes.max() < 1.25
    assert torch.cosine_similarity(found.double().flatten(), exact.flatten(), dim=0) > 0.97


def test_singular_vectors_are_kept():
    """UᵀOV must be diagonal: only the lengths change."""
    matrix = torch.randn(10, 14, dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inside = left.mT @ orthogonalize(matrix) @ right.mT
    assert (inside - torch.diag(inside.diagonal())).abs().max() < 1e-10
    assert inside.diagonal().min() > 0.3


def test_a_stack_equals_its_matrices_one_by_one():
    stack = torch.randn(3, 2, 6, 9, dtype=torch.float64)
    stack[1] *= 1000.0  # each matrix has its own norm
    together = orthogonalize(stack)
    for i in range(3):
        for j in range(2):
            assert torch.allclose(together[i, j], orthogonalize(stack[i, j]), atol=1e-12)


def test_a_tall_matrix_equals_the_flat_one_turned():
    flat = torch.randn(5, 20, dtype=torch.float64)
    assert torch.equal(orthogonalize(flat.mT), orthogonalize(flat).mT)


def test_zero_stays_zero():
    assert torch.equal(orthogonalize(torch.zeros(2, 4, 3)), torch.zeros(2, 4, 3))


def test_updates_have_the_root_mean_square_of_adamw():
    for shape in ((128, 128), (512, 128), (64, 256)):
        update = update_scale(shape) * orthogonalize(torch.randn(shape, dtype=torch.float64))
        assert update.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.15)


class Network(nn.Module):
    """Two matrices of one size, flat and tall, one square, a table, a head, vectors."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.up, self.down = nn.Linear(6, 10, bias=False), nn.Linear(10, 6)
        self.square = nn.Linear(6, 6, bias=False)
        self.norm = nn.LayerNorm(6)
        self.lm_head = nn.Linear(6, 7, bias=False)

    def forward(self, ids):
        x = self.square(self.down(self.up(self.table(ids)).relu()))
        return self.lm_head(self.norm(x))


HIDDEN = {"up.weight", "down.weight", "square.weight"}


def test_steps_equal_the_written_out_version_in_float64():
    """Grouped and stacked in bf16 against one matrix at a time in float64; AdamW for the rest."""
    torch.manual_seed(0)
    model = Network()
    settings = {"weight_decay": 0.3, "betas": (0.8, 0.97), "eps": 1e-8}
    optimizer = build_optimizer(
        model, name="muon", learning_rate=1.0, muon_learning_rate=4.0, muon_momentum=0.7, **settings
    )
    mine = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    state = {name: [torch.zeros_like(p), torch.zeros_like(p)] for name, p in mine.items()}
    for step in range(1, 6):
        rate = 0.01 * step
        set_learning_rate(optimizer, rate)
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            gradient, buffers = parameter.grad.double(), state[name]
            if name in HIDDEN:
                muon_written_out(
                    mine[name],
                    gradient,
                    buffers[0],
                    learning_rate=4 * rate,
                    weight_decay=0.3,
                    momentum=0.7,
                )
            else:
                decay = {**settings, "weight_decay": 0.3 if parameter.ndim == 2 else 0.0}
                adamw_written_out(mine[name], gradient, *buffers, step, learning_rate=rate, **decay)
        optimizer.step()
    for name, parameter in model.named_parameters():
        # a bf16 iteration moves each number by a few per cent of the step; the steps sum to 0.6
        atol = 0.02 if name in HIDDEN else 1e-6
        assert torch.allclose(parameter.double(), mine[name], atol=atol), name


def test_the_first_step_by_singular_value_decomposition():
    """An oracle that shares no code: every direction moves by the same length."""
    layer = nn.Linear(8, 8, bias=False)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.diag(torch.logspace(0, -2, 8))
    build_optimizer(layer, name="muon", learning_rate=0.1, weight_decay=0.5).step()
    moved = 0.95 * before - layer.weight.detach()  # decay first, by exactly 1 - rate * decay
    length = 0.1 * 0.2 * math.sqrt(8)
    sizes = torch.linalg.svdvals(moved) / length
    assert 0.6 < sizes.min()
    assert sizes.max() < 1.25
    assert (moved.diagonal() > 0).all()  # against the gradient


def test_nesterov_looks_ahead():
    """After a reversal the fresh gradient counts more than in the plain moving average."""
    weight, buffer = torch.zeros(3, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    # M = 0.5 - 0.5 = 0 afterwards, so without Nesterov nothing would move
    muon_written_out(
        weight, -torch.eye(3).double(), buffer, learning_rate=1.0, weight_decay=0.0, momentum=0.5
    )
    assert buffer.abs().max() == 0
    assert (weight.diagonal() > 0.1).all()


def test_who_is_orthogonalized(tiny_model):
    model = tiny_model(tie_embeddings=False, qkv_bias=True)
    optimizer = build_optimizer(model, name="muon")
    hidden = {id(p) for g in optimizer.param_groups if g.get("hidden") for p in g["params"]}
    for name, parameter in model.named_parameters():
        inside = name.startswith("blocks.") and parameter.ndim == 2
        assert (id(parameter) in hidden) == inside, name
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))


def test_a_head_that_shares_the_embedding_is_adamws(tiny_model):
    model = tiny_model()
    optimizer = build_optimizer(model, name="muon")
    hidden = [p for g in optimizer.param_groups if g.get("hidden") for p in g["params"]]
    assert all(p is not model.lm_head.weight for p in hidden)


def test_a_table_used_twice_is_a_table_under_any_name():
    model = nn.Module()
    model.table, model.out = nn.Embedding(7, 6), nn.Linear(6, 7, bias=False)
    model.inner = nn.Linear(6, 6, bias=False)
    model.out.weight = model.table.weight
    groups = build_optimizer(model, name="muon").param_groups
    assert [g["hidden"] for g in groups] == [True, False]
    assert groups[0]["params"][0] is model.inner.weight
    assert groups[1]["params"][0] is model.table.weight


def test_the_two_rates_follow_one_schedule():
    optimizer = build_optimizer(Network(), name="muon", learning_rate=1e-3, muon_learning_rate=2e-2)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([2e-2, 1e-3, 1e-3])
    set_learning_rate(optimizer, 5e-4)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([1e-2, 5e-4, 5e-4])
    one = build_optimizer(Network(), name="muon", learning_rate=1e-3)
    assert [g["lr"] for g in one.param_groups] == [1e-3] * 3


def test_frozen_and_unused_matrices_stay_where_they_are():
    model = Network()
    model.square.requires_grad_(False)
    optimizer = build_optimizer(model, name="muon")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        if name != "up.weight" and parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(before) - {"square.weight", "up.weight"}
    assert set(optimizer.state[model.down.weight]) == {"momentum"}
    assert model.up.weight not in optimizer.state or not optimizer.state[model.up.weight]


def test_only_matrices_or_only_vectors():
    for layer in (nn.Linear(3, 3, bias=False), nn.LayerNorm(3)):
        before = layer.weight.detach().clone()
        optimizer = build_optimizer(layer, name="muon", learning_rate=0.1)
        assert isinstance(optimizer, Muon)
        layer(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"muon_momentum": 1.0}, "muon_momentum must be a finite number >= 0 and < 1, got 1.0"),
        ({"muon_learning_rate": 0.0}, "muon_learning_rate must be a finite number > 0, got 0.0"),
    ],
)
def test_unreasonable_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer(nn.Linear(2, 2), name="muon", **options)
