"""A gate in the run, behind which the prompt no longer matters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.denoise import Step
from vlm_eff.diffusion.guidance import check_fraction
from vlm_eff.diffusion.policies import check_count
from vlm_eff.models.denoise.view import UnitView


@part
@dataclass(frozen=True)
class Gated:
    """Computes cross attention up to the gate, and self attention every `interval`-th step before it and always behind.

    gate: share of the run's steps      warm_up: steps at the beginning in which all is computed
    """

    gate: float
    warm_up: int
    interval: int

    def __post_init__(self) -> None:
        check_fraction("gate", self.gate)
        check_count("warm_up", self.warm_up, 1)
        check_count("interval", self.interval, 1)

    def __call__(self, view: UnitView, change: Tensor | None, forced: bool) -> bool:
        step = view.step
        if view.unit.kind == "cross":
            return step.index > gate_step(self.gate, step)
        before = self.warm_up <= step.index < gate_step(self.gate, step)
        return before and (step.index - self.warm_up) % self.interval != 0


@part
@dataclass(frozen=True)
class GuidedToGate:
    """Guides up to the gate, a share of the run's steps, and no more behind it."""

    gate: float
    looks = False

    def __call__(self, view: UnitView) -> bool:
        return view.step.index <= gate_step(self.gate, view.step)


def gate_step(gate: float, step: Step) -> int:
    """0-based step of the gate in this run."""
    return int(gate * step.count)
