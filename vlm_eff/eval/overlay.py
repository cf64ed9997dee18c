"""A picture with its kept visual tokens clear, its dropped ones dark, and a line around those that stand for others."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.core.report import VisualTokens

_DARK = 0.18
_GAP = 8
_BACKGROUND = (255, 255, 255)
_MERGED = (255, 140, 0)
# of the weights of merged tokens, which are sums of shares
_ROUNDING = 1e-3


def overlay(
    image: Image.Image,
    tokens: VisualTokens,
    number: int = 0,
    *,
    side: int = 384,
    group: int | None = None,
    clear: Tensor | None = None,
) -> Image.Image:
    """Show which visual tokens of image `number` of a row are left.

    image:  the part of the picture that the model sees
    side:   longer side of the drawn picture, pixels
    group:  one tile or frame alone, of which `image` is the picture
    A cell whose token stands for others too, which were merged into it, has an outline.
    clear:  [n] in place of `tokens.kept`: 1 is clear, 0 as dark as what was dropped
    An image of several tiles is drawn as the picture, followed by the kept cells of each tile: only the processor knows
    which part of the picture a tile shows.

    Raises:
        CapabilityError: the layout of this family does not tell where its tokens lie, or there is no such image.
    """
    here = tokens.image == number
    here = here if group is None else here & (tokens.group == group)
    if not here.any() or int(tokens.y[here].min()) < 0:
        raise CapabilityError(
            explain(
                f"image {number} has no known grid of visual tokens",
                "images whose layout tells rows and columns",
                "Use handle.survivors(layer) for the positions",
            )
        )
    shade = (tokens.kept if clear is None else clear).float()
    groups = sorted(set(tokens.group[here].tolist()))
    which = [here & (tokens.group == one) for one in groups]
    grids = [(_grid(tokens, one, shade), _grid(tokens, one, tokens.weight)) for one in which]
    picture = fitted(image, side)
    if len(grids) == 1:
        return _outline(_darken(picture, grids[0][0]), grids[0][1])
    plain = Image.new("RGB", picture.size, (200, 200, 200))
    return _row([picture, *(_outline(_darken(plain, kept), weight) for kept, weight in grids)])


def _grid(tokens: VisualTokens, which: Tensor, shade: Tensor) -> np.ndarray:
    """How clear each cell of one tile is [rows, columns]; those of no candidate (newlines) count as dropped."""
    y, x = tokens.y[which], tokens.x[which]
    grid = np.zeros((int(y.max()) + 1, int(x.max()) + 1), dtype=np.float32)
    grid[y.numpy(), x.numpy()] = shade[which].numpy()
    return grid


def fitted(image: Image.Image, side: int) -> Image.Image:
    """The picture, its longer side `side` pixels, as `overlay` draws it."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _darken(picture: Image.Image, grid: np.ndarray) -> Image.Image:
    pixels = np.asarray(picture, dtype=np.float32)
    height, width = pixels.shape[:2]
    # each pixel belongs to the cell that it falls into
    rows = np.arange(height) * grid.shape[0] // height
    columns = np.arange(width) * grid.shape[1] // width
    # exactly 1 where the cell is clear
    light = 1 - (1 - _DARK) * (1 - grid[rows[:, None], columns[None, :]])
    return Image.fromarray((pixels * light[..., None]).astype(np.uint8))


def _outline(picture: Image.Image, weight: np.ndarray) -> Image.Image:
    """A line around every cell that stands for more than one token."""
    pen = ImageDraw.Draw(picture)
    rows, columns = weight.shape
    for y, x in np.argwhere(weight > 1 + _ROUNDING):
        left, right = picture.width * x // columns, picture.width * (x + 1) // columns
        top, bottom = picture.height * y // rows, picture.height * (y + 1) // rows
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=_MERGED, width=2)
    return picture


def _row(panels: list[Image.Image]) -> Image.Image:
    width = sum(panel.width + _GAP for panel in panels) - _GAP
    made = Image.new("RGB", (width, max(panel.height for panel in panels)), _BACKGROUND)
    left = 0
    for panel in panels:
        made.paste(panel, (left, 0))
        left += panel.width + _GAP
    return made
