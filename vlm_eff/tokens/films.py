"""Videos as tables of frames and places, however many of their tokens are left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlm_eff.importance.similarity import cosine
from vlm_eff.models.view import View
from vlm_eff.models.visual import VisualSpans


@dataclass(frozen=True)
class Film:
    """One video of one row.

    row, image: which row of the batch, and the video's number there
    frames:     [F] number of each frame in the video, of those with a token left
    groups:     [F] their group numbers in the spans
    column:     [F, P] candidate column at each place of each frame, -1 where that token is gone
    """

    row: int
    image: int
    frames: tuple[int, ...]
    groups: tuple[int, ...]
    column: Tensor

    @property
    def present(self) -> Tensor:
        """Which tokens are left [F, P]."""
        return self.column >= 0

    def values(self, table: Tensor) -> Tensor:
        """Entries of `table` [B, V, ...] at each frame and place [F, P, ...]; zeros where the token is gone."""
        taken = table[self.row, self.column.clamp(min=0)]
        return taken.masked_fill(~self.present.view(*self.column.shape, *[1] * (taken.dim() - 2)), 0)


def films(spans: VisualSpans) -> list[Film]:
    """Every video of a batch, row by row.

    A place is a row and column of the frame; where the layout does not tell these, it is the order in the frame.
    """
    image, group, frame, y, x, video = (
        t.cpu().numpy() for t in (spans.image, spans.group, spans.frame, spans.y, spans.x, spans.video)
    )
    made = []
    for row in range(len(video)):
        for number in np.unique(image[row][video[row]]):
            at = np.flatnonzero(video[row] & (image[row] == number))
            numbers, first, line = np.unique(frame[row, at], return_index=True, return_inverse=True)
            if y[row, at].min() >= 0:
                place = y[row, at] * (int(x[row, at].max()) + 1) + x[row, at]
            else:
                place = np.arange(len(at)) - first[line]
            column = np.full((len(numbers), int(place.max()) + 1), -1)
            column[line, place] = at
            table = torch.from_numpy(column).to(spans.slot.device)
            made.append(Film(row, int(number), tuple(numbers.tolist()), tuple(group[row, at[first]].tolist()), table))
    return made


def spread_back(view: View, parts: list[tuple[Film, Tensor]]) -> Tensor:
    """Values of films [F, P] as one table of the candidates [B, V] float32; 0 for those that are in no video."""
    made = torch.zeros(view.spans.slot.shape, device=view.spans.slot.device)
    for film, values in parts:
        made[film.row, film.column[film.present]] = values[film.present].float()
    return made


def novelty(x: Tensor, present: Tensor, reference: list[int], first: float) -> Tensor:
    """1 - cosine of each token to the same place in its reference frame [F, P] float32, in [0, 2].

    x: [F, P, D]; present: [F, P]; reference: number of the frame that each frame is held against, -1 for none
    first: the value of tokens that have nothing to be held against
    """
    other = torch.tensor([max(frame, 0) for frame in reference], device=x.device)
    alone = torch.tensor([frame < 0 for frame in reference], device=x.device)
    made = 1 - cosine(x, x[other])
    return torch.where(present & present[other] & ~alone[:, None], made, first)
