"""Tiny models of every supported family and matching inputs, built by hand so that no download is needed.

`UNSUPPORTED` lists what the unmodified models themselves cannot do, found by experiment.
"""

from tests.tiny.batch import TinyInputs, row, tiny_inputs, visual_layout, visual_mask
from tests.tiny.media import VIDEOS
from tests.tiny.models import FAMILIES, tiny_vlm

VIDEO_FAMILIES = tuple(VIDEOS)
_OVERFLOW = "eager adds the smallest float64 and takes the softmax in float32, so fully masked padding rows become NaN"
_LAST_COLUMN = "generate continues from the last column, which is padding in the shorter rows"
UNSUPPORTED: dict[tuple[str, str], str] = {
    # PaliGemma's padding rows see the whole prefix, so none of them is fully masked.
    **{(family, "eager-float64-left"): _OVERFLOW for family in FAMILIES if family != "paligemma"},
    ("gemma3", "eager-float64-right"): _OVERFLOW + " (here behind the sliding window)",
    **{(family, "generate-right"): _LAST_COLUMN for family in FAMILIES},
}

__all__ = [
    "FAMILIES",
    "UNSUPPORTED",
    "VIDEO_FAMILIES",
    "TinyInputs",
    "row",
    "tiny_inputs",
    "tiny_vlm",
    "visual_layout",
    "visual_mask",
]
