"""Gemma 3: 256 pooled tokens an image between its markers; sliding and full layers, image blocks seen both ways."""

from __future__ import annotations

from typing import Any

from vlm_eff.models.family import Family, PatchMap, TowerRun, add_family
from vlm_eff.models.vlm.square import squares, windows


def _pooled(config: Any, run: TowerRun) -> PatchMap:
    side = config.vision_config.image_size // config.vision_config.patch_size
    window = side // round(config.mm_tokens_per_image**0.5)
    return lambda values: windows(values, side, side, window)


add_family(
    Family("gemma3", lambda config: squares(config.mm_tokens_per_image, an_image_is="tile"), _pooled, both_ways=True)
)
