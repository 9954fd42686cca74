"""The reference solutions of weeks 1 to 4 give what the book's own code gives."""

import math

import pytest
import torch

from course.exercise import find, without_marks
from evaluation.perplexity import evaluate_tokens
from gpt_model.config import preset
from gpt_model.initialization import WRITES_TO_RESIDUAL
from gpt_model.loss import language_modeling_loss
from gpt_model.model import GPT
from gpt_model.sizes import count_parameters, kv_bytes_per_token
from transformer_basics.activations import gelu
from transformer_basics.attention import (
    CausalSelfAttention,
    causal_mask,
    scaled_dot_product_attention,
)
from transformer_basics.embeddings import LearnedPositions, TokenEmbedding, sinusoidal_table
from transformer_basics.heads import merge_heads, repeat_heads, split_heads
from transformer_basics.layers import (
    FeedForward,
    LayerNorm,
    RMSNorm,
    TransformerBlock,
    layer_norm,
    rms_norm,
)
from transformer_basics.rotary import RotaryEmbedding, rope_frequencies


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(5)
    yield
    torch.set_default_dtype(before)


def solved(name):
    """What the reference solution of an exercise defines."""
    space = {}
    exec(without_marks(find(name).solution), space)
    return space


def close(mine, book):
    torch.testing.assert_close(mine, book, rtol=1e-9, atol=1e-9)


def test_attention():
    q, k, v = torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 6)
    output, weights = scaled_dot_product_attention(q, k, v)
    mine = solved("attention.03")["attention"](q, k, v)
    close(mine[1], weights)
    close(mine[2], output)
    close(mine[0].softmax(-1), weights)
    close(solved("attention.01")["attention_scores"](q, k), mine[0])
    close(solved("attention.02")["softmax"](mine[0]), weights)
    mask = solved("attention.04")["causal_mask"](3, 5)
    assert torch.equal(mask, causal_mask(3, 5))
    masked = scaled_dot_product_attention(q, k, v, mask)[1]
    close(solved("attention.05")["masked_weights"](mine[0], mask), masked)
    weights, output = solved("attention.07")["causal_attention"](k, k, v)
    book = scaled_dot_product_attention(k, k, v, causal_mask(5, 5))
    close(weights, book[1])
    close(output, book[0])


def test_attention_over_pads():
    real = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]).bool()
    q = torch.randn(2, 4, 3)
    _, book = scaled_dot_product_attention(q, q, q, causal_mask(4, 4) & real[:, None])
    scores = solved("attention.01")["attention_scores"](q, q)
    close(solved("attention.08")["padded_weights"](scores, real), book)
    assert not book[0, 0].any()


def test_heads():
    x = torch.randn(2, 5, 12)
    heads = solved("heads.01")["split_heads"](x, 3)
    assert torch.equal(heads, split_heads(x, 3))
    assert torch.equal(solved("heads.02")["merge_heads"](heads), merge_heads(heads))
    assert torch.equal(solved("heads.04")["repeat_kv"](heads, 4), repeat_heads(heads, 12))


@pytest.mark.parametrize("n_kv_heads", [6, 2])
def test_attention_of_many_heads(n_kv_heads):
    book = CausalSelfAttention(24, 6, n_kv_heads=n_kv_heads).double()
    x = torch.randn(2, 5, 24)
    weights = [p.weight.detach() for p in (book.q_proj, book.k_proj, book.v_proj, book.out_proj)]
    if n_kv_heads == 6:
        close(solved("heads.03")["multi_head_attention"](x, *weights, 6), book(x).detach())
    mine = solved("heads.06")["grouped_query_attention"](x, *weights, 6, n_kv_heads)
    close(mine, book(x).detach())


def test_predicted_sizes_of_heads():
    answers = solved("heads.05")

    def size(**changes):
        config = preset("gpt2", dim=512, n_layers=1, qkv_bias=False, proj_bias=False, **changes)
        return count_parameters(config).attention, kv_bytes_per_token(config, 1)

    assert answers["head_width"] == 64
    assert answers["parameters"] == size(n_heads=8)[0]
    assert answers["parameters_16_heads"] == size(n_heads=16)[0]
    assert answers["parameters_grouped"] == size(n_heads=8, n_kv_heads=2)[0]
    assert answers["cached_grouped"] == size(n_heads=8, n_kv_heads=2)[1]


def test_norms():
    x, weight, bias = 3 * torch.randn(2, 3, 5) + 1, torch.rand(5), torch.randn(5)
    close(solved("norms.01")["layer_norm"](x, weight, bias, 0.1), layer_norm(x, weight, bias, 0.1))
    close(solved("norms.02")["rms_norm"](x, weight, 0.1), rms_norm(x, weight, 0.1))


def test_predicted_norms():
    answers = solved("norms.03")
    x, one, zero = torch.tensor([1.0, 3.0, 5.0, 7.0]), torch.ones(4), torch.zeros(4)
    assert answers["variance"] == x.var(correction=0)
    assert answers["root_mean_square"] == pytest.approx(x.square().mean().sqrt())
    assert answers["layer_first"] == pytest.approx(layer_norm(x, one, zero, 0.0)[0])
    assert answers["layer_ten_times"] == pytest.approx(layer_norm(10 * x, one, zero, 0.0)[0])
    assert answers["rms_first"] == pytest.approx(rms_norm(x, one, 0.0)[0])
    assert answers["rms_shifted"] == pytest.approx(rms_norm(x - 4, one, 0.0)[0])


def test_feed_forward():
    x = torch.randn(2, 3, 6)
    close(solved("ffn.01")["gelu"](x), gelu(x))
    book = FeedForward(6, 10, activation="gelu").double()
    up, down = book.up_proj, book.down_proj
    close(solved("ffn.02")["feed_forward"](x, up.weight, up.bias, down.weight, down.bias), book(x))
    gated = FeedForward(6, 10, activation="silu", gated=True, bias=False).double()
    weights = [p.weight for p in (gated.gate_proj, gated.up_proj, gated.down_proj)]
    close(solved("ffn.03")["swiglu"](x, *weights), gated(x))


def test_predicted_sizes_of_the_feed_forward():
    answers = solved("ffn.04")

    def size(width, **kinds):
        return sum(p.numel() for p in FeedForward(768, width, **kinds).parameters())

    assert answers["inner_width"] == preset("gpt2").ffn_size
    assert answers["parameters"] == size(answers["inner_width"])
    assert answers["gated_parameters"] == size(1000, gated=True, bias=False)
    assert size(answers["gated_width"], gated=True, bias=False) == size(3072, bias=False)
    assert answers["times_attention"] == size(3072, bias=False) / (4 * 768**2)


def test_positions():
    tokens, positions = TokenEmbedding(9, 4), LearnedPositions(12, 4)
    ids = torch.randint(9, (2, 5))
    mine = solved("positions.01")["embed"](ids, tokens.weight, positions.weight)
    close(mine, tokens(ids) + positions(torch.arange(5)))
    table = solved("positions.02")["sinusoidal"](7, 6)
    torch.testing.assert_close(table.float(), sinusoidal_table(7, 6))
    angles = solved("positions.03")["rope_angles"](7, 6, 500.0)
    close(angles, torch.outer(torch.arange(7.0), rope_frequencies(6, 500.0)[0]))


def test_rotary_positions():
    rotary = RotaryEmbedding(8, theta=500.0)
    angles = solved("positions.03")["rope_angles"](6, 8, 500.0)
    q, k = torch.randn(2, 3, 2, 8), torch.randn(2, 3, 6, 8)
    turned = solved("positions.04")["rotate"](k, angles.cos(), angles.sin())
    # the book's tables are float32
    torch.testing.assert_close(turned, rotary(k), rtol=1e-5, atol=1e-6)
    mine = solved("positions.05")["rotary_scores"](q, k, angles.cos(), angles.sin())
    book = rotary(q, offset=4) @ rotary(k).mT / 8**0.5
    torch.testing.assert_close(mine, book, rtol=1e-5, atol=1e-6)


def test_block():
    torch.manual_seed(1)
    parts = [
        (CausalSelfAttention(8, 2), FeedForward(8, 16), LayerNorm(8), RMSNorm(8)) for _ in range(2)
    ]
    blocks = [TransformerBlock(*part).double() for part in parts]
    x = torch.randn(2, 5, 8)
    layers = [(b.attention_norm, b.attention, b.ffn_norm, b.feed_forward) for b in blocks]
    close(solved("block.01")["block"](x, *layers[0]), blocks[0](x))
    close(solved("block.02")["run_layers"](x, layers), blocks[1](blocks[0](x)))


def test_predicted_growth_of_the_stream():
    answers = solved("block.03")

    def measured(scale):
        stream = torch.randn(100_000)
        for _ in range(24):
            stream = stream + scale * torch.randn(100_000)
        return stream

    assert measured(1.0).var() == pytest.approx(answers["pre_variance"], rel=0.03)
    assert measured(1.0).std() == pytest.approx(answers["pre_deviation"], rel=0.03)
    assert measured(24**-0.5).var() == pytest.approx(answers["scaled_variance"], rel=0.03)
    normed = LayerNorm(1000).double()(measured(1.0).view(100, 1000))
    assert normed.detach().var() == pytest.approx(answers["post_variance"], rel=0.03)


def small_gpt(**changes):
    config = preset("gpt-micro", vocab_size=17, max_seq_len=8, dim=8, n_heads=2, **changes)
    return GPT(config).double().eval()


def test_gpt_forward():
    model = small_gpt(n_layers=2, norm="layernorm", position="learned")
    ids = torch.randint(17, (2, 5))
    tables = model.token_embedding.weight, model.position_embedding.weight
    logits = solved("gpt.02")["gpt_forward"](ids, *tables, model.blocks, model.final_norm)
    close(logits, model(ids).logits)
    # the tie: both uses of the table give it gradient
    loss = solved("gpt.05")["next_token_loss"](logits, ids)
    (mine,) = torch.autograd.grad(loss, tables[0])
    loss = model(ids[:, :-1], ids[:, 1:]).loss
    torch.testing.assert_close(mine, torch.autograd.grad(loss, tables[0])[0])


def test_initial_std_is_the_one_the_book_draws_with():
    torch.manual_seed(0)
    config = preset("gpt2", n_layers=3, dim=256, n_heads=4, vocab_size=500, max_seq_len=64)
    names = {"attention.out_proj": "w_o", "feed_forward.down_proj": "w_down"}
    assert {name.split(".")[-1] for name in names} == set(WRITES_TO_RESIDUAL)
    names |= {"attention.q_proj": "w_q", "feed_forward.up_proj": "w_up"}
    drawn = dict(GPT(config).named_parameters())
    initial_std = solved("gpt.01")["initial_std"]
    for book, name in names.items():
        measured = drawn[f"blocks.1.{book}.weight"].std().item()
        assert measured == pytest.approx(initial_std(f"1.{name}", 3, config.init_std), rel=0.02)
    measured = drawn["token_embedding.weight"].std().item()
    assert measured == pytest.approx(initial_std("token_table", 3, config.init_std), rel=0.02)


def test_predicted_size_of_gpt2():
    answers, book = solved("gpt.03"), count_parameters(preset("gpt2"))
    assert answers["token_table_parameters"] == book.token_embedding
    assert answers["position_table_parameters"] == book.position_embedding
    assert 12 * answers["attention_parameters"] == book.attention
    assert 12 * answers["feed_forward_parameters"] == book.feed_forward
    assert answers["norm_parameters"] == book.norms
    assert answers["total"] == book.total == 124_439_808


def test_predicted_losses():
    answers = solved("gpt.04")

    def loss(logits, target):
        return language_modeling_loss(logits[None, None], torch.tensor([[target]])).item()

    blind = loss(torch.zeros(50257), 7)
    assert answers["initial_loss"] == pytest.approx(blind, rel=1e-5)
    assert answers["initial_perplexity"] == pytest.approx(math.exp(blind), rel=1e-4)
    assert answers["characters_loss"] == pytest.approx(loss(torch.zeros(65), 7), rel=1e-5)
    assert answers["half_sure_loss"] == pytest.approx(loss(torch.zeros(2), 1), rel=1e-5)
    assert answers["certain_loss"] == loss(torch.tensor([0.0, 1e4]), 1)


def test_losses():
    logits, ids = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    book = language_modeling_loss(logits[:, :-1], ids[:, 1:])
    mine = solved("gpt.05")["next_token_loss"](logits, ids)
    torch.testing.assert_close(mine.float(), book)
    whole = solved("gpt.08")["language_model_loss"](lambda inputs: logits[:, :-1], ids)
    torch.testing.assert_close(whole.float(), book)
    for ignore in (-100, 3):
        targets = torch.where(torch.rand(3, 5) < 0.4, ignore, ids)
        book = language_modeling_loss(logits, targets, ignore_index=ignore)
        mine = solved("gpt.06")["masked_loss"](logits, targets, ignore)
        torch.testing.assert_close(mine.float(), book)


def test_perplexity():
    model = small_gpt(n_layers=1)
    tokens = torch.randint(17, (40,))
    whole = evaluate_tokens(model, tokens, context=8, stride=8)
    losses, counts = [], []
    for first in range(0, 39, 8):
        piece = tokens[first : first + 9]
        losses.append(model(piece[None, :-1], piece[None, 1:]).loss.item())
        counts.append(len(piece) - 1)
    assert sum(counts) == whole.n_tokens
    mine = solved("gpt.07")["perplexity"](losses, counts)
    assert mine == pytest.approx(whole.perplexity, rel=1e-5)
