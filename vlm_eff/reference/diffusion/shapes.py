"""Labelled pictures of one coloured shape: what the small diffusion models learn and are judged by.

Ten classes, five shapes in a warm or a cool colour, on a pale background; place, size, turn, hue, brightness and
background are random. Edges are antialiased through the signed distance to the outline, so a picture is a smooth
function of its factors, and a thousand of them take well under a second. A batch belongs to its split and number.
"""

from __future__ import annotations

import zlib

import torch

from ...core.errors import InputError, explain

IMAGE_SIZE = 16
SHAPES = ("disc", "square", "triangle", "ring", "plus")
FAMILIES = ("warm", "cool")
CLASSES = tuple(f"{family} {shape}" for family in FAMILIES for shape in SHAPES)
NULL_CLASS = len(CLASSES)
SPLITS = ("train", "validation", "test")

_HUES = {"warm": (-0.04, 0.14), "cool": (0.46, 0.70)}
_RADIUS = (4.2, 6.0)
_CENTRE_SLACK, _TURN = 1.5, 0.35
# so that a triangle reaches as far as a disc of the same radius looks
_TRIANGLE_INNER, _SQUARE_HALF, _PLUS_ARM = 0.62, 0.85, 0.34
_RING_MIDDLE, _RING_HALF_WIDTH = 0.74, 0.26


def shape_batch(number: int, size: int, split: str = "train") -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pictures and classes that belong to a number of a split: [B, 3, 16, 16] in -1 to 1, and [B] int64.

    Splits are different streams of random numbers, so a held-out picture is never drawn for training.

    Raises:
        InputError: the split is none of `SPLITS`.
    """
    generator = stream(number, split)
    labels = torch.randint(len(CLASSES), (size,), generator=generator)
    return draw_shapes(labels, generator), labels


def stream(number: int, split: str) -> torch.Generator:
    """Return the stream of random numbers that belongs to a number of a split.

    Raises:
        InputError: the split is none of `SPLITS`.
    """
    if split not in SPLITS:
        raise InputError(explain(f"split {split!r}", f"one of {', '.join(SPLITS)}", "use one of them"))
    return torch.Generator().manual_seed(zlib.crc32(f"{split}:{number}".encode()))


def draw_shapes(labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw one picture for each class id in `labels` [B]; returns [B, 3, 16, 16] in -1 to 1."""
    count = len(labels)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator)

    axis = torch.arange(IMAGE_SIZE) + 0.5 - IMAGE_SIZE / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    x = x - uniform(-_CENTRE_SLACK, _CENTRE_SLACK)
    y = y - uniform(-_CENTRE_SLACK, _CENTRE_SLACK)
    radius, turn = uniform(*_RADIUS), uniform(-_TURN, _TURN)
    u, v = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    outlines = torch.stack(_distances(u, v, radius), dim=1)
    shape = labels % len(SHAPES)
    distance = outlines[torch.arange(count), shape]
    cover = (0.5 - distance).clamp(0, 1)[:, None]
    warm = (labels < len(SHAPES)).view(-1, 1, 1)
    hue = torch.where(warm, uniform(*_HUES["warm"]), uniform(*_HUES["cool"]))
    colour = _rgb(hue, uniform(0.75, 1.0), uniform(0.55, 0.95))
    background = _rgb(uniform(0.0, 1.0), uniform(0.0, 0.08), uniform(0.75, 1.0))
    return (background + cover * (colour - background)) * 2 - 1


def _distances(u: torch.Tensor, v: torch.Tensor, radius: torch.Tensor) -> list[torch.Tensor]:
    """Return the signed distances in pixels to the outline of every shape, in the order of `SHAPES`; inside is < 0."""
    far = (u * u + v * v).sqrt()
    across, along = u.abs(), v.abs()
    slope = across * 3**0.5 / 2
    arm = _PLUS_ARM * radius
    return [
        far - radius,
        torch.maximum(across, along) - _SQUARE_HALF * radius,
        torch.maximum(v, slope - v / 2) - _TRIANGLE_INNER * radius,
        (far - _RING_MIDDLE * radius).abs() - _RING_HALF_WIDTH * radius,
        torch.minimum(torch.maximum(across - arm, along - radius), torch.maximum(along - arm, across - radius)),
    ]


def _rgb(hue: torch.Tensor, saturation: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return colours [B, 3, 1, 1] in 0 to 1 for hue (in turns), saturation and value, each [B, 1, 1]."""
    offsets = torch.tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)
    place = (offsets + 6 * hue[:, None]) % 6
    return value[:, None] * (1 - saturation[:, None] * torch.minimum(place, 4 - place).clamp(0, 1))
