"""A whole model in integers: what is swapped, what is shared, what is refused."""

import pytest
import torch

from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from inference.quantization import dequantize, quantize, quantized_bytes, quantized_layers
from transformer_basics.linear import Linear
from transformer_basics.quantized_linear import QuantizedEmbedding, quantized_parts


def tiny(**changes):
    torch.manual_seed(0)
    return GPT(
        GPTConfig(vocab_size=50, max_seq_len=32, dim=64, n_layers=2, n_heads=2, **changes)
    ).eval()


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_is_quantized_saved_and_restored(tied):
    model = tiny(tie_embeddings=tied)
    embedding, ids = model.token_embedding.weight.clone(), torch.randint(50, (2, 9))
    before = model(ids).logits
    assert quantize(model) is model
    names = set(quantized_layers(model))
    assert len(names) == 2 * 6
    assert not any("lm_head" in name for name in names)
    assert torch.equal(model.token_embedding.weight, embedding)
    after = model(ids).logits
    assert 0 < (after - before).norm() < 0.3 * before.norm()
    # its state dict holds everything
    again = quantize(tiny(tie_embeddings=tied, init_std=0.1))
    assert not torch.equal(again(ids).logits, after)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(ids).logits, after)
    # and back to plain layers with the same outputs
    plain = dequantize(model)
    assert quantized_layers(plain) == {}
    torch.testing.assert_close(plain(ids).logits, after, atol=1e-5, rtol=1e-5)
    assert tiny(tie_embeddings=tied).state_dict().keys() == plain.state_dict().keys()


def test_an_untied_head_is_quantized_only_when_asked():
    assert "lm_head" in quantized_layers(quantize(tiny(tie_embeddings=False), skip=()))
    assert "lm_head" not in quantized_layers(quantize(tiny(tie_embeddings=True), skip=()))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("more", [{}, {"position": "rope", "token_shift": True}])
@torch.no_grad()
def test_the_tables_of_the_vocabulary_are_quantized_when_asked(tied, more):
    model = tiny(tie_embeddings=tied, **more)
    ids = torch.randint(50, (2, 9))
    before, count, dtype = model(ids).logits, model.num_parameters(), model.dtype
    table = model.token_embedding.weight.clone()
    quantize(model, embeddings=8)
    assert isinstance(model.token_embedding, QuantizedEmbedding)
    assert (model.token_embedding.bits, model.lm_head.bits) == (8, 8)
    assert quantized_layers(model)["blocks.0.attention.q_proj"].bits == 4
    assert (model.token_embedding.packed is model.lm_head.packed) == tied
    assert (model.token_embedding.weight - table).norm() < 0.01 * table.norm()
    # nobody outside notices
    assert (model.num_parameters(), model.dtype) == (count, dtype)
    assert (model(ids).logits - before).norm() < 0.3 * before.norm()
    loss, logits = model(ids, ids).loss, model(ids).logits
    torch.testing.assert_close(model(ids, ids, need_logits=False).loss, loss)
    cache = model.make_cache(2)
    parts = [model(part, cache=cache).logits for part in ids.split([4, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), logits, atol=1e-5, rtol=1e-5)
    # and back
    dequantize(model)
    assert quantized_parts(model) == {}
    assert (model.lm_head.weight is model.token_embedding.weight) == tied
    assert type(model.lm_head) is Linear
    torch.testing.assert_close(model(ids).logits, logits, atol=1e-5, rtol=1e-5)
    assert model.num_parameters() == count


def test_half_precision_stays_half_precision():
    model = quantize(tiny().to(torch.bfloat16), embeddings=8)
    ids = torch.randint(50, (2, 9))
    assert model.dtype == model(ids).logits.dtype == torch.bfloat16
    plain = dequantize(model)
    assert {p.dtype for p in plain.parameters()} == {torch.bfloat16}
    assert plain(ids).logits.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "per_weight"),
    [
        ({"bits": 8}, 8.25),
        ({"bits": 4}, 4.25),
        ({"bits": 4, "group_size": 32}, 4.5),
        ({"bits": 4, "group_size": 32, "zero_points": True}, 4.75),
    ],
)
def test_bytes_of_a_model_are_as_theory_says(options, per_weight):
    model = quantize(tiny(), embeddings=8, **options)
    weights = 2 * (4 * 64 * 64 + 2 * 64 * 256)
    group = options.get("group_size", 64)
    assert 8 * quantized_bytes(model) == weights * per_weight + 50 * 64 * (8 + 16 / group)


def test_quantizing_twice_is_refused():
    model = quantize(tiny(), embeddings=8)
    before = {name: id(part) for name, part in quantized_parts(model).items()}
    with pytest.raises(ValueError, match="quantized already"):
        quantize(model)
    assert {name: id(part) for name, part in quantized_parts(model).items()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3}, "bits must be one of 4, 8; got '3'"),
        ({"embeddings": 2}, "bits must be one of 4, 8; got '2'"),
        ({"group_size": 0}, "group_size must be an integer >= 2, got 0"),
        ({"group_size": 7}, "group_size must be even, got 7"),
        ({"group_size": 258}, "group_size must be at most 256 here, got 258"),
        ({"skip": ("q_proj", "k_proj", "v_proj", "out_proj", "up_proj", "down_proj", "lm_head")},
         "no Linear layer to quantize"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_and_leave_the_model_alone(options, message):
    model = tiny()
    with pytest.raises(ValueError, match=message):
        quantize(model, **options)
    assert quantized_layers(model) == {}


def test_a_damaged_weight_is_named():
    model = tiny()
    with torch.no_grad():
        model.blocks[1].feed_forward.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"blocks\.1\.feed_forward\.up_proj: .* holds NaN"):
        quantize(model)
    assert quantized_layers(model) == {}


def test_a_damaged_table_is_named_and_nothing_is_swapped():
    model = tiny()
    with torch.no_grad():
        model.token_embedding.weight[3, 4] = float("inf")
    quantize(model)  # the table is left alone
    model = tiny()
    with torch.no_grad():
        model.token_embedding.weight[3, 4] = float("inf")
    with pytest.raises(ValueError, match="token_embedding: .* holds NaN"):
        quantize(model, embeddings=8)
    assert quantized_parts(model) == {}
