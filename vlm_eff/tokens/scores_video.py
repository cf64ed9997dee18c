"""Scores of video tokens by what changes: against the frame before, inside a window, against the frame itself.

Tokens of images score 0; the selections of `select_video.py` never let them go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.plugin import Observation
from vlm_eff.importance.segments import frame_vectors
from vlm_eff.importance.similarity import cosine
from vlm_eff.models.view import View
from vlm_eff.tokens.films import films, novelty, spread_back

# larger than any 1 - cosine: what has nothing to be held against is new (EVS uses 255 too)
NEW = 255.0


@part
@dataclass(frozen=True)
class FrameNovelty:
    """1 - cosine to the same place in the frame before; the first frame is new altogether (EVS)."""

    def needs(self, layer: int) -> tuple[Observation, ...]:
        return ()

    def __call__(self, view: View) -> Tensor:
        return _against(view, lambda frame: frame - 1)


@part
@dataclass(frozen=True)
class WindowNovelty:
    """1 - cosine to the same place in another frame of a window: in fours, 1 and 2 against 0, 3 against 2 (DyCoke)."""

    def needs(self, layer: int) -> tuple[Observation, ...]:
        return ()

    def __call__(self, view: View) -> Tensor:
        return _against(view, references)


def _against(view: View, reference: Callable[[int], int]) -> Tensor:
    """How new each video token is against the same place in another frame: `reference(frame)`, -1 for none."""
    hidden, parts = view.visual_hidden(), []
    for film in films(view.spans):
        frames = [reference(number) for number in range(len(film.frames))]
        parts.append((film, novelty(film.values(hidden), film.present, frames, NEW)))
    return spread_back(view, parts)


def references(frame: int) -> int:
    """The frame that `frame` is held against in its window of four, -1 for the window's first."""
    return -1 if frame % 4 == 0 else frame - (2 if frame % 4 == 2 else 1)


@part
@dataclass(frozen=True)
class FrameOutlier:
    """1 - cosine to the frame's mean token, plus the token's length between the frame's shortest and longest (V-CAST).

    A frame whose tokens are all of one length adds 0.
    """

    def needs(self, layer: int) -> tuple[Observation, ...]:
        return ()

    def __call__(self, view: View) -> Tensor:
        hidden = view.visual_hidden()
        parts = []
        for film in films(view.spans):
            x = film.values(hidden)
            away = 1 - cosine(x, frame_vectors(x, film.present)[:, None])
            length = x.float().norm(dim=-1)
            low = length.masked_fill(~film.present, torch.inf).amin(1, keepdim=True)
            high = length.amax(1, keepdim=True)
            span = high - low
            parts.append((film, away + torch.where(span > 0, (length - low) / span.clamp(min=1e-30), 0.0)))
        return spread_back(view, parts)
