"""The picture of two heads: its loss and its measure by hand, and that the heads do learn."""

import torch
import torch.nn.functional as F

from transformer_basics.head_patterns import (
    LENGTH,
    N_SYMBOLS,
    OFFSETS,
    LookBack,
    look_back_loss,
    mean_weight_at,
    train,
)


def test_loss_by_loops():
    ids, first = torch.randint(N_SYMBOLS, (3, LENGTH)), max(OFFSETS)
    scores = torch.randn(3, LENGTH, len(OFFSETS), N_SYMBOLS)
    expected = torch.zeros(())
    for n, offset in enumerate(OFFSETS):
        parts = [
            F.cross_entropy(scores[b, t, n], ids[b, t - offset])
            for b in range(3)
            for t in range(first, LENGTH)
        ]
        expected = expected + torch.stack(parts).mean()
    torch.testing.assert_close(look_back_loss(scores, ids), expected)


def test_mean_weight_reads_one_diagonal():
    weights = torch.diag_embed(torch.tensor([0.5, 0.7, 0.6]), offset=-2)  # (5, 5)
    assert abs(mean_weight_at(weights, 2) - 0.6) < 1e-6
    assert mean_weight_at(weights, 1) == 0.0


def test_training_moves_the_weights_where_they_belong():
    torch.manual_seed(0)
    model, ids = LookBack(), torch.randint(N_SYMBOLS, (16, LENGTH))
    before = float(look_back_loss(model(ids), ids).detach())
    train(model, 150)
    after = float(look_back_loss(model(ids), ids).detach())
    assert after < 0.5 * before
    heads = model.weights(ids).unbind(dim=1)
    best = [max(range(6), key=lambda offset: mean_weight_at(head, offset)) for head in heads]  # noqa: B023
    assert set(best) <= set(OFFSETS)
