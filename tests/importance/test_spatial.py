"""Orders and windows over a grid."""

import math

import pytest
import torch

from vlm_eff.importance.spatial import pool_cells, pooled_grid, spread_order, stride_grid

GRIDS = [(1, 1), (1, 7), (5, 1), (4, 4), (5, 5), (3, 9), (24, 24), (27, 13)]


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_spread_order_ranks_every_cell_once(height: int, width: int) -> None:
    assert sorted(spread_order(height, width)) == list(range(height * width))


@pytest.mark.parametrize("side", [8, 16])
@pytest.mark.parametrize("parts", [2, 4])
def test_every_prefix_covers_the_grid_evenly(side: int, parts: int) -> None:
    """In every prefix, equal blocks of the grid hold nearly equally many cells."""
    rank = torch.tensor(spread_order(side, side)).view(side, side)
    block = side // parts
    for kept in range(parts * parts, side * side, 5):
        chosen = (rank < kept).float().unfold(0, block, block).unfold(1, block, block).sum((-1, -2))
        assert chosen.max() - chosen.min() <= max(1, block * block // 8)
        assert chosen.min() >= 1


def test_a_quarter_is_every_second_row_and_column_and_a_half_the_checkerboard() -> None:
    rank = torch.tensor(spread_order(8, 8)).view(8, 8)
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    assert torch.equal(rank < 16, (y % 2 == 0) & (x % 2 == 0))
    assert torch.equal(rank < 32, (y + x) % 2 == 0)


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_a_pooled_grid_keeps_to_its_budget_and_shape(height: int, width: int) -> None:
    for count in (1, 2, 3, 5, height * width // 4, height * width // 2, height * width):
        if count < 1:
            continue
        rows, columns = pooled_grid(height, width, count)
        assert 1 <= rows <= height
        assert 1 <= columns <= width
        assert rows * columns <= count
        if count >= 4:
            assert rows * columns > count / 3 or min(height, width) == 1


def test_pooled_grids_of_squares_are_squares() -> None:
    assert pooled_grid(24, 24, 144) == (12, 12)
    assert pooled_grid(24, 24, 64) == (8, 8)
    assert pooled_grid(24, 24, 576) == (24, 24)
    assert pooled_grid(12, 48, 36) == (3, 12)


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"), [(5, 7, 2, 3), (6, 6, 3, 2), (4, 9, 4, 9), (3, 3, 1, 1)]
)
def test_windows_are_boxes_of_nearly_equal_size(height: int, width: int, rows: int, columns: int) -> None:
    y, x = (t.flatten() for t in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    cells = pool_cells(y, x, height, width, rows, columns)
    assert sorted(set(cells.tolist())) == list(range(rows * columns))
    for cell in range(rows * columns):
        inside = cells == cell
        tall, wide = (int(axis[inside].max() - axis[inside].min()) + 1 for axis in (y, x))
        assert tall * wide == int(inside.sum())
        assert tall in (height // rows, math.ceil(height / rows))
        assert wide in (width // columns, math.ceil(width / columns))


def test_the_stride_grid_leaves_out_unknown_places() -> None:
    y, x = torch.tensor([0, 0, 3, 3, 1, -1]), torch.tensor([0, 3, 3, 1, 0, -1])
    assert stride_grid(y, x, 3).tolist() == [True, True, True, False, False, False]
    assert stride_grid(y, x, 1).tolist() == [True] * 5 + [False]
