"""Predicting each cell of a grid from its neighbours, as lossless image codecs do (PixelPrune, arXiv:2604.00886)."""

from __future__ import annotations

import torch
from torch import Tensor


def predicted_cells(cells: Tensor, tolerance: float = 0.0) -> tuple[Tensor, Tensor]:
    """Cells that their neighbours do not tell, and the kept cell that stands for each of the others.

    A cell is predicted from the one on its left (A), or from the one above (B) when the one above left (C) equals A and
    not B. The first row is predicted from the left, the first column from above, the first cell from nothing. A cell is
    kept unless its largest difference from the prediction is at most `tolerance`.

    cells: [R, C, D] values. With a tolerance above 0 a neighbour that was not kept counts with the values of the cell
    that stands for it, so that small steps cannot add up; that needs a loop over the cells.
    Returns (kept [R, C], the row-major number of the kept cell for each cell [R, C]).
    """
    rows, columns = cells.shape[:2]
    number = torch.arange(rows * columns, device=cells.device).view(rows, columns)
    if tolerance > 0:
        return _anchored(cells.reshape(rows * columns, -1), rows, columns, tolerance)
    left, above = torch.zeros_like(number, dtype=torch.bool), torch.zeros_like(number, dtype=torch.bool)
    left[:, 1:] = (cells[:, 1:] == cells[:, :-1]).all(2)
    above[1:] = (cells[1:] == cells[:-1]).all(2)
    from_above = torch.zeros_like(left)
    from_above[1:, 0] = True
    # C equals A: the left neighbour equals the one above it; C differs from B: the one above differs from its left
    from_above[1:, 1:] = above[1:, :-1] & ~left[:-1, 1:]
    same = torch.where(from_above, above, left)
    source = torch.where(from_above, number - columns, number - 1)
    return ~same, _roots(torch.where(same, source, number).flatten()).view(rows, columns)


def _roots(source: Tensor) -> Tensor:
    """Where the chains of `source` [N] end."""
    while not torch.equal(source, source[source]):
        source = source[source]
    return source


def _anchored(cells: Tensor, rows: int, columns: int, tolerance: float) -> tuple[Tensor, Tensor]:
    stands, kept = list(range(rows * columns)), torch.ones(rows * columns, dtype=torch.bool)
    values = cells.cpu()

    def same(one: int, other: int) -> bool:
        return float((values[one] - values[other]).abs().max()) <= tolerance

    for at in range(1, rows * columns):
        row, column = divmod(at, columns)
        if row == 0 or column == 0:
            guess = stands[at - 1] if row == 0 else stands[at - columns]
        else:
            left, above, corner = stands[at - 1], stands[at - columns], stands[at - columns - 1]
            guess = above if same(corner, left) and not same(corner, above) else left
        if same(at, guess):
            stands[at], kept[at] = guess, False
    made = torch.tensor(stands, device=cells.device).view(rows, columns)
    return kept.view(rows, columns).to(cells.device), made
