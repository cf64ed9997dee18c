"""Pointing for the real-weights model: which tokens should look at which patches, in SmolLM2's tokens.

The side task of `reference/pointing.py`: at the places where an answer is due, two heads of one layer should look at
what is asked about; in a question about two objects they should do so where each is named.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..layout import IMAGE_SIZE
from ..questions import Question
from .processor import GRID

LAYER = 10
_RELATIONS = (" left of", " right of", " above", " below")
Looks = list[tuple[int, torch.Tensor]]


def looks(question: Question, ids: Callable[[str], list[int]], due: range) -> Looks:
    """Return (place in the turn, patches [81] of bool) for a question that says where to look.

    ids: of a text; due: places in the turn that predict a token of the answer
    """
    boxes = [covered(box) for box in question.boxes]
    if len(boxes) == 1:
        return [(place, boxes[0]) for place in due]
    if len(boxes) == 2:
        relation = next(words for words in _RELATIONS if words in question.text)
        named = (question.text.split(relation)[0], question.text.removesuffix("?"))
        return [(len(ids(text)) - 1, box) for text, box in zip(named, boxes, strict=True)]
    return []


def covered(box: tuple[int, int, int, int]) -> torch.Tensor:
    """Return the patches whose middle lies in a box (left, top, right, bottom of 96 pixels), [81] of bool."""
    middle = (torch.arange(GRID) + 0.5) * IMAGE_SIZE / GRID
    left, top, right, bottom = box
    rows, columns = (top <= middle) & (middle < bottom), (left <= middle) & (middle < right)
    return (rows[:, None] & columns).flatten()
