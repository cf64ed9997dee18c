"""Average the tokens of fixed windows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlm_eff.core.action import Action, Merge
from vlm_eff.core.config import part
from vlm_eff.importance import keep as budget
from vlm_eff.importance.spatial import pool_cells, pooled_grid
from vlm_eff.models.view import View


@part
@dataclass(frozen=True)
class AveragePool:
    """Each tile or frame becomes a smaller grid of means; a mean stands at the token nearest its window's centre.

    The pooled grid has at most as many cells as the budget allows and is as undistorted as that permits, so the
    number of tokens got can be below the number asked.
    """

    def __call__(self, view: View, keep: budget.Keep, chosen: Tensor | None) -> Action:
        spans = view.spans
        valid, group, y, x = (t.cpu().numpy() for t in (spans.valid, spans.group, spans.y, spans.x))
        cell = np.full(valid.shape, -1)
        seats = [_pool_row(cell[row], valid[row], group[row], y[row], x[row], keep) for row in range(len(valid))]
        width = max(len(seat) for seat in seats)
        index, exists = np.zeros((len(seats), width), dtype=np.int64), np.zeros((len(seats), width), dtype=bool)
        for row, seat in enumerate(seats):
            index[row, : len(seat)], exists[row, : len(seat)] = seat, True
        device = view.hidden.device
        return _means(view, *(torch.from_numpy(t).to(device) for t in (cell, index, exists)))


def _pool_row(
    cell: np.ndarray, valid: np.ndarray, group: np.ndarray, y: np.ndarray, x: np.ndarray, keep: budget.Keep
) -> np.ndarray:
    """Write the window number of each candidate of one row into `cell`; return the seat of each window, ascending.

    Windows are numbered by their seat's order, so that window k stands at the k-th kept candidate.
    """
    names, seats, used = np.full(len(cell), -1), [], 0
    for number in np.unique(group[valid]):
        at = np.flatnonzero(valid & (group == number))
        known = y[at].min() >= 0
        rows, columns = (y[at], x[at]) if known else (np.zeros_like(at), np.arange(len(at)))
        height, width = int(rows.max()) + 1, int(columns.max()) + 1
        shape = pooled_grid(height, width, keep.of_count(len(at), len(at)))
        windows = pool_cells(torch.from_numpy(rows), torch.from_numpy(columns), height, width, *shape).numpy()
        for window in np.unique(windows):
            members = windows == window
            off = (rows[members] - rows[members].mean()) ** 2 + (columns[members] - columns[members].mean()) ** 2
            seats.append(at[members][int(np.argmin(off))])
            names[at[members]] = used
            used += 1
    order = np.argsort(np.array(seats, dtype=np.int64), kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    filled = names >= 0
    cell[filled] = rank[names[filled]]
    return np.array(seats, dtype=np.int64)[order]


def _means(view: View, cell: Tensor, index: Tensor, exists: Tensor) -> Merge:
    """Mean hidden state and weight of every window; `cell` [B, V] is -1 for candidates that do not exist."""
    hidden = view.visual_hidden().float()
    spare = index.shape[1]
    target = torch.where(cell >= 0, cell, spare)
    total = hidden.new_zeros(hidden.shape[0], spare + 1, hidden.shape[2])
    total.scatter_add_(1, target[:, :, None].expand(-1, -1, hidden.shape[2]), hidden)
    weight = hidden.new_zeros(hidden.shape[0], spare + 1)
    weight.scatter_add_(1, target, torch.ones_like(target, dtype=weight.dtype))
    mean = total[:, :spare] / weight[:, :spare, None].clamp(min=1)
    return Merge(index, exists, mean, weight[:, :spare])
