"""Pictures of several runs side by side, with what differs from the first one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

_SIDE, _GAP, _TEXT = 192, 8, 14
_AMPLIFIED = 4.0


def contact_sheet(pictures: Sequence[Tensor], labels: Sequence[str]) -> Image.Image:
    """One row a run: its picture, and its difference to the first run, four times as strong around grey.

    pictures: [B, 3, H, W] in -1 to 1, of which the first of each batch is shown; labels: one a run
    """
    rows = len(pictures)
    width, height = 2 * _SIDE + 3 * _GAP, rows * (_SIDE + _TEXT + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (made, label) in enumerate(zip(pictures, labels, strict=True)):
        top = _GAP + row * (_SIDE + _TEXT + _GAP)
        pen.text((_GAP, top), label, fill="black")
        difference = (made[:1] - pictures[0][:1]) * _AMPLIFIED if row else torch.zeros_like(made[:1])
        for column, shown in enumerate((made[:1], difference) if row else (made[:1],)):
            sheet.paste(to_image(shown[0], _SIDE), (_GAP + column * (_SIDE + _GAP), top + _TEXT))
    return sheet


def to_image(picture: Tensor, side: int | None = None) -> Image.Image:
    """A picture [3, H, W] in -1 to 1; with `side`, scaled so that its longer edge is that long."""
    pixels = picture.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(pixels)
    if side is None:
        return image
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # small pictures are shown pixel by pixel
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
