"""Reuse of attention inside a band of the run: how often each kind is computed, and what stands in for it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.denoise import Step
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.diffusion.policies import check_count
from vlm_eff.diffusion.predictors import weighted
from vlm_eff.models.denoise.view import UnitView


@part
@dataclass(frozen=True)
class InBand:
    """Computes every `interval`-th step between two places of the run, and all steps outside.

    intervals: of each kind of module; others are always computed
    start, stop: shares of the run's steps, 0 to 1, or with `timesteps` of the 1000 timesteps that it comes down from
    """

    intervals: tuple[tuple[str, int], ...]
    start: float
    stop: float
    timesteps: bool = False

    def __post_init__(self) -> None:
        for kind, interval in self.intervals:
            check_count(kind, interval, 1)
        if not 0 <= self.start <= self.stop <= 1:
            raise ConfigError(
                explain(f"a band from {self.start} to {self.stop}", "0 <= start <= stop <= 1", "Correct the two shares")
            )

    def __call__(self, view: UnitView, change: Tensor | None, forced: bool) -> bool:
        step = view.step
        interval = next((number for kind, number in self.intervals if kind == view.unit.kind), 1)
        if self.timesteps:
            inside = 1000 * (1 - self.stop) < step.timestep < 1000 * (1 - self.start)
        else:
            inside = self.start <= share(step) < self.stop
        return inside and step.index % interval != 0


@part
@dataclass(frozen=True)
class Rising:
    """The last value and a part of its change since the one before, which grows through the run (FasterCache).

    o = o_t + w (o_t - o_before), w from 0 at the share `start` of the run's steps to 1 at `stop`. Where only one
    value is known it is reused.
    """

    start: float
    stop: float
    depth = 2
    sees_inputs = False

    def __call__(self, view: UnitView) -> tuple[Tensor, ...]:
        past = view.history[-2:]
        weight = min(max((share(view.step) - self.start) / max(self.stop - self.start, 1e-6), 0.0), 1.0)
        rows = [[-weight, 1 + weight]] * len(past[-1].steps) if len(past) == 2 else [[1.0]] * len(past[-1].steps)
        return tuple(weighted([one.value[stream] for one in past], rows) for stream in range(len(past[-1].value)))


def share(step: Step) -> float:
    """Share of the run's steps that are done."""
    return step.index / step.count
