"""Splitting, merging and sharing heads."""

import pytest
import torch

from transformer_basics.heads import head_layout, merge_heads, repeat_heads, split_heads


def test_split_gives_head_h_the_h_th_slice_without_copying():
    x = torch.randn(2, 5, 12)
    heads = split_heads(x, 3)
    assert heads.shape == (2, 3, 5, 4)
    assert heads.data_ptr() == x.data_ptr()
    for h in range(3):
        assert torch.equal(heads[:, h], x[:, :, 4 * h : 4 * h + 4])


def test_merge_undoes_split():
    x = torch.randn(2, 5, 12)
    assert torch.equal(merge_heads(split_heads(x, 3)), x)


def test_repeated_heads_stay_together():
    x = torch.arange(3.0).view(1, 3, 1, 1)
    assert repeat_heads(x, 6).flatten().tolist() == [0, 0, 1, 1, 2, 2]
    assert repeat_heads(x, 3) is x


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((12, 3), (3, 4)),
        ((12, 3, 1), (1, 4)),
        ((12, 4, 2, 5), (2, 5)),
        ((10, 4, None, 8), (4, 8)),  # a given head_dim makes divisibility irrelevant
    ],
)
def test_layout(arguments, expected):
    assert head_layout(*arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 4), r"dim=10 and n_heads=4"),
        ((12, 4, 3), r"n_heads=4 and n_kv_heads=3"),
        ((12, 4, 5), r"n_kv_heads must be an integer >= 1 and <= 4, got 5"),
        ((12, 0), r"n_heads must be an integer >= 1, got 0"),
        ((0, 1), r"dim must be an integer >= 1, got 0"),
        ((12, True), r"n_heads must be .* got True"),
        ((12, 3, 1, 0), r"head_dim must be an integer >= 1, got 0"),
    ],
)
def test_layout_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        head_layout(*arguments)
