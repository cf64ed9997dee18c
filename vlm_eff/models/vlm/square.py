"""The layout most families share: squares of tokens, one after the other in unbroken runs of placeholders."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from vlm_eff.models.family import PatchMap, TowerRun
from vlm_eff.models.visual import CellWriter, Layout, RowCells, SpanSource, runs, square_side


def squares(tile: int | None, *, an_image_is: Literal["run", "tile"]) -> Layout:
    """Layout of tiles of `tile` tokens each (None: every run is one tile).

    an_image_is: "run" when markers part the images, "tile" when images may follow each other directly.
    A run that is no whole number of tiles is taken as one; a tile that is no square has no known grid.
    """

    def layout(source: SpanSource) -> list[RowCells]:
        rows = []
        for mask in source.visual:
            writer = CellWriter()
            for run in runs(mask):
                size = tile if tile and len(run) % tile == 0 else len(run)
                for start in range(0, len(run), size):
                    if start == 0 or an_image_is == "tile":
                        writer.next_image()
                    # the thumbnail follows the tiles of its image
                    last = an_image_is == "run" and 0 < start == len(run) - size
                    writer.grid(run[start : start + size], square_side(size), overview=last)
            rows.append(writer.done())
        return rows

    return layout


def patches(config: Any) -> int | None:
    """Patches of one image of a tower with a fixed input size, or None."""
    size, patch = getattr(config.vision_config, "image_size", None), getattr(config.vision_config, "patch_size", None)
    return (size // patch) ** 2 if isinstance(size, int) and isinstance(patch, int) else None


def one_to_one(config: Any, run: TowerRun) -> PatchMap:
    """Every patch is a token."""
    return lambda values: values


def windows(values: Tensor, height: int, width: int, side: int) -> Tensor:
    """Mean over `side` x `side` windows of images of `height` x `width` patches [n * patches, C] -> [n * tokens, C]."""
    grid = values.view(-1, height // side, side, width // side, side, values.shape[-1])
    return grid.mean((2, 4)).flatten(0, 2)
