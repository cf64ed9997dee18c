"""Part of the budget for what scores best, the rest for what is not like the others (VisPruner)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import Observation, TowerFeatures
from vlm_eff.importance.dedupe import distinct
from vlm_eff.importance.keep import Keep
from vlm_eff.importance.select import ranks
from vlm_eff.models.view import View

# tokens of the image that `step` was chosen for
_USUAL = 576


@part
@dataclass(frozen=True)
class BestAndDistinct:
    """The best tokens of each image, and of its others those that are left when near copies are taken out.

    important: share of the budget that goes by score, [0, 1], rounded down
    step:      copies that go in one round from an image of up to 576 tokens; larger images lose proportionally more, so
               that the number of rounds does not grow
    Likeness is the cosine of features before the projector where it works token by token, else of hidden states.
    """

    important: float = 0.5
    step: int = 8

    def __post_init__(self) -> None:
        if isinstance(self.important, bool) or not 0 <= self.important <= 1:
            raise ConfigError(explain(f"important={self.important!r}", "a fraction in [0, 1]", "Give the share"))
        if isinstance(self.step, bool) or not isinstance(self.step, int) or self.step < 1:
            raise ConfigError(explain(f"step={self.step!r}", "a whole number of at least 1", "Give a number of tokens"))

    def needs(self, layer: int) -> tuple[Observation, ...]:
        return () if self.important == 1 else (TowerFeatures(),)

    def __call__(self, scores: Tensor, view: View, keep: Keep) -> Tensor:
        spans, made = view.spans, torch.zeros_like(view.spans.valid)
        order = ranks(scores, spans.valid).argsort(dim=1)
        chosen: dict[tuple[int, int], list[tuple[int, Tensor]]] = defaultdict(list)
        sizes = view.image_original().tolist()
        for row, images in enumerate(sizes):
            ranked = order[row][spans.valid[row][order[row]]]
            for image in range(len(images)):
                own = ranked[spans.image[row, ranked] == image]
                total = keep.of_count(images[image], len(own)) if len(own) else 0
                best = int(total * self.important + 1e-9)
                made[row, own[:best]] = True
                if total > best:
                    # lists of one length and one goal are thinned together
                    chosen[(len(own) - best, total - best)].append((row, own[best:]))
        if chosen:
            features = view.tower_features(TowerFeatures())
            for (_, count), lists in chosen.items():
                for (row, own), places in zip(lists, self._left(features, lists, count), strict=True):
                    made[row, own[places]] = True
        return made

    def _left(self, features: Tensor, lists: list[tuple[int, Tensor]], count: int) -> Tensor:
        stacked = torch.stack([features[row, own] for row, own in lists])
        step = max(self.step, self.step * stacked.shape[1] // _USUAL)
        return distinct(stacked, count, step)

    def expected(self, kept: float, current: float) -> float:
        return kept
