"""The pictures that the small diffusion models learn: repeatable, split, and what their class says."""

from __future__ import annotations

import pytest
import torch

from vlm_eff.core.errors import InputError
from vlm_eff.reference.diffusion import CLASSES, IMAGE_SIZE, NULL_CLASS, shape_batch
from vlm_eff.reference.diffusion.shapes import SHAPES, draw_shapes, stream


def test_a_batch_is_repeatable_and_in_range() -> None:
    pictures, labels = shape_batch(7, 20)
    again, same = shape_batch(7, 20)
    assert pictures.shape == (20, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert torch.equal(pictures, again) and torch.equal(labels, same)
    assert pictures.min() >= -1 and pictures.max() <= 1
    assert NULL_CLASS == len(CLASSES) == 10


def test_splits_and_numbers_differ() -> None:
    train = shape_batch(0, 8)[0]
    for other in (shape_batch(1, 8), shape_batch(0, 8, "validation"), shape_batch(0, 8, "test")):
        assert not torch.equal(train, other[0])
    with pytest.raises(InputError, match="Accepted: one of train"):
        shape_batch(0, 8, "holdout")


def test_the_family_decides_the_colour() -> None:
    labels = torch.arange(len(CLASSES)).repeat(20)
    pictures = draw_shapes(labels, stream(0, "test"))
    # the pixel that is furthest from its grey is inside the shape
    colourful = (pictures.amax(1) - pictures.amin(1)).flatten(1).argmax(1)
    red, _, blue = pictures.flatten(2)[torch.arange(len(labels)), :, colourful].T
    assert torch.equal(red > blue, labels < len(SHAPES))


def test_the_shape_decides_the_outline() -> None:
    covered = {}
    for shape, name in enumerate(SHAPES):
        pictures = draw_shapes(torch.full((200,), shape), stream(3, "test"))
        inside = (pictures.amax(1) - pictures.amin(1)) > 0.5
        covered[name] = inside.float().mean((1, 2)).mean().item()
        middle = inside[:, 7:9, 7:9].float().mean().item()
        assert (middle < 0.5) == (name == "ring")
    assert covered["disc"] > covered["square"] > covered["ring"]
    assert covered["square"] > covered["triangle"] and covered["square"] > covered["plus"]
