"""What each patch shows: extra supervision for the vision tower while it is trained, thrown away afterwards."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .glyphs import CHARACTERS
from .model import PATCH_SIZE
from .scenes import COLOURS, IMAGE_SIZE, SHAPES, SIZES, WORDS, Scene

SIDE = IMAGE_SIZE // PATCH_SIZE
IGNORE = -100
# classes of each head over patches; class 0 is "none of these"
HEADS = {
    "shape": 1 + len(SHAPES),
    "colour": 1 + len(COLOURS),
    "size": 1 + len(SIZES),
    "digit": 11,
    "letter": 1 + 26,
    "word": 1 + len(WORDS),
    "centre": 4,  # none, object, word, digit
}
NAMES = tuple(HEADS)
# whole-picture classes read from the CLS token: which shapes, colours, words and digits are there
GLOBAL_CLASSES = len(SHAPES) + len(COLOURS) + len(WORDS) + 10

_SHAPE = {name: index for index, name in enumerate(SHAPES)}
_COLOUR = {name: index for index, name in enumerate(COLOURS)}
_SIZE = {name: index for index, name in enumerate(SIZES)}
_WORD = {name: index for index, name in enumerate(WORDS)}
_LETTER = {name.lower(): index for index, name in enumerate(c for c in CHARACTERS if c.isalpha())}


def patch_targets(scene: Scene) -> np.ndarray:
    """Return the class of every patch under every head, [heads, patches]."""
    target = np.zeros((len(HEADS), SIDE, SIDE), dtype=np.int64)
    for item in scene.objects:
        rows, columns = covered_patches(item.box)
        target[0, rows, columns] = 1 + _SHAPE[item.shape]
        target[1, rows, columns] = 1 + _COLOUR[item.colour]
        target[2, rows, columns] = 1 + _SIZE[item.size]
        _mark_centre(target, item.box, 1)
    if scene.word is not None:
        left, top, right, bottom = scene.word.box
        rows, columns = covered_patches(scene.word.box)
        target[5, rows, columns] = 1 + _WORD[scene.word.text]
        step = (right - left) / len(scene.word.text)
        for place, letter in enumerate(scene.word.text):
            box = (round(left + place * step), top, round(left + (place + 1) * step), bottom)
            rows, columns = covered_patches(box)
            target[4, rows, columns] = 1 + _LETTER[letter]
        _mark_centre(target, scene.word.box, 2)
    if scene.digit is not None:
        rows, columns = covered_patches(scene.digit.box)
        target[3, rows, columns] = 1 + int(scene.digit.text)
        _mark_centre(target, scene.digit.box, 3)
    return target.reshape(len(HEADS), SIDE * SIDE)


def global_targets(scene: Scene) -> np.ndarray:
    """Return which shapes, colours, words and digits a picture holds, [classes] of 0 and 1."""
    target = np.zeros(GLOBAL_CLASSES, dtype=np.float32)
    for item in scene.objects:
        target[_SHAPE[item.shape]] = 1
        target[len(SHAPES) + _COLOUR[item.colour]] = 1
    if scene.word is not None:
        target[len(SHAPES) + len(COLOURS) + _WORD[scene.word.text]] = 1
    if scene.digit is not None:
        target[len(SHAPES) + len(COLOURS) + len(WORDS) + int(scene.digit.text)] = 1
    return target


def global_targets_of_shape(shape: str | None, colour: str | None) -> np.ndarray:
    """Return the same for a picture of one known shape and colour, -1 where a name is not known."""
    target = np.zeros(GLOBAL_CLASSES, dtype=np.float32)
    for names, start, name in ((_SHAPE, 0, shape), (_COLOUR, len(SHAPES), colour)):
        if name is None:
            target[start : start + len(names)] = -1
        else:
            target[start + names[name]] = 1
    return target


class DenseHead(nn.Module):
    """Linear readers of patch and CLS outputs of the tower; never saved with the model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.patches = nn.Linear(width, sum(HEADS.values()))
        self.whole = nn.Linear(width, GLOBAL_CLASSES)

    def forward(
        self, features: torch.Tensor, patch_target: torch.Tensor, global_target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the two losses for tower outputs [B, 1 + patches, D]."""
        features = self.norm(features)
        logits = self.patches(features[:, 1:]).split(tuple(HEADS.values()), dim=-1)
        losses = []
        for index, part in enumerate(logits):
            target = patch_target[:, index]
            # patches that show something are rare and matter more
            losses.append(_balanced(part.flatten(0, 1), target.flatten()))
        whole = self.whole(features[:, 0])
        known = (global_target >= 0).float()
        bce = F.binary_cross_entropy_with_logits(whole, global_target.clamp(min=0), reduction="none")
        return torch.stack(losses).mean(), (bce * known).sum() / known.sum().clamp(min=1)


def _balanced(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in which empty and filled patches weigh half each."""
    loss = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
    means = []
    for part in ((target > 0).float(), (target == 0).float()):
        means.append((loss * part).sum() / part.sum().clamp(min=1))
    return 0.5 * (means[0] + means[1])


def covered_patches(box: tuple[int, int, int, int]) -> tuple[slice, slice]:
    """Return the rows and columns of patches of which a box covers at least a fair part along each axis."""
    left, top, right, bottom = box
    slices = []
    for low, high in ((top, bottom), (left, right)):
        first, last = (low + 5) // PATCH_SIZE, (high - 6) // PATCH_SIZE + 1
        centre = (low + high) // 2 // PATCH_SIZE
        first, last = min(first, centre), max(last, centre + 1)
        slices.append(slice(max(0, first), min(SIDE, last)))
    return slices[0], slices[1]


def _mark_centre(target: np.ndarray, box: tuple[int, int, int, int], kind: int) -> None:
    left, top, right, bottom = box
    row, column = (top + bottom) // 2 // PATCH_SIZE, (left + right) // 2 // PATCH_SIZE
    target[6, min(row, SIDE - 1), min(column, SIDE - 1)] = kind
