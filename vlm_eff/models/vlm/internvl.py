"""InternVL: tiles of pixel-shuffled patches, all tiles of an image in one run between its markers."""

from __future__ import annotations

from typing import Any

from vlm_eff.models.family import Family, PatchMap, TowerRun, add_family
from vlm_eff.models.visual import Layout
from vlm_eff.models.vlm.square import squares, windows


def _grid(config: Any) -> tuple[int, int]:
    size, patch = config.vision_config.image_size, config.vision_config.patch_size
    height, width = (size, size) if isinstance(size, int) else size
    tall, wide = (patch, patch) if isinstance(patch, int) else patch
    return height // tall, width // wide


def _layout(config: Any) -> Layout:
    height, width = _grid(config)
    return squares(int(height * width * config.downsample_ratio**2), an_image_is="run")


def _shuffled(config: Any, run: TowerRun) -> PatchMap:
    return lambda values: windows(values, *_grid(config), round(1 / config.downsample_ratio))


add_family(Family("internvl", _layout, _shuffled, class_token=True))
