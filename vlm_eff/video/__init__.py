"""Frames of a video as arrays, through one reader; knows no model. Start reading at `reader.py`."""

from vlm_eff.video.clip import Clip
from vlm_eff.video.reader import read_video
from vlm_eff.video.sampling import Sampling

__all__ = ["Clip", "Sampling", "read_video"]
