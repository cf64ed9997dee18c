"""LLaVA 1.5 and PaliGemma: one square of patches an image, and images may follow each other directly.

PaliGemma attends both ways inside its prefix; that is in the mask, which the runtime gathers like any other.
"""

from __future__ import annotations

from vlm_eff.models.family import Family, add_family
from vlm_eff.models.vlm.square import patches, squares

for _model_type in ("llava", "paligemma"):
    add_family(Family(_model_type, lambda config: squares(patches(config), an_image_is="tile")))
