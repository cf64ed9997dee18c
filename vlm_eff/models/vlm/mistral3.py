"""Mistral 3 (Pixtral tower): a run of placeholders is a row of patches; break tokens part rows, end tokens images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlm_eff.models.family import Family, add_family
from vlm_eff.models.visual import CellWriter, RowCells, SpanSource, runs
from vlm_eff.models.vlm.square import windows


def _layout(source: SpanSource) -> list[RowCells]:
    rows = []
    for row, mask in enumerate(source.visual):
        writer = CellWriter()
        for image in _images(list(runs(mask)), None if source.ids is None else source.ids[row]):
            writer.next_image()
            writer.grid(np.concatenate(image), len(image[0]))
        rows.append(writer.done())
    return rows


def _images(lines: list[np.ndarray], ids: np.ndarray | None) -> list[list[np.ndarray]]:
    """Join rows that one break token parts. A different token (the end token), another width or a gap begins an image.

    Without ids, or for images of a single row each that follow each other directly, rows of one width are joined.
    """
    images: list[list[np.ndarray]] = []
    separator = None
    for line in lines:
        previous = images[-1][-1] if images else None
        if previous is not None and line[0] - previous[-1] == 2 and len(line) == len(previous):
            token = None if ids is None else ids[previous[-1] + 1]
            if separator is None or token == separator:
                separator = token
                images[-1].append(line)
                continue
        separator = None
        images.append([line])
    return images


def _merged(tower: nn.Module, config: Any, values: Tensor, inputs: dict[str, Any]) -> Tensor:
    """All images are one sequence of patches in the tower; each is merged in windows of its own grid."""
    patch, start, parts = config.vision_config.patch_size, 0, []
    for height, width in torch.as_tensor(inputs["image_sizes"]).tolist():
        rows, columns = height // patch, width // patch
        image = values[start : start + rows * columns]
        parts.append(windows(image, rows, columns, config.spatial_merge_size))
        start += rows * columns
    return torch.cat(parts)


add_family(Family("mistral3", lambda config: _layout, tower_map=_merged))
