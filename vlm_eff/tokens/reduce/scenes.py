"""Merge what stands still within each scene of a video, then what is alike within each picture (PruneVid)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.core.action import Action
from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.importance import keep as budget
from vlm_eff.importance.cluster import dpc_knn
from vlm_eff.importance.segments import cut_by_density, frame_vectors, mean_pairwise
from vlm_eff.models.view import View
from vlm_eff.tokens.films import Film, films
from vlm_eff.tokens.reduce.written import Contents


@dataclass(frozen=True)
class _Picture:
    """Tokens that are merged among one another: states [N, D], what each stands for [N], candidate columns [N]."""

    hidden: Tensor
    weight: Tensor
    column: Tensor


@part
@dataclass(frozen=True)
class SceneMerge:
    """Places that hardly change in a scene become one token each; then the tokens of a picture are clustered.

    A picture is the scene's unchanging places, or what is left of one frame. A merged token stands where the first of
    a place's tokens, or its cluster's centre, stood. The stage's `Keep` says how many clusters a picture gets.

    scenes:     scenes as a fraction of the frames, rounded down, at least one
    static:     a place is unchanging when the mean cosine of its tokens to one another is above this
    least:      pictures with no more tokens than this are not clustered
    neighbours: tokens that make the density of a clustering
    """

    scenes: float = 0.25
    static: float = 0.8
    least: int = 14
    neighbours: int = 7

    def __post_init__(self) -> None:
        for name, low, high in (("scenes", 0, 1), ("static", -1, 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ConfigError(explain(f"{name}={value!r}", f"a number from {low} to {high}", f"Correct {name}"))
        for name, low in (("least", 0), ("neighbours", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ConfigError(explain(f"{name}={value!r}", f"a whole number of at least {low}", f"Correct {name}"))

    def __call__(self, view: View, keep: budget.Keep, chosen: Tensor | None) -> Action | None:
        spans = view.spans
        made = Contents.of(view, spans.valid & ~spans.video)
        for film in films(spans):
            x = film.values(made.hidden)
            vectors = frame_vectors(x, film.present)
            for scene in cut_by_density(vectors, int(len(x) * self.scenes), self.neighbours):
                part = slice(scene.start, scene.stop)
                for picture in self._pictures(x[part], film.column[part]):
                    self._cluster(made, film, picture, keep)
        # nothing was merged: leave the sequence untouched, bit for bit
        return None if bool((made.keep | ~spans.valid).all()) else made.merge()

    def _pictures(self, x: Tensor, column: Tensor) -> list[_Picture]:
        """The unchanging places of one scene, averaged over it, and what else each of its frames holds."""
        present = column >= 0
        still = (mean_pairwise(x, present) > self.static) & (present.sum(0) > 1)
        rest = present & ~still
        pictures = [
            _Picture(x[frame, rest[frame]], x.new_ones(int(rest[frame].sum())), column[frame, rest[frame]])
            for frame in range(len(x))
        ]
        if bool(still.any()):
            count = present[:, still].sum(0)
            first = present[:, still].to(torch.int8).argmax(0)
            seat = column[:, still].gather(0, first[None])[0]
            # a sum of absent tokens' zeros and the others, over the others
            pictures.insert(0, _Picture(x[:, still].sum(0) / count[:, None], count.to(x.dtype), seat))
        return pictures

    def _cluster(self, made: Contents, film: Film, picture: _Picture, keep: budget.Keep) -> None:
        size = len(picture.column)
        if size <= self.least:
            made.write(film.row, picture.column, picture.hidden, picture.weight)
            return
        exists = torch.ones(1, size, dtype=torch.bool, device=picture.hidden.device)
        clusters = keep.of_count(size, size)
        centre = dpc_knn(picture.hidden[None], clusters, self.neighbours, exists)[1][0]
        total = torch.zeros_like(picture.hidden).index_add_(0, centre, picture.hidden * picture.weight[:, None])
        weight = torch.zeros_like(picture.weight).index_add_(0, centre, picture.weight)
        seat = centre.unique()
        made.write(film.row, picture.column[seat], total[seat] / weight[seat, None], weight[seat])
