"""One clip: which story a number of a split tells, and its frames as pixels, the same on every machine."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ..layout import IMAGE_SIZE, SPLITS
from ..scenes import SceneObject, draw_shape
from .families import STORIES, Choice, Frames

# raised when a number gives another clip or other questions
VERSION = "1"
FPS = 4.0
FAMILIES = tuple(STORIES)


@dataclass(frozen=True)
class MovingClip:
    """What is seen in each of the frames, and what is asked about it."""

    number: int
    split: str
    family: str
    background: tuple[int, int, int]
    frames: Frames
    questions: tuple[Choice, ...]


def make_clip(number: int, split: str = "train") -> MovingClip:
    """The clip of a number; families take turns, and 192 clips in a row have every answer and letter equally often.

    Raises:
        ValueError: an unknown split, or a number below 0.
    """
    if split not in SPLITS:
        raise ValueError(f"got split {split!r}; accepted are {', '.join(SPLITS)}; use one of them")
    if number < 0:
        raise ValueError(f"got number {number}; accepted is 0 and above; change it")
    rng = random.Random(f"moving:{VERSION}:{split}:{number}")
    family = FAMILIES[number % len(FAMILIES)]
    frames, questions = STORIES[family](rng, number // len(FAMILIES))
    background = tuple(rng.randint(228, 255) for _ in range(3))
    return MovingClip(number, split, family, background, frames, questions)


def render_clip(clip: MovingClip) -> np.ndarray:
    """The frames of a clip, [T, 96, 96, 3] uint8."""
    return np.stack([_render(items, clip.background) for items in clip.frames])


def _render(items: tuple[SceneObject, ...], background: tuple[int, int, int]) -> np.ndarray:
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), background)
    draw = ImageDraw.Draw(image)
    for item in items:
        left, top, right, bottom = item.box
        for across in _shifts(left, right):
            for down in _shifts(top, bottom):
                box = (left + across, top + down, right + across, bottom + down)
                draw_shape(draw, SceneObject(item.shape, item.colour, item.size, box), background)
    return np.asarray(image)


def _shifts(begin: int, end: int) -> tuple[int, ...]:
    """Where else an object is drawn that reaches over an edge: its other part comes in on the other side."""
    return (0, *((IMAGE_SIZE,) if begin < 0 else ()), *((-IMAGE_SIZE,) if end > IMAGE_SIZE else ()))
