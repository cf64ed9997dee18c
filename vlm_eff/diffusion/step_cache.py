"""The engine of step caches: signal x policy x predictor x site."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.denoise import DenoiseContext, DenoisePlugin, DenoiseSite, Predict
from vlm_eff.core.plugin import BindContext
from vlm_eff.core.resources import Resource
from vlm_eff.diffusion.schedules import Bound
from vlm_eff.models.denoise.view import UnitView


class Signal(Protocol):
    """How much a unit changes at this step, without computing it."""

    @property
    def depth(self) -> int:
        """How many computed outputs it looks at."""
        ...

    @property
    def sees_inputs(self) -> bool:
        """Whether it looks at what they were computed from."""
        ...

    def __call__(self, view: UnitView) -> Tensor | None:
        """Change of each row [R], float32; None while nothing can be said. Asked at every step."""
        ...


class Policy(Protocol):
    """When a unit is predicted."""

    def __call__(self, view: UnitView, change: Tensor | None, forced: bool) -> bool | Tensor:
        """True to predict, one answer or one a row [R]; `forced` says that it will be computed whatever the answer.

        Asked at every step, so that it can count and add up in `view.notes`.
        """
        ...


class Predictor(Protocol):
    """What a unit returns when it is not computed."""

    @property
    def depth(self) -> int:
        """How many computed outputs it needs."""
        ...

    @property
    def sees_inputs(self) -> bool:
        """Whether it needs what they were computed from."""
        ...

    def __call__(self, view: UnitView) -> tuple[Tensor, ...]:
        """The unit's streams, each [R, ...], from what was computed before (at least once)."""
        ...


@part
@dataclass(frozen=True)
class StepCache(DenoisePlugin):
    """Skips work of the denoiser at some steps and predicts what it would have returned.

    site:      what is skipped                 policy: when it is computed
    predictor: what stands in for it           signal: what the policy is told of this step, None for fixed schedules
    warm_up:   steps at the beginning that are computed in any case, at least 1
    cool_down: steps at the end that are, too
    per_row:   rows of a batch are decided on their own; they are computed apart when at least half of them is predicted
    """

    method: str
    site: DenoiseSite
    policy: Policy
    predictor: Predictor
    signal: Signal | None = None
    warm_up: int = 1
    cool_down: int = 0
    per_row: bool = False
    resource: str = field(default="DENOISER_STEPS", repr=False)

    @property
    def name(self) -> str:
        return self.method

    @property
    def sites(self) -> tuple[DenoiseSite, ...]:
        return (self.site,)

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset({Resource[self.resource]})

    @property
    def depth(self) -> int:
        return max(self.predictor.depth, self.signal.depth if self.signal else 1)

    @property
    def sees_inputs(self) -> bool:
        return self.predictor.sees_inputs or bool(self.signal and self.signal.sees_inputs)

    def bind(self, context: BindContext) -> StepCache:
        for piece in (self.signal, self.policy, self.predictor):
            if isinstance(piece, Bound) and isinstance(context, DenoiseContext):
                piece.bound(self.method, context)
        return self

    def at(self, site: DenoiseSite, view: UnitView) -> Predict | None:
        step = view.step
        early, late = step.index < max(self.warm_up, 1), step.index >= step.count - self.cool_down
        forced = early or late or not view.history
        change = self.signal(view) if self.signal is not None else None
        skip = self.policy(view, change, forced)
        if forced:
            return None
        if isinstance(skip, bool):
            return Predict(self.predictor(view)) if skip else None
        return self._by_row(view, skip)

    def _by_row(self, view: UnitView, skip: Tensor) -> Predict | None:
        # the decision is needed on the host: one wait a step
        chosen = skip.tolist()
        if all(chosen):
            return Predict(self.predictor(view))
        if not self.per_row or 2 * sum(chosen) < len(chosen):
            return None
        return Predict(self.predictor(view), torch.as_tensor(chosen, device=view.inputs.device))
