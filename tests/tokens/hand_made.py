"""Views made by hand, for the parts that look at candidates and hidden states alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlm_eff.models.view import View
from vlm_eff.models.visual import VisualSpans


def hand_view(rows: Sequence[Sequence[int]], hidden: Tensor | None = None, depth: int = 6, **more: Any) -> View:
    """Row i has one image of `rows[i][j]` tokens after another, behind two words; no grid is known.

    hidden: [B, V, D] of the candidates, default random; more: other fields of the view
    """
    width = max(sum(images) for images in rows)
    image = torch.zeros(len(rows), width, dtype=torch.long)
    valid = torch.zeros(len(rows), width, dtype=torch.bool)
    counts = torch.zeros(len(rows), max(len(images) for images in rows), dtype=torch.long)
    for row, images in enumerate(rows):
        numbers = [number for number, size in enumerate(images) for _ in range(size)]
        image[row, : len(numbers)], valid[row, : len(numbers)] = torch.tensor(numbers, dtype=torch.long), True
        counts[row, : len(images)] = torch.tensor(images)
    slot = (torch.arange(width) + 2).expand(len(rows), -1) * valid
    unknown = torch.full_like(image, -1)
    spans = VisualSpans(slot, valid, image, image, unknown, unknown)
    if hidden is None:
        hidden = torch.randn(len(rows), width, depth, generator=torch.Generator().manual_seed(0))
    words = hidden.new_ones(len(rows), 2, hidden.shape[2])
    whole = torch.cat([words, hidden, words], 1)
    fields = dict.fromkeys(View.__dataclass_fields__) | {
        "layer": 0,
        "spans": spans,
        "hidden": whole,
        "physical": spans.slot,
        "original": spans.count,
        "image_original": lambda: counts,
    }
    return View(**fields | more)  # type: ignore[arg-type]
