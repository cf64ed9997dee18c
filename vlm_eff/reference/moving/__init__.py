"""Deterministic clips of moving shapes with questions that no single frame answers.

What lives here: clips, their questions, and writing them as folders of pictures. What does not: readers and metrics.
Start reading at `clips.py`, then `families.py`.
"""

from .clips import FAMILIES, FPS, VERSION, MovingClip, make_clip, render_clip
from .families import FRAMES, Choice
from .folder import clip_folder, default_folder

__all__ = [
    "FAMILIES", "FPS", "FRAMES", "VERSION", "Choice", "MovingClip", "clip_folder", "default_folder", "make_clip",
    "render_clip",
]  # fmt: skip
