"""Frames of a video file as arrays, through one reader; knows no model. Start reading at `reader.py`."""

from vlm_eff.video.clip import Clip
from vlm_eff.video.reader import read_video

__all__ = ["Clip", "read_video"]
