"""Naming: every visual token that shows something should lie near the words for it, before the decoder has seen it.

A side task of training without weights of its own: the projected visual tokens are read through the decoder's word
embeddings. It gives the decoder's attention something to match questions with from the start.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast

from .dense import IGNORE, SIDE, covered_patches
from .layout import COLOURS, SHAPES, SIZES, WORDS, cell_index
from .scenes import Scene

# each group is one choice between words; a patch takes part where its target is not IGNORE
GROUPS: dict[str, tuple[str, ...]] = {
    "kind": ("background", "object", "word", "digit"),
    "row": ("top", "middle", "bottom"),
    "column": ("left", "center", "right"),
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "word": WORDS,
    "digit": tuple("0123456789"),
}
_KIND, _ROW, _COLUMN, _SHAPE, _COLOUR, _SIZE, _WORD, _DIGIT = range(len(GROUPS))


def naming_targets(scene: Scene) -> np.ndarray:
    """Return the right word of every group for every patch, [groups, patches]."""
    target = np.full((len(GROUPS), SIDE, SIDE), IGNORE, dtype=np.int64)
    target[_KIND] = 0
    for item in scene.objects:
        place = _mark(target, item.box, 1)
        target[(_SHAPE, *place)] = SHAPES.index(item.shape)
        target[(_COLOUR, *place)] = GROUPS["colour"].index(item.colour)
        target[(_SIZE, *place)] = GROUPS["size"].index(item.size)
    if scene.word is not None:
        target[(_WORD, *_mark(target, scene.word.box, 2))] = WORDS.index(scene.word.text)
    if scene.digit is not None:
        target[(_DIGIT, *_mark(target, scene.digit.box, 3))] = int(scene.digit.text)
    return target.reshape(len(GROUPS), SIDE * SIDE)


def word_ids(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Return the token ids of the words of each group."""
    return [tokenizer.convert_tokens_to_ids(list(words)) for words in GROUPS.values()]


def naming_loss(
    visual: torch.Tensor, embeddings: torch.Tensor, ids: list[list[int]], target: torch.Tensor
) -> torch.Tensor:
    """Return the mean loss over groups for projected visual tokens [B, V, D] and targets [B, groups, V]."""
    visual = F.rms_norm(visual, visual.shape[-1:])
    losses = []
    for group, words in enumerate(ids):
        wanted = target[:, group]
        shown = wanted != IGNORE
        if group == _KIND:
            # background is most of a picture: all items together count as much as it does
            loss = F.cross_entropy(visual[shown] @ embeddings[words].T, wanted[shown], reduction="none")
            item = (wanted[shown] > 0).float()
            parts = [(loss * part).sum() / part.sum().clamp(min=1) for part in (item, 1 - item)]
            losses.append(0.5 * (parts[0] + parts[1]))
        elif bool(shown.any()):
            losses.append(F.cross_entropy(visual[shown] @ embeddings[words].T, wanted[shown]))
    return torch.stack(losses).mean()


def _mark(target: np.ndarray, box: tuple[int, int, int, int], kind: int) -> tuple[slice, slice]:
    place = covered_patches(box)
    target[(_KIND, *place)] = kind
    target[(_ROW, *place)], target[(_COLUMN, *place)] = cell_index(box)
    return place
