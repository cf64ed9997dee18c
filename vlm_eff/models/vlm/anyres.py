"""Which patches the tokens of LLaVA-NeXT and LLaVA-OneVision come from: tiles joined to one map, unpadded, resized.

The model cuts padding off the joined map by the image's original size, which `generate` shows to nobody but the
model's own functions. The map that arrived in the prompt tells its height and width; where that leaves several ways to
cut, a few channels of the projected patches are compared with the tokens, and the way that fits is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vlm_eff.models.family import PatchMap, TowerRun


@dataclass(frozen=True)
class Cut:
    """Tiles of a joined map, and the rows and columns of patches that are cut off at each of its sides."""

    rows: int
    columns: int
    top: int = 0
    left: int = 0

    @property
    def tiles(self) -> int:
        return self.rows * self.columns


def anyres(config: Any, run: TowerRun) -> PatchMap | None:
    """Base tile and joined map of each image, pooled frames of each video; None when the run is of other images."""
    if run.probe is None:
        return None
    side, tile, token, parts = config.vision_config.image_size // config.vision_config.patch_size, 0, 0, []
    for groups in run.images():
        is_image = groups[0] == (side, side)
        for place, (height, width) in enumerate(groups):
            rest, here = run.probe[tile:], run.tokens[token : token + height * width]
            if not is_image:
                part, used = partial(_resized, height=height, width=width, side=side), 1
            elif place == 0:
                part, used = partial(_plain), 1
            else:
                cut = _best_cut(config, side, (height, width), rest, here)
                if cut is None:
                    return None
                part, used = partial(_joined, cut=cut, height=height, width=width, side=side), cut.tiles
            parts.append((tile, tile + used, part))
            tile, token = tile + used, token + height * width
    if tile != len(run.probe):
        return None

    def bring(values: Tensor) -> Tensor:
        tiles = values.view(-1, side * side, values.shape[-1])
        return torch.cat([part(tiles[start:stop]) for start, stop, part in parts])

    return bring


def _best_cut(config: Any, side: int, size: tuple[int, int], probe: Tensor, tokens: Tensor) -> Cut | None:
    """The way to cut the tiles at the front of `probe` that gives `tokens` [height * width, c]."""
    cuts = [cut for cut in cuts_to(config, side, *size) if cut.tiles <= len(probe)]
    if len(cuts) < 2:
        return cuts[0] if cuts else None
    height, width = size

    def off(cut: Cut) -> float:
        made = _joined(probe[: cut.tiles], cut=cut, height=height, width=width, side=side)
        return float((made.float() - tokens.float()).abs().sum())

    return min(cuts, key=off)


def cuts_to(config: Any, side: int, height: int, width: int) -> Iterator[Cut]:
    """All ways in which tiles of `side` patches can become a map of `height` x `width` tokens, without repeats."""
    made = {}
    for tall, wide in config.image_grid_pinpoints:
        rows, columns = tall // config.vision_config.image_size, wide // config.vision_config.image_size
        for top in range(rows * side // 2 + 1):
            made[Cut(rows, columns, top, 0)] = None
        for left in range(columns * side // 2 + 1):
            made[Cut(rows, columns, 0, left)] = None
    for cut in made:
        tall, wide = cut.rows * side - 2 * cut.top, cut.columns * side - 2 * cut.left
        if tall > 0 and wide > 0 and _after_resize(config, side, tall, wide) == (height, width):
            yield cut


def _after_resize(config: Any, side: int, height: int, width: int) -> tuple[int, int]:
    """LLaVA-OneVision shrinks a map of more than so many tiles."""
    aspect = getattr(config, "vision_aspect_ratio", None)
    if aspect is None:
        return height, width
    ratio = math.sqrt(height * width / (int(aspect.removeprefix("anyres_max_")) * side**2))
    return (int(height // ratio), int(width // ratio)) if ratio > 1.1 else (height, width)


def _plain(tiles: Tensor) -> Tensor:
    return tiles[0]


def _joined(tiles: Tensor, *, cut: Cut, height: int, width: int, side: int) -> Tensor:
    """Tiles [n, side * side, C] laid side by side, cut, and brought to [height * width, C]."""
    grid = tiles.view(cut.rows, cut.columns, side, side, -1).transpose(1, 2)
    grid = grid.reshape(cut.rows * side, cut.columns * side, -1)
    grid = grid[cut.top : grid.shape[0] - cut.top, cut.left : grid.shape[1] - cut.left]
    return grid.flatten(0, 1) if grid.shape[:2] == (height, width) else _shrunk(grid, height, width)


def _resized(tiles: Tensor, *, height: int, width: int, side: int) -> Tensor:
    return _shrunk(tiles[0].view(side, side, -1), height, width)


def _shrunk(grid: Tensor, height: int, width: int) -> Tensor:
    """The mean with which the model itself shrinks a map: the weights of bilinear resizing."""
    channels = grid.permute(2, 0, 1)[None]
    return interpolate(channels, size=(height, width), mode="bilinear")[0].flatten(1).T
