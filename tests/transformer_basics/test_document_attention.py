"""Packed documents one by one against the explicit mask: values, gradients, memory, when chosen."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_model.config import preset
from gpt_model.inputs import visibility
from gpt_model.model import GPT
from transformer_basics import attention as attention_module
from transformer_basics import document_attention as module
from transformer_basics.attention import CausalSelfAttention, scaled_dot_product_attention
from transformer_basics.document_attention import (
    DocumentRuns,
    as_mask,
    attend_by_runs,
    document_runs,
    largest_result,
)
from transformer_basics.fast_attention import fast_attention
from transformer_basics.heads import repeat_heads
from transformer_basics.masks import attention_mask
from transformer_basics.rotary import RotaryEmbedding
from transformer_basics.speed_ups import without

# a row's run lengths; every row is filled up to the longest with one more document
rows_of_runs = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=3)


def numbered(rows):
    """Run lengths to document ids, (B, T); the numbers neither start at 0 nor rise."""
    length = max(map(sum, rows))
    filled = [[*row, length - sum(row)] for row in rows]
    return torch.tensor(
        [[7 - 3 * i for i, count in enumerate(row) for _ in range(count)] for row in filled]
    )


def inputs(ids, heads, groups, dtype=torch.float64, size=4):
    batch, length = ids.shape
    return [
        torch.randn(batch, h, length, size, dtype=dtype, requires_grad=True)
        for h in (heads, groups, groups)
    ]


def written_out(query, key, value, ids, window=None):
    heads, length = query.shape[1], query.shape[2]
    mask = attention_mask(length, length, document_ids=ids, window=window)
    key, value = repeat_heads(key, heads), repeat_heads(value, heads)
    return scaled_dot_product_attention(query, key, value, mask)[0]


@settings(max_examples=40)
@given(
    rows=rows_of_runs,
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    window=st.sampled_from([None, 1, 3]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_values_and_gradients_equal_the_explicit_mask(rows, heads, window, dtype):
    torch.manual_seed(0)
    ids = numbered(rows)
    tensors = inputs(ids, *heads, dtype=dtype)
    runs = document_runs(ids)
    mine = attend_by_runs(*tensors, runs, lambda q, k, v: fast_attention(q, k, v, window=window))
    right = written_out(*tensors, ids, window)
    slope = torch.randn_like(right)
    found = [mine, *torch.autograd.grad(mine, tensors, slope)]
    expected = [right, *torch.autograd.grad(right, tensors, slope)]
    tolerance = 1e-12 if dtype is torch.float64 else 5e-6  # sums of up to 45 terms
    for a, b in zip(found, expected, strict=True):
        assert a.dtype is dtype
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@given(rows=rows_of_runs)
def test_runs_cover_the_batch_and_groups_cover_the_runs(rows):
    ids = numbered(rows)
    runs = document_runs(ids)
    pieces = ids.flatten().split(runs.lengths)
    assert all((piece == piece[0]).all() for piece in pieces)
    assert len(pieces) == sum(len(row.unique()) for row in ids)
    members = sorted(index for group in runs.groups().values() for index in group)
    assert members == list(range(len(pieces)))
    assert all(
        runs.lengths[index] == length for length, group in runs.groups().items() for index in group
    )


def test_documents_of_one_length_are_one_call():
    ids = (torch.arange(64) // 16).expand(3, 64)
    shapes = []

    def attend(query, key, value):
        shapes.append(tuple(query.shape))
        return fast_attention(query, key, value)

    attend_by_runs(*inputs(ids, 2, 2), document_runs(ids), attend)
    assert shapes == [(12, 2, 16, 4)]


def test_bf16_runs_use_the_blocked_attention(monkeypatch):
    from transformer_basics import fast_attention as chooser

    calls, blocked = [], chooser.blocked_attention
    monkeypatch.setattr(
        chooser, "blocked_attention", lambda *t: calls.append(t[0].shape[2]) or blocked(*t)
    )
    ids = numbered([[5, 3], [2, 6]])
    tensors = inputs(ids, 2, 1, dtype=torch.bfloat16)
    output = attend_by_runs(*tensors, document_runs(ids), fast_attention)
    assert output.dtype is torch.bfloat16
    assert sorted(calls) == [2, 3, 5, 6]
    exact = written_out(*(t.double() for t in tensors), ids)
    assert float((output - exact).detach().abs().max()) < 0.03


def test_no_gradient_passes_between_documents():
    ids = numbered([[4, 3, 5]])
    tensors = inputs(ids, 2, 2)
    output = attend_by_runs(*tensors, document_runs(ids), fast_attention)
    for number in ids[0].unique():
        inside = ids[0] == number
        found = torch.autograd.grad(output[:, :, inside].sum(), tensors, retain_graph=True)
        assert all((gradient[:, :, ~inside] == 0).all() for gradient in found)
        assert all(gradient[:, :, inside].any() for gradient in found)


def test_no_square_of_the_row_is_ever_made():
    length, run = 512, 64
    ids = (torch.arange(length) // run)[None]
    for dtype in (torch.float32, torch.bfloat16):
        tensors = inputs(ids, 2, 2, dtype=dtype, size=16)
        runs = document_runs(ids)

        def by_runs(tensors=tensors, runs=runs):
            attend_by_runs(*tensors, runs, fast_attention).sum().backward()

        def by_mask(tensors=tensors, runs=runs):
            fast_attention(*tensors, as_mask(runs, None)).sum().backward()

        square = length * length * dtype.itemsize
        assert largest_result(by_runs) < square <= largest_result(by_mask)
        # the probabilities of the bf16 path: every head, the sum of the squares of the runs
        assert largest_result(by_runs) <= 2 * (length // run) * run**2 * dtype.itemsize


@pytest.mark.parametrize("ids", [[[0, 1, 0]], [[0, 0, 1], [2, 3, 2]]])
def test_a_document_that_returns_is_left_to_the_mask(ids):
    assert document_runs(torch.tensor(ids)) is None


def test_the_same_number_in_two_rows_is_two_documents():
    runs = document_runs(torch.tensor([[0, 1], [1, 0]]))
    assert runs.lengths == (1, 1, 1, 1)


def test_what_is_left_to_the_mask():
    ids = torch.tensor([[0, 0, 1, 1]])
    assert document_runs(ids).lengths == (2, 2)
    with without("documents"):
        assert document_runs(ids) is None
    assert document_runs(ids.to("meta")) is None
    assert document_runs(ids[0]) is None


@pytest.fixture
def always(monkeypatch):
    """Short rows are not worth it; the tests want them all the same."""
    monkeypatch.setattr(module, "SHORTEST_ROW", 1)
    monkeypatch.setattr(module, "CELLS_A_CALL", 0)


@pytest.mark.parametrize(
    ("batch", "row", "pays"),
    [
        (1, [64] * 4, True),
        (1, [63] * 4, False),  # the row is too short
        (1, [100, 101, 55], True),
        (1, [*range(1, 22), 25], False),  # 22 lengths, 22 calls, for 65536 cells
        (4, [*range(1, 22), 25], True),  # the same 22 calls for four rows
        (1, [1] * 256, True),
    ],
)
def test_when_it_pays(batch, row, pays):
    ids = torch.arange(len(row)).repeat_interleave(torch.tensor(row)).expand(batch, -1)
    assert document_runs(ids).pays == pays
    handed = visibility(ids, None, None, ids, None)
    assert isinstance(handed, DocumentRuns if pays else torch.Tensor)


@pytest.mark.usefixtures("always")
def test_what_the_model_hands_to_its_layers():
    ids = torch.zeros(2, 6, dtype=torch.long)
    packed = torch.tensor([[0, 0, 1, 1, 1, 2], [3, 3, 3, 3, 4, 4]])
    assert visibility(ids, None, None, None, None) is None
    assert isinstance(visibility(ids, None, None, packed, None), DocumentRuns)
    # one document a row: ordinary causal attention
    assert visibility(ids, None, None, torch.tensor([[4] * 6, [9] * 6]), None) is None
    # padding, a cache, one row of numbers for all: the mask
    real = torch.ones(2, 6, dtype=torch.bool)
    cache = GPT(preset("gpt-micro", vocab_size=5, n_layers=1, max_seq_len=6)).make_cache(2)
    for mask in (
        visibility(ids, None, real, packed, None),
        visibility(ids, cache, None, packed, None),
        visibility(ids, None, None, packed[:1], None),
        visibility(ids, None, None, packed % 2, None),  # document 0 returns
    ):
        assert isinstance(mask, torch.Tensor)
        assert mask.shape[-2:] == (6, 6)


def test_lengths_that_do_not_fit_are_named():
    runs = document_runs(torch.tensor([[0, 0, 1]]))
    tensors = inputs(torch.zeros(2, 3), 1, 1)
    with pytest.raises(ValueError, match=r"\(B, T\) = \(1, 3\), got \(2, 3\) queries and 3 keys"):
        attend_by_runs(*tensors, runs, fast_attention)


@pytest.mark.parametrize("implementation", ["fast", "lesson", "flash"])
@pytest.mark.parametrize("window", [None, 3])
def test_every_implementation_of_the_layer(implementation, window):
    ids = numbered([[5, 2, 4], [11]])
    layer = CausalSelfAttention(
        16,
        4,
        n_kv_heads=2,
        rotary=RotaryEmbedding(4),
        sliding_window=window,
        implementation=implementation,
    )
    x = torch.randn(2, 11, 16)
    runs = document_runs(ids)
    mask = attention_mask(11, 11, document_ids=ids, window=window)
    torch.testing.assert_close(layer(x, mask=runs), layer(x, mask=mask), atol=1e-6, rtol=1e-5)
    weights = layer.attention_weights(x, mask=runs)
    assert torch.equal(weights, layer.attention_weights(x, mask=mask))


def losses_and_gradients(model, ids, **arguments):
    model.zero_grad()
    loss = model(ids, ids.roll(-1, 1), **arguments).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gpt-micro", {}),  # learned positions
        ("modern-micro", {"n_kv_heads": 2, "token_shift": True}),
        ("modern-micro", {"sliding_window": 4}),
    ],
)
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("restart", [False, True], ids=["positions run on", "positions restart"])
def test_a_whole_model_is_the_same_with_and_without(name, changes, restart, monkeypatch):
    model = GPT(preset(name, vocab_size=13, n_layers=2, dim=32, max_seq_len=24, **changes))
    packed = numbered([[5, 9, 1], [3, 3, 3, 8], [20]])
    ids = torch.randint(13, packed.shape)
    positions = None
    if restart:
        lengths = document_runs(packed).lengths
        positions = torch.cat([torch.arange(n) for n in lengths]).view(packed.shape)
    calls = []
    monkeypatch.setattr(
        attention_module,
        "attend_by_runs",
        lambda *a: calls.append(1) or attend_by_runs(*a),
    )
    options = {"document_ids": packed, "positions": positions}
    mine = losses_and_gradients(model, ids, **options)
    assert len(calls) == 2
    with without("documents"):
        right = losses_and_gradients(model, ids, **options)
    assert len(calls) == 2
    for a, b in zip(mine, right, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_one_document_a_row_is_a_model_without_documents():
    model = GPT(preset("modern-micro", vocab_size=13, n_layers=2, dim=32, max_seq_len=24))
    ids = torch.randint(13, (2, 9))
    numbers = torch.tensor([[1], [2]]).expand(2, 9)
    assert torch.equal(model(ids, document_ids=numbers).logits, model(ids).logits)


def test_dropout_of_the_layer_stays_inside_and_can_be_repeated():
    layer = CausalSelfAttention(8, 2, dropout=0.5)
    ids = numbered([[6, 6]])
    x = torch.randn(1, 12, 8, requires_grad=True)
    slopes = []
    for recompute in (False, True):
        layer.recompute = recompute
        torch.manual_seed(3)
        output = layer(x, mask=document_runs(ids))
        slopes.append(torch.autograd.grad(output[:, :6].sum(), x)[0])
    assert torch.equal(*slopes)
    assert (slopes[0][:, 6:] == 0).all()
    assert slopes[0][:, :6].any()


@pytest.mark.usefixtures("always")
def test_compiled_models_take_the_mask():
    """The runs depend on the data: a compiled graph must not be specialised on them."""
    model = GPT(preset("modern-micro", vocab_size=13, n_layers=1, dim=32, max_seq_len=24)).eval()
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=False)
    ids = torch.randint(13, (2, 12))
    with torch.no_grad():
        for rows in ([[5, 7], [12]], [[1, 2, 9], [6, 6]], [[2] * 6, [4] * 3]):
            packed = torch.tensor(
                [[i for i, n in enumerate(row) for _ in range(n)] for row in rows]
            )
            expected = model(ids, document_ids=packed).logits
            found = compiled(ids, document_ids=packed).logits
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert len(graphs) == 1


def test_a_compiled_layer_inside_an_eager_model_draws_the_mask_itself():
    layer = CausalSelfAttention(8, 2)
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(layer, backend=backend, fullgraph=True, dynamic=False)
    x = torch.randn(1, 12, 8)
    for row in ([5, 7], [3, 4, 5], [1] * 12):
        runs = document_runs(torch.arange(len(row)).repeat_interleave(torch.tensor(row))[None])
        torch.testing.assert_close(compiled(x, mask=runs), layer(x, mask=runs))
    assert len(graphs) == 1
