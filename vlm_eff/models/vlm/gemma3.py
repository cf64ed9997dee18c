"""Gemma 3: 256 pooled tokens an image between its markers; sliding and full layers, image blocks seen both ways."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vlm_eff.models.family import Family, add_family
from vlm_eff.models.vlm.square import squares, windows


def _pooled(tower: nn.Module, config: Any, values: Tensor, inputs: dict[str, Any]) -> Tensor:
    side = config.vision_config.image_size // config.vision_config.patch_size
    return windows(values, side, side, side // round(config.mm_tokens_per_image**0.5))


add_family(Family("gemma3", lambda config: squares(config.mm_tokens_per_image, an_image_is="tile"), tower_map=_pooled))
