"""When a unit is computed, by what was seen or is known to change."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.denoise import DenoiseContext
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.diffusion.calibration import MagnitudeTable
from vlm_eff.diffusion.policies import check_count, check_threshold
from vlm_eff.diffusion.schedules import Bound
from vlm_eff.diffusion.step_cache import Policy
from vlm_eff.models.denoise.view import UnitView


@part
@dataclass(frozen=True)
class WhileBelow:
    """Predicts rows as long as their change is below `threshold`; what is not a number is computed."""

    threshold: float

    def __post_init__(self) -> None:
        check_threshold("threshold", self.threshold)

    def __call__(self, view: UnitView, change: Tensor | None, forced: bool) -> bool | Tensor:
        return False if change is None else change < self.threshold


@part
@dataclass(frozen=True)
class WhileSumBelow:
    """Predicts rows as long as the changes since they were computed last add up to less than `threshold`."""

    threshold: float

    def __post_init__(self) -> None:
        check_threshold("threshold", self.threshold)

    def __call__(self, view: UnitView, change: Tensor | None, forced: bool) -> bool | Tensor:
        renewed = view.renewed("sum")
        if change is None:
            return False
        total = view.notes.get("sum")
        if total is None or all(renewed):
            total = torch.zeros_like(change)
        elif any(renewed):
            total = total.masked_fill(torch.tensor(renewed, device=total.device), 0.0)
        view.notes["sum"] = total = total + change
        return total < self.threshold


@part
@dataclass(frozen=True)
class BothPredict:
    """Predicts where both of two policies do."""

    schedule: Policy
    veto: Policy

    def bound(self, method: str, context: DenoiseContext) -> None:
        """Tell both, see `Bound`."""
        for policy in (self.schedule, self.veto):
            if isinstance(policy, Bound):
                policy.bound(method, context)

    def __call__(self, view: UnitView, change: Tensor | None, forced: bool) -> bool | Tensor:
        # both are asked in any case, since they may count
        one, other = self.schedule(view, change, forced), self.veto(view, change, forced)
        if isinstance(one, bool):
            return other if one else False
        return (one & other) if isinstance(other, Tensor) else (one if other else False)


@part
@dataclass(frozen=True)
class WhileMagnitudesHold:
    """Predicts as long as the residual's size, as calibrated, has not drifted more than `threshold` in all.

    max_skip:  steps in a row that are predicted at most
    retention: share of the run at its beginning that is computed, 0 to 1
    """

    table: MagnitudeTable
    threshold: float
    max_skip: int
    retention: float

    def __post_init__(self) -> None:
        check_threshold("threshold", self.threshold)
        check_count("max_skip", self.max_skip, 1)
        check_threshold("retention", self.retention)
        if self.retention > 1:
            raise ConfigError(explain(f"retention={self.retention!r}", "a share of 0 to 1", "Correct the number"))

    def bound(self, method: str, context: DenoiseContext) -> None:
        """Refuse another model or scheduler than the calibration's."""
        self.table.made.check(context)

    def __call__(self, view: UnitView, change: Tensor | None, forced: bool) -> bool:
        index, count = view.step.index, view.step.count
        if index < int(self.retention * count + 0.5):
            return False
        size, error, skipped = view.notes.get("drift", (1.0, 0.0, 0))
        if any(view.renewed("drift")):
            size, error, skipped = 1.0, 0.0, 0
        size *= self.table.ratio(index, count, view.branch)
        error, skipped = error + abs(1 - size), skipped + 1
        view.notes["drift"] = (size, error, skipped)
        return error < self.threshold and skipped <= self.max_skip
