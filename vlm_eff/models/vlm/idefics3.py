"""Idefics3 and SmolVLM: every tile is a run of its own between text tags, so tile and image are one here."""

from __future__ import annotations

from typing import Any

from vlm_eff.models.family import Family, PatchMap, TowerRun, add_family
from vlm_eff.models.vlm.square import squares, windows


def _shuffled(config: Any, run: TowerRun) -> PatchMap:
    side = config.vision_config.image_size // config.vision_config.patch_size
    return lambda values: windows(values, side, side, config.scale_factor)


for _model_type in ("idefics3", "smolvlm"):
    add_family(Family(_model_type, lambda config: squares(None, an_image_is="run"), _shuffled))
