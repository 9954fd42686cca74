"""The formula against PyTorch's, and CausalSelfAttention against itself in every way it can run."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from transformer_basics.attention import (
    CausalSelfAttention,
    MultiHeadAttention,
    SelfAttention,
    attention_mask,
    causal_mask,
    scaled_dot_product_attention,
)
from transformer_basics.kv_cache import GrowingCache, StaticCache
from transformer_basics.rotary import RotaryEmbedding, rotate

DIM, HEADS, HEAD_DIM = 32, 4, 8
OPTIONS = [
    {"n_kv_heads": kv_heads, "sliding_window": window, "rope": rope, "qk_norm": qk_norm}
    for kv_heads, window, rope, qk_norm in itertools.product(
        (4, 2, 1), (None, 1, 3), (False, True), (False, True)
    )
]


def make(rope=False, **options):
    rotary = RotaryEmbedding(HEAD_DIM, max_seq_len=16) if rope else None
    attention = CausalSelfAttention(DIM, HEADS, rotary=rotary, **options)
    for norm in (attention.q_norm, attention.k_norm):
        if norm is not None:  # away from 1, so that a forgotten weight shows
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    return attention


def name(options):
    return "-".join(f"{key}={value}" for key, value in options.items())


def by_loops(query, key, value, mask):
    """softmax(QKᵀ/√d + M)·V with Python floats."""
    n_queries, n_keys = len(query), len(key)
    output = torch.zeros(n_queries, value.shape[1], dtype=torch.float64)
    for i in range(n_queries):
        visible = [j for j in range(n_keys) if mask[i][j]]
        scores = [float(query[i] @ key[j]) / math.sqrt(query.shape[1]) for j in visible]
        top = max(scores, default=0.0)
        exponentials = [math.exp(score - top) for score in scores]
        for j, exponential in zip(visible, exponentials, strict=True):
            output[i] += exponential / sum(exponentials) * value[j]
    return output


# --- the formula -----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("masked", [False, True])
def test_formula_equals_pytorch(scale, masked):
    query, key, value = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 6)
    mask = (torch.rand(2, 1, 5, 7) < 0.6) | torch.eye(5, 7).bool() if masked else None
    output, weights = scaled_dot_product_attention(query, key, value, mask, scale=scale)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 3, 5))
    if masked:
        assert weights.masked_select(~mask).eq(0).all()


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**30))
@settings(max_examples=40)
def test_formula_equals_loops(n_queries, n_keys, head_dim, seed):
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(n, head_dim, dtype=torch.float64, generator=generator)
        for n in (n_queries, n_keys, n_keys)
    )
    mask = torch.rand(n_queries, n_keys, generator=generator) < 0.5  # some rows see nothing
    output, weights = scaled_dot_product_attention(query, key, value, mask)
    torch.testing.assert_close(output, by_loops(query, key, value, mask))
    torch.testing.assert_close(weights.sum(dim=-1), mask.any(dim=-1).double())


def test_a_row_that_sees_nothing_is_zero_with_finite_gradients():
    query, key, value = (torch.randn(1, 3, 4, requires_grad=True) for _ in range(3))
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either
        output, weights = scaled_dot_product_attention(query, key, value, mask)
        output.square().sum().backward()
    assert output[0, 1].eq(0).all()
    assert weights[0, 1].eq(0).all()
    for tensor in (query, key, value):
        assert tensor.grad.isfinite().all()
    assert query.grad[0, 1].eq(0).all()
    assert query.grad[0, 2].ne(0).any()


def test_softmax_is_computed_in_float32():
    query, key = (torch.randn(1, 4, 16).bfloat16() for _ in range(2))
    output, weights = scaled_dot_product_attention(query, key, key)
    assert output.dtype == torch.bfloat16
    assert weights.dtype == torch.float32
    exact = torch.softmax(query.double() @ key.double().mT / 4.0, dim=-1)
    assert (weights - exact).abs().max() < 1e-6  # bf16 anywhere on the way would give 1e-3


def test_huge_scores_do_not_overflow():
    query = torch.full((1, 2, 4), 1e4)
    key = torch.tensor([[[1e4] * 4, [-1e4] * 4]])
    output, weights = scaled_dot_product_attention(query, key, torch.eye(2)[None])
    assert weights.tolist() == [[[1.0, 0.0], [1.0, 0.0]]]
    assert output.isfinite().all()


def test_formula_refuses_a_mask_of_numbers():
    x = torch.randn(1, 2, 4)
    with pytest.raises(ValueError, match=r"mask must be bool, True = may look; got torch.float32"):
        scaled_dot_product_attention(x, x, x, torch.zeros(2, 2))


def test_dropout_hits_the_output_and_not_the_returned_weights():
    query, key = torch.zeros(1, 2000, 4), torch.randn(1, 10, 4)
    value = torch.ones(1, 10, 1)
    output, weights = scaled_dot_product_attention(query, key, value, dropout_p=0.5)
    assert torch.allclose(weights, torch.full_like(weights, 0.1))
    assert set(output.flatten().mul(5).round().int().tolist()) > {3, 4, 5, 6, 7}
    assert abs(float(output.mean()) - 1.0) < 0.05


# --- one head, several heads -----------------------------------------------------------------


def test_self_attention_is_the_formula_on_its_projections():
    attention, x = SelfAttention(6, 4, bias=True), torch.randn(2, 5, 6)
    projected = attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)
    expected = F.scaled_dot_product_attention(*projected)
    output, weights = attention(x)
    assert output.shape == (2, 5, 4)
    assert weights.shape == (2, 5, 5)
    torch.testing.assert_close(output, expected)
    assert SelfAttention(6)(x)[0].shape == (2, 5, 6)


def test_self_attention_takes_both_masks_together():
    attention, x = SelfAttention(6, causal=True), torch.randn(1, 4, 6)
    given = torch.ones(4, 4).bool()
    given[3, 1] = False
    weights = attention(x, given)[1][0]
    assert (weights == 0).eq(~(causal_mask(4, 4) & given)).all()
    assert torch.allclose(attention(x)[1].tril(), attention(x)[1])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_multi_head_equals_pytorch(bias, cross):
    ours, theirs = MultiHeadAttention(12, 3, bias=bias), nn.MultiheadAttention(12, 3, bias=bias)
    theirs.batch_first = True
    with torch.no_grad():
        projections = (ours.q_proj, ours.k_proj, ours.v_proj)
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        theirs.out_proj.weight.copy_(ours.out_proj.weight)
        if bias:
            theirs.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
            theirs.out_proj.bias.copy_(ours.out_proj.bias)
    x = torch.randn(2, 5, 12)
    y = torch.randn(2, 7, 12) if cross else x
    mask = (torch.rand(5, y.shape[1]) < 0.7) | torch.eye(5, y.shape[1]).bool()
    output, weights = ours(x, y if cross else None, mask)
    # PyTorch's module marks what is hidden, we mark what is visible
    expected = theirs(x, y, y, attn_mask=~mask, average_attn_weights=False)
    torch.testing.assert_close(output, expected[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weights, expected[1], atol=1e-6, rtol=1e-5)


def test_multi_head_drops_only_in_training():
    attention, x = MultiHeadAttention(12, 3, dropout=0.9), torch.randn(1, 6, 12)
    assert not torch.equal(attention(x)[0], attention(x)[0])
    attention.eval()
    assert torch.equal(attention(x)[0], attention(x)[0])


# --- what may be seen ------------------------------------------------------------------------


def who_reads_whom(attention, x, **arguments):
    """[i][j] is True where output i has any gradient from input j: what is really seen."""
    x = x.clone().requires_grad_()
    output = attention(x, **arguments)
    rows = []
    for i in range(x.shape[1]):
        (gradient,) = torch.autograd.grad(output[:, i].sum(), x, retain_graph=True)
        rows.append(gradient.ne(0).any(dim=-1))  # (B, T)
    return torch.stack(rows, dim=1)  # (B, T, T)


@pytest.mark.parametrize("implementation", ["fast", "lesson"])
@pytest.mark.parametrize("window", [None, 1, 2, 4, 6, 7])
def test_gradients_show_the_past_and_the_window_exactly(implementation, window):
    attention = make(True, n_kv_heads=2, sliding_window=window, implementation=implementation)
    seen = who_reads_whom(attention, torch.randn(2, 6, DIM))
    expected = [[i - (window or 99) < j <= i for j in range(6)] for i in range(6)]
    assert seen.tolist() == [expected, expected]


@pytest.mark.parametrize("implementation", ["fast", "lesson"])
def test_documents_are_isolated(implementation):
    attention = make(True, implementation=implementation)
    documents = torch.tensor([[5, 5, 5, 2, 2, 9], [1, 1, 1, 1, 1, 1]])
    mask = attention_mask(6, 6, document_ids=documents)
    seen = who_reads_whom(attention, torch.randn(2, 6, DIM), mask=mask)
    for row, ids in zip(seen.tolist(), documents.tolist(), strict=True):
        assert row == [[j <= i and ids[i] == ids[j] for j in range(6)] for i in range(6)]


def test_documents_packed_in_a_row_equal_documents_alone():
    attention, documents = (
        make(True, qk_norm=True),
        (torch.randn(1, 3, DIM), torch.randn(1, 4, DIM)),
    )
    mask = attention_mask(7, 7, document_ids=torch.tensor([[0] * 3 + [1] * 4]))
    packed = attention(torch.cat(documents, dim=1), mask=mask)
    alone = torch.cat([attention(document) for document in documents], dim=1)
    torch.testing.assert_close(packed, alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["fast", "lesson"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_is_not_read_and_stays_finite(implementation, dtype):
    attention = make(True, n_kv_heads=2, qk_norm=True, implementation=implementation).to(dtype)
    alone = torch.randn(1, 4, DIM).to(dtype)
    real = torch.tensor([[False] * 3 + [True] * 4, [False] * 7])  # the second row is all padding
    outputs = []
    for filler in (0.0, 50.0):
        x = torch.full((2, 7, DIM), filler, dtype=dtype)
        x[0, 3:] = alone
        x.requires_grad_()
        output = attention(
            x,
            positions=(real.cumsum(1) - 1).clamp(min=0),
            mask=attention_mask(7, 7, key_padding=real),
        )
        assert output.isfinite().all()
        output[0, 3:].square().sum().backward()
        assert x.grad.isfinite().all()
        assert x.grad[0, :3].eq(0).all()
        assert x.grad[1].eq(0).all()
        outputs.append(output[0, 3:])
    assert torch.equal(*outputs)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(outputs[0], attention(alone)[0], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("implementation", ["fast", "lesson"])
def test_a_mask_with_empty_rows_stays_finite(implementation):
    attention = make(qk_norm=True, implementation=implementation)
    x = torch.randn(2, 4, DIM, requires_grad=True)
    mask = causal_mask(4, 4).repeat(2, 1, 1, 1)
    mask[0, :, 2] = False
    output = attention(x, mask=mask)
    output.square().sum().backward()
    assert output[0, 2].eq(0).all()
    assert x.grad.isfinite().all()


# --- fast = lesson = cached ------------------------------------------------------------------


def situations(window):
    """The arguments of every way in which the model calls the attention."""
    real = torch.ones(2, 9).bool()
    real[0, :4] = False
    documents = torch.tensor([[0, 0, 1, 1, 1, 1, 2, 2, 2], [3] * 9])
    positions = (real.cumsum(dim=1) - 1).clamp(min=0)
    return {
        "plain": {},
        "positions": {"positions": torch.arange(9) * 3 + 1},
        "padding": {
            "mask": attention_mask(9, 9, key_padding=real, window=window),
            "positions": positions,
        },
        "documents": {"mask": attention_mask(9, 9, document_ids=documents, window=window)},
        "heads": {"mask": (torch.rand(2, HEADS, 9, 9) < 0.5) | torch.eye(9).bool()},
    }


@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_fast_equals_lesson_in_every_situation(options):
    attention, x = make(**options), torch.randn(2, 9, DIM)
    for situation, arguments in situations(options["sliding_window"]).items():
        results = []
        for implementation in ("fast", "lesson"):
            attention.implementation = implementation
            given = x.clone().requires_grad_()
            output = attention(given, **arguments)
            weights = (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum()
            gradients = torch.autograd.grad(weights, [given, *attention.parameters()])
            results.append((output, *gradients))
        for fast, lesson in zip(*results, strict=True):
            torch.testing.assert_close(fast, lesson, atol=2e-5, rtol=1e-4, msg=situation)


@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_cached_equals_whole(options):
    attention, x = make(**options).eval(), torch.randn(2, 9, DIM)
    with torch.no_grad():
        for implementation in ("fast", "lesson"):
            attention.implementation = implementation
            whole = attention(x)
            for cache in (GrowingCache(), StaticCache(2, attention.n_kv_heads, 9, HEAD_DIM)):
                pieces = [attention(piece, cache=cache) for piece in x.split([4, 1, 3, 1], dim=1)]
                torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-5, rtol=1e-4)


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    options=st.sampled_from(OPTIONS),
    implementation=st.sampled_from(["fast", "lesson"]),
    static=st.booleans(),
)
@settings(max_examples=60)
def test_any_chunking_equals_whole(sizes, options, implementation, static):
    torch.manual_seed(0)
    attention = make(**options, implementation=implementation).eval()
    x = torch.randn(1, sum(sizes), DIM)
    cache = StaticCache(1, attention.n_kv_heads, 40, HEAD_DIM) if static else GrowingCache()
    with torch.no_grad():
        outputs, fed = [], 0
        for piece in x.split(sizes, dim=1):
            outputs.append(attention(piece, cache=cache))
            fed += piece.shape[1]
            assert cache.length == fed  # advanced once, not once for keys and once for values
        whole = attention(x)
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole, atol=1e-5, rtol=1e-4)


def test_one_query_after_a_cache_sees_more_than_the_first_key():
    attention, x = make().eval(), torch.randn(1, 6, DIM)
    cache = StaticCache(1, HEADS, 6, HEAD_DIM)
    with torch.no_grad():
        attention(x[:, :5], cache=cache)
        last = attention(x[:, 5:], cache=cache)
        first_value = attention.v_proj(x[:, :1])
        assert not torch.allclose(last, attention.out_proj(first_value), atol=1e-4)
        torch.testing.assert_close(last, attention(x)[:, 5:], atol=1e-6, rtol=1e-5)


def test_a_reset_cache_forgets_and_a_stale_one_does_not():
    attention = make(True).eval()
    x, other = torch.randn(1, 5, DIM), torch.randn(1, 5, DIM)
    for cache in (GrowingCache(), StaticCache(1, HEADS, 10, HEAD_DIM)):
        with torch.no_grad():
            attention(other, cache=cache)
            stale = attention(x, cache=cache)
            cache.reset()
            fresh = attention(x, cache=cache)
            whole = attention(x)
        assert cache.length == 5
        assert not torch.allclose(stale, whole, atol=1e-3)
        torch.testing.assert_close(fresh, whole, atol=1e-6, rtol=1e-5)


def test_left_padded_batch_continues_like_each_row_alone():
    attention = make(True, n_kv_heads=2, qk_norm=True, sliding_window=4).eval()
    short, long = torch.randn(1, 3, DIM), torch.randn(1, 6, DIM)
    new = torch.randn(2, 2, DIM)
    x = torch.cat((torch.cat((torch.zeros(1, 3, DIM), short), dim=1), long))
    real = torch.tensor([[False] * 3 + [True] * 5, [True] * 8])
    positions = (real.cumsum(dim=1) - 1).clamp(min=0)
    cache = StaticCache(2, 2, 8, HEAD_DIM)
    with torch.no_grad():
        for start, end, piece in ((0, 6, x), (6, 7, new[:, :1]), (7, 8, new[:, 1:])):
            mask = attention_mask(end - start, end, key_padding=real[:, :end], window=4)
            places = positions[:, start:end]
            output = attention(piece, positions=places, mask=mask, cache=cache)
        for row, prompt in enumerate((short, long)):
            alone = attention(torch.cat((prompt, new[row : row + 1]), dim=1))[0, -1]
            torch.testing.assert_close(output[row, -1], alone, atol=1e-5, rtol=1e-4)


def test_positions_reach_the_rotary_embedding():
    attention, x = make(True), torch.randn(2, 5, DIM)
    positions = torch.tensor([[0, 1, 2, 3, 4], [0, 7, 7, 100, 2]])

    def heads(y):
        return y.view(2, 5, HEADS, HEAD_DIM).transpose(1, 2)

    query, key, value = (
        heads(project(x)) for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = attention.rotary(query, positions), attention.rotary(key, positions)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    expected = attention.out_proj(expected.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, positions=positions), expected)
    assert not torch.allclose(attention(x), expected, atol=1e-3)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_grouped_equals_multi_head_with_repeated_heads(qk_norm):
    grouped, full = make(True, n_kv_heads=2, qk_norm=qk_norm), make(True, qk_norm=qk_norm)
    state = grouped.state_dict()
    for projection in ("k_proj.weight", "v_proj.weight"):
        heads = state[projection].view(2, HEAD_DIM, DIM)
        state[projection] = torch.cat([heads[:1], heads[:1], heads[1:], heads[1:]]).view(DIM, DIM)
    full.load_state_dict(state)
    x = torch.randn(2, 6, DIM)
    for implementation in ("fast", "lesson"):
        grouped.implementation = full.implementation = implementation
        torch.testing.assert_close(grouped(x), full(x), atol=1e-6, rtol=1e-5)
        with torch.no_grad():
            caches = GrowingCache(), GrowingCache()
            for token in x.split(1, dim=1):
                torch.testing.assert_close(
                    grouped(token, cache=caches[0]),
                    full(token, cache=caches[1]),
                    atol=1e-6,
                    rtol=1e-5,
                )


def test_norm_comes_before_rotation():
    attention, x = make(True, qk_norm=True), torch.randn(1, 5, DIM)
    heads = attention.q_proj(x).view(1, 5, HEADS, HEAD_DIM).transpose(1, 2)
    expected = attention.rotary(attention.q_norm(heads))
    query, _, _, _ = attention._query_key_value(x, None, None, None)
    torch.testing.assert_close(query, expected)
    assert not torch.allclose(query, attention.q_norm(attention.rotary(heads)), atol=1e-3)


def test_attention_weights_explain_the_output():
    attention, x = make(True, n_kv_heads=2, qk_norm=True, sliding_window=3), torch.randn(2, 6, DIM)
    weights = attention.attention_weights(x)
    assert weights.shape == (2, HEADS, 6, 6)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, HEADS, 6))
    assert weights.ne(0).all(dim=1).all(dim=0).tolist() == causal_mask(6, 6, window=3).tolist()
    value = attention.v_proj(x).view(2, 6, 2, HEAD_DIM).transpose(1, 2).repeat_interleave(2, dim=1)
    expected = attention.out_proj((weights @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x), expected, atol=1e-6, rtol=1e-5)


# --- dtypes, devices, modes ------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["fast", "lesson"])
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[19], OPTIONS[35]], ids=name)
def test_bfloat16_is_kept_and_close(implementation, options):
    attention, x = make(**options, implementation=implementation), torch.randn(2, 8, DIM)
    exact = attention(x)
    rough = attention.bfloat16()(x.bfloat16())
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("implementation", ["fast", "lesson"])
def test_autocast_with_float32_weights(implementation):
    attention = make(True, n_kv_heads=2, qk_norm=True, implementation=implementation)
    x = torch.randn(2, 8, DIM, requires_grad=True)
    exact = attention(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = attention(x)
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()
    rough.float().square().sum().backward()
    assert x.grad.isfinite().all()


def test_half_precision_does_not_make_positions_coarse():
    attention = make(True).bfloat16()
    attention(torch.randn(1, 4, DIM).bfloat16())
    cos, _ = attention.rotary.cos_sin(1, 1001, None, torch.device("cpu"))
    assert cos.dtype == torch.float32
    assert abs(float(cos[0, 0]) - math.cos(1001)) < 1e-6


@pytest.mark.parametrize("assign", [False, True])
def test_meta_construction_then_materialising(assign):
    original = make(True, n_kv_heads=2, qk_norm=True)
    with torch.device("meta"):
        copy = make(True, n_kv_heads=2, qk_norm=True)
        copy(torch.randn(1, 3, DIM))  # shapes only; leaves tables on the meta device
    assert all(parameter.is_meta for parameter in copy.parameters())
    if not assign:
        copy.to_empty(device="cpu")
    copy.load_state_dict(original.state_dict(), assign=assign)
    x = torch.randn(2, 6, DIM)
    assert torch.equal(copy(x), original(x))


def test_training_works_after_a_sample_in_inference_mode():
    attention = make(True)
    with torch.inference_mode():
        attention(torch.randn(1, 4, DIM))
        attention(torch.randn(1, 4, DIM), positions=torch.arange(30, 34))  # grows the tables
    for positions in (None, torch.arange(4)):
        attention(torch.randn(1, 4, DIM), positions=positions).sum().backward()
    assert attention.q_proj.weight.grad.isfinite().all()


@pytest.mark.parametrize("implementation", ["fast", "lesson"])
def test_dropout_only_in_training(implementation):
    attention, x = make(dropout=0.5, implementation=implementation), torch.randn(1, 8, DIM)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


def test_rows_of_a_batch_do_not_mix():
    attention, x = make(True, n_kv_heads=2), torch.randn(3, 5, DIM)
    torch.testing.assert_close(attention(x)[[2, 0, 1]], attention(x[[2, 0, 1]]))


def test_head_dim_may_differ_from_dim_over_heads():
    attention = CausalSelfAttention(DIM, 4, n_kv_heads=2, head_dim=6, qkv_bias=True)
    shapes = {key: tuple(value.shape) for key, value in attention.state_dict().items()}
    assert shapes == {
        "q_proj.weight": (24, DIM),
        "q_proj.bias": (24,),
        "k_proj.weight": (12, DIM),
        "k_proj.bias": (12,),
        "v_proj.weight": (12, DIM),
        "v_proj.bias": (12,),
        "out_proj.weight": (DIM, 24),
    }
    assert attention(torch.randn(1, 3, DIM)).shape == (1, 3, DIM)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_heads": 5}, r"dim=32 and n_heads=5"),
        ({"n_heads": 0}, r"n_heads must be an integer >= 1, got 0"),
        ({"n_heads": 4, "n_kv_heads": 3}, r"n_heads=4 and n_kv_heads=3"),
        ({"n_heads": 4, "n_kv_heads": 8}, r"n_kv_heads must be .* <= 4, got 8"),
        ({"n_heads": 4, "sliding_window": 0}, r"sliding_window must be .* >= 1, got 0"),
        ({"n_heads": 4, "dropout": 1.0}, r"dropout must be .* < 1.0, got 1.0"),
        ({"n_heads": 4, "implementation": "fats"}, r"did you mean 'fast'"),
        ({"n_heads": 4, "rotary": RotaryEmbedding(6)}, r"head_dim 6, the attention has 8"),
    ],
)
def test_construction_errors_name_both_numbers(arguments, message):
    with pytest.raises(ValueError, match=message):
        CausalSelfAttention(DIM, **arguments)


@pytest.mark.parametrize("implementation", ["fast", "lesson"])
def test_masks_that_would_be_misread_are_refused(implementation):
    attention, x = make(implementation=implementation), torch.randn(HEADS, 3, DIM)
    with pytest.raises(ValueError, match=r"\(B, 1, T, S\), got \(4, 3, 3\)"):
        attention(x, mask=torch.ones(HEADS, 3, 3).bool())
    with pytest.raises(ValueError, match=r"bool"):
        attention(x, mask=torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"bool"):
        MultiHeadAttention(DIM, HEADS)(x, mask=torch.ones(3, 3))


def test_rotate_is_shared_by_query_and_key_lookup():
    attention = make(True)
    cos, signed_sin = attention.rotary.cos_sin(4, 3, None, torch.device("cpu"))
    x = torch.randn(1, HEADS, 4, HEAD_DIM)
    assert torch.equal(rotate(x, cos, signed_sin), attention.rotary(x, torch.arange(3, 7)))


def test_compiled_in_one_graph():
    """No step of forward may break the graph; the first call may have to build the tables."""
    attention, x = make(True, n_kv_heads=2, qk_norm=True), torch.randn(1, 5, DIM)
    compiled = torch.compile(attention, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), attention(x))
