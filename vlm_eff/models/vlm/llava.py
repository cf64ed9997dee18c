"""LLaVA 1.5 and PaliGemma: one square of patches an image, and images may follow each other directly.

PaliGemma attends both ways inside its prefix; that is in the mask, which the runtime gathers like any other.
"""

from __future__ import annotations

from typing import Any

from vlm_eff.models.family import Family, add_family
from vlm_eff.models.visual import Layout
from vlm_eff.models.vlm.square import one_to_one, patches, squares


def _layout(config: Any) -> Layout:
    return squares(patches(config), an_image_is="tile")


add_family(Family("llava", _layout, one_to_one, class_token=True, projector="multi_modal_projector"))
add_family(Family("paligemma", _layout, one_to_one, both_ways=True))
