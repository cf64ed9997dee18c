"""When a unit is computed: by the number of the step, or by what was seen to change."""

from __future__ import annotations

import math
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
class QuadraticSteps:
    """Computes as many steps of a run as every `interval`-th would be, closest together around `centre`.

    They lie at centre + u^power (signed) for even u, as in DeepCache (arXiv:2312.00858, section 3.3); the first step is
    among them.

    centre: place in the run as a share of its steps, 0 to 1      power: 1 is uniform
    """

    interval: int
    centre: float = 0.3
    power: float = 1.4

    def __post_init__(self) -> None:
        check_count("interval", self.interval, 1)
        if not 0.0 <= self.centre <= 1.0 or self.power < 1.0:
            raise ConfigError(
                explain(
                    f"centre={self.centre!r} and power={self.power!r}",
                    "a centre from 0 to 1 and a power of at least 1",
                    "Correct the numbers",
                )
            )

    def __call__(self, view: UnitView, change: Tensor | None, forced: bool) -> bool:
        count = view.step.count
        return view.step.index not in quadratic_steps(count, -(-count // self.interval), self.centre, self.power)


@part
@dataclass(frozen=True)
class AtSteps:
    """Computes the steps that are listed.

    steps: 0-based      count: steps of the run they were made for; in runs of another length their nearest places are
    taken. None takes them as they are in every run
    """

    steps: tuple[int, ...]
    count: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        if self.count is not None:
            check_count("count", self.count, 1)
        for step in self.steps:
            check_count("steps", step, 0)
        if not self.steps or (self.count is not None and max(self.steps) >= self.count):
            raise ConfigError(
                explain(f"steps={self.steps!r} of {self.count}", "steps from 0 to count - 1", "Correct the list")
            )

    def __call__(self, view: UnitView, change: Tensor | None, forced: bool) -> bool:
        index, count = view.step.index, view.step.count
        if self.count is None or self.count == count:
            return index not in self.steps
        return index not in {round(step * (count - 1) / max(self.count - 1, 1)) for step in self.steps}


def even_steps(count: int, evaluations: int) -> set[int]:
    """Steps of an even grid, with step 0; all of them where there are no more than `evaluations`."""
    return {number * count // min(evaluations, count) for number in range(min(evaluations, count))}


def quadratic_steps(count: int, evaluations: int, centre: float, power: float) -> set[int]:
    """As many steps of 0 to count - 1 as asked, densest around `centre` (a share of the run), with step 0."""
    middle = centre * count
    low, high = -(middle ** (1 / power)), (count - middle) ** (1 / power)
    found = {0}
    for number in range(1, evaluations):
        u = low + (high - low) * number / evaluations
        place = math.floor(1e-9 + middle + math.copysign(abs(u) ** power, u))
        # where several fall on one step the nearest free ones are taken
        free = sorted(set(range(count)) - found, key=lambda step: (abs(step - place), step))
        found |= set(free[:1])
    return found


def check_count(name: str, value: object, least: int) -> None:
    """Raise `ConfigError` unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(explain(f"{name}={value!r}", f"a whole number of at least {least}", "Correct the number"))


def check_threshold(name: str, value: object) -> None:
    """Raise `ConfigError` unless `value` is a number of at least 0."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
        raise ConfigError(explain(f"{name}={value!r}", "a number of at least 0", "Correct the number"))
