"""Taylor expansion of what a unit returns, by finite differences of what it returned before."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.diffusion.policies import check_count
from vlm_eff.diffusion.predictors import weighted
from vlm_eff.models.denoise.view import UnitView


@part
@dataclass(frozen=True)
class Taylor:
    """Sum of D_m k^m / m! for m up to `order`, k steps behind the last computed one (TaylorSeer).

    D_0 is the last output, and D_{m+1} the difference of D_m to what it was one computed step before, over the steps
    between. Exact on what is linear in the step. Backward differences are no derivatives: of higher degrees something
    is left over, and `Polynomial`, with divided differences, leaves nothing.
    """

    order: int = 1
    sees_inputs = False

    def __post_init__(self) -> None:
        check_count("order", self.order, 0)

    @property
    def depth(self) -> int:
        return self.order + 1

    def __call__(self, view: UnitView) -> tuple[Tensor, ...]:
        past = view.history[-self.depth :]
        places = [one.abscissa("index") for one in past]
        here = float(view.step.index)
        known: dict[tuple[float, ...], list[float]] = {}
        rows = []
        for row in range(len(places[0])):
            own = tuple(place[row] for place in places)
            if own not in known:
                known[own] = expansion(here, own)
            rows.append(known[own])
        return tuple(weighted([one.value[stream] for one in past], rows) for stream in range(len(past[-1].value)))


def expansion(here: float, places: tuple[float, ...]) -> list[float]:
    """Weights of values at `places` (oldest first) in the expansion around the last of them, at `here`.

    Values at places that occur again later weigh nothing.
    """
    kept = [i for i, place in enumerate(places) if place not in places[i + 1 :]]
    differences: list[list[float]] = []
    before = places[kept[0]]
    for i in kept:
        now = [[1.0 if j == i else 0.0 for j in range(len(places))]]
        for old in differences:
            now.append([(a - b) / (places[i] - before) for a, b in zip(now[-1], old, strict=True)])
        differences, before = now, places[i]
    ahead = here - places[-1]
    factors = [ahead**m / math.factorial(m) for m in range(len(differences))]
    return [sum(f * row[j] for f, row in zip(factors, differences, strict=True)) for j in range(len(places))]
