"""Deterministic scenes: coloured shapes, one word and one digit on a pale square, with questions about them.

A scene is drawn from `random.Random(f"{split}:{seed}")`. Training uses the split "train" only; "validation" and "test"
are other streams of random numbers, so no held-out scene is ever drawn for training (positions alone have more than
10^6 settings for two objects). Pixels are the same on every machine: shapes are drawn without antialiasing.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .glyphs import text_mask
from .layout import CELL_SIZE, CELLS, COLOURS, GRID, IMAGE_SIZE, SHAPES, SIZES, SPLITS, WORDS, cell_name
from .questions import FAMILIES, Question, questions

__all__ = [
    "CELLS", "COLOURS", "FAMILIES", "IMAGE_SIZE", "SHAPES", "SIZES", "SPLITS", "WORDS",
    "Question", "Scene", "SceneObject", "SceneText", "draw_shape", "make_scene", "questions", "render",
]  # fmt: skip

_CENTRE_SLACK = {"small": 6, "large": 3}
_WORD_SCALE, _WORD_GAP, _DIGIT_SCALE = 2, 1, 3


@dataclass(frozen=True)
class SceneObject:
    """One coloured shape; `box` is left, top, right, bottom in pixels, ends excluded."""

    shape: str
    colour: str
    size: str
    box: tuple[int, int, int, int]

    @property
    def cell(self) -> str:
        """Name of the grid cell that holds the centre."""
        return cell_name(self.box)


@dataclass(frozen=True)
class SceneText:
    """A word or a digit written in dark pixels; `box` as in `SceneObject`."""

    text: str
    shade: int
    box: tuple[int, int, int, int]

    @property
    def cell(self) -> str:
        """Name of the grid cell that holds the centre."""
        return cell_name(self.box)


@dataclass(frozen=True)
class Scene:
    """Everything that is in one picture."""

    seed: int
    split: str
    background: tuple[int, int, int]
    objects: tuple[SceneObject, ...]
    word: SceneText | None
    digit: SceneText | None


def make_scene(seed: int, split: str = "train", max_objects: int = 4) -> Scene:
    """Draw the scene that belongs to a seed of a split: 1 to `max_objects` objects, each item in its own cell."""
    if split not in SPLITS:
        raise ValueError(f"got split {split!r}; accepted are {', '.join(SPLITS)}; use one of them")
    if not 1 <= max_objects <= 7:
        raise ValueError(f"got max_objects={max_objects}; accepted is 1 to 7 (nine cells, two for text); change it")
    rng = random.Random(f"{split}:{seed}")
    cells = rng.sample(range(GRID * GRID), GRID * GRID)
    objects: list[SceneObject] = []
    for _ in range(rng.randint(1, max_objects)):
        # repeats make counting and telling apart worth asking
        colour = rng.choice(objects).colour if objects and rng.random() < 0.3 else rng.choice(tuple(COLOURS))
        shape = rng.choice(objects).shape if objects and rng.random() < 0.3 else rng.choice(SHAPES)
        size = rng.choice(tuple(SIZES))
        radius, slack = SIZES[size], _CENTRE_SLACK[size]
        x, y = _cell_centre(cells.pop())
        x, y = x + rng.randint(-slack, slack), y + rng.randint(-slack, slack)
        objects.append(SceneObject(shape, colour, size, (x - radius, y - radius, x + radius, y + radius)))
    word = digit = None
    if rng.random() < 0.6:
        word = _place_text(rng, rng.choice(WORDS), _WORD_SCALE, cells.pop(), (0, 6))
    if rng.random() < 0.6:
        digit = _place_text(rng, str(rng.randrange(10)), _DIGIT_SCALE, cells.pop(), (6, 4))
    background = tuple(rng.randint(228, 255) for _ in range(3))
    return Scene(seed, split, background, tuple(objects), word, digit)


def render(scene: Scene) -> Image.Image:
    """Draw a scene as an RGB picture of 96x96 pixels."""
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), scene.background)
    draw = ImageDraw.Draw(image)
    for item in scene.objects:
        draw_shape(draw, item, scene.background)
    for text, scale in ((scene.word, _WORD_SCALE), (scene.digit, _DIGIT_SCALE)):
        if text is not None:
            mask = _mask_image(text.text, scale)
            draw.bitmap(text.box[:2], mask, fill=(text.shade,) * 3)
    return image


def _cell_centre(cell: int) -> tuple[int, int]:
    row, column = divmod(cell, GRID)
    return column * CELL_SIZE + CELL_SIZE // 2, row * CELL_SIZE + CELL_SIZE // 2


def _place_text(rng: random.Random, text: str, scale: int, cell: int, slack: tuple[int, int]) -> SceneText:
    height, width = text_mask(text, scale, _WORD_GAP).shape
    x, y = _cell_centre(cell)
    left = x - width // 2 + rng.randint(-slack[0], slack[0])
    top = y - height // 2 + rng.randint(-slack[1], slack[1])
    return SceneText(text, rng.randint(0, 50), (left, top, left + width, top + height))


def _mask_image(text: str, scale: int) -> Image.Image:
    return Image.fromarray(text_mask(text, scale, _WORD_GAP).astype(np.uint8) * 255)


def draw_shape(draw: ImageDraw.ImageDraw, item: SceneObject, background: tuple[int, int, int]) -> None:
    """Draw one object into its box, which may reach over the edge; the hole of a ring has the background's colour."""
    left, top, right, bottom = item.box
    right, bottom = right - 1, bottom - 1  # PIL counts the last pixel in
    colour = COLOURS[item.colour]
    radius = SIZES[item.size]
    x, y = left + radius, top + radius
    if item.shape == "rectangle":
        draw.rectangle((left, top, right, bottom), fill=colour)
    elif item.shape == "circle":
        draw.ellipse((left, top, right, bottom), fill=colour)
    elif item.shape == "ring":
        draw.ellipse((left, top, right, bottom), fill=colour)
        hole = radius // 2
        draw.ellipse((x - hole, y - hole, x + hole - 1, y + hole - 1), fill=background)
    elif item.shape == "triangle":
        draw.polygon(((left, bottom), (right, bottom), (x, top)), fill=colour)
    elif item.shape == "cross":
        arm = max(2, radius // 3)
        draw.rectangle((x - arm, top, x + arm - 1, bottom), fill=colour)
        draw.rectangle((left, y - arm, right, y + arm - 1), fill=colour)
    else:  # star
        points = []
        for corner in range(10):
            reach = (radius - 1) * (1.0 if corner % 2 == 0 else 0.42)
            angle = math.pi * (corner / 5 - 0.5)
            points.append((x - 0.5 + reach * math.cos(angle), y - 0.5 + reach * math.sin(angle)))
        draw.polygon(points, fill=colour)
