"""The accounts behind the tile sizes: bytes moved, bytes on the chip."""

import pytest

from transformer_basics.flash_budget import (
    BACKWARD_TILES,
    FORWARD_TILES,
    SRAM_BUDGETS,
    bytes_moved,
    padded,
    sram_bytes,
    tile_sizes,
)


def test_padding_is_the_next_power_of_two():
    widths = {1: 16, 15: 16, 16: 16, 17: 32, 64: 64, 65: 128, 80: 128, 128: 128}
    assert {width: padded(width) for width in widths} == widths


def test_bytes_on_the_chip_counted_by_hand():
    # q 128 x 64; k, v 64 x 64 each, twice; two bytes a number
    assert sram_bytes(64, 64, 2, (128, 64)) == 2 * (128 * 64 + 2 * 2 * 64 * 64)
    # k, v 32 rows; q, dO 64 rows, twice; P; L and D in float32, twice or once over
    by_hand = 2 * (32 * 128 + 2 * 64 * 128 + 64 * 32) + 8 * 64
    assert sram_bytes(64, 64, 2, (64, 32), backward=True) == by_hand
    assert sram_bytes(48, 64, 2, (64, 32)) == sram_bytes(64, 64, 2, (64, 32))
    assert sram_bytes(64, 16, 2, (64, 32)) < sram_bytes(64, 64, 2, (64, 32))


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("head", [1, 16, 20, 64, 80, 128])
def test_the_largest_tile_that_fits(head, itemsize, backward):
    """Every supported head has a tile; the one before it in the list would not fit."""
    tiles = tile_sizes(head, head, itemsize, backward)
    offered = BACKWARD_TILES if backward else FORWARD_TILES
    place = offered.index(tiles)
    assert sram_bytes(head, head, itemsize, tiles, backward) <= SRAM_BUDGETS[itemsize]
    for larger in offered[:place]:
        assert sram_bytes(head, head, itemsize, larger, backward) > SRAM_BUDGETS[itemsize]
    assert all(size == padded(size) for size in tiles)


def test_a_head_too_wide_is_refused():
    with pytest.raises(ValueError, match="heads of 2048 and 2048 fits into 98304 bytes"):
        tile_sizes(2048, 2048, 2)


def test_bytes_moved_counted_by_hand():
    # T = 4, d = 2, tiles of 2 queries, 2 bytes: S and P written and read, Q, K, V, O once
    formula, tiles = bytes_moved(4, 2, 2, 2)
    assert formula == 2 * (4 * 16 + 4 * 8)
    # Q and O once; K and V for each of two tiles; L a float32 a row
    assert tiles == 2 * (2 * 8 + 2 * 2 * 8) + 4 * 4
    # half a tile more reads K and V once more
    assert bytes_moved(5, 2, 2, 2)[1] == 2 * (2 * 10 + 3 * 2 * 10) + 4 * 5
