"""Idefics3 and SmolVLM: every tile is a run of its own between text tags, so tile and image are one here."""

from __future__ import annotations

from vlm_eff.models.family import Family, add_family
from vlm_eff.models.vlm.square import squares

for _model_type in ("idefics3", "smolvlm"):
    add_family(Family(_model_type, lambda config: squares(None, an_image_is="run")))
