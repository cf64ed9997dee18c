"""One budget for an image, shared out over its small overview and its tiles (HiRED)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import Observation, TowerAttention
from vlm_eff.importance.adaptive import share_out
from vlm_eff.importance.keep import Keep, is_number
from vlm_eff.importance.select import top_k_per_group
from vlm_eff.models.view import View


@part
@dataclass(frozen=True)
class TileBudgets:
    """The best tokens of every tile, as many as the overview's early attention gives it.

    overview: share of the image's budget that its overview gets, [0, 1]; the rest goes to the tiles
    block:    tower block whose attention on the overview marks int(N * (1 - overview)) places; a tile's weight is the
              number of marks in its region
    faithful: True cuts the marks into bands of the raster, drops fractions and does not hand on what a full tile
              leaves, as the released code does; False takes the regions that the tiles really show, and spends the
              whole budget by largest remainder
    Images without an overview have one budget for all their tokens. Tiles whose arrangement the prompt does not tell
    (InternVL) get equal shares unless `faithful`.
    """

    overview: float = 0.5
    block: int | None = 0
    faithful: bool = False

    def __post_init__(self) -> None:
        if not is_number(self.overview) or not 0 <= self.overview <= 1:
            raise ConfigError(explain(f"overview={self.overview!r}", "a fraction in [0, 1]", "Give the share"))

    def _wanted(self) -> TowerAttention:
        return TowerAttention(self.block, "auto")

    def needs(self, layer: int) -> tuple[Observation, ...]:
        return (self._wanted(),)

    def __call__(self, scores: Tensor, view: View, keep: Keep) -> Tensor:
        spans = view.spans
        names = (spans.valid, spans.image, spans.group, spans.y, spans.x, spans.overview)
        valid, image, group, y, x, small = (tensor.cpu().numpy() for tensor in names)
        marks = view.tower(self._wanted()).cpu().numpy()
        named, shares = np.zeros(valid.shape, dtype=np.int64), []
        for row in range(len(valid)):
            made: list[int] = []
            for number in np.unique(image[row][valid[row]]):
                at = np.flatnonzero(valid[row] & (image[row] == number))
                parts = _parts(group[row, at], y[row, at], x[row, at], small[row, at])
                counts = self._counts(parts, marks[row, at], keep.of_count(len(at), len(at)))
                for place, count in zip(parts.places, counts, strict=True):
                    named[row, at[place]] = len(made)
                    made.append(count)
            shares.append(made)
        width = max(1, *(len(made) for made in shares))
        limits = torch.tensor([made + [0] * (width - len(made)) for made in shares], device=scores.device)
        return top_k_per_group(scores, torch.from_numpy(named).to(scores.device), limits, spans.valid)

    def _counts(self, parts: Parts, marks: np.ndarray, budget: int) -> list[int]:
        """Tokens of each part of one image; the first part is the overview where there is one."""
        sizes = [len(place) for place in parts.places]
        if len(sizes) == 1:
            return [budget]
        first = min(int(self.overview * budget), sizes[0])
        order = np.argsort(-marks[parts.places[0]], kind="stable")
        best = order[: int(sizes[0] * (1 - self.overview))]
        if self.faithful:
            bands = np.bincount(best * (len(sizes) - 1) // sizes[0], minlength=len(sizes) - 1)
            rest = [int(hit / max(len(best), 1) * (budget - first)) for hit in bands]
            made = [first, *(min(count, size) for count, size in zip(rest, sizes[1:], strict=True))]
            # official code may be left with nothing at tiny budgets
            return made if sum(made) else [1, *made[1:]]
        hits = [1.0] * (len(sizes) - 1)
        if parts.region is not None:
            hits = np.bincount(parts.region[best], minlength=len(sizes) - 1).astype(float).tolist()
        tiles = share_out(hits, budget - first, sizes[1:])
        # what the tiles have no room for is the overview's
        return [budget - sum(tiles), *tiles]

    def expected(self, kept: float, current: float) -> float:
        return kept


@dataclass(frozen=True)
class Parts:
    """Parts of one image, each the places of its tokens: the overview first, then the tiles.

    region: of each token of the overview the number of the tile that shows its place, or None where nobody knows
    """

    places: list[np.ndarray]
    region: np.ndarray | None


def _parts(group: np.ndarray, y: np.ndarray, x: np.ndarray, small: np.ndarray) -> Parts:
    """Cut the tokens of one image; arrays over its tokens in order."""
    whole = np.flatnonzero(small)
    rest = [np.flatnonzero((group == number) & (small == 0)) for number in np.unique(group[small == 0])]
    if not len(whole) or not rest:
        return Parts([np.arange(len(group))], None)
    if len(rest) > 1 or min(y.min(), x.min()) < 0:
        return Parts([whole, *rest], None)
    # a single map into which tiles of the overview's side were joined, some of its border cut off
    joined, side = rest[0], int(y[whole].max()) + 1
    down, across = _tiles(y[joined], side), _tiles(x[joined], side)
    tile = down.of(y[joined]) * across.count + across.of(x[joined])
    show_y = (y[whole] + 0.5) * down.length / side
    show_x = (x[whole] + 0.5) * across.length / (int(x[whole].max()) + 1)
    region = down.of(show_y) * across.count + across.of(show_x)
    return Parts([whole, *(joined[tile == number] for number in range(down.count * across.count))], region)


@dataclass(frozen=True)
class _Axis:
    """One axis of a joined map: its length, tiles along it, and how much of the first one was cut off."""

    length: int
    count: int
    cut: float
    side: int

    def of(self, place: np.ndarray) -> np.ndarray:
        """Number of the tile at a place."""
        made: np.ndarray = np.clip(np.floor((place + self.cut) / self.side), 0, self.count - 1).astype(np.int64)
        return made


def _tiles(places: np.ndarray, side: int) -> _Axis:
    length = int(places.max()) + 1
    count = math.ceil(length / side)
    return _Axis(length, count, (count * side - length) / 2, side)
