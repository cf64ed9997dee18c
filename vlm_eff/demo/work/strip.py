"""Frames side by side, with what stands under each of them."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_GAP, _LINE = 8, 18
_INK, _PAPER = (40, 40, 40), (255, 255, 255)


def strip(panels: Sequence[Image.Image], labels: Sequence[str]) -> Image.Image:
    """Panels from left to right and top to bottom, each with its label below it: 4 a row, or 8 of more than 12."""
    width, height = max(one.width for one in panels), max(one.height for one in panels)
    across = min(8 if len(panels) > 12 else 4, len(panels))
    down = -(-len(panels) // across)
    sheet = Image.new("RGB", (across * (width + _GAP) + _GAP, down * (height + _LINE + _GAP) + _GAP), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for place, (panel, label) in enumerate(zip(panels, labels, strict=True)):
        left = _GAP + place % across * (width + _GAP)
        top = _GAP + place // across * (height + _LINE + _GAP)
        sheet.paste(panel, (left, top))
        pen.text((left, top + height + 2), label, fill=_INK, font=font)
    return sheet
