"""InternVL: tiles of pixel-shuffled patches, all tiles of an image in one run between its markers."""

from __future__ import annotations

from typing import Any

from vlm_eff.models.family import Family, add_family
from vlm_eff.models.visual import Layout
from vlm_eff.models.vlm.square import squares


def _layout(config: Any) -> Layout:
    size, patch = config.vision_config.image_size, config.vision_config.patch_size
    height, width = (size, size) if isinstance(size, int) else size
    tall, wide = (patch, patch) if isinstance(patch, int) else patch
    tile = (height // tall) * (width // wide) * config.downsample_ratio**2
    return squares(int(tile), an_image_is="run")


add_family(Family("internvl", _layout))
