"""The written-out bf16 linear layer against autocast and float64; its switches."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from finetuning.lora import LoRAConfig, apply_lora
from gpt_model.config import preset
from gpt_model.model import GPT
from transformer_basics import linear
from transformer_basics.linear import Linear, product, project_together
from transformer_basics.speed_ups import SPEED_UPS, without


def bf16():
    return torch.autocast("cpu", torch.bfloat16)


def layers(*widths, bias=True):
    torch.manual_seed(0)
    return [Linear(24, width, bias=bias) for width in widths]


def gradients(compute, wanted):
    with bf16():
        outputs = compute()
    outputs = outputs if isinstance(outputs, list) else [outputs]
    torch.manual_seed(1)
    loss = sum((out.float() * torch.randn(out.shape)).sum() for out in outputs)
    return outputs, torch.autograd.grad(loss, wanted)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("widths", [(40,), (24, 8, 8), (16, 16, 16)])
def test_outputs_and_gradients_equal_float64_up_to_bf16(widths, bias):
    x = torch.randn(3, 7, 24, requires_grad=True)
    made = layers(*widths, bias=bias)
    parameters = [p for layer in made for p in layer.parameters()]
    outputs, found = gradients(lambda: project_together(x, made), [x, *parameters])
    torch.manual_seed(1)
    exact = [p.detach().double().requires_grad_() for p in (x, *parameters)]
    rest = iter(exact[1:])
    truth = [F.linear(exact[0], next(rest), next(rest) if bias else None) for _ in made]
    loss = sum((out * torch.randn(out.shape)).sum() for out in truth)
    for mine, right in zip(outputs, truth, strict=True):
        assert mine.dtype is torch.bfloat16
        assert (mine - right).norm() < 0.01 * right.norm()
    for mine, right in zip(found, torch.autograd.grad(loss, exact), strict=True):
        assert mine.dtype is torch.float32
        assert (mine - right).norm() < 0.01 * right.norm()


def test_it_is_the_written_out_path_that_runs(monkeypatch):
    calls = []
    original = linear.product
    monkeypatch.setattr(linear, "product", lambda a, b: calls.append(a.shape) or original(a, b))
    x, made = torch.randn(5, 24, requires_grad=True), layers(8, 8)
    gradients(lambda: project_together(x, made), [x])
    assert len(calls) == 2  # one product forward, one backward, for both layers
    made[0](x)  # float32: the library
    with torch.no_grad(), bf16():
        made[0](x)  # nothing to differentiate: the library
    with without("written"):
        gradients(lambda: project_together(x, made), [x])
    assert len(calls) == 2
    with without("joined"):
        gradients(lambda: project_together(x, made), [x])
    assert len(calls) == 2 + 4


def test_switches_come_back_and_unknown_names_are_refused():
    def fail_inside():
        with without("pieces", "joined"):
            assert not SPEED_UPS["pieces"]
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert all(SPEED_UPS.values())
    with pytest.raises(KeyError), without("nothing"):
        pass


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(7, 24, 700), (1024, 16, 768), (2000, 16, 768), (9, 8, 20000)])
def test_product_in_pieces_equals_the_whole(shape, dtype):
    torch.manual_seed(0)
    rows, inner, columns = shape
    left, right = (
        torch.randn(rows, inner, dtype=dtype),
        torch.randn(columns, inner, dtype=dtype).t(),
    )
    assert torch.allclose(product(left, right), left @ right, atol=1e-2, rtol=1e-2)
    with without("pieces"):
        assert torch.equal(product(left, right), left @ right)


def test_pieces_are_narrow_only_where_it_pays():
    assert linear.pieces_of(1024, 768) == 256
    assert linear.pieces_of(4096, 768) == 768
    assert linear.pieces_of(1024, 512) == 512
    assert linear.pieces_of(4096, 50257) == 8192
    with without("pieces"):
        assert linear.pieces_of(1024, 768) == 768


def test_a_foreign_layer_among_them_is_called_itself():
    x, made = torch.randn(2, 3, 24, requires_grad=True), layers(8, 8)

    class Doubled(nn.Module):
        def forward(self, x):
            return 2 * F.linear(x, made[1].weight, made[1].bias)

    outputs, _ = gradients(lambda: project_together(x, [made[0], Doubled()]), [x])
    with bf16():
        expected = 2 * made[1](x)
    assert torch.allclose(outputs[1], expected, atol=5e-2)


def test_frozen_weights_get_no_gradient_and_lora_trains():
    model = GPT(preset("modern-micro", vocab_size=11, n_layers=1, dim=32, max_seq_len=16))
    apply_lora(model, LoRAConfig(r=2, target=("q_proj", "up_proj")))
    ids = torch.randint(11, (2, 9))
    with bf16():
        loss = model(ids[:, :-1], ids[:, 1:], need_logits=False).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad), name
    trained = [float(p.grad.norm()) for p in model.parameters() if p.requires_grad]
    assert sum(norm > 0 for norm in trained) == len(trained) // 2  # B; A waits, for B is 0


def test_a_whole_model_trains_alike_with_and_without():
    """Same data, same steps: the losses may differ by rounding only."""
    losses = []
    for off in ((), tuple(SPEED_UPS)):
        torch.manual_seed(0)
        model = GPT(preset("gpt-micro", vocab_size=13, n_layers=2, dim=32, max_seq_len=80))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        ids = torch.arange(320).view(4, 80) % 13
        with without(*off):
            for _ in range(30):
                with bf16():
                    loss = model(ids[:, :-1], ids[:, 1:], need_logits=False).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] < 1.0
    assert abs(losses[0] - losses[1]) < 0.05 * losses[1]
