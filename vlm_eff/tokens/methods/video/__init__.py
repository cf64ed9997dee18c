"""For videos: what repeats from frame to frame goes. Images in the same prompt are left alone."""

import vlm_eff.models.vlm  # noqa: F401  (registers the families)
from vlm_eff.models.family import video_families

__all__ = ["SERVED"]

SERVED = video_families()
