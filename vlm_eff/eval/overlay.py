"""A picture with its kept visual tokens clear and its dropped ones dark."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.core.report import VisualTokens

_DARK = 0.18
_GAP = 8
_BACKGROUND = (255, 255, 255)


def overlay(image: Image.Image, tokens: VisualTokens, number: int = 0, *, side: int = 384) -> Image.Image:
    """Show which visual tokens of image `number` of a row are left.

    image:  the part of the picture that the model sees
    side:   longer side of the drawn picture, pixels
    An image of several tiles is drawn as the picture, followed by the kept cells of each tile: only the processor knows
    which part of the picture a tile shows.

    Raises:
        CapabilityError: the layout of this family does not tell where its tokens lie, or there is no such image.
    """
    here = tokens.image == number
    if not here.any() or int(tokens.y[here].min()) < 0:
        raise CapabilityError(
            explain(
                f"image {number} has no known grid of visual tokens",
                "images whose layout tells rows and columns",
                "Use handle.survivors(layer) for the positions",
            )
        )
    grids = [_grid(tokens, here & (tokens.group == group)) for group in sorted(set(tokens.group[here].tolist()))]
    picture = _fit(image, side)
    if len(grids) == 1:
        return _darken(picture, grids[0])
    plain = Image.new("RGB", picture.size, (200, 200, 200))
    return _row([picture, *(_darken(plain, grid) for grid in grids)])


def _grid(tokens: VisualTokens, which: Tensor) -> np.ndarray:
    """Kept cells of one tile [rows, columns]; cells that are no candidates (newlines) count as dropped."""
    y, x, kept = tokens.y[which], tokens.x[which], tokens.kept[which]
    grid = np.zeros((int(y.max()) + 1, int(x.max()) + 1), dtype=bool)
    grid[y.numpy(), x.numpy()] = kept.numpy()
    return grid


def _fit(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _darken(picture: Image.Image, grid: np.ndarray) -> Image.Image:
    pixels = np.asarray(picture, dtype=np.float32)
    height, width = pixels.shape[:2]
    # each pixel belongs to the cell that it falls into
    rows = np.arange(height) * grid.shape[0] // height
    columns = np.arange(width) * grid.shape[1] // width
    kept = grid[rows[:, None], columns[None, :]]
    return Image.fromarray(np.where(kept[..., None], pixels, pixels * _DARK).astype(np.uint8))


def _row(panels: list[Image.Image]) -> Image.Image:
    width = sum(panel.width + _GAP for panel in panels) - _GAP
    made = Image.new("RGB", (width, max(panel.height for panel in panels)), _BACKGROUND)
    left = 0
    for panel in panels:
        made.paste(panel, (left, 0))
        left += panel.width + _GAP
    return made
