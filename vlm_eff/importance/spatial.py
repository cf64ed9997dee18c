"""Scores and windows from the place of a token in its image, without looking at its content."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def spread_order(height: int, width: int) -> tuple[int, ...]:
    """Rank of each cell of a grid in an order whose every prefix covers the grid evenly (row-major list).

    This is the Bayer order of ordered dithering: the first quarter is every second row and column, the first half the
    checkerboard, and any count in between is spread evenly too.
    """
    levels = max(height - 1, width - 1, 1).bit_length()
    keyed = []
    for row in range(height):
        for column in range(width):
            value = 0
            for level in range(levels):
                bit_y, bit_x = (row >> level) & 1, (column >> level) & 1
                # Bayer: even rows and columns first, then the cells diagonal to them; coarse levels weigh least
                value = value * 4 + ((bit_y ^ bit_x) * 2 + bit_y)
            keyed.append((value, row, column))
    rank = [0] * (height * width)
    for place, (_, row, column) in enumerate(sorted(keyed)):
        rank[row * width + column] = place
    return tuple(rank)


def pooled_grid(height: int, width: int, count: int) -> tuple[int, int]:
    """Rows and columns of the pooled grid with at most `count` cells whose shape is nearest to `height` x `width`."""
    best, best_cost = (1, 1), math.inf
    for rows in range(1, min(height, count) + 1):
        columns = min(width, count // rows)
        if columns < 1:
            break
        # fewer cells than allowed and distorted cells both cost
        missing = 1 - rows * columns / min(count, height * width)
        stretch = abs(math.log((rows / height) / (columns / width)))
        if (cost := missing + stretch) < best_cost - 1e-12:
            best, best_cost = (rows, columns), cost
    return best


def pool_cells(y: Tensor, x: Tensor, height: int, width: int, rows: int, columns: int) -> Tensor:
    """Pooled cell (row-major number) of each token at row `y` [V] and column `x` [V] of a `height` x `width` grid."""
    return torch.div(y * rows, height, rounding_mode="floor") * columns + torch.div(
        x * columns, width, rounding_mode="floor"
    )


def stride_grid(y: Tensor, x: Tensor, stride: int | Tensor) -> Tensor:
    """True for the tokens on every `stride`-th row and column, counted from the first (FEATHER) [..., V]."""
    return (y % stride == 0) & (x % stride == 0) & (y >= 0)
