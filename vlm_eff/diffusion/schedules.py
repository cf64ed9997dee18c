"""Schedules that were found for one model and are used for later runs: saved, checked, guarded."""

from __future__ import annotations

import dataclasses
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.denoise import DenoiseContext
from vlm_eff.core.errors import ConfigError, InputError, explain
from vlm_eff.core.files import write_file
from vlm_eff.diffusion.policies import AtSteps
from vlm_eff.models.denoise.view import UnitView

Band = tuple[tuple[float, float], ...]


class CalibrationWarning(UserWarning):
    """A schedule is used where it was not calibrated."""


@runtime_checkable
class Bound(Protocol):
    """A policy that wants to know which pipeline it is for."""

    def bound(self, method: str, context: DenoiseContext) -> None:
        """Told once, at attach."""
        ...


@part
@dataclass(frozen=True)
class CalibratedSteps(AtSteps):
    """`AtSteps` that knows what it was calibrated for, and warns where it is used for something else.

    method, model, scheduler: names of the method, the denoiser's class and the scheduler's class
    """

    method: str = ""
    model: str = ""
    scheduler: str = ""

    def bound(self, method: str, context: DenoiseContext) -> None:
        """Warn when the method, model or scheduler is another one."""
        here = {"method": method, "model": context.family, "scheduler": context.scheduler}
        known = {name: getattr(self, name) for name in here}
        other = [f"{name} {here[name]}, not {known[name]}" for name in here if here[name] != known[name]]
        if other:
            text = f"this schedule is used with {' and '.join(other)}: its error is not known there. Calibrate again"
            warnings.warn(text, CalibrationWarning, stacklevel=3)

    def __call__(self, view: UnitView, change: Tensor | None, forced: bool) -> bool:
        count = view.step.count
        if count != self.count and "schedule_mapped_from" not in view.call.figures:
            view.call.figures["schedule_mapped_from"] = float(self.count or 0)
            text = f"a schedule calibrated for {self.count} steps is stretched to {count}. Calibrate for {count}"
            warnings.warn(text, CalibrationWarning, stacklevel=2)
        return super().__call__(view, change, forced)


@part
@dataclass(frozen=True)
class Guarded:
    """A policy whose steps are computed all the same where the denoiser's input moves unlike in calibration.

    What is watched is mean|x_i - x_(i-1)| / mean|x_(i-1)| of the latents that the denoiser is called with; the row of
    the batch that moved most decides. The report's notes count under "guarded" how often a prediction was given up.

    policy: when to compute otherwise      band: least and most that was seen at each step of the runs of calibration
    margin: how many times less or more is let pass

    Costs one wait for the device at each step.
    """

    policy: Any
    band: Band
    margin: float = 1.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "band", tuple((float(low), float(high)) for low, high in self.band))
        if self.margin < 1.0 or not self.band:
            raise ConfigError(
                explain(
                    f"margin={self.margin!r} around a band of {len(self.band)} steps",
                    "a margin of at least 1 around a band that was measured",
                    "Calibrate again, or leave the guard away",
                )
            )

    def bound(self, method: str, context: DenoiseContext) -> None:
        """See `CalibratedSteps.bound`."""
        if isinstance(self.policy, Bound):
            self.policy.bound(method, context)

    def __call__(self, view: UnitView, change: Tensor | None, forced: bool) -> bool | Tensor:
        skip: bool | Tensor = self.policy(view, change, forced)
        moved = movement(view)
        if moved is None or forced or skip is False:
            return skip
        step = view.step
        low, high = self.band[round(step.index * (len(self.band) - 1) / max(step.count - 1, 1))]
        if low / self.margin <= moved <= high * self.margin:
            return skip
        view.count("guarded")
        return False


def movement(view: UnitView) -> float | None:
    """How far the latents have moved since the last step, relative, most of all rows; None at the first step."""
    latents, before = view.call.latents, view.notes.get("latents before")
    view.notes["latents before"] = latents
    if not isinstance(before, Tensor) or before.shape != latents.shape:
        return None
    if "moved" not in view.call.notes:
        axes = tuple(range(1, latents.dim()))
        change = (latents.float() - before.float()).abs().mean(axes) / before.float().abs().mean(axes).clamp_min(1e-12)
        view.call.notes["moved"] = float(change.max())
    return float(view.call.notes["moved"])


@dataclass(frozen=True)
class Schedule:
    """A calibrated schedule and the circumstances in which it was found.

    method, site:    what it was found for                    steps: computed steps, 0-based, of `count`
    error:           ||latents - full|| / ||full||, root mean square over the calls of calibration
    uniform, uniform_error, proposed, proposed_error: the same of even steps, and of what dynamic programming proposed
    tried:           schedules of which the error was measured
    model, pipeline, scheduler, guidance, size: of the calls; band: see `Guarded`
    calls, device, packages, date: how it was measured
    """

    method: str
    site: str
    model: str
    pipeline: str
    scheduler: str
    count: int
    steps: tuple[int, ...]
    error: float
    uniform: tuple[int, ...]
    uniform_error: float
    proposed: tuple[int, ...]
    proposed_error: float
    tried: int
    guidance: float | None
    size: tuple[int, ...]
    calls: int
    device: str
    date: str
    band: Band = ()
    packages: dict[str, str] = field(default_factory=dict)

    def policy(self, guard: float | None = None) -> CalibratedSteps | Guarded:
        """The schedule for a `StepCache`; guard: margin of a `Guarded` around it."""
        made = CalibratedSteps(self.steps, self.count, self.method, self.model, self.scheduler)
        return made if guard is None else Guarded(made, self.band, guard)

    def write(self, path: str | Path) -> Path:
        """Write the schedule as JSON."""
        return write_file(Path(path), json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def read_schedule(path: str | Path) -> Schedule:
    """Read a schedule that `Schedule.write` wrote.

    Raises:
        InputError: the file is missing, no JSON, or no schedule.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        for name in ("steps", "uniform", "proposed", "size"):
            values[name] = tuple(values[name])
        values["band"] = tuple((low, high) for low, high in values["band"])
        return Schedule(**values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            explain(f"{path} is no schedule ({error})", "a file written by Schedule.write", "Calibrate again")
        ) from None


def listed_or_saved(schedule: str | tuple[int, ...], guard: float | None = None) -> AtSteps | Guarded:
    """Policy of a list of steps, or of a file that `calibrate_schedule` has made.

    Raises:
        ConfigError: a guard around steps that were not calibrated, or a name that is no file's.
        InputError: see `read_schedule`.
    """
    if isinstance(schedule, str) and schedule.endswith(".json"):
        return read_schedule(schedule).policy(guard)
    if guard is not None:
        raise ConfigError(
            explain("a guard around steps that were not calibrated", "a schedule from a file", "Calibrate first")
        )
    if isinstance(schedule, str):
        raise ConfigError(explain(f"schedule={schedule!r}", "steps, or a file *.json", "Correct the name"))
    return AtSteps(tuple(schedule))
