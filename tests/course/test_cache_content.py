"""The references of week 5's cache against the caches and the attention of this repository."""

import random

import pytest
import torch

from course.exercise import find, without_marks
from gpt_model.config import preset
from gpt_model.sizes import kv_bytes_per_token
from transformer_basics.attention import scaled_dot_product_attention
from transformer_basics.kv_cache import GrowingCache
from transformer_basics.masks import causal_mask


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(5)
    yield
    torch.set_default_dtype(before)


def reference(name):
    """The functions of a reference solution."""
    space = {}
    exec(compile(without_marks(find(name).solution), name, "exec"), space)
    return space


def test_append_and_positions_follow_our_cache():
    append = reference("cache.01")["append"]
    new_positions = reference("cache.02")["new_positions"]
    mine, ours = {}, GrowingCache()
    for tokens in (4, 1, 3):
        start = ours.length
        assert new_positions(mine, tokens).tolist() == list(range(start, start + tokens))
        k, v = torch.randn(2, 2, 3, tokens, 5)
        mine = append(mine, k, v)
        keys, values = ours.append(k, v)
        assert torch.equal(mine["k"], keys)
        assert torch.equal(mine["v"], values)


@pytest.mark.parametrize("pieces", [(7,), (4, 1, 1, 1), (2, 3, 2)])
def test_attention_in_pieces_is_attention_at_once(pieces):
    attend = reference("cache.03")["cached_attention"]
    q, k = torch.randn(2, 2, 3, 7, 4)
    v = torch.randn(2, 3, 7, 6)
    whole, _ = scaled_dot_product_attention(q, k, v, causal_mask(7, 7))
    cache, outputs, start = {}, [], 0
    for n in pieces:
        part = slice(start, start := start + n)
        output, cache = attend(q[:, :, part], k[:, :, part], v[:, :, part], cache)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, 2), whole)
    assert cache["k"].shape[2] == 7


def test_what_is_reused_is_what_reading_the_new_prompt_would_cache():
    """Two layers of a toy model, whose keys depend on all that came before."""
    torch.manual_seed(0)
    table = torch.randn(70, 1, 1, 4)

    def read(ids):
        keys = torch.cat([table[token] for token in ids], dim=1).cumsum(dim=1)  # (1, T, 4)
        return {"k": keys[:, None], "v": -keys[:, None]}

    reuse = reference("cache.04")["reuse"]
    for case in range(4):
        inputs = find("cache.04").inputs(random.Random(case), case)
        old, new = inputs["old_ids"], inputs["new_ids"]
        cache, to_feed = reuse(read(old), old, new)
        n = cache["k"].shape[2]
        assert to_feed
        assert new[n:] == to_feed
        torch.testing.assert_close(cache["k"], read(new)["k"][:, :, :n])


def test_the_predicted_bytes():
    config = preset("gpt-small", n_layers=12, n_heads=12, n_kv_heads=4, dim=768)
    assert 1000 * kv_bytes_per_token(config) == reference("cache.05")["cache_bytes"]


def test_answers_are_those_of_prompts_asked_alone():
    inputs = find("cache.06").inputs(random.Random(0), 1)
    answer_all, model = reference("cache.06")["answer_all"], inputs["model"]
    for prompt, answer in zip(inputs["prompts"], answer_all(**inputs), strict=True):
        text = list(prompt)
        for token in answer:
            assert model(text, list(range(len(text))), None)[0] == token
            text.append(token)
