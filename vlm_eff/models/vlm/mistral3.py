"""Mistral 3 (Pixtral tower): a run of placeholders is a row of patches; break tokens part rows, end tokens images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlm_eff.models.family import Family, PatchMap, TowerRun, add_family
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


def _merged(config: Any, run: TowerRun) -> PatchMap:
    """All images are one sequence of patches in the tower; each is merged in windows of its own grid."""
    patch = config.vision_config.patch_size
    grids = [(height // patch, width // patch) for height, width in torch.as_tensor(run.given["image_sizes"]).tolist()]

    def merge(values: Tensor) -> Tensor:
        images = values.split([rows * columns for rows, columns in grids])
        merged = [windows(image, *grid, config.spatial_merge_size) for image, grid in zip(images, grids, strict=True)]
        return torch.cat(merged)

    return merge


add_family(Family("mistral3", lambda config: _layout, _merged))
