"""Average the tokens of an image or video over a grid of any given size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlm_eff.core.action import Action, Merge
from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.importance import keep as budget
from vlm_eff.models.view import View

Window = tuple[int, np.ndarray]
"""column that a mean is written to, and columns it is the mean of"""


@part
@dataclass(frozen=True)
class GridPool:
    """Each tile becomes at most `rows` x `columns` means, each video at most `frames` such grids.

    Windows are those of adaptive average pooling: from floor(i * size / n) to ceil((i + 1) * size / n), so that they
    share tokens where sizes do not divide; a shared token's weight is split among its windows. Means are taken in
    float64: the mean of equal tokens is that token, bit for bit. A mean stands at the token in its window's middle.
    A grid that is not known is taken as a line with room for rows * columns windows. `frames` None leaves time alone.
    """

    rows: int
    columns: int
    frames: int | None = None

    def __post_init__(self) -> None:
        for name, size in (("rows", self.rows), ("columns", self.columns), ("frames", self.frames)):
            whole = isinstance(size, int) and not isinstance(size, bool) and size >= 1
            if not whole and not (name == "frames" and size is None):
                raise ConfigError(explain(f"{name}={size!r}", "a whole number of at least 1", "Give the pooled grid"))

    def __call__(self, view: View, keep: budget.Keep, chosen: Tensor | None) -> Action | None:
        spans = view.spans
        arrays = (t.cpu().numpy() for t in (spans.valid, spans.image, spans.group, spans.frame, spans.y, spans.x))
        rows = [self._windows(*row) for row in zip(*arrays, strict=True)]
        if all(len(members) == 1 for row in rows for _, members in row):
            return None
        return window_means(view, rows)

    def _windows(self, valid: np.ndarray, *places: np.ndarray) -> list[Window]:
        """Windows of one row, ascending by the column of their mean."""
        image, group, frame, y, x = places
        made: list[Window] = []
        # a video is pooled as a whole, everything else tile by tile
        film = (frame >= 0) & (self.frames is not None)
        unit = np.where(film, image, group + image.max(initial=0) + 1)
        for number in np.unique(unit[valid]):
            at = np.flatnonzero(valid & (unit == number))
            time = frame[at] if film[at[0]] else np.zeros_like(at)
            made += pooled_windows(at, *self._table(at, time, y[at], x[at]))
        return sorted(made, key=lambda window: window[0])

    def _table(
        self, at: np.ndarray, time: np.ndarray, y: np.ndarray, x: np.ndarray
    ) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Place of each token as a table [T, H, W] of numbers into `at`, -1 where none is; and the pooled shape."""
        rows, columns = self.rows, self.columns
        if y.min() < 0:
            first = np.r_[True, time[1:] != time[:-1]]
            line = np.arange(len(at))
            y, x = np.zeros_like(at), line - np.maximum.accumulate(np.where(first, line, 0))
            rows, columns = 1, rows * columns
        table = np.full((int(time.max()) + 1, int(y.max()) + 1, int(x.max()) + 1), -1)
        table[time, y, x] = np.arange(len(at))
        wanted = (self.frames or 1, rows, columns)
        frames, height, width = (min(size, limit) for size, limit in zip(table.shape, wanted, strict=True))
        return table, (frames, height, width)


def pooled_windows(at: np.ndarray, table: np.ndarray, shape: tuple[int, int, int]) -> list[Window]:
    """The windows of one tile or video: every cell of `shape` that has a token left."""
    axes = [_bounds(size, count) for size, count in zip(table.shape, shape, strict=True)]
    made, taken = [], np.zeros(len(at), dtype=bool)
    for t0, t1 in axes[0]:
        for y0, y1 in axes[1]:
            for x0, x1 in axes[2]:
                box = table[t0:t1, y0:y1, x0:x1]
                members = box[box >= 0]
                free = members[~taken[members]]
                # after an earlier drop all tokens of a window may already stand for others
                if not len(free):
                    continue
                middle = int(box[tuple((side - 1) // 2 for side in box.shape)])
                seat = middle if middle >= 0 and not taken[middle] else int(free[0])
                taken[seat] = True
                made.append((int(at[seat]), at[np.sort(members)]))
    return made


def _bounds(size: int, count: int) -> list[tuple[int, int]]:
    return [(i * size // count, math.ceil((i + 1) * size / count)) for i in range(count)]


def window_means(view: View, rows: list[list[Window]]) -> Merge:
    """The means of all windows as an action; tokens in several windows have their weight split."""
    device, width = view.hidden.device, max((len(row) for row in rows), default=0)
    index, exists = np.zeros((len(rows), width), dtype=np.int64), np.zeros((len(rows), width), dtype=bool)
    weight = np.zeros((len(rows), width), dtype=np.float32)
    member, cell, batch = [], [], []
    for number, row in enumerate(rows):
        index[number, : len(row)], exists[number, : len(row)] = [seat for seat, _ in row], True
        sizes = [len(members) for _, members in row]
        flat = np.concatenate([members for _, members in row]) if row else np.zeros(0, dtype=np.int64)
        line = np.repeat(np.arange(len(row)), sizes)
        share = 1 / np.bincount(flat, minlength=1)[flat] if len(flat) else flat
        weight[number] = np.bincount(line, share, minlength=width)[:width] if len(flat) else 0
        member.append(flat)
        cell.append(line + number * width)
        batch.append(np.full(len(flat), number))
    pairs = [torch.from_numpy(np.concatenate(part)).to(device) for part in (batch, member, cell)]
    made = _means(view.visual_hidden(), pairs, len(rows) * width).view(len(rows), width, -1)
    seats = [torch.from_numpy(part).to(device) for part in (index, exists, weight)]
    return Merge(seats[0], seats[1], made, seats[2])


def _means(hidden: Tensor, pairs: list[Tensor], cells: int) -> Tensor:
    """Means [cells, D], summed in float64; pairs: row and column of tokens, and the cell that each goes to."""
    batch, member, cell = pairs
    total = torch.zeros(cells, hidden.shape[2], dtype=torch.float64, device=hidden.device)
    total.index_add_(0, cell, hidden[batch, member].double())
    count = torch.zeros(cells, dtype=torch.float64, device=hidden.device).index_add_(
        0, cell, torch.ones_like(cell, dtype=torch.float64)
    )
    return (total / count.clamp(min=1)[:, None]).to(hidden.dtype)


@part
@dataclass(frozen=True)
class GridDecides:
    """No selection: the windows decide, and how many there are depends on the layout of the images alone."""

    def __call__(self, scores: Tensor, view: View, keep: budget.Keep) -> Tensor:
        return view.spans.valid

    def expected(self, kept: float, current: float) -> float:
        return math.nan
