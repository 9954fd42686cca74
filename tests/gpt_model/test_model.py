import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_model.config import GPTConfig, preset
from gpt_model.loss import language_modeling_loss
from gpt_model.model import GPT

SMALL = {"vocab_size": 13, "max_seq_len": 24, "dim": 12, "n_layers": 2, "n_heads": 2}
VARIANTS = {
    "gpt2": {},
    "post-ln": {"norm_position": "post"},
    "sinusoidal": {"position": "sinusoidal"},
    "no positions": {"position": "none"},
    "modern": {
        "position": "rope",
        "norm": "rmsnorm",
        "qk_norm": True,
        "activation": "relu2",
        "qkv_bias": False,
        "proj_bias": False,
    },
    "llama-like": {
        "position": "rope",
        "norm": "rmsnorm",
        "activation": "silu",
        "gated_ffn": True,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 6,
        "tie_embeddings": False,
        "proj_bias": False,
    },
    "window": {"position": "rope", "sliding_window": 5},
    "softcap": {"logit_softcap": 0.5},
    "previous token": {"position": "rope", "token_shift": True, "bigram_rows": 29},
    "exact pairs": {"bigram_rows": 14 * 13, "tie_embeddings": False},
}


def build(name, seed=0, **changes):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**SMALL, "init_std": 0.3, **VARIANTS[name], **changes}))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.startswith("previous_token."):  # these begin at zero
                parameter.normal_()
    return model.eval()


@pytest.mark.parametrize("name", VARIANTS)
def test_the_future_never_leaks(name):
    """The gradient of position t's logits with respect to later embeddings is exactly zero."""
    model = build(name)
    ids = torch.randint(13, (1, 9))
    captured = []
    model.token_embedding.register_forward_hook(
        lambda module, args, output: captured.append(output.requires_grad_()) or output
    )
    logits = model(ids).logits
    for t in range(9):
        gradients = torch.autograd.grad(
            logits[0, t].sum() + logits[0, t, 0], captured, retain_graph=True
        )
        for gradient in gradients:  # the second, if any, is the previous token's embedding
            assert gradient[0, t + 1 :].abs().max() == 0 if t < 8 else True
        assert gradients[0][0, t].abs().max() > 0


@pytest.mark.parametrize("name", VARIANTS)
def test_lesson_path_equals_fast_path(name):
    model = build(name)
    ids = torch.randint(13, (3, 11))
    fast = model(ids).logits
    model.use_implementation("lesson")
    assert {m.implementation for m in model.modules() if hasattr(m, "implementation")} == {"lesson"}
    torch.testing.assert_close(model(ids).logits, fast, atol=2e-5, rtol=1e-4)
    model.use_implementation("flash")  # only the attention has it
    named = {
        type(m).__name__: m.implementation for m in model.modules() if hasattr(m, "implementation")
    }
    assert named.pop("CausalSelfAttention") == "flash"
    assert set(named.values()) == {"fast"}
    torch.testing.assert_close(model(ids).logits, fast, atol=2e-5, rtol=1e-4)
    message = "implementation must be one of fast, lesson, flash; got 'slow'"
    with pytest.raises(ValueError, match=message):
        model.use_implementation("slow")


@settings(max_examples=60)
@given(
    name=st.sampled_from(list(VARIANTS)),
    kind=st.sampled_from(["static", "growing"]),
    cuts=st.lists(st.integers(1, 16), max_size=5, unique=True),
    seed=st.integers(0, 5),
)
def test_cached_chunks_equal_one_forward(name, kind, cuts, seed):
    model = build(name, seed)
    ids = torch.randint(13, (2, 17))
    bounds = [0, *sorted(cuts), 17]
    cache = model.make_cache(2, kind=kind)
    with torch.no_grad():
        whole = model(ids).logits
        pieces = [
            model(ids[:, a:b], cache=cache).logits for a, b in zip(bounds, bounds[1:], strict=False)
        ]
        torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=2e-5, rtol=1e-4)
        # a second prompt after reset sees nothing of the first
        cache.reset()
        other = torch.randint(13, (2, 6))
        found = [model(piece, cache=cache).logits for piece in other.split([4, 2], 1)]
        torch.testing.assert_close(torch.cat(found, 1), model(other).logits, atol=2e-5, rtol=1e-4)


@settings(max_examples=40)
@given(
    name=st.sampled_from([n for n in VARIANTS if n != "none"]),
    lengths=st.lists(st.integers(1, 8), min_size=2, max_size=4),
    n_new=st.integers(1, 3),
)
def test_left_padded_rows_equal_the_same_rows_alone(name, lengths, n_new):
    model = build(name)
    longest = max(lengths)
    rows = [torch.randint(13, (1, length + n_new)) for length in lengths]
    padded = torch.zeros(len(rows), longest + n_new, dtype=torch.long)
    real = torch.zeros(len(rows), longest + n_new, dtype=torch.bool)
    for i, row in enumerate(rows):
        padded[i, -row.shape[1] :] = row[0]
        real[i, -row.shape[1] :] = True
    cache = model.make_cache(len(rows))
    with torch.no_grad():
        together = [
            model(padded[:, :longest], attention_mask=real[:, :longest], cache=cache).logits
        ]
        for t in range(longest, longest + n_new):
            together.append(
                model(padded[:, t : t + 1], attention_mask=real[:, : t + 1], cache=cache).logits
            )
        together = torch.cat(together, 1)
        for i, row in enumerate(rows):
            alone = model(row).logits[0]
            torch.testing.assert_close(together[i, -row.shape[1] :], alone, atol=2e-5, rtol=1e-4)


def test_changed_tokens_change_nothing_before_them():
    """Ids go in twice (this, previous): a leak through either would show here."""
    model = build("previous token")
    ids = torch.randint(13, (1, 9))
    for t in range(9):
        changed = ids.clone()
        changed[0, t] = (changed[0, t] + 1) % 13
        difference = (model(ids).logits - model(changed).logits).abs().amax(-1)[0]
        assert difference[:t].eq(0).all()
        assert (difference[t : t + 2] > 0).all()


def test_the_previous_token_survives_truncation_and_reordering():
    model, ids = build("previous token", n_layers=1), torch.randint(13, (2, 9))
    for kind in ("static", "growing"):
        cache = model.make_cache(2, kind=kind)
        with torch.no_grad():
            model(ids[:, :6], cache=cache)
            cache.truncate(4)
            model(ids[:, 4:7], cache=cache)
            cache.reorder(torch.tensor([1, 0, 1]))
            rows = ids[[1, 0, 1]]
            found = model(rows[:, 7:], cache=cache).logits
            torch.testing.assert_close(found, model(rows).logits[:, 7:], atol=2e-5, rtol=1e-4)
            cache.truncate(0)  # another batch size from here on
            if kind == "growing":
                torch.testing.assert_close(
                    model(ids[:1], cache=cache).logits, model(ids[:1]).logits
                )


def test_a_refused_call_leaves_the_previous_token_as_it_was():
    model, ids = build("previous token"), torch.randint(13, (1, 7))
    cache = model.make_cache(1, capacity=7)
    with torch.no_grad():
        model(ids[:, :5], cache=cache)
        with pytest.raises(ValueError, match="holds 7 tokens"):
            model(torch.randint(13, (1, 4)), cache=cache)
        found = model(ids[:, 5:], cache=cache).logits
    torch.testing.assert_close(found, model(ids).logits[:, 5:], atol=2e-5, rtol=1e-4)


def test_a_cache_without_ids_is_noticed():
    plain, model = build("gpt2"), build("previous token")
    cache = plain.make_cache(1)
    with torch.no_grad():
        plain(torch.zeros(1, 3, dtype=torch.long), cache=cache)
        with pytest.raises(AssertionError, match="keeps no ids"):
            model(torch.zeros(1, 1, dtype=torch.long), cache=cache)


@pytest.mark.parametrize(
    "name", ["gpt2", "modern", "llama-like", "window", "previous token", "exact pairs"]
)
def test_documents_in_one_row_do_not_see_each_other(name):
    model = build(name)
    first, second = torch.randint(13, (1, 5)), torch.randint(13, (1, 6))
    packed = torch.cat([first, second], 1)
    document_ids = torch.tensor([[0] * 5 + [1] * 6])
    positions = torch.cat([torch.arange(5), torch.arange(6)])[None]
    logits = model(packed, document_ids=document_ids, positions=positions).logits
    torch.testing.assert_close(logits[:, :5], model(first).logits, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(logits[:, 5:], model(second).logits, atol=2e-5, rtol=1e-4)


def test_a_window_of_five_sees_five_tokens_and_not_six():
    model = build("window", n_layers=1)
    ids = torch.randint(13, (1, 12))
    changed = ids.clone()
    changed[0, 3] = (changed[0, 3] + 1) % 13
    touched = (model(ids).logits - model(changed).logits).abs().amax(-1)[0] > 0
    assert touched.tolist() == [False] * 3 + [True] * 5 + [False] * 4


def test_the_loss_is_the_mean_negative_log_probability_of_the_labels():
    model = build("gpt2")
    ids = torch.randint(13, (2, 7))
    targets = torch.randint(13, (2, 7))
    targets[0, :5] = -100
    logits, loss = model(ids, targets)
    log_p = logits.double().log_softmax(-1)
    picked = [
        log_p[b, t, targets[b, t]] for b in range(2) for t in range(7) if targets[b, t] != -100
    ]
    assert len(picked) == 9
    assert loss.item() == pytest.approx(-sum(picked).item() / 9, rel=1e-5)
    total = model(ids, targets, reduction="sum").loss
    assert total.item() == pytest.approx(9 * loss.item(), rel=1e-5)
    each = model(ids, targets, reduction="none").loss
    assert each.shape == (2, 7)
    assert (each[0, :5] == 0).all()
    other = model(ids, targets.masked_fill(targets == -100, 12), ignore_index=12).loss
    assert torch.isfinite(other)


def test_the_loss_is_computed_in_float32_for_bf16_logits():
    logits = torch.randn(1, 4, 50) * 4
    targets = torch.randint(50, (1, 4))
    exact = language_modeling_loss(logits.bfloat16().double(), targets)
    loss = language_modeling_loss(logits.bfloat16(), targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


def test_bad_ids_lengths_and_masks_are_named():
    model = build("gpt2")
    with pytest.raises(ValueError, match="token id 13 is outside the vocabulary: .* < 13"):
        model(torch.tensor([[1, 13]]))
    with pytest.raises(ValueError, match="token id -1 is outside"):
        model(torch.tensor([[-1, 3]]))
    with pytest.raises(ValueError, match=r"25 tokens \(cached 0 \+ new 25\) .* max_seq_len 24"):
        model(torch.zeros(1, 25, dtype=torch.long))
    cache = model.make_cache(1)
    with torch.no_grad():
        model(torch.zeros(1, 20, dtype=torch.long), cache=cache)
        with pytest.raises(ValueError, match=r"cached 20 \+ new 5"):
            model(torch.zeros(1, 5, dtype=torch.long), cache=cache)
        assert cache.length == 20  # a refused call leaves the cache as it was
    with pytest.raises(ValueError, match=r"\(B, T\) with T >= 1, got \(3,\)"):
        model(torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"got \(1, 0\)"):
        model(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(ValueError, match=r"cached 0 \+ new 3 tokens, got length 4"):
        model(
            torch.zeros(1, 3, dtype=torch.long), attention_mask=torch.ones(1, 4, dtype=torch.bool)
        )
    with pytest.raises(ValueError, match="drop last_only"):
        model(
            torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long), last_only=True
        )
    with pytest.raises(ValueError, match="cached length 20"):
        model(
            torch.zeros(1, 1, dtype=torch.long),
            cache=cache,
            document_ids=torch.zeros(1, 1, dtype=torch.long),
        )
    with pytest.raises(
        ValueError, match="cache must be one of none, static, growing, int8, sliding"
    ):
        model.make_cache(1, kind="paged")


def test_last_only_gives_the_last_position():
    model = build("modern")
    ids = torch.randint(13, (2, 6))
    torch.testing.assert_close(model(ids, last_only=True).logits, model(ids).logits[:, -1:])


def test_initialization_statistics():
    config = preset("gpt-mini", vocab_size=1000)
    model = GPT(config)
    block = model.blocks[3]
    assert block.attention.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.02)
    scaled = 0.02 / math.sqrt(2 * config.n_layers)
    assert block.attention.out_proj.weight.std().item() == pytest.approx(scaled, rel=0.02)
    assert block.feed_forward.down_proj.weight.std().item() == pytest.approx(scaled, rel=0.02)
    assert model.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert block.attention.q_proj.bias.abs().max() == 0
    assert (block.attention_norm.weight == 1).all()
    # tied weights favour the token itself, so the labels must be other tokens
    ids, targets = torch.randint(1000, (2, 2, 64))
    assert model(ids, targets).loss.item() == pytest.approx(math.log(1000), abs=0.15)


def test_zero_init_makes_every_block_do_nothing_at_first():
    model = build("modern", zero_init=True)
    ids = torch.randint(13, (2, 8))
    embedded = model.final_norm(model.token_embedding(ids))
    torch.testing.assert_close(model(ids).logits, model.lm_head(embedded))
    model(ids, ids.roll(1)).loss.backward()
    for block in model.blocks:  # and yet they learn
        assert block.attention.out_proj.weight.grad.abs().max() > 0
        assert block.feed_forward.down_proj.weight.grad.abs().max() > 0
        assert block.attention.q_proj.weight.std() > 0.2


def test_the_new_parts_begin_as_if_they_were_not_there():
    torch.manual_seed(0)
    plain = GPT(GPTConfig(**SMALL))
    more = GPT(GPTConfig(**SMALL, token_shift=True, bigram_rows=50))
    more.load_state_dict(plain.state_dict(), strict=False)
    ids = torch.randint(13, (2, 8))
    assert torch.equal(plain(ids).logits, more(ids).logits)


def test_tied_weights_are_one_matrix_and_get_both_gradients():
    tied, untied = build("gpt2"), build("gpt2", tie_embeddings=False)
    assert tied.lm_head.weight is tied.token_embedding.weight
    untied.load_state_dict(tied.state_dict())
    ids = torch.randint(13, (2, 5))
    for model in (tied, untied):
        model(ids, ids).loss.backward()
    both = untied.lm_head.weight.grad + untied.token_embedding.weight.grad
    torch.testing.assert_close(tied.token_embedding.weight.grad, both)


def test_softcap_bounds_the_logits():
    model = build("softcap")
    assert model(torch.randint(13, (2, 9))).logits.abs().max() < 0.5


def test_dropout_only_while_training():
    model = build("gpt2", dropout=0.5)
    ids = torch.randint(13, (1, 6))
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)


def test_the_meta_model_holds_no_memory_and_materialises():
    model = GPT.on_meta(preset("gpt2-xl"))
    assert model.num_parameters() == 1_557_611_200
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_gets_a_gradient(name):
    model = build(name).train()
    ids = torch.randint(13, (2, 24))
    model(ids, ids.roll(1)).loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all()


def test_trainable_count_follows_requires_grad():
    model = build("gpt2")
    before = model.num_parameters(trainable_only=True)
    model.lm_head.weight.requires_grad_(False)
    assert model.num_parameters(trainable_only=True) == before - 13 * 12
    assert model.num_parameters() == before
