"""When a unit is computed: by the number of the step, or by what was seen to change."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.models.denoise.view import UnitView


@part
@dataclass(frozen=True)
class Every:
    """Computes every `interval`-th step, from `start` on; 1 computes all."""

    interval: int
    start: int = 0

    def __post_init__(self) -> None:
        check_count("interval", self.interval, 1)
        check_count("start", self.start, 0)

    def __call__(self, view: UnitView, change: Tensor | None, forced: bool) -> bool:
        index = view.step.index
        return index > self.start and (index - self.start) % self.interval != 0


@part
@dataclass(frozen=True)
class EvenSteps:
    """Computes `evaluations` steps of a run, as evenly spread as they can be, the first among them."""

    evaluations: int

    def __post_init__(self) -> None:
        check_count("evaluations", self.evaluations, 1)

    def __call__(self, view: UnitView, change: Tensor | None, forced: bool) -> bool:
        return view.step.index not in even_steps(view.step.count, self.evaluations)


@part
@dataclass(frozen=True)
class AtSteps:
    """Computes the steps that are listed, of a run of `count` steps; in a run of another length their nearest places.

    steps: 0-based
    """

    steps: tuple[int, ...]
    count: int

    def __post_init__(self) -> None:
        check_count("count", self.count, 1)
        if not self.steps or not all(0 <= step < self.count for step in self.steps):
            raise ConfigError(
                explain(f"steps={self.steps!r} of {self.count}", "steps from 0 to count - 1", "Correct the list")
            )

    def __call__(self, view: UnitView, change: Tensor | None, forced: bool) -> bool:
        index, count = view.step.index, view.step.count
        return index not in {round(step * (count - 1) / max(self.count - 1, 1)) for step in self.steps}


def even_steps(count: int, evaluations: int) -> set[int]:
    """Steps of an even grid, with step 0; all of them where there are no more than `evaluations`."""
    return {number * count // min(evaluations, count) for number in range(min(evaluations, count))}


def check_count(name: str, value: object, least: int) -> None:
    """Raise `ConfigError` unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(explain(f"{name}={value!r}", f"a whole number of at least {least}", "Correct the number"))
