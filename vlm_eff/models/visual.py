"""Where the visual tokens of a call sit: image, tile or frame of each one, and its row and column there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class VisualSpans:
    """Visual candidates of each row, in sequence order; newlines, separators and timestamps are not among them.

    slot:  [B, V] logical slot in this call        valid: [B, V] False beyond a row's own count
    image: [B, V] number of the image or video in its row, counted from 0
    group: [B, V] number of the tile or frame in its row, counted from 0: the unit that has a rectangular grid
    y, x:  [B, V] row and column inside the group; -1 where the layout does not tell
    frame: [B, V] number of the frame in its video, counted from 0 (Qwen: a frame is two pictures); -1 for images.
           Left out: no videos
    overview: [B, V] 1 for a tile that shows a whole image small, beside tiles that show its parts; else 0.
           Left out: none
    """

    slot: Tensor
    valid: Tensor
    image: Tensor
    group: Tensor
    y: Tensor
    x: Tensor
    frame: Tensor = None  # type: ignore[assignment]
    overview: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.overview is None:
            object.__setattr__(self, "overview", torch.zeros_like(self.slot))
        if self.frame is None:
            object.__setattr__(self, "frame", torch.full_like(self.slot, -1))

    @property
    def video(self) -> Tensor:
        """Candidates that belong to a video [B, V]."""
        return self.valid & (self.frame >= 0)

    @property
    def count(self) -> Tensor:
        """Candidates of each row [B]."""
        return self.valid.sum(1)

    def take(self, index: Tensor, valid: Tensor) -> VisualSpans:
        """The candidates at columns `index` [B, K], of which `valid` [B, K] exist."""
        picked = {f.name: getattr(self, f.name).gather(1, index) for f in fields(self) if f.name != "valid"}
        return VisualSpans(valid=valid & self.valid.gather(1, index), **picked)

    def mask(self, length: int) -> Tensor:
        """True at the slots of candidates [B, S]."""
        made = torch.zeros(self.slot.shape[0], length + 1, dtype=torch.bool, device=self.slot.device)
        made.scatter_(1, torch.where(self.valid, self.slot, length), True)
        return made[:, :length]


@dataclass(frozen=True)
class SpanSource:
    """What a layout may read of one call; arrays on the host.

    visual:    [B, S] True at placeholders of images and videos; video: the same for videos alone
    ids:       [B, S] input ids, or None when the model was called with embeddings
    newline:   [B, S] True where the embedding is the model's image-newline vector, or None for families without one
    positions: [3, B, S] time, height, width of multi-axis rotary families, or None
    grids:     [N, 3] frames, height and width in patches of each video of the batch, or None when they are not known
    """

    visual: np.ndarray
    video: np.ndarray
    ids: np.ndarray | None = None
    newline: np.ndarray | None = None
    positions: np.ndarray | None = None
    grids: np.ndarray | None = None


@dataclass
class RowCells:
    """The candidates of one row while they are collected: numpy arrays of equal length."""

    slot: np.ndarray
    image: np.ndarray
    group: np.ndarray
    y: np.ndarray
    x: np.ndarray
    frame: np.ndarray
    overview: np.ndarray


Layout = Callable[[SpanSource], list[RowCells]]


class CellWriter:
    """Collects the cells of one row, grid by grid."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._image = -1
        self._group = -1
        self._frame = -1
        self._video = False

    def next_image(self, *, video: bool = False) -> None:
        """The grids that follow belong to a new image, or are the frames of a new video."""
        self._image += 1
        self._video, self._frame = video, -1

    def grid(self, slots: np.ndarray, width: int | None, *, overview: bool = False) -> None:
        """Add one tile or frame in row-major order; `width` None says its grid is not known.

        overview: it shows the whole image, of which other tiles show the parts
        """
        order = np.arange(len(slots))
        unknown = np.full(len(slots), -1)
        y, x = (unknown, unknown) if width is None else (order // width, order % width)
        self.cells(slots, y, x, overview=overview)

    def cells(self, slots: np.ndarray, y: np.ndarray, x: np.ndarray, *, overview: bool = False) -> None:
        """Add one tile or frame whose rows and columns are given."""
        self._group += 1
        self._frame += 1
        numbers = (self._image, self._group, self._frame if self._video else -1, int(overview))
        image, group, frame, whole = (np.full(len(slots), number) for number in numbers)
        self._parts.append((slots, image, group, y, x, frame, whole))

    def done(self) -> RowCells:
        """All cells, ascending by slot."""
        if not self._parts:
            empty = np.zeros(0, dtype=np.int64)
            return RowCells(*[empty] * 7)
        joined = [np.concatenate(column).astype(np.int64) for column in zip(*self._parts, strict=True)]
        order = np.argsort(joined[0], kind="stable")
        return RowCells(*(column[order] for column in joined))


def runs(mask: np.ndarray) -> Iterator[np.ndarray]:
    """Unbroken runs of True in a row, each as an array of slots."""
    slots = np.flatnonzero(mask)
    if len(slots):
        yield from np.split(slots, np.flatnonzero(np.diff(slots) != 1) + 1)


def square_side(count: int) -> int | None:
    """Side of a square of `count` cells, or None when it is no square."""
    side = round(count**0.5)
    return side if side * side == count else None


def make_spans(rows: list[RowCells], device: torch.device) -> VisualSpans:
    """Pad the rows to one width and move them to `device`."""
    width = max((len(row.slot) for row in rows), default=0)
    columns = {}
    for name in ("slot", "image", "group", "y", "x", "frame", "overview"):
        table = np.zeros((len(rows), width), dtype=np.int64)
        for place, row in enumerate(rows):
            table[place, : len(row.slot)] = getattr(row, name)
        columns[name] = torch.from_numpy(table).to(device)
    valid = np.arange(width)[None, :] < np.array([len(row.slot) for row in rows])[:, None]
    return VisualSpans(valid=torch.from_numpy(valid).to(device), **columns)
