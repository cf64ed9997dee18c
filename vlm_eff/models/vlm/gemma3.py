"""Gemma 3: 256 pooled tokens an image between its markers; sliding and full layers, image blocks seen both ways."""

from __future__ import annotations

from vlm_eff.models.family import Family, add_family
from vlm_eff.models.vlm.square import squares

add_family(Family("gemma3", lambda config: squares(config.mm_tokens_per_image, an_image_is="tile")))
