"""The loss in chunks against the whole table; what it stores; when the model uses it."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from finetuning.lora import LoRAConfig, apply_lora
from gpt_model import chunked_loss as module
from gpt_model import model as model_module
from gpt_model.chunked_loss import chunked_loss
from gpt_model.config import preset
from gpt_model.model import GPT


def whole(x, weight, targets, ignore_index=-100, softcap=None):
    logits = x @ weight.t()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="sum")


def tensors(rows, vocab, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 6, generator=generator, dtype=dtype)
    weight = torch.randn(vocab, 6, generator=generator, dtype=dtype)
    targets = torch.randint(vocab, (rows,), generator=generator)
    return x.requires_grad_(), weight.requires_grad_(), targets


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 40),
    vocab=st.integers(1, 50),
    chunk=st.integers(1, 4000),
    strip=st.integers(1, 2000),
    weight_rows=st.integers(1, 60),
    softcap=st.sampled_from([None, 0.7, 30.0]),
    hidden=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_any_chunks_give_the_loss_and_gradients_of_the_whole(
    rows, vocab, chunk, strip, weight_rows, softcap, hidden, seed
):
    x, weight, targets = tensors(rows, vocab, torch.float32, seed)
    targets[torch.rand(rows, generator=torch.Generator().manual_seed(seed)) < hidden] = -7
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", chunk)
        patch.setattr(module, "SOFTMAX_BYTES", strip)
        patch.setattr(module, "WEIGHT_ROWS", weight_rows)
        mine = chunked_loss(x, weight, targets, ignore_index=-7, softcap=softcap)
    right = whole(x, weight, targets, -7, softcap)
    assert torch.allclose(mine, right, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(3.0 * mine, (x, weight))
    for a, b in zip(found, torch.autograd.grad(3.0 * right, (x, weight)), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_bf16_is_as_exact_as_autocast():
    x, weight, targets = tensors(200, 999, torch.float32)
    exact = torch.autograd.grad(whole(x.double(), weight.double(), targets), (x, weight))
    errors = []
    for compute in (chunked_loss, lambda x, w, t: whole(x, w, t)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = compute(x, weight, targets)
        found = torch.autograd.grad(loss, (x, weight))
        errors.append([float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)])
    for mine, theirs in zip(*errors, strict=True):
        assert mine < 0.02
        assert mine < 1.5 * theirs


def test_a_confident_row_keeps_its_small_gradient_in_bf16():
    """p − 1 is subtracted in float32: rounded first, 0.999 − 1 would be wrong by half."""
    x = torch.tensor([[7.0, 0.0]], requires_grad=True)
    weight = torch.eye(2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_loss(x, weight, torch.tensor([0]))
    (slope,) = torch.autograd.grad(loss, x)
    right = torch.sigmoid(torch.tensor(7.0)) - 1
    assert abs(slope[0, 0] / right - 1) < 0.01


def test_nothing_of_the_size_of_the_table_is_stored():
    x, weight, targets = tensors(300, 5000, torch.float32)
    stored = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (stored.append(t.numel()), t)[1], lambda t: t
    ):
        loss = chunked_loss(x, weight, targets)
    assert sum(stored) < 300 * 5000 / 10
    loss.backward()
    with pytest.raises(RuntimeError, match="backward"):
        loss.backward()


def test_only_what_is_wanted_is_computed():
    x, weight, targets = tensors(20, 9)
    (found,) = torch.autograd.grad(chunked_loss(x, weight.detach(), targets), x)
    (right,) = torch.autograd.grad(whole(x, weight, targets), x)
    assert torch.allclose(found, right)
    (found,) = torch.autograd.grad(chunked_loss(x.detach(), weight, targets), weight)
    (right,) = torch.autograd.grad(whole(x, weight, targets), weight)
    assert torch.allclose(found, right)
    assert not chunked_loss(x.detach(), weight.detach(), targets).requires_grad


@pytest.mark.parametrize("changes", [{}, {"logit_softcap": 2.0}, {"tie_embeddings": False}])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_model_gives_the_same_loss_and_gradients_without_logits(changes, reduction):
    torch.manual_seed(0)
    model = GPT(preset("gpt-micro", vocab_size=37, n_layers=1, dim=32, max_seq_len=16, **changes))
    ids = torch.randint(37, (3, 12))
    targets = ids.roll(-1, 1)
    targets[:, -3:] = -100
    results = []
    for need in (True, False):
        model.zero_grad()
        logits, loss = model(ids, targets, reduction=reduction, need_logits=need)
        loss.backward()
        assert logits.numel() == (3 * 12 * 37 if need else 0)
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_changed_head_takes_the_old_way(monkeypatch):
    calls = []
    original = model_module.chunked_loss
    monkeypatch.setattr(
        model_module, "chunked_loss", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    model = GPT(preset("gpt-micro", vocab_size=17, n_layers=1, dim=32, tie_embeddings=False))
    ids = torch.randint(17, (1, 6))
    plain = model(ids, ids, need_logits=False).loss
    assert len(calls) == 1
    apply_lora(model, LoRAConfig(r=2, target=("lm_head",)))
    assert torch.allclose(model(ids, ids, need_logits=False).loss, plain, atol=1e-5)
    assert len(calls) == 1
    assert model(ids, ids, need_logits=False, reduction="none").loss.shape == (1, 6)
